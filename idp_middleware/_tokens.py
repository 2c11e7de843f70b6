"""Keeps tokens, so that one question to the identity provider answers many requests.

`TokenEngine` knows whose token it is (the key) and whom to ask (the route's source, behind the shared cache where there
is one). `TokenKeeper` under it knows how long a token serves, and that one flight answers all who wait for it; it knows
nothing of callers and routes. Neither knows HTTP, nor how the shared cache stores anything.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from hmac import compare_digest
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from idp_middleware._circuit import Circuit, spread
from idp_middleware._loops import under_way
from idp_middleware._observation import Record, source_name
from idp_middleware._revocation import News
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token
from idp_middleware._watch import note_token
from idp_middleware.errors import (
    CallerForbidden,
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenSourceFailed,
    TokenSourceUnavailable,
)

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache
    from idp_middleware._shared_revocations import Owner

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

_T = TypeVar("_T")

Obtained: TypeAlias = tuple[Token, float]
"""A token, and when it was asked for (seconds since the epoch)."""

Fetch: TypeAlias = Callable[[Token | None, Token | None], Awaitable[Obtained]]
"""`fetch(held, refused)`: a token newer than `held`, which still serves, and than `refused`, which was turned down."""


class TokenEngine:
    """The token of a caller for a route: kept, shared, renewed ahead of expiry.

    Sources say what their answers depend on:

    - `identity: tuple[str, ...]`, equal for equal configuration (scopes and audience included): tokens are then shared
      between routes, and through `cache` between workers. Without it a route keeps its tokens to itself.
    - `cache_key(caller, route) -> tuple | None`: what of the caller decides the answer, beginning with issuer and
      subject; None is never kept, another tuple is of a token of the app's own. Without it: issuer, subject, account
      and the caller's scopes.
    - `async revoke(caller, route) -> None`: takes the user's token back at the provider, or at least gives it out no
      more; there being none is no error, and an `errors.TokenError` says that it may still be good. Without it, what
      is revoked is only forgotten.
    - `connect_url: str | None`, where a user connects an account, for tokens that lack scopes.

    Routes are expected to live as long as the engine. `observe` is told what happens, and never raises.
    """

    def __init__(
        self,
        cache: TokenCache | None = None,
        *,
        max_entries: int = MAX_ENTRIES,
        observe: Callable[[Record], None] | None = None,
    ) -> None:
        self._cache = cache
        if cache is not None and observe is not None:
            cache.observe = observe
        self._keeper = TokenKeeper(max_entries=max_entries)
        # By id, since hashing a route means hashing all it holds. A plan keeps its route, so no id comes twice.
        self._plans: dict[int, _Plan] = {}
        self._numbers: dict[object, int] = {}
        self._circuits: dict[int, Circuit] = {}
        self._observe = observe
        self._news = None if cache is None else News(cache, self._revoked_elsewhere)

    async def token(self, caller: Caller, route: ProxyRoute) -> Token:
        """A token that serves now. Raises `errors.TokenError`: `ReconnectRequired` too, for scopes that it lacks."""
        plan = self._plans.get(id(route)) or self._plan(route)
        key = plan.key(caller)
        if key is None:
            return plan.sufficient(await self._ask(caller, route, None, None))
        # All that most requests ever run:
        token = self._keeper.get(key)
        if token is None:
            token = await self._keeper.token(key, self._fetch(caller, plan, key), anew=_logged_in_at(caller))
        if not plan.scopes or not plan.lacking(token):
            return token
        # The user may have come back with more by now.
        return plan.sufficient(await self._keeper.newer(key, self._fetch(caller, plan, key), token))

    async def renew(self, caller: Caller, route: ProxyRoute, refused: Token) -> Token:
        """A token in place of one that the provider refused; others who were refused the same share it.

        May be the refused one where there is no other, or where refusals follow each other too fast: trying again with
        that is pointless. Raises `errors.TokenError`.
        """
        plan = self._plans.get(id(route)) or self._plan(route)
        key = plan.key(caller)
        if key is None:
            return plan.sufficient(await self._ask(caller, route, None, refused))
        return plan.sufficient(await self._keeper.renew(key, self._fetch(caller, plan, key), refused))

    async def revoke(self, caller: Caller, route: ProxyRoute) -> None:
        """Have the source take a user's token back, and drop what is kept of it.

        Raises `errors.TokenError`, and `CallerForbidden` where the token is the app's own.
        """
        plan = self._plans.get(id(route)) or self._plan(route)
        if not plan.is_callers(caller):
            raise CallerForbidden("the token is the app's own")
        try:
            # First, or somebody could fetch it once more in between.
            await self._take_back(caller, route)
        finally:
            await self.forget(caller, route)

    async def _take_back(self, caller: Caller, route: ProxyRoute) -> None:
        if (revoke := getattr(route.source, "revoke", None)) is not None:
            await guarded(route, revoke(caller, route))

    async def forget(self, caller: Caller, route: ProxyRoute) -> None:
        """Drop all that is kept for a user on a route, whatever the account and scopes, in every process.

        Raises `TokenSourceUnavailable` where it is dropped here, but the others could not be told.
        """
        plan = self._plans.get(id(route)) or self._plan(route)
        key = plan.key(caller)
        if key is None:
            return
        told = True
        if self._cache is not None and plan.shared is not None:
            if plan.is_callers(caller):
                told = await self._cache.revocations.revoke((*plan.shared, caller.issuer, caller.subject))
            await self._cache.delete((*plan.shared, *key[1:]))
        await self._keeper.forget(key[:3])
        if not told:
            raise TokenSourceUnavailable("the shared cache fails, so that other processes may not know of it")

    async def _revoked_elsewhere(self, owner: Owner | None) -> None:
        """Another process has revoked a user's tokens; None is anybody's."""
        if owner is None:
            await self._keeper.forget(())
        elif (number := self._numbers.get(owner[:2])) is not None:
            await self._keeper.forget((number, *owner[2:]))

    async def aclose(self) -> None:
        """Cancel what is under way, drop what is kept, let go of the shared cache."""
        if self._news is not None:
            await self._news.aclose()
        await self._keeper.aclose()
        if self._cache is not None:
            await self._cache.aclose()

    async def _ask(self, caller: Caller, route: ProxyRoute, held: Token | None, refused: Token | None) -> Token:
        """The source's answer, in place of `held` or `refused`, where it may be asked."""
        plan = self._plans.get(id(route)) or self._plan(route)
        return await plan.circuit.ask(lambda: self._asked(caller, route, held, refused))

    async def _asked(self, caller: Caller, route: ProxyRoute, held: Token | None, refused: Token | None) -> Token:  # noqa: ARG002
        return await _ask(caller, route, refused)

    def _plan(self, route: ProxyRoute) -> _Plan:
        identity = getattr(route.source, "identity", None)
        shared = None if identity is None else (tuple(identity), route.connection)
        number = self._numbers.setdefault(shared or object(), len(self._numbers))
        circuit = self._circuits.get(number)
        if circuit is None:
            circuit = self._circuits[number] = Circuit(source_name(route.source), self._observe)
        plan = self._plans[id(route)] = _Plan(route, number, shared, circuit)
        return plan

    def _fetch(self, caller: Caller, plan: _Plan, key: tuple[Any, ...]) -> Fetch:
        asked = False

        async def ask(held: Token | None, refused: Token | None) -> Obtained:
            nonlocal asked
            asked, asked_at = True, time()
            return await self._ask(caller, plan.route, held, refused), asked_at

        cache = self._cache
        if cache is None or self._news is None or plan.shared is None:
            return ask
        self._news.follow()
        parts = (*plan.shared, *key[1:])
        # Without them, it is the app's own.
        owner = (*plan.shared, *key[1:3]) if plan.is_callers(caller) else None

        async def fetch(held: Token | None, refused: Token | None) -> Obtained:
            revoked_at = 0.0 if owner is None else await cache.revocations.revoked_at(owner)
            shared = shared_fetch(cache, parts, ask, lambda: max(revoked_at, self._keeper.asked_at(key)))
            obtained = await shared(held, refused)
            if not asked:
                note_token("shared")
            return obtained

        return fetch


def shared_fetch(cache: TokenCache, parts: tuple[Any, ...], ask: Fetch, asked_at: Callable[[], float]) -> Fetch:
    """`ask`, behind the shared cache: what another process has obtained since `asked_at()` will do.

    `parts` are what the token depends on. The time is that of the token to be replaced, or of a revocation (seconds
    since the epoch).
    """

    async def fetch(held: Token | None, refused: Token | None) -> Obtained:
        old, since = refused or held, asked_at()

        def serves(stored: Obtained) -> bool:
            # Later too, since a cache that comes back from a backup has what was refused long ago.
            newer = stored[1] > since and (old is None or differ(stored[0], old))
            return newer and _serves_until(stored) > time()

        return await cache.obtain(parts, lambda: ask(held, refused), serves=serves, until=_serves_until)

    return fetch


def _logged_in_at(caller: Caller) -> float:
    """When the caller got the token they come with, as far as that says (RFC 7519 section 4.1.6); else 0."""
    issued = caller.claims.get("iat")
    return float(issued) if isinstance(issued, int | float) else 0.0


class _Plan:
    """What the tokens of one route are kept under, and what they have to be good for."""

    __slots__ = ("_cache_key", "circuit", "number", "route", "scopes", "shared")

    def __init__(self, route: ProxyRoute, number: int, shared: tuple[Any, ...] | None, circuit: Circuit) -> None:
        self.route = route
        self.number = number
        self.circuit = circuit
        self.shared = shared
        self.scopes = frozenset(route.token_scopes)
        self._cache_key: Callable[..., tuple[Any, ...] | None] | None = getattr(route.source, "cache_key", None)

    def key(self, caller: Caller) -> tuple[Any, ...] | None:
        if self._cache_key is None:
            return (self.number, caller.issuer, caller.subject, caller.account, caller.scopes)
        parts = self._cache_key(caller, self.route)
        return None if parts is None else (self.number, *parts)

    def is_callers(self, caller: Caller) -> bool:
        """Whether the token is the caller's, and not one of the app's that all callers share."""
        key = self.key(caller)
        return key is None or key[1:3] == (caller.issuer, caller.subject)

    def lacking(self, token: Token) -> frozenset[str]:
        """The scopes that the route asks for and the token is known not to have."""
        return self.scopes - token.scopes if token.scopes else frozenset()

    def sufficient(self, token: Token) -> Token:
        if missing := self.lacking(token):
            raise ReconnectRequired(
                "the token lacks scopes",
                connection=self.route.connection,
                connect_url=getattr(self.route.source, "connect_url", None),
                scopes=missing,
            )
        return token


async def _ask(caller: Caller, route: ProxyRoute, refused: Token | None) -> Token:
    """The source's answer, made sure to be a token."""
    token = await guarded(route, route.source.token(caller, route, refused=refused))
    if not isinstance(token, Token):
        raise TokenSourceFailed(f"the source gave a {type(token).__name__}, not a Token")
    return token


async def guarded(route: ProxyRoute, asking: Awaitable[_T]) -> _T:
    """What a source answers. Raises an `IdPError`, whatever the source does."""
    try:
        return await asking
    except IdPError:
        raise
    except Exception as exc:
        # Somebody's own source, whose words may hold a secret: to mend it, the place has to do.
        frames = traceback.extract_tb(exc.__traceback__)[1:]
        where = ", ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
        log.error("the token source of route %r raised %s: %s", route.name, type(exc).__name__, where)
        raise TokenSourceFailed(f"the source raised {type(exc).__name__}") from None


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


def _serves_until(obtained: Obtained) -> float:
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
