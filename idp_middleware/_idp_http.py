"""How we talk to identity providers: token endpoints, user look-ups, discovery, key sets.

httpx's transport, and not its client: that logs whole URLs, with users' ids in them, and would need to be kept from
cookies, redirects and the environment. Knows nothing of what the answers mean; turns every way a call can fail into an
error of ours that holds no URL, header or body. Never used for what callers send.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeAlias

import httpx

from idp_middleware._types import KEPT_WHOLE, Timeout, _HoldsSecret
from idp_middleware.errors import (
    ConfigurationError,
    IdPError,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read; a profile or a key set is a few kilobytes."""

Transport: TypeAlias = httpx.AsyncBaseTransport
"""What may replace the network; named here so that whoever passes one on need not import httpx."""

_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)
"""httpx's own, but for the seconds that an idle connection is kept: many servers (Node's, uvicorn) close one after the
very five that httpx keeps it, and a request that meets that close has failed."""

DEFAULT_TIMEOUT = Timeout(connect=5.0, read=10.0, write=10.0, pool=10.0)


@dataclass(frozen=True, slots=True)
class Answer(_HoldsSecret):
    """A whole answer of an identity provider; its body may hold secrets, so the repr shows none of it."""

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)

    def json(self) -> dict[str, Any]:
        """The JSON object in the body, whatever the content type says.

        Raises `TokenSourceFailed` where there is none.
        """
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise TokenSourceFailed(f"status {self.status} without a JSON object") from None
        return value

    def retry_after(self) -> float | None:
        """Seconds to wait, from `Retry-After` (RFC 9110 section 10.2.3) or Auth0's `X-RateLimit-Reset` (epoch)."""
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        if value:
            try:
                return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
            except (ValueError, OverflowError):
                pass
        reset = self.headers.get("x-ratelimit-reset", "").strip()
        if reset.isascii() and reset.isdigit():
            return max(0.0, float(reset[:12]) - time.time())
        return None


class IdPClient:
    """Sends requests to an identity provider; opens its connections on first use.

    `transport` replaces the network, for tests and for deployments that must go through a proxy of their own:
    `HTTPS_PROXY` and `.netrc` are not looked at, redirects not followed. Trusted are the public certificate authorities
    that come with httpx and, as for upstreams, those of the system: OpenSSL's, so `SSL_CERT_FILE` names others.
    """

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> None:
        if min(timeout.connect, timeout.read, timeout.write, timeout.pool) <= 0:
            raise ConfigurationError("must be more than 0 seconds", key="timeout")
        self._transport = transport
        self._timeout = httpx.Timeout(
            connect=timeout.connect, read=timeout.read, write=timeout.write, pool=timeout.pool
        )
        # A server that trickles its answer byte by byte satisfies every read time-out.
        self._total = timeout.connect + timeout.read + timeout.write
        self._opened: httpx.AsyncBaseTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _open(self) -> httpx.AsyncBaseTransport:
        loop = asyncio.get_running_loop()
        # Connections belong to the loop they were opened on; an app under test may see several.
        if self._opened is None or self._loop is not loop:
            self._opened = self._transport or httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=_LIMITS)
            self._loop = loop
        return self._opened

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One request, one whole answer, whatever its status.

        Raises:
            TokenSourceUnavailable: unreachable, or the connection broke.
            TokenSourceTimeout: no whole answer in time.
            TokenSourceFailed: an answer that is too long or is not HTTP.
        """
        # Accept-Encoding: a compressed answer could unfold to any size.
        fields = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "idp_middleware",
            **(headers or {}),
        }
        try:
            async with asyncio.timeout(self._total):
                request = httpx.Request(method, url, headers=fields, json=json, data=form)
                response = await self._send(request)
                try:
                    return Answer(response.status_code, response.headers, await _read(response))
                finally:
                    _nothing_more(response)
                    await response.aclose()
        except IdPError:
            raise
        except (httpx.TimeoutException, TimeoutError) as exc:
            raise TokenSourceTimeout(f"no answer in time ({type(exc).__name__})") from None
        except (httpx.NetworkError, httpx.RemoteProtocolError) as exc:
            # Nearly always a connection that was closed too early, before or within the answer.
            raise TokenSourceUnavailable(f"not reachable ({type(exc).__name__})") from None
        except Exception as exc:
            # Transports also let through what is no httpx.HTTPError, and one of the app's own may raise anything.
            raise TokenSourceFailed(f"not an answer ({type(exc).__name__})") from None

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; a GET once more where a kept connection broke before the answer.

        Servers close what has been idle for a while, and now and then a request crosses that.
        """
        events: set[str] = set()

        async def seen(event: str, _: Any) -> None:
            events.add(event.partition(".")[0])

        request.extensions = {"timeout": self._timeout.as_dict(), "trace": seen}
        try:
            return await self._open().handle_async_request(request)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # httpcore speaks of a "connection" while it opens one, and of "http11" only on one that was kept.
            if request.method != "GET" or "connection" in events or not events:
                raise
        return await self._open().handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        opened, self._opened = self._opened, None
        if opened is not None and self._loop is asyncio.get_running_loop():
            await opened.aclose()


@cache
def _tls() -> ssl.SSLContext:
    """One for all: reading the certificates takes some twenty milliseconds, and nothing else happens meanwhile."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


async def _read(response: httpx.Response) -> bytes:
    """The whole body, raw. Raises `TokenSourceFailed` where it is too long."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport gives no other
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > MAX_ANSWER:
            raise TokenSourceFailed("the answer is too long")
    return bytes(body)


def _nothing_more(response: httpx.Response) -> None:
    """See that a connection is not kept on which more than this answer has come.

    httpcore would take it for the beginning of the next answer, which is about somebody else; it has no public way to
    tell, and a transport of the app's own may have no such parts at all.
    """
    with suppress(AttributeError):
        stream: Any = response.stream
        parser = stream._httpcore_stream._stream._connection._h11_state
        if parser.trailing_data[0]:
            parser.send_failed()
