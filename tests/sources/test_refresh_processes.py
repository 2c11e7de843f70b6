"""One refresh over several processes, and none twice whichever of them is killed when.

Real processes on real sockets over one real file, and a provider that revokes everything when a refresh token comes a
second time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from idp_middleware.stores import Entry, SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import serve
from idp_middleware.testing.refresh import RotatingTokens

KEY = Fernet.generate_key().decode()


@dataclass
class Worker:
    """One process."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def workers(path: Path, provider_url: str, *dying: str) -> Iterator[list[Worker]]:
    """Processes that are ready, one for each moment at which one is to die; "" is never."""
    told = {"path": str(path), "key": KEY, "token_url": f"{provider_url}/token", "api": provider_url}
    command = [sys.executable, "-m", "tests.sources.refresh_worker"]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ExitStack() as running:
        started = [
            running.enter_context(subprocess.Popen([*command, json.dumps(told | {"die": when})], **options))
            for when in dying
        ]
        try:
            yield [Worker(each, each.stdout.readline().strip()) for each in started if each.stdout is not None]
        finally:
            for each in started:
                each.kill()


async def ask(client: httpx.AsyncClient, worker: Worker, user: str) -> httpx.Response:
    return await client.get(f"{worker.url}/idp/api/me", headers={"x-user": user})


def key(user: str) -> TokenKey:
    return TokenKey(issuer="", subject=user, connection="github")


async def connect(store: SQLiteTokenStore, provider: RotatingTokens, user: str) -> StoredToken:
    """The user's login at the provider, long enough ago that the access token has expired."""
    tokens = provider.log_in()
    token = StoredToken(
        access_token=tokens["access_token"], refresh_token=tokens["refresh_token"], expires_at=time.time() - 1
    )
    await store.put(key(user), token)
    return token


async def entry(store: SQLiteTokenStore, user: str) -> Entry:
    (found,) = await store.get(key(user))
    return found


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[SQLiteTokenStore, httpx.AsyncClient]]:
    store = SQLiteTokenStore(path, encryption_keys=[KEY])
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
        yield store, client
    await store.aclose()


async def test_two_hundred_requests_over_four_processes_cause_one_refresh(tmp_path: Path) -> None:
    """All of them answered, and what is stored afterwards works."""
    path, provider = tmp_path / "tokens.db", RotatingTokens(answer_after=0.3)
    with serve(provider) as server, workers(path, server.url, *[""] * 4) as all_four:
        async with opened(path) as (store, client):
            old = await connect(store, provider, "alice")
            answers = await asyncio.gather(*(ask(client, all_four[n % 4], "alice") for n in range(200)))
            assert Counter(answer.status_code for answer in answers) == {200: 200}
            assert (provider.refreshes, provider.reuses, provider.count("/token")) == (1, 0, 1)
            new = (await entry(store, "alice")).token
    assert new.refresh_token != old.refresh_token
    assert provider.valid(new.access_token)
    assert provider.valid(new.refresh_token or "")


MOMENTS = {
    "before the request": "claimed",
    "during it, the token not spent": "",
    "during it, the token spent": "",
    "after the answer, before it is stored": "answered",
}


async def test_whenever_the_process_that_refreshes_is_killed_nothing_is_reused(tmp_path: Path) -> None:
    """The worst that comes of it is one clear answer: reconnect. And that helps."""
    path, provider = tmp_path / "tokens.db", RotatingTokens()
    with (
        serve(provider) as server,
        workers(path, server.url, *MOMENTS.values(), "", "", "") as (*doomed, one, two, fresh),
    ):
        async with opened(path) as (store, client):
            for moment, worker in zip(MOMENTS, doomed, strict=True):
                await kill(client, worker, store, provider, moment)
            spent, sent = provider.refreshes, provider.count("/token")
            assert (spent, sent) == (2, 3)
            answers = await asyncio.gather(
                *(ask(client, (one, two)[n % 2], moment) for n in range(30) for moment in MOMENTS)
            )
            names = Counter(answer.json()["type"].rpartition(":")[2] for answer in answers)
            assert names == {"reconnect-required": 120}
            assert (provider.refreshes, provider.reuses, provider.count("/token")) == (spent, 0, sent)
            for moment in MOMENTS:
                assert (await entry(store, moment)).withdrawn
                await connect(store, provider, moment)
                # By a process that has not just been told otherwise.
                assert (await ask(client, fresh, moment)).status_code == 200
            assert (provider.refreshes, provider.reuses) == (spent + len(MOMENTS), 0)


async def kill(
    client: httpx.AsyncClient, worker: Worker, store: SQLiteTokenStore, provider: RotatingTokens, moment: str
) -> None:
    """Let a process refresh a user's token, kill it at that moment, and let the time pass that its claim lasts."""
    await connect(store, provider, moment)
    if moment == "during it, the token not spent":
        provider.stall("/token", 60.0, times=1)
    elif moment == "during it, the token spent":
        provider.answer_after = 60.0
    before = provider.count("/token")
    request = asyncio.create_task(ask(client, worker, moment))
    if moment.startswith("during"):
        while provider.count("/token") == before:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # with the double, whether or not it has rotated
        worker.process.kill()
    with pytest.raises(httpx.TransportError):
        await request
    await asyncio.to_thread(worker.process.wait, 10)
    provider.answer_after = 0.0
    left = await entry(store, moment)
    assert left.claim is not None
    assert 0 <= time.time() - left.claim.at < left.claim.lasts
    past = replace(left.claim, at=left.claim.at - left.claim.lasts)
    assert await store.compare_and_swap(replace(left, claim=past))
