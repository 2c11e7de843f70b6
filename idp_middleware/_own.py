"""What we answer ourselves under the prefix.

- `GET {prefix}`: which routes a caller may use, and as which account;
- `DELETE {prefix}/{route}/token`: the caller's own token is revoked;
- `GET {prefix}/health` and `/ready`, for whoever runs the process, and anybody else: they tell nothing;
- `GET {prefix}/metrics`, where it is asked for.

Knows the route map, the authenticator and the token engine; nothing of upstreams. No answer holds a token, or where an
upstream is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, TypeAlias

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response

from idp_middleware._limits import Slots
from idp_middleware._observation import Exporter
from idp_middleware._public_urls import mount_of
from idp_middleware._revocation import Revocations
from idp_middleware._routes import METHODS, ProxyRoute, RouteMap
from idp_middleware._rules import ask
from idp_middleware._tokens import TokenEngine
from idp_middleware._types import Caller, Token
from idp_middleware.errors import (
    IdentityAmbiguous,
    IdentityNotLinked,
    IdPError,
    MethodNotAllowed,
    ReconnectRequired,
    TokenSourceTimeout,
)

logger = logging.getLogger("idp_middleware")

LOOK_UPS: Final = 8
"""Routes that one request has looked up at a time."""

LOOK_UPS_WITHIN: Final = 5.0
"""Seconds for all of them. What takes longer goes on, and is there for the next request."""

OVERVIEWS: Final = 4
"""That one caller may have under way at a time."""

REVOCATIONS: Final = 4
"""The same, of each route: as many as a page may begin at once, for a user with several accounts."""

Endpoint: TypeAlias = Callable[[HTTPConnection], Awaitable[Response]]


class OwnEndpoints:
    """The paths under the prefix that lead to no upstream.

    Args:
        routes: the route map.
        authenticate: who sent a request, with the account that its `IdP-Account` names.
        tokens: the token engine.
        revocations: what takes tokens back.
    """

    def __init__(
        self,
        routes: RouteMap,
        authenticate: Callable[[HTTPConnection], Awaitable[Caller]],
        tokens: TokenEngine,
        revocations: Revocations,
        *,
        metrics: Exporter | None = None,
    ) -> None:
        self._routes = routes
        self._authenticate = authenticate
        self._tokens = tokens
        self._revocations = revocations
        self._endpoints: dict[bytes, Endpoint] = {
            b"": self._overview,
            b"/": self._overview,
            b"/health": self._health,
            b"/ready": self._ready,
        }
        # Of an upstream with such a path of its own, all but this one spelling of it is the upstream's.
        # Slots of their own: streams that fill a route must not keep anybody from having a stolen token revoked.
        self._tokens_of = {
            b"/%s/token" % route.name.encode(): partial(self._revoke, route, Slots(None, REVOCATIONS))
            for route in routes
        }
        self._overviews = Slots(None, OVERVIEWS)
        if metrics is not None:
            self._metrics = metrics
            self._endpoints[b"/metrics"] = self._scrape
        self.closing = False
        """Whether new requests should go to another process."""

    def find(self, method: str, rest: bytes) -> Endpoint | None:
        """What answers for a method and a raw path after the prefix, if that is one of ours."""
        endpoint = self._endpoints.get(rest)
        if endpoint is None and method == "DELETE":
            return self._tokens_of.get(rest)
        return endpoint

    async def _health(self, conn: HTTPConnection) -> Response:
        """The process is alive, as it has just shown."""
        return _told(conn, 200, "ok")

    async def _ready(self, conn: HTTPConnection) -> Response:
        """Not whether what is behind is well: a fleet that leaves service because the identity provider is down helps
        nobody, and kept tokens go on serving meanwhile.
        """
        return _told(conn, 503, "closing") if self.closing else _told(conn, 200, "ok")

    async def _revoke(self, route: ProxyRoute, slots: Slots, conn: HTTPConnection) -> Response:
        """Revoke the caller's token. The route's methods and paths are about its upstream, and don't matter here.

        Raises an `IdPError`.
        """
        caller = await self._authenticate(conn)
        route.check_scopes(caller.scopes)
        if route.authorize is not None:
            await ask(route.authorize, caller, conn)
        await self._revocations.revoke(caller, route, slots.take(caller))
        return _answer(conn, Response(status_code=204))

    async def _scrape(self, conn: HTTPConnection) -> Response:
        _check_method(conn, "GET", "HEAD")
        return _answer(conn, await self._metrics.answer(conn))

    async def _overview(self, conn: HTTPConnection) -> Response:
        """The routes, and for those that the caller may use: whether there is a token for them, of which account.

        Raises an `IdPError`.
        """
        caller = await self._authenticate(conn)
        _check_method(conn, "GET", "HEAD")
        slot = self._overviews.take(caller)
        turns = asyncio.Semaphore(LOOK_UPS)
        within = asyncio.get_running_loop().time() + LOOK_UPS_WITHIN
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._entry(conn, caller, route, turns, within)) for route in self._routes]
        finally:
            slot.give_back()
        told = {"subject": caller.subject, "routes": [task.result() for task in tasks]}
        return _answer(conn, JSONResponse(told))

    async def _entry(
        self, conn: HTTPConnection, caller: Caller, route: ProxyRoute, turns: asyncio.Semaphore, within: float
    ) -> dict[str, Any]:
        missing = _missing_scopes(caller, route)
        allowed = not missing and await _authorized(conn, caller, route)
        entry = {
            "name": route.name,
            "url": mount_of(conn.scope, self._routes.prefix, route),
            "allowed": allowed,
            "methods": None if route.methods == METHODS else sorted(route.methods),
            "scopes": sorted(route.scopes),
            "missing_scopes": sorted(missing),
            "websocket": route.websocket,
            "connection": route.connection,
            **_state(None),
        }
        return entry | await self._look_up(caller, route, turns, within) if allowed else entry

    async def _look_up(
        self, caller: Caller, route: ProxyRoute, turns: asyncio.Semaphore, within: float
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout_at(within), turns:
                token = await self._tokens.token(caller, route)
        except TimeoutError:
            return _state("unavailable", problem=TokenSourceTimeout.name)
        except ReconnectRequired as exc:
            return _state("reconnect-required", problem=exc.name, connect_url=_connect_url(exc, route))
        except IdentityNotLinked as exc:
            return _state("not-linked", problem=exc.name, connect_url=_connect_url(exc, route))
        except IdentityAmbiguous as exc:
            return _state("ambiguous", problem=exc.name, accounts=exc.accounts)
        except IdPError as exc:
            logger.log(logging.WARNING if exc.status >= 500 else logging.DEBUG, "%s: %s", exc.name, exc)
            return _state("unavailable", problem=exc.name)
        account = token.account or caller.account
        return _state("linked", accounts=() if account is None else (account,), token=token)


def _state(
    state: str | None,
    *,
    problem: str | None = None,
    accounts: Iterable[str] = (),
    token: Token | None = None,
    connect_url: str | None = None,
) -> dict[str, Any]:
    return {
        "state": state,
        "problem": problem,
        "accounts": [{"id": account} for account in accounts],
        "token_scopes": [] if token is None else sorted(token.scopes),
        "expires_at": None if token is None else token.expires_at,
        "connect_url": connect_url,
    }


def _connect_url(error: IdentityNotLinked, route: ProxyRoute) -> str | None:
    return error.connect_url or getattr(route.source, "connect_url", None)


def _missing_scopes(caller: Caller, route: ProxyRoute) -> frozenset[str]:
    """What the caller would have to hold besides, to do anything at all on a route."""
    missing = frozenset(route.scopes) - caller.scopes
    by_rule = [frozenset(rule.scopes) - caller.scopes for rule in route.rules if not rule.deny]
    return missing | min(by_rule, key=len, default=frozenset())


async def _authorized(conn: HTTPConnection, caller: Caller, route: ProxyRoute) -> bool:
    """What the route's own function says. It may not expect a request for none of its paths, so failing is a no."""
    if route.authorize is None:
        return True
    try:
        await ask(route.authorize, caller, conn)
    except IdPError:
        return False
    except Exception as exc:
        logger.warning("route %s: its authorize raised %s for the overview", route.name, type(exc).__name__)
        return False
    return True


def _check_method(conn: HTTPConnection, *allowed: str) -> None:
    if conn.scope["method"] not in allowed:
        raise MethodNotAllowed(allowed=allowed)


def _told(conn: HTTPConnection, status: int, text: str) -> Response:
    _check_method(conn, "GET", "HEAD")
    return _answer(conn, PlainTextResponse(text, status_code=status))


def _answer(conn: HTTPConnection, response: Response) -> Response:
    response.headers["cache-control"] = "no-store"
    if conn.scope["method"] == "HEAD":
        # After the length has been worked out; not every server drops it.
        response.body = b""
    return response
