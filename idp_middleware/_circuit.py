"""In front of a token source: how many ask it at once, and nobody while it is down but one who looks now and then.

    closed      everybody may ask; a number of failures in a row, and it opens
    open        nobody may, for a while that doubles with each time: "unavailable" at once, rather than after a time-out
    half open   one may; what comes of that closes or opens it

Only what says that the source itself is down counts: unreachable, 5xx, no answer in time. What it says of a user, or of
our rate, is an answer. Knows neither callers nor tokens.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from time import time
from typing import Final, TypeVar

from idp_middleware._observation import CircuitRecord, Record
from idp_middleware._turns import Turns
from idp_middleware.errors import IdPError, TokenSourceBusy, TokenSourceTimeout, TokenSourceUnavailable

log = logging.getLogger("idp_middleware.tokens")

FAILURES: Final = 5
"""In a row, until it opens."""

COOL_DOWN: Final = (1.0, 30.0)
"""Seconds that it stays open: doubling from, up to."""

AT_ONCE: Final = 100
"""That ask one source from one process; with more, a slow source would gather all requests there are."""

PATIENCE: Final = 5.0
"""Seconds of waiting for one of those turns."""

_T = TypeVar("_T")


def spread(seconds: float) -> float:
    """Up to a quarter longer or shorter: what failed together must not try again together."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads requests, hides nothing


class Circuit:
    """That of one source, by its `name` in the log. `observe` is told when it opens and closes, and never raises."""

    def __init__(self, name: str, observe: Callable[[Record], None] | None = None) -> None:
        self._name = name
        self._observe = observe
        self._turns = Turns(AT_ONCE, patience=PATIENCE)
        self._failures = 0
        self._opened = 0
        # Two of them, so that a clock that was set back does not keep it open.
        self._since = self._until = 0.0
        self._probing = False

    async def ask(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What `ask` returns or raises; `TokenSourceUnavailable` where it may not be asked."""
        self._check()
        async with self._turns.turn():
            # Again, since it may have opened during the wait.
            self._check()
            probe = self._probing = self._opened > 0
            try:
                answer = await ask()
            except TokenSourceBusy:
                raise
            except (TokenSourceUnavailable, TokenSourceTimeout) as exc:
                self._failed(probe, getattr(exc, "retry_after", None))
                raise
            except IdPError:
                self._answered()
                raise
            finally:
                if probe:
                    self._probing = False
            self._answered()
            return answer

    def _check(self) -> None:
        """Raises `TokenSourceUnavailable` while it is open, or while one looks whether it is back."""
        if not self._opened:
            return
        now = time()
        left = self._until - now if self._since <= now < self._until else 0.0
        if left or self._probing:
            retry_after = spread(max(left, 1.0))
            raise TokenSourceUnavailable("not asked, since it was down a moment ago", retry_after=retry_after)

    def _failed(self, probe: bool, retry_after: float | None) -> None:
        if self._opened and not probe:
            # One from before it opened.
            return
        self._failures += 1
        if not probe and self._failures < FAILURES:
            return
        first, longest = COOL_DOWN
        self._since = time()
        self._until = self._since + spread(min(max(first * 2 ** min(self._opened, 10), retry_after or 0.0), longest))
        self._opened += 1
        if self._opened == 1:
            log.warning("%s is down (%d failures in a row), and asked only now and then", self._name, self._failures)
            self._tell(is_open=True)

    def _answered(self) -> None:
        if self._opened:
            log.warning("%s answers again", self._name)
            self._tell(is_open=False)
        self._failures = self._opened = 0

    def _tell(self, *, is_open: bool) -> None:
        if self._observe is not None:
            self._observe(CircuitRecord(self._name, is_open))
