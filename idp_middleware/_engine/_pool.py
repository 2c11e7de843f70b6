"""The connections to one origin: lent, taken back, bounded, waited for.

Knows nothing of requests. A connection counts from the moment a place is taken for it until it is forgotten; the last
one given back is the first one lent, so that a pool shrinks to what is in use.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from idp_middleware._engine._connection import Connection
from idp_middleware._engine._dial import dial
from idp_middleware._engine._tls import SHUTDOWN_TIMEOUT
from idp_middleware._outbox import outbox_of
from idp_middleware._types import Timeout
from idp_middleware._urls import Origin
from idp_middleware.errors import UpstreamTimeout, UpstreamUnreachable


class Pool:
    """At most `max_connections` to one origin; an idle one is closed after `keepalive` seconds."""

    def __init__(
        self,
        origin: Origin,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext | None,
        *,
        max_connections: int,
        max_idle: int,
        keepalive: float,
    ) -> None:
        self._origin = origin
        self._loop = loop
        self._context = context
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._keepalive = keepalive
        self._closed = False
        self._connections: set[Connection] = set()
        # Nobody waits while there are idle ones.
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self.outbox = outbox_of(loop)
        self.version_and_host = b" HTTP/1.1\r\nhost: " + origin.authority

    def take(self) -> Connection | None:
        """An idle connection, if there is one that the upstream is not known to have closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def acquire(self, timeout: Timeout) -> Connection:
        """A connection opened or waited for, where `take` has none, or none that will do.

        Raises `UpstreamTimeout` or `UpstreamUnreachable`.
        """
        if len(self._connections) < self._max_connections and not self._waiters:
            connection = self._place()
        elif (idle := self.take()) is not None:
            return idle
        else:
            connection = await self._wait(timeout.pool)
        if not connection.opened:
            await self._open(connection, timeout.connect)
        elif not connection.usable():
            # It ended between being given back and being taken over.
            return self.take() or await self.acquire(timeout)
        return connection

    def release(self, connection: Connection) -> None:
        """Take back a connection whose exchange has ended cleanly."""
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)
        elif len(self._idle) < self._max_idle:
            self._idle.append(connection)
            connection.rest(self._keepalive)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        """A connection is closed or closing, or was never opened: its place is free. May be called again."""
        if connection in self._connections:
            self._connections.remove(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._serve()

    async def aclose(self) -> None:
        """Close every connection; who waits for one or is in an exchange fails."""
        self._closed = True
        while (waiter := self._next_waiter()) is not None:
            waiter.set_result(None)
        closing = []
        for connection in tuple(self._connections):
            if not connection.opened:
                self.forget(connection)
                continue
            closing.append(connection.lost)
            if connection in self._idle:
                connection.close()
            else:
                connection.fail(UpstreamUnreachable("the client was closed"))
        if closing:
            await asyncio.wait(closing, timeout=SHUTDOWN_TIMEOUT)

    def _place(self) -> Connection:
        connection = Connection(self, self._loop)
        self._connections.add(connection)
        return connection

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            # A cancelled one has not come to removing itself yet.
            if not waiter.done():
                return waiter
        return None

    def _serve(self) -> None:
        """Give free places to those who wait; places are taken here, so that no newcomer is faster."""
        while len(self._connections) < self._max_connections and (waiter := self._next_waiter()) is not None:
            waiter.set_result(self._place())

    async def _wait(self, seconds: float) -> Connection:
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        timer = self._loop.call_later(seconds, _give_up, waiter)
        try:
            connection = await waiter
        except asyncio.CancelledError:
            self._gave_up(waiter)
            if not waiter.cancelled() and (given := waiter.result()) is not None:
                # Served and cancelled in the same moment.
                self.release(given) if given.opened else self.forget(given)
            raise
        finally:
            timer.cancel()
        if connection is None:
            self._gave_up(waiter)
            if self._closed:
                raise UpstreamUnreachable("the client was closed")
            raise UpstreamTimeout("no free connection in time")
        return connection

    def _gave_up(self, waiter: asyncio.Future[Connection | None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            # It may have kept a newcomer from a free place.
            self._serve()

    async def _open(self, connection: Connection, seconds: float) -> None:
        try:
            await dial(self._loop, lambda: connection, self._origin, self._context, seconds)
        except BaseException:
            self.forget(connection)
            raise
        if self._closed or not connection.usable():
            connection.abort()
            raise UpstreamUnreachable("the connection was closed as soon as it was open")


def _give_up(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
