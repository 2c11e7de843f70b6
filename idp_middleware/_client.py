"""A route's upstream for the app's own code: an ordinary `httpx.AsyncClient` whose requests carry a user's token.

httpx's words outside, ours inside. The token is added below the client, so that neither the client nor a request that
the app holds has it, and goes nowhere but to where the route leads. Knows how requests are sent; nothing of ASGI.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx

from idp_middleware._authorized import send_authorized
from idp_middleware._fields import HOP_BY_HOP
from idp_middleware._inbound import REPLAY_LIMIT
from idp_middleware._request_headers import without
from idp_middleware._routes import ProxyRoute
from idp_middleware._tokens import TokenEngine
from idp_middleware._traces import forget_details
from idp_middleware._types import Caller, RawHeaders, Timeout
from idp_middleware._upstream import Upstream, UpstreamResponse
from idp_middleware._urls import DEFAULT_PORTS
from idp_middleware.errors import BadRequest, UpstreamAborted, UpstreamUnreachable

_WRITTEN_BELOW: Final = HOP_BY_HOP | {b"authorization", b"content-length", b"expect", b"host"}
_FOREVER: Final = 365 * 86400.0


def client_for(route: ProxyRoute, caller: Caller, *, tokens: TokenEngine, upstream: Upstream) -> httpx.AsyncClient:
    """A client for one caller on one route; see `IdPMiddleware.client`."""
    origin = route.origin
    timeout = route.timeout
    return httpx.AsyncClient(
        base_url=f"{origin.scheme}://{origin.authority.decode()}{route.base_path.decode()}",
        # As the client's defaults, since httpx has its own Accept and User-Agent, which would stand before ours.
        headers=[(name.decode(), value.decode()) for name, value in route.fallback_headers],
        timeout=httpx.Timeout(connect=timeout.connect, read=timeout.read, write=timeout.write, pool=timeout.pool),
        transport=_AsCaller(route, caller, tokens, upstream),
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class _AsCaller(httpx.AsyncBaseTransport):
    """Holds no connections, so that a client need not be closed."""

    def __init__(self, route: ProxyRoute, caller: Caller, tokens: TokenEngine, upstream: Upstream) -> None:
        self._route = route
        self._caller = caller
        self._tokens = tokens
        self._upstream = upstream

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._send(request)
        except Exception as exc:
            # The app's error reporter takes down every variable on the way.
            forget_details(exc)
            raise

    async def _send(self, request: httpx.Request) -> httpx.Response:
        route = self._route
        rest, query = _after_base(request.url, route)
        raw: RawHeaders = [(name.lower(), value) for name, value in request.headers.raw]
        headers = [field for field in raw if field[0] not in _WRITTEN_BELOW]
        if route.fixed_headers:
            headers = [*without(headers, route.fixed_names), *route.fixed_headers]
        given: dict[str, float | None] = request.extensions.get("timeout", {})
        response, *_ = await send_authorized(
            self._tokens,
            self._upstream,
            self._caller,
            route,
            method=request.method,
            rest=rest,
            query=query,
            target=route.target(rest, query),
            headers=headers,
            body=_Body(request) if any(name in (b"content-length", b"transfer-encoding") for name, _ in raw) else None,
            timeout=Timeout(**{name: _FOREVER if seconds is None else seconds for name, seconds in given.items()}),
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Stream(response))


def _after_base(url: httpx.URL, route: ProxyRoute) -> tuple[bytes, bytes]:
    """Path after the route's base path, and query.

    Raises `BadRequest` for a URL that is not under it: links and redirects come from outside, and must not lead the
    token away.
    """
    origin = route.origin
    port = url.port or DEFAULT_PORTS.get(url.scheme)
    path, _, query = url.raw_path.partition(b"?")
    if (
        (url.scheme, url.raw_host, port) != (origin.scheme, origin.host.encode(), origin.port)
        # Dot segments that lead out again are for `route.target` to refuse.
        or not (path + b"/").startswith(route.base_path + b"/")
    ):
        raise BadRequest(f"a request for elsewhere than the upstream of the route {route.name!r}")
    return path[len(route.base_path) :], query


class _Body:
    """A request's stream; in memory it can be sent again, else as far as the proxy would keep it."""

    def __init__(self, request: httpx.Request) -> None:
        length = request.headers.get("content-length")
        self.length = None if length is None else int(length)
        stream = request.stream
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - an async client gives no other
        self._chunks = stream.__aiter__()
        self._keep = isinstance(stream, httpx.ByteStream)
        self._kept: list[bytes] | None = []
        self._position = 0
        self._size = 0

    async def read(self) -> bytes:
        if self._kept is not None and self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        # A generator that is cancelled has ended, and would then look like a body that has: so until it has come back,
        # there is nothing to start over from.
        kept, self._kept = self._kept, None
        chunk = b""
        async for chunk in self._chunks:
            if chunk:
                break
        self._size += len(chunk)
        if kept is not None and (self._keep or self._size <= REPLAY_LIMIT):
            self._kept = kept
            if chunk:
                kept.append(chunk)
                self._position += 1
        return chunk

    def rewind(self) -> bool:
        if self._kept is None:
            return False
        self._position = 0
        return True


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: UpstreamResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._response.read():
                yield chunk
        except UpstreamAborted:
            # Nothing of ours has started that would have to be broken off: for the app it is a failure like others.
            raise UpstreamUnreachable("the response broke off") from None

    async def aclose(self) -> None:
        await self._response.aclose()
