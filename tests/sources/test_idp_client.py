"""The HTTP client that speaks to identity providers: what it reads, what it refuses to, and for how long it waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import httpx
import pytest
import time_machine

from idp_middleware import Timeout
from idp_middleware._idp_http import Answer, IdPClient
from idp_middleware.errors import (
    ConfigurationError,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)

URL = "https://idp.example/"
NOW = 1_800_000_000


async def ask(handler: Callable[[httpx.Request], Any], times: int = 1) -> Answer:
    client = IdPClient(transport=httpx.MockTransport(handler))
    try:
        for _ in range(times):
            answer = await client.request("GET", URL)
        return answer
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": formatdate(NOW + 100, usegmt=True)}, 100),
        ({"retry-after": formatdate(NOW - 100, usegmt=True)}, 0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon", "x-ratelimit-reset": str(NOW + 50)}, 50),
        ({"x-ratelimit-reset": str(NOW + 50)}, 50),
        ({"x-ratelimit-reset": "1"}, 0),
        ({"x-ratelimit-reset": "never"}, None),
        ({"retry-after": "7", "x-ratelimit-reset": str(NOW + 50)}, 7),
    ],
)
async def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds or a date (RFC 9110 section 10.2.3), and Auth0's own field where there is neither."""
    answer = await ask(lambda request: httpx.Response(429, headers=headers))
    with time_machine.travel(NOW, tick=False):
        assert answer.retry_after() == seconds


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """A profile is a few kilobytes."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 65536

    with pytest.raises(TokenSourceFailed, match="too long"):
        await ask(lambda request: httpx.Response(200, content=endless()))
    assert sent < 20


async def test_one_users_cookie_does_not_ride_along_with_the_next() -> None:
    """A load balancer's cookie would be harmless, a session's not."""
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"set-cookie": "session=alice"})

    await ask(answer, times=2)
    assert seen == [None, None]


async def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy named in a variable would see every secret."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with raw_server(lambda reader, writer: respond(writer, b"{}")) as url:
        client = IdPClient()
        assert (await client.request("GET", url)).json() == {}
        await client.aclose()


async def test_a_trickling_answer_is_bounded_as_a_whole() -> None:
    """Each byte in time satisfies every read time-out."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    client = IdPClient(timeout=Timeout(connect=0.1, read=0.1, write=0.1, pool=0.1))
    async with raw_server(trickle) as url:
        started = time.monotonic()
        with pytest.raises(TokenSourceTimeout):
            await client.request("GET", url)
        assert time.monotonic() - started < 10
        await client.aclose()


async def test_a_connection_that_breaks_off_is_no_answer() -> None:
    """A truncated document must not be taken for a whole one."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"access_token": "half"}')

    async with raw_server(half) as url:
        client = IdPClient()
        with pytest.raises(TokenSourceUnavailable):
            await client.request("GET", url)
        await client.aclose()
    with pytest.raises(TokenSourceUnavailable):
        await client.request("GET", url)
    await client.aclose()


@pytest.mark.parametrize("instead", [b"", b"\x00\xffnot HTTP"], ids=["closed", "garbage"])
@pytest.mark.parametrize(("method", "asked"), [("GET", 3), ("POST", 2)])
async def test_a_kept_connection_that_was_given_up_costs_a_look_up_nothing(
    method: str, asked: int, instead: bytes
) -> None:
    """Servers close what is idle, and a request may cross that; a POST may have been carried out."""
    requests: list[bytes] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(b"on a new one")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await reader.readuntil(b"\r\n\r\n")
        requests.append(b"on a kept one")
        writer.write(instead)

    async with raw_server(once) as url:
        client = IdPClient()
        await client.request("GET", url)
        if method == "GET":
            assert (await client.request(method, url)).json() == {}
        else:
            with pytest.raises(TokenSourceUnavailable):
                await client.request(method, url)
        await client.aclose()
    assert len(requests) == asked


async def test_what_comes_behind_an_answer_is_not_the_next_one() -> None:
    """The next is somebody else's: it would be their token."""
    first, behind = b'{"of": "alice"}', b'{"of": "mallory"}'

    async def two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (first, behind):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        await reader.read()

    async with raw_server(two) as url:
        client = IdPClient()
        for _ in range(3):
            assert (await client.request("GET", url)).body == first
        await client.aclose()


async def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    """Who is down is not asked twice as often."""
    connections = 0

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1

    async with raw_server(nothing) as url:
        client = IdPClient()
        with pytest.raises(TokenSourceUnavailable):
            await client.request("GET", url)
        await client.aclose()
    assert connections == 1


def test_a_time_out_of_nothing_is_a_mistake() -> None:
    """It would fail each request."""
    with pytest.raises(ConfigurationError) as caught:
        IdPClient(timeout=Timeout(connect=0))
    assert caught.value.key == "timeout"


async def test_an_answer_shows_nothing_of_itself() -> None:
    """Its body may hold tokens."""
    answer = await ask(lambda request: httpx.Response(200, json={"access_token": "s3cret"}))
    assert repr(answer) == "Answer(status=200)"


async def test_no_log_tells_whom_a_look_up_was_about(caplog: pytest.LogCaptureFixture) -> None:
    """httpx's client writes every URL into the log at INFO, and users' ids are part of them."""
    caplog.set_level(logging.DEBUG)
    async with raw_server(lambda reader, writer: respond(writer, b"{}")) as url:
        client = IdPClient()
        await client.request("GET", f"{url}users/auth0%7Calice")
        await client.aclose()
    assert "alice" not in caplog.text


async def test_whatever_a_transport_raises_is_an_error_of_ours_without_its_words() -> None:
    """Somebody's own may say what it was sending; and nobody else would know what to make of it."""

    def failing(request: httpx.Request) -> httpx.Response:
        raise LookupError(f"cannot send {request.headers.raw}")

    with pytest.raises(TokenSourceFailed) as caught:
        await ask(failing)
    assert str(caught.value) == "not an answer (LookupError)"
    assert caught.value.__suppress_context__


async def test_who_asks_is_said() -> None:
    """Some servers turn away what names no user agent."""
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(dict(request.headers))
        return httpx.Response(200)

    await ask(answer)
    assert seen == [
        {
            "host": "idp.example",
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "idp_middleware",
        }
    ]


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def respond(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    """Bytes over a real socket."""
    tasks: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await handler(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
