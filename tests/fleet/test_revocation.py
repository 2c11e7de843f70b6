"""A revocation in one process is one in all that share a cache: what they keep counts no more, nor what is in Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from redis.asyncio import Redis

from idp_middleware import Caller, ProxyRoute, Token, TokenCache, _revocation, _shared_revocations
from idp_middleware._observation import Observers, Record, TokenRecord
from idp_middleware._tokens import TokenEngine
from idp_middleware._watched import WatchedTokens
from idp_middleware.errors import CallerForbidden, TokenSourceUnavailable
from tests.fleet.redis_server import running_redis
from tests.stack import free_port

KEY = Fernet.generate_key().decode()
ISSUER = "https://acme.example/"


def caller(user="alice", account=None, scopes=()):
    return Caller(f"auth0|{user}", frozenset(scopes), {"iss": ISSUER, "sub": f"auth0|{user}"}, account=account)


class Source:
    """What all processes ask; keyed by issuer, subject, account and scopes."""

    identity = ("test", "one")

    def __init__(self):
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def token(self, caller, route, *, refused=None):
        self.asked += 1
        if refused is not None:
            await self.answering.wait()
        return Token(f"token-{self.asked}", time.time() + 3600)


class Fleet:
    """Processes, as far as the engine can tell; each with connections of its own."""

    def __init__(self, url):
        self.url = url
        self.source = Source()
        self.route = ProxyRoute("https://api.example.com", token_source=self.source, connection="github", name="github")
        self.engines = []

    def process(self, key=KEY):
        engine = TokenEngine(TokenCache.from_url(self.url, encryption_keys=[key]))
        self.engines.append(engine)
        return engine

    async def token(self, engine, *args, **options):
        return (await engine.token(caller(*args, **options), self.route)).value


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
async def fleet(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(_revocation, "HEARD_EVERY", 0.1)
    monkeypatch.setattr(_shared_revocations, "SKEW", 0.0)
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
    fleet = Fleet(redis_url)
    yield fleet
    for engine in fleet.engines:
        await engine.aclose()


async def until(condition):
    end = time.monotonic() + 10
    while not await condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


async def test_other_processes_stop_within_the_time_that_is_promised(fleet: Fleet) -> None:
    """Though each keeps the token where no Redis is asked."""
    one, other = fleet.process(), fleet.process()
    assert {await fleet.token(one), await fleet.token(other)} == {"token-1"}
    assert {await fleet.token(one, "bob"), await fleet.token(other, "bob")} == {"token-2"}
    await one.revoke(caller(), fleet.route)

    async def another() -> bool:
        return await fleet.token(other) != "token-1"

    await until(another)
    # One of them asked again, and both have that; and bob has what he had.
    assert {await fleet.token(one), await fleet.token(other)} == {"token-3"}
    assert {await fleet.token(one, "bob"), await fleet.token(other, "bob")} == {"token-2"}
    assert fleet.source.asked == 3


async def test_a_source_that_hangs_holds_up_no_revocation(fleet: Fleet) -> None:
    """Neither of the token that it is to replace, which would go on serving, nor of another user's after that."""
    one, other = fleet.process(), fleet.process()
    await fleet.token(one, "bob")
    held, bobs = await other.token(caller(), fleet.route), await fleet.token(other, "bob")
    fleet.source.answering.clear()
    renewal = asyncio.create_task(other.renew(caller(), fleet.route, held))

    async def asked() -> bool:
        return fleet.source.asked == 3

    await until(asked)
    assert await fleet.token(other) == held.value
    await one.revoke(caller(), fleet.route)

    async def no_longer_serves() -> bool:
        try:
            async with asyncio.timeout(0.2):
                return await fleet.token(other) != held.value
        except TimeoutError:
            return True

    await until(no_longer_serves)
    await one.revoke(caller("bob"), fleet.route)

    async def bob_has_another() -> bool:
        return await fleet.token(other, "bob") != bobs

    await until(bob_has_another)
    fleet.source.answering.set()
    await renewal


async def test_what_is_in_the_cache_under_another_account_or_scopes_counts_no_more(fleet: Fleet) -> None:
    """Whoever revokes knows only their own key; a process that starts later knows none."""
    one = fleet.process()
    kept = {await fleet.token(one, **options) for options in ({}, {"account": "7"}, {"scopes": ("a",)})}
    assert kept == {"token-1", "token-2", "token-3"}
    await one.revoke(caller(), fleet.route)
    later = fleet.process()
    for options in ({}, {"account": "7"}, {"scopes": ("a",)}):
        assert await fleet.token(later, **options) not in kept


async def test_clocks_that_differ_make_nobody_serve_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """For some seconds processes rather ask for themselves than trust each other's."""
    monkeypatch.setattr(_shared_revocations, "SKEW", 5.0)
    one, other = fleet.process(), fleet.process()
    await one.revoke(caller(), fleet.route)
    assert await fleet.token(one) != await fleet.token(other)


async def test_a_kept_token_still_costs_no_command(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks apart, which are one in two seconds."""
    monkeypatch.setattr(_revocation, "HEARD_EVERY", 60.0)
    one = fleet.process()
    await fleet.token(one)
    async with Redis.from_url(fleet.url) as redis:

        async def commands() -> int:
            return int((await redis.info("stats"))["total_commands_processed"])

        before = await commands()
        for _ in range(100):
            await fleet.token(one)
        assert await commands() - before <= 2


async def test_nothing_in_redis_says_who_it_was(fleet: Fleet) -> None:
    """Names are digests, and what is under them is sealed."""
    one = fleet.process()
    await fleet.token(one)
    await one.revoke(caller(), fleet.route)
    async with Redis.from_url(fleet.url) as redis:
        names = [name async for name in redis.scan_iter("*")]
        dump = b"".join(names) + b"".join([await redis.dump(name) or b"" for name in names])
        announced = await redis.zrange("idp-middleware:announcements", 0, -1)
    assert len(announced) == 1
    dump += b"".join(announced)
    for secret in (b"alice", b"acme.example", b"token-1", b"github"):
        assert secret not in dump


async def test_without_redis_it_is_forgotten_here_and_said_that_others_may_not_know(tmp_path: Path) -> None:
    """And a second try does it, once Redis is back."""
    fleet = Fleet(f"redis://127.0.0.1:{free_port()}/0")
    one = fleet.process()
    assert await fleet.token(one) == "token-1"
    with pytest.raises(TokenSourceUnavailable):
        await one.revoke(caller(), fleet.route)
    assert await fleet.token(one) == "token-2"
    await one.aclose()


async def test_what_others_could_not_be_told_of_is_in_the_audit_log_all_the_same(tmp_path: Path) -> None:
    """It was dropped here, and that is what the record says."""
    told: list[Record] = []
    cache = TokenCache.from_url(f"redis://127.0.0.1:{free_port()}", encryption_keys=[KEY])
    engine = WatchedTokens(cache, Observers([told.append], "/idp"))
    fleet = Fleet("")
    await fleet.token(engine)
    with pytest.raises(TokenSourceUnavailable):
        await engine.revoke(caller(), fleet.route)
    assert [record.event for record in told if isinstance(record, TokenRecord)] == ["obtained", "forgotten"]
    await engine.aclose()


@pytest.mark.parametrize("why", ["silence", "many", "another key"])
async def test_who_cannot_tell_what_was_revoked_drops_all(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """It costs a look into the cache for each user; the other mistake would be a revoked token."""
    one, other = fleet.process(), fleet.process()
    await fleet.token(other)
    if why == "silence":
        monkeypatch.setattr(_revocation, "HEARD_OF", 0.0)
    elif why == "many":
        monkeypatch.setattr(_shared_revocations.SharedRevocations, "at_most", 1)
        await one.revoke(caller("bob"), fleet.route)
    else:
        await fleet.process(Fernet.generate_key().decode()).revoke(caller("bob"), fleet.route)
    held = other._keeper._held

    async def dropped() -> bool:
        return not held

    await until(dropped)


async def test_what_was_revoked_while_redis_did_not_answer_is_heard_of_afterwards(tmp_path: Path) -> None:
    """A look that fails is made up for by the next; a subscription would have missed it."""
    with running_redis(tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_revocation, "HEARD_EVERY", 0.1)
        patch.setattr("idp_middleware._shared_guard.REST", 0.1)
        fleet = Fleet(server.url)
        one, other = fleet.process(), fleet.process()
        kept = await fleet.token(other)
        hear = _revocation.News._hear

        async def deaf(news: _revocation.News) -> None:
            return None

        patch.setattr(_revocation.News, "_hear", deaf)
        await one.revoke(caller(), fleet.route)
        server.hang()
        patch.setattr(_revocation.News, "_hear", hear)
        await asyncio.sleep(1.5)
        assert await fleet.token(other) == kept
        server.wake()

        async def another() -> bool:
            return await fleet.token(other) != kept

        await until(another)
        for engine in fleet.engines:
            await engine.aclose()


async def test_the_apps_own_token_is_no_users_to_revoke(fleet: Fleet) -> None:
    """In a shared cache either."""
    fleet.source.cache_key = lambda caller, route: ()  # type: ignore[attr-defined]
    one = fleet.process()
    assert await fleet.token(one) == await fleet.token(one, "bob") == "token-1"
    with pytest.raises(CallerForbidden):
        await one.revoke(caller(), fleet.route)
    await one.forget(caller(), fleet.route)
    assert await fleet.token(one) == "token-2"


async def test_looking_ends_with_the_engine(fleet: Fleet) -> None:
    """Nothing is left to run, in the middle of a look either."""
    one = fleet.process()
    await fleet.token(one)
    await asyncio.sleep(0.1)
    await one.aclose()
    before = {task for task in asyncio.all_tasks() if not task.done()}
    await asyncio.sleep(0.3)
    assert {task for task in asyncio.all_tasks() if not task.done()} == before == {asyncio.current_task()}
