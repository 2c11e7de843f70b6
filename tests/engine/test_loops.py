"""One engine, several event loops, one after the other."""

from __future__ import annotations

import asyncio
import gc
import warnings

from idp_middleware._engine import Engine

from .conftest import Upstream, fetch


async def answers(peer):
    while True:
        await peer.head()
        await peer.answer()


async def one_request(engine: Engine) -> int:
    upstream = Upstream(answers)
    server = await upstream.start(None, "127.0.0.1")
    try:
        assert await fetch(engine, upstream) == b"ok"
        assert await fetch(engine, upstream) == b"ok"
        await engine.aclose()
        assert await fetch(engine, upstream) == b"ok"
        return upstream.connections
    finally:
        server.close()
        for task in upstream.tasks:
            task.cancel()


def test_a_connection_is_not_carried_to_another_loop():
    """Test clients run each test on a loop of its own; the connections of the last one are dead."""
    engine = Engine()
    with warnings.catch_warnings():
        # Nobody closed the engine before its loop ended, so asyncio has reason to complain.
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            assert asyncio.run(one_request(engine)) == 2
        asyncio.run(engine.aclose())
        del engine
        gc.collect()


def test_closing_on_another_loop_does_nothing():
    """It could not close them there; that must not be an error at shutdown."""
    asyncio.run(Engine().aclose())
