"""Four workers on a real Redis: one look-up for all of them, and what is killed takes nobody else along.

`FLEET_USERS=2000 FLEET_SECONDS=60` makes the big run of it; `pytest -s` shows the figures.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from cryptography.fernet import Fernet

from idp_middleware import Caller, ProxyRoute, TokenCache, sources
from idp_middleware._tokens import TokenEngine
from tests.fleet.harness import LOOK_UPS, WORKERS, Outcome, World, fleet

USERS = int(os.environ.get("FLEET_USERS", "60"))
SECONDS = float(os.environ.get("FLEET_SECONDS", "4"))
EACH = 4
"""Requests of each user, cold, all over the workers."""

SEEN_LATE = 0.5
"""Seconds after a kill in which a connection may still have been given to the one who died."""


@pytest.mark.timeout(120 + 4 * SECONDS + USERS / 5)
async def test_a_fleet_asks_once_and_survives(tmp_path: Path) -> None:
    """Cold start, then workers and Redis killed under load, then a look at what is left at rest."""
    with fleet(tmp_path, USERS) as world:
        await world.ready()
        await cold_start(world)
        await killed_under_load(world)
        await started_anew(world)
        at_rest(world)
        await rotated_keys(world)


async def cold_start(world: World) -> None:
    asking = list(world.bearers) * EACH
    random.shuffle(asking)
    began = time.monotonic()
    outcomes = await world.ask_all(asking)
    took = time.monotonic() - began
    assert [outcome for outcome in outcomes if not outcome.right] == []
    look_ups, keys = world.auth0.count(LOOK_UPS), world.auth0.count("/.well-known/jwks.json")
    management = world.auth0.count("/oauth/token")
    spread = Counter(outcome.worker for outcome in outcomes)
    print(
        f"\ncold: {USERS} users, {len(outcomes)} requests on {len(spread)} workers in {took:.1f} s: "
        f"{look_ups} look-ups, {keys} fetches of keys, {management} management tokens; "
        f"slowest {1000 * max(outcome.ended - outcome.started for outcome in outcomes):.0f} ms"
    )
    # Which of them takes a connection is the kernel's choice, and one of few requests may go without.
    assert len(spread) > WORKERS / 2
    assert (look_ups, keys, management) == (USERS, 1, 1)


async def killed_under_load(world: World) -> None:
    before = world.auth0.count(LOOK_UPS)
    kills: list[float] = []

    async def kill_a_worker() -> None:
        victim = world.workers.pop(random.randrange(WORKERS))
        victim.kill()
        kills.append(time.monotonic())
        victim.wait()
        world.start_worker()
        await asyncio.sleep(0.5)

    async with world.load() as outcomes:
        end = time.monotonic() + SECONDS
        while not kills or time.monotonic() < end:
            await kill_a_worker()
            world.redis.kill()
            await kill_a_worker()
            world.redis.start()
            await world.ready()
            world.redis.hang()
            await kill_a_worker()
            await asyncio.sleep(1.0)
            world.redis.wake()
            await world.ready()
    failed = [outcome for outcome in outcomes if outcome.status == 0]
    wrong = [outcome for outcome in outcomes if outcome.status and not outcome.right]
    print(
        f"killed: {len(kills)} workers; Redis, {len(kills) // 3} times, and as often made to hang. Of {len(outcomes)} "
        f"requests {len(wrong)} "
        f"wrong, {len(failed)} failed ({len(failed) / len(kills):.1f} in flight for each worker), "
        f"{world.auth0.count(LOOK_UPS) - before} look-ups more, "
        f"slowest {1000 * max(outcome.ended - outcome.started for outcome in outcomes):.0f} ms"
    )
    assert wrong == []
    assert [outcome for outcome in failed if not in_flight(outcome, kills)] == []
    assert len(outcomes) > 10 * len(kills)


async def started_anew(world: World) -> None:
    """A worker with nothing in process takes what is shared, and shares what it asks for."""
    for worker in world.workers:
        worker.kill()
        worker.wait()
    world.workers[:] = []
    world.start_worker()
    await world.ready()
    before = world.auth0.count(LOOK_UPS)
    outcomes = await world.ask_all(list(world.bearers) * 2)
    assert [outcome for outcome in outcomes if not outcome.right] == []
    assert world.auth0.count(LOOK_UPS) - before <= USERS


def in_flight(outcome: Outcome, kills: list[float]) -> bool:
    """Whether a worker died while this request was under way, and took it along."""
    return any(outcome.started < at + SEEN_LATE and at - SEEN_LATE < outcome.ended < at + SEEN_LATE for at in kills)


def at_rest(world: World) -> None:
    """Every key, every value, the file that Redis writes, and what the gateway has said."""
    with redis_py.Redis.from_url(world.redis.url) as client:
        client.save()
        names = client.keys("*")
        # Claims of workers that were killed may run out at any moment.
        values = [value for name in names if client.type(name) == b"string" and (value := client.get(name))]
        assert len(names) > USERS
        assert -1 not in {client.pttl(name) for name in names}, "something would stay for ever"
    dump = (world.redis.folder / "dump.rdb").read_bytes()
    for user, bearer in world.bearers.items():
        world.canaries.add(f"{user}'s bearer", bearer, telling=bearer.rpartition(".")[2])
    # Where nothing is hidden they are found, so that they would have been.
    opened = [Fernet(world.key).decrypt(value.partition(b":")[2]) for value in values if b":" in value]
    assert world.canaries.find(b"\n".join(opened)) != set()
    for what in (b"\n".join(names), b"\n".join(values), dump, world.log.read_bytes()):
        assert world.canaries.find(what) == set()
    print(f"at rest: {len(names)} keys, {len(dump)} bytes of dump, nothing in clear")


async def rotated_keys(world: World) -> None:
    """A new key in front reads what the old one wrote; without the old one everything is a miss, and no error."""
    new = Fernet.generate_key().decode()
    source = sources.Auth0Management(
        base_url=world.idp_url, client_id="the-client", client_secret=world.canaries["the client's secret"]
    )
    route = ProxyRoute("https://api.example.com", token_source=source, connection="github")
    kept = [user for user in world.bearers if await _kept(world, user, route)][:10]
    assert kept
    for keys, asked in (([new, world.key], 0), ([new], len(kept))):
        engine = TokenEngine(TokenCache.from_url(world.redis.url, encryption_keys=keys))
        before = world.auth0.count(LOOK_UPS)
        for user in kept:
            token = await engine.token(_caller(world, user), route)
            assert token.value == world.canaries.of(user, "token")
        assert world.auth0.count(LOOK_UPS) - before == asked
        await engine.aclose()
    await source.aclose()


def _caller(world: World, user: str) -> Caller:
    return Caller(world.canaries.of(user, "subject"), claims={"iss": world.auth0.issuer})


async def _kept(world: World, user: str, route: ProxyRoute) -> Any:
    """Whether Redis has this user's token: it has lost what it had when it was killed."""
    cache = TokenCache.from_url(world.redis.url, encryption_keys=[world.key])
    source: Any = route.source
    caller = _caller(world, user)
    found = await cache.get((source.identity, route.connection, *source.cache_key(caller, route)))
    await cache.aclose()
    return found
