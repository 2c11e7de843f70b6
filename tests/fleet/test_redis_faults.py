"""A Redis that is slow, gone, restarted, full, read-only, loading, or lies: requests go on, with the right tokens."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from redis.asyncio import Redis

from idp_middleware import Caller, ProxyRoute, Token, TokenCache
from idp_middleware._tokens import TokenEngine
from tests.fleet.redis_server import RedisServer, running_redis
from tests.stack import free_port, raw_upstream

KEY = Fernet.generate_key().decode()


class Source:
    identity = ("source", "1")

    def __init__(self) -> None:
        self.asked = 0

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        self.asked += 1
        return Token(f"token-of-{caller.subject}", time.time() + 3600)


class Worker:
    def __init__(self, url: str) -> None:
        self.source = Source()
        self.route = ProxyRoute("https://api.example.com", token_source=self.source, connection="github")
        self.cache = TokenCache.from_url(url, encryption_keys=[KEY])
        self.engine = TokenEngine(self.cache)

    async def serves(self, *users: str, within: float = 10.0) -> int:
        """How often the source was asked for these users, each of whom gets the right token."""
        before, began = self.source.asked, time.monotonic()
        for user in users:
            assert (await self.engine.token(Caller(user), self.route)).value == f"token-of-{user}"
        assert time.monotonic() - began < within
        return self.source.asked - before


@asynccontextmanager
async def worker(url: str) -> AsyncIterator[Worker]:
    made = Worker(url)
    yield made
    await made.engine.aclose()


@pytest.fixture
def short_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idp_middleware._shared_guard.REST", 0.1)
    monkeypatch.setattr("idp_middleware._shared_guard.PATIENCE", 0.3)


@pytest.mark.usefixtures("short_rest")
async def test_a_redis_that_comes_and_goes(server: RedisServer, redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Killed, restarted empty, hanging, woken: each time the same users get their own tokens."""
    async with worker(server.url) as one, worker(server.url) as other:
        assert await one.serves("alice") == 1
        assert await other.serves("alice") == 0
        server.kill()
        assert await one.serves("alice", "bob", "carol") == 2
        assert one.cache.statistics["failures"] == 1, "each request tried it"
        server.start()
        await asyncio.sleep(0.2)
        # The script is gone from its memory as well.
        assert await other.serves("dave") == 1
        assert await one.serves("dave") == 0
        server.hang()
        assert await one.serves("erin", "frank", "grace", within=2) == 3
        server.wake()
        await asyncio.sleep(0.5)
        assert await one.serves("heidi") == 1
        assert await other.serves("heidi") == 0
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "the shared token cache failed to" in warnings[0]


@pytest.mark.usefixtures("short_rest")
async def test_a_redis_that_is_full_is_still_read(server: RedisServer, redis: Any) -> None:
    """What is there serves; what can't be written is obtained by each worker for itself."""
    async with worker(server.url) as one, worker(server.url) as other:
        await one.serves("alice")
        try:
            await redis.config_set("maxmemory", 1)
            await redis.config_set("maxmemory-policy", "noeviction")
            assert await one.serves("bob", "carol") == 2
            assert one.cache.statistics["refusals"] == 1
            assert one.cache.statistics["failures"] == 0
            assert one.cache.statistics["writes"] == 1, "what was refused is counted as written"
            assert await other.serves("alice") == 0
        finally:
            await redis.config_set("maxmemory", 0)
        await asyncio.sleep(0.2)
        await one.serves("dave")
        assert await other.serves("dave") == 0


@pytest.mark.usefixtures("short_rest")
async def test_a_primary_that_becomes_a_replica_is_still_read(server: RedisServer, redis: Any) -> None:
    """A failover. Connections to it are given up, since its name may lead elsewhere by now."""
    async with worker(server.url) as one, worker(server.url) as other:
        await one.serves("alice")
        await other.serves("alice")
        try:
            await redis.replicaof("127.0.0.1", str(free_port()))
            assert await one.serves("bob", "carol") == 2
            assert one.cache.statistics["refusals"] == 1
            async with worker(server.url) as third:
                assert await third.serves("alice") == 0
            names = [client["name"] for client in await redis.client_list() if client["cmd"] != "client|list"]
            assert len(names) <= 2, "connections to a replica were kept"
        finally:
            await redis.replicaof("NO", "ONE")
        await asyncio.sleep(0.2)
        await one.serves("dave")
        assert await other.serves("dave") == 0


@contextmanager
def liar(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Something at a Redis's address that answers commands in its own way."""

    def handle(connection: Any) -> None:
        while command := connection.recv(65536):
            connection.sendall(answer(command))

    with raw_upstream(handle) as url:
        yield url.replace("http://", "redis://")


@pytest.mark.usefixtures("short_rest")
@pytest.mark.parametrize(
    "says",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-NOPERM this user has no permissions\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-ERR max number of clients reached\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\xff\r\n",
        b"+OK\r\n",
        b":7\r\n",
        b"$5\r\nhello\r\n",
        b"*3\r\n:1\r\n$1\r\n7\r\n$5\r\nhello\r\n",
        b"*0\r\n",
    ],
)
async def test_whatever_is_said_there_is_a_miss(says: bytes) -> None:
    """While it starts, from the wrong port, or from whoever sits there instead."""
    with liar(lambda command: says) as url:
        async with worker(url) as one:
            assert await one.serves("alice", "bob") == 2


async def test_a_connection_that_is_closed_in_the_middle_is_a_miss() -> None:
    """A failover closes them all."""

    def hang_up(connection: Any) -> None:
        connection.recv(100)

    with raw_upstream(hang_up) as url:
        async with worker(url.replace("http://", "redis://")) as one:
            assert await one.serves("alice", "bob") == 2


async def test_a_thousand_new_users_at_once_do_not_open_a_thousand_connections(server: RedisServer, redis: Any) -> None:
    """Redis takes ten thousand of all its clients together."""
    async with worker(server.url) as one:
        asking = (one.engine.token(Caller(f"user-{number}"), one.route) for number in range(1000))
        tokens = await asyncio.gather(*asking)
        assert [token.value for token in tokens] == [f"token-of-user-{number}" for number in range(1000)]
        assert len(await redis.client_list()) <= 51


PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"


async def test_the_documented_access_list_is_enough(tmp_path: Any) -> None:
    """And a user with it can do nothing else."""
    with running_redis(tmp_path, "--user", "default", "on", "nopass", "~*", "+@all") as server:
        async with Redis.from_url(server.url) as admin:
            (documented,) = re.findall("^ACL SETUSER idp .*$", PAGE.read_text(), re.M)
            await admin.execute_command(*documented.split())
            url = server.url.replace("redis://", "redis://idp:PASSWORD@")
            async with worker(url) as one, worker(url) as other:
                assert await one.serves("alice") == 1
                assert await other.serves("alice") == 0
                renewed = await one.engine.renew(Caller("alice"), one.route, Token("token-of-alice"))
                assert renewed.value == "token-of-alice"
                await one.engine.forget(Caller("alice"), one.route)
                assert one.cache.statistics["refusals"] == one.cache.statistics["failures"] == 0
            denied = {entry["object"] for entry in await admin.acl_log()}
            assert {each for each in denied if not each.startswith("client")} == set(), "the page lacks these commands"
