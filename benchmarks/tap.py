"""The upstream for long bodies, and the witness of what a proxy does with them.

Every request names itself with `?id=…`; `GET /seen?id=…`, asked directly, tells what happened to it here. Blocking
sockets and a thread per connection: the cheapest way to move bytes with the standard library.

    GET  /down?bytes=N    N bytes as fast as they are taken; &sndbuf=N bounds what waits in the kernel on this side
    POST /up              reads everything, then answers how much it was
    GET  /quiet           an event stream: one event, then silence until the other side closes
    GET  /whoami          the Authorization field it received
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlsplit

from benchmarks.processes import Process, Processes, free_port

BLOCK = 256 * 1024
_ZEROS = memoryview(bytes(BLOCK))
IDLE_SECONDS = 60.0


@dataclass(slots=True)
class Seen:
    """What became of one request, times in seconds of the system-wide monotonic clock.

    `progress` has (time, bytes sent so far) per block; `ended` is when the body was through or the peer closed.
    """

    progress: list[tuple[float, int]] = field(default_factory=list)
    ended: float | None = None
    whole: bool = False


def start(processes: Processes) -> Process:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.tap", str(port)]
    process = processes.start("tap", command, port=port, cwd=Path(__file__).parents[1])
    process.wait_ready()
    return process


class _Connection(threading.Thread):
    def __init__(self, sock: socket.socket, seen: dict[str, Seen]) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._seen = seen

    def run(self) -> None:
        reader = cast("io.BufferedReader", self._sock.makefile("rb", buffering=BLOCK))
        with self._sock, reader:
            try:
                while head := self._head(reader):
                    if not self._answer(*head, reader):
                        return
            except (OSError, ValueError):
                return

    @staticmethod
    def _head(reader: io.BufferedReader) -> tuple[str, dict[str, str]] | None:
        line = reader.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return None
        fields = {}
        while (text := reader.readline(65536).decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = text.partition(":")
            fields[name.lower()] = value.strip()
        return line[1], fields

    def _answer(self, target: str, fields: dict[str, str], reader: io.BufferedReader) -> bool:
        """Whether the connection can be used again."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/seen":
            return self._small(json.dumps(asdict(self._seen.get(query["id"], Seen()))).encode())
        seen = self._seen.setdefault(query.get("id", ""), Seen())
        if url.path == "/down":
            if "sndbuf" in query:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(query["sndbuf"]))
            return self._down(int(query["bytes"]), seen)
        if url.path == "/quiet":
            return self._quiet(seen)
        received = _read_body(fields, reader)
        return self._small(
            fields.get("authorization", "").encode() if url.path == "/whoami" else json.dumps(received).encode()
        )

    def _small(self, body: bytes) -> bool:
        self._sock.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        return True

    def _down(self, length: int, seen: Seen) -> bool:
        self._sock.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % length
        )
        sent = 0
        try:
            while sent < length:
                sent += self._sock.send(_ZEROS[: min(BLOCK, length - sent)])
                seen.progress.append((time.monotonic(), sent))
            seen.whole = True
        finally:
            seen.ended = time.monotonic()
        return True

    def _quiet(self, seen: Seen) -> bool:
        event = b"data: hello\n\n"
        self._sock.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"%x\r\n%b\r\n" % (len(event), event)
        )
        seen.progress.append((time.monotonic(), len(event)))
        try:
            self._sock.recv(1)
        finally:
            seen.ended = time.monotonic()
        return False


def _read_body(fields: dict[str, str], reader: io.BufferedReader) -> int:
    buffer = bytearray(BLOCK)
    received = 0
    chunked = "chunked" in fields.get("transfer-encoding", "")
    while True:
        left = int(reader.readline(100).split(b";")[0], 16) if chunked else int(fields.get("content-length", 0))
        last = not chunked or left == 0
        while left:
            count = reader.readinto(memoryview(buffer)[: min(left, BLOCK)])
            if not count:
                raise OSError("the body broke off")
            left -= count
            received += count
        if chunked:
            reader.readline(100)
        if last:
            return received


def serve(listener: socket.socket) -> None:
    """Until the listener is closed."""
    seen: dict[str, Seen] = {}
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(IDLE_SECONDS)
        _Connection(sock, seen).start()


if __name__ == "__main__":
    serve(socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=256))
