"""What is made of an upstream's bytes, and what is refused."""

from __future__ import annotations

import asyncio

import pytest

from idp_middleware.errors import UpstreamAborted, UpstreamUnreachable

from .conftest import fetch, get, whole

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"content-length: 0\r\n\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def says(*pieces, close=False):
    """Answers each request with pieces, each its own packet; then closes, or waits to be closed."""

    async def handler(peer):
        while True:
            await peer.head()
            for piece in pieces:
                await peer.say(piece)
                await asyncio.sleep(0.005 if len(pieces) > 1 else 0)
            if close:
                return

    return handler


async def test_head_and_small_body_are_whole_at_once(engine, serve):
    """One packet in, one message out: the relay then sends one, and asks for nothing more."""
    upstream = await serve(says(OK + b"content-length: 2\r\n\r\nok"))
    response = await get(engine, upstream)
    assert response.complete
    # Runs to its end without ever waiting.
    with pytest.raises(StopIteration) as stop:
        response.read().send(None)
    assert stop.value.value == b"ok"
    assert await response.read() == b""


async def test_head_is_relayed_as_it_came_with_names_in_lower_case(engine, serve):
    """ASGI wants lower case; order, duplicates and bytes stay (Set-Cookie must never be joined)."""
    upstream = await serve(
        says(OK + b"Set-Cookie: a=1\r\nX-B:  \xe9\xff\tz\r\nSET-COOKIE: b=2\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n")
    )
    response = await get(engine, upstream)
    assert response.status == 200
    assert response.headers == [
        (b"set-cookie", b"a=1"),
        (b"x-b", b"\xe9\xff\tz"),
        (b"set-cookie", b"b=2"),
        (b"x-empty", b""),
        (b"content-length", b"0"),
    ]
    await response.aclose()


@pytest.mark.parametrize("status", [200, 299, 302, 401, 418, 451, 520, 599])
async def test_any_final_status_is_relayed(engine, serve, status):
    """Also those that no list knows."""
    upstream = await serve(says(b"HTTP/1.1 %d \r\n" % status + EMPTY))
    response = await get(engine, upstream)
    assert response.status == status
    await response.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"GARBAGE\r\n\r\n", id="no status line"),
        pytest.param(b"\x16\x03\x01\x02\x00", id="TLS"),
        pytest.param(b"HTTP/1.1 abc OK\r\n" + EMPTY, id="status of letters"),
        pytest.param(b"HTTP/1.1 20 OK\r\n" + EMPTY, id="status of two digits"),
        pytest.param(b"HTTP/1.1 2000 OK\r\n" + EMPTY, id="status of four digits"),
        pytest.param(b"HTTP/1.1 099 X\r\n" + EMPTY, id="status 099"),
        pytest.param(b"HTTP/1.1 600 X\r\n" + EMPTY, id="status 600"),
        pytest.param(b"HTTP/1.1 999 X\r\n" + EMPTY, id="status 999"),
        pytest.param(b"HTTP/0.9 200 OK\r\n" + EMPTY, id="HTTP/0.9"),
        pytest.param(b"HTTP/2.0 200 OK\r\n" + EMPTY, id="HTTP/2.0"),
        pytest.param(b"RTSP/1.0 200 OK\r\n" + EMPTY, id="RTSP"),
        pytest.param(b"ICE/1.0 200 OK\r\n" + EMPTY, id="ICE"),
        pytest.param(OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxy", id="two lengths"),
        pytest.param(OK + b"content-length: 1, 2\r\n\r\nxy", id="list of lengths"),
        pytest.param(OK + b"content-length: +1\r\n\r\nx", id="signed length"),
        pytest.param(OK + b"content-length: 0x1\r\n\r\nx", id="hexadecimal length"),
        pytest.param(OK + b"content-length: \r\n\r\nx", id="no length"),
        pytest.param(OK + b"content-length: 99999999999999999999999\r\n\r\nx", id="length past 64 bits"),
        pytest.param(
            OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="length, then coding"
        ),
        pytest.param(
            OK + b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n", id="coding, then length"
        ),
        pytest.param(OK + b"transfer-encoding: gzip\r\n\r\nx", id="other coding"),
        pytest.param(OK + b"transfer-encoding: identity\r\n\r\nx", id="identity"),
        pytest.param(OK + b"transfer-encoding: xchunked\r\n\r\nx", id="xchunked"),
        pytest.param(OK + b"transfer-encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", id="coding inside chunks"),
        pytest.param(
            OK + b"transfer-encoding: chunked, identity\r\n\r\n1\r\nx\r\n0\r\n\r\n", id="coding after chunked"
        ),
        pytest.param(
            OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            id="chunked twice",
        ),
        pytest.param(CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n", id="chunk size 0x1"),
        pytest.param(CHUNKED + b"-1\r\nx\r\n0\r\n\r\n", id="negative chunk size"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\nx\r\n0\r\n\r\n", id="chunk size past 64 bits"),
        pytest.param(CHUNKED + b"1\nx\n0\n\n", id="chunks with bare LF"),
        pytest.param(OK + b"x: a\0b\r\n" + EMPTY, id="NUL in a value"),
        pytest.param(OK + b"x\0: a\r\n" + EMPTY, id="NUL in a name"),
        pytest.param(OK + b"x: a\x07\r\n" + EMPTY, id="control byte"),
        pytest.param(OK + b"x: a\rb\r\n" + EMPTY, id="bare CR"),
        pytest.param(b"HTTP/1.1 200 OK\nx: a\ncontent-length: 0\n\n", id="bare LF"),
        pytest.param(OK + b"x: a\r\n b\r\n" + EMPTY, id="folded line"),
        pytest.param(OK + b"x : a\r\n" + EMPTY, id="space before the colon"),
        pytest.param(OK + b": a\r\n" + EMPTY, id="no name"),
        pytest.param(OK + b"abc\r\n" + EMPTY, id="no colon"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", id="101"),
        pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", id="101 to nothing"),
        pytest.param(b"HTTP/1.1 102 Processing\r\n\r\n" * 20, id="1xx without end"),
        pytest.param(OK + b"x: y\r\n" * 300 + EMPTY, id="300 fields"),
        pytest.param(OK + b"x: " + b"y" * 70_000 + b"\r\n" + EMPTY, id="a field of 70 kB"),
        pytest.param(OK + b"x: " + b"y" * 70_000, id="a field of 70 kB that goes on"),
        pytest.param((OK + b"x: ").ljust(600_000, b"y"), id="a field of 600 kB that goes on"),
    ],
)
async def test_an_answer_that_is_not_sound_is_refused(engine, serve, answer):
    """What two parsers may read differently is a way to smuggle; the message for the log shows none of it."""
    upstream = await serve(says(answer))
    with pytest.raises(UpstreamUnreachable) as refused:
        await get(engine, upstream)
    assert "x: " not in str(refused.value)
    assert "GARBAGE" not in str(refused.value)
    # The next one starts on a connection of its own.
    upstream.handler = says(OK + EMPTY)
    assert await fetch(engine, upstream) == b""
    assert upstream.connections == 2


async def test_garbage_is_refused_however_it_is_cut(engine, serve):
    """The first bytes alone may look right."""
    upstream = await serve(says(b"HT", b"TX/1.1 200 OK\r\n\r\n"))
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream)


@pytest.mark.parametrize("cut", [1, 7, 17, 20, 60])
async def test_a_head_in_pieces_is_the_same_head(engine, serve, cut):
    """Packets end anywhere."""
    answer = OK + b"set-cookie: a=1\r\nx-long: abcdefghijklmnop\r\ncontent-length: 5\r\n\r\nhello"
    upstream = await serve(says(answer[:cut], answer[cut:]))
    response = await get(engine, upstream)
    assert response.headers == [(b"set-cookie", b"a=1"), (b"x-long", b"abcdefghijklmnop"), (b"content-length", b"5")]
    assert await whole(response) == b"hello"


async def test_large_heads_within_reason_pass(engine, serve):
    """A Set-Cookie of 10 kB and 200 fields are both seen in the wild."""
    cookie = b"a=" + b"x" * 10_000
    fields = b"".join(b"x-%d: %d\r\n" % (i, i) for i in range(200))
    upstream = await serve(says(OK + b"set-cookie: " + cookie + b"\r\n" + fields + EMPTY))
    response = await get(engine, upstream)
    assert response.headers[0] == (b"set-cookie", cookie)
    assert len(response.headers) == 202
    await response.aclose()


async def test_a_small_head_before_a_large_body_is_not_an_oversized_head(engine, serve):
    """They may well come in the same packet."""
    body = b"x" * 200_000
    upstream = await serve(says(OK + b"content-length: 200000\r\n\r\n" + body))
    assert await fetch(engine, upstream) == body


async def test_interim_responses_are_passed_over(engine, serve):
    """ASGI has no way to relay them (RFC 9110 section 15.2 lets a proxy drop what it did not ask for)."""
    upstream = await serve(
        says(
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\n" + OK + b"x: 1\r\n" + EMPTY,
        )
    )
    response = await get(engine, upstream)
    assert response.headers == [(b"x", b"1"), (b"content-length", b"0")]
    await response.aclose()


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        pytest.param(b"HEAD", OK + b"content-length: 10\r\n\r\n", id="HEAD with a length"),
        pytest.param(b"HEAD", OK + b"transfer-encoding: chunked\r\n\r\n", id="HEAD chunked"),
        pytest.param(b"HEAD", OK + b"x: y\r\n\r\n", id="HEAD without framing"),
        pytest.param(
            b"HEAD", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 10\r\n\r\n", id="HEAD after 100"
        ),
        pytest.param(b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
        pytest.param(b"GET", b"HTTP/1.1 204 No Content\r\ncontent-length: 10\r\n\r\n", id="204 with a length"),
        pytest.param(b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", id="304 with a length"),
        pytest.param(b"GET", b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", id="304 chunked"),
        pytest.param(b"GET", b"HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n", id="205"),
    ],
)
async def test_what_has_no_body_ends_with_its_head(engine, serve, method, answer):
    """RFC 9112 section 6.3; the connection serves the next request, whose answer is not taken for a body."""
    upstream = await serve(says(answer))
    for _ in range(2):
        response = await get(engine, upstream, method=method)
        assert response.complete
        assert await response.read() == b""
        await response.aclose()
    assert upstream.connections == 1


async def test_a_head_in_pieces_after_HEAD(engine, serve):  # noqa: N802
    """The end of the head is then not the end of a packet that begins with it."""
    upstream = await serve(says(OK + b"content-length: 10\r\n\r", b"\n"))
    for _ in range(2):
        response = await get(engine, upstream, method=b"HEAD")
        assert response.complete
    assert upstream.connections == 1


async def test_chunks_are_taken_apart_and_trailers_dropped(engine, serve):
    """Trailers must not join the header section (RFC 9110 section 6.5.1)."""
    upstream = await serve(says(CHUNKED + b"5;ext=1\r\nhello\r\n", b"6\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n"))
    for _ in range(2):
        response = await get(engine, upstream)
        assert await whole(response) == b"hello world"
        assert response.headers == [(b"transfer-encoding", b"chunked")]
    assert upstream.connections == 1


async def test_many_small_chunks_are_handed_over_together(engine, serve):
    """Each hand-over costs a message to the client."""
    upstream = await serve(says(CHUNKED + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n"))
    response = await get(engine, upstream)
    assert await response.read() == b"x" * 1000
    assert await response.read() == b""


async def test_trailers_without_end_are_cut_off(engine, serve):
    """Somebody has to bound what the parser gathers."""
    trailers = [b"x-%d: " % i + b"y" * 16_000 + b"\r\n" for i in range(40)]
    upstream = await serve(says(CHUNKED + b"1\r\nx\r\n0\r\n", *trailers))
    response = await get(engine, upstream)
    assert await response.read() == b"x"
    with pytest.raises(UpstreamAborted):
        await response.read()


async def test_many_chunks_with_their_sizes_apart_are_no_oversized_head(engine, serve):
    """Lines between chunks count anew with each chunk."""
    pieces = [piece for _ in range(20) for piece in (b"1;" + b"e" * 8_000 + b"\r\n", b"x\r\n")]
    upstream = await serve(says(CHUNKED, *pieces, b"0\r\n\r\n"))
    assert await fetch(engine, upstream) == b"x" * 20


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", id="HTTP/1.0"),
        pytest.param(OK + b"\r\n", id="HTTP/1.1"),
        pytest.param(OK + b"connection: close\r\n\r\n", id="Connection: close"),
    ],
)
async def test_body_without_length_ends_with_the_connection(engine, serve, head):
    """RFC 9112 section 6.3, the last resort."""
    upstream = await serve(says(head + b"hello", b" ", b"world", close=True))
    assert await fetch(engine, upstream) == b"hello world"


async def test_body_without_length_that_is_reset_is_not_whole(engine, serve):
    """A reset is no end (RFC 9112 section 8)."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"\r\nhello")
        await asyncio.sleep(0.02)
        peer.reset()

    upstream = await serve(handler)
    response = await get(engine, upstream)
    assert await response.read() == b"hello"
    with pytest.raises(UpstreamAborted):
        await response.read()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"content-length: 10\r\n\r\nhello", id="known length"),
        pytest.param(OK + b"content-length: 10\r\n\r\n", id="nothing of it"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", id="before a chunk"),
        pytest.param(CHUNKED + b"a\r\nhello", id="inside a chunk"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", id="before the last line"),
    ],
)
async def test_a_body_cut_short_is_never_whole(engine, serve, answer):
    """A clean end would pass it off as whole (RFC 9112 section 8)."""
    upstream = await serve(says(answer, close=True))
    response = await get(engine, upstream)
    with pytest.raises(UpstreamAborted):
        await whole(response)
    assert not response.complete
    with pytest.raises(UpstreamAborted):
        await response.read()
    await response.aclose()


async def test_a_broken_chunk_after_the_head_aborts(engine, serve):
    """The head is gone to the client by then, so it is too late for a 502."""
    upstream = await serve(says(CHUNKED + b"5\r\nhello\r\n", b"zz\r\n"))
    response = await get(engine, upstream)
    assert await response.read() == b"hello"
    with pytest.raises(UpstreamAborted):
        await response.read()


async def test_a_head_cut_short_is_no_answer(engine, serve):
    """Nothing has reached the client, so it is a 502."""
    upstream = await serve(says(OK + b"content-le", close=True))
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream)


async def test_parts_arrive_when_they_are_sent(engine, serve):
    """A first event must not wait for the second."""
    go = asyncio.Event()

    async def handler(peer):
        await peer.head()
        await peer.say(CHUNKED + b"5\r\nfirst\r\n")
        await go.wait()
        await peer.say(b"6\r\nsecond\r\n0\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    response = await get(engine, upstream)
    assert await response.read() == b"first"
    assert not response.complete
    go.set()
    assert await response.read() == b"second"
    assert await response.read() == b""


async def test_slow_caller_makes_the_upstream_wait(engine, serve):
    """Nothing but the bound and the sockets' own buffers is read ahead."""
    sent = 0

    async def handler(peer):
        nonlocal sent
        await peer.head()
        await peer.say(OK + b"content-length: 100000000\r\n\r\n")
        while sent < 100_000_000:
            await peer.say(b"x" * 100_000)
            sent += 100_000

    upstream = await serve(handler)
    response = await get(engine, upstream)
    await asyncio.sleep(0.3)
    assert response.size < 1_000_000
    assert sent < 20_000_000  # Of which the kernel holds the most.
    received = 0
    while part := await response.read():
        received += len(part)
    assert received == 100_000_000


async def test_reading_after_closing_is_an_error(engine, serve):
    """An empty read would look like the end."""
    upstream = await serve(says(OK + b"content-length: 10\r\n\r\nhello"))
    response = await get(engine, upstream)
    await response.aclose()
    await response.aclose()
    with pytest.raises(UpstreamAborted):
        await response.read()


async def test_closing_while_another_reads_ends_the_reading(engine, serve):
    """Whoever learns that the client left need not be who reads."""
    upstream = await serve(says(OK + b"content-length: 10\r\n\r\n"))
    response = await get(engine, upstream)
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0.01)
    await response.aclose()
    with pytest.raises(UpstreamAborted):
        await reading


async def test_a_body_right_behind_its_head_is_there_when_the_head_is(engine, serve):
    """Two writes of the upstream's then cost one of ours; one that is late is not waited for."""

    async def handler(peer):
        while True:
            head = await peer.head()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
            if b"/late" in head:
                await asyncio.sleep(0.3)
            await peer.say(b"hello")

    upstream = await serve(handler)
    late = await get(engine, upstream, b"/late")
    assert not late.complete
    assert await whole(late) == b"hello"
    response = await get(engine, upstream)
    assert await whole(response) == b"hello"
