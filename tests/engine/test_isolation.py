"""Whatever goes wrong around it, an answer is that of its own request."""

from __future__ import annotations

import asyncio
import random

import pytest

from idp_middleware._engine import Engine
from idp_middleware._engine._parser import ResponseParser
from idp_middleware._engine._response import Response
from idp_middleware._types import Timeout
from idp_middleware.errors import UpstreamAborted, UpstreamError

from .conftest import Chunks, get

OK = b"HTTP/1.1 200 OK\r\n"
HASTY = Timeout(connect=5, read=0.2, write=5, pool=5)


def moody(rng):
    """An upstream that answers each request with its target, in any framing, and every so often wrongly."""

    async def handler(peer):
        while True:
            head = await peer.head()
            method, target, _ = head.split(b" ", 2)
            if b"transfer-encoding" in head:
                while size := int(await peer.reader.readuntil(b"\r\n"), 16):
                    await peer.body(size + 2)
                await peer.body(2)
            elif b"content-length" in head:
                await peer.body(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            body = target * rng.choice([1, 1, 1, 100, 20_000])
            sized = OK + b"content-length: %d\r\n\r\n" % len(body)
            answer = rng.choice(
                [
                    sized + body,
                    b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" + sized + body,
                    OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nt: 1\r\n\r\n" % (len(body), body),
                ]
            )
            if method == b"HEAD":
                answer = sized
            cut = rng.randrange(len(answer))
            mood = rng.random()
            if mood < 0.1:
                return peer.reset() if mood < 0.05 else None
            # Surplus in a packet of its own may come when the next request is under way: no client can tell then.
            if mood < 0.2 and len(answer) < 2000:
                answer += rng.choice([b"x", OK, OK + b"content-length: 4\r\n\r\nevil", b"\r\n", answer])
            elif mood < 0.25:
                return await peer.say(answer[:cut])
            await peer.say(answer[:cut])
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.01)
            await peer.say(answer[cut:])

    return handler


@pytest.mark.parametrize("seed", range(3))
async def test_no_answer_reaches_another_request(serve, seed):
    """With cancellations, early goodbyes and an upstream that breaks every rule."""
    rng = random.Random(seed)
    engine = Engine(max_connections=8)
    upstream = await serve(moody(rng))
    outcomes = []

    async def one(number):
        target = b"/%05d;" % number
        method = rng.choice([b"GET", b"GET", b"HEAD", b"POST", b"PUT"])
        body = None
        if method in (b"POST", b"PUT"):
            size = rng.choice([0, 10, 100_000])
            body = Chunks(b"z" * size, length=rng.choice([size, None])) if size else Chunks(length=0)
        try:
            response = await get(engine, upstream, target, method=method, body=body, timeout=HASTY)
            received = b""
            while part := await response.read():
                received += part
                if rng.random() < 0.05:
                    break
            await response.aclose()
        except (UpstreamError, UpstreamAborted) as exc:
            outcomes.append(type(exc))
            return
        expected = target * (len(received) // len(target) + 1)
        assert received == expected[: len(received)]
        outcomes.append(200)

    tasks = set()
    for number in range(300):
        task = asyncio.create_task(one(number))
        tasks.add(task)
        if rng.random() < 0.1:
            asyncio.get_running_loop().call_later(rng.random() * 0.02, task.cancel)
        if len(tasks) >= 16:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for one_done in done:
                if not one_done.cancelled():
                    one_done.result()
    await asyncio.wait(tasks)
    assert outcomes.count(200) > 150
    await engine.aclose()
    assert not engine._pools


HEAD_ONLY = [
    OK + b"content-length: 10\r\n\r\n",
    OK + b"transfer-encoding: chunked\r\n\r\n",
    OK + b"connection: close\r\n\r\n",
    OK + b"x: y\r\n\r\n",
]
WITH_BODY = [
    OK + b"content-length: 5\r\n\r\nhello",
    OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
    OK + b"transfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nt: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\na: b\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
    OK + b"\r\nuntil the end",
]


def parsed(pieces, bodiless):
    parser, response = ResponseParser(), Response(None)
    parser.begin(response, bodiless)
    for piece in pieces:
        parser.feed(piece)
    body = b"".join(response.chunks)
    return response.status, response.headers, body, parser.complete, parser.reusable, parser.ends_at_close


@pytest.mark.parametrize(("answers", "bodiless"), [(HEAD_ONLY, True), (WITH_BODY, False)], ids=["HEAD", "GET"])
def test_packets_may_end_anywhere(answers, bodiless):
    """Whole, in two pieces at every place, and byte by byte, an answer is the same, and so is what it leaves."""
    for answer in answers:
        whole = parsed([answer], bodiless)
        assert whole[0] in (200, 304)
        assert whole[3] is not whole[5]
        for cut in range(1, len(answer)):
            assert parsed([answer[:cut], answer[cut:]], bodiless) == whole
        assert parsed([answer[i : i + 1] for i in range(len(answer))], bodiless) == whole


@pytest.mark.parametrize(("answers", "bodiless"), [(HEAD_ONLY, True), (WITH_BODY[:-1], False)], ids=["HEAD", "GET"])
@pytest.mark.parametrize("surplus", [b"x", b"HTTP", OK, OK + b"content-length: 4\r\n\r\nevil"])
def test_surplus_in_the_last_packet_is_noticed_wherever_that_begins(answers, bodiless, surplus):
    """Else it would be the answer to the next request."""
    for answer in answers:
        for cut in range(len(answer)):
            status, _, body, complete, reusable, _ = parsed(
                [piece for piece in (answer[:cut], answer[cut:] + surplus) if piece], bodiless
            )
            assert (status, complete, reusable) == (parsed([answer], bodiless)[0], True, False)
            assert b"evil" not in body
