"""Any `httpx.AsyncBaseTransport` as an `Upstream`: HTTP/2, a mock in a test, a transport of the user's own.

The transport and not the client: a client invents headers, keeps a cookie jar that all users would share, follows
redirects and logs whole URLs. No httpx exception leaves this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx

from idp_middleware._types import RawHeaders, Timeout
from idp_middleware._upstream import RequestBody, UpstreamResponse
from idp_middleware._urls import Origin
from idp_middleware.errors import (
    ClientDisconnected,
    IdPError,
    UpstreamAborted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)


class HTTPXUpstream:
    """Sends through `transport`; closes it with `aclose`."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._urls: dict[Origin, httpx.URL] = {}

    async def send(
        self,
        origin: Origin,
        method: bytes,
        target: bytes,
        headers: RawHeaders,
        body: RequestBody | None,
        timeout: Timeout,
    ) -> UpstreamResponse:
        fields = [(b"host", origin.authority), *headers]
        if body is not None:
            if body.length is None:
                fields.append((b"transfer-encoding", b"chunked"))
            else:
                fields.append((b"content-length", b"%d" % body.length))
        request = httpx.Request(
            method.decode("ascii"),
            self._url(origin, target),
            headers=fields,
            stream=_Body(body),
            extensions={
                "timeout": {
                    "connect": timeout.connect,
                    "read": timeout.read,
                    "write": timeout.write,
                    "pool": timeout.pool,
                },
                # The bytes as they are: httpx.URL would fold, decode and re-encode them.
                "target": target,
            },
        )
        try:
            response = await self._transport.handle_async_request(request)
        except (IdPError, ClientDisconnected):
            # From reading the request body.
            raise
        except Exception as exc:
            # Transports also let through what is no httpx.HTTPError: InvalidURL, UnicodeError, anyio's errors.
            raise _mapped(exc) from None
        if not 200 <= response.status_code <= 599:
            await response.aclose()
            raise UpstreamUnreachable("an answer with an impossible status")
        return _HTTPXResponse(response)

    def _url(self, origin: Origin, target: bytes) -> httpx.URL:
        # The connection is made to this URL's host; of the target only a harmless rendering is in it, for mocks.
        url = self._urls.get(origin)
        if url is None:
            url = self._urls[origin] = httpx.URL(scheme=origin.scheme, host=origin.host, port=origin.port)
        try:
            return url.copy_with(raw_path=target)
        except (httpx.InvalidURL, UnicodeError):
            return url

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, body: RequestBody | None) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._body is not None:
            while chunk := await self._body.read():
                yield chunk


class _HTTPXResponse:
    """A response read raw: `Response.aiter_raw` would refuse a second look and count what we don't need."""

    __slots__ = ("_chunks", "_response", "complete", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: RawHeaders = [(name.lower(), value) for name, value in response.headers.raw]
        self.complete = False
        self._response = response
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport gives no other
        self._chunks = stream.__aiter__()

    async def read(self) -> bytes:
        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except httpx.TimeoutException:
            raise UpstreamTimeout("the body stalled") from None
        except Exception as exc:
            raise UpstreamAborted(f"the body broke off ({type(exc).__name__})") from None
        self.complete = True
        return b""

    async def aclose(self) -> None:
        # The exchange is over or broken already; there is nothing to learn from how it closes.
        with contextlib.suppress(Exception):
            await self._response.aclose()


def _mapped(exc: Exception) -> UpstreamError:
    """Only the class's name goes on: the text may hold a host name, a URL or a header."""
    reason = type(exc).__name__
    if isinstance(exc, httpx.TimeoutException):
        return UpstreamTimeout(reason)
    return UpstreamUnreachable(reason)
