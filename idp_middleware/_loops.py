"""Which event loop is running, told without asking the kernel; and which tasks it will finish.

Until Python 3.12, asyncio asks for the process id each time, in case the process has forked: one system call for each
question, and a request has several. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any


class _Seen(threading.local):
    loop: asyncio.AbstractEventLoop | None = None


_seen = _Seen()


def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop that runs in this thread. Raises `RuntimeError` where none does."""
    loop = _seen.loop
    # A thread runs one loop at a time: if the one seen last is running, it is this one.
    if loop is None or not loop.is_running():
        loop = _seen.loop = asyncio.get_running_loop()
    return loop


def under_way(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task will still come to its end: what another loop left unfinished never does.

    An app under test may see several loops.
    """
    return task is not None and not task.done() and task.get_loop() is running_loop()


def _forget() -> None:
    # The parent's loop still says that it is running, in the child as well.
    _seen.loop = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
