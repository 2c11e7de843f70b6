"""A TCP proxy that does to connections what networks, crashed servers and strangers do.

Knows bytes and sockets: where in an exchange a connection is, it tells by counting, and by one mark that ends a head.
Knows nothing of HTTP, of Redis or of us. Runs on the event loop of whoever makes it, which is not the gateway's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

FAULTS = ("refuse", "black hole", "delay", "cut", "reset", "trickle", "garbage", "stranger")
"""What may happen. A cut ends with FIN, a reset with RST; a stranger speaks another protocol and hangs up."""

GARBLED = bytes((7 * at * at + 131 * at + 3) % 256 for at in range(64))
"""Not HTTP, not TLS, not Redis, not text; the same each time."""

_NO_LINGER = struct.pack("ii", 1, 0)
_BUFFER = 16 * 1024
"""Bytes in the kernel's buffer, so that an upload does not fit in it."""

_SEEN = 0.03
"""Seconds in which the gateway has surely taken in what has arrived."""


class Stage(Enum):
    """Where in an exchange a fault sets in."""

    CONNECT = "at connect"
    REQUEST = "in the request"
    ANSWER = "before the answer"
    HEAD = "in its head"
    BODY = "in its body"
    IDLE = "at rest"


@dataclass(frozen=True)
class Fault:
    """What happens, and where.

    `after`: bytes of the request that pass before, where the stage is `REQUEST`. `delay`, and `tick` between two bytes
    of a trickle, are in seconds. `words` are a stranger's. `only_kept`: only to connections that are open by now.
    """

    kind: str
    stage: Stage
    after: int = 0
    delay: float = 0.2
    tick: float = 0.02
    words: bytes = b""
    only_kept: bool = False


class FaultProxy:
    """Listens on a port of its own and passes all on to another, until it is told of a fault.

    `mark` ends the head of an answer; `inside` is how many bytes of a head or a body pass before it is "in" there.
    """

    def __init__(self, target: int, *, mark: bytes = b"\r\n\r\n", inside: int = 10) -> None:
        self.target = target
        self.mark = mark
        self.inside = inside
        self.fault: Fault | None = None
        self.mended = asyncio.Event()
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._plugs: list[socket.socket] = []
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FaultProxy:
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.mend()
        tasks = [self._stop_listening(), *self._connections.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        return len(self._connections)

    async def break_with(self, fault: Fault) -> None:
        """Have this happen, until `mend`, to every new connection and to those that are open when they get there."""
        self.fault, self.mended = fault, asyncio.Event()
        for connection in self._connections:
            connection.kept = True
        if fault.stage in (Stage.CONNECT, Stage.IDLE):
            if fault.kind == "refuse":
                # Bound, so that nobody else gets the port; not listening, so that the kernel refuses.
                await asyncio.gather(self._stop_listening(), return_exceptions=True)
                self._listener.close()
                self._listener = _bound(self.port)
            elif fault.kind == "black hole":
                await asyncio.gather(self._stop_listening(), return_exceptions=True)
                await self._plug()
        if fault.stage is Stage.IDLE:
            for connection, task in list(self._connections.items()):
                with suppress(OSError):  # it has ended in the meantime
                    await connection.strike(fault, task)

    def mend(self) -> None:
        """Pass everything on again; what has been broken stays so."""
        self.fault = None
        self.mended.set()
        for plug in self._plugs:
            plug.close()
        self._plugs.clear()
        if self._accepting is None:
            self._listen()

    def _listen(self) -> None:
        self._listener.listen(128)
        self._accepting = asyncio.create_task(self._accept())

    def _stop_listening(self) -> asyncio.Task[None]:
        accepting, self._accepting = self._accepting, None
        assert accepting is not None
        accepting.cancel()
        return accepting

    async def _plug(self) -> None:
        """Fill the queue of those who wait to be accepted: the kernel then leaves all others unanswered."""
        self._listener.listen(0)
        for _ in range(3):
            plug = _socket()
            self._plugs.append(plug)
            with suppress(BlockingIOError):
                plug.connect(("127.0.0.1", self.port))
        await asyncio.sleep(0.01)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            connection = _Connection(self, near)
            task = self._connections[connection] = loop.create_task(connection.run())
            task.add_done_callback(lambda _, connection=connection: self._connections.pop(connection))


class _Over(Exception):
    """The connection has come to its end."""


class _Connection:
    """One that came in (near), and the one to the server that it is passed on to (far)."""

    def __init__(self, proxy: FaultProxy, near: socket.socket) -> None:
        self.kept = False
        self._proxy = proxy
        self._near = near
        self._far = _socket()
        self._silent = False
        self._trickle: Fault | None = None
        self._sent = 0
        self._begin()

    def _begin(self) -> None:
        """Of the answer, nothing has come yet."""
        self._answered = 0
        self._tail = b""
        self._head: int | None = None
        self._struck = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            with suppress(OSError, _Over):
                await self._happens(Stage.CONNECT)
                await loop.sock_connect(self._far, ("127.0.0.1", self._proxy.target))
                ways = [loop.create_task(self._requests(loop)), loop.create_task(self._answers(loop))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._near.close()
            self._far.close()

    async def strike(self, fault: Fault, task: asyncio.Task[None]) -> None:
        """Have it happen now, while nothing is under way."""
        if fault.kind == "black hole":
            self._silent = True
        elif fault.kind == "trickle":
            self._trickle = fault
        elif fault.kind in ("garbage", "stranger"):
            self._near.send(GARBLED if fault.kind == "garbage" else fault.words)
        if fault.kind in ("cut", "refuse", "stranger"):
            self._near.shutdown(socket.SHUT_WR)
        elif fault.kind == "reset":
            self._near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _requests(self, loop: asyncio.AbstractEventLoop) -> None:
        while data := await loop.sock_recv(self._near, 4096):
            if self._silent:
                await self._silence()
            if self._answered:
                self._sent = 0
                self._begin()
            fault = self._due(Stage.REQUEST)
            passing = len(data) if fault is None else max(0, fault.after - self._sent)
            self._sent += len(data)
            await loop.sock_sendall(self._far, data[:passing])
            if fault is not None and passing < len(data):
                await self._happens(Stage.REQUEST)
                if fault.kind == "trickle":
                    await self._drip(loop, self._far, data[passing:], fault)
                else:
                    self._struck = True
                    await loop.sock_sendall(self._far, data[passing:])

    async def _answers(self, loop: asyncio.AbstractEventLoop) -> None:
        while data := await loop.sock_recv(self._far, 65536):
            self._look_for_the_head(data)
            stages = {Stage.ANSWER: 0, Stage.HEAD: self._proxy.inside}
            if self._head is not None:
                stages[Stage.BODY] = self._head + self._proxy.inside
            for stage, begins in stages.items():
                at = begins - self._answered
                if 0 <= at < len(data) and self._due(stage) is not None:
                    if at:
                        await self._pass_on(loop, data[:at])
                        # So that what has been passed on is seen before what happens next.
                        await asyncio.sleep(_SEEN)
                    data = data[at:]
                    await self._happens(stage)
                    self._struck = True
            await self._pass_on(loop, data)

    def _look_for_the_head(self, data: bytes) -> None:
        if self._head is None:
            looked = self._tail + data
            found = looked.find(self._proxy.mark)
            if found >= 0:
                self._head = self._answered - len(self._tail) + found + len(self._proxy.mark)
            self._tail = looked[-len(self._proxy.mark) :]

    async def _pass_on(self, loop: asyncio.AbstractEventLoop, data: bytes) -> None:
        self._answered += len(data)
        if self._trickle is None:
            await loop.sock_sendall(self._near, data)
        else:
            await self._drip(loop, self._near, data, self._trickle)

    async def _drip(self, loop: asyncio.AbstractEventLoop, to: socket.socket, data: bytes, fault: Fault) -> None:
        # Now, for by the next fault there is another.
        mended = self._proxy.mended
        for at in range(len(data)):
            await loop.sock_sendall(to, data[at : at + 1])
            with suppress(TimeoutError):
                await asyncio.wait_for(mended.wait(), fault.tick)
                self._trickle = None
                await loop.sock_sendall(to, data[at + 1 :])
                return

    def _due(self, stage: Stage) -> Fault | None:
        fault = self._proxy.fault
        if fault is None or fault.stage is not stage or self._struck or (fault.only_kept and not self.kept):
            return None
        return fault

    async def _happens(self, stage: Stage) -> None:
        """What is due at this stage. Raises `_Over` where that was the end of the connection."""
        fault = self._due(stage)
        if fault is None:
            return
        loop = asyncio.get_running_loop()
        if fault.kind == "black hole":
            await self._silence()
        elif fault.kind == "delay":
            await asyncio.sleep(fault.delay)
        elif fault.kind == "trickle":
            self._trickle = fault
        elif fault.kind == "garbage":
            await loop.sock_sendall(self._near, GARBLED)
        elif fault.kind == "reset":
            self._near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            raise _Over
        else:
            await loop.sock_sendall(self._near, fault.words)
            self._near.shutdown(socket.SHUT_WR)
            await self._swallow(loop)
            raise _Over

    async def _silence(self) -> None:
        await self._proxy.mended.wait()
        raise _Over

    async def _swallow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read on for a moment: closing a socket that has something unread in it is a reset."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(0.2):
                while await loop.sock_recv(self._near, 65536):
                    pass


def _socket() -> socket.socket:
    # The protocol is named, or asyncio leaves TCP_NODELAY alone.
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _bound(port: int) -> socket.socket:
    listener = _socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Those that are accepted have what the listener has.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listener.bind(("127.0.0.1", port))
    return listener
