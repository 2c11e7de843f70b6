"""So many at a time, and a bounded wait for those who come after. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from idp_middleware._loops import running_loop
from idp_middleware.errors import TokenSourceBusy


class Turns:
    """Lets `at_once` in at a time; the others wait for `patience` seconds at most."""

    def __init__(self, at_once: int, *, patience: float) -> None:
        self._at_once = at_once
        self._patience = patience
        self._free: asyncio.Semaphore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One's own, while the block runs. Raises `TokenSourceBusy` where it does not come in time."""
        loop = running_loop()
        # An app under test may see several loops, and what the last one left undone gives no turn back.
        if self._free is None or self._loop is not loop:
            self._free, self._loop = asyncio.Semaphore(self._at_once), loop
        free = self._free
        try:
            # A turn that is free costs no timer.
            async with asyncio.timeout(self._patience if free.locked() else None):
                await free.acquire()
        except TimeoutError:
            raise TokenSourceBusy("too many requests wait for the token source", retry_after=1.0) from None
        try:
            yield
        finally:
            free.release()
