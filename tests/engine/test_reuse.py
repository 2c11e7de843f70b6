"""When a connection serves again, when it must not, and how many there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from idp_middleware._engine import Engine
from idp_middleware.errors import UpstreamTimeout, UpstreamUnreachable

from .conftest import PATIENCE, Chunks, fetch, get, until, whole

OK = b"HTTP/1.1 200 OK\r\n"


async def well_behaved(peer):
    while True:
        await peer.head()
        await peer.answer()


async def test_one_connection_serves_request_after_request(engine, serve):
    """Most of a request's cost would be the connection."""
    upstream = await serve(well_behaved)
    for _ in range(5):
        assert await fetch(engine, upstream) == b"ok"
    assert upstream.connections == 1


async def test_it_serves_again_before_its_last_body_is_read(engine, serve):
    """What has arrived belongs to the response, not to the connection."""
    upstream = await serve(well_behaved)
    first = await get(engine, upstream)
    second = await get(engine, upstream)
    assert await whole(first) == await whole(second) == b"ok"
    assert upstream.connections == 1


async def test_the_last_one_given_back_is_the_first_one_lent(engine, serve):
    """So that those not needed come to rest and are closed."""
    served = []

    async def handler(peer):
        while True:
            served.append((await peer.head(), peer))
            await peer.answer()

    upstream = await serve(handler)
    first, second = await asyncio.gather(get(engine, upstream, b"/1"), get(engine, upstream, b"/2"))
    assert upstream.connections == 2
    last = served[-1][1]
    for _ in range(4):
        await fetch(engine, upstream)
    assert {peer for _, peer in served[2:]} == {last}
    await first.aclose()
    await second.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok", id="Connection: close"),
        pytest.param(OK + b"connection: x-hop, Close\r\ncontent-length: 2\r\n\r\nok", id="close among others"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", id="HTTP/1.0"),
        pytest.param(OK + b"content-length: 2\r\n\r\nokX", id="a byte too many"),
        pytest.param(OK + b"content-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nx: ", id="the start of an answer too many"),
        pytest.param(
            OK + b"content-length: 2\r\n\r\nok" + OK + b"content-length: 4\r\n\r\nevil", id="an answer too many"
        ),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nX", id="a byte after the last chunk"),
    ],
)
async def test_a_connection_that_says_more_or_is_to_end_is_not_used_again(engine, serve, answer):
    """Bytes left over would be the next caller's answer."""

    async def handler(peer):
        await peer.head()
        await peer.say(answer)
        await peer.rest()

    upstream = await serve(handler)
    for _ in range(2):
        assert await fetch(engine, upstream) == b"ok"
    assert upstream.connections == 2


async def test_surplus_after_a_body_in_several_packets(engine, serve):
    """The same where the body went past the parser."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 8\r\n\r\nhell")
        await asyncio.sleep(0.01)
        await peer.say(b"o wo" + OK + b"content-length: 4\r\n\r\nevil")
        await peer.rest()

    upstream = await serve(handler)
    for _ in range(2):
        assert await fetch(engine, upstream) == b"hello wo"
    assert upstream.connections == 2


@pytest.mark.parametrize(
    "surplus",
    [
        pytest.param(b"he", id="less than a line"),
        pytest.param(b"hello world\r\n\r\n", id="with a blank line"),
        pytest.param(OK + b"content-length: 0\r\n\r\n", id="an answer"),
    ],
)
async def test_a_body_after_HEAD_is_not_the_next_answer(engine, serve, surplus):  # noqa: N802
    """Some servers send one."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 30\r\n\r\n" + surplus)
        await peer.rest()

    upstream = await serve(handler)
    for _ in range(2):
        response = await get(engine, upstream, method=b"HEAD")
        assert response.complete
        assert await response.read() == b""
    assert upstream.connections == 2


@pytest.mark.parametrize("head", [b"connection: close\r\n", b"connection: keep-alive, close\r\n"])
async def test_close_after_HEAD_is_honoured(engine, serve, head):  # noqa: N802
    """Where the parser cannot tell by itself, since it waits for a body."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + head + b"\r\n")
        await peer.rest()

    upstream = await serve(handler)
    for _ in range(2):
        await (await get(engine, upstream, method=b"HEAD")).aclose()
    assert upstream.connections == 2


async def test_what_is_said_while_idle_ends_the_connection(engine, serve):
    """A 408 on an idle connection must not answer the next request."""
    speak = asyncio.Event()

    async def handler(peer):
        await peer.head()
        await peer.answer()
        await speak.wait()
        await peer.say(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 4\r\n\r\nevil")
        await peer.rest()

    upstream = await serve(handler)
    await fetch(engine, upstream)
    speak.set()
    await until(lambda: not upstream.tasks)
    assert await fetch(engine, upstream) == b"ok"
    assert upstream.connections == 2


async def test_a_response_let_go_before_its_end_takes_its_connection_along(engine, serve):
    """What is still to come would be the next caller's answer."""

    async def handler(peer):
        await peer.head()
        await peer.say(OK + b"content-length: 10\r\n\r\nhello")
        assert await peer.rest() == b""

    upstream = await serve(handler)
    response = await get(engine, upstream)
    await response.aclose()
    await until(lambda: not upstream.tasks)


async def test_idle_connections_are_closed_in_time(serve):
    """Before the upstream does, so that seldom a request crosses its closing."""
    engine = Engine(keepalive=0.05)
    upstream = await serve(well_behaved)
    await fetch(engine, upstream)
    await until(lambda: not upstream.tasks)
    await fetch(engine, upstream)
    assert upstream.connections == 2
    await engine.aclose()


async def test_no_more_idle_ones_are_kept_than_allowed(serve):
    """After a burst."""
    engine = Engine(max_idle=1)
    upstream = await serve(well_behaved)
    await asyncio.gather(*(fetch(engine, upstream) for _ in range(5)))
    await until(lambda: len(upstream.tasks) == 1)
    await engine.aclose()


async def test_origins_do_not_share_connections(engine, serve):
    """Same host, other port."""
    one, other = await serve(well_behaved), await serve(well_behaved)
    await fetch(engine, one)
    await fetch(engine, other)
    assert (one.connections, other.connections) == (1, 1)


async def test_requests_beyond_the_bound_wait_their_turn(serve):
    """First come, first served."""
    engine = Engine(max_connections=2)
    order = []

    async def handler(peer):
        while True:
            order.append((await peer.head())[5:7])
            await asyncio.sleep(0.005)
            await peer.answer()

    upstream = await serve(handler)
    targets = [b"/%02d" % i for i in range(20)]
    assert await asyncio.gather(*(fetch(engine, upstream, target) for target in targets)) == [b"ok"] * 20
    assert upstream.connections == 2
    assert order[2:] == [target[1:] for target in targets[2:]]
    await engine.aclose()


async def test_places_pass_on_when_connections_do_not_last(serve):
    """Each answer ends its connection, and whoever waits opens the next."""
    engine = Engine(max_connections=2)
    now = most = 0

    async def handler(peer):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await peer.head()
        await peer.answer(head=b"connection: close\r\n")
        now -= 1
        await peer.rest()

    upstream = await serve(handler)
    assert await asyncio.gather(*(fetch(engine, upstream) for _ in range(20))) == [b"ok"] * 20
    assert upstream.connections == 20
    assert most <= 2
    await engine.aclose()


async def test_waiting_for_a_connection_is_bounded(serve):
    """And giving up leaves the queue as it was."""
    engine = Engine(max_connections=1)
    go = asyncio.Event()

    async def handler(peer):
        while True:
            await peer.head()
            await go.wait()
            await peer.answer()

    upstream = await serve(handler)
    first = asyncio.create_task(fetch(engine, upstream))
    await until(lambda: upstream.connections)
    hasty = asyncio.create_task(get(engine, upstream, timeout=replace(PATIENCE, pool=0.02)))
    patient = asyncio.create_task(fetch(engine, upstream))
    with pytest.raises(UpstreamTimeout):
        await hasty
    go.set()
    assert await first == await patient == b"ok"
    assert upstream.connections == 1
    await engine.aclose()


async def test_a_cancelled_waiter_loses_no_connection(serve):
    """Neither while it waits nor in the very moment it is served."""
    engine = Engine(max_connections=1)
    upstream = await serve(well_behaved)
    for rounds in range(12):
        tasks = [asyncio.create_task(fetch(engine, upstream)) for _ in range(4)]
        for _ in range(rounds):
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        assert await tasks[0] == await tasks[3] == b"ok"
        await asyncio.wait(tasks)
    await engine.aclose()


async def test_a_waiter_cancelled_as_it_is_served_passes_its_turn_on(serve):
    """The connection is on its way to it when it goes."""
    engine = Engine(max_connections=1)
    upstream = await serve(well_behaved)
    pool = None
    first = await get(engine, upstream)
    pool = engine._pools[upstream.origin]
    lent = pool.take()
    waiters = [asyncio.create_task(fetch(engine, upstream)) for _ in range(2)]
    await asyncio.sleep(0)
    pool.release(lent)
    waiters[0].cancel()
    assert await waiters[1] == b"ok"
    assert waiters[0].cancelled()
    await first.aclose()
    await engine.aclose()


# The keep-alive race: the upstream closes an idle connection while a request is on its way.


def gives_up(served=1, *, seen, reset=False):
    """Serves so many requests on a connection, then closes it on the next without an answer."""

    async def handler(peer):
        for _ in range(served):
            seen.append(await peer.head())
            await peer.answer()
        seen.append(await peer.head())
        if reset:
            peer.reset()

    return handler


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"PUT"])
async def test_an_idempotent_request_is_sent_again_on_a_fresh_connection(engine, serve, method, reset):
    """RFC 9112 section 9.3.1: nothing of an answer had come, and once more does no harm."""
    seen = []
    upstream = await serve(gives_up(seen=seen, reset=reset))
    await fetch(engine, upstream)
    response = await get(engine, upstream, method=method)
    assert response.status == 200
    assert upstream.connections == 2
    assert len(seen) == 3
    await response.aclose()


async def test_the_second_try_is_the_last_and_on_a_fresh_connection(engine, serve):
    """Other idle ones are likely as stale, and an upstream that answers nobody is not asked for ever."""
    seen = []
    stale = asyncio.Event()

    async def handler(peer):
        seen.append(await peer.head())
        if not stale.is_set():
            await peer.answer()
            seen.append(await peer.head())

    upstream = await serve(handler)
    await asyncio.gather(*(fetch(engine, upstream) for _ in range(3)))
    assert upstream.connections == 3
    stale.set()
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream)
    assert upstream.connections == 4
    assert len(seen) == 5


async def test_a_POST_is_never_sent_twice(engine, serve):  # noqa: N802
    """It may have been carried out (RFC 9110 section 9.2.2)."""
    seen = []
    upstream = await serve(gives_up(seen=seen))
    await fetch(engine, upstream)
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream, method=b"POST", body=Chunks(b"x", length=1))
    assert len(seen) == 2


async def test_a_POST_skips_a_connection_that_is_known_to_be_closed(engine, serve):  # noqa: N802
    """Nothing of it has left, so nothing is repeated."""

    async def handler(peer):
        await peer.head()
        await peer.answer()

    upstream = await serve(handler)
    for _ in range(3):
        assert await fetch(engine, upstream, method=b"POST", body=Chunks(b"x", length=1)) == b"ok"
        await asyncio.sleep(0.02)
    assert upstream.connections == 3


async def test_the_second_try_takes_an_idle_one_where_no_other_is_allowed(serve):
    """Waiting for a free one beside it would be absurd."""
    engine = Engine(max_connections=1)
    upstream = await serve(well_behaved)
    await fetch(engine, upstream)
    pool = engine._pools[upstream.origin]
    assert await pool.acquire(replace(PATIENCE, pool=0.01)) in pool._connections
    await engine.aclose()


async def test_a_place_that_came_free_is_not_lost_with_who_it_was_for(serve):
    """Cancelled as it was served with a connection still to be opened."""
    engine = Engine(max_connections=1)
    upstream = await serve(well_behaved)
    await fetch(engine, upstream)
    lent = engine._pools[upstream.origin].take()
    waiters = [asyncio.create_task(fetch(engine, upstream)) for _ in range(2)]
    await asyncio.sleep(0)
    lent.abort()
    waiters[0].cancel()
    assert await waiters[1] == b"ok"
    await engine.aclose()


async def test_a_connection_that_is_closing_is_not_lent(engine, serve):
    """It is known to be over a moment before the event loop says so."""
    upstream = await serve(well_behaved)
    await asyncio.gather(*(fetch(engine, upstream) for _ in range(2)))
    engine._pools[upstream.origin]._idle[-1]._transport.close()
    assert await fetch(engine, upstream, method=b"POST") == b"ok"
    assert upstream.connections == 2


async def test_a_connection_that_ends_while_it_changes_hands_is_not_used(serve):
    """Whoever waited for it is served by another."""
    engine = Engine(max_connections=1)
    upstream = await serve(well_behaved)
    await fetch(engine, upstream)
    pool = engine._pools[upstream.origin]
    lent = pool.take()
    waiter = asyncio.create_task(fetch(engine, upstream, method=b"POST"))
    await asyncio.sleep(0)
    pool.release(lent)
    lent._transport.close()
    assert await waiter == b"ok"
    assert upstream.connections == 2
    await engine.aclose()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_fresh_connection_closed_without_an_answer_is_a_failure(engine, serve, method):
    """That is no keep-alive race, so trying again would only double the load."""
    seen = []
    upstream = await serve(gives_up(0, seen=seen))
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream, method=method)
    assert len(seen) == 1


async def test_a_closing_after_the_first_byte_is_a_failure(engine, serve):
    """It was processed, so it is not the keep-alive race."""

    async def handler(peer):
        await peer.head()
        await peer.answer()
        await peer.head()
        await peer.say(b"HTTP/1.1 100 Continue\r\n\r\n")

    upstream = await serve(handler)
    await fetch(engine, upstream)
    with pytest.raises(UpstreamUnreachable):
        await get(engine, upstream)
    assert upstream.connections == 1


@pytest.mark.parametrize("again", [True, False])
async def test_a_large_body_is_sent_again_only_if_it_can_be(engine, serve, again):
    """The body knows whether its first bytes are still there."""
    bodies = []
    piece = b"x" * 50_000

    async def handler(peer):
        if upstream.connections == 1:
            await peer.head()
            await peer.answer()
            await peer.head()
            await peer.body(len(piece))
            peer.reset()
            return
        await peer.head()
        bodies.append(await peer.body(4 * len(piece)))
        await peer.answer()
        await peer.rest()

    upstream = await serve(handler)
    await fetch(engine, upstream)
    body = Chunks(*[piece] * 4, length=4 * len(piece), again=again)
    if again:
        assert await fetch(engine, upstream, method=b"PUT", body=body) == b"ok"
        assert bodies == [piece * 4]
    else:
        with pytest.raises(UpstreamUnreachable):
            await get(engine, upstream, method=b"PUT", body=body)
        assert upstream.connections == 1
