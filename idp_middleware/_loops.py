"""Which event loop is running, told without asking the kernel.

Until Python 3.12, asyncio asks for the process id each time, in case the process has forked: one system call for each
question, and a request has several. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import os
import threading


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


def _forget() -> None:
    # The parent's loop still says that it is running, in the child as well.
    _seen.loop = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
