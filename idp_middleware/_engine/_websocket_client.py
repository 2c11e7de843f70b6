"""Opening WebSocket connections to upstreams, and the set of those that are open.

Knows the request of a handshake (RFC 6455 section 4.1), which it writes as the engine writes any: raw bytes, the target
and the fields as they are.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

from idp_middleware._engine._dial import dial
from idp_middleware._engine._request import encode_head
from idp_middleware._engine._tls import default_ssl_context
from idp_middleware._engine._websocket import GOING_AWAY, WebSocketConnection
from idp_middleware._types import RawHeaders, Timeout
from idp_middleware._urls import Origin


class WebSocketClient:
    """Opens connections, each for one caller: none is ever used again, and none goes through a proxy.

    Args:
        ssl_context: for certificate authorities of one's own; it should offer `http/1.1` by ALPN or nothing.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._open: set[WebSocketConnection] = set()

    async def connect(
        self,
        origin: Origin,
        target: bytes,
        headers: RawHeaders,
        subprotocols: Sequence[str],
        *,
        max_message: int,
        timeout: Timeout,
    ) -> WebSocketConnection:
        """Ask an upstream for a WebSocket; where its answer is not 101, that is the connection's `status`.

        `headers` come without Host, Connection, Upgrade and `Sec-WebSocket-*`: those are written here. Raises
        `UpstreamUnreachable`, `UpstreamTimeout`, and `BadRequest` for bytes that can't stand in a head.
        """
        loop = asyncio.get_running_loop()
        connection = WebSocketConnection(loop, subprotocols, max_message, timeout, self._open.discard)
        fields = [
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-key", connection.key),
            (b"sec-websocket-version", b"13"),
            *headers,
        ]
        offered = b"sec-websocket-protocol: " + ", ".join(subprotocols).encode() if subprotocols else b""
        request = encode_head(b"GET", target, b" HTTP/1.1\r\nhost: " + origin.authority, fields, offered)
        self._open.add(connection)
        try:
            await dial(loop, lambda: connection, origin, self._context(origin), timeout.connect)
            await connection.handshake(request)
        except BaseException:
            self._open.discard(connection)
            connection.abort()
            raise
        return connection

    def _context(self, origin: Origin) -> ssl.SSLContext | None:
        if origin.scheme != "https":
            return None
        if self._ssl_context is None:
            self._ssl_context = default_ssl_context()
        return self._ssl_context

    async def aclose(self) -> None:
        """End all open connections, and wait until they are gone. Others may be opened after it."""
        loop = asyncio.get_running_loop()
        # Those of a loop that has ended went with it.
        connections = [connection for connection in self._open if connection.loop is loop]
        self._open.clear()
        for connection in connections:
            connection.close(GOING_AWAY)
        await asyncio.gather(*(connection.closed() for connection in connections))
