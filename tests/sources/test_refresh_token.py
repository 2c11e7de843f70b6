"""Stored tokens and their refresh: what is served, what a provider's answer means, and that nothing is lost or reused.

Against a provider that rotates refresh tokens and takes a second use for theft, on real sockets, with a real file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from starlette.requests import HTTPConnection

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, Timeout, Token, load_config, sources
from idp_middleware._token_keeper import MAX_AGE
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    ConfigurationError,
    IdentityAmbiguous,
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenError,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.stores import Claim, Entry, SQLiteTokenStore, StoredToken, TokenKey, TokenStore
from idp_middleware.testing import ProviderAPI, serve
from idp_middleware.testing.refresh import RotatingTokens
from tests.stack import free_port

KEYS = [Fernet.generate_key().decode()]
ALICE = TokenKey(issuer="https://acme.example/", subject="auth0|alice", connection="github")
CALLER = Caller("auth0|alice", claims={"iss": "https://acme.example/"})
EXTRA = {"instance_url": "https://acme.my.salesforce.com"}


def stored(answer: dict[str, Any], *, expires_in: float = -1.0, **fields: Any) -> StoredToken:
    """What an app makes of a token endpoint's answer; expired unless said otherwise."""
    fields = {"refresh_token": answer.get("refresh_token"), "scopes": answer["scope"].split(), **fields}
    return StoredToken(access_token=answer["access_token"], expires_at=time.time() + expires_in, **fields)


@dataclass
class World:
    """A provider, a store, and processes of an app that use both."""

    provider: RotatingTokens
    url: str
    path: Path
    store: SQLiteTokenStore
    opened: list[Any]

    def source(self, store: TokenStore | str | None = None, **options: Any) -> sources.RefreshToken:
        """A source as another process has it, with a connection to the file of its own."""
        if store is None:
            store = SQLiteTokenStore(self.path, encryption_keys=KEYS)
            self.opened.append(store)
        options = {"token_url": f"{self.url}/token", "client_id": "client", "client_secret": "secret", **options}
        source = sources.RefreshToken(store=store, **options)
        self.opened.insert(0, source)
        return source

    async def entry(self) -> Entry:
        (entry,) = await self.store.get(ALICE)
        return entry


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    provider = RotatingTokens()
    with serve(provider) as server:
        path = tmp_path / "tokens.db"
        world = World(provider, server.url, path, SQLiteTokenStore(path, encryption_keys=KEYS), [])
        yield world
        for each in [*world.opened, world.store]:
            await each.aclose()


def route(source: Any, **fields: Any) -> ProxyRoute:
    return ProxyRoute("https://api.example.com", token_source=source, **{"connection": "github", **fields})


async def ask(source: Any, caller: Caller = CALLER, refused: str | None = None) -> Token:
    token: Token = await source.token(caller, route(source), refused=None if refused is None else Token(refused))
    return token


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


# What is served


async def test_a_token_that_is_valid_is_served_and_nobody_is_asked(world: World) -> None:
    """With all that the app put in; known to the engine for a bounded time, so that it sees what the app changes."""
    await world.store.put(
        ALICE, stored(world.provider.log_in(scope="repo gist"), expires_in=3600, type="token", extra=EXTRA)
    )
    entry = await world.entry()
    token = await ask(world.source())
    assert token.extra == EXTRA
    assert (token.value, token.type, token.scopes) == (entry.token.access_token, "token", {"repo", "gist"})
    assert token.expires_at == pytest.approx(time.time() + MAX_AGE, abs=30)
    assert world.provider.count() == 0


async def test_a_token_whose_expiry_nobody_knows_is_served_until_it_is_refused(world: World) -> None:
    """Salesforce tells none; the refusal is the only sign."""
    tokens = world.provider.log_in()
    await world.store.put(ALICE, replace(stored(tokens), expires_at=None))
    source = world.source()
    token = await ask(source)
    assert (token.value, token.expires_at) == (tokens["access_token"], None)
    assert (await ask(source, refused=token.value)).value != token.value
    assert world.provider.refreshes == 1


async def test_an_expired_token_is_refreshed_and_what_came_is_in_the_store(world: World) -> None:
    """The new refresh token above all: it is the only one that still works."""
    await world.store.put(ALICE, stored(world.provider.log_in(), extra={"team": "T1"}))
    token = await ask(world.source())
    entry = await world.entry()
    assert entry.token.access_token == token.value
    assert entry.token.expires_at == pytest.approx(time.time() + 3600, abs=30)
    assert (entry.claim, entry.withdrawn, entry.token.extra) == (None, False, {"team": "T1"})
    assert world.provider.valid(token.value)
    assert world.provider.valid(entry.token.refresh_token or "")
    assert dict(world.provider.last.headers)[b"content-type"] == b"application/x-www-form-urlencoded"


@pytest.mark.parametrize(("left", "refreshes"), [(69.0, 1), (75.0, 0)])
async def test_it_is_refreshed_as_early_as_the_engine_asks_for_a_newer_one(
    world: World, left: float, refreshes: int
) -> None:
    """Else the engine would be handed the token it is about to replace."""
    await about_to_expire(world, left=left)
    await ask(world.source())
    assert world.provider.refreshes == refreshes


async def test_a_token_that_lives_shortly_is_served_more_than_once(world: World) -> None:
    """A minute of margin would be all of its life, however old the login."""
    world.provider.lifetime = 20
    await world.store.put(ALICE, stored(world.provider.log_in()))
    assert await world.store.compare_and_swap(replace(await world.entry(), stored_at=time.time() - 3600))
    source = world.source()
    assert (await ask(source)).value == (await ask(source)).value
    assert world.provider.refreshes == 1


@pytest.mark.parametrize("left", [-1.0, 5.0])
async def test_without_a_refresh_token_an_expired_one_means_to_reconnect(world: World, left: float) -> None:
    """Five seconds before the end it has ended: clocks differ, requests take time."""
    await world.store.put(ALICE, StoredToken(access_token="at"))
    entry = await world.entry()
    old = replace(entry, stored_at=time.time() - 3600, token=replace(entry.token, expires_at=time.time() + left))
    assert await world.store.compare_and_swap(old)
    with pytest.raises(ReconnectRequired):
        await ask(world.source())


async def test_without_a_refresh_token_a_refused_one_means_to_reconnect_but_is_not_written_off(world: World) -> None:
    """The refusal may have been about that one request; the next is tried again."""
    await world.store.put(ALICE, StoredToken(access_token="at"))
    source = world.source()
    with pytest.raises(ReconnectRequired):
        await ask(source, refused="at")
    assert (await ask(source)).value == "at"


async def test_one_without_a_refresh_token_serves_to_its_end(world: World) -> None:
    """There is nothing to be early for."""
    await world.store.put(ALICE, StoredToken(access_token="at", expires_at=time.time() + 30))
    entry = await world.entry()
    assert await world.store.compare_and_swap(replace(entry, stored_at=time.time() - 3600))
    assert (await ask(world.source())).value == "at"


async def test_a_user_who_never_connected_is_told_where_to(world: World) -> None:
    """The app has the page; the caller may be an agent that doesn't know it."""
    with pytest.raises(IdentityNotLinked) as caught:
        await ask(world.source(connect_url="https://app.example/connect"))
    assert type(caught.value) is IdentityNotLinked
    assert caught.value.members() == {"connection": "github", "connect_url": "https://app.example/connect"}


async def test_of_several_accounts_the_request_names_one(world: World) -> None:
    """Never just the first: it could be another than was meant."""
    for account in ("101", "102"):
        await world.store.put(replace(ALICE, account=account), stored(world.provider.log_in(scope=account)))
    source = world.source()
    with pytest.raises(IdentityAmbiguous) as caught:
        await ask(source)
    assert caught.value.accounts == ("101", "102")
    assert (await ask(source, replace(CALLER, account="102"))).scopes == {"102"}
    with pytest.raises(IdentityNotLinked):
        await ask(source, replace(CALLER, account="103"))
    assert world.provider.refreshes == 1


async def test_a_refused_token_is_refreshed_unless_it_has_been(world: World) -> None:
    """Two workers are refused the same token; the second finds the first one's new one."""
    tokens = world.provider.log_in()
    await world.store.put(ALICE, stored(tokens, expires_in=3600))
    new = await ask(world.source(), refused=tokens["access_token"])
    assert new.value != tokens["access_token"]
    assert (await ask(world.source(), refused=tokens["access_token"])).value == new.value
    assert world.provider.refreshes == 1


# What an answer means


class Answers:
    """A provider's token endpoint that says what the test says."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def to(self, old: StoredToken, **answer: Any) -> Entry:
        """The entry after a refresh that brought `answer`."""
        await self.world.store.put(ALICE, old)
        self.world.provider.respond("/token", body={"access_token": "new", "expires_in": 60, **answer}, times=1)
        await ask(self.world.source())
        return await self.world.entry()


OLD = StoredToken(
    access_token="old", refresh_token="r1", expires_at=1.0, scopes=["a", "b"], extra={"url": "1", "id": 7}
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, {"refresh_token": "r1", "scopes": {"a", "b"}, "extra": {"url": "1", "id": 7}}),
        ({"refresh_token": "r2"}, {"refresh_token": "r2"}),
        ({"refresh_token": ""}, {"refresh_token": "r1"}),
        ({"refresh_token": None}, {"refresh_token": "r1"}),
        ({"scope": "a"}, {"scopes": {"a"}}),
        ({"scope": ""}, {"scopes": set()}),
        ({"scope": "c,d"}, {"scopes": {"c", "d"}}),
        ({"scope": ["c", "d:e"]}, {"scopes": {"c", "d:e"}}),
        ({"token_type": "Bearer"}, {"type": "Bearer"}),
        ({"token_type": "bot", "ok": True}, {"type": "Bearer"}),
        ({"url": "2", "other": "x"}, {"extra": {"url": "2", "id": 7}}),
        ({"expires_in": None}, {"expires_at": None}),
    ],
    ids=lambda value: json.dumps(value, default=sorted)[:50],
)
async def test_what_an_answer_leaves_out_stays_as_it_was(
    world: World, answer: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Google sends no refresh token, Twitch a list of scopes, Atlassian no type, Slack who the token stands for."""
    entry = await Answers(world).to(OLD, **answer)
    assert {name: getattr(entry.token, name) for name in expected} == expected


FINAL = [
    pytest.param(400, {"error": "invalid_grant", "error_description": "revoked"}, id="RFC 6749"),
    pytest.param(403, {"error": "invalid_grant", "error_description": "Unknown or invalid"}, id="Atlassian"),
    pytest.param(200, {"error": "bad_refresh_token", "error_description": "incorrect or expired"}, id="GitHub"),
    pytest.param(200, {"ok": False, "error": "invalid_refresh_token"}, id="Slack"),
    pytest.param(400, {"error": "Bad Request", "status": 400, "message": "Invalid refresh token"}, id="Twitch"),
    pytest.param(400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"}, id="HubSpot"),
]


@pytest.mark.parametrize(("status", "body"), FINAL)
async def test_a_withdrawn_grant_is_final_and_remembered(world: World, status: int, body: dict[str, Any]) -> None:
    """In every process, without asking again; what was stored is not deleted, and the app's next put makes it good."""
    await world.store.put(ALICE, stored(world.provider.log_in(), expires_in=5))
    old = await world.entry()
    world.provider.respond("/token", status=status, body=body)
    for _ in range(2):
        with pytest.raises(ReconnectRequired) as caught:
            await ask(world.source(connect_url="https://app.example/connect"), refused=old.token.access_token)
        assert caught.value.members()["connect_url"] == "https://app.example/connect"
    with pytest.raises(ReconnectRequired):
        await ask(world.source())
    assert world.provider.count("/token") == 1
    entry = await world.entry()
    assert (entry.withdrawn, entry.token, entry.claim) == (True, old.token, None)
    world.provider.reset_faults()
    await world.store.put(ALICE, stored(world.provider.log_in()))
    assert world.provider.valid((await ask(world.source())).value)


async def test_a_withdrawn_grant_is_told_at_once(world: World) -> None:
    """The user has revoked it; what is left of the access token's life is not theirs to give."""
    await about_to_expire(world)
    world.provider.revoke((await world.entry()).token.access_token)
    with pytest.raises(ReconnectRequired):
        await ask(world.source())


async def about_to_expire(world: World, *, left: float = 40.0) -> StoredToken:
    """An hour's token with that many seconds left of it, in the store."""
    token = stored(world.provider.log_in(), expires_in=left)
    await world.store.put(ALICE, token)
    assert await world.store.compare_and_swap(replace(await world.entry(), stored_at=time.time() - 3600))
    return token


async def test_our_own_mistakes_are_explained_to_the_operator(world: World) -> None:
    """Without the answer, in which there may be anything."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    with pytest.raises(TokenSourceFailed, match="client_auth") as caught:
        await ask(world.source(client_secret="wrong"))
    assert type(caught.value) is TokenSourceFailed


PASSING = [
    pytest.param({"status": 500, "body": {"error": "invalid_grant"}}, TokenSourceUnavailable, id="500"),
    pytest.param({"status": 502, "body": "<html>"}, TokenSourceUnavailable, id="502"),
    pytest.param({"status": 503, "headers": {"Retry-After": "7"}}, TokenSourceUnavailable, id="503"),
    pytest.param({"status": 429, "headers": {"Retry-After": "70"}}, TokenSourceUnavailable, id="429"),
    pytest.param({"status": 401, "body": {"error": "invalid_client"}}, TokenSourceFailed, id="our secret"),
    pytest.param({"status": 400, "body": {"error": "unauthorized_client"}}, TokenSourceFailed, id="our rights"),
    pytest.param({"status": 400, "body": {"error": "invalid_request"}}, TokenSourceFailed, id="our request"),
    pytest.param({"status": 200, "body": {"error": "incorrect_client_credentials"}}, TokenSourceFailed, id="GitHub"),
    pytest.param({"status": 404, "body": "<html>"}, TokenSourceFailed, id="a page"),
    pytest.param({"status": 302, "headers": {"Location": "/login"}}, TokenSourceFailed, id="a redirect"),
]


@pytest.mark.parametrize(("answer", "error"), PASSING)
async def test_any_other_failure_passes(world: World, answer: dict[str, Any], error: type[TokenError]) -> None:
    """The refresh token is as good as before, and is sent again when somebody asks."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source()
    world.provider.respond("/token", **answer)
    with pytest.raises(error) as caught:
        await ask(source)
    assert not isinstance(caught.value, ReconnectRequired)
    entry = await world.entry()
    assert (entry.claim, entry.withdrawn) == (None, False)
    world.provider.reset_faults()
    assert world.provider.valid((await ask(world.source())).value)
    assert world.provider.reuses == 0


@pytest.mark.parametrize(("answer", "error"), PASSING)
async def test_a_token_that_is_still_valid_serves_through_it(
    world: World, answer: dict[str, Any], error: type[TokenError], caplog: pytest.LogCaptureFixture
) -> None:
    """That is what the minute before its end is for; the operator is told."""
    old = (await about_to_expire(world)).access_token
    world.provider.respond("/token", **answer)
    assert (await ask(world.source())).value == old
    assert "still serves" in caplog.text
    with pytest.raises(error):
        await ask(world.source(), refused=old)


async def test_a_server_that_can_not_be_reached_has_not_been_sent_anything(world: World) -> None:
    """An outage of the network costs nobody a reconnect."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    with pytest.raises(TokenSourceUnavailable):
        await ask(world.source(token_url=f"http://127.0.0.1:{free_port()}/token"))
    assert (await world.entry()).claim is None
    assert world.provider.valid((await ask(world.source())).value)


# An answer that is lost


LOST: dict[str, Callable[[World], Any]] = {
    "no answer in time": lambda world: setattr(world.provider, "answer_after", 30),
    "broken off": lambda world: world.provider.drop("/token", times=1),
    "nonsense": lambda world: world.provider.respond("/token", body="<html>", times=1),
    "no token": lambda world: world.provider.respond("/token", body={"refresh_token": "r2"}, times=1),
    "of a type we can't use": lambda world: world.provider.respond(
        "/token", body={"access_token": "at", "token_type": "DPoP"}, times=1
    ),
    "too long": lambda world: world.provider.respond("/token", body=b" " * 2_000_000, times=1),
}
QUICK = Timeout(connect=2, read=0.3, write=2)


@pytest.mark.parametrize("how", LOST)
async def test_a_refresh_token_that_may_be_spent_is_not_sent_again(world: World, how: str) -> None:
    """The old access token serves to its end; then there is one clear answer, also in other processes."""
    tokens = world.provider.log_in()
    await world.store.put(ALICE, stored(tokens, expires_in=3600))
    source = world.source(timeout=QUICK)
    LOST[how](world)
    with pytest.raises((TokenSourceTimeout, TokenSourceUnavailable, TokenSourceFailed)):
        await ask(source, refused=tokens["access_token"])
    assert (await ask(source)).value == tokens["access_token"]
    entry = await world.entry()
    assert not entry.withdrawn
    assert await world.store.compare_and_swap(replace(entry, token=replace(entry.token, expires_at=time.time() - 1)))
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(ReconnectRequired):
            await ask(world.source())
    assert time.monotonic() - started < 2  # nobody waits for what will not come
    assert (world.provider.count("/token"), world.provider.reuses) == (1, 0)
    assert (await world.entry()).withdrawn


@pytest.mark.parametrize("how", LOST)
async def test_it_is_sent_again_where_that_harms_nobody(world: World, how: str) -> None:
    """A provider that does not rotate."""
    world.provider.rotates = False
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source(timeout=QUICK, reuse_is_fatal=False)
    LOST[how](world)
    with pytest.raises((TokenSourceTimeout, TokenSourceUnavailable, TokenSourceFailed)):
        await ask(source)
    world.provider.answer_after = 0
    assert world.provider.valid((await ask(source)).value)


async def test_a_slow_rate_limit_does_not_outlast_a_claim(world: World) -> None:
    """All of a refresh has one bound, whatever it is made of."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    world.provider.respond("/token", status=429, headers={"Retry-After": "3"}, times=1)
    started = time.monotonic()
    with pytest.raises(TokenSourceTimeout):
        await ask(world.source(timeout=Timeout(connect=0.2, read=0.2, write=0.2)))
    assert time.monotonic() - started < 2.5


# Races, in one process and between several


async def test_many_who_ask_at_once_cause_one_refresh(world: World) -> None:
    """Of two processes here; of four, and killed, in another test."""
    world.provider.answer_after = 0.1
    await world.store.put(ALICE, stored(world.provider.log_in()))
    both = [world.source(), world.source()]
    tokens = await asyncio.gather(*(ask(both[number % 2]) for number in range(40)))
    assert len({token.value for token in tokens}) == 1
    assert (world.provider.refreshes, world.provider.reuses) == (1, 0)
    assert world.provider.valid(tokens[0].value)


async def test_a_user_with_many_accounts_does_not_storm_the_provider(world: World) -> None:
    """Ten at a time, and no claim goes stale in the queue."""
    world.provider.answer_after = 0.05
    callers = [replace(CALLER, subject=f"auth0|{number}") for number in range(30)]
    for caller in callers:
        await world.store.put(replace(ALICE, subject=caller.subject), stored(world.provider.log_in()))
    source = world.source(timeout=Timeout(connect=2, read=2, write=2, pool=0.01))
    tokens = await asyncio.gather(*(ask(source, caller) for caller in callers))
    assert len({token.value for token in tokens}) == 30


async def test_a_cancelled_request_does_not_lose_what_its_refresh_brings(world: World) -> None:
    """The client has left; the refresh token is spent all the same."""
    world.provider.answer_after = 0.2
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source()
    request = asyncio.create_task(ask(source))
    await until(lambda: world.provider.refreshes == 1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await until(lambda: not source._rotation._flights)
    entry = await world.entry()
    assert world.provider.valid(entry.token.refresh_token or "")
    assert (await ask(source)).value == entry.token.access_token
    assert world.provider.refreshes == 1


async def test_closing_waits_for_what_a_refresh_brings(world: World) -> None:
    """A deployment restarts the processes; the engine cancels its own tasks first."""
    world.provider.answer_after = 0.2
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source, engine = world.source(), TokenEngine()
    request = asyncio.create_task(engine.token(CALLER, route(source)))
    await until(lambda: world.provider.refreshes == 1)
    await engine.aclose()
    await source.aclose()
    with pytest.raises(TokenSourceUnavailable):
        await request
    entry = await world.entry()
    assert world.provider.valid(entry.token.refresh_token or "")
    assert entry.claim is None


async def test_closing_does_not_wait_for_ever(world: World) -> None:
    """A store that is gone for good; whoever still waits is told."""
    store = Faulty(world.store, failing=lambda entry: entry.claim is None, times=1000)
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source(store, timeout=Timeout(connect=1, read=1, write=1))
    request = asyncio.create_task(ask(source))
    await until(lambda: store.failed > 1)
    await source.aclose()
    with pytest.raises(TokenSourceUnavailable, match="shutting down"):
        await request
    await source.aclose()


@pytest.mark.parametrize("refused", [False, True], ids=["granted", "refused"])
async def test_the_loser_of_a_race_leaves_the_winners_token_alone(world: World, refused: bool) -> None:
    """The user has connected again while a refresh was under way; both its outcomes are about the past."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    world.provider.stall("/token", 0.3, times=1)
    if refused:
        world.provider.respond("/token", status=400, body={"error": "invalid_grant"}, times=1)
    request = asyncio.create_task(ask(world.source()))
    await until(lambda: world.provider.count("/token"))
    winner = stored(world.provider.log_in(), expires_in=3600)
    await world.store.put(ALICE, winner)
    assert (await request).value == winner.access_token
    entry = await world.entry()
    assert (entry.token, entry.withdrawn) == (winner, False)
    assert world.provider.valid(winner.refresh_token or "")


async def test_a_user_who_unlinks_during_a_refresh_stays_unlinked(world: World) -> None:
    """What it brings must not bring the entry back."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    world.provider.stall("/token", 0.2, times=1)
    request = asyncio.create_task(ask(world.source()))
    await until(lambda: world.provider.count("/token"))
    await world.store.delete(ALICE)
    with pytest.raises(IdentityNotLinked) as caught:
        await request
    assert not isinstance(caught.value, ReconnectRequired)
    assert await world.store.get(ALICE) == []


async def test_what_the_app_puts_with_the_same_refresh_token_does_not_win(world: World) -> None:
    """It is being spent at that moment: what comes of it is all there will be."""
    tokens = world.provider.log_in()
    await world.store.put(ALICE, stored(tokens))
    world.provider.answer_after = 0.2
    request = asyncio.create_task(ask(world.source()))
    await until(lambda: world.provider.refreshes == 1)
    await world.store.put(ALICE, stored(tokens, extra={"team": "T1"}))
    token = await request
    entry = await world.entry()
    assert entry.token.access_token == token.value
    assert world.provider.valid(entry.token.refresh_token or "")


async def test_a_claim_of_another_process_is_waited_for(world: World) -> None:
    """And what it brings is taken."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    claimed = await claim(world)
    request = asyncio.create_task(ask(world.source()))
    await asyncio.sleep(0.15)
    assert not request.done()
    new = stored(world.provider.log_in(), expires_in=3600)
    assert await world.store.compare_and_swap(replace(claimed, token=new, claim=None))
    assert (await request).value == new.access_token
    assert world.provider.count() == 0


async def test_a_claim_of_another_process_is_waited_for_within_bounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that would wait longer is told when to come again."""
    monkeypatch.setattr("idp_middleware.sources._rotation.PATIENCE_WITH_OTHERS", 0.1)
    await world.store.put(ALICE, stored(world.provider.log_in()))
    await claim(world)
    with pytest.raises(TokenSourceUnavailable) as caught:
        await ask(world.source())
    assert caught.value.retry_after == pytest.approx(60, abs=5)


async def test_a_refresh_that_takes_long_is_waited_for_within_bounds_and_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request gets an answer, the next one the token."""
    monkeypatch.setattr("idp_middleware.sources._rotation.PATIENCE", 0.1)
    world.provider.answer_after = 0.4
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source()
    with pytest.raises(TokenSourceTimeout):
        await ask(source)
    await until(lambda: not source._rotation._flights)
    assert world.provider.valid((await ask(source)).value)
    assert world.provider.refreshes == 1


async def test_a_valid_token_serves_while_another_process_refreshes(world: World) -> None:
    """Nobody waits for what nobody needs yet, be it under way or left behind."""
    token = stored(world.provider.log_in(), expires_in=3600)
    await world.store.put(ALICE, token)
    await claim(world)
    started = time.monotonic()
    assert (await ask(world.source())).value == token.access_token
    for at in (time.time(), time.time() - 61):
        token = await about_to_expire(world)
        await claim(world, at=at)
        assert (await ask(world.source())).value == token.access_token
    assert time.monotonic() - started < 3
    assert world.provider.count() == 0


@pytest.mark.parametrize("at", [-61.0, -1e6, +61.0, +1e6], ids=["old", "very old", "ahead", "far ahead"])
async def test_a_claim_that_was_left_behind_means_to_reconnect(world: World, at: float) -> None:
    """Its process was killed, perhaps after sending. A clock that went wrong must not keep anybody waiting."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    await claim(world, at=time.time() + at)
    with pytest.raises(ReconnectRequired):
        await ask(world.source())
    assert (await world.entry()).withdrawn
    assert world.provider.count() == 0


@pytest.mark.parametrize("at", [-10.0, +10.0])
async def test_clocks_that_differ_a_little_take_no_claim_for_left_behind(world: World, at: float) -> None:
    """Hosts' clocks are seconds apart."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    claimed = await claim(world, at=time.time() + at)
    request = asyncio.create_task(ask(world.source()))
    await asyncio.sleep(0.1)
    assert not request.done()
    assert await world.store.compare_and_swap(replace(claimed, claim=None))
    assert world.provider.valid((await request).value)


async def test_where_reuse_harms_nobody_a_claim_left_behind_is_taken_over(world: World) -> None:
    """`kill -9` then costs a minute, not a reconnect."""
    world.provider.rotates = False
    await world.store.put(ALICE, stored(world.provider.log_in()))
    await claim(world, at=time.time() - 61)
    assert world.provider.valid((await ask(world.source(reuse_is_fatal=False))).value)


async def test_a_process_that_was_only_slow_puts_right_what_others_have_given_up(world: World) -> None:
    """It was stopped for a minute, and marked as lost; then it got its answer, which is the only good token."""
    await world.store.put(ALICE, stored(world.provider.log_in()))
    world.provider.answer_after = 0.3
    request = asyncio.create_task(ask(world.source()))
    await until(lambda: world.provider.refreshes == 1)
    entry = await world.entry()
    assert entry.claim is not None
    assert await world.store.compare_and_swap(replace(entry, claim=replace(entry.claim, at=1.0)))
    with pytest.raises(ReconnectRequired):
        await ask(world.source())
    token = await request
    entry = await world.entry()
    assert (entry.withdrawn, entry.token.access_token) == (False, token.value)
    assert (world.provider.refreshes, world.provider.reuses) == (1, 0)


async def test_a_mark_of_a_process_whose_claim_was_taken_over_is_not_written(world: World) -> None:
    """Where reuse is harmless, two may be under way; the slow one's failure must not undo the other's success."""
    world.provider.rotates = False
    await world.store.put(ALICE, stored(world.provider.log_in()))
    world.provider.stall("/token", 0.4, times=1)
    world.provider.respond("/token", status=400, body={"error": "invalid_grant"}, times=1)
    slow = asyncio.create_task(ask(world.source(reuse_is_fatal=False)))
    await until(lambda: world.provider.count("/token"))
    world.provider.reset_faults()
    entry = await world.entry()
    assert entry.claim is not None
    assert await world.store.compare_and_swap(replace(entry, claim=replace(entry.claim, at=1.0)))
    quick = await ask(world.source(reuse_is_fatal=False))
    assert (await slow).value == quick.value
    assert not (await world.entry()).withdrawn


async def claim(world: World, *, at: float | None = None) -> Entry:
    """A claim of some other process."""
    left = Claim(owner="other", at=time.time() if at is None else at, lasts=60.0)
    claimed = await world.store.compare_and_swap(replace(await world.entry(), claim=left))
    assert claimed is not None
    return claimed


# The store's failures


class Faulty:
    """A store whose writes fail where the test says."""

    def __init__(
        self, inner: TokenStore, *, failing: Callable[[Entry], bool], times: int = 1, written: bool = False
    ) -> None:
        self.inner = inner
        self.failing = failing
        self.times = times
        self.written = written
        self.failed = 0

    async def get(self, key: TokenKey) -> Sequence[Entry]:
        return await self.inner.get(key)

    async def put(self, key: TokenKey, token: StoredToken) -> None:
        await self.inner.put(key, token)

    async def delete(self, key: TokenKey, *, version: str | None = None) -> None:
        await self.inner.delete(key, version=version)

    async def compare_and_swap(self, entry: Entry) -> Entry | None:
        if self.failing(entry) and self.failed < self.times:
            self.failed += 1
            if self.written:
                await self.inner.compare_and_swap(entry)
            raise TokenSourceUnavailable("token store: disk full")
        return await self.inner.compare_and_swap(entry)


async def test_what_a_refresh_brings_is_stored_before_anybody_gets_it_however_long_that_takes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the only copy of the only good refresh token."""
    store = Faulty(world.store, failing=lambda entry: entry.claim is None, times=3)
    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source(store)
    request = asyncio.create_task(ask(source))
    await until(lambda: store.failed == 2)
    assert not request.done()
    token = await request
    assert (await world.entry()).token.access_token == token.value
    assert "disk full" in caplog.text
    assert (store.failed, world.provider.refreshes) == (3, 1)


@pytest.mark.parametrize("claiming", [True, False], ids=["the claim", "the outcome"])
async def test_a_write_that_only_seemed_to_fail_is_recognised(world: World, claiming: bool) -> None:
    """A database that commits and then loses the connection must not cost anybody a reconnect."""
    store = Faulty(world.store, failing=lambda entry: (entry.claim is not None) is claiming, written=True)
    await world.store.put(ALICE, stored(world.provider.log_in()))
    token = await ask(world.source(store))
    entry = await world.entry()
    assert (entry.token.access_token, entry.claim) == (token.value, None)
    assert (store.failed, world.provider.refreshes) == (1, 1)


async def test_without_a_claim_nothing_is_sent(world: World) -> None:
    """A store that can't be written to can't keep what would come back."""
    store = Faulty(world.store, failing=lambda entry: entry.claim is not None)
    await world.store.put(ALICE, stored(world.provider.log_in()))
    with pytest.raises(TokenSourceUnavailable):
        await ask(world.source(store))
    assert world.provider.count() == 0


@pytest.mark.parametrize("when", ["claiming", "settling"])
async def test_errors_of_somebodys_own_store_come_out_unless_a_token_would_be_lost(
    world: World, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine makes an answer of them; in the middle of a refresh there is nobody who could mend it."""

    class Broken(Faulty):
        async def compare_and_swap(self, entry: Entry) -> Entry | None:
            if self.failing(entry) and self.failed < self.times:
                self.failed += 1
                raise RuntimeError("s3cret")
            return await self.inner.compare_and_swap(entry)

    await world.store.put(ALICE, stored(world.provider.log_in()))
    source = world.source(Broken(world.store, failing=lambda entry: (entry.claim is not None) is (when == "claiming")))
    if when == "claiming":
        with pytest.raises(RuntimeError):
            await ask(source)
    assert world.provider.valid((await ask(source)).value)
    assert world.provider.refreshes == 1
    assert "s3cret" not in caplog.text
    assert ("RuntimeError" in caplog.text) is (when == "settling")


# With the engine, and set up


async def test_the_engine_refreshes_in_the_background_while_the_old_token_serves(world: World) -> None:
    """No request waits for it, and the one that comes after has the new one."""
    world.provider.lifetime = 3.0
    await world.store.put(ALICE, stored(world.provider.log_in()))
    engine, source = TokenEngine(), world.source()
    github = route(source)
    first = latest = await engine.token(CALLER, github)
    world.provider.stall("/token", 0.4)
    slowest, end = 0.0, time.monotonic() + 10
    while latest.value == first.value and time.monotonic() < end:
        started = time.monotonic()
        latest = await engine.token(CALLER, github)
        slowest = max(slowest, time.monotonic() - started)
        await asyncio.sleep(0.02)
    assert world.provider.valid(latest.value)
    assert slowest < 0.3
    await engine.aclose()


async def test_a_stream_under_way_outlives_the_renewal_of_its_token(world: World) -> None:
    """A refused token is renewed for the next request; what has begun with the old one goes on."""
    tokens = world.provider.log_in()
    await world.store.put(ALICE, stored(tokens, expires_in=3600))
    api = ProviderAPI()

    async def alice(conn: HTTPConnection) -> Caller:
        return CALLER

    with serve(api) as upstream:
        routes = {"api": ProxyRoute(upstream.url, token_source=world.source(), connection="github")}
        with serve(IdPMiddleware(routes=routes, authenticator=alice)) as gateway:
            async with (
                httpx.AsyncClient(base_url=f"{gateway.url}/idp/api", trust_env=False, timeout=30) as client,
                client.stream("GET", "/slow?chunks=4&delay=0.1") as response,
            ):
                chunks = response.aiter_text()
                text = await anext(chunks)
                api.revoke(tokens["access_token"])
                assert (await client.get("/user")).status_code == 200
                text += "".join([chunk async for chunk in chunks])
    assert text == "".join(f"chunk {number}\n" for number in range(4))
    assert api.tokens_seen() == [tokens["access_token"], (await world.entry()).token.access_token]
    assert world.provider.refreshes == 1


CONFIG = """
[authenticator]
type = "jwt"
issuer = "https://acme.eu.auth0.com/"
audience = "https://api.acme.example"

[sources.own]
type = "refresh-token"
store = "{path}"
encryption_keys = ["${{IDP_KEY}}"]
token_url = "https://github.com/login/oauth/access_token"
client_id = "me"
client_secret = "${{GITHUB_SECRET}}"
connect_url = "https://app.example/connect/github"
reuse_is_fatal = true

[routes.github]
provider = "github"
source = "own"
connection = "github"
"""


async def test_a_file_can_say_all_of_it(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway serves what the app's own process puts into the same store."""
    monkeypatch.setenv("IDP_KEY", KEYS[0])
    monkeypatch.setenv("GITHUB_SECRET", "s3cret")
    file = tmp_path / "idp.toml"
    file.write_text(CONFIG.format(path=world.path))
    source = load_config(file)["routes"]["github"].source
    await world.store.put(ALICE, stored(world.provider.log_in(), expires_in=3600))
    assert world.provider.valid((await ask(source)).value)
    await source.aclose()

    file.write_text(CONFIG.format(path="nowhere/tokens.db"))
    with pytest.raises(ConfigurationError, match=r"idp.toml: \[sources.own\]: store: must name a file"):
        load_config(file)


def test_configuration_alone_decides_whether_two_are_the_same(tmp_path: Path) -> None:
    """The secret does not; the store does. One that can't say which it is shares with nobody."""

    def source(**options: Any) -> sources.RefreshToken:
        options = {"store": str(tmp_path / "t.db"), "encryption_keys": KEYS, **options}
        return sources.RefreshToken(
            **{"token_url": "https://idp.example/t", "client_id": "me", "client_secret": "s3cret", **options}
        )

    same = [source(), source(client_secret="rotated"), source(reuse_is_fatal=False)]
    others = [
        source(client_id="you"),
        source(token_url="https://idp.example/u"),
        source(store=str(tmp_path / "u.db")),
        source(store="sqlite+aiosqlite:///t.db"),
    ]
    assert len({one.identity for one in same}) == 1
    assert len({one.identity for one in [*same, *others]}) == 5
    store = SQLiteTokenStore(tmp_path / "t.db", encryption_keys=KEYS)
    assert source(store=Faulty(store, failing=bool), encryption_keys=()).identity is None
    assert repr(same[0]) == "RefreshToken(token_url='https://idp.example/t', client_id='me')"
    assert "s3cret" not in str(same[0].identity)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"store": "nowhere/tokens.db"}, "store"),
        ({"store": "nonsense://"}, "store"),
        ({"encryption_keys": ()}, "encryption_keys"),
        ({"encryption_keys": ["short"]}, "encryption_keys"),
        ({"token_url": "http://idp.example/token"}, "token_url"),
        ({"client_secret": ""}, "client_secret"),
    ],
    ids=repr,
)
def test_mistakes_are_told_where_they_are_made(options: dict[str, Any], key: str, tmp_path: Path) -> None:
    """Long before the first request."""
    good: dict[str, Any] = {
        "store": str(tmp_path / "t.db"),
        "encryption_keys": KEYS,
        "token_url": "https://idp.example/token",
        "client_id": "me",
        "client_secret": "s3cret",
    }
    with pytest.raises(ConfigurationError) as caught:
        sources.RefreshToken(**(good | options))
    assert caught.value.key == key


async def test_keys_go_with_a_path_and_not_with_a_store(world: World) -> None:
    """Which of the two would count?"""
    with pytest.raises(ConfigurationError) as caught:
        world.source(world.store, encryption_keys=KEYS)
    assert caught.value.key == "encryption_keys"


async def test_a_store_given_by_its_path_is_closed_with_the_source_and_another_is_not(
    world: World, tmp_path: Path
) -> None:
    """Whoever opens it closes it."""
    await world.store.put(ALICE, stored(world.provider.log_in(), expires_in=3600))
    for source in (world.source(str(world.path), encryption_keys=KEYS), world.source(world.store)):
        await ask(source)
        await source.aclose()
    assert world.store._connection is not None


def test_a_connection_is_needed() -> None:
    """A store holds one user's tokens for several providers."""
    source = sources.RefreshToken(
        store="t.db", encryption_keys=KEYS, token_url="https://idp.example/", client_id="me", client_secret="s"
    )
    with pytest.raises(ConfigurationError) as caught:
        route(source, connection=None)
    assert caught.value.key == "connection"


async def test_no_secret_is_in_an_error_or_a_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Some servers repeat what they were sent."""
    caplog.set_level(logging.DEBUG, "idp_middleware")
    tokens = world.provider.log_in()
    await world.store.put(ALICE, stored(tokens))
    told = f"{tokens['refresh_token']} of client with secret is bad"
    world.provider.respond("/token", status=400, body={"error": "invalid_grant", "error_description": told})
    with pytest.raises(IdPError) as caught:
        await ask(world.source())
    everything = repr(caught.value) + str(caught.value) + caplog.text + repr(await world.entry())
    assert tokens["refresh_token"] not in everything
    assert tokens["access_token"] not in everything
