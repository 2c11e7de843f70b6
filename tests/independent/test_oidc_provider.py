"""Against an authorization server that we did not write (npm oidc-provider): a double of ours shares our mistakes."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from idp_middleware import Caller, ProxyRoute, Token
from idp_middleware.errors import IdentityNotLinked, TokenSourceFailed
from idp_middleware.sources import Auth0Management, ClientCredentials, TokenExchange
from idp_middleware.testing import signing_key
from tests.independent.conftest import AWKWARD

TYPE = "urn:ietf:params:oauth:token-type:"


def key(algorithm: str) -> dict[str, str]:
    signing = signing_key(algorithm, 21)
    return {"client_id": f"key-{algorithm}", "private_key": signing.private_pem, "key_id": signing.kid}


POST = {"client_id": "post", "client_secret": AWKWARD}
BASIC = {"client_id": "basic:1", "client_secret": AWKWARD, "client_auth": "basic"}


async def give(source: Any, caller: Caller, connection: str | None = None) -> Token:
    route = ProxyRoute("https://api.example.com", token_source=source, connection=connection)
    try:
        token: Token = await source.token(caller, route)
    finally:
        await source.aclose()
    return token


def introspected(server: Any, token: Token) -> dict[str, Any]:
    """What the server itself says of a token."""
    form = {"token": token.value, "client_id": "post", "client_secret": AWKWARD}
    with httpx.Client(trust_env=False) as client:
        told: dict[str, Any] = client.post(f"{server.url}/token/introspection", data=form).json()
    return told


@pytest.mark.parametrize(
    "client", [POST, BASIC, key("RS256"), key("ES256"), key("EdDSA")], ids=lambda c: c["client_id"]
)
async def test_client_credentials(authorization_server: Any, client: dict[str, str]) -> None:
    """With each way to authenticate; a signed statement is for the issuer here."""
    extra = {"issuer": authorization_server.url} if "private_key" in client else {}
    token = await give(
        ClientCredentials(token_url=f"{authorization_server.url}/oauth/token", scope="read write", **client, **extra),
        Caller("alice"),
    )
    told = introspected(authorization_server, token)
    assert (told["active"], told["client_id"], told["scope"]) == (True, client["client_id"], "read write")
    assert token.scopes == {"read", "write"}
    assert token.expires_at == pytest.approx(time.time() + 600, abs=30)


@pytest.mark.parametrize(
    "client",
    [
        {**POST, "client_secret": "wrong"},
        {**BASIC, "client_secret": "wrong"},
        {**key("ES256"), "client_id": "key-RS256"},
    ],
    ids=range(3),
)
async def test_a_client_that_is_refused(authorization_server: Any, client: dict[str, str]) -> None:
    """The operator is told, and not what we sent."""
    with pytest.raises(TokenSourceFailed, match="invalid_client") as caught:
        await give(ClientCredentials(token_url=f"{authorization_server.url}/oauth/token", **client), Caller("alice"))
    assert AWKWARD not in str(caught.value)


@pytest.mark.parametrize("client", [POST, BASIC, key("ES256")], ids=lambda c: c["client_id"])
async def test_token_exchange(authorization_server: Any, client: dict[str, str]) -> None:
    """Each user's token becomes another of the same user's."""
    extra = {"issuer": authorization_server.url} if "private_key" in client else {}
    for user, credential in authorization_server.tokens.items():
        source = TokenExchange(
            token_url=f"{authorization_server.url}/oauth/token",
            audience=["orders", "billing"],
            resource="https://orders.example",
            scope="read",
            requested_token_type=TYPE + "access_token",
            **client,
            **extra,
        )
        token = await give(source, Caller(user, credential=credential))
        told = introspected(authorization_server, token)
        assert (told["active"], told["sub"], told["client_id"]) == (True, user, client["client_id"])
        assert token.value != credential
        assert token.expires_at == pytest.approx(time.time() + 3600, abs=30)


@pytest.mark.parametrize(
    ("options", "credential", "hint"),
    [
        ({}, "not-a-token", "invalid_request.*does not take the caller's token"),
        ({"audience": "elsewhere"}, None, "invalid_target.*no such audience"),
        ({"resource": ["https://orders.example", "https://elsewhere.example"]}, None, "invalid_target"),
        ({"subject_token_type": TYPE + "jwt"}, None, "invalid_request"),
        ({"client_secret": "wrong"}, None, "invalid_client"),
    ],
)
async def test_an_exchange_that_is_refused(
    authorization_server: Any, options: dict[str, Any], credential: str | None, hint: str
) -> None:
    """In the server's own words."""
    alice = authorization_server.tokens["auth0|alice"]
    source = TokenExchange(**{"token_url": f"{authorization_server.url}/oauth/token", **POST, **options})
    with pytest.raises(TokenSourceFailed, match=hint) as caught:
        await give(source, Caller("alice", credential=credential or alice))
    assert alice not in str(caught.value)


async def test_auth0_management(authorization_server: Any) -> None:
    """The grant and the management token are the server's; the look-up asks it whether that is good."""
    for user in ("alice", "bob"):
        source = Auth0Management(base_url=authorization_server.url, **POST)
        token = await give(source, Caller(f"auth0|{user}"), "github")
        assert token.value == f"gho_{user}"
    with pytest.raises(IdentityNotLinked):
        await give(Auth0Management(base_url=authorization_server.url, **POST), Caller("auth0|carol"), "github")
    wrong = Auth0Management(base_url=authorization_server.url, client_id="post", client_secret="wrong")
    with pytest.raises(TokenSourceFailed, match="invalid_client"):
        await give(wrong, Caller("auth0|alice"), "github")
