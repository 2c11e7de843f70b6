"""One asks and the others take what it brings: on a real Redis, each engine as it would be in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from cryptography.fernet import Fernet

from idp_middleware import Caller, ProxyRoute, Token, TokenCache
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import IdentityNotLinked, TokenSourceUnavailable
from tests.fleet.redis_server import RedisServer

KEY = Fernet.generate_key().decode()
ALICE = Caller("auth0|alice")


class Source:
    """Gives tokens by number, each once it is let."""

    identity = ("source", "1")

    def __init__(self) -> None:
        self.asked = 0
        self.answers: dict[int, Any] = {}
        self.gates: dict[int, asyncio.Event] = {}

    def hold(self, number: int) -> asyncio.Event:
        return self.gates.setdefault(number, asyncio.Event())

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        self.asked += 1
        number = self.asked
        if number in self.gates:
            await self.gates[number].wait()
        answer = self.answers.get(number, Token(f"token-{number}", time.time() + 3600))
        if isinstance(answer, Exception):
            raise answer
        return answer


class Fleet:
    """Some processes' engines, with their caches."""

    def __init__(self, url: str, size: int) -> None:
        self.source = Source()
        self.route = ProxyRoute("https://api.example.com", token_source=self.source, connection="github")
        self.caches = [TokenCache.from_url(url, encryption_keys=[KEY]) for _ in range(size)]
        self.engines = [TokenEngine(cache) for cache in self.caches]

    def ask(self, worker: int) -> asyncio.Task[Token]:
        return asyncio.create_task(self.engines[worker].token(ALICE, self.route))

    async def aclose(self) -> None:
        for engine in self.engines:
            await engine.aclose()


Make = Callable[[int], Fleet]


@pytest.fixture
async def fleet(server: RedisServer, redis: Any) -> AsyncIterator[Make]:  # the latter to leave nothing behind
    made: list[Fleet] = []

    def make(size: int) -> Fleet:
        made.append(Fleet(server.url, size))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(10):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.005)


async def test_one_asks_and_the_others_take_what_it_brings(fleet: Make, redis: Any) -> None:
    """Four cold workers would otherwise cost four look-ups."""
    workers = fleet(4)
    gate = workers.source.hold(1)
    asking = [workers.ask(worker) for worker in range(4)]
    await until(lambda: sum(cache.statistics["waits"] for cache in workers.caches) == 3)
    gate.set()
    assert {token.value for token in await asyncio.gather(*asking)} == {"token-1"}
    assert workers.source.asked == 1
    assert await redis.keys("*:lock") == []


async def test_a_worker_that_was_killed_is_followed_by_one(fleet: Make, redis: Any) -> None:
    """Its claim outlives it by a lease; then one of those who waited asks, not all of them."""
    workers = fleet(4)
    gates = [workers.source.hold(1), workers.source.hold(2)]
    killed = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    (lock,) = await redis.keys("*:lock")
    others = [workers.ask(worker) for worker in range(1, 4)]
    await until(lambda: sum(cache.statistics["waits"] for cache in workers.caches) == 3)
    # Nobody renews a dead worker's claim.
    await redis.pexpire(lock, 1)
    await until(lambda: workers.source.asked == 2)
    gates[1].set()
    assert {token.value for token in await asyncio.gather(*others)} == {"token-2"}
    assert workers.source.asked == 2
    gates[0].set()
    await killed


async def test_a_claim_lasts_as_long_as_the_asking(fleet: Make, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source may be slower than any lease that is short enough for the day a worker is killed."""
    monkeypatch.setattr("idp_middleware._shared_values.LEASE", 0.5)
    workers = fleet(2)
    gate = workers.source.hold(1)
    asking = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    waiting = workers.ask(1)
    await asyncio.sleep(1.2)
    assert workers.source.asked == 1
    gate.set()
    assert await asking == await waiting
    assert await redis.keys("*:lock") == []


async def test_who_has_waited_long_enough_asks_as_well(fleet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs must not hang the others; two look-ups are better than a failed request."""
    monkeypatch.setattr("idp_middleware._shared_values.MAX_WAIT", 0.1)
    workers = fleet(2)
    gate = workers.source.hold(1)
    hanging = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    assert (await workers.ask(1)).value == "token-2"
    gate.set()
    await hanging


@pytest.mark.parametrize("outlived", [True, False], ids=["lease over", "wait over"])
async def test_an_answer_that_comes_late_replaces_nothing(
    fleet: Make, redis: Any, monkeypatch: pytest.MonkeyPatch, outlived: bool
) -> None:
    """A worker that was stalled comes back with a token that the later one has put an end to."""
    monkeypatch.setattr("idp_middleware._shared_values.MAX_WAIT", 10 if outlived else 0.1)
    workers = fleet(3)
    gate = workers.source.hold(1)
    stalled = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    if outlived:
        await redis.delete(*await redis.keys("*:lock"))
    assert (await workers.ask(1)).value == "token-2"
    gate.set()
    assert (await stalled).value == "token-2"
    assert workers.caches[0].statistics["overtaken"] == 1
    assert (await workers.ask(2)).value == "token-2"
    assert workers.source.asked == 2


async def test_letting_go_of_a_claim_that_is_anothers_by_now_leaves_it(fleet: Make, redis: Any) -> None:
    """Who is late would open the door to a third."""
    workers = fleet(2)
    gates = [workers.source.hold(1), workers.source.hold(2)]
    workers.source.answers[1] = TokenSourceUnavailable("down")
    late = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    await redis.delete(*await redis.keys("*:lock"))
    holding = workers.ask(1)
    await until(lambda: workers.source.asked == 2)
    gates[0].set()
    with pytest.raises(TokenSourceUnavailable):
        await late
    assert len(await redis.keys("*:lock")) == 1
    gates[1].set()
    await holding


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_claim_ends_with_the_asking_however_that_ends(fleet: Make, redis: Any, how: str) -> None:
    """The next one need not wait for the lease."""
    workers = fleet(2)
    gate = workers.source.hold(1)
    workers.source.answers[1] = TokenSourceUnavailable("down")
    failing = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    waiting = workers.ask(1)
    await until(lambda: workers.caches[1].statistics["waits"] == 1)
    if how == "fails":
        gate.set()
    else:
        # As a shutdown does.
        await workers.engines[0].aclose()
    with pytest.raises(TokenSourceUnavailable):
        await failing
    assert (await waiting).value == "token-2"
    assert await redis.keys("*:lock") == []


async def test_what_was_asked_for_before_it_was_dropped_does_not_come_back(fleet: Make) -> None:
    """The user has disconnected the account while another worker was still asking for its token."""
    workers = fleet(3)
    gate = workers.source.hold(1)
    asking = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    await workers.engines[1].forget(ALICE, workers.route)
    gate.set()
    await asking
    assert (await workers.ask(2)).value == "token-2"


async def test_not_linked_does_not_drop_what_was_obtained_later(fleet: Make, redis: Any) -> None:
    """The user connects the account while a worker still asks: the loser of a race deletes nothing of the winner's."""
    workers = fleet(3)
    gate = workers.source.hold(1)
    workers.source.answers[1] = IdentityNotLinked("not yet")
    early = workers.ask(0)
    await until(lambda: workers.source.asked == 1)
    await redis.delete(*await redis.keys("*:lock"))
    assert (await workers.ask(1)).value == "token-2"
    gate.set()
    with pytest.raises(IdentityNotLinked):
        await early
    assert (await workers.ask(2)).value == "token-2"


async def test_many_who_were_refused_in_many_workers_share_one_renewal(fleet: Make) -> None:
    """A provider that withdraws a token refuses all workers at once."""
    workers = fleet(4)
    old = {await workers.ask(worker) for worker in range(4)}.pop()
    gate = workers.source.hold(2)
    renewing = [asyncio.create_task(engine.renew(ALICE, workers.route, old)) for engine in workers.engines]
    await until(lambda: sum(cache.statistics["waits"] for cache in workers.caches) == 3)
    gate.set()
    assert {token.value for token in await asyncio.gather(*renewing)} == {"token-2"}
    assert workers.source.asked == 2


async def test_a_cache_that_comes_back_from_a_backup_brings_no_old_token_back(fleet: Make, redis: Any) -> None:
    """What is in process is younger than what the backup has."""
    workers = fleet(1)
    first = await workers.ask(0)
    (name,) = await redis.keys("*")
    backup = await redis.get(name)
    second = await workers.engines[0].renew(ALICE, workers.route, first)
    await redis.set(name, backup, ex=60)
    third = await workers.engines[0].renew(ALICE, workers.route, second)
    assert [first.value, second.value, third.value] == ["token-1", "token-2", "token-3"]


async def test_values_of_a_redis_whose_clock_was_ahead_are_replaced(fleet: Make, redis: Any) -> None:
    """After a failover to a host with another clock, everything would come too late for an hour."""
    workers = fleet(2)
    await workers.ask(0)
    (name,) = await redis.keys("*")
    fence, _, value = (await redis.get(name)).partition(b":")
    await redis.set(name, b"%d:%s" % (int(fence) + 3600 * 10**6, value), ex=60)
    new = await workers.engines[0].renew(ALICE, workers.route, Token("token-1"))
    assert new.value == "token-2"
    assert (await workers.ask(1)).value == "token-2"
