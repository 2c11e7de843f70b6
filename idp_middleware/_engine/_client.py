"""Sending one request: how its body is framed, when it may be sent again, and on which event loop.

Knows nothing of sockets or of the bytes of a response.
"""

from __future__ import annotations

import asyncio
import ssl

from idp_middleware._engine._connection import ClosedUnanswered
from idp_middleware._engine._pool import Pool
from idp_middleware._engine._request import SMALL_BODY, encode_head, gather
from idp_middleware._engine._response import Response
from idp_middleware._engine._tls import default_ssl_context
from idp_middleware._loops import running_loop
from idp_middleware._types import RawHeaders, Timeout
from idp_middleware._upstream import RequestBody
from idp_middleware._urls import Origin
from idp_middleware.errors import UpstreamUnreachable

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""Methods that may be sent again without asking (RFC 9110 section 9.2.2)."""


class Engine:
    """An `Upstream` over HTTP/1.1 connections of its own.

    Args:
        ssl_context: for certificate authorities of one's own; it should offer `http/1.1` by ALPN or nothing.
        max_connections: to one origin; further requests wait.
        max_idle: how many of them are kept when nothing needs them.
        keepalive: seconds that an idle one is kept: less than the five of common servers, so that seldom a
            request crosses their closing.

    Opens connections on first use. They belong to the running loop; on another one it starts anew.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 256,
        max_idle: int = 256,
        keepalive: float = 4.0,
    ) -> None:
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._keepalive = keepalive
        self._pools: dict[Origin, Pool] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(
        self,
        origin: Origin,
        method: bytes,
        target: bytes,
        headers: RawHeaders,
        body: RequestBody | None,
        timeout: Timeout,
    ) -> Response:
        """Send a request and wait for the head of its response.

        `headers` come without Host, Content-Length, Transfer-Encoding and Connection: those are written here. Raises
        `UpstreamUnreachable`, `UpstreamTimeout`, `BadRequest` for bytes that can't stand in a head, and what the
        body's `read` raises.
        """
        pool = self._pools.get(origin)
        if pool is None or self._loop is not running_loop():
            pool = self._open_pool(origin)
        framing = content = b""
        upload = body
        if body is not None:
            length = body.length
            if length is None:
                framing = b"transfer-encoding: chunked"
            else:
                framing = b"content-length: %d" % length
                if length <= SMALL_BODY:
                    content = await gather(body, length)
                    upload = None
        request = encode_head(method, target, pool.version_and_host, headers, framing) + content

        connection = pool.take() or await pool.acquire(timeout)
        retried = False
        while True:
            repeatable = connection.used and not retried
            response = connection.begin(request, method == b"HEAD", timeout)
            sending = connection.upload(upload) if upload is not None else None
            try:
                await connection.expect_head()
            except BaseException:
                connection.abort()
                raise
            if response.status:
                return response
            failure = response.failure or UpstreamUnreachable("the client was closed")
            if not (repeatable and type(failure) is ClosedUnanswered and method in IDEMPOTENT):
                raise failure
            if upload is not None and sending is not None:
                # Two must not read the body at the same time.
                await asyncio.wait([sending])
                if not upload.rewind():
                    raise failure
            retried = True
            # A new one: the other idle ones are likely as stale.
            connection = await pool.acquire(timeout)

    async def aclose(self) -> None:
        """Close all connections; a later request opens new ones."""
        pools = list(self._pools.values())
        self._pools.clear()
        if self._loop is running_loop():
            for pool in pools:
                await pool.aclose()

    def _open_pool(self, origin: Origin) -> Pool:
        loop = running_loop()
        if self._loop is not loop:
            self._pools.clear()
            self._loop = loop
        context = None
        if origin.scheme == "https":
            if self._ssl_context is None:
                self._ssl_context = default_ssl_context()
            context = self._ssl_context
        pool = self._pools[origin] = Pool(
            origin,
            loop,
            context,
            max_connections=self._max_connections,
            max_idle=self._max_idle,
            keepalive=self._keepalive,
        )
        return pool
