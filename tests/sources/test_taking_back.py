"""What comes in the very instant of a revocation: a login stays, and a late refresh brings nothing back.

With the store and the provider that the refresh tokens' tests have; several sources are several processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography.fernet import Fernet

from idp_middleware import Caller, ProxyRoute, sources
from idp_middleware.errors import IdentityNotLinked, ReconnectRequired, TokenSourceUnavailable
from idp_middleware.stores import Entry, SQLiteTokenStore, StoredToken, TokenKey, TokenStore
from idp_middleware.testing import serve
from idp_middleware.testing.refresh import RotatingTokens
from tests.stack import eventually

ALICE = TokenKey(issuer="https://acme.example/", subject="auth0|alice", connection="github")
CALLER = Caller("auth0|alice", claims={"iss": "https://acme.example/"})


@dataclass
class World:
    """A provider, a store, and processes of an app that use both."""

    provider: RotatingTokens
    url: str
    store: SQLiteTokenStore
    opened: list[sources.RefreshToken]

    def process(self, store: TokenStore | None = None) -> Process:
        source = sources.RefreshToken(
            store=store or self.store,
            token_url=f"{self.url}/token",
            revocation_url=f"{self.url}/revoke",
            client_id="client",
            client_secret="secret",
        )
        self.opened.append(source)
        return Process(source)

    async def log_in(self, *, expires_in: float = 3600.0) -> StoredToken:
        """What the app puts when its user has connected the account."""
        got = self.provider.log_in()
        token = StoredToken(
            access_token=got["access_token"],
            refresh_token=got["refresh_token"],
            expires_at=time.time() + expires_in,
        )
        await self.store.put(ALICE, token)
        return token

    async def entries(self) -> Sequence[Entry]:
        return await self.store.get(ALICE)

    async def claims_end(self) -> None:
        """Whoever has claimed the entry takes longer than anybody thought."""
        (entry,) = await self.entries()
        assert entry.claim is not None
        assert await self.store.compare_and_swap(replace(entry, claim=replace(entry.claim, at=1.0)))

    async def asked(self, path: str, times: int = 1) -> None:
        await asyncio.to_thread(eventually, lambda: self.provider.count(path) >= times)

    def revoked(self) -> list[str]:
        """The tokens that the provider was told to take back."""
        forms = [dict(parse_qsl(request.body.decode())) for request in self.provider.requests]
        return [form["token"] for form in forms if "token" in form]


class Process:
    """One that serves the user."""

    def __init__(self, source: sources.RefreshToken) -> None:
        self._source = source
        self._route = ProxyRoute("https://api.example.com", token_source=source, connection="github")

    async def token(self) -> str:
        return (await self._source.token(CALLER, self._route)).value

    async def revoke(self) -> None:
        await self._source.revoke(CALLER, self._route)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    provider = RotatingTokens()
    with serve(provider) as server:
        store = SQLiteTokenStore(tmp_path / "tokens.db", encryption_keys=[Fernet.generate_key().decode()])
        world = World(provider, server.url, store, [])
        yield world
        for source in world.opened:
            await source.aclose()
        await store.aclose()


class Late:
    """A store that may do something first, the moment it is told to delete, and counts how often it is read."""

    def __init__(self, inner: TokenStore, first: Callable[[], Awaitable[Any]] | None = None) -> None:
        self._inner = inner
        self._first = first
        self.looks = 0

    async def get(self, key: TokenKey) -> Sequence[Entry]:
        self.looks += 1
        return await self._inner.get(key)

    async def put(self, key: TokenKey, token: StoredToken) -> None:
        await self._inner.put(key, token)

    async def compare_and_swap(self, entry: Entry) -> Entry | None:
        return await self._inner.compare_and_swap(entry)

    async def delete(self, key: TokenKey, *, version: str | None = None) -> None:
        if self._first is not None:
            await self._first()
        await self._inner.delete(key, version=version)


async def test_a_login_in_the_very_instant_of_the_deletion_stays(world: World) -> None:
    """However little time there is between the last look and the deed."""
    old = await world.log_in()
    await world.process(Late(world.store, world.log_in)).revoke()
    (entry,) = await world.entries()
    assert not world.provider.valid(old.access_token)
    assert entry.token.access_token != old.access_token
    assert await world.process().token() == entry.token.access_token


async def test_a_login_stays_of_which_a_second_revocation_knew_nothing(world: World) -> None:
    """It was asked for before the login, and had only waited for the first."""
    await world.log_in()
    world.provider.stall("/revoke", 1.0, times=1)
    first = asyncio.create_task(world.process().revoke())
    await world.asked("/revoke")
    store = Late(world.store)
    second = asyncio.create_task(world.process(store).revoke())
    # Once for the source, and then to see what the first is about.
    await asyncio.to_thread(eventually, lambda: store.looks > 2)
    new = await world.log_in()
    await asyncio.gather(first, second)
    assert [entry.token for entry in await world.entries()] == [new]
    assert world.provider.valid(new.access_token)


@pytest.mark.parametrize("fails", [False, True], ids=["", "the revocation endpoint fails"])
async def test_a_refresh_that_comes_back_after_the_revocation_brings_nothing_back(
    world: World, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The process was stopped for longer than its claim lasts; meanwhile the entry was deleted. What it brings is good
    at the provider, and nobody else knows of it.
    """
    old = await world.log_in(expires_in=-1.0)
    world.provider.answer_after = 1.0
    slow = asyncio.create_task(world.process().token())
    await world.asked("/token")
    await world.claims_end()
    await world.process().revoke()
    assert await world.entries() == []
    if fails:
        world.provider.respond("/revoke", status=503, body={})
    with pytest.raises(IdentityNotLinked):
        await slow
    assert await world.entries() == []
    (login,) = world.provider._logins
    assert world.revoked()[-1 if fails else -2] == login.refresh_tokens[-1] != old.refresh_token
    assert ("status 503" in caplog.text) is fails
    assert login.refresh_tokens[-1] not in caplog.text


async def test_a_login_after_the_revocation_is_no_late_refreshs_to_take_back(world: World) -> None:
    """Providers may end all of a user's grants with one."""
    await world.log_in(expires_in=-1.0)
    world.provider.answer_after = 1.0
    slow = asyncio.create_task(world.process().token())
    await world.asked("/token")
    await world.claims_end()
    await world.process().revoke()
    new = await world.log_in()
    before = world.revoked()
    assert await slow == new.access_token
    assert world.revoked() == before


async def test_a_refresh_that_comes_back_during_the_revocation_is_revoked_too(world: World) -> None:
    """What it brings is the one refresh token that is still good, and must be neither given out nor forgotten."""
    await world.log_in(expires_in=-1.0)
    world.provider.answer_after = 0.6
    slow = asyncio.create_task(world.process().token())
    await world.asked("/token")
    await world.claims_end()
    world.provider.stall("/revoke", 1.2, times=1)
    revoking = asyncio.create_task(world.process().revoke())
    with pytest.raises((ReconnectRequired, IdentityNotLinked)):
        await slow
    await revoking
    (login,) = world.provider._logins
    assert world.provider.refreshes == 1
    assert login.refresh_tokens[-1] in world.revoked()
    assert await world.entries() == []


async def test_a_refresh_that_comes_back_to_a_revocation_that_failed_leaves_it_to_be_done(world: World) -> None:
    """Nobody gets the token, and the next revocation takes back the one that is good."""
    await world.log_in(expires_in=-1.0)
    world.provider.answer_after = 1.0
    slow = asyncio.create_task(world.process().token())
    await world.asked("/token")
    await world.claims_end()
    world.provider.respond("/revoke", status=503, body={}, times=1)
    other = world.process()
    with pytest.raises(TokenSourceUnavailable):
        await other.revoke()
    for asking in (slow, asyncio.create_task(other.token())):
        with pytest.raises(ReconnectRequired):
            await asking
    (entry,) = await world.entries()
    assert entry.revoked
    (login,) = world.provider._logins
    assert entry.token.refresh_token == login.refresh_tokens[-1]
    await other.revoke()
    assert login.refresh_tokens[-1] in world.revoked()
    assert await world.entries() == []


async def test_a_revocation_whose_process_was_killed_is_done_by_the_next(world: World) -> None:
    """What it has left behind says that nobody gets the token any more, and keeps nobody waiting."""
    old = await world.log_in()
    world.provider.stall("/revoke", 30)
    killed = asyncio.create_task(world.process().revoke())
    await world.asked("/revoke")
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    world.provider.reset_faults()
    with pytest.raises(ReconnectRequired):
        await world.process().token()
    await world.process().revoke()
    assert await world.entries() == []
    assert not world.provider.valid(old.access_token)
