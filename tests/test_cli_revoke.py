"""`idp-middleware revoke`: a user's token taken back by the operator, and what is said of what that reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from idp_middleware import Caller, load_config
from idp_middleware._cli import main
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import IdentityNotLinked
from idp_middleware.stores import SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import serve
from idp_middleware.testing.refresh import RotatingTokens
from tests.fleet.redis_server import running_redis

KEY = Fernet.generate_key().decode()
ISSUER = "https://acme.example/"
FILE = """
[authenticator]
type = "jwt"
issuer = "https://acme.example/"
audience = "https://api.acme.example"

[sources.stored]
type = "refresh-token"
store = "{store}"
encryption_keys = ["${{KEY}}"]
token_url = "{provider}/token"
revocation_url = "{provider}/revoke"
client_id = "client"
client_secret = "${{SECRET}}"

[sources.auth0]
type = "auth0-management"
domain = "acme.example"
client_id = "client"
client_secret = "${{SECRET}}"

[routes.github]
upstream = "https://api.example.com"
source = "stored"
connection = "github"
[routes.looked-up]
upstream = "https://api.example.com"
source = "auth0"
connection = "github"
"""
CACHE = """
[cache]
url = "{url}"
encryption_keys = ["${{KEY}}"]
"""


class World:
    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path, url: str) -> None:
        self.provider = RotatingTokens(client_secret="provider-secret")
        self.store = str(folder / "tokens.db")
        self.capsys = capsys
        self.url = url

    def write(self, more: str = "") -> None:
        Path("idp.toml").write_text(FILE.format(store=self.store, provider=self.url) + more)

    def revoke(self, *arguments: str, status: int = 0) -> str:
        assert main(["revoke", "idp.toml", *arguments]) == status
        out, err = self.capsys.readouterr()
        assert (out if status else err) == ""
        for secret in (KEY, "provider-secret", "access-", "refresh-"):
            assert secret not in out + err
        return (err if status else out).strip()

    def stored(self, work: Any) -> Any:
        async def run() -> Any:
            store = SQLiteTokenStore(self.store, encryption_keys=[KEY])
            try:
                return await work(store)
            finally:
                await store.aclose()

        return asyncio.run(run())

    def log_in(self, issuer: str = ISSUER, account: str | None = None) -> StoredToken:
        got = self.provider.log_in()
        token = StoredToken(access_token=got["access_token"], refresh_token=got["refresh_token"])
        key = TokenKey(issuer=issuer, subject="auth0|alice", connection="github", account=account)
        self.stored(lambda store: store.put(key, token))
        return token


@pytest.fixture
def world(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.setenv("SECRET", "provider-secret")
    world = World(capsys, tmp_path, "")
    with serve(world.provider) as server:
        world.url = server.url
        world.write()
        yield world


def test_it_is_taken_back_at_the_provider_and_out_of_the_store(world: World) -> None:
    """And what that leaves is said: processes that run share no cache."""
    token = world.log_in()
    assert world.revoke("github", "auth0|alice").splitlines() == [
        "revoked: the token of auth0|alice of https://acme.example/ for github",
        "without a [cache] in Redis, processes that run use what they have kept of it until it expires",
    ]
    assert not world.provider.valid(token.refresh_token or "")


def test_issuer_and_account_say_whose(world: World) -> None:
    """As for `call`; another user of the same name is left alone."""
    mine, other = world.log_in(account="1"), world.log_in(account="2")
    theirs = world.log_in("https://other.example/")
    assert "identity-ambiguous" in world.revoke("github", "auth0|alice", status=1)
    world.revoke("github", "auth0|alice", "--account", "2")
    assert [world.provider.valid(token.access_token) for token in (mine, other, theirs)] == [True, False, True]
    world.revoke("github", "auth0|alice", "--issuer", "https://other.example/")
    assert not world.provider.valid(theirs.access_token)


async def test_running_processes_are_told_through_redis(world: World, tmp_path: Path) -> None:
    """So that what they keep counts no more; and a source that has nothing to take back is asked again."""
    with running_redis(tmp_path) as server:
        world.write(CACHE.format(url=server.url))
        await asyncio.to_thread(world.log_in)
        options = load_config()
        route, engine = options["routes"]["github"], TokenEngine(options["cache"])
        caller = Caller("auth0|alice", claims={"iss": ISSUER})
        await engine.token(caller, route)
        told = await asyncio.to_thread(world.revoke, "github", "auth0|alice")
        assert told.endswith("other processes know of it within three seconds")
        end = time.monotonic() + 10
        with pytest.raises(IdentityNotLinked):
            while time.monotonic() < end:
                await engine.token(caller, route)
                await asyncio.sleep(0.05)
        await engine.aclose()
        await route.source.aclose()
        told = await asyncio.to_thread(world.revoke, "looked-up", "auth0|alice")
        assert told.splitlines()[1] == "the source has nothing to take back, so the next request asks it again"


def test_what_fails_is_said_with_what_to_do(world: World) -> None:
    """Status 1, for a script to see."""
    world.log_in()
    world.provider.respond("/revoke", status=503)
    assert "token-source-unavailable: revocation endpoint: status 503" in world.revoke(
        "github", "auth0|alice", status=1
    )


def test_where_nothing_would_come_of_it_that_is_a_failure(world: World) -> None:
    """An operator must not take a token for revoked that every process goes on using."""
    told = world.revoke("looked-up", "auth0|alice", status=1)
    assert "nothing would come of it" in told


def test_a_route_that_is_not_there_is_named(world: World) -> None:
    """With those that are."""
    assert "there is no such route; there is github, looked-up" in world.revoke("gihub", "auth0|alice", status=2)
