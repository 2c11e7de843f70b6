"""One connection: one exchange at a time, its time-outs, back-pressure both ways, the upload, and its end.

Knows nothing of origins, of other connections or of whether a request may be sent again. An exchange that does not end
cleanly on both sides closes the connection; only a finished one gives it back to the pool.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, cast

from idp_middleware._engine._deadline import Deadline
from idp_middleware._engine._dial import reset_on_close
from idp_middleware._engine._parser import ResponseParser
from idp_middleware._engine._request import send_all
from idp_middleware._engine._response import Response
from idp_middleware._engine._tls import ended_cleanly
from idp_middleware._types import Timeout
from idp_middleware._upstream import RequestBody
from idp_middleware.errors import UpstreamAborted, UpstreamTimeout, UpstreamUnreachable

if TYPE_CHECKING:
    from idp_middleware._engine._pool import Pool

READ_AHEAD = 256 * 1024
"""Bytes of a body that may wait for a slow caller before the connection is no longer read."""

WRITE_AHEAD = 64 * 1024
"""Bytes of an upload that may wait for a slow upstream before the body is no longer read."""


class ClosedUnanswered(UpstreamUnreachable):
    """The connection ended before any byte of the answer, as an idle one does that the upstream had given up."""


class Connection(asyncio.Protocol):
    """Opened, lent and taken back by its pool."""

    __slots__ = (
        "_deadline",
        "_ended",
        "_loop",
        "_parser",
        "_paused",
        "_pool",
        "_request",
        "_response",
        "_sent",
        "_timeout",
        "_transport",
        "_unsent",
        "_upload",
        "_waiter",
        "_writable",
        "_write_later",
        "lost",
        "opened",
        "used",
    )

    _timeout: Timeout
    _transport: asyncio.Transport
    opened: bool
    used: bool
    """Whether it has carried an exchange, so that the upstream may have given it up by now."""
    lost: asyncio.Future[None]
    """Done once the transport is gone."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._parser = ResponseParser()
        self._request = b""
        self._write_later = self._write
        self._response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._deadline = Deadline(loop, self._expired)
        self._unsent = 0
        self._paused = self._ended = self.opened = self.used = False
        self._sent = True
        self.lost = loop.create_future()

    # What the pool and the client call.

    def usable(self) -> bool:
        """Whether a request may be written to it, as far as can be known here."""
        return not (self._ended or self._transport.is_closing())

    def rest(self, seconds: float) -> None:
        """Wait for the next exchange, for so long at most."""
        self._deadline.set(seconds)

    def begin(self, request: bytes, bodiless: bool, timeout: Timeout) -> Response:
        """Send a request, whole or up to the body that `upload` sends; wait for its response with `expect_head`."""
        self._response = response = Response(self)
        self._timeout = timeout
        self._deadline.clear()
        self._unsent = sys.maxsize
        self.used = True
        self._parser.begin(response, bodiless)
        self._request = request
        self._pool.outbox.add(self._write_later)
        return response

    def upload(self, body: RequestBody) -> asyncio.Task[None]:
        """Send a body beside whatever else goes on; its errors become the response's."""
        self._write()
        self._sent = False
        self._upload = task = self._loop.create_task(self._send(body))
        return task

    def expect_head(self) -> asyncio.Future[None]:
        """Done once the head has arrived or the exchange has failed; who is cancelled while waiting calls `abort`."""
        self._waiter = waiter = self._loop.create_future()
        if self._sent:
            self._deadline.set(self._timeout.read)
        return waiter

    def expect_body(self, response: Response) -> asyncio.Future[None]:
        """The same for more of the body."""
        self._waiter = waiter = self._loop.create_future()
        if response.paced:
            self._deadline.set(self._timeout.read)
        return waiter

    def resume_reading(self) -> None:
        """Read on: what had arrived has been fetched."""
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        """Close at rest, with what TLS has for it. May be called again."""
        self._leave()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is under way. May be called again."""
        self._leave()
        if self._transport.get_write_buffer_size():
            reset_on_close(self._transport)
        self._transport.abort()

    def fail(self, exc: Exception) -> None:
        """Close at once; `exc` becomes the end of the response under way."""
        response = self._response
        if response is not None:
            if response.status and not isinstance(exc, (UpstreamAborted, UpstreamTimeout)):
                exc = UpstreamAborted(f"the exchange broke off: {exc}")
            response.failure = exc
        self.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.opened = True
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            # Nobody asked: a 408 before closing, or the rest of what had looked like the end.
            self.abort()
            return
        parser = self._parser
        try:
            parser.feed(data)
        except (UpstreamUnreachable, UpstreamAborted) as exc:
            self.fail(exc)
            return
        if not response.status:
            return
        if self._upload is not None and response.status >= 300:
            # The upstream does not want the rest (RFC 9112 section 9.3); a 2xx may well be an answer in progress.
            # Stopped before anybody is woken who might read the body anew.
            self._stop_upload()
        if self._waiter is not None:
            self._deadline.clear()
            if 0 < parser.left <= READ_AHEAD:
                # Servers send a head and its body one right after the other: a step later it may be here, too.
                self._loop.call_soon(self._wake)
            else:
                self._wake()
        elif response.size > READ_AHEAD and not self._paused and not parser.complete:
            self._paused = True
            self._transport.pause_reading()
        if parser.complete:
            self._finish(response)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> None:
        # The transport closes by itself, with TLS only after a while.
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        response, parser = self._response, self._parser
        if response is not None:
            if parser.ends_at_close and exc is None and ended_cleanly(self._transport):
                self._finish(response)
            elif response.status:
                self.fail(UpstreamAborted("the upstream closed the connection inside the body"))
            elif parser.untouched:
                self.fail(
                    ClosedUnanswered(
                        "the upstream closed the connection without an answer", error="connection_terminated"
                    )
                )
            else:
                self.fail(
                    UpstreamUnreachable(
                        "the upstream closed the connection inside the head", error="connection_terminated"
                    )
                )
        self._leave()
        self.lost.set_result(None)

    def _write(self) -> None:
        """Write the request that waits, unless the exchange is over by now or it has been written."""
        request, self._request = self._request, b""
        if request:
            self._transport.write(request)

    # The ends of an exchange.

    def _finish(self, response: Response) -> None:
        response.complete = True
        response.connection = None
        self._response = None
        if self._sent and self._parser.reusable:
            self._pool.release(self)
        elif self._sent:
            self.close()
        else:
            self.abort()

    def _leave(self) -> None:
        """Nothing is under way any more, and the pool has a place free."""
        response, self._response = self._response, None
        self._request = b""
        if response is not None:
            response.connection = None
        self._stop_upload()
        self._wake()
        self._deadline.cancel()
        self._pool.forget(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The upload.

    def _stop_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.cancel()

    async def _send(self, body: RequestBody) -> None:
        failure: Exception | None = None
        try:
            await send_all(body, self._transport, self._drained)
        except asyncio.CancelledError:
            failure = UpstreamUnreachable("the upload was cancelled")
        except Exception as exc:
            failure = exc
        if self._upload is None:
            # Told to stop, by an end of the exchange that is known already.
            return
        self._upload = None
        if failure is not None:
            self.fail(failure)
            return
        self._sent = True
        if not self._answered:
            self._deadline.set(self._timeout.read)

    async def _drained(self) -> None:
        if self._writable.is_set():
            return
        self._unsent = self._transport.get_write_buffer_size()
        if not self._answered:
            self._deadline.set(self._timeout.write)
        await self._writable.wait()
        if not self._answered:
            self._deadline.clear()

    @property
    def _answered(self) -> bool:
        """Whether the head is there: from then on only the reader's patience counts."""
        return self._response is None or self._response.status != 0

    def _expired(self) -> None:
        if self._response is None:
            self.close()
            return
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent < self._unsent and not self._answered:
            # Not silence yet: bytes of the request are still leaving.
            self._unsent = unsent
            self._deadline.set(self._timeout.write)
            return
        what = "take the request" if self._upload is not None or unsent else "answer"
        self.fail(UpstreamTimeout(f"the upstream did not {what} in time"))
