"""How the app proves to a token endpoint who it is, against a server that takes one way from each client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from idp_middleware import Caller, ProxyRoute, Token
from idp_middleware.errors import ConfigurationError, TokenSourceFailed
from idp_middleware.sources import Auth0Management, ClientCredentials
from idp_middleware.testing import Auth0, Identity, TokenEndpoint, serve, signing_key

AWKWARD = ("me:you 100%", "s3cr&t+ü/=%:~")


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    endpoint = TokenEndpoint()
    with serve(endpoint):
        yield endpoint


async def ask(endpoint: Any, **options: Any) -> Token:
    options = {"token_url": f"{endpoint.issuer}/token", "client_id": "me", **options}
    source = ClientCredentials(**options)
    try:
        return await source.token(Caller("alice"), ProxyRoute("https://api.example.com", token_source=source))
    finally:
        await source.aclose()


def sent(endpoint: TokenEndpoint) -> dict[str, list[str]]:
    return parse_qs(endpoint.last.body.decode())


@pytest.mark.parametrize(("way", "auth"), [("post", "client_secret_post"), ("basic", "client_secret_basic")])
@pytest.mark.parametrize("client", [("me", "s3cret"), AWKWARD])
async def test_a_secret_goes_one_way_or_the_other(
    endpoint: TokenEndpoint, way: str, auth: str, client: tuple[str, str]
) -> None:
    """Never both (RFC 6749 section 2.3), and whatever is in it arrives."""
    client_id, secret = client
    endpoint.add_client(client_id, secret, auth=auth)
    await ask(endpoint, client_id=client_id, client_secret=secret, client_auth=way)
    assert ("client_secret" in sent(endpoint)) == (way == "post")
    assert (endpoint.last.header("authorization") is None) == (way == "post")


async def test_the_header_is_form_encoded_first(endpoint: TokenEndpoint) -> None:
    """Section 2.3.1: or else a colon would end the client's name, and a % would mean something."""
    endpoint.add_client("a:b", "c%d e", auth="client_secret_basic")
    await ask(endpoint, client_id="a:b", client_secret="c%d e", client_auth="basic")
    header = endpoint.last.header("authorization") or ""
    assert base64.b64decode(header.removeprefix("Basic ")) == b"a%3Ab:c%25d+e"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_key_signs_a_statement(endpoint: TokenEndpoint, algorithm: str) -> None:
    """RFC 7523 section 3: who, for whom, until when, and once only."""
    key = signing_key(algorithm, 5)
    endpoint.add_client("me", key=key)
    await ask(endpoint, private_key=key.private_pem, key_id=key.kid)
    statement = sent(endpoint)["client_assertion"][0]
    assert jwt.get_unverified_header(statement) == {"alg": algorithm, "typ": "JWT", "kid": key.kid}
    claims = jwt.decode(statement, options={"verify_signature": False})
    assert claims["aud"] == f"{endpoint.issuer}/token"
    assert claims["iss"] == claims["sub"] == "me"
    assert 0 < claims["exp"] - claims["iat"] <= 300
    await ask(endpoint, private_key=key.private_pem)
    assert "client_secret" not in sent(endpoint)


async def test_a_statement_may_have_to_be_for_the_issuer(endpoint: TokenEndpoint) -> None:
    """Some servers take nothing else, since an endpoint may be shared."""
    key = signing_key("ES256", 5)
    endpoint.add_client("me", key=key)
    await ask(endpoint, private_key=key.private_pem, issuer=endpoint.issuer)
    claims = jwt.decode(sent(endpoint)["client_assertion"][0], options={"verify_signature": False})
    assert claims["aud"] == endpoint.issuer


async def test_a_second_attempt_has_a_statement_of_its_own(endpoint: TokenEndpoint) -> None:
    """The server may have noted the first before it limited our rate."""
    key = signing_key("ES256", 5)
    endpoint.add_client("me", key=key)
    endpoint.respond("/token", status=429, headers={"Retry-After": "0"}, times=1)
    await ask(endpoint, private_key=key.private_pem)
    first, second = (parse_qs(request.body.decode())["client_assertion"] for request in endpoint.requests)
    assert first != second


async def test_a_key_may_come_in_one_line(endpoint: TokenEndpoint) -> None:
    """An environment variable in a file of a container's has no line breaks."""
    key = signing_key("ES256", 5)
    endpoint.add_client("me", key=key)
    await ask(endpoint, private_key=key.private_pem.replace("\n", "\\n"))


async def test_another_key_is_refused(endpoint: TokenEndpoint) -> None:
    """The operator is told, and sees no statement that could be used."""
    endpoint.add_client("me", key=signing_key("ES256", 5))
    with pytest.raises(TokenSourceFailed, match="invalid_client") as caught:
        await ask(endpoint, private_key=signing_key("ES256", 6).private_pem)
    assert sent(endpoint)["client_assertion"][0] not in repr(caught.value)


async def test_auth0_takes_all_of_them() -> None:
    """JSON there; and the statement is for the tenant, with its slash."""
    auth0, key = Auth0("https://acme.eu.auth0.com"), signing_key("RS256", 5)
    auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice")])
    auth0.add_client("signing", key=key)
    auth0.add_client("basic", "s3cret", auth="client_secret_basic")
    for options in (
        {"client_id": "signing", "private_key": key.private_pem, "key_id": key.kid},
        {"client_id": "basic", "client_secret": "s3cret", "client_auth": "basic"},
    ):
        source = Auth0Management(domain="acme.eu.auth0.com", transport=httpx.ASGITransport(auth0), **options)
        route = ProxyRoute("https://api.github.com", token_source=source, connection="github")
        assert (await source.token(Caller("auth0|alice"), route)).value == "gho_alice"
        await source.aclose()
    (grant, *_) = auth0.requests
    claims = jwt.decode(json.loads(grant.body)["client_assertion"], options={"verify_signature": False})
    assert claims["aud"] == "https://acme.eu.auth0.com/"


async def test_a_secret_that_is_repeated_from_a_header_is_cleaned(endpoint: TokenEndpoint) -> None:
    """It is in no field of the body."""
    endpoint.refuse("invalid_client", error_description="me with s3cret is wrong")
    with pytest.raises(TokenSourceFailed, match=r"me with \*\*\* is wrong"):
        await ask(endpoint, client_secret="s3cret", client_auth="basic")


def pem(key: Any, password: bytes | None = None) -> str:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return encoded.decode()


GOOD = pem(ec.generate_private_key(ec.SECP384R1()))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "client_secret"),
        ({"client_secret": ""}, "client_secret"),
        ({"client_secret": None}, "client_secret"),
        ({"client_secret": "x", "client_auth": "header"}, "client_auth"),
        ({"client_secret": "x", "key_id": "1"}, "key_id"),
        ({"client_secret": "x", "private_key": GOOD}, "private_key"),
        ({"private_key": GOOD, "key_id": ""}, "key_id"),
        ({"private_key": ""}, "private_key"),
        ({"private_key": 7}, "private_key"),
        ({"private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"}, "private_key"),
        ({"private_key": signing_key().public_pem.decode()}, "private_key"),
        ({"private_key": pem(ec.generate_private_key(ec.SECP256R1()), b"password")}, "private_key"),
        ({"private_key": pem(ec.generate_private_key(ec.SECP256K1()))}, "private_key"),
        ({"private_key": pem(rsa.generate_private_key(65537, 1024))}, "private_key"),
        ({"private_key": pem(dsa.generate_private_key(1024))}, "private_key"),
    ],
    ids=range(15),
)
def test_mistakes_are_told_where_they_are_made(options: dict[str, Any], key: str) -> None:
    """Long before the first request, and without a word of the key."""
    with pytest.raises(ConfigurationError) as caught:
        ClientCredentials(token_url="https://idp.example/token", client_id="me", **options)
    assert caught.value.key == key
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_word_that_is_no_argument_is_an_error() -> None:
    """As for any function of Python's."""
    with pytest.raises(TypeError, match="'clientsecret'"):
        ClientCredentials(token_url="https://idp.example/token", client_id="me", clientsecret="x")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
async def test_each_curve_has_its_algorithm(endpoint: TokenEndpoint, curve: Any) -> None:
    """RFC 7518 section 3.4."""
    endpoint.add_client("me", key=signing_key("ES256", 5))
    with pytest.raises(TokenSourceFailed):
        await ask(endpoint, private_key=pem(ec.generate_private_key(curve)))
    header = jwt.get_unverified_header(sent(endpoint)["client_assertion"][0])
    assert header["alg"] == {256: "ES256", 384: "ES384", 521: "ES512"}[curve.key_size]
