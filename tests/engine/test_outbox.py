"""Requests leave at the end of the step they were made in: together, in order, and only if not over by then."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from idp_middleware._outbox import AT_ONCE, outbox_of
from idp_middleware.errors import UpstreamUnreachable

from .conftest import Chunks, fetch


async def test_a_request_that_is_over_before_it_left_never_leaves(engine, serve):
    """Written to a connection that was closed meanwhile, it would be an error of the loop."""
    heads, errors = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    async def handler(peer):
        while True:
            heads.append(await peer.head())
            await peer.answer()

    upstream = await serve(handler)
    await fetch(engine, upstream)
    second = asyncio.create_task(fetch(engine, upstream))
    closing = asyncio.create_task(engine.aclose())
    with pytest.raises(UpstreamUnreachable):
        await second
    await closing
    assert (len(heads), errors) == (1, [])


async def test_requests_of_one_step_leave_in_their_order(engine, serve):
    """Each on its connection, none mixed with another; a body that streams comes after its own head."""
    bodies = []

    async def handler(peer):
        while True:
            head = await peer.head()
            length = 4 if b"chunked" not in head else 19
            bodies.append(await peer.body(length))
            await peer.answer(bodies[-1])

    upstream = await serve(handler)
    for _ in range(2):
        answers = await asyncio.gather(
            fetch(engine, upstream, method=b"POST", body=Chunks(b"ab", b"cd", length=4)),
            fetch(engine, upstream, method=b"POST", body=Chunks(b"ef", b"gh", length=None)),
        )
        assert answers == [b"abcd", b"2\r\nef\r\n2\r\ngh\r\n0\r\n\r\n"]


async def test_one_write_that_fails_does_not_take_the_others_along():
    """They belong to other requests, which would wait until their time-outs."""
    loop = asyncio.get_running_loop()
    sent, errors = [], []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def fail():
        raise RuntimeError("closed")

    outbox = outbox_of(loop)
    for send in (lambda: sent.append(1), fail, lambda: sent.append(2)):
        outbox.add(send)
    assert sent == []
    await asyncio.sleep(0)
    assert sent == [1, 2]
    assert [str(error) for error in errors] == ["closed"]


async def test_many_writes_do_not_wait_for_the_last_of_them():
    """Nor is any of them forgotten, also where a write causes another."""
    sent = []
    outbox = outbox_of(asyncio.get_running_loop())

    def send(number):
        sent.append(number)
        if number % 10 == 0:
            outbox.add(lambda: sent.append(number + 1000))

    for number in range(3 * AT_ONCE + 1):
        outbox.add(partial(send, number))
    assert len(sent) >= 3 * AT_ONCE
    for _ in range(3):
        await asyncio.sleep(0)
    assert sorted(sent) == sorted([*range(3 * AT_ONCE + 1), *range(1000, 1000 + 3 * AT_ONCE + 1, 10)])
