"""The parts of the spine that take their time, each with a clock: what stands in their places where somebody observes.

Nothing of this is there where nobody does. Knows the parts by what they do; nothing of what observers make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import Response

from idp_middleware._cache import TokenCache
from idp_middleware._observation import Observers, TokenEvent, TokenRecord, digest, source_name
from idp_middleware._routes import ProxyRoute
from idp_middleware._token_keeper import differ
from idp_middleware._tokens import TokenEngine
from idp_middleware._types import Authenticator, Caller, RawHeaders, Timeout, Token
from idp_middleware._upstream import RequestBody, Upstream, UpstreamResponse
from idp_middleware._urls import Origin
from idp_middleware._watch import note_token, watched
from idp_middleware.errors import IdPError

ErrorHandler = Callable[[HTTPConnection, IdPError], Response]


class WatchedAuthenticator:
    """An `Authenticator`."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        watch = watched()
        if watch is None:
            return await self._authenticator.authenticate(conn)
        started = perf_counter()
        try:
            watch.caller = caller = await self._authenticator.authenticate(conn)
        finally:
            watch.authenticate += perf_counter() - started
        return caller

    def __getattr__(self, name: str) -> Any:
        # Whatever else one may have, or not.
        return getattr(self._authenticator, name)


class WatchedTokens(TokenEngine):
    """A `TokenEngine` that also tells what becomes of tokens."""

    def __init__(self, cache: TokenCache | None, observers: Observers) -> None:
        super().__init__(cache, observe=observers)
        self._observers = observers

    async def token(self, caller: Caller, route: ProxyRoute) -> Token:
        watch = watched()
        if watch is None:
            return await super().token(caller, route)
        watch.found, watch.outcome = "held", "none"
        started = perf_counter()
        try:
            token = await super().token(caller, route)
        finally:
            watch.token_wait += perf_counter() - started
        watch.outcome = watch.found
        return token

    async def renew(self, caller: Caller, route: ProxyRoute, refused: Token) -> Token:
        self._tell("refused", caller, route)
        watch = watched()
        if watch is None:
            return await super().renew(caller, route, refused)
        started = perf_counter()
        try:
            token = await super().renew(caller, route, refused)
        finally:
            watch.token_wait += perf_counter() - started
        if differ(token, refused):
            watch.outcome = "renewed"
        return token

    async def forget(self, caller: Caller, route: ProxyRoute) -> None:
        try:
            await super().forget(caller, route)
        finally:
            # Here it is, even where other processes could not be told.
            self._tell("forgotten", caller, route)

    async def _take_back(self, caller: Caller, route: ProxyRoute) -> None:
        started = perf_counter()
        try:
            await super()._take_back(caller, route)
        except IdPError as exc:
            self._tell("failed", caller, route, problem=exc.name, seconds=perf_counter() - started)
            raise
        if hasattr(route.source, "revoke"):
            self._tell("revoked", caller, route, seconds=perf_counter() - started)

    async def _asked(self, caller: Caller, route: ProxyRoute, held: Token | None, refused: Token | None) -> Token:
        started = perf_counter()
        try:
            token = await super()._asked(caller, route, held, refused)
        except IdPError as exc:
            self._tell("failed", caller, route, problem=exc.name, seconds=perf_counter() - started)
            raise
        # After whatever the source itself has waited for.
        note_token("source")
        event: TokenEvent = "obtained" if held is None else "refreshed"
        self._tell(event if refused is None else "renewed", caller, route, seconds=perf_counter() - started)
        return token

    def _tell(
        self, event: TokenEvent, caller: Caller, route: ProxyRoute, *, problem: str | None = None, seconds: float = 0.0
    ) -> None:
        self._observers(
            TokenRecord(
                event=event,
                route=route.name,
                source=source_name(route.source),
                caller=digest(caller.issuer, caller.subject),
                account=None if caller.account is None else digest(caller.account),
                problem=problem,
                seconds=seconds,
            )
        )


class WatchedUpstream:
    """An `Upstream`."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def send(
        self,
        origin: Origin,
        method: bytes,
        target: bytes,
        headers: RawHeaders,
        body: RequestBody | None,
        timeout: Timeout,
    ) -> UpstreamResponse:
        watch = watched()
        if watch is None:
            return await self._upstream.send(origin, method, target, headers, body, timeout)
        # Never in place: of the list, the last field is looked for by its place.
        headers = watch.sending(origin, method.decode(), headers)
        started = perf_counter()
        try:
            response = await self._upstream.send(origin, method, target, headers, body, timeout)
        except BaseException as exc:
            watch.upstream += perf_counter() - started
            watch.answered(None, exc)
            raise
        watch.upstream += perf_counter() - started
        watch.answered(response.status, None)
        return response

    async def aclose(self) -> None:
        await self._upstream.aclose()


def noting(on_error: ErrorHandler) -> ErrorHandler:
    """`on_error`, with the problem noted that it makes an answer for."""

    def handler(conn: HTTPConnection, error: IdPError) -> Response:
        if (watch := watched()) is not None:
            watch.problem = error.name
        return on_error(conn, error)

    return handler
