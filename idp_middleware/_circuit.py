"""In front of a token source: how many ask it at once, and nobody while it is down but one who looks now and then.

    closed      everybody may ask; a number of failures in a row, and it opens
    open        nobody may, for a while that doubles with each time: "unavailable" at once, rather than after a time-out
    half open   one may; what comes of that closes or opens it

Only what says that the source itself is down counts: unreachable, 5xx, no answer in time. What it says of a user, or of
our rate, is an answer. While all failures are one caller's, it is open for that caller alone: a source that answers 500
because of what one user has must not be shut to the others. Knows nothing of tokens, nor of callers but which are the
same.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Hashable
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
"""That ask one source from one process, and as many that have it take back; with more, a slow source would gather all
requests there are."""

PATIENCE: Final = 5.0
"""Seconds of waiting for one of those turns."""

_T = TypeVar("_T")


def spread(seconds: float) -> float:
    """Up to a quarter longer or shorter: what failed together must not try again together."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads requests, hides nothing


class Circuit:
    """That of one source, by its `name` in the log.

    `observe` is told, for each of its routes, when it opens for everybody and when it closes; it never raises.
    """

    def __init__(self, name: str, observe: Callable[[Record], None] | None = None) -> None:
        self._name = name
        self._observe = observe
        self._routes: list[str] = []
        self._turns = Turns(AT_ONCE, patience=PATIENCE)
        self._revoking = Turns(AT_ONCE, patience=PATIENCE)
        self._failures = 0
        self._failing: set[Hashable] = set()
        """Whose they are; of more than one, two."""
        self._opened = 0
        self._told = False
        # Two of them, so that a clock that was set back does not keep it open.
        self._since = self._until = 0.0
        self._probing = False

    def serves(self, route: str) -> None:
        """One more route gets its tokens there."""
        self._routes.append(route)
        if self._told:
            self._tell(route)

    async def ask(self, whose: Hashable, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What `ask` returns or raises for a caller; `TokenSourceUnavailable` where it may not be asked."""
        self._check(whose)
        async with self._turns.turn():
            # Again, since it may have opened during the wait.
            self._check(whose)
            if probe := self._open_for(whose):
                self._probing = True
            try:
                answer = await ask()
            except TokenSourceBusy:
                raise
            except (TokenSourceUnavailable, TokenSourceTimeout) as exc:
                self._failed(whose, probe, getattr(exc, "retry_after", None))
                raise
            except IdPError:
                self._answered()
                raise
            finally:
                if probe:
                    self._probing = False
            self._answered()
            return answer

    async def take_back(self, revoke: Callable[[], Awaitable[_T]]) -> _T:
        """What `revoke` returns or raises, in turns of its own and whether it is open or not.

        Revocation has an endpoint of its own, often at another server; and must not wait until a source that hangs has
        given everybody their token.
        """
        async with self._revoking.turn():
            return await revoke()

    def _open_for(self, whose: Hashable) -> bool:
        return self._opened > 0 and (len(self._failing) > 1 or whose in self._failing)

    def _check(self, whose: Hashable) -> None:
        """Raises `TokenSourceUnavailable` while it is open, or while one looks whether it is back."""
        if not self._open_for(whose):
            return
        now = time()
        left = self._until - now if self._since <= now < self._until else 0.0
        if left or self._probing:
            retry_after = spread(max(left, 1.0))
            raise TokenSourceUnavailable("not asked, since it was down a moment ago", retry_after=retry_after)

    def _failed(self, whose: Hashable, probe: bool, retry_after: float | None) -> None:
        if len(self._failing) < 2:
            self._failing.add(whose)
        if not self._opened or probe:
            self._failures += 1
            if probe or self._failures >= FAILURES:
                self._open(retry_after or 0.0)
        if self._opened and len(self._failing) > 1 and not self._told:
            log.warning(
                "%s (%s) is down (%d failures in a row), and asked only now and then",
                self._name,
                ", ".join(self._routes),
                self._failures,
            )
            self._tell_all(is_open=True)

    def _open(self, at_least: float) -> None:
        first, longest = COOL_DOWN
        self._since = time()
        self._until = self._since + spread(min(max(first * 2 ** min(self._opened, 10), at_least), longest))
        self._opened += 1

    def _answered(self) -> None:
        if self._told:
            log.warning("%s (%s) answers again", self._name, ", ".join(self._routes))
            self._tell_all(is_open=False)
        self._failures = self._opened = 0
        self._failing.clear()

    def _tell_all(self, *, is_open: bool) -> None:
        self._told = is_open
        for route in self._routes:
            self._tell(route)

    def _tell(self, route: str) -> None:
        if self._observe is not None:
            self._observe(CircuitRecord(self._name, route=route, open=self._told))
