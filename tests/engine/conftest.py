"""A raw TCP upstream that says exactly what a test scripts, and the engine under test, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from idp_middleware._engine import Engine
from idp_middleware._types import RawHeaders, Timeout
from idp_middleware._urls import Origin

try:
    import uvloop
except ImportError:  # Not on Windows, not on every Python.
    uvloop = None

Handler = Callable[["Peer"], Awaitable[None]]
PATIENCE = Timeout(connect=10, read=10, write=10, pool=10)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: they differ in when they write, in how they report errors, and in their TLS."""
    factories = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


class Peer:
    """One connection as the upstream sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """A request head, with the blank line."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def body(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """All that comes until the other side closes."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read(-1)
        return b""

    async def say(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"ok", head: bytes = b"") -> None:
        await self.say(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    def reset(self) -> None:
        """Close with RST, as a peer that crashes does."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Upstream:
    """Serves each connection with `handler`; whatever a handler leaves open is closed when it returns."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.errors: list[BaseException] = []
        self.origin: Origin

    async def start(self, context: ssl.SSLContext | None, host: str) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, host, 0, ssl=context, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        name = "localhost" if context else host
        authority = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        self.origin = Origin("https" if context else "http", name, port, authority.encode())
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.handler(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The engine closed the connection.
        except Exception as exc:
            self.errors.append(exc)
        finally:
            writer.close()
            self.tasks.discard(task)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Upstream]]]:
    """Start upstreams. At the end every connection must have been closed by the engine: a handler that still reads
    is a leak."""
    servers: list[tuple[asyncio.Server, Upstream]] = []

    async def start(handler: Handler, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Upstream:
        upstream = Upstream(handler)
        servers.append((await upstream.start(context, host), upstream))
        return upstream

    yield start
    for server, upstream in servers:
        server.close()
        if upstream.tasks:
            _, open_ones = await asyncio.wait(upstream.tasks, timeout=5)
            assert not open_ones, "the engine left connections open"
        assert not upstream.errors


@pytest.fixture
async def engine(serve: Any) -> AsyncIterator[Engine]:
    # After `serve`, so that it is closed before the upstreams look for what is still open.
    engine = Engine()
    yield engine
    await engine.aclose()


class Chunks:
    """A request body in given pieces; an exception among them is raised, an event is waited for."""

    def __init__(self, *pieces: Any, length: int | None = None, again: bool = False) -> None:
        self.pieces = pieces
        self.length = length
        self.again = again
        self.reads = 0
        self.at = 0

    async def read(self) -> bytes:
        self.reads += 1
        while self.at < len(self.pieces):
            piece = self.pieces[self.at]
            self.at += 1
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, BaseException):
                raise piece
            else:
                return piece
        return b""

    def rewind(self) -> bool:
        self.at = 0
        return self.again


async def get(
    engine: Engine,
    upstream: Upstream,
    target: bytes = b"/",
    *,
    method: bytes = b"GET",
    headers: RawHeaders | None = None,
    body: Any = None,
    timeout: Timeout = PATIENCE,
) -> Any:
    return await engine.send(upstream.origin, method, target, headers or [], body, timeout)


async def whole(response: Any) -> bytes:
    """The body to its end."""
    parts = []
    while part := await response.read():
        parts.append(part)
    assert response.complete
    await response.aclose()
    return b"".join(parts)


async def fetch(engine: Engine, upstream: Upstream, target: bytes = b"/", **options: Any) -> bytes:
    return await whole(await get(engine, upstream, target, **options))


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the other task is the engine's, and knows no event of ours
            await asyncio.sleep(0.005)
