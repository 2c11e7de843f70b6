"""The engine as an httpx transport, for an ordinary client or for any other that takes one.

The other way round than the rest: httpx's words outside, the engine's inside. It costs about as much again as the
engine, for httpx's own objects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from idp_middleware._engine._client import Engine
from idp_middleware._engine._response import Response
from idp_middleware._routes import Origin
from idp_middleware._types import RawHeaders, Timeout
from idp_middleware.errors import BadRequest, UpstreamAborted, UpstreamTimeout, UpstreamUnreachable

_PORTS = {"http": 80, "https": 443}
_OURS = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding"})
_FOREVER = 365 * 86400.0
_KINDS: dict[type[Exception], type[httpx.TransportError]] = {
    UpstreamTimeout: httpx.TimeoutException,
    UpstreamUnreachable: httpx.NetworkError,
    UpstreamAborted: httpx.RemoteProtocolError,
    BadRequest: httpx.LocalProtocolError,
}


class RelayTransport(httpx.AsyncBaseTransport):
    """`httpx.AsyncClient(transport=RelayTransport())`; closed with the client.

    Framing is the engine's: `Connection` is dropped, and a body is sent with the `Content-Length` that httpx found or
    in chunks. `extensions={"target": …}` is honoured.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine or Engine()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme not in _PORTS or not url.host:
            raise httpx.UnsupportedProtocol("only http:// and https:// URLs with a host", request=request)
        raw = request.headers.raw
        authority = request.headers.get("host", url.netloc.decode("ascii")).encode("latin-1")
        origin = Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme], authority)
        headers = [(name, value) for name, value in raw if name.lower() not in _OURS]
        given: dict[str, float | None] = request.extensions.get("timeout", {})
        timeout = Timeout(**{name: _FOREVER if seconds is None else seconds for name, seconds in given.items()})
        body = _Body(request) if _has_body(raw) else None
        target: bytes = request.extensions.get("target", url.raw_path)
        try:
            response = await self._engine.send(origin, request.method.encode("ascii"), target, headers, body, timeout)
        except (UpstreamUnreachable, UpstreamTimeout, BadRequest) as exc:
            raise _mapped(exc, request) from None
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Stream(response, request),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        await self._engine.aclose()


def _has_body(headers: RawHeaders) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers)


def _mapped(exc: Exception, request: httpx.Request) -> httpx.TransportError:
    kind = next(kind for ours, kind in _KINDS.items() if isinstance(exc, ours))
    return kind(str(exc), request=request)


class _Body:
    """A request's stream, read once; httpx streams cannot be rewound from outside."""

    def __init__(self, request: httpx.Request) -> None:
        length = request.headers.get("content-length")
        self.length = None if length is None else int(length)
        stream = request.stream
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - an async client gives no other
        self._chunks = stream.__aiter__()

    async def read(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""

    def rewind(self) -> bool:
        return False


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._response.read():
                yield chunk
        except (UpstreamAborted, UpstreamTimeout) as exc:
            raise _mapped(exc, self._request) from None

    async def aclose(self) -> None:
        await self._response.aclose()
