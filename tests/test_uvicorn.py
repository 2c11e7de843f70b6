"""`idp_middleware.uvicorn`: an answer's head leaves with what follows it, and in no other order."""

from __future__ import annotations

import asyncio
import socket

import pytest

from idp_middleware.testing import serve

ONE_WRITE = "idp_middleware.uvicorn:OneWrite"
PIECES = {
    "/short": [b"x" * 1024],
    "/long": [b"y" * 300_000],
    "/empty": [b""],
    "/several": [b"a", b"HTTP/b", b"c" * 70_000],
}
GET = b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n"


async def app(scope, receive, send):
    """Answers with the pieces of a path; with `/stream`, the first comes only once the caller has spoken again."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "at once"})
        await receive()
        return
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path == "/early":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        raise RuntimeError("broken off")
    if path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.body", "body": b"late"})
        return
    pieces = PIECES[path]
    length = str(sum(map(len, pieces))).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(request):
    with serve(app, http=ONE_WRITE, loop=request.param) as running:
        yield running


@pytest.fixture
def connection(server):
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock, sock.makefile("rb") as reader:
        yield sock, reader


def read_head(reader) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        assert line, "closed inside the head"
        head += line
    return head


@pytest.mark.parametrize("path", PIECES)
def test_answers_arrive_whole_and_in_order(connection, path):
    """Whatever is joined, copied or handed over beside: the bytes are those that uvicorn wrote."""
    sock, reader = connection
    body = b"".join(PIECES[path])
    for _ in range(3):
        sock.sendall(GET % path.encode())
        assert b"content-length: %d" % len(body) in read_head(reader)
        assert reader.read(len(body)) == body


def test_pipelined_answers_keep_their_order(connection):
    """Two heads may be written in one step; neither may overtake the other's body."""
    sock, reader = connection
    sock.sendall(b"".join(GET % path.encode() for path in PIECES) * 2)
    for pieces in [*PIECES.values()] * 2:
        read_head(reader)
        assert reader.read(sum(map(len, pieces))) == b"".join(pieces)


@pytest.mark.parametrize(("path", "times"), [("/short", 1), ("/long", 2)])
def test_a_short_answer_is_one_write(path, times):
    """The reason for all this: one system call and one packet in place of two.

    Never `writelines`, with which many a Python 3.12 and 3.13 buffers without end (CVE-2024-12254).
    """
    writes = []

    class Recording(asyncio.Transport):
        def write(self, data):
            writes.append(bytes(data))

        def writelines(self, pieces):
            raise AssertionError("the sender may never be stopped")

        def is_closing(self):
            return False

    async def main():
        from uvicorn import Config
        from uvicorn.server import ServerState

        from idp_middleware.uvicorn import OneWrite

        protocol = OneWrite(Config(app, http=ONE_WRITE, log_config=None), ServerState(), {})
        protocol.connection_made(Recording())
        protocol.data_received(GET % path.encode())
        await asyncio.gather(*protocol.tasks)

    asyncio.run(main())
    assert len(writes) == times
    assert writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"".join(writes).endswith(b"\r\n\r\n" + b"".join(PIECES[path]))


def test_a_head_without_a_body_yet_is_not_held_back(connection):
    """An event stream's caller sees that it began before there is an event."""
    sock, reader = connection
    sock.sendall(b"POST /stream HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na")
    assert read_head(reader).startswith(b"HTTP/1.1 200")
    sock.sendall(b"b")
    assert b"late" in reader.read(len(b"4\r\nlate\r\n"))


def test_a_head_is_sent_before_the_connection_breaks_off(connection):
    """As without us: the caller sees a truncated answer, not a refused connection."""
    sock, reader = connection
    sock.sendall(GET % b"/early")
    assert b"content-length: 5" in read_head(reader)
    assert reader.read() == b""


def test_websockets_are_opened_before_their_first_message(server):
    """Another protocol takes the connection over, and writes past the one that began it."""
    from websockets.sync.client import connect

    with connect(server.url.replace("http", "ws") + "/") as websocket:
        assert websocket.recv(timeout=10) == "at once"
