"""Whose token it is, and whom to ask for it: the route's source, behind the shared cache where there is one.

How long what comes back serves is `_token_keeper`'s. Knows neither HTTP nor how the shared cache stores anything.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

from idp_middleware._circuit import Circuit
from idp_middleware._observation import Record, source_name
from idp_middleware._revocation import News
from idp_middleware._routes import ProxyRoute
from idp_middleware._token_keeper import MAX_ENTRIES, Fetch, Obtained, TokenKeeper, differ, serves_until
from idp_middleware._types import Caller, Token
from idp_middleware._watch import note_token
from idp_middleware.errors import (
    CallerForbidden,
    IdPError,
    ReconnectRequired,
    TokenSourceFailed,
    TokenSourceUnavailable,
)

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache
    from idp_middleware._shared_revocations import Owner

log = logging.getLogger("idp_middleware.tokens")

_T = TypeVar("_T")


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
    - `at_hand: bool`: whether nobody is asked, so that there is nothing to wait for, to bound or to report.
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
            plan = self._plans.get(id(route)) or self._plan(route)
            await plan.circuit.take_back(lambda: guarded(route, revoke(caller, route)))

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
        if plan.at_hand:
            return await _ask(caller, route, refused)
        whose = (caller.issuer, caller.subject)
        return await plan.circuit.ask(whose, lambda: self._asked(caller, route, held, refused))

    async def _asked(self, caller: Caller, route: ProxyRoute, held: Token | None, refused: Token | None) -> Token:  # noqa: ARG002
        return await _ask(caller, route, refused)

    def _plan(self, route: ProxyRoute) -> _Plan:
        identity = getattr(route.source, "identity", None)
        shared = None if identity is None else (tuple(identity), route.connection)
        number = self._numbers.setdefault(shared or object(), len(self._numbers))
        circuit = self._circuits.get(number)
        if circuit is None:
            circuit = self._circuits[number] = Circuit(source_name(route.source), self._observe)
        circuit.serves(route.name)
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
            return newer and serves_until(stored) > time()

        return await cache.obtain(parts, lambda: ask(held, refused), serves=serves, until=serves_until)

    return fetch


def _logged_in_at(caller: Caller) -> float:
    """When the caller got the token they come with, as far as that says (RFC 7519 section 4.1.6); else 0."""
    issued = caller.claims.get("iat")
    return float(issued) if isinstance(issued, int | float) else 0.0


class _Plan:
    """What the tokens of one route are kept under, and what they have to be good for."""

    __slots__ = ("_cache_key", "at_hand", "circuit", "number", "route", "scopes", "shared")

    def __init__(self, route: ProxyRoute, number: int, shared: tuple[Any, ...] | None, circuit: Circuit) -> None:
        self.route = route
        self.number = number
        self.circuit = circuit
        self.shared = shared
        self.scopes = frozenset(route.token_scopes)
        self.at_hand = bool(getattr(route.source, "at_hand", False))
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
