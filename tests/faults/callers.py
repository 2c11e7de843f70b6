"""How a cell is tried in which the caller breaks: raw bytes on a socket of its own.

Knows as much of HTTP as a caller must to begin a request, and how not to go on with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from idp_middleware.testing import RecordedRequest
from tests.faults.caller import Heard, ask, hear
from tests.faults.ground import PATIENCE, Ground
from tests.faults.matrix import CONNECTS, IN_BODY, IN_HEAD, READS, RESTS, WAITS, Cell, Tried
from tests.faults.proxy import GARBLED, FaultProxy

AWHILE = PATIENCE.write + 0.6
"""Seconds that a silent caller stays."""

ANSWERED_AFTER = 0.5
PIECE = 100_000
DOWNLOAD = 16 * 1024 * 1024
SHA256 = hashlib.sha256(bytes(2 * PIECE)).hexdigest()
TRICKLE = 25
"""Bytes, 20 ms each."""


async def try_cell(cell: Cell, ground: Ground, number: int) -> Tried:
    """Begin a request, break it, and have somebody else ask; `number` is no other cell's."""
    async with FaultProxy(ground.api_port) as proxy:
        try:
            return await _Attempt(cell, ground, number, proxy).run()
        except TimeoutError:
            return Tried("STUCK", "", ("a request got no answer and no end",))


class _Attempt:
    def __init__(self, cell: Cell, ground: Ground, number: int, proxy: FaultProxy) -> None:
        self.cell, self.ground, self.proxy = cell, ground, proxy
        # None is what another begins with.
        self.name = f"cell{number:04}"
        self.download = f"/bytes/{100_000 + number}"
        self.heard: list[Heard] = []
        self.wrong: list[str] = []

    async def run(self) -> Tried:
        self.token, self.given = self.ground.settle(self.name, api=self.proxy.port)
        await self._ask("the first request")
        reader, self.writer = await self._connected()
        self.started = time.monotonic()
        try:
            rest = await self._begin(reader)
            self.started = time.monotonic()
            answer = await self._break(reader, rest)
        finally:
            self.writer.close()
            with suppress(ConnectionError):
                await self.writer.wait_closed()
        took = time.monotonic() - self.started
        await self._until(self._let_go, "it is still under way")
        if answer == "let go":
            took = time.monotonic() - self.started
        await self._ask("after that")
        await ask(self.ground.port, "", "POST", f"/{self.name}/close")
        await self._until(lambda: not self.proxy.open, "connections left open")
        slowly = took > 1.5 and answer not in ("held open", "waits")
        return Tried(answer, "slowly" if slowly else "", tuple(self.wrong), tuple(self.heard))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        made = socket.socket()
        made.setblocking(False)
        # So that an answer does not fit in it.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.ground.port))
        return await asyncio.open_connection(sock=made, limit=64 * 1024)

    async def _begin(self, reader: asyncio.StreamReader) -> bytes:
        """Send all that comes before the fault; returns what would come after it."""
        column = self.cell.column
        if column == CONNECTS:
            return self._head("GET", "/chunked/64")
        if column == IN_HEAD:
            head = self._head("GET", "/chunked/64")
            await self._send(head[:40])
            await asyncio.sleep(0.05)
            return head[40:]
        if column == RESTS:
            await self._send(self._head("GET", "/chunked/64", close=False))
            self._took(await hear(reader, self.started))
            return self._head("GET", "/chunked/64")
        if column == IN_BODY:
            piece = b"%x\r\n%b\r\n" % (PIECE, bytes(PIECE))
            await self._send(self._head("POST", "/upload", "Transfer-Encoding: chunked") + piece)
            await self._until(lambda: len(self._at_upstream()) == 2, "the upstream saw no request")
            return piece + b"0\r\n\r\n"
        if column == WAITS:
            self.ground.provider.stall(self.download, ANSWERED_AFTER, times=1)
            await self._send(self._head("GET", self.download))
        else:
            await self._send(self._head("GET", f"/bytes/{DOWNLOAD}"))
        await self._until(lambda: len(self._at_upstream()) == 2, "the upstream saw no request")
        if column == READS:
            # The answer has come this far.
            await asyncio.sleep(0.1)
        return b""

    async def _break(self, reader: asyncio.StreamReader, rest: bytes) -> str:
        fault, reads = self.cell.fault, self.cell.column == READS
        if fault == "black hole":
            with suppress(TimeoutError):
                if reads:
                    await asyncio.sleep(AWHILE)
                else:
                    return self._said(await hear(reader, self.started, longest=AWHILE))
            return "waits" if self.ground.cells.under_way[self.name] else "held open"
        if fault == "reset":
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
            return "let go"
        with suppress(ConnectionError):
            if fault == "cut":
                self.writer.write_eof()
            elif fault == "delay":
                await asyncio.sleep(0.2)
                await self._send(rest)
            elif fault == "trickle" and not reads:
                await self._send(rest[:-TRICKLE])
                for at in rest[-TRICKLE:]:
                    await self._send(bytes([at]))
                    await asyncio.sleep(0.02)
            elif fault == "stranger":
                await self._send(self.cell.party.stranger)
            elif fault == "garbage":
                await self._send(GARBLED + rest)
        if fault == "trickle" and reads:
            # Nothing is taken but what fits in the buffers.
            await asyncio.sleep(TRICKLE * 0.02)
        return self._said(await hear(reader, self.started))

    def _said(self, heard: Heard) -> str:
        # Of a download, what comes first: the rest is looked at by its length, and takes long to look through.
        self.heard.append(replace(heard, raw=heard.raw[:PIECE]))
        if heard.status == 0:
            return "let go" if self.cell.fault == "cut" else "closed"
        if heard.problem:
            return f"{heard.status} {heard.problem}"
        if heard.status != 200:
            return f"the server's {heard.status}"
        if not heard.whole:
            return "let go" if self.cell.fault == "cut" else "broken off"
        return "served" if self._right(heard) else "WRONG"

    def _right(self, heard: Heard) -> bool:
        if self.cell.column == IN_BODY:
            return SHA256.encode() in heard.body
        return len(heard.body) in (64, int(self.download.rpartition("/")[2]), DOWNLOAD)

    def _head(self, method: str, target: str, *fields: str, close: bool = True) -> bytes:
        lines = [
            f"{method} /{self.name}/idp/github{target}?for={self.name} HTTP/1.1",
            "Host: app.example",
            *fields,
            f"Authorization: Bearer {self.token}",
            f"Connection: {'close' if close else 'keep-alive'}",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def _ask(self, what: str) -> None:
        target = f"/{self.name}/idp/github/chunked/64?for={self.name}"
        heard = await ask(self.ground.port, self.token, "GET", target)
        self._took(heard, what)

    def _took(self, heard: Heard, what: str = "before that") -> None:
        self.heard.append(heard)
        if heard.status != 200 or len(heard.body) != 64:
            self.wrong.append(f"{what}: {heard.status} {heard.problem}")

    def _at_upstream(self) -> list[RecordedRequest]:
        return [request for request in self.ground.provider.requests if request.bearer == self.given]

    def _let_go(self) -> bool:
        """Nothing of it is left, here or at the upstream; which took nothing for whole that was not."""
        over = [request.disconnected or request.answered for request in self._at_upstream()]
        cut_off = [each for each in self._at_upstream() if each.method == "POST" and each.complete]
        if any(each.sha256 != SHA256 for each in cut_off):
            self.wrong.append("the upstream took a part for the whole")
        return all(over) and not self.ground.cells.left(self.name)

    async def _until(self, condition: Callable[[], bool], complaint: str) -> None:
        for _ in range(300):
            if condition():
                return
            await asyncio.sleep(0.01)
        self.wrong.append(complaint)
