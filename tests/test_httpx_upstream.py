"""Any httpx transport in place of the engine: the same bytes up and down, and failures in our words."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager

import httpx
import pytest

from idp_middleware import ProxyRoute, Timeout, sources
from tests.stack import OK, eventually, raw_upstream, read_head, recording_upstream, running


@contextmanager
def gateway(url, *, transport=None, **options):
    """A stack whose one route to `url` goes through httpx."""
    routes = {"up": ProxyRoute(url, token_source=sources.Static("provider-token"), **options)}
    transport = transport or httpx.AsyncHTTPTransport(trust_env=False)
    with running(routes=lambda api, source: routes, transport=transport) as stack:
        yield stack


@pytest.fixture
def upstream():
    with recording_upstream() as upstream:
        yield upstream


def test_a_request_becomes_exactly_this(upstream):
    """Nothing is made up, re-encoded or folded, as an httpx client would."""
    with gateway(f"{upstream.url}/base") as stack:
        assert stack.ask("GET", '/idp/up/a%2Fb//|^`{}"?a=%zz', "X-A: 1", "x-a: 2").status == 200
    lines = upstream.last.head.split(b"\r\n")
    assert lines[0] == b'GET /base/a%2Fb//|^`{}"?a=%zz HTTP/1.1'
    assert [line.lower() for line in lines[1:4]] == [b"host: " + upstream.url[7:].encode(), b"x-a: 1", b"x-a: 2"]
    assert upstream.last.all(b"authorization") == [b"Bearer provider-token"]
    assert len(lines) == 8


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_framed_as_it_came(upstream, chunked):
    """Content-Length stays one, chunked stays chunked."""
    body = hashlib.shake_256(b"body").digest(150_000)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with gateway(upstream.url) as stack:
        assert stack.ask("PUT", "/idp/up/x", framing, body=sent).status == 200
    assert upstream.last.body == body
    assert upstream.last.all(b"transfer-encoding") == ([b"chunked"] if chunked else [])
    assert upstream.last.all(b"content-length") == ([] if chunked else [b"150000"])


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", 200, b"nope"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n", 302, b""),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok", 502, None),
        (b"garbage\r\n\r\n", 502, None),
        (b"", 502, None),
    ],
)
def test_an_answer_is_relayed_as_it_came_or_refused(upstream, answer, status, body):
    """Neither decoded nor followed nor tripped over."""
    upstream.answer = answer
    with gateway(upstream.url) as stack:
        relayed = stack.ask("GET", "/idp/up/x")
        assert relayed.status == status
        assert relayed.body == body if body is not None else relayed.problem == "upstream-unreachable"


def test_a_body_that_is_too_large_or_breaks_off_is_the_callers_fault(upstream):
    """The reason is passed through httpx untouched; the upstream gets no whole request."""
    with gateway(upstream.url, max_body=10) as stack:
        body = b"5\r\nhello\r\n" * 3 + b"0\r\n\r\n"
        assert stack.ask("PUT", "/idp/up/x", "Transfer-Encoding: chunked", body=body).problem == "body-too-large"
        with stack.connect() as client:
            client.send(stack.raw_request("PUT", "/idp/up/x", "Content-Length: 10", body=b"part", close=False))
        time.sleep(0.1)
    assert upstream.requests == []


@pytest.mark.parametrize("early", [False, True])
def test_a_body_that_stalls_or_breaks_off_breaks_the_answer_off(early):
    """A clean end would pass it off as whole."""

    def half(connection):
        read_head(connection)
        connection.sendall(OK.replace(b"Length: 2", b"Length: 9"))
        if not early:
            time.sleep(1)

    with raw_upstream(half) as url, gateway(url, timeout=Timeout(read=0.2)) as stack, pytest.raises(EOFError):
        stack.ask("GET", "/idp/up/x")


def test_a_caller_that_leaves_closes_the_upstream():
    """The response is let go of, and with it the connection."""
    closed = []

    def endless(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        closed.append(connection.recv(1))

    with raw_upstream(endless) as url, gateway(url) as stack:
        with stack.connect() as client:
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            assert client.socket.recv(65536)
        assert eventually(lambda: closed) == [b""]


def test_a_url_that_httpx_would_not_take_goes_all_the_same(upstream):
    """Its own limit is on URL objects; the target is bytes."""
    base, query = "b" * 1000, "a" * 65_000
    with gateway(f"{upstream.url}/?{base}") as stack:
        assert stack.ask("GET", f"/idp/up/x?{query}").status == 200
    assert upstream.targets() == [f"/x?{base}&{query}".encode()]


def test_a_mock_sees_the_url():
    """For tests of apps without a network."""
    seen = []

    def handler(request):
        seen.append(str(request.url))
        return httpx.Response(200, content=b"mocked")

    with gateway("https://api.example/base", transport=httpx.MockTransport(handler)) as stack:
        assert stack.ask("GET", "/idp/up/user?a=1").body == b"mocked"
    assert seen == ["https://api.example/base/user?a=1"]
