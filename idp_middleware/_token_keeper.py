"""How long tokens serve, and one flight at a time to get the next: one question answers all who wait.

Knows tokens by keys that it does not look into; nothing of callers, routes, sources or the shared cache.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from hmac import compare_digest
from time import monotonic, time
from typing import Any, Final, TypeAlias

from idp_middleware._circuit import spread
from idp_middleware._loops import under_way
from idp_middleware._types import Token
from idp_middleware._watch import note_token
from idp_middleware.errors import IdentityNotLinked, IdPError, TokenSourceUnavailable

log = logging.getLogger("idp_middleware.tokens")

# All times are in seconds.
MAX_ENTRIES: Final = 10_000
MAX_AGE: Final = 300.0  # of a token whose expiry nobody knows
CLOCK_SKEW: Final = 10.0  # a token serves no longer than this before its expiry: clocks differ, requests take time
REFRESH_BEFORE: Final = 60.0
NOT_LINKED_FOR: Final = 5.0  # long enough to spare the provider a page that asks ten times, short enough to link in
RETRY_REFRESH: Final = (5.0, 60.0)  # doubling from, up to
LOG_EVERY: Final = 60.0
RENEWALS: Final = 3  # that refusals may cause at once …
RENEWAL_EVERY: Final = 20.0  # … and then one in this time: an API that refuses whatever it gets must not drain the IdP

Obtained: TypeAlias = tuple[Token, float]
"""A token, and when it was asked for (seconds since the epoch)."""

Fetch: TypeAlias = Callable[[Token | None, Token | None], Awaitable[Obtained]]
"""`fetch(held, refused)`: a token newer than `held`, which still serves, and than `refused`, which was turned down."""


class TokenKeeper:
    """Tokens by key: how long each serves, and one flight at a time to get the next.

    A cancelled request cancels no flight: others wait for it, and what it brings is kept anyway.
    """

    def __init__(self, *, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._not_linked: OrderedDict[Hashable, tuple[float, IdPError]] = OrderedDict()
        self._flights: dict[Hashable, asyncio.Task[Token | IdPError]] = {}
        self._log_again_at = 0.0

    def get(self, key: Hashable) -> Token | None:
        """The token under `key` if nothing needs doing about it."""
        held = self._held.get(key)
        if held is not None and time() < held.refresh_at:
            self._held.move_to_end(key)
            return held.token
        return None

    def asked_at(self, key: Hashable) -> float:
        """When the token under `key` was asked for (seconds since the epoch); 0 where there is none."""
        held = self._held.get(key)
        return 0.0 if held is None else held.asked_at

    async def token(self, key: Hashable, fetch: Fetch, *, anew: float = 0.0) -> Token:
        """The token under `key`; fetched where there is none, and in the background where it expires soon.

        That there is none, as said before `anew` (seconds since the epoch), counts no more.

        Raises `errors.IdPError` as `fetch` did, each caller its own copy.
        """
        now = time()
        held = self._held.get(key)
        if held is not None and now < held.until:
            if held.refresh_at <= now:
                held.refresh_at = held.until
                self._flight(key, fetch, held=held.token)
            return held.token
        self._refuse(key, anew)
        return await _landing(self._flight(key, fetch))

    async def newer(self, key: Hashable, fetch: Fetch, held: Token) -> Token:
        """What there is now in place of `held`, which is good but not enough; as seldom as renewals, else `held`.

        Raises as `token`.
        """
        current = self._held.get(key)
        if current is not None and differ(current.token, held):
            return current.token
        if self._under_way(key) is None and (current is None or not current.may_renew()):
            return held
        return await _landing(self._flight(key, fetch, held=held))

    async def renew(self, key: Hashable, fetch: Fetch, refused: Token) -> Token:
        """A token in place of `refused`; that one again where there is no other (see `TokenEngine.renew`)."""
        token = self._other_than(refused, key)
        if token is None and (flight := self._under_way(key)) is not None:
            # It may have started before the refusal, and bring the very token that was refused.
            landed = await _landing(flight)
            token = landed if differ(landed, refused) else self._other_than(refused, key)
        if token is not None:
            return token
        held = self._held.get(key)
        if held is not None and self._under_way(key) is None and not held.may_renew():
            return held.token
        self._refuse(key)
        return await _landing(self._flight(key, fetch, refused=refused))

    async def forget(self, start: tuple[Any, ...]) -> None:
        """Drop what is kept under keys that begin so, and what flights under way are about to bring."""

        def begins(key: Hashable) -> bool:
            return isinstance(key, tuple) and key[: len(start)] == start

        def drop() -> None:
            for key in filter(begins, (*self._held, *self._not_linked)):
                self._held.pop(key, None)
                self._not_linked.pop(key, None)

        # At once, since a renewal ahead of time may hang for long while the old token serves.
        drop()
        flights = [flight for key in self._flights if begins(key) and (flight := self._under_way(key)) is not None]
        if flights:
            await asyncio.wait(flights)
            drop()

    async def aclose(self) -> None:
        """Cancel all flights and drop all tokens; whoever waits is told that the source is unavailable."""
        flights = [flight for key in tuple(self._flights) if (flight := self._under_way(key)) is not None]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        self._held.clear()
        self._not_linked.clear()

    def _refuse(self, key: Hashable, anew: float = 0.0) -> None:
        """Raise what was said a moment ago, if it was that there is no such identity.

        Who has logged in since then may have come from connecting it.
        """
        known = self._not_linked.get(key)
        if known is not None:
            said_at, error = known
            if time() < said_at + NOT_LINKED_FOR and anew <= said_at:
                raise _twin(error)
            del self._not_linked[key]

    def _other_than(self, refused: Token, key: Hashable) -> Token | None:
        held = self._held.get(key)
        return held.token if held is not None and time() < held.until and differ(held.token, refused) else None

    def _under_way(self, key: Hashable) -> asyncio.Task[Token | IdPError] | None:
        flight = self._flights.get(key)
        return flight if under_way(flight) else None

    def _flight(
        self, key: Hashable, fetch: Fetch, *, held: Token | None = None, refused: Token | None = None
    ) -> asyncio.Task[Token | IdPError]:
        flight = self._under_way(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._fly(key, fetch, held, refused))
            # No partial: asyncio's debug mode writes the arguments of those into the log, and a key names a user.
            flight.add_done_callback(lambda landed: self._landed(key, landed))
        return flight

    def _landed(self, key: Hashable, flight: asyncio.Task[Token | IdPError]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(self, key: Hashable, fetch: Fetch, held: Token | None, refused: Token | None) -> Token | IdPError:
        """Failures are returned: a task's exception is one object for all who wait, or "never retrieved" if none do."""
        try:
            token, asked_at = await fetch(held, refused)
        except IdentityNotLinked as exc:
            self._held.pop(key, None)
            self._put(self._not_linked, key, (time(), _twin(exc)))
            return exc
        except IdPError as exc:
            if (old := self._held.get(key)) is not None and time() < old.until:
                wait = old.failed(exc)
                # In an outage, that of one of them has to do for all tokens.
                level = logging.DEBUG if monotonic() < self._log_again_at else logging.WARNING
                log.log(level, "no new token yet, next try in %.0f s: %s", wait, exc)
                if level == logging.WARNING:
                    self._log_again_at = monotonic() + LOG_EVERY
            return exc
        entry = _Held(token, asked_at)
        if (old := self._held.get(key)) is not None:
            entry.renewals, entry.renewed_at = old.renewals, old.renewed_at
        self._put(self._held, key, entry)
        self._not_linked.pop(key, None)
        return token

    def _put(self, store: OrderedDict[Hashable, Any], key: Hashable, value: object) -> None:
        store[key] = value
        store.move_to_end(key)
        if len(store) > self._max_entries:
            store.popitem(last=False)


class _Held:
    """A token and how long it serves."""

    __slots__ = ("asked_at", "failures", "refresh_at", "renewals", "renewed_at", "token", "until")

    def __init__(self, token: Token, asked_at: float) -> None:
        life = MAX_AGE if token.expires_at is None else token.expires_at - asked_at
        self.token = token
        self.asked_at = asked_at
        # In proportion where a token lives shortly, or it would never serve twice.
        self.until = asked_at + life - min(CLOCK_SKEW, life / 10)
        self.refresh_at = self.until - min(REFRESH_BEFORE, life / 5)
        self.failures = 0
        self.renewals = float(RENEWALS)
        self.renewed_at = 0.0

    def failed(self, error: IdPError) -> float:
        """Still serving: put the next attempt off, by so many seconds."""
        first, longest = RETRY_REFRESH
        told: float = getattr(error, "retry_after", None) or 0.0
        wait = max(spread(max(min(first * 2 ** min(self.failures, 10), longest), told)), told)
        self.failures += 1
        self.refresh_at = min(self.until, time() + wait)
        return wait

    def may_renew(self) -> bool:
        now = time()
        self.renewals = min(RENEWALS, self.renewals + max(0.0, now - self.renewed_at) / RENEWAL_EVERY)
        self.renewed_at = now
        if self.renewals < 1:
            return False
        self.renewals -= 1
        return True


def serves_until(obtained: Obtained) -> float:
    return _Held(*obtained).until


async def _landing(flight: asyncio.Task[Token | IdPError]) -> Token:
    # A flight of this request's own, which has yet to start, will say better.
    note_token("joined")
    try:
        outcome = await asyncio.shield(flight)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if flight.cancelled() and task is not None and not task.cancelling():
            raise TokenSourceUnavailable("shutting down") from None
        raise
    if isinstance(outcome, Token):
        return outcome
    raise _twin(outcome) from outcome.__cause__


def _twin(error: IdPError) -> IdPError:
    """One for each who waits: an exception that is raised many times collects everybody's frames."""
    try:
        return copy.copy(error)
    except TypeError:  # somebody's own subclass, with a constructor of its own
        return error.with_traceback(None)


def differ(one: Token, other: Token) -> bool:
    """Whether two tokens have different values, told in constant time."""
    return not compare_digest(one.value.encode("utf-8", "replace"), other.value.encode("utf-8", "replace"))
