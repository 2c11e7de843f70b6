"""The caller's side of a WebSocket, and the relaying between it and the upstream's.

Knows ASGI's messages for WebSockets (https://asgi.readthedocs.io/en/latest/specs/www.html#websocket), and which end of
one side becomes which end of the other. Knows nothing of authenticators and token sources; frames, pings and sockets
are the server's business and `_engine._websocket`'s. Imported only where a route asks for it, since that needs an
extra.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from time import time
from typing import Any, NamedTuple, TypeVar

from starlette.types import Message, Receive, Scope, Send

from idp_middleware._engine._websocket import BAD_GATEWAY, CLOSE_TIMEOUT, GOING_AWAY, Close, WebSocketConnection
from idp_middleware._engine._websocket_client import WebSocketClient
from idp_middleware._fields import folded
from idp_middleware._limits import Slot
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, RawHeaders, Timeout
from idp_middleware._upstream import RequestBody
from idp_middleware._urls import Origin
from idp_middleware._websocket_offers import read_handshake
from idp_middleware.errors import BadRequest, ClientDisconnected

logger = logging.getLogger("idp_middleware")

T = TypeVar("T")

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of a message, either way, which is what servers take by default; a route's `max_body` bounds the caller's."""

MAX_LIFETIME = 3600.0
"""Seconds that a WebSocket lives where nobody knows when the caller's proof of identity expires."""

EXPIRED = Close(4401, "the caller has to authenticate again")
"""4401 is what GraphQL servers close with for the same reason; clients know to come back with a new token."""


class WebSockets:
    """Those of one middleware."""

    def __init__(self) -> None:
        self._client = WebSocketClient()

    def exchange(self, scope: Scope, receive: Receive, send: Send, route: ProxyRoute) -> WebSocketExchange:
        """The exchange that a handshake begins. Raises `BadRequest` for one that can't be understood."""
        return WebSocketExchange(self._client, scope, receive, send, route)

    async def aclose(self) -> None:
        """End them all."""
        await self._client.aclose()


class _End(NamedTuple):
    """What either side is told when it is over; None for who knows, or is gone."""

    caller: Close | None
    upstream: Close | None


class WebSocketExchange:
    """One WebSocket, from the caller's handshake to the end.

    In its handshake it is to the spine what `Inbound` and an `Upstream` are for other requests: the caller's side, and
    what sends the request. Use as `async with`, which leaves neither side behind.
    """

    scope: Scope
    """The handshake as `Handshake` has it."""
    length: int | None = 0

    def __init__(self, client: WebSocketClient, scope: Scope, receive: Receive, send: Send, route: ProxyRoute) -> None:
        self._client = client
        self._receive = receive
        self._send = send
        self._route = route
        self._coming: asyncio.Task[Message] | None = None
        self._upstream: WebSocketConnection | None = None
        self._slot: Slot | None = None
        self.scope, self._subprotocols, self._otherwise = read_handshake(scope, bearer=route.websocket_bearer)

    async def __aenter__(self) -> WebSocketExchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._slot is not None:
            self._slot.give_back()
        if self._upstream is not None:
            self._upstream.leave()
        if self._coming is not None:
            await _stop(self._coming)

    # The handshake: the caller's side.

    async def while_there(self, opening: Coroutine[Any, Any, T]) -> T:
        """What `opening` comes to. Once the caller leaves, it is cancelled, and `ClientDisconnected` raised."""
        task = asyncio.create_task(opening)
        try:
            while True:
                await asyncio.wait({task, self._next()}, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                if (await self._message())["type"] == "websocket.disconnect":
                    raise ClientDisconnected
        finally:
            await _stop(task)

    def expect(self, *, length: int | None, chunked: bool) -> None:
        """Raises `BadRequest` for a body, which is not to be taken for frames."""
        if length or chunked:
            raise BadRequest("the handshake of a WebSocket has no body")

    def hold(self, slot: Slot) -> None:
        """Give a slot back at the end, however it comes."""
        self._slot = slot

    def limit(self, max_body: int | None) -> None:
        """There is no body."""

    async def read(self) -> bytes:
        """There is no body."""
        return b""

    def rewind(self) -> bool:
        """There is no body, so it can be sent again."""
        return True

    # The handshake: the upstream's side.

    async def send(
        self,
        origin: Origin,
        method: bytes,  # noqa: ARG002
        target: bytes,
        headers: RawHeaders,
        body: RequestBody | None,  # noqa: ARG002
        timeout: Timeout,
    ) -> WebSocketConnection:
        """As `Upstream.send`."""
        fields = [field for field in headers if not folded(field[0]).startswith(b"sec-websocket-")]
        self._upstream = await self._client.connect(
            origin, target, fields, self._subprotocols, max_message=MAX_MESSAGE, timeout=timeout
        )
        return self._upstream

    async def aclose(self) -> None:
        """As `Upstream.aclose`; `__aexit__` does it."""

    # After the handshake.

    async def relay(self, caller: Caller) -> None:
        """Accept, and pass on messages both ways until one side ends it or the caller's proof of identity expires."""
        upstream = self._upstream
        if upstream is None:
            raise RuntimeError("relays what `send` has opened")
        cookies = [field for field in upstream.headers if field[0] == b"set-cookie" and self._route.allow_set_cookie]
        subprotocol = upstream.subprotocol or self._otherwise
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": cookies})
        tasks = [
            asyncio.create_task(self._upwards(upstream)),
            asyncio.create_task(self._downwards(upstream)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, timeout=lifetime(caller), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _stop(*tasks)
        end = done.pop().result() if done else _End(EXPIRED, Close(GOING_AWAY))
        if end.upstream is not None:
            upstream.close(*end.upstream)
        if end.caller is not None:
            await self._close(end.caller)
        await upstream.closed()

    async def _upwards(self, upstream: WebSocketConnection) -> _End:
        max_message = MAX_MESSAGE if self._route.max_body is None else self._route.max_body
        while True:
            message = await self._message()
            if message["type"] == "websocket.disconnect":
                return _End(None, _onwards(message))
            if message["type"] == "websocket.connect":
                # It had been sent before we accepted, and may be fetched after it.
                continue
            text: str | None = message.get("text")
            content: bytes = message["bytes"] if text is None else text.encode()
            if len(content) > max_message:
                return _End(Close(1009, f"messages are of {max_message} bytes at most"), Close(GOING_AWAY))
            upstream.send(content, text=text is not None)
            if not upstream.writable:
                await self._drained(upstream)

    async def _drained(self, upstream: WebSocketConnection) -> None:
        """Wait for an upstream that is slow, one message ahead: it may say that the caller leaves."""
        drained = asyncio.create_task(upstream.drained())
        try:
            coming = self._next()
            await asyncio.wait({drained, coming}, return_when=asyncio.FIRST_COMPLETED)
            if not (coming.done() and coming.result()["type"] == "websocket.disconnect"):
                await drained
        finally:
            await _stop(drained)

    async def _downwards(self, upstream: WebSocketConnection) -> _End:
        try:
            while (content := await upstream.receive()) is not None:
                key = "text" if isinstance(content, str) else "bytes"
                await self._send({"type": "websocket.send", key: content})
        except (OSError, RuntimeError):
            # What servers raise once they have closed; some say then that the message is one too many.
            return _End(None, Close(GOING_AWAY))
        end = upstream.end or Close(None)
        if end.code == BAD_GATEWAY:
            logger.warning("route %s: a WebSocket was cut off: %s", self._route.name, end.reason)
        return _End(Close(1000) if end.code is None else end, None)

    async def _close(self, end: Close) -> None:
        # Who reads nothing any more is left to the server.
        with contextlib.suppress(OSError, RuntimeError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._send({"type": "websocket.close", "code": end.code, "reason": end.reason})

    def _next(self) -> asyncio.Task[Message]:
        if self._coming is None:
            self._coming = asyncio.create_task(self._fetch())
        return self._coming

    async def _fetch(self) -> Message:
        # What a server's `receive` returns need not be a coroutine, and granian's is none.
        return await self._receive()

    async def _message(self) -> Message:
        message = await self._next()
        self._coming = None
        return message


def lifetime(caller: Caller) -> float:
    """Seconds until what the caller showed expires (`exp`: RFC 7519 section 4.1.4, RFC 7662 section 2.2)."""
    expires = caller.claims.get("exp")
    if isinstance(expires, (int, float)) and not isinstance(expires, bool):
        return max(0.0, expires - time())
    return MAX_LIFETIME


def _onwards(message: Message) -> Close:
    """What the upstream is told when the caller has left.

    Not every code may be sent (RFC 6455 section 7.4); and 1012 is our own server's, shutting down.
    """
    code = message.get("code")
    if code is None or code == 1005:
        return Close(None)
    if code == 1012 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        return Close(GOING_AWAY)
    return Close(code, (message.get("reason") or "").encode()[:123].decode(errors="ignore"))


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they are over; what came of them is of no interest here."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
