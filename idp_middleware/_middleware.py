"""THE SPINE: a request's way, six hops and no way back.

match → authenticate → authorize → token → open the upstream's response → relay. Sees authenticators and token sources
through their one-method protocols only, and HTTP through the seam in `_upstream`.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from idp_middleware._answers import LastHop, answers, nothing_behind, problem_response
from idp_middleware._any_of import as_authenticator
from idp_middleware._authorized import send_authorized
from idp_middleware._body_rewriting import rewritten
from idp_middleware._cache import BaseCache, TokenCache, as_token_cache
from idp_middleware._client import client_for
from idp_middleware._engine import Engine
from idp_middleware._httpx_upstream import HTTPXUpstream
from idp_middleware._inbound import Inbound, Lookout, lingering
from idp_middleware._lifespan import lifespan
from idp_middleware._observation import Exporter, Observer, Observers
from idp_middleware._own import Endpoint, OwnEndpoints
from idp_middleware._public_urls import lead_back, mount_of, public_origin
from idp_middleware._request_headers import Request, cookies, forwarded, read_request, without
from idp_middleware._response_headers import response_headers
from idp_middleware._revocation import Revocations
from idp_middleware._routes import ProxyRoute, RouteMap
from idp_middleware._rules import ask
from idp_middleware._tokens import TokenEngine
from idp_middleware._traces import forget_details
from idp_middleware._types import AuthenticatorLike, Caller, RawHeaders
from idp_middleware._upstream import Upstream, UpstreamResponse
from idp_middleware._watch import Watch
from idp_middleware._watched import WatchedAuthenticator, WatchedTokens, WatchedUpstream, noting
from idp_middleware.errors import (
    CallerForbidden,
    ClientDisconnected,
    ConfigurationError,
    IdPError,
    UpstreamAborted,
    UpstreamTimeout,
    UpstreamUnreachable,
)

if TYPE_CHECKING:
    from idp_middleware._websocket import WebSocketExchange, WebSockets

logger = logging.getLogger("idp_middleware")

ErrorHandler = Callable[[HTTPConnection, IdPError], Response]

SCOPE_KEY = "idp_middleware"
"""Where the app behind finds the middleware in a scope; that of `idp_middleware.fastapi` does."""


class IdPMiddleware:
    """Proxies what is under `prefix` to providers' APIs with the caller's own provider token; the rest is the app's.

    Works as `app.add_middleware(IdPMiddleware, …)`, as a wrapper `IdPMiddleware(app, …)`, and with no app behind it
    (then everything else is 404). Needs no lifespan: it opens its connections on first use, and closes them at the
    lifespan's shutdown or with `aclose`. An app that wants the middleware for itself, too, makes it first:
    `idp = IdPMiddleware(…)`, `app.add_middleware(idp.around)`; then see `client`.

    Args:
        app: the ASGI app behind, if any.
        routes: name → `ProxyRoute`; a request for `{prefix}/{name}/…` goes to that route.
        authenticator: an `Authenticator`, or an async function from a connection to a `Caller`.
        prefix: the path that everything of ours is under; compared with the raw path, byte for byte.
        transport: any httpx transport, in place of the built-in HTTP/1.1 engine; WebSockets go past it.
        cache: a `TokenCache`, or an aiocache backend in memory; default in process.
        on_error: makes the answer for an error of `errors`; default `problem_response`.
        observers: are told of each request, and of what becomes of tokens; see `observers`.
        metrics: an observer, such as `prometheus.Prometheus`, that also answers `{prefix}/metrics`, to anybody.

    Raises:
        ConfigurationError: for a prefix, route or authenticator that cannot work.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        routes: Mapping[str, ProxyRoute],
        authenticator: AuthenticatorLike,
        prefix: str = "/idp",
        transport: httpx.AsyncBaseTransport | None = None,
        cache: TokenCache | BaseCache | None = None,
        on_error: ErrorHandler | None = None,
        observers: Sequence[Observer] = (),
        metrics: Exporter | None = None,
    ) -> None:
        self.app: ASGIApp = nothing_behind if app is None else app
        if metrics is not None:
            observers = (*observers, metrics)
        self._routes = RouteMap(routes, prefix, taken=() if metrics is None else ("metrics",))
        self._authenticator = as_authenticator(authenticator)
        self._observers = Observers(observers, prefix) if observers else None
        self._cache = as_token_cache(cache)
        self._tokens = (
            TokenEngine(self._cache) if self._observers is None else WatchedTokens(self._cache, self._observers)
        )
        self._upstream: Upstream = Engine() if transport is None else HTTPXUpstream(transport)
        self._websockets: WebSockets | None = None
        if any(route.websocket for route in self._routes):
            # Only here, since it needs an extra; that it is installed, the route has checked.
            from idp_middleware._websocket import WebSockets

            self._websockets = WebSockets()
        self._on_error = on_error or problem_response
        if self._observers is not None:
            self._authenticator = WatchedAuthenticator(self._authenticator)
            self._upstream = WatchedUpstream(self._upstream)
            self._on_error = noting(self._on_error)
        # The same in every worker of a deployment, so that a loop through another worker is one too.
        names = "\n".join([prefix, *(f"{route.name} {route.upstream}" for route in self._routes)])
        self._pseudonym = b"idp_middleware-" + hashlib.sha256(names.encode()).hexdigest()[:8].encode()
        self._via = b"1.1 " + self._pseudonym
        self._lookout = Lookout()
        self._revocations = Revocations(self._tokens)
        self._own = OwnEndpoints(self._routes, self.authenticate, self._tokens, self._revocations, metrics=metrics)
        if self._cache is not None:
            # Besides users' tokens: keys of issuers, sources' own tokens.
            for part in self._parts():
                if (use_cache := getattr(part, "use_cache", None)) is not None:
                    use_cache(self._cache)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._own.closing = False
            await lifespan(self.app, scope, receive, send, close=self.aclose)
            return
        rest = self._routes.under_prefix(scope)
        if rest is None:
            scope[SCOPE_KEY] = self
            await self.app(scope, receive, send)
            return
        serve = self._serve if scope["type"] == "http" else self._serve_websocket
        try:
            if self._observers is None:
                await serve(scope, receive, send, rest)
            else:
                with Watch(self._observers, scope, receive, send, self._routes.name_of(rest)) as watch:
                    await serve(scope, watch.receive, watch.send, rest)
        except Exception as exc:
            # Around us there may be an error reporter, which takes down every variable on the way.
            forget_details(exc)
            raise

    def around(self, app: ASGIApp) -> IdPMiddleware:
        """This middleware around `app`, for `app.add_middleware(idp.around)`; with `idp`, it shares everything else."""
        twin = copy.copy(self)
        twin.app = app
        return twin

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        """Who sent a request, under the prefix or not; with the account that its `IdP-Account` names, if any.

        Raises an `IdPError`: `CallerUnauthenticated` and whatever else the authenticator has to say, or `BadRequest`.
        """
        caller = await self._authenticator.authenticate(conn)
        account = read_request(conn.scope["headers"]).account
        return caller if account is None else replace(caller, account=account)

    def client(self, route: str, caller: Caller) -> httpx.AsyncClient:
        """What a route leads to, for the app's own code: an httpx client whose requests carry the caller's token.

            idp = IdPMiddleware(authenticator=…, routes={"github": …})
            app.add_middleware(idp.around)

            repositories = await idp.client("github", caller).get("/user/repos")

        Tokens are the same as for requests under the prefix: kept, renewed ahead, and once more where the upstream
        refuses one. The route's headers and `timeout` hold unless a request has its own; the rest of the route is about
        what callers may send, which is the app's own business here. The client follows no redirects, keeps no cookies
        and goes nowhere but under the route's upstream. It holds nothing open, so it need not be closed.

        `caller` may come from a request (`authenticate`), or be made up for work that no request asked for:
        `Caller("auth0|alice")`, with `claims={"iss": …}` where the source knows users by their issuer too, as
        `sources.RefreshToken` does. Sources that hand over the caller's own `credential` need one, else they raise
        `TokenSourceFailed`. Use it on the event loop that serves the app, or in a process of its own.

        Its requests raise what callers would be answered, an `IdPError`: `IdentityNotLinked`, `UpstreamTimeout` …; and
        `BadRequest` for a URL elsewhere.

        Raises:
            ConfigurationError: there is no such route.
        """
        return client_for(self.route(route), caller, tokens=self._tokens, upstream=self._upstream)

    async def revoke(self, route: str, caller: Caller) -> None:
        """Take a user's token for a route back: as `DELETE {prefix}/{route}/token` does, for the app's own code.

        At the provider, where the token source can; then nothing that was kept of it is used again, in this process at
        once. Sources that look tokens up in an identity provider get them there again as long as the account is linked.
        `caller` is as for `client`; its `account` says which, of several. There being no token is no error.

        Raises:
            ConfigurationError: there is no such route.
            CallerForbidden: the route's token is the app's own.
            TokenError: the provider or the token source did not answer, or refused. The token may still be good there,
                so try again.
        """
        await self._revocations.revoke(caller, self.route(route))

    def route(self, name: str) -> ProxyRoute:
        """The route of that name. Raises `ConfigurationError` where there is none."""
        route = self._routes.named(name)
        if route is None:
            raise ConfigurationError("there is no such route", table="routes", key=name)
        return route

    async def _serve(self, scope: Scope, receive: Receive, send: Send, rest: bytes) -> None:
        try:
            with Inbound(receive, self._lookout) as inbound:
                try:
                    if (own := self._own.find(scope["method"], rest)) is not None:
                        await self._serve_own(own, scope, inbound, receive, send)
                        return
                    _, route, target, response = await self._open(scope, inbound, rest, self._upstream)
                except IdPError as exc:
                    await self._answer(exc, scope, receive, send, inbound)
                    return
                # THE LINE: above, nothing has been sent, and an error is an answer. Below, the response has started,
                # and an error can only leave as an exception, so that the server breaks the connection: a clean end
                # would tell the caller that a truncated body is whole.
                try:
                    await self._relay(scope, send, route, target, response, inbound)
                finally:
                    await response.aclose()
        except ClientDisconnected:
            # Nobody is left to answer; leaving the `with` has let go of the upstream.
            return

    async def _serve_own(self, own: Endpoint, scope: Scope, inbound: Inbound, receive: Receive, send: Send) -> None:
        scope["headers"] = fields = list(scope["headers"])
        request = read_request(fields)
        inbound.expect(length=request.length, chunked=request.chunked)
        await _respond(await own(HTTPConnection(scope)), scope, receive, send, inbound)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send, rest: bytes) -> None:
        """The same way; only is hop 5 a handshake, and hop 6 goes both ways."""
        answer = answers(scope, send)
        try:
            route, _ = self._routes.match(rest)
            if self._websockets is None or not route.websocket:
                # Refused, for falling through would reach the app past every check.
                raise CallerForbidden("no WebSockets on this route")
            async with self._websockets.exchange(scope, receive, send, route) as exchange:
                upstream = exchange if self._observers is None else WatchedUpstream(exchange)
                opening = self._open(exchange.scope, exchange, rest, upstream)
                caller, route, target, response = await exchange.while_there(opening)
                # The same line as above: nothing below raises what would be answered.
                if response.status == 101:
                    await exchange.relay(caller)
                else:
                    await self._relay(exchange.scope, answer, route, target, response)
        except IdPError as exc:
            await self._answer(exc, scope, receive, answer)
        except ClientDisconnected:
            return

    async def _open(
        self, scope: Scope, inbound: Inbound | WebSocketExchange, rest: bytes, upstream: Upstream
    ) -> tuple[Caller, ProxyRoute, bytes, UpstreamResponse]:
        """Everything up to the head of the upstream's response.

        Raises what is to be answered as an `IdPError`.
        """
        # A list of our own, since servers append trailers to theirs while we wait.
        scope["headers"] = fields = list(scope["headers"])
        request = read_request(fields)
        inbound.expect(length=request.length, chunked=request.chunked)
        route, rest = self._routes.match(rest)
        target = route.target(rest, scope.get("query_string", b""))
        conn = HTTPConnection(scope)
        caller = await self._authenticator.authenticate(conn)
        if request.account is not None:
            caller = replace(caller, account=request.account)
        method: str = scope["method"]
        _authorize(caller, route, method, rest)
        if route.authorize is not None:
            await ask(route.authorize, caller, conn)
        if route.slots is not None:
            inbound.hold(route.slots.take(caller))
        inbound.limit(route.max_body)
        if self._pseudonym in request.via:
            raise UpstreamUnreachable("the route leads back to this middleware", error="proxy_loop_detected")
        if method == "OPTIONS" and not request.forward_once_more():
            return caller, route, target, LastHop(route)
        response, token, at, target = await send_authorized(
            self._tokens,
            upstream,
            caller,
            route,
            method=method,
            rest=rest,
            query=scope.get("query_string", b""),
            target=target,
            headers=self._headers(request, route, scope),
            body=inbound if request.has_body else None,
            timeout=route.timeout,
        )
        if route.rewrite_bodies or route.scrub:
            response = await rewritten(response, route=at, token=token, scope=scope, prefix=self._routes.prefix)
        return caller, at, target, response

    def _headers(self, request: Request, route: ProxyRoute, scope: Scope) -> RawHeaders:
        headers = request.headers
        if route.forwarded:
            headers += forwarded(scope["headers"], scope)
        if route.cookie_names:
            headers += cookies(scope["headers"], route.cookie_names)
        if route.fixed_headers:
            headers = without(headers, route.fixed_names)
            headers += route.fixed_headers
        for field in route.fallback_headers:
            if not any(name == field[0] for name, _ in headers):
                headers.append(field)
        version: str = scope.get("http_version", "1.1")
        via = self._via if version == "1.1" else b"%s %s" % (version.encode(), self._pseudonym)
        headers.append((b"via", request.via + b", " + via if request.via else via))
        return headers

    async def _relay(
        self,
        scope: Scope,
        send: Send,
        route: ProxyRoute,
        target: bytes,
        response: UpstreamResponse,
        inbound: Inbound | None = None,
    ) -> None:
        """Send the response on as the raw bytes it is.

        Raises `UpstreamAborted` if it breaks off.
        """

        def rewrite(url: bytes, absolute: bool) -> bytes:
            mount = mount_of(scope, self._routes.prefix, route)
            origin = public_origin(scope) if absolute else ""
            return lead_back(url, route=route, target=target, mount=mount, origin=origin)

        status = response.status
        headers = response_headers(response.headers, status, allow_set_cookie=route.allow_set_cookie, rewrite=rewrite)
        if status == 401:
            headers.append((b"proxy-status", b"idp_middleware; received-status=401"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if response.complete:
            await send({"type": "http.response.body", "body": await response.read(), "more_body": False})
            return
        last = False
        try:
            while not last:
                last = response.complete
                chunk = await response.read()
                last = last or not chunk
                if inbound is not None:
                    inbound.sending()
                await send({"type": "http.response.body", "body": chunk, "more_body": not last})
                if inbound is not None:
                    inbound.sent()
        except UpstreamTimeout:
            raise UpstreamAborted("the upstream stalled in the middle of its response") from None

    async def _answer(
        self, error: IdPError, scope: Scope, receive: Receive, send: Send, inbound: Inbound | None = None
    ) -> None:
        # What a caller did wrong is seen at DEBUG only: anybody could fill a log with it.
        logger.log(logging.WARNING if error.status >= 500 else logging.DEBUG, "%s: %s", error.name, error)
        # It may be reported to others from there.
        forget_details(error)
        await _respond(self._on_error(HTTPConnection(scope), error), scope, receive, send, inbound)

    async def aclose(self) -> None:
        """Close every connection this middleware, its authenticator and its token sources hold."""
        self._own.closing = True
        await self._revocations.aclose()
        await self._tokens.aclose()
        await self._upstream.aclose()
        if self._websockets is not None:
            await self._websockets.aclose()
        for part in self._parts():
            if (aclose := getattr(part, "aclose", None)) is not None:
                await aclose()
        if self._cache is not None:
            # Once more: what the parts broke off let go of its claims.
            await self._cache.aclose()

    def _parts(self) -> Iterable[object]:
        """The authenticator and the token sources, each once."""
        parts = (self._authenticator, *(route.source for route in self._routes))
        return {id(part): part for part in parts}.values()


async def _respond(response: Response, scope: Scope, receive: Receive, send: Send, inbound: Inbound | None) -> None:
    """Send an answer of our own."""
    if inbound is not None and inbound.unread:
        # The rest of the body is still to come, and must not be read as the next request.
        response.headers["connection"] = "close"
        send = lingering(send, inbound)
    await response(scope, receive, send)


def _authorize(caller: Caller, route: ProxyRoute, method: str, rest: bytes) -> None:
    """Raises `MethodNotAllowed` or `CallerForbidden` unless the caller may do this on this route."""
    route.check_method(method)
    route.check_path(rest)
    route.check_scopes(caller.scopes)
    if route.rules:
        route.check_rules(caller.scopes, method, rest)
