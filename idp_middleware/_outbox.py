"""What is written in one step of the event loop, sent at its end, one right after the other.

A write wakes up whoever reads, and that costs the writer more than the bytes do. Spread over the step, each write finds
its reader asleep again; back to back, they wake it once. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

AT_ONCE: Final = 32
"""Writes that wait for each other; by the time of more, what they write has left the CPU's cache."""


class Outbox:
    """That of one event loop; see `outbox_of`."""

    __slots__ = ("_due", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Callable[[], None]] = []

    def add(self, send: Callable[[], None]) -> None:
        """Have `send` called right after this step, or now if `AT_ONCE` have been added; in the order of adding."""
        if not self._due:
            self._loop.call_soon(self._empty)
        self._due.append(send)
        if len(self._due) == AT_ONCE:
            self._empty()

    def _empty(self) -> None:
        due, self._due = self._due, []
        for send in due:
            try:
                send()
            except Exception as exc:
                # The others are not to blame, and wait.
                self._loop.call_exception_handler({"message": "writing failed", "exception": exc})


class _Seen(threading.local):
    loop: asyncio.AbstractEventLoop | None = None
    outbox: Outbox


_seen = _Seen()


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox:
    """The outbox of the loop that runs in this thread: one for all who write, so that they share its step."""
    if _seen.loop is not loop:
        # A thread runs one loop at a time; connections of an ended one keep theirs, and write nothing any more.
        _seen.loop, _seen.outbox = loop, Outbox(loop)
    return _seen.outbox
