"""What comes with a token and some APIs need: from where it comes, through what keeps tokens, to the request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiocache import SimpleMemoryCache
from cryptography.fernet import Fernet

from idp_middleware import Caller, ProxyRoute, Token, TokenCache, providers, sources
from idp_middleware.stores import SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import Identity, ProviderAPI, serve
from tests.providers.conftest import problem
from tests.stack import Stack, running

SECRET = "the-access-token-secret"


def oauth1(api: str, source: Any) -> dict[str, ProxyRoute]:
    route = providers.x_oauth1(
        token_source=source, connection="twitter", consumer_key="key", consumer_secret="secret", upstream=api
    )
    return {"x": route}


def test_auth0_knows_the_secret_of_an_oauth1_identity() -> None:
    """It is in the profile, and goes into signatures: not to the API, and to a cache only encrypted."""
    backend = SimpleMemoryCache()
    cache = TokenCache(backend, encryption_keys=[Fernet.generate_key()])
    with running(routes=oauth1, cache=cache) as stack, stack.client() as client:
        link(stack, access_token_secret=SECRET)
        stack.provider.respond("/2/users/me", body={"data": {}})
        assert client.get("/idp/x/2/users/me").json() == {"data": {}}
        sent = str(stack.provider.last.headers)
    assert "OAuth oauth_consumer_key" in sent
    assert backend._cache
    assert SECRET not in sent + str(backend._cache)


def link(stack: Stack, **fields: Any) -> None:
    stack.auth0.link("auth0|alice", Identity("twitter", "7", access_token="7-the-token", **fields))


def test_an_identity_without_a_secret_can_not_be_signed_for() -> None:
    """Nor one whose secret is no string."""
    with running(routes=oauth1) as stack, stack.client() as client:
        link(stack)
        assert problem(client.get("/idp/x/2/users/me"))[:2] == (502, "token-source-failed")
        assert stack.provider.requests == []


@pytest.mark.parametrize("serialised", [False, True])
async def test_a_shared_cache_gives_back_what_it_was_given(serialised: bool) -> None:
    """Nothing of a token is lost on the way to another worker."""
    cache = TokenCache(SimpleMemoryCache(), encryption_keys=[Fernet.generate_key()] if serialised else [])
    token = Token("t0ken", 4e9, "Bearer", frozenset({"a"}), {"instance_url": "https://a.example", "n": [1, None]})
    await cache.set(("key",), token, 1.0, ttl=60)
    assert await cache.get(("key",)) == (token, 1.0)


def test_a_token_shows_none_of_it() -> None:
    """Some of it is secret."""
    token = Token("t0ken", extra={"access_token_secret": SECRET})
    assert SECRET not in repr(token)
    assert hash(token) == hash(Token("t0ken", extra={"access_token_secret": SECRET}))


async def test_a_server_that_only_a_refresh_tells_of(tmp_path: Path) -> None:
    """Salesforce may move a customer: from the next refresh on, their requests go to the new server."""
    api, login = ProviderAPI(), ProviderAPI()
    store = SQLiteTokenStore(tmp_path / "tokens.db", encryption_keys=[Fernet.generate_key().decode()])
    key = TokenKey(issuer="", subject="alice", connection="salesforce")
    with serve(api) as server, serve(login) as endpoint:
        await store.put(key, StoredToken(access_token="old", refresh_token="r1", expires_at=1.0))
        login.respond(
            "/token", body={"access_token": "new", "token_type": "Bearer", "instance_url": f"{server.url}/new"}
        )
        source = sources.RefreshToken(store=store, token_url=f"{endpoint.url}/token", client_id="c", client_secret="s")
        route = providers.salesforce(token_source=source, connection="salesforce", upstream=server.url)
        try:
            token = await source.token(Caller("alice"), route)
            assert route.at(token).upstream == f"{server.url}/new"
            (entry,) = await store.get(key)
            assert entry.token.extra == {"instance_url": f"{server.url}/new"}
        finally:
            await source.aclose()
            await store.aclose()


async def test_sources_that_ask_a_token_endpoint_keep_the_server() -> None:
    """Client credentials at Salesforce: the app's own user has a server too."""
    login = ProviderAPI()
    with serve(login) as endpoint:
        source = sources.ClientCredentials(token_url=f"{endpoint.url}/token", client_id="c", client_secret="s")
        route = providers.salesforce(token_source=source)
        for told, extra in (("https://acme.my.salesforce.com", True), (7, False), (None, False)):
            body = {"access_token": "t", "token_type": "Bearer", "instance_url": told, "id_token": "kept out"}
            login.respond("/token", body=body, times=1)
            token = await source.token(Caller("app"), route)
            assert token.extra == ({"instance_url": told} if extra else {})
        await source.aclose()
