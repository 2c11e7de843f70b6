"""How long is waited, and what becomes of who no longer waits."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from idp_middleware._engine import Engine
from idp_middleware._urls import Origin
from idp_middleware.errors import UpstreamAborted, UpstreamTimeout, UpstreamUnreachable

from .conftest import PATIENCE, Chunks, fetch, get, until, whole

OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = OK + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


async def silent(peer):
    await peer.rest()


async def test_no_answer_in_time(engine, serve):
    """And the connection goes, since the answer may still come."""
    upstream = await serve(silent)
    with pytest.raises(UpstreamTimeout, match="answer"):
        await get(engine, upstream, timeout=replace(PATIENCE, read=0.05))
    await until(lambda: not upstream.tasks)


async def test_no_more_of_the_body_in_time(engine, serve):
    """Counted from the last bytes."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 10\r\n\r\nhello")
        await peer.rest()

    upstream = await serve(handler)
    response = await get(engine, upstream, timeout=replace(PATIENCE, read=0.05))
    assert await response.read() == b"hello"
    with pytest.raises(UpstreamTimeout):
        await response.read()
    with pytest.raises(UpstreamTimeout):
        await response.read()


async def test_a_body_that_keeps_coming_does_not_time_out(engine, serve):
    """However long it takes in all."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 20\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0.02)
            await peer.say(b"x")
        await peer.rest()

    upstream = await serve(handler)
    assert await fetch(engine, upstream, timeout=replace(PATIENCE, read=0.2)) == b"x" * 20


async def test_a_slow_caller_is_not_the_upstreams_silence(engine, serve):
    """Nobody waits for the upstream meanwhile."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 10\r\n\r\nhello")
        await asyncio.sleep(0.15)
        await peer.say(b"world")
        await peer.rest()

    upstream = await serve(handler)
    response = await get(engine, upstream, timeout=replace(PATIENCE, read=0.1))
    await asyncio.sleep(0.2)
    assert await whole(response) == b"helloworld"


async def test_an_event_stream_may_be_silent(engine, serve):
    """Silence is what it mostly is."""

    async def handler(peer):
        await peer.head()
        await peer.say(EVENTS)
        await asyncio.sleep(0.2)
        await peer.say(b"5\r\ndata:\r\n0\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    assert await fetch(engine, upstream, timeout=replace(PATIENCE, read=0.05)) == b"data:"


async def test_a_shorter_wait_follows_a_longer_one(engine, serve):
    """The one timer of a connection is moved forward."""

    async def handler(peer):
        await peer.head()
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler)
    await fetch(engine, upstream, timeout=replace(PATIENCE, read=100))
    with pytest.raises(UpstreamTimeout):
        await get(engine, upstream, timeout=replace(PATIENCE, read=0.05))
    assert upstream.connections == 1


async def test_a_timer_that_was_overtaken_does_nothing(serve):
    """The wait that it was set for is long over."""
    engine = Engine(keepalive=0.1)

    async def handler(peer):
        for _ in range(2):
            await peer.head()
            await peer.answer()
        await peer.head()
        await asyncio.sleep(0.25)
        await peer.say(OK + b"content-length: 4\r\n\r\nla")
        await asyncio.sleep(0.05)
        await peer.say(b"te")
        await peer.rest()

    upstream = await serve(handler)
    for _ in range(2):
        await fetch(engine, upstream)
    response = await get(engine, upstream)
    await asyncio.sleep(0.2)
    assert await whole(response) == b"late"
    assert upstream.connections == 1
    await engine.aclose()


async def test_connecting_is_bounded_with_its_TLS_handshake(engine, serve):  # noqa: N802
    """A peer that takes the connection and says nothing."""
    upstream = await serve(silent)
    origin = upstream.origin._replace(scheme="https")
    with pytest.raises(UpstreamTimeout, match="connecting"):
        await engine.send(origin, b"GET", b"/", [], None, replace(PATIENCE, connect=0.1))


async def test_nobody_listening(engine):
    """The message is for the log and names no address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(UpstreamUnreachable) as failure:
            await engine.send(Origin("http", "127.0.0.1", port, b"x"), b"GET", b"/", [], None, PATIENCE)
    assert str(port) not in str(failure.value)


async def test_unknown_host(engine):
    """RFC 6761 section 6.4: never a real one."""
    with pytest.raises(UpstreamUnreachable, match="not resolved"):
        await engine.send(Origin("http", "nobody.invalid", 80, b"x"), b"GET", b"/", [], None, PATIENCE)


async def test_a_connection_closed_as_soon_as_it_is_open(engine, serve):
    """As a load balancer without servers does."""

    async def handler(peer):
        peer.reset()

    upstream = await serve(handler)
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream, method=b"POST", body=Chunks(b"x", length=1))


# Cancellation: the connection goes, whatever it was doing.


async def test_cancelled_while_waiting_for_the_answer(engine, serve):
    """E08: the client left before the head."""
    upstream = await serve(silent)
    request = asyncio.create_task(get(engine, upstream))
    await until(lambda: upstream.connections)
    await asyncio.sleep(0.02)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await until(lambda: not upstream.tasks)


async def test_cancelled_while_reading(engine, serve):
    """E09: the client left while the body came."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 10\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    response = await get(engine, upstream)
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: not upstream.tasks)
    with pytest.raises(UpstreamAborted):
        await response.read()


@pytest.mark.parametrize("pieces", [[b"some"], [b"x" * 65536] * 1000])
async def test_cancelled_during_an_upload(engine, serve, pieces):
    """While the body is waited for, and while the upstream is."""
    rest = []

    async def handler(peer):
        await peer.head()
        await asyncio.sleep(0.1)
        rest.append(await peer.rest())

    upstream = await serve(handler)
    body = Chunks(*pieces, asyncio.Event())
    request = asyncio.create_task(get(engine, upstream, method=b"POST", body=body))
    await until(lambda: upstream.connections)
    await asyncio.sleep(0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await until(lambda: rest)
    assert not rest[0].endswith(b"0\r\n\r\n")


async def test_cancelled_while_connecting(serve):
    """Its place is free again."""
    engine = Engine(max_connections=1)
    upstream = await serve(silent)
    origin = upstream.origin._replace(scheme="https")
    for _ in range(3):
        request = asyncio.create_task(engine.send(origin, b"GET", b"/", [], None, PATIENCE))
        await until(lambda: upstream.tasks)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await until(lambda: not upstream.tasks)
    await engine.aclose()


# Closing the engine.


async def test_closing_fails_whatever_is_under_way(serve):
    """Waiting, connecting, being answered, being read or idle."""
    engine = Engine(max_connections=3)

    async def handler(peer):
        if b"/part" in await peer.head():
            await peer.say(OK + b"content-length: 10\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    response = await get(engine, upstream, b"/part")
    reading = asyncio.create_task(response.read())
    tasks = [asyncio.create_task(get(engine, upstream)) for _ in range(4)]
    await until(lambda: upstream.connections == 3)
    dialling = asyncio.create_task(
        engine.send(upstream.origin._replace(scheme="https"), b"GET", b"/", [], None, PATIENCE)
    )
    await until(lambda: upstream.connections == 4)
    await engine.aclose()
    with pytest.raises(UpstreamAborted):
        await reading
    for task in tasks:
        with pytest.raises(UpstreamUnreachable):
            await task
    await until(lambda: len(upstream.tasks) == 1)
    dialling.cancel()
    await asyncio.wait([dialling])


async def test_closing_does_not_forget_who_is_just_connecting(engine, serve):
    """It connects after that, and must not be the one connection left open."""
    upstream = await serve(silent)
    request = asyncio.create_task(get(engine, upstream))
    await asyncio.sleep(0)
    await engine.aclose()
    with pytest.raises(UpstreamUnreachable):
        await request
    await until(lambda: not upstream.tasks)


async def test_a_closed_engine_opens_again(engine, serve):
    """An app under test is started more than once."""

    async def handler(peer):
        while True:
            await peer.head()
            await peer.answer()

    upstream = await serve(handler)
    for _ in range(2):
        assert await fetch(engine, upstream) == b"ok"
        await engine.aclose()
        await until(lambda: not upstream.tasks)
    assert upstream.connections == 2
