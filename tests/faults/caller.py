"""A caller who takes in whatever comes: whole answers, broken ones, and none.

Knows as much of HTTP as it takes to tell a whole answer from a broken one.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass

LONGEST = 20.0
"""Seconds after which a request counts as stuck, or as one that will take for ever."""

SILENCE = 5.0
"""Seconds without a byte, by which the one is told from the other: more than the gateway's own time-outs."""


@dataclass(frozen=True)
class Heard:
    """What came of a request. `status` is 0 where no answer came; `seconds` is how long all of it took.

    `trickling` says that we left while it still came, byte by byte.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    seconds: float
    raw: bytes
    trickling: bool = False

    @property
    def problem(self) -> str | None:
        """The name of the problem, where the answer is one of our own."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        return str(json.loads(self.body)["type"]).rpartition(":")[2]


class _Recorded:
    """A reader that keeps all that went through it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.raw = bytearray()
        self.at = time.monotonic()
        """When the last of it came."""
        self._reader = reader

    async def line(self) -> bytes:
        return self._kept(await self._reader.readuntil(b"\n"))

    async def exactly(self, size: int) -> bytes:
        return self._kept(await self._reader.readexactly(size))

    def _kept(self, data: bytes) -> bytes:
        self.raw += data
        self.at = time.monotonic()
        return data


async def ask(port: int, token: str, method: str, target: str, body: bytes = b"", *, longest: float = LONGEST) -> Heard:
    """Send a request on a connection of its own. Raises `TimeoutError` where it is stuck."""
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {target} HTTP/1.1", "Host: app.example", f"Authorization: Bearer {token}", "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    sending = asyncio.create_task(_send(writer, "\r\n".join([*lines, "", ""]).encode() + body))
    try:
        return await hear(reader, started, longest=longest)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def hear(reader: asyncio.StreamReader, started: float, *, longest: float = LONGEST) -> Heard:
    """Take in an answer to what was sent at `started`, by the monotonic clock. Raises `TimeoutError` as `ask`."""
    recorded = _Recorded(reader)
    status, headers, whole, trickling, content = 0, dict[str, str](), False, False, bytearray()
    try:
        async with asyncio.timeout(longest):
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                status, headers = await _head(recorded)
                await _body(recorded, headers, content)
                whole = True
    except TimeoutError:
        trickling = longest > SILENCE and time.monotonic() - recorded.at < SILENCE
        if not trickling:
            raise
    return Heard(status, headers, bytes(content), whole, time.monotonic() - started, bytes(recorded.raw), trickling)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(ConnectionError):
        for at in range(0, len(data), 65536):
            writer.write(data[at : at + 65536])
            await writer.drain()


async def _head(stream: _Recorded) -> tuple[int, dict[str, str]]:
    status = int((await stream.line()).split(b" ")[1])
    headers: dict[str, str] = {}
    while (line := await stream.line()) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return status, headers


async def _body(stream: _Recorded, headers: dict[str, str], content: bytearray) -> None:
    if headers.get("transfer-encoding") != "chunked":
        content += await stream.exactly(int(headers.get("content-length", "0")))
        return
    while size := int(await stream.line(), 16):
        content += await stream.exactly(size)
        await stream.exactly(2)
    await stream.exactly(2)
