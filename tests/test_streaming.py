"""Bodies in both directions: streamed, bounded, and never passed off as whole when they are not."""

from __future__ import annotations

import hashlib
import socket
import threading
import time

import httpx
import pytest

from idp_middleware import ProxyRoute, Timeout, _inbound, sources
from tests.stack import PARSERS, USERS, eventually, raw_upstream, read_answers, read_head, running


@pytest.fixture(params=PARSERS)
def stack(request):
    with running(http=request.param) as stack:
        yield stack


def upstream_route(url: str, **options):
    """Routes for an upstream that is not the provider double."""
    return lambda api, source: {"up": ProxyRoute(url, token_source=sources.Static("t"), **options)}


def test_the_first_byte_arrives_before_the_last_is_sent(stack):
    """D15: streams of events and progress are useless in one piece."""
    with stack.client() as client, client.stream("GET", "/idp/github/slow?chunks=4&delay=0.3") as answer:
        start = time.monotonic()
        chunks = answer.iter_raw()
        next(chunks)
        first = time.monotonic() - start
        for _ in chunks:
            pass
        assert time.monotonic() - start - first > 0.5
        assert first < 0.5


def test_server_sent_events_arrive_one_by_one(stack):
    """I09: the same for EventSource, which needs its content type untouched and no length."""
    with stack.client() as client, client.stream("GET", "/idp/github/events?chunks=3&delay=0.2") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in answer.headers
        arrived = [time.monotonic() for _ in answer.iter_raw()]
    assert len(arrived) >= 3
    assert arrived[-1] - arrived[0] > 0.3


@pytest.mark.parametrize("path", ["bytes", "chunked"])
def test_a_large_download_arrives_whole(stack, path):
    """With a length or without."""
    size = 5_000_000
    with stack.client() as client:
        answer = client.get(f"/idp/github/{path}/{size}")
    assert len(answer.content) == size
    assert ("content-length" in answer.headers) == (path == "bytes")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_arrives_whole_and_framed_as_it_came(stack, chunked):
    """C01, C02: a length stays one, chunked stays chunked; never both, or two servers disagree on where it ends."""
    body = b"".join(hashlib.sha256(str(i).encode()).digest() * 1024 for i in range(100))

    def pieces():
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    with stack.client() as client:
        answer = client.put("/idp/github/upload", content=pieces() if chunked else body)
    assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()
    seen = stack.provider.last
    assert seen.header("transfer-encoding") == ("chunked" if chunked else None)
    assert seen.header("content-length") == (None if chunked else str(len(body)))


def leave(sock: socket.socket) -> float:
    sock.close()
    return time.monotonic()


def test_a_client_that_leaves_before_the_answer_closes_the_upstream_within_a_second(stack):
    """E08: nobody is waiting any more; the provider should not work on."""
    stack.provider.stall("/user", 20)
    with socket.create_connection(("127.0.0.1", stack.gateway.port)) as sock:
        sock.sendall(stack.raw_request("GET", "/idp/github/user", close=False))
        eventually(lambda: stack.provider.requests)
        time.sleep(0.2)
        left = leave(sock)
    eventually(lambda: stack.provider.last.disconnected, within=10)
    assert time.monotonic() - left < 1


def test_a_client_that_leaves_in_the_middle_of_a_stream_closes_the_upstream_within_a_second(stack):
    """E09: else an abandoned stream is drained to its end into nothing."""
    with socket.create_connection(("127.0.0.1", stack.gateway.port)) as sock:
        sock.sendall(stack.raw_request("GET", "/idp/github/events?chunks=1000&delay=0.1", close=False))
        assert b"200 OK" in sock.recv(65536)
        time.sleep(0.3)
        left = leave(sock)
    eventually(lambda: stack.provider.last.disconnected, within=10)
    assert time.monotonic() - left < 1


def test_a_client_that_leaves_in_the_middle_of_an_upload_leaves_no_whole_body_behind(stack):
    """C11: a truncated upload that ends cleanly would be stored as if it were whole."""
    for framing, part in (("Content-Length: 1000000", b"y" * 5000), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n")):
        stack.provider.clear()
        with socket.create_connection(("127.0.0.1", stack.gateway.port)) as sock:
            sock.sendall(stack.raw_request("PUT", "/idp/github/upload", framing, close=False) + part)
            eventually(lambda: stack.provider.requests and stack.provider.last.size)
            left = leave(sock)
        eventually(lambda: stack.provider.last.disconnected, within=10)
        assert time.monotonic() - left < 1
        assert not stack.provider.last.complete
    with stack.client() as client:
        assert client.get("/idp/github/user").status_code == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="asks Linux for a connection's state")
def test_an_upstream_that_does_not_read_is_given_up_with_whatever_is_buffered_for_it():
    """The write time-out bounds it; a graceful close would wait behind bytes that nobody takes."""
    upstreams: list[socket.socket] = []
    done = threading.Event()

    def stuck(connection):
        read_head(connection)
        upstreams.append(connection)
        done.wait(20)

    def established() -> bool:
        return upstreams[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1

    routes = lambda url: upstream_route(url, timeout=Timeout(write=0.5))  # noqa: E731
    with raw_upstream(stuck) as url, running(routes=routes(url)) as stack, stack.client() as client:
        answer = client.put("/idp/up/x", content=b"x" * 20_000_000)
        assert answer.status_code == 504
        eventually(lambda: not established())
        done.set()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort",
    ],
)
@pytest.mark.parametrize("http", PARSERS)
def test_an_upstream_that_dies_in_the_middle_of_its_body_breaks_the_answer_off(head, http):
    """D12: a clean end would pass half a file off as whole (RFC 9112 section 8)."""

    def dies(connection):
        read_head(connection)
        connection.sendall(head)
        time.sleep(0.1)

    with raw_upstream(dies) as url, running(routes=upstream_route(url), http=http) as stack, stack.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/idp/up/x")
        answer = stack.raw(stack.raw_request("GET", "/idp/up/x"))
        assert answer.endswith((b"short", b"short\r\n"))
        assert not answer.endswith(b"0\r\n\r\n")


def test_an_upstream_that_stalls_is_504_before_its_answer_and_a_break_within():
    """Bounded waits, on both sides of the line."""

    def stalls(connection):
        if b"/early" in read_head(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        time.sleep(3)

    with raw_upstream(stalls) as url:
        routes = upstream_route(url, timeout=Timeout(read=0.3))
        with running(routes=routes) as stack, stack.client() as client:
            answer = client.get("/idp/up/late")
            assert answer.status_code == 504
            assert answer.json()["type"].endswith("upstream-timeout")
            with pytest.raises(httpx.RemoteProtocolError):
                client.get("/idp/up/early")


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", 304, b""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok", 299, b"ok"),
        (b"HTTP/1.1 520 Odd\r\nContent-Length: 2\r\n\r\nok", 520, b"ok"),
        (b"garbage\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 502, None),
        (b"HTTP/1.1 407 Proxy\r\nContent-Length: 2\r\n\r\nok", 502, None),
        (b"HTTP/1.1 421 Misdirected\r\nContent-Length: 2\r\n\r\nok", 502, None),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok", 502, None),
        (b"", 502, None),
    ],
)
@pytest.mark.parametrize("http", PARSERS)
def test_odd_answers_are_relayed_or_502(head, status, body, http):
    """D07, D14, D16, D18, D20, E02, E18: what HTTP allows passes; anything else is no answer, and stays inside."""

    def answers(connection):
        read_head(connection)
        connection.sendall(head)

    with (
        raw_upstream(answers) as url,
        running(routes=upstream_route(url), http=http) as stack,
        stack.client() as client,
    ):
        for _ in range(2):
            answer = client.get("/idp/up/x")
            assert answer.status_code == status
            if body is None:
                assert answer.json()["type"].endswith("upstream-unreachable")
            else:
                assert answer.content == body


def test_head_keeps_the_length_and_has_no_body(stack):
    """D06: and the connection goes on: a body that is announced and not sent would shift every later answer."""
    with stack.client() as client:
        for _ in range(3):
            answer = client.head("/idp/github/bytes/1234")
            assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "1234", b"")
        assert client.get("/idp/github/user").json()["login"] == "alice"


@pytest.mark.parametrize("http", PARSERS)
def test_a_body_over_the_limit_is_413(http):
    """C17: announced or not; and what was still to come is not read as the next request."""
    routes = lambda api, source: {  # noqa: E731
        "up": ProxyRoute(api, token_source=sources.Static(USERS["alice"]), max_body=1000)
    }
    with running(routes=routes, http=http) as stack, stack.client() as client:
        assert client.put("/idp/up/upload", content=b"x" * 1000).status_code == 200
        stack.provider.clear()
        refused = client.put("/idp/up/upload", content=b"x" * 1001)
        assert (refused.status_code, refused.json()["type"]) == (413, "urn:idp-middleware:problem:body-too-large")
        assert stack.provider.requests == []
        refused = client.put("/idp/up/upload", content=iter([b"x" * 600, b"x" * 600]))
        assert refused.status_code == 413
        assert not any(request.complete for request in stack.provider.requests)


def test_an_early_refusal_leaves_no_second_request_behind(stack):
    """C16: the unread body looks like a request; it must not be served as one."""
    smuggled = b"GET /idp/github/user HTTP/1.1\r\nHost: x\r\n\r\n"
    head = stack.raw_request("POST", "/idp/github/x", f"Content-Length: {len(smuggled)}", user=None, close=False)
    with socket.create_connection(("127.0.0.1", stack.gateway.port)) as sock:
        sock.sendall(head)
        time.sleep(0.2)
        sock.sendall(smuggled)
        answers = read_answers(sock)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert answers.startswith(b"HTTP/1.1 401 ")


def test_pipelined_requests_get_their_own_tokens_in_order(stack):
    """C19: one connection of a shared client, two users."""
    first = stack.raw_request("GET", "/idp/github/user", user="alice", close=False)
    second = stack.raw_request("GET", "/idp/github/user", user="bob")
    answers = stack.raw(first + second)
    assert answers.index(b'"alice"') < answers.index(b'"bob"')
    assert [request.bearer for request in stack.provider.requests] == [USERS["alice"], USERS["bob"]]


def test_a_body_that_stops_short_of_what_expect_promised_does_not_hang(stack):
    """A24: 100-continue is between the caller and us: the body is asked for, and delivered once."""
    with socket.create_connection(("127.0.0.1", stack.gateway.port)) as sock:
        sock.sendall(stack.raw_request("PUT", "/idp/github/upload", "Expect: 100-continue", "Content-Length: 5"))
        sock.settimeout(5)
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"hello")
        assert b'"size": 5' in (answer := read_answers(sock)) or b'"size":5' in answer
    assert stack.provider.last.header("expect") is None


@pytest.mark.parametrize("authorization", ["Bearer nonsense", None])
def test_an_answer_to_an_upload_under_way_is_not_lost(stack, authorization):
    """What arrives at a connection that is closed already resets it, and takes along what was not read yet."""
    head = "POST /idp/github/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n"
    head += f"Authorization: {authorization}\r\n" if authorization else ""
    with socket.create_connection(("127.0.0.1", stack.gateway.port), 10) as client:
        client.sendall(head.encode() + b"\r\n" + b"x" * 100)
        # By now, the answer is on its way.
        time.sleep(0.3)
        for _ in range(6):
            client.sendall(b"x" * 99_983)
            time.sleep(0.02)
        client.sendall(b"xx")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401")
    assert answer.endswith(b"}")


@pytest.mark.parametrize("body", [b"", b"x" * 100])
def test_the_rest_of_a_body_is_not_waited_for_for_long(stack, body):
    """A caller who sends no more could hold the connection."""
    with socket.create_connection(("127.0.0.1", stack.gateway.port), 10) as client:
        client.sendall(b"POST /idp/github/x HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n\r\n" + body)
        start = time.monotonic()
        assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 401")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked", "Content-Length: 5"])
def test_a_caller_who_stops_in_the_middle_of_a_body_is_400_and_lets_go_of_the_upstream(stack, framing, monkeypatch):
    """Silent uploads would take one upstream connection each, until there are none for anybody."""
    monkeypatch.setattr(_inbound, "PATIENCE", 0.4)
    part = b"3\r\nabc\r\n" if "chunked" in framing else b"abc"
    with socket.create_connection(("127.0.0.1", stack.gateway.port), 10) as sock:
        sock.sendall(stack.raw_request("PUT", "/idp/github/upload", framing, close=False) + part)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"bad-request" in answer
    eventually(lambda: all(request.disconnected for request in stack.provider.requests))
    assert not any(request.complete for request in stack.provider.requests)


def test_a_caller_who_stops_reading_lets_go_of_the_upstream(stack, monkeypatch):
    """So would downloads that nobody takes."""
    monkeypatch.setattr(_inbound, "PATIENCE", 0.4)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.connect(("127.0.0.1", stack.gateway.port))
        sock.sendall(stack.raw_request("GET", "/idp/github/bytes/50000000", close=False))
        assert b"200 OK" in sock.recv(1024)
        # More than fits into all buffers: it is over only once the connection is.
        eventually(lambda: stack.provider.last.disconnected or stack.provider.last.answered, within=10)
    with stack.client() as client:
        assert client.get("/idp/github/user").status_code == 200
