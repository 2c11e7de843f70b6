"""Load for small answers: wrk where it is installed, else a bundled loader; either in a process of its own.

Closed loop: each connection sends its next request when the last answer has arrived whole. Run as a program it is the
bundled loader: raw asyncio protocols and the least parsing that still notices a wrong status or a missing byte.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

TIMEOUT = 30
"""Seconds after which an answer counts as not coming."""

STARTING = 0.2
"""Seconds that a loader may take to start."""


class LoadFailed(Exception):
    """The loader itself did not work, for example because nobody listened."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every connection sends over and over, and how long the answer's body has to be."""

    path: str
    answer: int
    method: str = "GET"
    body: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    def encoded(self, host: str) -> bytes:
        fields = [("host", host), *self.headers]
        if self.body:
            fields += [("content-type", "application/json"), ("content-length", str(self.body))]
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + b"x" * self.body


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it: latencies in milliseconds, errors by kind."""

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: dict[str, int]


def name() -> str:
    return "wrk" if shutil.which("wrk") else "bundled (asyncio)"


def run(
    request: Request,
    port: int,
    connections: int,
    seconds: float,
    *,
    opening: float = 0.0,
    opened: Callable[[], None] = lambda: None,
) -> Seen:
    """Send `request` for `seconds` over `connections`, and before that for `opening` seconds that are not counted.

    In these, connections are opened on both sides of a proxy; with many of them, that costs more than the requests of a
    short run. `opened` is called at their end. Latencies and errors are those of the whole time. Raises `LoadFailed`.
    """
    since = time.time() + STARTING + opening
    if shutil.which("wrk"):
        # Whole seconds are all that wrk knows; what is more than asked for is counted, too.
        command, lasts = _wrk(request, port, connections, math.ceil(STARTING + opening + seconds), since), None
    else:
        command = [sys.executable, "-m", __name__]
        lasts = {**asdict(request), "port": port, "connections": connections, "until": since + seconds, "since": since}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(lasts))
            process.stdin.close()
            process.stdin = None
            time.sleep(max(0.0, since - time.time()))
            opened()
            out, err = process.communicate(timeout=seconds + TIMEOUT + 30)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise LoadFailed(f"the loader failed: {err.strip() or out.strip()}")
    seen = json.loads(out.strip().splitlines()[-1])
    errors = {kind: count for kind, count in seen["errors"].items() if count}
    # Heads come on top, so an answer that is not at least this long has lost some of its body.
    if seen["all"] and not errors and seen["bytes"] < seen["all"] * request.answer:
        errors["short"] = seen["all"] - seen["bytes"] // request.answer
    return Seen(seen["requests"], seen["ended"] - since, seen["p50"], seen["p99"], errors)


def _wrk(request: Request, port: int, connections: int, seconds: int, since: float) -> list[str]:
    headers = [part for name, value in request.headers for part in ("-H", f"{name}: {value}")]
    script = str(Path(__file__).with_name("wrk.lua"))
    url = f"http://127.0.0.1:{port}{request.path}"
    options = ["-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", f"{TIMEOUT}s"]
    arguments = [f"{since:.6f}", request.method, *([str(request.body)] if request.body else [])]
    return ["wrk", *options, *headers, "-s", script, url, "--", *arguments]


class _Connection(asyncio.Protocol):
    """One connection of the bundled loader."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._buffer = b""
        self._missing = -1
        self._sent_at = 0.0
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._send()

    def _send(self) -> None:
        if self._loader.over:
            self.waiting = False
            self.transport.close()
            return
        self._sent_at = time.perf_counter()
        self.waiting = True
        self._loader.sent += self._loader.counting
        self.transport.write(self._loader.payload)

    def data_received(self, data: bytes) -> None:
        self._loader.bytes += len(data)
        if self._missing < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            data, self._buffer = self._buffer[end + 4 :], b""
            if not head.startswith(b"http/1.1 200"):
                self._loader.errors["status"] += 1
            length = head.find(b"content-length:")
            if length < 0:
                self._loader.errors["read"] += 1
                self.transport.close()
                return
            self._missing = int(head[length + 15 :].partition(b"\r")[0])
        self._missing -= len(data)
        if self._missing <= 0:
            self._missing = -1
            self._loader.latencies.append(time.perf_counter() - self._sent_at)
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.waiting and not self._loader.over:
            self._loader.errors["read"] += 1
            self._loader.reopen()


class _Loader:
    def __init__(self, payload: bytes, port: int) -> None:
        self.payload = payload
        self.port = port
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.bytes = 0
        self.sent = 0
        self.counting = self.over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: list[_Connection] = []

    def reopen(self) -> None:
        task = asyncio.get_running_loop().create_task(self.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connect(self) -> None:
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), "127.0.0.1", self.port
            )
        except OSError:
            self.errors["connect"] += 1
        else:
            self._open.append(protocol)

    async def run(self, connections: int, since: float, until: float) -> dict[str, object]:
        asyncio.get_running_loop().call_later(since - time.time(), self._count)
        await asyncio.gather(*(self.connect() for _ in range(connections)))
        await asyncio.sleep(until - time.time())
        self.over = True
        ended = time.time()
        ordered = sorted(self.latencies)
        for connection in self._open:
            connection.transport.abort()
        return {
            "requests": self.sent,
            "all": len(ordered),
            "bytes": self.bytes,
            "ended": ended,
            "p50": percentile(ordered, 50) * 1000,
            "p99": percentile(ordered, 99) * 1000,
            "errors": dict(self.errors),
        }

    def _count(self) -> None:
        self.counting = True


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank, of what is sorted already; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def main() -> None:
    spec = json.load(sys.stdin)
    port, connections, since, until = (spec.pop(name) for name in ("port", "connections", "since", "until"))
    request = Request(**{**spec, "headers": tuple((name, value) for name, value in spec["headers"])})
    loader = _Loader(request.encoded(f"127.0.0.1:{port}"), port)
    print(json.dumps(asyncio.run(loader.run(connections, since, until))))


if __name__ == "__main__":
    main()
