"""Who is talked to over TLS, and who is not."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

import pytest
import trustme

from idp_middleware._engine import Engine
from idp_middleware._engine._tls import default_ssl_context
from idp_middleware.errors import UpstreamAborted, UpstreamUnreachable

from .conftest import PATIENCE, Chunks, fetch, get, until


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def trusting(serve, authority):
    """An engine that trusts the test's authority, and has all else as by default."""
    context = default_ssl_context()
    authority.configure_trust(context)
    engine = Engine(ssl_context=context)
    yield engine
    await engine.aclose()


def server_context(authority, *names, versions=(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    context.minimum_version, context.maximum_version = versions
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def well_behaved(peer):
    while True:
        await peer.head()
        await peer.answer()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_verified_connection_is_used_again(trusting, serve, authority, version):
    """A handshake costs more than the request."""
    upstream = await serve(well_behaved, context=server_context(authority, "localhost", versions=(version, version)))
    for _ in range(3):
        assert await fetch(trusting, upstream) == b"ok"
    assert upstream.connections == 1


async def test_name_and_protocol_are_asked_for(trusting, serve, authority):
    """SNI picks the certificate, ALPN keeps HTTP/2 away (RFC 9113 section 3.2)."""
    context = server_context(authority, "localhost")
    names, protocols = [], []
    context.sni_callback = lambda _, name, __: names.append(name)

    async def handler(peer):
        protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await peer.head()
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler, context=context)
    await fetch(trusting, upstream)
    assert (names, protocols) == (["localhost"], ["http/1.1"])


async def test_an_address_is_verified_as_an_address(trusting, serve, authority):
    """Private clouds have certificates for addresses."""
    upstream = await serve(well_behaved, context=server_context(authority, "127.0.0.1"))
    origin = upstream.origin._replace(host="127.0.0.1")
    response = await trusting.send(origin, b"GET", b"/", [], None, PATIENCE)
    assert response.status == 200
    await response.aclose()


async def test_a_certificate_of_another_host_is_refused(trusting, serve, authority):
    """Nothing of the request has left by then."""
    upstream = await serve(well_behaved, context=server_context(authority, "other.example"))
    with pytest.raises(UpstreamUnreachable, match="certificate not accepted"):
        await get(trusting, upstream)


async def test_an_unknown_authority_is_refused(engine, serve, authority):
    """The default trusts the system's only."""
    upstream = await serve(well_behaved, context=server_context(authority, "localhost"))
    with pytest.raises(UpstreamUnreachable, match="certificate not accepted"):
        await get(engine, upstream)


def test_the_default_context_is_strict():
    """RFC 9325: nothing below TLS 1.2."""
    context = default_ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_peer_without_TLS_is_refused(trusting, serve):  # noqa: N802
    """Also when it answers."""

    async def handler(peer):
        await peer.say(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    with pytest.raises(UpstreamUnreachable, match="no TLS connection"):
        await trusting.send(upstream.origin._replace(scheme="https"), b"GET", b"/", [], None, PATIENCE)


async def test_large_bodies_both_ways(trusting, serve, authority):
    """Records, back-pressure and the end of the connection work the same."""
    piece = b"x" * 100_000

    async def handler(peer):
        await peer.head()
        body = await peer.body(30 * len(piece))
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n" + body)

    upstream = await serve(handler, context=server_context(authority, "localhost"))
    body = Chunks(*[piece] * 30, length=30 * len(piece))
    assert await fetch(trusting, upstream, method=b"POST", body=body) == piece * 30


async def test_a_stale_connection_is_noticed(trusting, serve, authority):
    """The keep-alive race, with TLS in between."""

    async def handler(peer):
        await peer.head()
        await peer.answer()
        await peer.head()

    upstream = await serve(handler, context=server_context(authority, "localhost"))
    for _ in range(3):
        assert await fetch(trusting, upstream) == b"ok"
    assert upstream.connections == 3


async def test_closing_says_so(serve, authority):
    """An idle connection ends with close_notify (RFC 8446 section 6.1), and closing waits for that."""
    context = default_ssl_context()
    authority.configure_trust(context)
    engine = Engine(ssl_context=context)
    ends = []

    async def handler(peer):
        await peer.head()
        await peer.answer()
        ends.append(await peer.reader.read())

    upstream = await serve(handler, context=server_context(authority, "localhost"))
    await fetch(engine, upstream)
    await engine.aclose()
    await until(lambda: ends)
    assert ends == [b""]


async def test_a_body_that_ends_without_close_notify_is_cut_short(trusting, serve, authority):
    """Anybody on the way can end a TCP connection (RFC 9112 section 9.8)."""

    async def handler(peer):
        await peer.head()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await asyncio.sleep(0.02)
        with socket.socket(fileno=os.dup(peer.writer.get_extra_info("socket").fileno())) as raw:
            raw.shutdown(socket.SHUT_WR)
        await peer.rest()

    upstream = await serve(handler, context=server_context(authority, "localhost"))
    response = await get(trusting, upstream)
    assert await response.read() == b"hello"
    with pytest.raises(UpstreamAborted):
        await response.read()
