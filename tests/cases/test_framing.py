"""Group C: where a request's body ends; nothing a caller sends becomes a second request."""

from __future__ import annotations

import gzip
import hashlib
import socket
import threading
import time
from contextlib import suppress

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from idp_middleware import ProxyRoute, Token
from tests.cases.conftest import provider_token
from tests.stack import OK, eventually, raw_upstream, read_head, running


@pytest.fixture(scope="module")
def routes(recorder):
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "FOO-BAR"]
    return {"up": ProxyRoute(f"{recorder.url}/base", token_source=provider_token, methods=methods)}


def framing(message) -> list[tuple[bytes, bytes]]:
    return [field for field in message.fields if field[0] in (b"content-length", b"transfer-encoding")]


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS", "POST"])
def test_a_request_without_a_body_announces_none(stack, upstream, method):
    """C03: a Transfer-Encoding on a GET makes some servers refuse it, and keeps others waiting."""
    assert stack.ask(method, "/idp/up/x").status == 200
    assert (framing(upstream.last), upstream.last.framed) == ([], b"")


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT"])
def test_an_empty_body_is_announced_as_it_came(stack, upstream, method):
    """C04: POST without Content-Length is answered with 411 by some."""
    assert stack.ask(method, "/idp/up/x", "Content-Length: 0").status == 200
    assert framing(upstream.last) == [(b"content-length", b"0")]


@pytest.mark.parametrize("size", [1, 70_000, 2**20])
def test_a_body_with_a_length_keeps_it(stack, upstream, size):
    """C01: small ones are sent along with their head, large ones streamed; the bytes are the same."""
    body = hashlib.shake_256(b"body").digest(size)
    assert stack.ask("POST", "/idp/up/x", f"Content-Length: {size}", body=body).status == 200
    assert framing(upstream.last) == [(b"content-length", b"%d" % size)]
    assert upstream.last.body == body


def test_a_chunked_body_stays_chunked(stack, upstream):
    """C02: and has no Content-Length beside it."""
    pieces = [b"one", b"two", b"3" * 5000, b"\x00\xff", b"five"]
    assert stack.ask("POST", "/idp/up/x", "Transfer-Encoding: chunked", body=chunked(*pieces)).status == 200
    assert framing(upstream.last) == [(b"transfer-encoding", b"chunked")]
    assert upstream.last.body == b"".join(pieces)
    assert upstream.last.framed.endswith(b"\r\n0\r\n\r\n")


def test_an_empty_chunked_body_is_one(stack, upstream):
    """C02: it is not the same as none."""
    assert stack.ask("POST", "/idp/up/x", "Transfer-Encoding: chunked", body=chunked()).status == 200
    assert (framing(upstream.last), upstream.last.framed) == ([(b"transfer-encoding", b"chunked")], b"0\r\n\r\n")


def test_a_get_may_have_a_body(stack, upstream):
    """C03: some search APIs want one."""
    assert stack.ask("GET", "/idp/up/x", "Content-Length: 4", body=b"body").status == 200
    assert upstream.last.body == b"body"


SMUGGLED = b"GET /idp/up/smuggled HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n"

TRANSFER_ENCODINGS = [
    "Transfer-Encoding: xchunked",
    " Transfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding:chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
    "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: CHUNKED",
    "TRANSFER-ENCODING: chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding: 'chunked'",
    'Transfer-Encoding: "chunked"',
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: chunked ",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding:",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding\r\n: chunked",
    "Transfer-Encoding: x\r\n chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\r\n\rTransfer-Encoding: chunked",
    "Foo: bar\r\n\tTransfer-Encoding: chunked",
    "Content-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 0",
    "Content-Length: 0\r\nTransfer-Encoding: chunked",
    "Trailer: Transfer-Encoding\r\nTransfer-Encoding: chunked",
    "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
    "Connection: Content-Length",
    *(
        mutation.replace("?", chr(byte))
        for byte in (0x00, 0x01, 0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x1F, 0x20, 0x7F, 0x80, 0xA0, 0xFF)
        for mutation in ("Transfer-Encoding:?chunked", "Transfer-Encoding: chunked?", "Transfer-Encoding?: chunked")
    ),
]


@pytest.mark.parametrize("transfer_encoding", TRANSFER_ENCODINGS, ids=ascii)
def test_no_spelling_of_transfer_encoding_makes_one_request_two(stack, upstream, transfer_encoding):
    """C07: beside a Content-Length; a front and a back server that disagree is all that smuggling needs."""
    smuggled = SMUGGLED % stack.token().encode()
    body = b"0\r\n\r\n" + smuggled
    fields = [transfer_encoding, f"Content-Length: {len(body)}"]
    with stack.connect() as client:
        client.send(stack.raw_request("POST", "/idp/up/x", *fields, body=body))
        answers = client.rest()
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"/base/smuggled" not in upstream.targets()
    if upstream.requests:
        assert answers.startswith(b"HTTP/1.1 200 ")
        assert framing(upstream.last) == [(b"content-length", b"%d" % len(body))]
        assert upstream.last.body == body
        assert not any(b"transfer" in name for name, _ in upstream.last.fields)
    else:
        assert answers.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("transfer_encoding", TRANSFER_ENCODINGS, ids=ascii)
def test_a_body_framed_in_doubt_is_refused_or_framed_anew(stack, upstream, transfer_encoding):
    """C07: without a Content-Length; what follows an unread body must not be read as a request with a token."""
    with stack.connect() as client:
        client.send(stack.raw_request("POST", "/idp/up/x", transfer_encoding, body=chunked(b"body", SMUGGLED)))
        answers = client.rest()
    assert b"/base/smuggled" not in upstream.targets()
    assert len(upstream.requests) <= 1
    if upstream.requests:
        assert (framing(upstream.last), upstream.last.body) in (
            ([(b"transfer-encoding", b"chunked")], b"body" + SMUGGLED),
            ([(b"content-length", b"0")], b""),
            ([], b""),
        )
    assert answers.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("field", ["Content-Length:\t3 \t", "content-length:3 ", "Transfer-Encoding:chunked  "])
def test_white_space_around_a_value_is_no_part_of_it(stack, upstream, field):
    """C08: RFC 9112 section 5.1, and one parser leaves it there."""
    body = b"abc" if "ength" in field else chunked(b"abc")
    assert stack.ask("POST", "/idp/up/x", field, body=body).status == 200
    assert upstream.last.body == b"abc"


@pytest.mark.parametrize(
    "lengths",
    [
        ["+3"],
        ["-1"],
        ["1_0"],
        ["3,3"],
        ["3, 3"],
        ["3", "3"],
        ["3", "4"],
        ["4", "3"],
        ["0x3"],
        ["3.0"],
        ["3 3"],
        [""],
        ["\xb2"],
        ["03"],
        ["99999999999999999999999"],
        ["3", ""],
    ],
    ids=ascii,
)
def test_a_doubtful_length_is_refused_or_normalized(stack, upstream, lengths):
    """C08: RFC 9112 section 6.3; never passed on as it came."""
    body = b"abcGET /idp/up/smuggled HTTP/1.1\r\n"
    fields = [f"Content-Length: {length}" for length in lengths]
    with stack.connect() as client:
        client.send(stack.raw_request("POST", "/idp/up/x", *fields, body=body))
        answers = client.rest()
    assert b"/base/smuggled" not in upstream.targets()
    if upstream.requests:
        assert answers.startswith(b"HTTP/1.1 200 ")
        assert framing(upstream.last) == [(b"content-length", b"3")]
        assert upstream.last.body == b"abc"
    else:
        assert answers.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("size", ["3;a=b", '3;a="b;c"', "0003", "00000000000000000003", "3 "])
def test_how_chunks_were_written_is_not_passed_on(stack, upstream, size):
    """C09: extensions and leading zeros are how parsers are led apart."""
    answer = stack.ask("POST", "/idp/up/x", "Transfer-Encoding: chunked", body=f"{size}\r\nabc\r\n0\r\n\r\n".encode())
    if answer.status == 200:
        assert upstream.last.framed == b"3\r\nabc\r\n0\r\n\r\n"
    else:
        assert answer.status == 400
        assert upstream.requests == []


@pytest.mark.parametrize("size", ["0x3", "+3", "-3", "2", "", "g", "3.0", "f" * 30])
def test_a_malformed_chunk_is_no_whole_body(stack, upstream, size):
    """C09: the upstream must not take what came so far for all of it."""
    with stack.connect() as client:
        body = f"{size}\r\nabc\r\n0\r\n\r\n".encode()
        client.send(stack.raw_request("POST", "/idp/up/x", "Transfer-Encoding: chunked", body=body))
        assert not client.rest().startswith(b"HTTP/1.1 200 ")
    time.sleep(0.02)
    assert upstream.requests == []


def test_an_upstream_that_reads_slowly_slows_the_caller(parser):
    """C12: what is held for it is bounded, however large the upload."""
    size, digest = 48_000_000, hashlib.sha256()
    may_read = threading.Event()

    def slow(connection):
        head = read_head(connection)
        may_read.wait(20)
        left = size - len(head.partition(b"\r\n\r\n")[2])
        digest.update(head.partition(b"\r\n\r\n")[2])
        while left and (chunk := connection.recv(1 << 20)):
            digest.update(chunk)
            left -= len(chunk)
        connection.sendall(OK)

    body = bytes(range(256)) * (size // 256)
    with raw_upstream(slow) as url:
        routes = {"up": ProxyRoute(url, token_source=provider_token)}
        with running(http=parser, routes=lambda api, source: routes) as stack, stack.connect() as client:
            client.send(stack.raw_request("PUT", "/idp/up/x", f"Content-Length: {size}", close=False))
            sent = 0
            client.socket.settimeout(0.5)
            with suppress(TimeoutError):
                while sent < size:
                    sent += client.socket.send(body[sent : sent + 262_144])
            # Mostly the kernel's own buffers on the four ends.
            assert sent < 30_000_000
            may_read.set()
            client.socket.settimeout(20)
            client.socket.sendall(memoryview(body)[sent:])
            assert client.answer().status == 200
    assert digest.digest() == hashlib.sha256(body).digest()


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_trailers_of_a_request_are_no_header_fields(stack, upstream, parser, announced, apart):
    """C18: RFC 9110 section 6.5.1. One server appends them to the header section, at once if they are already there."""
    fields = ["Transfer-Encoding: chunked", *(["Trailer: X-Checksum, X-User"] if announced else [])]
    pieces = [
        stack.raw_request("POST", "/idp/up/x", *fields, body=b"4\r\nbody\r\n0\r\n", close=False),
        b"X-Checksum: 1\r\nx-user: admin\r\n\r\n",
    ]
    with stack.connect() as client:
        for piece in pieces if apart else [b"".join(pieces)]:
            client.send(piece)
            time.sleep(0.05 if apart else 0)
        assert client.answer().status == 200
    assert upstream.last.framed == b"4\r\nbody\r\n0\r\n\r\n"
    names = {name for name, _ in upstream.last.fields}
    assert b"trailer" not in names
    if announced or apart or parser == "h11":
        assert not names & {b"x-checksum", b"x-user"}


def test_a_trailer_is_no_credential(stack, upstream):
    """C18: announced or not, together with its request or after it; nor does it take one away."""
    trailer = f"Authorization: Bearer {stack.token('bob')}\r\n\r\n".encode()
    with stack.connect() as client:
        client.send(stack.raw_request("POST", "/idp/up/x", "Transfer-Encoding: chunked", close=False) + b"0\r\n")
        time.sleep(0.05)
        client.send(trailer)
        assert client.answer().status == 200
    assert upstream.last.all(b"authorization") == [b"Bearer provider-token-of-alice"]


def test_expect_with_an_empty_or_a_slow_body_does_not_hang(stack, upstream):
    """C20: whoever waits for a 100 gets one, or its answer."""
    assert stack.ask("POST", "/idp/up/x", "Expect: 100-continue", "Content-Length: 0").status in (100, 200)
    eventually(lambda: upstream.requests)
    upstream.reset()
    with stack.connect(timeout=5) as client:
        client.send(stack.raw_request("POST", "/idp/up/x", "Expect: 100-continue", "Content-Length: 4", close=False))
        assert client.answer(bodiless=True).status == 100
        for byte in b"body":
            time.sleep(0.03)
            client.send(bytes([byte]))
        assert client.answer().status == 200
    assert (upstream.last.body, upstream.last.all(b"expect")) == (b"body", [])


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"a=1&a=2&b=%zz+%20&c"),
        (
            'multipart/form-data; boundary="--b"',
            b'----b\r\nContent-Disposition: form-data; name="f"; filename="\xff"\r\n\r\n\x00\r\n----b--\r\n',
        ),
        ("application/json", b'{"a": 1,  "a": 2}\n'),
    ],
)
def test_bodies_are_never_parsed(stack, upstream, content_type, body):
    """C21: what is parsed and written again is no longer what was signed or meant."""
    fields = [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    assert stack.ask("POST", "/idp/up/x", *fields, body=body).status == 200
    assert upstream.last.body == body
    assert upstream.last.all(b"content-type") == [content_type.encode()]


def test_a_compressed_body_stays_compressed(stack, upstream):
    """C22: it is the upstream's to inflate."""
    body = gzip.compress(b"x" * 10_000)
    fields = ["Content-Encoding: gzip", f"Content-Length: {len(body)}"]
    assert stack.ask("POST", "/idp/up/x", *fields, body=body).status == 200
    assert (upstream.last.body, upstream.last.all(b"content-encoding")) == (body, [b"gzip"])


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("size", [4, 200_000])
def test_a_middleware_outside_that_has_read_the_body_hands_it_on(parser, routes, upstream, reads, size):
    """C23: Starlette's BaseHTTPMiddleware wraps the channel we read from."""
    seen = []

    async def dispatch(request, call_next):
        if reads:
            seen.append(len(await request.body()))
        return await call_next(request)

    wrap = lambda middleware: BaseHTTPMiddleware(middleware, dispatch=dispatch)  # noqa: E731
    with running(http=parser, routes=lambda api, source: routes, wrap=wrap) as stack:
        for _ in range(2):
            assert stack.ask("PUT", "/idp/up/x", f"Content-Length: {size}", body=b"x" * size).status == 200
            assert upstream.last.body == b"x" * size
        assert stack.ask("GET", "/idp/up/x").status == 200
    assert len(upstream.requests) == 3
    assert seen == ([size, size, 0] if reads else [])


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE", "PROPFIND", "FOO-BAR"])
def test_a_method_that_the_route_takes_goes_with_its_body(stack, upstream, parser, method):
    """C25: WebDAV's, and any other that a parser knows."""
    answer = stack.ask(method, "/idp/up/x", "Content-Length: 4", body=b"body")
    if method == "FOO-BAR" and parser == "httptools":
        assert answer.status == 400
        return
    assert answer.status == 200
    assert upstream.last.start == f"{method} /base/x HTTP/1.1".encode()
    assert upstream.last.body == b"body"


def test_requests_on_one_connection_keep_apart(stack, upstream):
    """C19: bodies of every framing one after the other, each to its own request."""
    with stack.connect() as client:
        parts = [
            stack.raw_request("POST", "/idp/up/1", "Content-Length: 3", body=b"one", close=False),
            stack.raw_request("POST", "/idp/up/2", "Transfer-Encoding: chunked", body=chunked(b"two"), close=False),
            stack.raw_request("GET", "/idp/up/3", user="bob", close=False),
            stack.raw_request("HEAD", "/idp/up/4", close=False),
            stack.raw_request("PUT", "/idp/up/5", "Content-Length: 0", close=False),
        ]
        upstream.answer = lambda request: (
            b"HTTP/1.1 200 OK\r\nX-Target: %b\r\nContent-Length: 2\r\n\r\n%b"
            % (request.target, b"" if request.start.startswith(b"HEAD") else b"ok")
        )
        client.send(b"".join(parts))
        for number in range(1, 6):
            assert client.answer(bodiless=number == 4).all(b"x-target") == [b"/base/%d" % number]
    assert [request.body for request in upstream.requests] == [b"one", b"two", b"", b"", b""]
    assert upstream.requests[2].all(b"authorization") == [b"Bearer provider-token-of-bob"]


@pytest.mark.parametrize("status", [413, 401, 200])
@pytest.mark.parametrize("closes", [True, False])
def test_an_answer_before_the_end_of_an_upload_is_relayed(parser, status, closes):
    """C12, C16: the upstream has seen enough; the rest is neither sent for nothing nor read as a request."""

    def early(connection):
        read_head(connection)
        close = b"Connection: close\r\n" if closes else b""
        connection.sendall(b"HTTP/1.1 %d Early\r\n%bContent-Length: 4\r\n\r\nseen" % (status, close))
        if closes:
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while connection.recv(65536):
                pass

    async def always_the_same(caller, route, *, refused=None):
        return Token("always-the-same")

    with raw_upstream(early) as url:
        routes = {"up": ProxyRoute(url, token_source=always_the_same)}
        with running(http=parser, routes=lambda api, source: routes) as stack, stack.connect() as client:
            client.send(stack.raw_request("PUT", "/idp/up/x", "Content-Length: 1000000", close=False))
            client.send(b"x" * 300_000)
            answer = client.answer()
            assert (answer.status, answer.body) == (status, b"seen")
            with suppress(ConnectionError):
                client.send(b"x" * 700_000)
            assert stack.ask("PUT", "/idp/up/x", "Content-Length: 2", body=b"xx").status == status


def test_an_upload_is_never_whole_before_its_end(parser):
    """C11: seen byte by byte: no last chunk, no connection kept, when the caller goes in the middle."""
    received: list[bytes] = []
    gone = threading.Event()

    def reads(connection):
        with connection.makefile("rb") as stream:
            while chunk := stream.read1():
                received.append(chunk)
        gone.set()

    with raw_upstream(reads) as url:
        routes = {"up": ProxyRoute(url, token_source=provider_token)}
        with running(http=parser, routes=lambda api, source: routes) as stack:
            client = stack.connect()
            client.send(
                stack.raw_request("PUT", "/idp/up/x", "Transfer-Encoding: chunked", close=False, body=b"4\r\nbody\r\n")
            )
            eventually(lambda: b"body" in b"".join(received))
            client.socket.shutdown(socket.SHUT_RDWR)
            client.close()
            assert gone.wait(5)
    assert not b"".join(received).endswith(b"0\r\n\r\n")
