"""One connection with a long body: down, up, a reader that is slow, a client that leaves.

The client's side, in this process, with blocking sockets. What happened on the far side of the proxy is asked of the
tap. Knows nothing of CPU or memory.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 1_000_000
BLOCK = 256 * 1024
SOCKET_SECONDS = 60.0
# Less to wait in the kernel at both ends, so that what the proxy does shows sooner.
SMALL_BUFFER = 256 * 1024
LEAVE_SECONDS = 5.0

Headers = dict[str, str]


class BulkError(Exception):
    """The transfer did not come through whole."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the proxy serves the tap, and where the tap itself can be asked."""

    port: int
    prefix: str
    headers: Headers
    tap_port: int

    def connect(self, receive_buffer: int = 0) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOCKET_SECONDS, blocksize=BLOCK)
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(SOCKET_SECONDS)
        sock.connect(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = sock
        return connection

    def seen(self, mark: str) -> dict[str, object]:
        tap = http.client.HTTPConnection("127.0.0.1", self.tap_port, timeout=SOCKET_SECONDS)
        try:
            tap.request("GET", f"/seen?id={mark}")
            seen: dict[str, object] = json.load(tap.getresponse())
            return seen
        finally:
            tap.close()


def whoami(target: Target) -> str:
    """The Authorization field that the upstream gets. Raises `BulkError` for any other answer."""
    connection = target.connect()
    try:
        connection.request("GET", f"{target.prefix}/whoami", headers=target.headers)
        response = connection.getresponse()
        body = response.read().decode()
        if response.status != 200:
            raise BulkError(f"answers {response.status}: {body[:200]}")
        return body
    except (OSError, http.client.HTTPException) as exc:
        raise BulkError(f"does not answer ({type(exc).__name__})") from None
    finally:
        connection.close()


def download(target: Target, length: int) -> float:
    """Seconds for `length` bytes. Raises `BulkError`."""
    connection = target.connect()
    started = time.perf_counter()
    try:
        response = _get(connection, target, f"/down?bytes={length}")
        if (got := _drain(response)) != length:
            raise BulkError(f"{got} of {length} bytes arrived")
        return time.perf_counter() - started
    except (OSError, http.client.HTTPException) as exc:
        raise BulkError(type(exc).__name__) from None
    finally:
        connection.close()


def upload(target: Target, length: int) -> float:
    """Seconds until `length` bytes, sent with a Content-Length, are acknowledged. Raises `BulkError`."""
    connection = target.connect()
    block = memoryview(bytes(BLOCK))
    started = time.perf_counter()
    try:
        connection.putrequest("POST", f"{target.prefix}/up", skip_accept_encoding=True)
        headers = {**target.headers, "content-type": "application/octet-stream", "content-length": str(length)}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        for start in range(0, length, BLOCK):
            connection.sock.sendall(block[: min(BLOCK, length - start)])
        response = connection.getresponse()
        body = response.read()
        if response.status != 200 or int(body) != length:
            raise BulkError(f"answered {response.status}, {body[:40]!r} of {length} bytes arrived")
        return time.perf_counter() - started
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise BulkError(type(exc).__name__) from None
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Ahead:
    """Bytes taken from the upstream that the client has not read: all of them, and those in no socket's buffer."""

    taken: int
    held: int


def slow_read(target: Target, length: int, seconds: float, rate: int = MEGABYTE) -> Ahead:
    """What piles up before a client that reads `rate` bytes/s for `seconds`. Raises `BulkError`."""
    mark = uuid.uuid4().hex
    connection = target.connect(SMALL_BUFFER)
    try:
        response = _get(connection, target, f"/down?bytes={length}&sndbuf={SMALL_BUFFER}&id={mark}")
        step, read, started = 0.05, 0, time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            while read < elapsed * rate:
                block = response.read(min(16384, int(rate * step)))
                if not block:
                    raise BulkError("the answer broke off")
                read += len(block)
            time.sleep(step)
        queued = _queued({target.port, target.tap_port})
        taken = _sent(target.seen(mark)) - read
        return Ahead(taken, max(0, taken - queued))
    except (OSError, http.client.HTTPException) as exc:
        raise BulkError(type(exc).__name__) from None
    finally:
        connection.close()


def _queued(ports: set[int]) -> int:
    """Bytes that wait in the kernel for anybody on `ports`, sent or not (proc_pid_net(5))."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if any(int(end.partition(":")[2], 16) in ports for end in (local, remote)):
            sending, _, received = queues.partition(":")
            total += int(sending, 16) + int(received, 16)
    return total


@dataclass(frozen=True, slots=True)
class Left:
    """What the upstream saw of a client that left: ms until it was over, bytes still taken; None: it never noticed."""

    milliseconds: float | None
    pulled: int


def leave(target: Target, length: int, after: int = MEGABYTE) -> Left:
    """Close in the middle of an answer of `length` bytes. Raises `BulkError`."""
    mark = uuid.uuid4().hex
    connection = target.connect()
    try:
        response = _get(connection, target, f"/down?bytes={length}&id={mark}")
        if _drain(response, after) < after:
            raise BulkError("the answer broke off")
    except (OSError, http.client.HTTPException) as exc:
        raise BulkError(type(exc).__name__) from None
    finally:
        _hang_up(connection)
    return _after(target, mark, time.monotonic())


def leave_quietly(target: Target) -> Left:
    """Close while an event stream is silent. Raises `BulkError`."""
    mark = uuid.uuid4().hex
    connection = target.connect()
    try:
        response = _get(connection, target, f"/quiet?id={mark}")
        if response.read1(1) == b"":
            raise BulkError("no event arrived")
        # A proxy may need a moment to see that nothing more comes.
        time.sleep(0.1)
    except (OSError, http.client.HTTPException) as exc:
        raise BulkError(type(exc).__name__) from None
    finally:
        _hang_up(connection)
    return _after(target, mark, time.monotonic())


def _hang_up(connection: http.client.HTTPConnection) -> None:
    # HTTPConnection.close leaves the socket open while a response still refers to it.
    if connection.sock is not None:
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def _get(connection: http.client.HTTPConnection, target: Target, path: str) -> http.client.HTTPResponse:
    connection.request("GET", target.prefix + path, headers=target.headers)
    response = connection.getresponse()
    if response.status != 200:
        raise BulkError(f"answered {response.status}")
    return response


def _drain(response: http.client.HTTPResponse, limit: int | None = None) -> int:
    buffer = memoryview(bytearray(BLOCK))
    total = 0
    while limit is None or total < limit:
        count = response.readinto(buffer)
        if not count:
            break
        total += count
    return total


def _sent(seen: dict[str, object], until: float = float("inf")) -> int:
    progress = seen["progress"]
    assert isinstance(progress, list)
    return max((sent for at, sent in progress if at <= until), default=0)


def _after(target: Target, mark: str, left_at: float) -> Left:
    deadline = left_at + LEAVE_SECONDS
    while True:
        seen = target.seen(mark)
        pulled = _sent(seen) - _sent(seen, left_at)
        ended = seen["ended"]
        if isinstance(ended, float):
            # Through to the last byte is not stopped, however soon it was.
            return Left(None if seen["whole"] else max(0.0, (ended - left_at) * 1000), pulled)
        if time.monotonic() >= deadline:
            return Left(None, pulled)
        time.sleep(0.01)
