"""One timer for all the waits of a connection, since a timer per request would cost as much as its parsing.

Knows nothing of what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `expired` when a wait is over its time; a new wait takes the place of the last.

    The event loop's timer is left where it is while waits come and go, and set anew when it fires.
    """

    __slots__ = ("_alarm", "_expired", "_loop", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = 0.0
        self._when = 0.0  # 0 while nothing is waited for.

    def set(self, seconds: float) -> None:
        """Wait for so long from now."""
        self._when = when = self._loop.time() + seconds
        if self._timer is None or when < self._alarm:
            if self._timer is not None:
                self._timer.cancel()
            self._alarm = when
            self._timer = self._loop.call_at(when, self._tick)

    def clear(self) -> None:
        """What was waited for has come."""
        self._when = 0.0

    def cancel(self) -> None:
        """Nothing will be waited for any more."""
        self._when = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self._when:
            left = self._when - self._loop.time()
            if left > 0:
                self.set(left)
            else:
                self._when = 0.0
                self._expired()
