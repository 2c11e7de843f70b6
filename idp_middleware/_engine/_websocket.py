"""One WebSocket connection to an upstream (RFC 6455): its handshake, messages, back-pressure both ways, its end.

The one module that imports `websockets`, which is an extra; of that only the part without I/O, so that connections are
dialled, trusted and timed out as the engine's others are. No extensions are offered: compression would keep buffers for
each connection, and let sizes tell what stands beside a secret. Knows nothing of ASGI, callers or tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from idp_middleware._engine._dial import reset_on_close
from idp_middleware._engine._websocket_messages import Messages
from idp_middleware._types import RawHeaders, Timeout
from idp_middleware.errors import UpstreamTimeout, UpstreamUnreachable

CLOSE_TIMEOUT = 5.0
"""Seconds from the first Close frame until the connection is cut, if the upstream does not end it."""

PING_EVERY = 20.0
"""Seconds between pings; an upstream that is silent from one to the next is gone."""

WRITE_AHEAD = 64 * 1024
"""Bytes that the upstream has not taken; beyond them `drained` waits."""

# At the level DEBUG, websockets logs what each message says.
_SILENT = logging.Logger("idp_middleware.websockets")
_SILENT.disabled = True


class Close(NamedTuple):
    """How a connection ends (RFC 6455 section 7.1.5); `code` is None where it is closed without one."""

    code: int | None
    reason: str = ""


GOING_AWAY = 1001
BAD_GATEWAY = 1014


class WebSocketConnection(asyncio.Protocol):
    """What `WebSocketClient.connect` returns: `status` is 101, or the upstream refused and it is over.

    Args:
        loop: the running one.
        subprotocols: what is offered.
        max_message: bytes of a message from the upstream.
        timeout: `read` for the answer to the handshake, `write` for each time until some bytes of a message leave.
        forget: called once the connection is gone.
    """

    status = 0
    headers: RawHeaders
    complete = True
    """Of a refusal: all of it has been read."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        subprotocols: Sequence[str],
        max_message: int,
        timeout: Timeout,
        forget: Callable[[WebSocketConnection], None],
    ) -> None:
        # The URI is for requests that it would write itself.
        self._protocol = ClientProtocol(
            WebSocketURI(False, "", 0, "", ""),
            subprotocols=cast("Sequence[Subprotocol]", subprotocols) or None,
            max_size=max_message,
            logger=_SILENT,
        )
        self.loop = loop
        self._timeout = timeout
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._messages = Messages(self._pause, self._resume)
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard = True
        self._ping_timer: asyncio.TimerHandle | None = None
        self._cut_timer: asyncio.TimerHandle | None = None
        self.end: Close | None = None
        """How it ended, once it has; what had arrived before can still be received."""

    @property
    def key(self) -> bytes:
        """The `Sec-WebSocket-Key` that the upstream has to show it has read."""
        return self._protocol.key.encode()

    @property
    def subprotocol(self) -> str | None:
        """The one of those offered that the upstream chose, if any."""
        return self._protocol.subprotocol

    async def handshake(self, request: bytes) -> None:
        """Send the request and wait for its answer. Raises `UpstreamUnreachable` and `UpstreamTimeout`."""
        self._write(request)
        try:
            async with asyncio.timeout(self._timeout.read):
                await self._answered
        except TimeoutError:
            raise UpstreamTimeout("the upstream did not answer the handshake in time") from None
        failure = self._protocol.handshake_exc
        if self.status == 0:
            broke_off = failure is None or isinstance(failure.__cause__, EOFError)
            raise UpstreamUnreachable(
                "the upstream did not answer the handshake in HTTP/1",
                error="connection_terminated" if broke_off else "http_protocol_error",
            )
        if self.status < 200 and failure is not None:
            raise UpstreamUnreachable("the upstream does not switch as the protocol asks", error="http_upgrade_failed")
        if self.status == 101 and self.end is None:
            self._ping_timer = self.loop.call_later(PING_EVERY, self._ping)

    async def read(self) -> bytes:
        """The body of a refusal."""
        return self._body

    async def receive(self) -> str | bytes | None:
        """The next message; None at the end, when `end` says which."""
        return await self._messages.get()

    def send(self, message: bytes, *, text: bool) -> None:
        """Write a message, unless it is over. Who sends more than one awaits `drained` in between."""
        if self.end is not None:
            return
        if text:
            self._protocol.send_text(message)
        else:
            self._protocol.send_binary(message)
        self._flush()

    @property
    def writable(self) -> bool:
        """Whether `drained` would return at once."""
        return self._writable.is_set()

    async def drained(self) -> None:
        """Wait until the upstream has taken enough of what was written; one that takes nothing for long is cut."""
        while not self._writable.is_set():
            unsent = self._unsent()
            try:
                async with asyncio.timeout(self._timeout.write):
                    await self._writable.wait()
            except TimeoutError:
                if self._unsent() >= unsent:
                    self._over(Close(BAD_GATEWAY, "the upstream took nothing for too long"))
                    self.abort()
                    return

    def close(self, code: int | None, reason: str = "") -> None:
        """Tell the upstream that it is over, unless it is already. Await `closed` or call `abort` after it.

        One whose handshake is under way is cut.
        """
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._over(Close(code, reason))
            # Its own Close comes behind whatever else it had to say.
            self._messages.clear()
            self._flush()
        elif self.end is None:
            self.abort()

    async def closed(self) -> None:
        """Wait until the connection is gone: `CLOSE_TIMEOUT` at most, once one side has begun to close."""
        if self._transport is not None:
            await asyncio.shield(self._lost)

    def leave(self) -> None:
        """Say so, and do not wait for the upstream's word. May be called again."""
        self.close(GOING_AWAY)
        self._hang_up()

    async def aclose(self) -> None:
        """As `leave`."""
        self.leave()

    def abort(self) -> None:
        """Cut the connection. May be called again."""
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                reset_on_close(self._transport)
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._protocol.receive_data(data)
        self._take()

    def eof_received(self) -> None:
        # The transport closes by itself.
        self._protocol.receive_eof()
        self._take()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._protocol.receive_eof()
        self._take()
        self._over(Close(BAD_GATEWAY, "the upstream broke off"))
        self._writable.set()
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._answer()
        self._lost.set_result(None)
        self._forget(self)

    # Between the two.

    def _take(self) -> None:
        """Take what the protocol has made of the bytes that came."""
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self.status = event.status_code
                self.headers = [
                    # Older releases kept bytes beyond ASCII as surrogates.
                    (name.lower().encode("latin-1"), value.encode("latin-1", "surrogateescape"))
                    for name, value in event.headers.raw_items()
                ]
                self._body = bytes(event.body or b"")
                self._answer()
            elif isinstance(event, Frame) and self.end is None:
                if event.opcode is Opcode.CLOSE:
                    code, reason = self._protocol.close_rcvd.code, self._protocol.close_rcvd.reason  # type: ignore[union-attr]
                    self._over(Close(None if code == 1005 else code, reason))
                elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    self._assemble(event)
        self._flush()
        if self._protocol.parser_exc is not None:
            self._over(Close(BAD_GATEWAY, "the upstream broke off or broke the protocol"))
            # It has been told; what else it says is not listened to (RFC 6455 section 7.1.7).
            self._hang_up()

    def _answer(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    def _assemble(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._messages.begin(text=frame.opcode is Opcode.TEXT)
        try:
            self._messages.add(frame.data, last=frame.fin)
        except UnicodeDecodeError:
            self._protocol.fail(1007, "not UTF-8")
            self._flush()
            self._over(Close(BAD_GATEWAY, "the upstream sent text that is not UTF-8"))
            self._hang_up()

    def _over(self, end: Close) -> None:
        if self.end is None:
            self.end = end
            if self._ping_timer is not None:
                self._ping_timer.cancel()
            self._messages.end()

    def _pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def _resume(self) -> None:
        # Nothing could be heard meanwhile.
        self._heard = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _ping(self) -> None:
        if not self._heard and not self._messages.paused:
            self._over(Close(BAD_GATEWAY, "the upstream is silent"))
            self.abort()
            return
        self._heard = False
        self._protocol.send_ping(b"")
        self._flush()
        self._ping_timer = self.loop.call_later(PING_EVERY, self._ping)

    def _hang_up(self) -> None:
        """Close once all is sent, which the timer for cutting bounds."""
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._write(data)
            else:
                self._hang_up()
        if self._protocol.close_expected() and self._cut_timer is None:
            self._cut_timer = self.loop.call_later(CLOSE_TIMEOUT, self.abort)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()
