"""Which of a host's addresses is connected to (RFC 8305)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest

from idp_middleware._engine._dial import _connect, _resolve, dial
from idp_middleware._urls import Origin


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield socket.AF_INET, server.getsockname()


@pytest.fixture
def refusing():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield socket.AF_INET, unused.getsockname()


@pytest.fixture
def silent():
    """An address whose connections stay half open: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield socket.AF_INET, server.getsockname()


async def test_a_silent_address_does_not_hold_up_the_next(listener, silent):
    """Broken IPv6 must not cost the whole time-out."""
    async with asyncio.timeout(5):
        with await _connect(asyncio.get_running_loop(), [silent, silent, listener]) as connection:
            assert connection.getpeername() == listener[1]


async def test_a_refusing_address_is_left_at_once(listener, refusing):
    """Without the delay that a silent one is given."""
    with await _connect(asyncio.get_running_loop(), [refusing, refusing, listener]) as connection:
        assert connection.getpeername() == listener[1]


async def test_the_last_failure_is_told(refusing):
    """When there is nothing left to try."""
    with pytest.raises(ConnectionRefusedError):
        await _connect(asyncio.get_running_loop(), [refusing, refusing])


@pytest.mark.parametrize("ticks", range(8))
async def test_a_race_that_is_cancelled_leaves_nothing_open(listener, silent, ticks):
    """Not even its winner: an open socket would be a warning, which is an error here."""
    race = asyncio.create_task(_connect(asyncio.get_running_loop(), [listener, silent]))
    for _ in range(ticks):
        await asyncio.sleep(0)
    race.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        (await race).close()
    await asyncio.sleep(0)


async def test_families_take_turns():
    """One that is broken delays by one attempt, not by as many as it has addresses."""
    loop = asyncio.get_running_loop()
    found = await _resolve(loop, "localhost", 80)
    assert len({family for family, _ in found[:2]}) == len({family for family, _ in found})
    assert {address[0] for _, address in found} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
async def test_an_address_is_not_looked_up(host, family):
    """That would be a thread for nothing."""
    assert await _resolve(asyncio.get_running_loop(), host, 80) == [(family, (host, 80))]


class Kept(asyncio.Protocol):
    """A protocol that keeps its transport."""

    def connection_made(self, transport):
        self.transport = transport


async def test_a_descriptor_has_one_owner(listener):
    """Two would close it twice, the second time as somebody else's."""
    loop = asyncio.get_running_loop()
    made = Kept()
    origin = Origin("http", "127.0.0.1", listener[1][1], b"127.0.0.1")
    gc.collect()
    await dial(loop, lambda: made, origin, None, 5)
    connection = made.transport.get_extra_info("socket")
    number = connection.fileno()
    owners = [each for each in gc.get_objects() if type(each) is socket.socket and each.fileno() == number]
    assert len(owners) == (isinstance(loop, asyncio.BaseEventLoop))
    made.transport.abort()
    await asyncio.sleep(0)
    del owners
