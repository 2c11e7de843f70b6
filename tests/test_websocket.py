"""WebSockets that are relayed: real clients, real upstreams and raw ones, and each of uvicorn's implementations.

Where they are refused because no route takes them: cases/test_websocket_and_sse.py.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import random
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Queue
from typing import Any
from urllib.parse import quote, unquote

import pytest
import trustme
from itsdangerous import TimestampSigner
from starlette.middleware.sessions import SessionMiddleware
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets
from websockets.utils import accept_key

from idp_middleware import (
    Caller,
    IdPMiddleware,
    ProxyRoute,
    SessionAuthenticator,
    Timeout,
    Token,
    _websocket,
    load_config,
)
from idp_middleware._engine import _websocket as engine_websocket
from idp_middleware.errors import ConfigurationError, IdentityNotLinked
from tests.stack import RawMessage, Stack, eventually, raw_upstream, read_head, running

# Of uvicorn's legacy implementation, and of what it is made of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `websockets` implementation:UserWarning"),
]

SERVERS = {
    "sansio": {"ws": "websockets-sansio", "http": "httptools", "loop": "uvloop"},
    "sansio on asyncio": {"ws": "websockets-sansio", "http": "h11", "loop": "asyncio"},
    "wsproto": {"ws": "wsproto", "http": "h11", "loop": "uvloop"},
    "legacy": {"ws": "websockets", "http": "httptools", "loop": "asyncio"},
}
SANSIO = SERVERS["sansio"]
HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
PROVIDER_TOKEN = "provider-token-of-alice"


async def provider_token(caller, route):
    return Token(PROVIDER_TOKEN)


class Upstream:
    """An API of WebSockets; the path says what it does."""

    def __init__(self) -> None:
        self.url = ""
        self.sockets: dict[str, ServerConnection] = {}

    def of(self, call: Any) -> ServerConnection:
        """The upstream's end of a caller's WebSocket, or of the request with such a query."""
        query = call if isinstance(call, str) else call.request.path.partition("?")[2]
        return eventually(lambda: self.sockets.get(query))

    def end_of(self, call: Any) -> tuple[int | None, str | None]:
        """How it ended for the upstream."""
        websocket = self.of(call)
        eventually(lambda: websocket.close_code is not None, within=10)
        return websocket.close_code, websocket.close_reason

    def handle(self, websocket: ServerConnection) -> None:
        path, _, query = websocket.request.path.removeprefix("/base").partition("?")
        self.sockets[query] = websocket
        with suppress(ConnectionClosed):
            if path == "/fragments":
                websocket.send(iter(["one ", "", "message"]))
                websocket.send(iter([b"\x00", b"\xff"]))
            elif path.startswith("/close/"):
                code, _, reason = unquote(path).removeprefix("/close/").partition("/")
                websocket.send("before the end")
                websocket.close(int(code), reason)
            for message in websocket:
                websocket.send(message)

    def choose(self, websocket: ServerConnection, offered: Any) -> Any:
        return next((protocol for protocol in ("chat.v2", "chat.v1") if protocol in offered), None)


@contextmanager
def upstream_of_websockets(**options: Any) -> Iterator[Upstream]:
    upstream = Upstream()
    options = {"select_subprotocol": upstream.choose, "max_size": None, **options}
    with serve_websockets(upstream.handle, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        upstream.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}/base"
        yield upstream
    thread.join(5)


@contextmanager
def gateway(url: str, server: dict[str, str] = SANSIO, *, stack: Any = None, **options: Any) -> Iterator[Stack]:
    """A stack with one route, `up`, to `url`."""
    server = dict(server)
    route = ProxyRoute(url, **{"token_source": provider_token, "websocket": True, **options})
    http = server.pop("http")
    with running(routes=lambda api, source: {"up": route}, http=http, uvicorn=server, **stack or {}) as running_stack:
        yield running_stack


@pytest.fixture(scope="module")
def upstream():
    with upstream_of_websockets() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS)
def stack(request, upstream):
    with gateway(upstream.url, request.param) as stack:
        yield stack


numbers = itertools.count()


@contextmanager
def calling(stack: Stack, target: str = "/idp/up/echo", *, user: str | None = "alice", **options: Any) -> Iterator[Any]:
    """A caller's WebSocket; leaving it closes it, unless it is closed by then."""
    headers = {} if user is None else stack.bearer(user)
    options = {"compression": None, "max_size": None, "additional_headers": headers, **options}
    target += f"{'&' if '?' in target else '?'}call={next(numbers)}"
    with connect(
        f"ws://127.0.0.1:{stack.gateway.port}{target}", proxy=None, ping_interval=None, **options
    ) as websocket:
        yield websocket


def refusal(stack: Stack, target: str = "/idp/up/echo", *fields: str, user: str | None = "alice") -> RawMessage:
    """What comes back instead of 101, byte for byte."""
    with stack.connect() as client:
        client.send(stack.raw_request("GET", target, *HANDSHAKE, *fields, user=user, close=False))
        return client.answer()


def end_of(websocket: ClientConnection) -> tuple[int | None, str | None]:
    """How it ends, once what came before has been read."""
    with suppress(ConnectionClosed):
        while True:
            websocket.recv(timeout=10)
    return websocket.close_code, websocket.close_reason


# Raw upstreams: what a server that we did not write would send.


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, length: int | None = None) -> bytes:
    """A server's frame; `length` is what it claims."""
    size = len(data) if length is None else length
    head = struct.pack("!BB", fin << 7 | opcode, min(size, 126 if size < 2**16 else 127) if size > 125 else size)
    return head + (struct.pack("!H" if size < 2**16 else "!Q", size) if size > 125 else b"") + data


TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def accept(connection: socket.socket, *fields: bytes, behind: bytes = b"", request: bytes = b"") -> bytes:
    """Answer a handshake; returns its request."""
    request = request or read_head(connection)
    key = next(line for line in request.split(b"\r\n") if line.startswith(b"sec-websocket-key: "))[19:]
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode(),
        *fields,
    ]
    connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + behind)
    return request


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)


def sent_frames(data: bytes) -> list[tuple[int, bytes]]:
    """The small frames of a client: opcode and data, unmasked."""
    frames = []
    while data:
        opcode, size, mask = data[0] & 15, data[1] & 127, data[2:6]
        assert data[1] & 128
        assert size < 126
        frames.append((opcode, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data[6 : 6 + size]))))
        data = data[6 + size :]
    return frames


def close_codes(data: bytes) -> list[int | None]:
    """The codes of the Close frames among a client's frames."""
    return [
        int.from_bytes(content[:2], "big") if content else None
        for opcode, content in sent_frames(data)
        if opcode == CLOSE
    ]


@pytest.fixture(scope="module", params=["sansio", "sansio on asyncio"])
def scripted(request):
    """A stack whose upstream sends `frames` once it has accepted, and keeps what it received then."""
    frames: Queue[bytes] = Queue()
    received: Queue[bytes] = Queue()

    def follow(connection):
        accept(connection)
        connection.sendall(frames.get(timeout=10))
        received.put(rest(connection))

    with raw_upstream(follow) as url, gateway(url, SERVERS[request.param]) as stack:
        stack.frames, stack.received = frames, received
        yield stack


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["", "hello", "grüße 🎈", "\0", b"", b"\x00\xff\xfe", b"\r\n\r\n"])
def test_a_message_goes_through_as_it_is(stack, message):
    """I04: text stays text, binary stays binary, and an empty message is one."""
    with calling(stack) as websocket:
        websocket.send(message)
        assert websocket.recv(timeout=10) == message


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 1_000_003])
def test_every_encoding_of_a_length_goes_through(stack, size):
    """Autobahn's groups 1 and 9: the frame has its length in 7, 16 or 64 bits."""
    with calling(stack) as websocket:
        for message in ["*" * size, random.Random(size).randbytes(size)]:
            websocket.send(message)
            assert websocket.recv(timeout=10) == message


def test_many_messages_keep_their_order(stack):
    """Also where the one kind follows the other, and while the answers to the first come back."""
    source = random.Random(4)
    sent = [
        source.choice([str, lambda n: str(n).encode()])(number) * source.choice([0, 1, 30, 3000])
        for number in range(600)
    ]
    with calling(stack) as websocket:
        sender = threading.Thread(target=lambda: [websocket.send(message) for message in sent])
        sender.start()
        assert [websocket.recv(timeout=10) for _ in sent] == sent
        sender.join()


def test_a_message_in_fragments_arrives_whole(stack):
    """I04: both ways; a proxy may change how a message is cut (RFC 6455 section 5.4)."""
    with calling(stack, "/idp/up/fragments") as websocket:
        assert websocket.recv(timeout=10) == "one message"
        assert websocket.recv(timeout=10) == b"\x00\xff"
        websocket.send(iter(["grü", "", "ße"]))
        assert websocket.recv(timeout=10) == "grüße"


def test_pings_are_answered_on_either_side(stack, upstream):
    """I04: hop by hop, since ASGI has no messages for them."""
    with calling(stack) as websocket:
        assert websocket.ping(b"from the caller").wait(10)
        assert upstream.of(websocket).ping(b"from the upstream").wait(10)


def test_a_ping_between_fragments_does_not_break_the_message():
    """Autobahn 5.6: control frames may stand inside a message (RFC 6455 section 5.4)."""

    def interleaved(connection):
        frames = frame(TEXT, b"gr\xc3", fin=False) + frame(PING, b"?") + frame(0, b"\xbc\xc3\x9fe")
        accept(connection, behind=frames)
        rest(connection)

    with raw_upstream(interleaved) as url, gateway(url) as stack, calling(stack) as websocket:
        assert websocket.recv(timeout=10) == "grüße"


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_frames_that_come_along_with_the_handshake_are_not_lost(server):
    """They may arrive before the caller has been answered."""

    def eager(connection):
        accept(connection, behind=frame(TEXT, b"first") + frame(BINARY, b"second") + frame(CLOSE, b"\x0f\xa0done"))
        rest(connection)

    with raw_upstream(eager) as url, gateway(url, server) as stack, calling(stack) as websocket:
        assert [websocket.recv(timeout=10) for _ in range(2)] == ["first", b"second"]
        assert end_of(websocket) == (4000, "done")


# --- the end ---------------------------------------------------------------------------------------------------------

ENDS = [
    (1000, ""),
    (1000, "done"),
    (1001, "away"),
    (1008, "policy"),
    (1011, "größer"),
    (3000, "who?"),
    (4999, "x" * 123),
]


@pytest.mark.parametrize("end", ENDS)
def test_the_upstream_is_told_how_the_caller_closes(stack, upstream, end):
    """I04: code and reason."""
    with calling(stack) as websocket:
        websocket.close(*end)
        assert upstream.end_of(websocket) == end


@pytest.mark.parametrize("end", ENDS)
def test_the_caller_is_told_how_the_upstream_closes(stack, end):
    """I04: code and reason, after all messages that were sent before."""
    with calling(stack, f"/idp/up/close/{end[0]}/{quote(end[1])}") as websocket:
        assert websocket.recv(timeout=10) == "before the end"
        assert end_of(websocket) == end


def test_a_close_without_a_code_is_passed_on_as_one(stack, upstream):
    """1005 means that there was none, and never is on the wire (RFC 6455 section 7.4.1)."""
    with calling(stack) as websocket:
        with websocket.send_context():
            websocket.protocol.send_close()
        assert upstream.end_of(websocket)[0] == 1005


def test_a_close_of_the_upstream_without_a_code_is_a_normal_one():
    """ASGI has no word for none."""

    def plain(connection):
        accept(connection, behind=frame(CLOSE))
        rest(connection)

    with raw_upstream(plain) as url, gateway(url) as stack, calling(stack) as websocket:
        assert end_of(websocket) == (1000, "")


@pytest.mark.parametrize("how", ["end of stream", "reset"])
def test_a_caller_that_vanishes_closes_the_upstreams_side(stack, upstream, how):
    """I07: at once, which a busy machine may take a second for."""
    with stack.connect() as client:
        client.send(stack.raw_request("GET", f"/idp/up/echo?{how[:3]}={id(stack)}", *HANDSHAKE, close=False))
        assert client.answer(bodiless=True).status == 101
        if how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        started = time.monotonic()
    # Which of the two it is, servers do not always say.
    assert upstream.end_of(f"{how[:3]}={id(stack)}")[0] in (1001, 1005)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("how", ["end of stream", "reset"])
def test_an_upstream_that_breaks_off_is_no_clean_end(how):
    """After what it had sent: 1014 is to WebSockets what 502 is to requests."""
    broken_off = threading.Event()

    def dying(connection):
        accept(connection, behind=frame(TEXT, b"last words") + frame(TEXT, b"and half a", fin=False))
        if how == "reset":
            broken_off.wait(10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with raw_upstream(dying) as url, gateway(url) as stack, calling(stack) as websocket:
        assert websocket.recv(timeout=10) == "last words"
        broken_off.set()
        started = time.monotonic()
        assert end_of(websocket)[0] == 1014
        assert time.monotonic() - started < 2


def test_an_upstream_that_does_not_answer_a_close_is_cut(monkeypatch):
    """Nor does it keep the caller waiting, who has been answered by then."""
    monkeypatch.setattr(engine_websocket, "CLOSE_TIMEOUT", 0.3)
    received = Queue()

    def deaf(connection):
        accept(connection)
        received.put(rest(connection))

    with raw_upstream(deaf) as url, gateway(url) as stack:
        with calling(stack) as websocket:
            websocket.close(4000, "done")
        assert close_codes(received.get(timeout=5)) == [4000]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(TEXT | 0x40, b"x"), 1002),  # reserved bits: no extension was agreed on
        (frame(3), 1002),
        (frame(0, b"x"), 1002),  # a continuation of nothing
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(PING, b"x" * 126), 1002),
        (b"\x81\x81\0\0\0\0x", 1002),  # masked
        (frame(CLOSE, b"\x03"), 1002),
        *[(frame(CLOSE, struct.pack("!H", code)), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)],
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"gr\xc3", fin=False) + frame(0, b"n"), 1007),
        (frame(BINARY, length=16 * 2**20 + 1), 1009),
        (frame(BINARY, b"x", fin=False) + frame(0, length=16 * 2**20), 1009),
    ],
)
def test_an_upstream_that_breaks_the_protocol_is_told_so(scripted, frames, code):
    """Autobahn's groups 3 to 7, and messages without bounds. The caller hears that it was the upstream."""
    with calling(scripted) as websocket:
        scripted.frames.put(frame(TEXT, b"fine") + frames)
        assert websocket.recv(timeout=10) == "fine"
        assert end_of(websocket)[0] == 1014
    assert close_codes(scripted.received.get(timeout=3)) == [code]


@pytest.mark.parametrize(
    "frames",
    [b"\xc1\x80\0\0\0\0", b"\x83\x80\0\0\0\0", b"\x81\x81\0\0\0\0\xff", b"\x88\x82\0\0\0\0\x03\xed"],
    ids=["reserved bit", "reserved opcode", "not UTF-8", "1005 on the wire"],
)
def test_a_caller_that_breaks_the_protocol_ends_it_for_the_upstream(stack, upstream, frames):
    """The server cuts it off; whatever it says of that, nothing is left open, and no code is sent that may not be."""
    with stack.connect() as client:
        query = f"call={next(numbers)}"
        client.send(stack.raw_request("GET", f"/idp/up/echo?{query}", *HANDSHAKE, close=False))
        assert client.answer(bodiless=True).status == 101
        client.send(frames)
        client.socket.shutdown(socket.SHUT_WR)
        client.rest()
    assert upstream.end_of(query)[0] in (1001, 1002, 1005, 1007)


# --- how long it lives -----------------------------------------------------------------------------------------------


def test_it_ends_when_the_callers_token_expires(stack, upstream):
    """I08: nobody stays connected on a token that would not be let in any more."""
    with calling(stack, additional_headers=stack.bearer(expires_in=2)) as websocket:
        websocket.send("still valid")
        assert websocket.recv(timeout=10) == "still valid"
        started = time.monotonic()
        assert end_of(websocket) == (4401, "the caller has to authenticate again")
        assert time.monotonic() - started < 3
        assert upstream.end_of(websocket)[0] == 1001


def test_it_ends_also_while_neither_side_reads():
    """What is under way does not keep it open."""
    left = threading.Event()

    def flooding(connection):
        accept(connection)
        with suppress(OSError):
            while True:
                connection.sendall(frame(BINARY, bytes(60_000)))
        left.set()

    with raw_upstream(flooding) as url, gateway(url) as stack, stack.connect() as client:
        token = stack.token(expires_in=1)
        client.send(stack.raw_request("GET", "/idp/up/", *HANDSHAKE, f"Authorization: Bearer {token}", user=None))
        assert left.wait(10)


def test_without_an_expiry_it_lives_for_a_bounded_time(upstream, monkeypatch):
    """I08: a session's cookie does not say how long it is valid."""
    monkeypatch.setattr(_websocket, "MAX_LIFETIME", 0.3)

    async def alice(conn):
        return Caller("auth0|alice", claims={"exp": "soon"})

    with gateway(upstream.url, stack={"authenticator": alice}) as stack, calling(stack, user=None) as websocket:
        assert end_of(websocket)[0] == 4401


def test_an_upstream_that_is_over_at_once_is_not_pinged(monkeypatch, caplog):
    """Its Close may come along with the handshake's answer, before anything else has begun."""
    monkeypatch.setattr(engine_websocket, "PING_EVERY", 0.05)

    def brief(connection):
        accept(connection, behind=frame(CLOSE, b"\x0f\xa0"))
        connection.recv(100)

    with raw_upstream(brief) as url, gateway(url, SERVERS["sansio on asyncio"]) as stack:
        with calling(stack) as websocket:
            assert end_of(websocket) == (4000, "")
        time.sleep(0.2)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_a_server_that_shuts_down_takes_leave_of_the_upstream(upstream, server):
    """1001: going away, and not a connection that breaks off."""
    with gateway(upstream.url, server) as stack, calling(stack) as websocket:
        upstream.of(websocket)
        stack.gateway.stop()
        assert upstream.end_of(websocket)[0] == 1001
        assert end_of(websocket)[0] in (1001, 1012)


def test_a_middleware_that_is_closed_ends_those_that_are_open(upstream):
    """As it closes all other connections; either side is told."""
    loops = []

    async def alice(conn):
        loops.append(asyncio.get_running_loop())
        return Caller("auth0|alice")

    with gateway(upstream.url, stack={"authenticator": alice}) as stack, calling(stack, user=None) as websocket:
        upstream.of(websocket)
        asyncio.run_coroutine_threadsafe(stack.middleware.aclose(), loops[0]).result(10)
        assert upstream.end_of(websocket)[0] == 1001
        assert end_of(websocket)[0] == 1001


def test_an_upstream_that_falls_silent_is_noticed(upstream, monkeypatch):
    """Half-open connections show no error; one that answers pings stays, however little it has to say."""
    monkeypatch.setattr(engine_websocket, "PING_EVERY", 0.2)

    def silent(connection):
        accept(connection, behind=frame(TEXT, b"hello"))
        rest(connection)

    with raw_upstream(silent) as url, gateway(url) as stack, calling(stack) as websocket:
        assert websocket.recv(timeout=10) == "hello"
        assert end_of(websocket) == (1014, "the upstream is silent")
    with gateway(upstream.url) as stack, calling(stack) as websocket:
        with pytest.raises(TimeoutError):
            websocket.recv(timeout=0.8)
        websocket.send("still there")
        assert websocket.recv(timeout=10) == "still there"


# --- back-pressure ---------------------------------------------------------------------------------------------------

PIECE = bytes(range(256)) * 256
PIECES = 1024
"""Together 64 MiB; sockets on the loopback may hold some 6 MiB each."""


def settled(count: list[int]) -> int:
    """What has been counted, once nothing has been added for a while."""
    before = -1
    while before != len(count):
        before = len(count)
        time.sleep(0.3)
    return before


def test_a_slow_upstream_slows_the_caller():
    """What is not taken stays with the caller, and arrives in the end."""
    reading = threading.Event()
    missing = Queue()

    def slow(connection):
        accept(connection)
        reading.wait(20)
        # Each with 14 bytes of head and mask; and the Close.
        left = PIECES * (len(PIECE) + 14) + 8
        while left > 0 and (chunk := connection.recv(65536)):
            left -= len(chunk)
        missing.put(left)

    with raw_upstream(slow) as url, gateway(url) as stack, calling(stack) as websocket:
        sent = []

        def send():
            for number in range(PIECES):
                websocket.send(PIECE)
                sent.append(number)
            websocket.close()

        sender = threading.Thread(target=send)
        sender.start()
        assert settled(sent) < PIECES // 2
        reading.set()
        sender.join(20)
        assert missing.get(timeout=20) == 0


def test_a_slow_caller_slows_the_upstream():
    """What is not taken stays with the upstream, and arrives in the end."""
    sent = []

    def fast(connection):
        accept(connection)
        for number in range(PIECES):
            connection.sendall(frame(BINARY, PIECE))
            sent.append(number)
        connection.sendall(frame(CLOSE, b"\x03\xe8"))
        rest(connection)

    with raw_upstream(fast) as url, gateway(url) as stack, calling(stack) as websocket:
        assert settled(sent) < PIECES // 2
        for _ in range(PIECES):
            assert websocket.recv(timeout=10) == PIECE
        assert end_of(websocket) == (1000, "")


def test_an_upstream_that_takes_nothing_is_given_up():
    """After the route's time-out for writing."""

    def deaf(connection):
        accept(connection)
        time.sleep(10)

    with raw_upstream(deaf) as url, gateway(url, timeout=Timeout(write=0.3)) as stack, calling(stack) as websocket:
        with suppress(ConnectionClosed):
            for _ in range(PIECES):
                websocket.send(PIECE)
        assert end_of(websocket) == (1014, "the upstream took nothing for too long")


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_a_caller_that_leaves_behind_a_slow_upstream_is_noticed(server, monkeypatch):
    """I07: also while its last message waits to be taken; that has until the upstream would have to answer."""
    monkeypatch.setattr(engine_websocket, "CLOSE_TIMEOUT", 0.3)
    gone = threading.Event()

    def slow(connection):
        accept(connection)
        # What is on the way stays there; only that it was cut shows, at once.
        watch = select.poll()
        watch.register(connection, select.POLLHUP)
        if watch.poll(5000):
            gone.set()

    with raw_upstream(slow) as url, gateway(url, server) as stack:
        with calling(stack) as websocket:
            websocket.send(bytes(15 * 2**20))
            websocket.close()
        assert gone.wait(2)


# --- the handshake ---------------------------------------------------------------------------------------------------


def test_the_upstream_gets_a_handshake_of_its_own():
    """The token in it; of the caller's, neither credentials nor what speaks of the page and the connection."""
    requests = Queue()

    def recording(connection):
        requests.put(accept(connection, behind=frame(CLOSE)))
        rest(connection)

    fields = [
        "Cookie: session=secret",
        "Origin: https://app.example",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Sec_WebSocket_Extensions: foo",
        "X-Trace: 1",
        "x-trace: 2",
        "Proxy-Authorization: Basic x",
        "X-Forwarded-For: 1.2.3.4",
    ]
    with raw_upstream(recording) as url, gateway(f"{url}/base?key=1", headers={"X-Api": "v2"}) as stack:
        assert refusal(stack, "/idp/up/a%2Fb//c?q=%7e&r", *fields).status == 101
        request = requests.get(timeout=10)
    head = RawMessage(request, b"", b"")
    assert head.start == b"GET /base/a%2Fb//c?key=1&q=%7e&r HTTP/1.1"
    (key,) = head.all(b"sec-websocket-key")
    assert len(base64.b64decode(key)) == 16
    assert key != b"dGhlIHNhbXBsZSBub25jZQ=="
    assert head.fields == [
        (b"host", url.removeprefix("http://").encode()),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-key", key),
        (b"sec-websocket-version", b"13"),
        (b"x-trace", b"1"),
        (b"x-trace", b"2"),
        (b"x-api", b"v2"),
        (b"via", head.all(b"via")[0]),
        (b"authorization", f"Bearer {PROVIDER_TOKEN}".encode()),
    ]


def test_the_subprotocol_is_the_upstreams_choice(stack, upstream):
    """I04: of those the caller offers; and none where it chooses none."""
    with calling(stack, subprotocols=["chat.v0", "chat.v1", "chat.v2"]) as websocket:
        assert websocket.subprotocol == upstream.of(websocket).subprotocol == "chat.v2"
        assert upstream.of(websocket).request.headers["Sec-WebSocket-Protocol"] == "chat.v0, chat.v1, chat.v2"
    with calling(stack, subprotocols=["unknown"]) as websocket:
        assert websocket.subprotocol is None


def test_cookies_of_the_handshake_pass_where_the_route_lets_them():
    """As on any other answer; nothing else of the upstream's 101 is for the caller."""

    def setting(connection):
        accept(connection, b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Internal: 1", behind=frame(CLOSE))
        rest(connection)

    with raw_upstream(setting) as url:
        for allowed, expected in [(False, []), (True, [b"a=1", b"b=2"])]:
            with gateway(url, allow_set_cookie=allowed) as stack:
                answer = refusal(stack)
            assert answer.status == 101
            assert answer.all(b"set-cookie") == expected
            assert not answer.all(b"x-internal")


@pytest.mark.parametrize(
    ("target", "user", "fields", "status", "problem"),
    [
        ("/idp/up/echo", None, [], 401, "caller-unauthenticated"),
        ("/idp/up/echo?access_token=TOKEN", None, [], 401, "caller-unauthenticated"),
        ("/idp/up/echo", None, ["Authorization: Bearer x.y.z"], 401, "caller-unauthenticated"),
        ("/idp/up/admin", "alice", [], 403, "caller-forbidden"),
        ("/idp/up/echo", "bob", [], 403, "identity-not-linked"),
        ("/idp/up/../echo", "alice", [], 400, "bad-request"),
        ("/idp/other/echo", "alice", [], 404, "route-not-found"),
    ],
)
@pytest.mark.parametrize("able", [True, False])
def test_who_may_not_is_answered_and_the_upstream_never_asked(guarded, target, user, fields, status, problem, able):
    """I01: with a problem document where the server can send one, else with the 403 that servers make of a close."""
    guarded.able = able
    answer = refusal(guarded, target.replace("TOKEN", guarded.token()), *fields, user=user)
    assert answer.status == (status if able else 403)
    assert answer.problem == (problem if able else None)
    if able and status == 401:
        assert answer.all(b"www-authenticate")[0].startswith(b"Bearer")
    assert not guarded.requests


@pytest.mark.parametrize("field", ["Content-Length: 5", "Sec-WebSocket-Protocol: a b"])
def test_a_handshake_that_servers_let_pass_is_refused(upstream, field):
    """Not every server looks: a body would be taken for frames, and a malformed offer might end a line."""
    with gateway(upstream.url, SERVERS["wsproto"]) as stack:
        assert refusal(stack, "/idp/up/echo", field).problem == "bad-request"


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS)
def guarded(request):
    """A stack whose route has rules, and whose server may lack the extension for answers."""
    requests = []

    async def only_alice(caller, route):
        if caller.subject == "auth0|bob":
            raise IdentityNotLinked("not linked", connection="up")
        return Token(PROVIDER_TOKEN)

    def wrap(middleware):
        async def app(scope, receive, send):
            if scope["type"] == "websocket" and not stack.able:
                scope = {**scope, "extensions": {}}
            await middleware(scope, receive, send)

        return app

    with (
        raw_upstream(lambda connection: requests.append(read_head(connection))) as url,
        gateway(url, request.param, token_source=only_alice, paths=["/echo"], stack={"wrap": wrap}) as stack,
    ):
        stack.requests = requests
        yield stack


def test_a_refused_handshake_is_no_error_to_the_server(stack, caplog):
    """Whoever collects errors would otherwise hear of each caller without a token."""
    assert refusal(stack, user=None).status == 401
    with calling(stack) as websocket:  # by now the first is over
        websocket.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def refusing(answer: bytes) -> Callable[[socket.socket], None]:
    def refuse(connection):
        read_head(connection)
        connection.sendall(answer)

    return refuse


@pytest.mark.parametrize("status", [200, 204, 400, 403, 404, 426, 429, 500, 503])
def test_the_upstreams_refusal_is_the_callers(status):
    """With what it says, however that was framed."""
    body = b"" if status == 204 else b"2\r\nno\r\n0\r\n\r\n"
    framing = b"" if status == 204 else b"Transfer-Encoding: chunked\r\nContent-Type: text/plain\r\n"
    answer = b"HTTP/1.1 %d Whatever\r\nRetry-After: 7\r\n%b\r\n%b" % (status, framing, body)
    with raw_upstream(refusing(answer)) as url, gateway(url, SERVERS["wsproto"]) as stack:
        refused = refusal(stack)
    assert refused.status == status
    assert refused.body == (b"" if status == 204 else b"no")
    assert refused.all(b"retry-after") == [b"7"]
    assert refused.problem is None


def test_a_redirect_is_not_followed_but_led_back():
    """A token follows nobody anywhere. What is the upstream's own, the caller can follow."""
    answer = b"HTTP/1.1 302 Found\r\nLocation: /base/there\r\nContent-Length: 0\r\n\r\n"
    with raw_upstream(refusing(answer)) as url, gateway(f"{url}/base") as stack:
        refused = refusal(stack)
    assert refused.status == 302
    assert refused.all(b"location") == [b"/idp/up/there"]


SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection_terminated"),
        (b"HTTP/1.1 101 Switching", "connection_terminated"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "http_protocol_error"),
        (b"HTTP/1.1 500 Huge\r\nContent-Length: 99999999\r\n\r\n", "http_protocol_error"),
        (SWITCHING + b"\r\n", "http_upgrade_failed"),
        (SWITCHING + b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", "http_upgrade_failed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "http_upgrade_failed"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "destination_unavailable"),
    ],
)
def test_an_upstream_that_answers_nonsense_is_unreachable(answer, error):
    """A 101 counts only if it shows that the upstream has read this very handshake (RFC 6455 section 4.1)."""
    with raw_upstream(refusing(answer)) as url, gateway(url) as stack:
        refused = refusal(stack)
    assert (refused.status, refused.problem) == (502, "upstream-unreachable")
    assert refused.all(b"proxy-status") == [f"idp_middleware; error={error}".encode()]


@pytest.mark.parametrize(
    "field", [b"Sec-WebSocket-Protocol: surprise", b"Sec-WebSocket-Extensions: permessage-deflate"]
)
def test_what_was_not_offered_is_not_agreed_to(field):
    """Frames would mean something else then (RFC 6455 section 4.1)."""
    with raw_upstream(lambda connection: accept(connection, field)) as url, gateway(url) as stack:
        assert refusal(stack).problem == "upstream-unreachable"


def test_the_handshake_has_time_outs_and_errors_as_requests_have():
    """For the answer; and where nobody listens."""
    with raw_upstream(rest) as url, gateway(url, timeout=Timeout(read=0.3)) as stack:
        assert refusal(stack).problem == "upstream-timeout"
    with gateway(url) as stack:
        assert refusal(stack).problem == "upstream-unreachable"


def test_a_caller_that_leaves_during_the_handshake_closes_the_upstreams_side():
    """I07: nothing is opened for nobody."""
    asked, left = threading.Event(), threading.Event()

    def slow(connection):
        read_head(connection)
        asked.set()
        rest(connection)
        left.set()

    with raw_upstream(slow) as url, gateway(url) as stack:
        with stack.connect() as client:
            client.send(stack.raw_request("GET", "/idp/up/", *HANDSHAKE, close=False))
            assert asked.wait(10)
        assert left.wait(2)


def test_a_refused_token_is_renewed_once():
    """And the handshake tried again with the other one; a refusal that stands is the upstream's."""
    seen = []

    async def source(caller, route, *, refused=None):
        return Token("second" if refused else "first")

    def strict(connection):
        request = read_head(connection)
        seen.append(RawMessage(request, b"", b"").all(b"authorization"))
        if seen[-1] != [b"Bearer second"] or b"/never" in request:
            connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        else:
            accept(connection, request=request, behind=frame(TEXT, b"welcome") + frame(CLOSE))
            rest(connection)

    with raw_upstream(strict) as url, gateway(url, token_source=source) as stack:
        with calling(stack) as websocket:
            assert websocket.recv(timeout=10) == "welcome"
        assert seen == [[b"Bearer first"], [b"Bearer second"]]
        refused = refusal(stack, "/idp/up/never")
        assert refused.status == 401
        assert refused.all(b"proxy-status") == [b"idp_middleware; received-status=401"]


def test_messages_have_a_bound(upstream):
    """The route's for request bodies holds for what callers send: 1009 to the one, going away to the other."""
    with gateway(upstream.url, max_body=1000) as stack, calling(stack) as websocket:
        for message in ["x" * 1000, bytes(1000)]:
            websocket.send(message)
            assert websocket.recv(timeout=10) == message
        websocket.send("ü" * 501)
        assert end_of(websocket) == (1009, "messages are of 1000 bytes at most")
        assert upstream.end_of(websocket)[0] == 1001


def test_the_largest_messages_go_through(stack):
    """16 MiB, which is what servers take by default."""
    message = bytes(16 * 2**20)
    with calling(stack) as websocket:
        websocket.send(message)
        assert websocket.recv(timeout=20) == message


def test_compression_with_the_caller_is_the_servers_business(stack, upstream):
    """Nothing is offered to the upstream; what the caller and our server agree on ends with them."""
    with calling(stack, compression="deflate") as websocket:
        assert "Sec-WebSocket-Extensions" not in upstream.of(websocket).request.headers
        websocket.send("a" * 100_000)
        assert websocket.recv(timeout=10) == "a" * 100_000


def test_tls_is_verified_and_no_proxy_used(monkeypatch, tmp_path):
    """As for requests: the system's authorities, whatever the environment says of proxies."""
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ws_proxy", "wss_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with upstream_of_websockets(ssl=context) as upstream:
        url = upstream.url.replace("http://127.0.0.1", "https://localhost")
        with gateway(url) as stack:
            assert refusal(stack).problem == "upstream-unreachable"
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with gateway(url) as stack, calling(stack) as websocket:
            for message in ["hello", bytes(300_000)]:
                websocket.send(message)
                assert websocket.recv(timeout=10) == message
            websocket.close(4000, "done")
            assert upstream.end_of(websocket) == (4000, "done")


def test_the_token_is_in_no_log(caplog):
    """Not even at DEBUG, where websockets' own client would print what it sends."""

    def quiet(connection):
        accept(connection, behind=frame(TEXT, b"message-in-no-log") + frame(CLOSE))
        rest(connection)

    caplog.set_level(logging.DEBUG)
    with raw_upstream(quiet) as url, gateway(url) as stack, calling(stack) as websocket:
        caplog.clear()
        end_of(websocket)
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("uvicorn", "websockets"))]
    theirs = [record.getMessage() for record in caplog.records if record.name.startswith("websockets")]
    assert not [line for line in ours + theirs if PROVIDER_TOKEN in line]
    assert not [line for line in ours if "message-in-no-log" in line]


# --- who is calling --------------------------------------------------------------------------------------------------


def offered(token: str) -> str:
    """The token as a page offers it."""
    return "idp.bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS)
def for_browsers(request, upstream):
    with gateway(upstream.url, request.param, websocket_bearer=True) as stack:
        yield stack


def test_a_page_offers_its_token_as_a_subprotocol(for_browsers, upstream):
    """It can't set Authorization. The upstream never sees it, and the choice is never the token."""
    token = offered(for_browsers.token())
    for others, chosen in [
        (["chat.v1"], "chat.v1"),
        (["idp.bearer"], "idp.bearer"),
        (["idp.bearer", "chat.v2"], "chat.v2"),
        (["idp.bearer", "unknown"], "idp.bearer"),
        ([], None),
    ]:
        with calling(for_browsers, user=None, subprotocols=[*others, token]) as websocket:
            assert websocket.subprotocol == chosen
            headers = upstream.of(websocket).request.headers
            passed = [protocol for protocol in others if protocol != "idp.bearer"]
            assert headers.get_all("Sec-WebSocket-Protocol") == ([", ".join(passed)] if passed else [])
            assert headers.get_all("Authorization") == [f"Bearer {PROVIDER_TOKEN}"]


def test_a_token_in_a_subprotocol_has_to_be_one(for_browsers):
    """Verified as any other; and two credentials are one too many, since two readers might choose differently."""
    token = offered(for_browsers.token())

    def refused(*protocols: str, user: str | None = None) -> str | None:
        return refusal(
            for_browsers, "/idp/up/echo", f"Sec-WebSocket-Protocol: {', '.join(protocols)}", user=user
        ).problem

    assert refused(offered("x.y.z")) == "caller-unauthenticated"
    assert refused(offered(for_browsers.token(expires_in=-60))) == "caller-unauthenticated"
    assert refused(token, token) == "bad-request"
    assert refused(token, user="alice") == "bad-request"
    for malformed in ["idp.bearer.", "idp.bearer.!", "idp.bearer.a", offered("a b"), offered("a\r\nX: y")]:
        assert refused(malformed) == "bad-request"


def test_a_token_in_a_subprotocol_counts_only_where_the_route_says_so(stack, upstream):
    """Elsewhere it is no credential, but nothing for the upstream either."""
    token = offered(stack.token())
    assert refusal(stack, "/idp/up/echo", f"Sec-WebSocket-Protocol: {token}", user=None).status == 401
    with calling(stack, subprotocols=["chat.v1", token]) as websocket:
        assert upstream.of(websocket).request.headers.get_all("Sec-WebSocket-Protocol") == ["chat.v1"]


def test_a_session_is_good_for_pages_of_ours_only(upstream):
    """Browsers send cookies along with whatever WebSocket any page opens, and ask nobody first."""
    cookie = TimestampSigner("key").sign(base64.b64encode(json.dumps({"sub": "auth0|alice"}).encode())).decode()
    session = {"authenticator": SessionAuthenticator(), "wrap": lambda ours: SessionMiddleware(ours, "key")}
    with gateway(upstream.url, stack=session) as stack:
        ours = f"http://127.0.0.1:{stack.gateway.port}"
        for fields, status in [
            ([f"Origin: {ours}"], 101),
            (["Origin: https://evil.example"], 403),
            (["Origin: null"], 403),
            ([], 403),
        ]:
            assert refusal(stack, "/idp/up/echo", f"Cookie: session={cookie}", *fields, user=None).status == status


def test_the_apps_own_function_is_asked_about_the_get_that_it_is(upstream):
    """`authorize` sees a WebSocket's handshake as what it is."""
    seen = []

    async def look(caller, conn):
        seen.append((caller.subject, conn.scope["type"], conn.scope["method"], conn.url.path))
        return conn.url.path.endswith("/echo")

    with gateway(upstream.url, authorize=look) as stack:
        with calling(stack):
            assert seen == [("auth0|alice", "websocket", "GET", "/idp/up/echo")]
        assert refusal(stack, "/idp/up/other").problem == "caller-forbidden"


def test_requests_on_the_same_route_are_as_ever(stack):
    """The route relays both; the upstream here answers requests with 426."""
    assert stack.ask("GET", "/idp/up/echo").status == 426


def test_bodies_that_are_rewritten_have_nothing_to_do_with_it(upstream):
    """Messages pass as they are."""
    with gateway(upstream.url, rewrite_bodies=True) as stack, calling(stack) as websocket:
        websocket.send(upstream.url)
        assert websocket.recv(timeout=10) == upstream.url


class NoCoroutine:
    """As granian's: something to await, and nothing more."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __await__(self):
        return self.coroutine.__await__()


@pytest.mark.parametrize("late", [False, True])
async def test_servers_need_only_keep_to_the_specification(upstream, late):
    """`receive` and `send` return awaitables; messages may have one kind of content, or both with one of them None."""
    incoming: asyncio.Queue[Any] = asyncio.Queue()
    outgoing: asyncio.Queue[Any] = asyncio.Queue()

    async def alice(conn):
        return Caller("auth0|alice")

    route = ProxyRoute(upstream.url, token_source=provider_token, websocket=True)
    middleware = IdPMiddleware(routes={"up": route}, authenticator=alice)
    scope = {"type": "websocket", "path": "/idp/up/echo", "query_string": b"", "headers": [(b"host", b"x")]}
    serving = asyncio.create_task(
        middleware(scope, lambda: NoCoroutine(incoming.get()), lambda message: NoCoroutine(outgoing.put(message)))
    )
    async with asyncio.timeout(10):
        if not late:
            incoming.put_nowait({"type": "websocket.connect"})
        assert (await outgoing.get())["type"] == "websocket.accept"
        if late:
            incoming.put_nowait({"type": "websocket.connect"})
        incoming.put_nowait({"type": "websocket.receive", "text": "hello", "bytes": None})
        incoming.put_nowait({"type": "websocket.receive", "text": None, "bytes": b"hello"})
        incoming.put_nowait({"type": "websocket.receive", "bytes": b""})
        received = [await outgoing.get() for _ in range(3)]
        incoming.put_nowait({"type": "websocket.disconnect"})
        await serving
        await middleware.aclose()
    assert received == [
        {"type": "websocket.send", "text": "hello"},
        {"type": "websocket.send", "bytes": b"hello"},
        {"type": "websocket.send", "bytes": b""},
    ]


# --- the set-up ------------------------------------------------------------------------------------------------------


def test_a_route_says_what_it_lacks(monkeypatch):
    """Where it is written, and in words."""
    for options, message in [
        ({"websocket": True, "methods": ["POST"]}, "websocket: needs the method GET"),
        ({"websocket_bearer": True}, "websocket_bearer: is for a route with websocket only"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            ProxyRoute("https://api.example", token_source=provider_token, **options)
    monkeypatch.setattr("idp_middleware._routes.find_spec", lambda name: None)
    ProxyRoute("https://api.example", token_source=provider_token)
    with pytest.raises(ConfigurationError, match=r"websocket: needs the extra: .*'idp-middleware\[websocket\]'"):
        ProxyRoute("https://api.example", token_source=provider_token, websocket=True)


def test_a_file_says_it_with_a_key(tmp_path, monkeypatch):
    """`websocket = true`, as the argument is called."""
    file = tmp_path / "idp.toml"
    file.write_text(
        """
        [authenticator]
        type = "jwt"
        issuer = "http://127.0.0.1:1/"
        audience = "a"

        [sources.fixed]
        type = "static"
        value = "${IDP_TEST_TOKEN}"

        [routes.up]
        upstream = "https://api.example"
        source = "fixed"
        websocket = true
        """
    )
    monkeypatch.setenv("IDP_TEST_TOKEN", "x")
    assert load_config(file)["routes"]["up"].websocket


def test_nobody_else_pays_for_it():
    """`websockets` is an extra, and is imported for a route that wants it only."""
    check = """
import sys
from idp_middleware import IdPMiddleware, ProxyRoute, Caller, Token
async def anybody(*_): ...
def middleware(**options):
    route = ProxyRoute("https://api.example", token_source=anybody, **options)
    IdPMiddleware(routes={"up": route}, authenticator=anybody)
    return "websockets" in sys.modules
sys.exit(middleware() or not middleware(websocket=True))
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
