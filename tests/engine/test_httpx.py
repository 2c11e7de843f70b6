"""The engine under an ordinary httpx client."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from idp_middleware._engine._httpx import RelayTransport


@pytest.fixture
async def client(serve):
    async with httpx.AsyncClient(transport=RelayTransport(), trust_env=False) as client:
        yield client


def url(upstream, path="/"):
    return f"http://{upstream.origin.authority.decode()}{path}"


async def test_a_request_and_its_answer(client, serve):
    """Host once, the client's fields in order, no framing where there is no body."""
    seen = []

    async def handler(peer):
        while True:
            seen.append(await peer.head())
            await peer.answer(b"hello", b"set-cookie: a=1\r\nset-cookie: b=2\r\n")

    upstream = await serve(handler)
    response = await client.get(url(upstream, "/a%2Fb?x=1"), headers={"host": "other.example", "x": "y"})
    assert (response.status_code, response.text, response.http_version) == (200, "hello", "HTTP/1.1")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert seen[0].startswith(b"GET /a%2Fb?x=1 HTTP/1.1\r\nhost: other.example\r\n")
    assert seen[0].lower().count(b"host:") == 1
    assert b"content-length" not in seen[0]
    await client.request("OPTIONS", url(upstream), extensions={"target": b"*"})
    assert seen[1].startswith(b"OPTIONS * HTTP/1.1\r\n")


async def test_bodies_with_and_without_a_length(client, serve):
    """As httpx frames them."""
    seen = []

    async def handler(peer):
        while True:
            sized = b"content-length: 5" in await peer.head()
            seen.append(await (peer.body(5) if sized else peer.reader.readuntil(b"0\r\n\r\n")))
            await peer.answer()

    async def pieces():
        yield b""
        yield b"hello"

    upstream = await serve(handler)
    await client.post(url(upstream), content=b"hello")
    await client.post(url(upstream), content=pieces(), timeout=None)
    assert seen == [b"hello", b"5\r\nhello\r\n0\r\n\r\n"]


async def test_a_body_in_parts_and_one_that_breaks_off(client, serve):
    """httpx's own errors, since that is what its users catch."""

    async def handler(peer):
        await peer.head()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")

    upstream = await serve(handler)
    async with client.stream("GET", url(upstream)) as response:
        parts = response.aiter_raw()
        assert await anext(parts) == b"hello"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(parts)


async def test_failures_are_httpx_errors(client, serve):
    """Whatever the engine calls them."""

    async def silent(peer):
        await peer.rest()

    async def gone(peer):
        await asyncio.sleep(0)

    with pytest.raises(httpx.TimeoutException):
        await client.get(url(await serve(silent)), timeout=0.05)
    with pytest.raises(httpx.NetworkError):
        await client.get(url(await serve(gone)))
    with pytest.raises(httpx.LocalProtocolError):
        await client.get(url(await serve(silent)), extensions={"target": b"/ HTTP/1.1\r\n\r\n"})
    with pytest.raises(httpx.UnsupportedProtocol):
        await client.get("ftp://127.0.0.1/")
