"""Group I: streams of events, and WebSockets where they are refused; where they are relayed: test_websocket.py."""

from __future__ import annotations

import threading
import time

import pytest
from starlette.middleware.gzip import GZipMiddleware

from idp_middleware import ProxyRoute
from tests.cases.conftest import provider_token
from tests.stack import raw_upstream, read_head, running

HANDSHAKE = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
]


@pytest.mark.parametrize("user", ["alice", None])
@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/idp/up/ws", 403),
        ("/idp/up", 403),
        ("/idp/up/../ws", 403),
        ("/idp", 404),
        ("/idp/", 404),
        ("/idp/unknown/ws", 404),
    ],
)
def test_a_websocket_under_the_prefix_is_refused_before_it_is_accepted(stack, upstream, target, status, user):
    """I01, I02: with a token or without; the app behind, which accepts any, never hears of it."""
    with stack.connect() as client:
        client.send(stack.raw_request("GET", target, *HANDSHAKE, user=user, close=False))
        answer = client.answer()
    assert answer.status == status
    assert answer.problem == ("route-not-found" if status == 404 else "caller-forbidden")
    assert upstream.requests == []


def test_other_websockets_are_the_apps(stack, upstream):
    """I01: the refusal is of what is under the prefix only."""
    with stack.connect() as client:
        client.send(stack.raw_request("GET", "/ws", *HANDSHAKE, close=False))
        assert client.answer().status == 101
    assert upstream.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Upgrade: foo/2", "Connection: upgrade"],
        ["Upgrade: websocket"],
        ["Connection: upgrade"],
    ],
)
def test_other_upgrades_are_ordinary_requests(stack, upstream, fields):
    """I02: a server may ignore Upgrade (RFC 9110 section 7.8); passed on, the upstream would switch under us."""
    assert stack.ask("GET", "/idp/up/x", *fields).status == 200
    assert [name for name, _ in upstream.last.fields] == [b"host", b"via", b"authorization"]


@pytest.mark.parametrize("compressing", [False, True])
def test_each_event_arrives_as_it_is_sent(parser, compressing):
    """I09: also through a compressing middleware outside; no length, and the content type as it was."""
    arrived = threading.Semaphore(0)

    def events(connection):
        read_head(connection)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(4):
            event = b"id: %d\ndata: x\n\n" % number
            connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
            # Whatever held it back until the next one would now wait for ever.
            if not arrived.acquire(timeout=5):
                return
        connection.sendall(b"0\r\n\r\n")

    wrap = GZipMiddleware if compressing else lambda middleware: middleware
    with raw_upstream(events) as url:
        routes = {"up": ProxyRoute(url, token_source=provider_token)}
        with running(http=parser, routes=lambda api, _: routes, wrap=wrap) as stack, stack.connect() as client:
            fields = ["Accept: text/event-stream", "Accept-Encoding: gzip"]
            asked = time.monotonic()
            client.send(stack.raw_request("GET", "/idp/up/events", *fields, close=False))
            received = b""
            for number in range(4):
                while b"id: %d\ndata: x\n\n" % number not in received:
                    received += client.socket.recv(65536)
                arrived.release()
            assert time.monotonic() - asked < 2
    head = received.partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: text/event-stream; charset=utf-8" in head
    assert b"content-length" not in head
    assert b"content-encoding" not in head


def test_a_stream_of_events_is_taken_up_where_it_was_left(stack, upstream):
    """I11: the upstream knows which events came after."""
    assert stack.ask("GET", "/idp/up/events", "Last-Event-ID: 41", "Accept: text/event-stream").status == 200
    assert upstream.last.fields[1:3] == [(b"last-event-id", b"41"), (b"accept", b"text/event-stream")]


def test_a_stream_outlives_the_token_that_began_it(parser):
    """I08: the caller was verified when it began, as with any download; a new request needs a new token."""

    def events(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        time.sleep(3.2)
        connection.sendall(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")

    with raw_upstream(events) as url:
        routes = {"up": ProxyRoute(url, token_source=provider_token)}
        with running(http=parser, routes=lambda api, _: routes) as stack, stack.connect() as client:
            # Ten seconds ago is within the tolerance for clocks that differ; these have two to three more.
            token = f"Authorization: Bearer {stack.token(expires_in=-7)}"
            client.send(stack.raw_request("GET", "/idp/up/events", token, user=None, close=False))
            assert client.answer().body == b"data: 1\n\n"
            client.send(stack.raw_request("GET", "/idp/up/events", token, user=None, close=False))
            assert client.answer().problem == "caller-unauthenticated"
