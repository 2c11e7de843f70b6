"""The caller's channel: one reader, the body whole or broken, and a leaving that ends the work."""

from __future__ import annotations

import asyncio

import pytest

from idp_middleware import _inbound
from idp_middleware._inbound import REPLAY_LIMIT, Inbound, Lookout
from idp_middleware.errors import BadRequest, BodyTooLarge, ClientDisconnected


class Channel:
    """An ASGI receive channel that says what a test tells it, and notices two readers at once."""

    def __init__(self, *messages):
        self._queue = asyncio.Queue()
        self._reading = False
        for message in messages:
            self.say(message)

    def say(self, message):
        self._queue.put_nowait(message)

    async def __call__(self):
        assert not self._reading, "two readers would take each other's messages"
        self._reading = True
        try:
            return await self._queue.get()
        finally:
            self._reading = False


def part(body: bytes, *, more: bool = False):
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


async def test_a_caller_who_leaves_ends_whatever_is_waited_for():
    """Also behind the one empty message that a request without a body has."""
    channel = Channel(part(b""), GONE)
    with pytest.raises(ClientDisconnected), Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=None, chunked=False)
        await asyncio.sleep(20)


async def test_a_cancellation_from_outside_stays_one():
    """A server that shuts down, or a time-out around the app, is not a caller leaving."""
    channel = Channel()

    async def work():
        with Inbound(channel, Lookout()) as inbound:
            inbound.listen()
            await asyncio.sleep(20)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work()


async def test_a_failing_channel_is_a_caller_who_left():
    """Some servers raise instead of saying so."""

    async def fails():
        raise OSError("gone")

    with pytest.raises(ClientDisconnected), Inbound(fails, Lookout()) as inbound:
        inbound.listen()
        await asyncio.sleep(20)


async def test_after_the_exchange_nobody_listens_any_more():
    """The server's next message belongs to the next request."""
    lookout = Lookout()
    for _ in range(3):
        with Inbound(Channel(), lookout) as inbound:
            inbound.listen()
    with Inbound(Channel(), lookout):
        await asyncio.sleep(0.15)
    await asyncio.sleep(0.15)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not lookout._new | lookout._due | lookout._long


async def test_a_body_is_read_whole_and_can_be_read_again_while_it_is_small():
    """A refused token is renewed, and the request sent once more."""
    channel = Channel(part(b"one", more=True), part(b"", more=True), part(b"two"))
    with Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=6, chunked=False)
        assert inbound.unread
        for _ in range(2):
            assert [await inbound.read() for _ in range(3)] == [b"one", b"two", b""]
            assert inbound.rewind()
        assert not inbound.unread


async def test_a_large_body_is_not_kept():
    """Memory is bounded whatever passes through."""
    channel = Channel(part(b"x" * REPLAY_LIMIT, more=True), part(b"y"))
    with Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=None, chunked=True)
        await inbound.read()
        assert inbound.rewind()
        assert await inbound.read() == b"x" * REPLAY_LIMIT
        assert await inbound.read() == b"y"
        assert not inbound.rewind()


async def test_a_reader_that_is_cancelled_loses_nothing():
    """The upstream answered early; what arrives meanwhile is still there for a second try."""
    channel = Channel(part(b"one", more=True))
    with Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=None, chunked=True)
        assert await inbound.read() == b"one"
        reader = asyncio.create_task(inbound.read())
        await asyncio.sleep(0.01)
        reader.cancel()
        await asyncio.wait([reader])
        channel.say(part(b"two"))
        assert inbound.rewind()
        assert [await inbound.read() for _ in range(3)] == [b"one", b"two", b""]


async def test_listening_leaves_a_reader_alone():
    """A response may start while the request's body is still being waited for."""
    channel = Channel()
    with Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=3, chunked=False)
        reader = asyncio.create_task(inbound.read())
        await asyncio.sleep(0)
        inbound.listen()
        await asyncio.sleep(0.15)
        channel.say(part(b"abc"))
        assert await reader == b"abc"


async def test_a_body_that_breaks_off_is_never_a_whole_one():
    """Its end would pass for the end."""
    channel = Channel(part(b"one", more=True), GONE)
    with pytest.raises(ClientDisconnected), Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=None, chunked=True)
        while await inbound.read():
            pass
    channel = Channel(part(b"short"))
    with Inbound(channel, Lookout()) as inbound:
        inbound.expect(length=10, chunked=False)
        with pytest.raises(BadRequest):
            await inbound.read()


async def test_a_body_is_bounded_by_what_it_says_and_by_what_it_is():
    """413, before anything goes upstream where it says so."""
    with Inbound(Channel(), Lookout()) as inbound:
        inbound.expect(length=11, chunked=False)
        with pytest.raises(BodyTooLarge):
            inbound.limit(10)
    with Inbound(Channel(part(b"x" * 11)), Lookout()) as inbound:
        inbound.expect(length=None, chunked=True)
        inbound.limit(10)
        with pytest.raises(BodyTooLarge):
            await inbound.read()


def test_a_lookout_outlives_an_event_loop():
    """An app under test meets several, one after the other; a timer of an ended loop never fires."""
    lookout = Lookout()

    async def short():
        with Inbound(Channel(), lookout):
            pass

    async def left():
        with Inbound(Channel(part(b""), GONE), lookout) as inbound:
            inbound.expect(length=None, chunked=False)
            await asyncio.sleep(20)

    asyncio.run(short())
    with pytest.raises(ClientDisconnected):
        asyncio.run(left())


async def test_a_body_that_stops_coming_is_given_up(monkeypatch):
    """Its upload holds a connection to the upstream; whatever else goes on in the task goes on."""
    monkeypatch.setattr(_inbound, "PATIENCE", 0.1)
    for listens in (False, True):
        with Inbound(Channel(part(b"one", more=True)), Lookout()) as inbound:
            inbound.expect(length=6, chunked=False)
            assert await inbound.read() == b"one"
            if listens:
                inbound.listen()
            with pytest.raises(BadRequest, match="stopped coming"):
                await inbound.read()
            assert inbound.unread
            await inbound.drain()
            await asyncio.sleep(0)


async def test_a_caller_who_takes_nothing_is_as_good_as_gone(monkeypatch):
    """A stream that nobody reads holds its upstream connection."""
    monkeypatch.setattr(_inbound, "PATIENCE", 0.1)
    with pytest.raises(ClientDisconnected), Inbound(Channel(part(b"")), Lookout()) as inbound:
        inbound.expect(length=None, chunked=False)
        for _ in range(3):
            inbound.sending()
            await asyncio.sleep(0.05)
            inbound.sent()
        inbound.sending()
        await asyncio.sleep(20)


async def test_patience_is_for_callers_only(monkeypatch):
    """However long the upstream takes is for the route's time-outs to say; an idle event stream may last for days."""
    monkeypatch.setattr(_inbound, "PATIENCE", 0.05)
    with Inbound(Channel(part(b"")), Lookout()) as inbound:
        inbound.expect(length=None, chunked=False)
        inbound.sending()
        inbound.sent()
        await asyncio.sleep(0.4)
