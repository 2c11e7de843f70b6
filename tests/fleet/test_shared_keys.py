"""An issuer's keys behind the shared cache: fetched once for all workers, and never believed of just anybody."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import time_machine
from cryptography.fernet import Fernet
from starlette.requests import HTTPConnection

from idp_middleware import AnyOf, IdPMiddleware, JWTAuthenticator, ProxyRoute, TokenCache, sources
from idp_middleware.errors import CallerUnauthenticated
from idp_middleware.testing import Auth0
from tests.fleet.redis_server import RedisServer

ISSUER = "https://acme.eu.auth0.com/"
API = "https://api.acme.example"
JWKS = "/.well-known/jwks.json"
KEY = Fernet.generate_key().decode()
NOW = 1_800_000_000


@pytest.fixture
def auth0() -> Auth0:
    return Auth0(ISSUER)


@pytest.fixture
def clock() -> Iterator[Any]:
    with time_machine.travel(NOW, tick=True) as clock:
        yield clock


class Worker:
    def __init__(self, auth0: Auth0, url: str, key: str = KEY) -> None:
        self.cache = TokenCache.from_url(url, encryption_keys=[key])
        self.authenticator = JWTAuthenticator(
            issuer=ISSUER, audience=API, transport=httpx.ASGITransport(app=auth0), leeway=300
        )
        # As the middleware does it, through whatever is around the authenticator.
        self.middleware = IdPMiddleware(
            authenticator=AnyOf(self.authenticator),
            routes={"api": ProxyRoute("https://api.example.com", token_source=sources.Static("x"))},
            cache=self.cache,
        )

    async def lets_in(self, token: str) -> bool:
        conn = HTTPConnection({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]})
        try:
            return (await self.authenticator.authenticate(conn)).subject == "auth0|alice"
        except CallerUnauthenticated:
            return False


Make = Callable[..., Worker]


@pytest.fixture
async def worker(server: RedisServer, redis: Any, auth0: Auth0) -> AsyncIterator[Make]:
    made: list[Worker] = []

    def make(key: str = KEY) -> Worker:
        made.append(Worker(auth0, server.url, key))
        return made[-1]

    yield make
    for each in made:
        await each.middleware.aclose()


def stranger() -> Auth0:
    """Somebody who says to be the issuer, with keys of their own."""
    other = Auth0(ISSUER)
    for _ in range(5):
        other.rotate_keys()
    return other


def alice(auth0: Auth0) -> str:
    return auth0.issue_token("auth0|alice", audience=API, expires_in=10 * 86400)


async def test_a_fleet_that_starts_fetches_once(worker: Make, auth0: Auth0) -> None:
    """Identity providers limit the rate of this too."""
    for each in [worker() for _ in range(4)]:
        assert await each.lets_in(alice(auth0))
    assert auth0.count(JWKS) == 1


async def test_a_rotation_is_fetched_once(worker: Make, auth0: Auth0, clock: Any) -> None:
    """However long after the first worker has met the new key the others do."""
    workers = [worker() for _ in range(3)]
    for each in workers:
        await each.lets_in(alice(auth0))
    clock.shift(60)
    auth0.rotate_keys(keep_old=True)
    for each in workers:
        assert await each.lets_in(alice(auth0))
        clock.shift(100)
    assert auth0.count(JWKS) == 2


async def test_made_up_key_ids_cost_the_fleet_one_fetch_per_cool_down(worker: Make, auth0: Auth0, clock: Any) -> None:
    """Anybody can make them up, at every worker."""
    workers = [worker() for _ in range(4)]
    foreign = alice(stranger())
    for each in workers:
        assert await each.lets_in(alice(auth0))
    clock.shift(31)
    for each in workers:
        assert not await each.lets_in(foreign)
        assert not await each.lets_in(foreign)
    assert auth0.count(JWKS) == 2


async def test_a_new_key_works_within_the_cool_down_after_others_have_asked(
    worker: Make, auth0: Auth0, clock: Any
) -> None:
    """What another worker fetched shortly before the rotation is no reason to wait for longer than that."""
    one, other = worker(), worker()
    await one.lets_in(alice(auth0))
    await other.lets_in(alice(auth0))
    clock.shift(31)
    await one.lets_in(alice(stranger()))
    auth0.rotate_keys(keep_old=True)
    assert not await other.lets_in(alice(auth0))
    clock.shift(31)
    assert await other.lets_in(alice(auth0))


async def test_who_can_write_to_redis_cannot_plant_a_key(worker: Make, auth0: Auth0, redis: Any) -> None:
    """With a key of one's own among the issuer's, one could be anybody."""
    await worker().lets_in(alice(auth0))
    (name,) = await redis.keys("idp-middleware:keys:*")
    sealed = (await redis.get(name)).partition(b":")[2]
    members = json.loads(Fernet(KEY).decrypt(sealed))
    attacker = stranger()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=attacker), base_url=ISSUER) as client:
        members["keys"] = (await client.get(JWKS)).json()
    planted = [
        json.dumps(members).encode(),
        Fernet(Fernet.generate_key()).encrypt(json.dumps(members).encode()),
    ]
    for value in planted:
        await redis.set(name, b"9999999999999999:" + value, ex=600)
        fresh = worker()
        assert not await fresh.lets_in(alice(attacker))
        assert await fresh.lets_in(alice(auth0))


async def test_an_old_set_brings_no_withdrawn_key_back(worker: Make, auth0: Auth0, redis: Any, clock: Any) -> None:
    """It was once good, so it opens; but it is older than what a worker has, or than any may be."""
    one = worker()
    old = alice(auth0)
    await one.lets_in(old)
    (name,) = await redis.keys("idp-middleware:keys:*")
    replayed = await redis.get(name)
    clock.shift(300)
    auth0.rotate_keys()
    assert await one.lets_in(alice(auth0))
    assert not await one.lets_in(old)
    await redis.set(name, replayed)
    clock.shift(31)
    assert not await one.lets_in(old)
    clock.shift(600)
    assert not await worker().lets_in(old)


async def test_a_set_of_a_host_whose_clock_is_ahead_is_not_taken(worker: Make, auth0: Auth0, clock: Any) -> None:
    """It would pass for new until the clocks meet, and no new key would be looked for."""
    clock.shift(3600)
    await worker().lets_in(alice(auth0))
    clock.shift(-3600)
    other = worker()
    assert await other.lets_in(alice(auth0))
    auth0.rotate_keys(keep_old=True)
    assert await other.lets_in(alice(auth0))


async def test_without_redis_or_its_key_each_fetches_for_itself(
    worker: Make, auth0: Auth0, server: RedisServer
) -> None:
    """A fault of the cache is a fetch, never a refusal."""
    assert await worker().lets_in(alice(auth0))
    assert await worker(Fernet.generate_key().decode()).lets_in(alice(auth0))
    assert auth0.count(JWKS) == 2
    server.kill()
    try:
        assert await worker().lets_in(alice(auth0))
    finally:
        server.start()
    assert auth0.count(JWKS) == 3
