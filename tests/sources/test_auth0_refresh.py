"""What Auth0 keeps and does not renew, refreshed at the provider, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import time_machine

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, Timeout, Token, load_config
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    ConfigurationError,
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.sources import Auth0Management, ProviderRefresh
from idp_middleware.testing import Auth0, Identity, RotatingTokens, serve

GOOGLE = "google-oauth2"
ALICE = Caller("auth0|alice")
SECRET = "s3cret-at-google"
STALE = "ya29.stale"


class World:
    """A tenant whose profiles hold access tokens that are over, and the provider that they came from."""

    def __init__(self, idp: str, provider: str, auth0: Auth0, google: RotatingTokens) -> None:
        self.idp, self.provider, self.auth0, self.google = idp, provider, auth0, google
        self.refresh_tokens = {user: self.log_in(user) for user in ("alice", "bob")}
        self.made: list[Any] = []
        self.source = self.another()
        self.route = ProxyRoute(provider, token_source=self.source, connection=GOOGLE)

    def log_in(self, user: str, *, access_token: str | None = None, **changed: Any) -> str:
        """What a login leaves in the profile; the access token is as good as none after an hour."""
        given = self.google.log_in(scope=user)
        fields = {"access_token": access_token or f"{STALE}.{user}", "refresh_token": given["refresh_token"]}
        self.auth0.add_user(f"auth0|{user}", [Identity(GOOGLE, user, expires_in=3599, **{**fields, **changed})])
        return str(given["refresh_token"])

    def another(self, **options: Any) -> Auth0Management:
        refresh = ProviderRefresh(
            connection=GOOGLE, token_url=f"{self.provider}/token", client_id="at-google", client_secret=SECRET
        )
        given = {"base_url": self.idp, "client_id": "me", "client_secret": "s3cret", "refresh": [refresh], **options}
        source = Auth0Management(**given)
        self.made.append(source)
        return source

    async def token(self, caller: Caller = ALICE, *, refused: Token | None = None) -> Token:
        return await self.source.token(caller, self.route, refused=refused)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    auth0, google = Auth0(), RotatingTokens(client_id="at-google", client_secret=SECRET, rotates=False)
    auth0.add_client("me", "s3cret")
    with serve(auth0) as idp, serve(google) as provider:
        world = World(idp.url, provider.url, auth0, google)
        yield world
        for source in world.made:
            await source.aclose()


# What is handed out


async def test_the_token_comes_from_the_provider_and_says_how_long_it_lives(world: World) -> None:
    """Nobody knows the age of the one in the profile, and not every request can be sent twice to find out."""
    before = time.time()
    token = await world.token()
    assert world.google.valid(token.value)
    assert token.expires_at == pytest.approx(before + 3600, abs=10)
    assert token.scopes == {"alice"}
    assert world.google.last.body.decode().count(world.refresh_tokens["alice"]) == 1


async def test_each_user_gets_the_own_token_and_one_refresh(world: World) -> None:
    """Through the engine, where forty requests wait for the same two."""
    engine = TokenEngine()
    callers = [Caller(f"auth0|{user}") for user in ("alice", "bob")] * 20
    tokens = await asyncio.gather(*(engine.token(caller, world.route) for caller in callers))
    assert [token.scopes for token in tokens] == [{"alice"}, {"bob"}] * 20
    assert (world.google.refreshes, world.auth0.count("/api/v2/users/")) == (2, 2)
    await engine.aclose()


async def test_a_refused_token_is_refreshed_too(world: World) -> None:
    """The way with the middleware: the upstream takes no token that came before the newest."""
    middleware = IdPMiddleware(routes={"google": world.route}, authenticator=world.token)
    client = middleware.client("google", ALICE)
    assert (await client.get("/me")).json() == {"scope": "alice"}
    await world.token()  # somebody else's refresh, which ends the one that is kept
    assert (await client.get("/me")).json() == {"scope": "alice"}
    assert world.google.refreshes == 3
    assert STALE not in {request.bearer for request in world.google.requests}
    await middleware.aclose()


async def test_the_client_is_the_connections_own(world: World) -> None:
    """At the provider, with its secret as the provider wants it; Auth0's has no business there."""
    refresh = ProviderRefresh(
        connection=GOOGLE,
        token_url=f"{world.provider}/token",
        client_id="at-google",
        client_secret=SECRET,
        client_auth="basic",
    )
    world.source = world.another(refresh=[refresh])
    with pytest.raises(TokenSourceFailed, match="invalid_client"):  # of a double that wants it in the body
        await world.token()
    expected = base64.b64encode(f"at-google:{SECRET}".encode()).decode()
    assert world.google.last.header("authorization") == f"Basic {expected}"
    assert b"s3cret" not in world.google.last.body


@pytest.mark.parametrize("refresh_token", [None, "", 7, ["x"]])
async def test_without_a_refresh_token_it_is_as_it_was(world: World, refresh_token: Any) -> None:
    """A user who has linked before the app asked for one."""
    world.log_in("alice", access_token="ya29.only", refresh_token=refresh_token)
    assert await world.token() == Token("ya29.only", account="alice")
    assert await world.token(refused=Token("ya29.only")) == Token("ya29.only", account="alice")
    assert world.google.requests == []


async def test_another_connection_is_left_alone(world: World) -> None:
    """Its refresh tokens may rotate, and belong to another client in any case."""
    identity = Identity("github-app", "1", access_token="ghu_alice", refresh_token="ghr_alice")
    world.auth0.link("auth0|alice", identity)
    route = ProxyRoute("https://api.github.com", token_source=world.source, connection="github-app")
    assert await world.source.token(ALICE, route) == Token("ghu_alice", account="1")
    assert world.google.requests == []


async def test_of_several_accounts_the_named_one_is_refreshed(world: World) -> None:
    """The same choice as ever, made before."""
    given = world.google.log_in(scope="work")
    world.auth0.link("auth0|alice", Identity(GOOGLE, "work", refresh_token=given["refresh_token"]))
    assert (await world.token(Caller("auth0|alice", account="work"))).scopes == {"work"}
    assert (await world.token(Caller("auth0|alice", account="alice"))).scopes == {"alice"}
    with pytest.raises(IdentityNotLinked):
        await world.token(Caller("auth0|alice", account="bob"))


# What goes wrong


async def test_a_withdrawn_refresh_token_leaves_what_a_new_login_has_brought(world: World) -> None:
    """Google gives a refresh token at the first consent only, so an old one may stand beside a fresh access token."""
    world.google.revoke(world.refresh_tokens["alice"])
    assert await world.token() == Token(f"{STALE}.alice", account="alice")
    with pytest.raises(ReconnectRequired) as caught:
        await world.token(refused=Token(f"{STALE}.alice"))
    assert caught.value.members() == {"connection": GOOGLE}


async def test_a_withdrawn_refresh_token_with_nothing_beside_it(world: World) -> None:
    """There is nothing to try."""
    world.google.revoke(world.log_in("alice"))
    identity = Identity(GOOGLE, "alice", refresh_token=world.refresh_tokens["alice"])
    world.google.revoke(world.refresh_tokens["alice"])
    world.auth0.add_user("auth0|alice", [identity])
    with pytest.raises(ReconnectRequired):
        await world.token()


async def test_a_user_who_has_left_is_told_to_reconnect_by_the_middleware(world: World) -> None:
    """One refresh that fails, one try with what is in the profile, one that is refused: then it is clear."""
    world.google.revoke(world.refresh_tokens["alice"])
    middleware = IdPMiddleware(routes={"google": world.route}, authenticator=world.token)
    for _ in range(2):
        with pytest.raises(ReconnectRequired):
            await middleware.client("google", ALICE).get("/me")
    await middleware.aclose()


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (400, {"error": "interaction_required"}, ReconnectRequired, "interaction_required"),
        (401, {"error": "invalid_client"}, TokenSourceFailed, "client_secret of this connection"),
        (400, {"error": "unauthorized_client"}, TokenSourceFailed, "another client's"),
        (400, {"error": "invalid_request"}, TokenSourceFailed, "invalid_request"),
        (400, {"error": "x", "error_description": f"{SECRET} REFRESH"}, TokenSourceFailed, r"\*\*\*"),
        (403, b"<html>", TokenSourceFailed, "403"),
        (500, b"", TokenSourceUnavailable, "500"),
        (200, {"error": "invalid_grant"}, ReconnectRequired, "invalid_grant"),
        (200, {"token_type": "Bearer"}, TokenSourceFailed, "access_token"),
        (200, {"access_token": "x", "token_type": "mac"}, TokenSourceFailed, "token_type"),
    ],
)
async def test_errors_of_the_provider(world: World, status: int, body: Any, error: type[IdPError], said: str) -> None:
    """Never an answer with what was refused; nothing secret in any of them."""
    secret = world.refresh_tokens["alice"]
    if isinstance(body, dict):
        body = {name: value.replace("REFRESH", secret) for name, value in body.items()}
    world.google.respond("/token", status=status, body=body, times=1)
    with pytest.raises(error, match=said) as caught:
        await world.token(refused=Token(f"{STALE}.alice"))
    assert caught.type is error
    assert secret not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert (await world.token()).scopes == {"alice"}


async def test_an_outage_of_the_provider_takes_no_token_away(world: World) -> None:
    """In the profile is one that may be hours old; the one that is kept serves to its end."""
    engine = TokenEngine()
    with time_machine.travel(time.time(), tick=True) as clock:
        token = await engine.token(ALICE, world.route)
        world.google.respond("/token", status=503, body=b"")
        clock.shift(3550)
        assert await engine.token(ALICE, world.route) == token
        async with asyncio.timeout(10):
            while world.google.count("/token") < 2:  # noqa: ASYNC110 - a double on another thread
                await asyncio.sleep(0.01)
        assert await engine.token(ALICE, world.route) == token
        clock.shift(50)
        with pytest.raises(TokenSourceUnavailable):
            await engine.token(ALICE, world.route)
    await engine.aclose()


async def test_a_stalling_provider_is_waited_for_a_bounded_time(world: World) -> None:
    """With the time-outs that are for Auth0."""
    world.source = world.another(timeout=Timeout(connect=5, read=0.3, write=5, pool=5))
    world.google.stall("/token", 3600)
    with pytest.raises(TokenSourceTimeout):
        await world.token()


async def test_a_rate_limit_of_the_provider_is_kept(world: World) -> None:
    """At that provider; Auth0 is asked on."""
    world.google.respond("/token", status=429, body=b"", headers={"retry-after": "60"})
    for _ in range(2):
        with pytest.raises(TokenSourceUnavailable) as caught:
            await world.token()
        assert caught.value.retry_after == pytest.approx(60, abs=3)
    assert (world.google.count("/token"), world.auth0.count("/api/v2/users/")) == (1, 2)


# How it is set up


def one(**changed: Any) -> ProviderRefresh:
    given = {"connection": GOOGLE, "token_url": "https://oauth2.googleapis.com/token", "client_id": "at-google"}
    return ProviderRefresh(**{"client_secret": SECRET, **given, **changed})


def auth0(*refresh: ProviderRefresh, **options: Any) -> Auth0Management:
    return Auth0Management(domain="acme.eu.auth0.com", client_id="me", client_secret="s", refresh=refresh, **options)


@pytest.mark.parametrize(
    ("refresh", "said"),
    [
        ([one(), one(client_id="other")], "twice"),
        ([one(token_url="http://oauth2.googleapis.com/token")], "token_url must be https"),
        ([one(client_id="")], "client_id"),
        ([one(client_secret="")], "client_secret"),
        ([one(client_auth="digest")], "client_auth"),
    ],
)
def test_mistakes_are_told(refresh: list[ProviderRefresh], said: str) -> None:
    """Under the one argument that Auth0Management has for it."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        auth0(*refresh)
    assert caught.value.key == "refresh"
    assert SECRET not in str(caught.value)


def test_what_decides_whose_tokens_these_are_is_in_the_identity() -> None:
    """Workers that are set up differently must not share a cache's entries; the order of tables decides nothing."""
    other = one(connection="waad")
    identities = [
        auth0().identity,
        auth0(one()).identity,
        auth0(one(client_id="x")).identity,
        auth0(one(token_url="https://x.example")).identity,
        auth0(one(), other).identity,
    ]
    assert len(set(identities)) == len(identities)
    assert auth0(one(), other).identity == auth0(other, one(client_secret="rotated")).identity


def test_a_repr_shows_no_secret() -> None:
    """Nor can one be pickled by mistake."""
    assert SECRET not in f"{one()!r}{auth0(one())!r}"
    with pytest.raises(TypeError):
        one().__reduce_ex__(4)


CONFIG = """
[authenticator]
type = "jwt"
issuer = "https://acme.eu.auth0.com/"
audience = "https://api.acme.example"

[sources.auth0]
type = "auth0-management"
domain = "acme.eu.auth0.com"
client_id = "me"
client_secret = "${SECRET}"

[[sources.auth0.refresh]]
connection = "google-oauth2"
token_url = "https://oauth2.googleapis.com/token"
client_id = "at-google"
client_secret = "${SECRET}"

[routes.google]
upstream = "https://www.googleapis.com"
source = "auth0"
connection = "google-oauth2"
"""


def test_a_file_says_it_in_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One for each connection; a secret that is written out is refused."""
    monkeypatch.setenv("SECRET", SECRET)
    (tmp_path / "idp.toml").write_text(CONFIG)
    source = load_config(tmp_path / "idp.toml")["routes"]["google"].source
    assert source.identity == auth0(one()).identity
    head, _, tail = CONFIG.rpartition("${SECRET}")
    (tmp_path / "idp.toml").write_text(f"{head}written-out{tail}")
    with pytest.raises(ConfigurationError) as caught:
        load_config(tmp_path / "idp.toml")
    assert (caught.value.table, caught.value.key) == ("sources.auth0.refresh #1", "client_secret")
