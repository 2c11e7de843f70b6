"""Messages that have arrived and that nobody has fetched yet: put together from frames, and bounded.

Knows nothing of sockets, nor of what a connection ends with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

READ_AHEAD = 64 * 1024
"""Bytes of messages that nobody has fetched; beyond them nothing more is read."""

_PER_MESSAGE = 64
"""Bytes that a message counts for besides its own: empty ones take space too."""


class Messages:
    """A queue between the event loop and one reader.

    Args:
        pause: called when there are more than `READ_AHEAD` bytes.
        resume: called when there are not any more.
    """

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._queue: deque[tuple[str | bytes, int]] = deque()
        self._unread = 0
        # Fragments may be empty, and without number.
        self._partial = bytearray()
        self._is_text = False
        self._reader: asyncio.Future[None] | None = None
        self._ended = False
        self.paused = False

    def begin(self, *, text: bool) -> None:
        """A message begins."""
        self._is_text = text

    def add(self, data: bytes | bytearray | memoryview, *, last: bool) -> None:
        """A part of it. Raises `UnicodeDecodeError` where the whole is not the text that it claims to be."""
        self._partial += data
        if not last:
            return
        content, self._partial = bytes(self._partial), bytearray()
        size = len(content) + _PER_MESSAGE
        self._queue.append((content.decode() if self._is_text else content, size))
        self._unread += size
        self._wake()
        if self._unread > READ_AHEAD and not self.paused:
            self.paused = True
            self._pause()

    async def get(self) -> str | bytes | None:
        """The next message; None once there are none and none will come."""
        while not self._queue:
            if self._ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message, size = self._queue.popleft()
        self._unread -= size
        if self._unread <= READ_AHEAD:
            self._go_on()
        return message

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._wake()

    def clear(self) -> None:
        """Drop what is there, so that what comes behind is read."""
        self._queue.clear()
        self._unread = 0
        self._go_on()

    def _go_on(self) -> None:
        if self.paused:
            self.paused = False
            self._resume()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)
