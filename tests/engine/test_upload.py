"""Bodies that are sent while they arrive."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from idp_middleware._engine._request import send_all
from idp_middleware._urls import Origin
from idp_middleware.errors import BadRequest, ClientDisconnected, UpstreamAborted, UpstreamTimeout, UpstreamUnreachable

from .conftest import PATIENCE, Chunks, fetch, get, until, whole

PIECE = b"x" * 65536
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("length", [100 * len(PIECE), None])
async def test_large_bodies_arrive_whole_and_the_connection_stays(engine, serve, length):
    """With and without a length; twice, since the second shows what the first left behind."""
    received = []

    async def handler(peer):
        while True:
            await peer.head()
            if length is None:
                size = 0
                while count := int(await peer.reader.readline(), 16):
                    size += len((await peer.body(count + 2))[:-2])
                await peer.body(2)
            else:
                size = len(await peer.body(length))
            received.append(size)
            await peer.answer()

    upstream = await serve(handler)
    for _ in range(2):
        assert await fetch(engine, upstream, method=b"POST", body=Chunks(*[PIECE] * 100, length=length)) == b"ok"
    assert received == [100 * len(PIECE)] * 2
    assert upstream.connections == 1


async def test_a_chunk_is_written_as_one():
    """Never with `writelines`, with which many a Python 3.12 and 3.13 buffers without end (CVE-2024-12254)."""
    written = []

    class Recording(asyncio.WriteTransport):
        def write(self, data):
            written.append(data)

        def writelines(self, pieces):
            raise AssertionError("the sender may never be stopped")

    async def drained():
        pass

    await send_all(Chunks(b"one", b"three"), Recording(), drained)
    assert written == [b"3\r\none\r\n", b"5\r\nthree\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("length", [1000 * len(PIECE), None])
async def test_slow_upstream_makes_the_client_wait(engine, serve, length):
    """The body is read no faster than it leaves."""
    go = asyncio.Event()

    async def handler(peer):
        await peer.head()
        await go.wait()
        await peer.body(1000 * len(PIECE))
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler)
    body = Chunks(*[PIECE] * 1000, length=length)
    sending = asyncio.create_task(fetch(engine, upstream, method=b"POST", body=body))
    await asyncio.sleep(0.2)
    assert body.reads < 300  # Of which the kernel holds the most.
    go.set()
    assert await sending == b"ok"


async def test_what_the_client_has_sent_is_passed_on_at_once(engine, serve):
    """A body that trickles in is not gathered."""
    more, arrived = asyncio.Event(), asyncio.Event()

    async def handler(peer):
        await peer.head()
        await peer.body(5)
        arrived.set()
        await peer.reader.readuntil(b"0\r\n\r\n")
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler)
    sending = asyncio.create_task(fetch(engine, upstream, method=b"POST", body=Chunks(b"first", more, b"second")))
    async with asyncio.timeout(5):
        await arrived.wait()
    more.set()
    assert await sending == b"ok"


@pytest.mark.parametrize("status", [401, 413])
async def test_a_refusal_comes_back_before_the_body_is_sent(engine, serve, status):
    """RFC 9112 section 9.3: cease transmitting. What was not sent makes the connection useless."""
    never = asyncio.Event()
    rest = []

    async def handler(peer):
        await peer.head()
        await peer.say(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)
        rest.append(await peer.rest())

    upstream = await serve(handler)
    body = Chunks(b"some", never, b"more")
    response = await get(engine, upstream, method=b"POST", body=body)
    assert response.status == status
    assert await whole(response) == b"no"
    await until(lambda: rest)
    assert rest == [b"4\r\nsome\r\n"]
    assert body.reads == 2


async def test_a_refusal_of_an_upload_in_full_flow(engine, serve):
    """With bytes still waiting to leave, and the answer in two packets."""

    async def handler(peer):
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\nno")
        await asyncio.sleep(0.02)
        await peer.say(b"pe")
        await peer.rest()

    upstream = await serve(handler)
    body = Chunks(*[PIECE] * 1000, length=1000 * len(PIECE))
    response = await get(engine, upstream, method=b"PUT", body=body)
    assert response.status == 413
    assert await whole(response) == b"nope"
    assert body.reads < 1000


async def test_an_answer_in_progress_lets_the_upload_go_on(engine, serve):
    """An upstream that answers while it reads (a converter, an echo) would never end otherwise."""

    async def handler(peer):
        while True:
            await peer.head()
            await peer.say(OK + b"transfer-encoding: chunked\r\n\r\n")
            while count := int(await peer.reader.readline(), 16):
                await peer.say(b"%x\r\n%b" % (count, await peer.body(count + 2)))
            await peer.body(2)
            await peer.say(b"0\r\n\r\n")

    upstream = await serve(handler)
    for _ in range(2):
        more = asyncio.Event()
        response = await get(engine, upstream, method=b"POST", body=Chunks(b"first", more, b"second"))
        assert await response.read() == b"first"
        more.set()
        assert await whole(response) == b"second"
    assert upstream.connections == 1


async def test_a_large_upload_goes_on_during_the_answer(engine, serve):
    """Then the upstream may take its time with either: whoever reads the answer has the say."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"transfer-encoding: chunked\r\n\r\n1\r\n.\r\n")
        await asyncio.sleep(0.15)
        await peer.body(200 * len(PIECE))
        await peer.say(b"2\r\nok\r\n0\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    body = Chunks(*[PIECE] * 200, length=200 * len(PIECE))
    response = await get(engine, upstream, method=b"POST", body=body, timeout=replace(PATIENCE, write=0.05))
    assert await whole(response) == b".ok"
    assert body.reads == 202


async def test_an_answer_that_ends_before_the_upload_ends_both(engine, serve):
    """The rest of the body would be taken for a request."""
    never = asyncio.Event()
    rest = []

    async def handler(peer):
        await peer.head()
        await peer.answer()
        rest.append(await peer.rest())

    upstream = await serve(handler)
    assert await fetch(engine, upstream, method=b"POST", body=Chunks(b"some", never)) == b"ok"
    await until(lambda: rest)
    assert not rest[0].endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("length", [None, 1_000_000])
async def test_a_body_that_breaks_off_never_ends_cleanly(engine, serve, length):
    """The upstream would take what it has for the whole."""
    rest = []

    async def handler(peer):
        await peer.head()
        rest.append(await peer.rest())

    upstream = await serve(handler)
    with pytest.raises(ClientDisconnected):
        await get(engine, upstream, method=b"POST", body=Chunks(b"some", ClientDisconnected(), length=length))
    await until(lambda: rest)
    assert not rest[0].endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("pieces", [3, 5])
async def test_a_large_body_of_another_length_breaks_off(engine, serve, pieces):
    """Short or long, the upstream must not see a whole request."""
    rest = []

    async def handler(peer):
        await peer.head()
        rest.append(await peer.rest())

    upstream = await serve(handler)
    with pytest.raises(BadRequest):
        await get(engine, upstream, method=b"POST", body=Chunks(*[PIECE] * pieces, length=4 * len(PIECE)))
    await until(lambda: rest)
    assert len(rest[0]) < 4 * len(PIECE)


async def test_a_body_that_breaks_off_during_the_answer_aborts_it(engine, serve):
    """The client is gone, but whoever reads must not wait for ever."""
    broken = asyncio.Event()

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"transfer-encoding: chunked\r\n\r\n")
        await peer.rest()

    upstream = await serve(handler)
    response = await get(engine, upstream, method=b"POST", body=Chunks(b"a", broken, ClientDisconnected("gone")))
    broken.set()
    with pytest.raises(UpstreamAborted):
        await response.read()


async def test_a_body_whose_reading_is_cancelled_fails_the_request(engine, serve):
    """It is neither the end of the body nor of the task that sends it."""

    async def handler(peer):
        await peer.head()
        await peer.rest()

    upstream = await serve(handler)
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream, method=b"POST", body=Chunks(b"a", asyncio.CancelledError()))


def established(peer):
    info = getattr(socket, "TCP_INFO", None)
    return info and peer.writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, info, 1) == b"\1"


async def test_an_upstream_that_stops_taking_the_body_times_out(engine, serve):
    """Bounds each stall, not the whole upload."""

    async def handler(peer):
        await peer.head()
        peer.writer.transport.pause_reading()
        await over.wait()
        # Not behind megabytes that nobody takes.
        await until(lambda: not established(peer))

    over = asyncio.Event()
    upstream = await serve(handler)
    body = Chunks(*[PIECE] * 1000, length=1000 * len(PIECE))
    with pytest.raises(UpstreamTimeout, match="take the request"):
        await get(engine, upstream, method=b"POST", body=body, timeout=replace(PATIENCE, write=0.1))
    over.set()
    await until(lambda: not upstream.tasks)


async def test_an_upload_that_moves_does_not_time_out(engine, serve):
    """However long it takes in all; the wait for the answer begins when it is sent."""

    async def handler(peer):
        await peer.head()
        for _ in range(20):
            await peer.body(50 * len(PIECE))
            await asyncio.sleep(0.025)
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler)
    body = Chunks(*[PIECE] * 1000, length=1000 * len(PIECE))
    hasty = replace(PATIENCE, write=0.3, read=0.4)
    assert await fetch(engine, upstream, method=b"POST", body=body, timeout=hasty) == b"ok"


class Trickle(asyncio.Transport):
    """A transport whose buffer drains a few bytes at a time, as no two kernels do alike."""

    def __init__(self):
        super().__init__()
        self.size = 0
        self.aborted = False

    def write(self, data):
        self.size += len(data)

    def get_write_buffer_size(self):
        return self.size

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def abort(self):
        self.aborted = True


async def test_a_request_that_leaves_slowly_times_out_only_when_it_stops(engine):
    """As long as some of it leaves, the upstream is merely slow."""
    pool = engine._open_pool(Origin("http", "slow.example", 80, b"slow.example"))
    connection, transport = pool._place(), Trickle()
    connection.connection_made(transport)
    response = connection.begin(b"GET / HTTP/1.1\r\n\r\n", False, replace(PATIENCE, write=0.2, read=0.2))
    connection.upload(Chunks(PIECE, asyncio.Event(), length=100_000))
    connection.pause_writing()
    failed = connection.expect_head()
    for _ in range(30):
        await asyncio.sleep(0.02)
        transport.size -= 10
        assert not failed.done()
    await failed
    assert isinstance(response.failure, UpstreamTimeout)
    assert transport.aborted


async def test_a_slow_client_is_not_the_upstreams_silence(engine, serve):
    """The wait for an answer begins when the request has been sent."""
    pause = asyncio.Event()

    async def handler(peer):
        await peer.head()
        await peer.reader.readuntil(b"0\r\n\r\n")
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler)
    asyncio.get_running_loop().call_later(0.15, pause.set)
    hasty = replace(PATIENCE, write=0.05, read=0.05)
    assert await fetch(engine, upstream, method=b"POST", body=Chunks(b"a", pause, b"b"), timeout=hasty) == b"ok"
