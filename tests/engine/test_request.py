"""What leaves for the upstream, byte for byte."""

from __future__ import annotations

import pytest

from idp_middleware.errors import BadRequest

from .conftest import Chunks, fetch, get


def recorder(seen, length=0):
    async def handler(peer):
        while True:
            seen.append(await peer.head() + await peer.body(length))
            await peer.answer()

    return handler


async def test_request_is_exactly_what_was_given_with_host_first(engine, serve):
    """Order, duplicates, case and bytes beyond ASCII are the caller's; only Host is ours."""
    seen = []
    upstream = await serve(recorder(seen))
    headers = [(b"x-b", b"2"), (b"X-A", b"\xe9\xff"), (b"x-b", b"1"), (b"x-empty", b""), (b"x-tab", b"a\tb")]
    await fetch(engine, upstream, b"/a%2Fb/../c//?x=%zz&x", headers=headers)
    assert seen == [
        b"GET /a%%2Fb/../c//?x=%%zz&x HTTP/1.1\r\nhost: %b\r\n"
        b"x-b: 2\r\nX-A: \xe9\xff\r\nx-b: 1\r\nx-empty: \r\nx-tab: a\tb\r\n\r\n" % upstream.origin.authority
    ]


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"HEAD", b"OPTIONS", b"POST"])
async def test_no_body_means_no_framing(engine, serve, method):
    """A Transfer-Encoding on a GET makes some servers refuse it."""
    seen = []
    upstream = await serve(recorder(seen))
    response = await get(engine, upstream, method=method)
    await response.aclose()
    assert seen == [b"%b / HTTP/1.1\r\nhost: %b\r\n\r\n" % (method, upstream.origin.authority)]


async def test_empty_body_of_known_length_is_announced(engine, serve):
    """POST without Content-Length is answered with 411 by some."""
    seen = []
    upstream = await serve(recorder(seen))
    await fetch(engine, upstream, method=b"POST", body=Chunks(length=0))
    assert seen[0].endswith(b"\r\ncontent-length: 0\r\n\r\n")


async def test_small_body_comes_in_one_piece_with_its_head(engine, serve):
    """One write, and no connection held while the client takes its time."""
    arrived = []

    async def handler(peer):
        arrived.append(await peer.reader.read(65536))
        await peer.answer()

    upstream = await serve(handler)
    await fetch(engine, upstream, method=b"POST", headers=[(b"a", b"b")], body=Chunks(b"hel", b"lo", length=5))
    assert arrived[0].endswith(b"\r\na: b\r\ncontent-length: 5\r\n\r\nhello")


async def test_large_body_of_known_length_keeps_its_length(engine, serve):
    """Many servers refuse chunked uploads, so a length the client gave is kept."""
    seen = []
    piece = bytes(range(256)) * 256
    upstream = await serve(recorder(seen, len(piece) * 5))
    await fetch(engine, upstream, method=b"PUT", body=Chunks(*[piece] * 5, length=len(piece) * 5))
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.endswith(b"\r\ncontent-length: 327680")
    assert body == piece * 5


async def test_body_of_unknown_length_is_chunked(engine, serve):
    """Each piece as a chunk of its own, then the end."""
    seen = []

    async def handler(peer):
        seen.append(await peer.reader.readuntil(b"0\r\n\r\n"))
        await peer.answer()

    upstream = await serve(handler)
    await fetch(engine, upstream, method=b"POST", body=Chunks(b"hello", b"x" * 20))
    assert seen[0].endswith(
        b"\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        (b"GET", b"/", (b"x", b"a\r\nevil: 1")),
        (b"GET", b"/", (b"x", b"a\nevil: 1")),
        (b"GET", b"/", (b"x", b"a\revil")),
        (b"GET", b"/", (b"x", b"a\0")),
        (b"GET", b"/", (b"x\r\nevil", b"1")),
        (b"GET", b"/ HTTP/1.1\r\nx: ", (b"x", b"1")),
        (b"GET", b"/a b", (b"x", b"1")),
        (b"GET / HTTP/1.1\r\n\r\nGET", b"/", (b"x", b"1")),
    ],
)
async def test_nothing_that_ends_a_line_leaves(engine, serve, method, target, header):
    """Whoever was to check has failed; a second request must not come of it."""
    seen = []
    upstream = await serve(recorder(seen))
    with pytest.raises(BadRequest):
        await get(engine, upstream, target, method=method, headers=[header])
    assert upstream.connections == 0
    assert seen == []


async def test_ipv6_upstream_gets_a_bracketed_host(engine, serve):
    """RFC 3986 section 3.2.2."""
    seen = []
    try:
        upstream = await serve(recorder(seen), host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    await fetch(engine, upstream)
    assert b"\r\nhost: [::1]:%d\r\n" % upstream.origin.port in seen[0]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: Chunks(b"abc", length=5), id="short"),
        pytest.param(lambda: Chunks(b"abcdef", length=5), id="long"),
        pytest.param(lambda: Chunks(b"abc", b"def", b"g", length=5), id="long in pieces"),
    ],
)
async def test_small_body_of_another_length_is_not_sent(engine, serve, body):
    """The length decides where the next request begins."""
    seen = []
    upstream = await serve(recorder(seen))
    with pytest.raises(BadRequest):
        await get(engine, upstream, method=b"POST", body=body())
    assert upstream.connections == 0


async def test_body_that_fails_before_anything_left_reaches_nobody(engine, serve):
    """A client that is gone has no request."""
    upstream = await serve(recorder([]))
    with pytest.raises(LookupError):
        await get(engine, upstream, method=b"POST", body=Chunks(b"abc", LookupError(), length=5))
    assert upstream.connections == 0
