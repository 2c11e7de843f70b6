"""The caller's side of one exchange: the body as it comes in, and whether the caller is still there.

The only reader of the ASGI `receive` channel, since two readers would take each other's messages. Knows nothing of
routes, tokens or upstreams.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Send

from idp_middleware._limits import Slot
from idp_middleware._loops import running_loop
from idp_middleware.errors import BadRequest, BodyTooLarge, ClientDisconnected

WATCH_AFTER = 0.025
"""Seconds of an exchange before somebody listens for the caller's leaving: many are over by then, and a task costs."""

PATIENCE = 60.0
"""Seconds that a caller may neither send the next bytes of a body nor take those of an answer; a quarter more at most.

What waits for them holds a connection to the upstream, and a place among a route's requests.
"""

LINGER = 1.0
"""Seconds that the rest of a body gets to arrive after an answer that did not wait for it."""

REPLAY_LIMIT = 64 * 1024
"""Bytes of a body that are kept while it streams, in case the upstream refuses the token."""


class Lookout:
    """Looks after those exchanges that go on for a while.

    After one to two `WATCH_AFTER` they listen for their caller's leaving, and from then on nobody waits for a caller
    beyond `PATIENCE`. Two timers for all of them, since one for each would cost more than most requests' header fields.
    """

    __slots__ = ("_armed", "_due", "_long", "_loop", "_new", "_patrolling")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._new: set[Inbound] = set()
        self._due: set[Inbound] = set()
        self._long: set[Inbound] = set()
        self._armed = self._patrolling = False

    def add(self, inbound: Inbound, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            # An app under test may see several loops, one after the other; a timer of an ended one never fires.
            self._loop, self._new, self._due, self._long = loop, set(), set(), set()
            self._armed = self._patrolling = False
        self._new.add(inbound)
        if not self._armed:
            self._arm(loop)

    def discard(self, inbound: Inbound) -> None:
        self._new.discard(inbound)
        self._due.discard(inbound)
        self._long.discard(inbound)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed = True
        loop.call_later(WATCH_AFTER, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        due, self._due, self._new = self._due, self._new, set()
        for inbound in due:
            inbound.listen()
            self._long.add(inbound)
        self._armed = False
        if self._due:
            self._arm(loop)
        if self._long and not self._patrolling:
            self._patrolling = True
            loop.call_later(PATIENCE / 4, self._patrol, loop)

    def _patrol(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for inbound in self._long:
            inbound.check(now)
        self._patrolling = bool(self._long)
        if self._patrolling:
            loop.call_later(PATIENCE / 4, self._patrol, loop)


class Inbound:
    """Feeds the request body to an upstream, and cancels the exchange's task when the caller leaves.

    Use as `with Inbound(...) as inbound:` in the task that does the work. Inside, waiting for anything ends with
    `CancelledError` once the caller is gone; the `with` turns that into `ClientDisconnected`, as `asyncio.timeout`
    does for its own kind.
    """

    __slots__ = (
        "_cancelling",
        "_done",
        "_ended",
        "_kept",
        "_lookout",
        "_loop",
        "_max_body",
        "_pending",
        "_position",
        "_reader",
        "_reading_since",
        "_receive",
        "_received",
        "_sending_since",
        "_slot",
        "_stalled",
        "_task",
        "gone",
        "length",
    )

    def __init__(self, receive: Receive, lookout: Lookout) -> None:
        self.length: int | None = None
        self.gone = False
        self._receive = receive
        self._lookout = lookout
        self._max_body: int | None = None
        # Until the head is understood, there may be a body.
        self._done = False
        self._ended = False
        self._kept: list[bytes] | None = []
        self._reader: asyncio.Task[Any] | None = None
        self._reading_since = self._sending_since = 0.0
        self._stalled = False
        self._received = 0
        self._position = 0
        self._slot: Slot | None = None
        self._pending: asyncio.Task[MutableMapping[str, Any]] | None = None

    def __enter__(self) -> Inbound:
        loop = running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("needs a running asyncio task")
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = loop
        self._lookout.add(self, loop)
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._ended = True
        self._lookout.discard(self)
        if self._slot is not None:
            self._slot.give_back()
        if self._pending is not None:
            self._pending.cancel()
        # The same book-keeping as asyncio.timeout: a cancellation from outside must stay one.
        if self.gone and self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise ClientDisconnected from None

    def expect(self, *, length: int | None, chunked: bool) -> None:
        """Say what the request's head announced: a body of `length` bytes, or a chunked one."""
        self.length = length
        self._done = not chunked and length is None

    @property
    def unread(self) -> bool:
        """Whether some of the request body has not been read."""
        return not self._done

    def hold(self, slot: Slot) -> None:
        """Give a slot back at the end of the exchange, however it ends."""
        self._slot = slot

    def limit(self, max_body: int | None) -> None:
        """Allow `max_body` bytes. Raises `BodyTooLarge` at once for a body that announces more."""
        self._max_body = max_body
        if max_body is not None and self.length is not None and self.length > max_body:
            raise BodyTooLarge("announced")

    async def read(self) -> bytes:
        """The next bytes of the body, `b""` at the end.

        Raises:
            ClientDisconnected: the body broke off. Never a clean end, which would pass it off as whole.
            BodyTooLarge: more than `max_body` arrived.
            BadRequest: the body ended short of its announced length, or stopped coming.
        """
        if self._kept is not None and self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        while not self._done:
            message = await self._next_part()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk: bytes = message.get("body", b"")
            self._received += len(chunk)
            if self._max_body is not None and self._received > self._max_body:
                raise BodyTooLarge("arrived")
            if not message.get("more_body", False):
                self._done = True
                if self.length is not None and self._received != self.length:
                    raise BadRequest("the body is not as long as announced")
            # While the upstream takes its time with this, the caller's leaving would show in the next message.
            self._lookout.add(self, self._loop)
            if chunk:
                self._keep(chunk)
                return chunk
        return b""

    async def _next_part(self) -> MutableMapping[str, Any]:
        self._reader, self._reading_since = asyncio.current_task(self._loop), self._loop.time()
        try:
            if self._pending is None:
                return await self._receive()
            # Shielded: a reader that is cancelled (the upstream answered early) must not lose what has arrived.
            message = await asyncio.shield(self._pending)
            self._pending = None
            return message
        except asyncio.CancelledError:
            if self._stalled and self._reader is not None:
                # Cancelled by `check`, and nobody else has to know.
                self._stalled = False
                self._reader.uncancel()
                raise BadRequest("the body stopped coming") from None
            raise
        finally:
            self._reader = None

    def _keep(self, chunk: bytes) -> None:
        if self._kept is None:
            return
        if self._received > REPLAY_LIMIT:
            self._kept = None
        else:
            self._kept.append(chunk)
            self._position += 1

    def rewind(self) -> bool:
        """Start the body over from its first byte; False where some of it was not kept."""
        if self._kept is None:
            return False
        self._position = 0
        return True

    async def drain(self) -> None:
        """Let the rest of the body come and go, for `LINGER` seconds at most."""
        self._max_body = self._kept = None
        with suppress(TimeoutError, BadRequest, ClientDisconnected):
            async with asyncio.timeout(LINGER):
                # An upload that has been told to stop may still have the channel.
                await asyncio.sleep(0)
                while await self.read():
                    pass

    def sending(self) -> None:
        """The caller is about to be sent something, which may have to wait until they take it."""
        self._sending_since = self._loop.time()

    def sent(self) -> None:
        """They have taken it."""
        self._sending_since = 0.0

    def check(self, now: float) -> None:
        """Give up on a caller who lets us wait too long, at the loop's time `now`."""
        if self._reader is not None and now - self._reading_since > PATIENCE:
            self._stalled = True
            self._reader.cancel()
        if self._sending_since and now - self._sending_since > PATIENCE and not self.gone:
            # As good as gone: nothing more can be said to them.
            self.gone = True
            self._task.cancel()

    def listen(self) -> None:
        """Listen for the caller's leaving from now on, unless `read` does by waiting for more of the body."""
        if self._pending is None and self._reader is None and not self._ended:
            self._pending = self._loop.create_task(self._next())
            self._pending.add_done_callback(self._heard)

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        while self._done and message["type"] == "http.request":
            # A request without a body still has its one empty message, which nobody has fetched.
            message = await self._receive()
        return message

    def _heard(self, pending: asyncio.Task[MutableMapping[str, Any]]) -> None:
        if self._ended or pending.cancelled():
            return
        # A receive that fails is a connection that is gone; `exception()` also marks it as seen.
        if pending.exception() is not None or pending.result()["type"] == "http.disconnect":
            self.gone = True
            self._task.cancel()


def lingering(send: Send, inbound: Inbound) -> Send:
    """The `send` for an answer to a body that is still coming.

    Closed at once, the connection would be reset by what arrives, and the reset would take the answer along before it
    is read (RFC 9112 section 9.6).
    """

    async def send_and_linger(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await inbound.drain()
            message = {"type": "http.response.body"}
        await send(message)

    return send_and_linger
