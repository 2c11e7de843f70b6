"""The stand-ins for Keycloak, Entra ID, RFC 8693 servers and Token Vault refuse what the real ones refuse."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import jwt
import pytest

from idp_middleware.testing import Auth0, Entra, Keycloak, TokenEndpoint, signing_key
from idp_middleware.testing._keys import sign

TYPE = "urn:ietf:params:oauth:token-type:"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
VAULT = "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token"
FEDERATED = "http://auth0.com/oauth/token-type/federated-connection-access-token"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
KEY = signing_key("ES256", 11)


async def post(double: Any, path: str, form: Any = None, **options: Any) -> tuple[int, str]:
    """Status and error code."""
    transport = httpx.ASGITransport(double)
    async with httpx.AsyncClient(transport=transport, base_url="https://idp.example") as client:
        response = await client.post(path, data=form, **options)
    return response.status_code, str(response.json().get("error", ""))


async def get(double: Any, url: str) -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(double)) as client:
        return (await client.get(url)).json()


def basic(text: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize(
    "double",
    [TokenEndpoint("https://idp.example"), Entra("https://idp.example"), Keycloak("https://idp.example")],
    ids=lambda double: type(double).__name__,
)
async def test_discovery_leads_to_the_keys(double: Any) -> None:
    """So that JWTAuthenticator works with each."""
    document = await get(double, f"{double.issuer}/.well-known/openid-configuration")
    assert document["issuer"] == double.issuer
    keys = jwt.PyJWKSet.from_dict(await get(double, document["jwks_uri"]))
    token = double.issue_token("alice", audience="me")
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["RS256"], audience="me", issuer=double.issuer)
    assert claims["sub"] == "alice"
    assert (await post(double, "/elsewhere"))[0] == 404


class TestClients:
    """One way to authenticate for each client."""

    @pytest.fixture
    def endpoint(self) -> TokenEndpoint:
        endpoint = TokenEndpoint("https://idp.example")
        endpoint.add_client("post", "s3cret")
        endpoint.add_client("basic", "s3cret", auth="client_secret_basic")
        endpoint.add_client("key", key=KEY)
        return endpoint

    def statement(self, **changes: Any) -> dict[str, str]:
        now = int(time.time())
        claims = {"iss": "key", "sub": "key", "aud": "https://idp.example/token", "jti": str(changes), "exp": now + 60}
        claims |= changes
        claims = {name: value for name, value in claims.items() if value is not None}
        signed = sign(claims, algorithm="ES256", key=KEY)
        return {"client_id": "key", "client_assertion_type": ASSERTION, "client_assertion": signed}

    async def ask(self, endpoint: TokenEndpoint, headers: Any = None, **fields: Any) -> tuple[int, str]:
        return await post(endpoint, "/token", {"grant_type": "client_credentials", **fields}, headers=headers)

    async def test_take_what_is_right(self, endpoint: TokenEndpoint) -> None:
        """Or nothing could be tested."""
        good = [
            await self.ask(endpoint, client_id="post", client_secret="s3cret"),
            await self.ask(endpoint, basic("basic:s3cret")),
            await self.ask(endpoint, basic("basic:s3cret"), client_id="basic"),
            await self.ask(endpoint, **self.statement()),
        ]
        assert good == [(200, "")] * 4

    @pytest.mark.parametrize(
        ("headers", "fields"),
        [
            (None, {}),
            (None, {"client_id": "post"}),
            (None, {"client_id": "post", "client_secret": "wrong"}),
            (None, {"client_id": "nobody", "client_secret": "s3cret"}),
            (None, {"client_id": "basic", "client_secret": "s3cret"}),
            (None, {"client_id": "key", "client_secret": "s3cret"}),
            (basic("post:s3cret"), {}),
            (basic("basic:wrong"), {}),
            (basic("basic:s3cret:"), {}),
            (basic("basic"), {}),
            (basic("basic:s3cret"), {"client_id": "post"}),
            (basic("basic:s3cret"), {"client_id": "post", "client_secret": "s3cret"}),
            ({"authorization": "Basic ?"}, {}),
            ({"authorization": "Bearer YTpi"}, {}),
        ],
    )
    async def test_refuse_a_secret_that_comes_otherwise(
        self, endpoint: TokenEndpoint, headers: Any, fields: dict[str, str]
    ) -> None:
        """Lenient doubles make for failures in production."""
        assert await self.ask(endpoint, headers, **fields) == (401, "invalid_client")

    @pytest.mark.parametrize(
        "changes",
        [
            {"iss": "post"},
            {"sub": "post"},
            {"aud": "https://other.example"},
            {"aud": ["https://idp.example/token", "https://other.example"]},
            {"exp": 1},
            {"exp": None},
            pytest.param({"exp": int(time.time()) + 3600}, id="exp far ahead"),
            {"jti": None},
        ],
        ids=str,
    )
    async def test_refuse_a_statement_that_is_off(self, endpoint: TokenEndpoint, changes: dict[str, Any]) -> None:
        """RFC 7523 section 3."""
        assert await self.ask(endpoint, **self.statement(**changes)) == (401, "invalid_client")

    async def test_refuse_a_statement_twice(self, endpoint: TokenEndpoint) -> None:
        """And one of another kind, or by a key of another name."""
        statement = self.statement()
        assert await self.ask(endpoint, **statement) == (200, "")
        assert await self.ask(endpoint, **statement) == (401, "invalid_client")
        other = {**self.statement(jti="1"), "client_assertion_type": "urn:x"}
        assert await self.ask(endpoint, **other) == (401, "invalid_client")
        claims = jwt.decode(self.statement(jti="2")["client_assertion"], options={"verify_signature": False})
        named = {**statement, "client_assertion": sign(claims, algorithm="ES256", key=KEY, headers={"kid": "other"})}
        assert await self.ask(endpoint, **named) == (401, "invalid_client")

    def test_have_a_secret_or_a_key(self, endpoint: TokenEndpoint) -> None:
        """Anything else is a test's own mistake."""
        for options in ({}, {"client_secret": "x", "key": KEY}, {"client_secret": "x", "auth": "none"}):
            with pytest.raises(ValueError, match="secret or a key"):
                endpoint.add_client("odd", **options)


class TestTokenEndpoint:
    @pytest.mark.parametrize(
        ("changes", "answer"),
        [
            ({}, (200, "")),
            ({"subject_token_type": TYPE + "jwt"}, (200, "")),
            ({"grant_type": None}, (400, "invalid_request")),
            ({"grant_type": "password"}, (400, "unsupported_grant_type")),
            ({"subject_token": None}, (400, "invalid_request")),
            ({"subject_token": "x"}, (400, "invalid_request")),
            ({"subject_token_type": None}, (400, "invalid_request")),
            ({"subject_token_type": TYPE + "id_token"}, (400, "invalid_request")),
            ({"actor_token": "x"}, (400, "invalid_request")),
            ({"scope": ""}, (400, "invalid_request")),
            ({"scope": ["read", "write"]}, (400, "invalid_request")),
            ({"scope": "admin"}, (400, "invalid_scope")),
            ({"audience": "unknown"}, (400, "invalid_target")),
            ({"resource": ["https://a.example", "https://b.example"]}, (400, "invalid_target")),
        ],
        ids=str,
    )
    async def test_is_as_strict_as_the_rfcs(self, changes: dict[str, Any], answer: tuple[int, str]) -> None:
        """RFC 6749 section 3.2, RFC 8693 section 2."""
        endpoint = TokenEndpoint("https://idp.example")
        endpoint.add_client("me", "s3cret")
        form = {
            "grant_type": EXCHANGE,
            "client_id": "me",
            "client_secret": "s3cret",
            "subject_token": endpoint.issue_token("alice", audience="me"),
            "subject_token_type": TYPE + "access_token",
            **changes,
        }
        form = {name: value for name, value in form.items() if value is not None}
        assert await post(endpoint, "/token", form) == answer

    async def test_takes_nothing_but_a_form(self) -> None:
        """And no parameters in the URL, which end up in logs."""
        endpoint = TokenEndpoint("https://idp.example")
        endpoint.add_client("me", "s3cret", grants=[EXCHANGE])
        form = {"grant_type": "client_credentials", "client_id": "me", "client_secret": "s3cret"}
        assert await post(endpoint, "/token", json=form) == (400, "invalid_request")
        assert await post(endpoint, "/token?x=1", form) == (400, "invalid_request")
        assert await post(endpoint, "/token", form) == (400, "unauthorized_client")

    def test_rotated_keys_and_foreign_tokens_are_told_apart(self) -> None:
        """A token of another issuer is not good here, whoever signed it."""
        endpoint = TokenEndpoint("https://idp.example")
        for token in (
            endpoint.issue_token("alice", audience="me", iss="https://other.example"),
            endpoint.issue_token("alice", audience="me", key=KEY, algorithm="ES256"),
            endpoint.issue_token("alice", audience="me", exp=None),
        ):
            with pytest.raises(Exception, match="invalid"):
                endpoint.claims_of(token)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, ""),
        ({"requested_token_use": None}, "invalid_request"),
        ({"requested_token_use": "other"}, "invalid_request"),
        ({"scope": None}, "invalid_request"),
        ({"assertion": None}, "invalid_request"),
        ({"assertion": "x"}, "invalid_grant"),
        ({"scope": "unknown"}, "invalid_scope"),
    ],
    ids=str,
)
async def test_entra_wants_every_parameter(changes: dict[str, Any], error: str) -> None:
    """As the page of the flow has them."""
    entra = Entra("https://idp.example")
    entra.add_client("me", "s3cret")
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "client_id": "me",
        "client_secret": "s3cret",
        "assertion": entra.issue_token("alice", audience="api://me"),
        "scope": "https://graph.microsoft.com/.default",
        "requested_token_use": "on_behalf_of",
        **changes,
    }
    form = {name: value for name, value in form.items() if value is not None}
    assert (await post(entra, entra.path, form))[1] == error


async def test_entra_gives_an_app_its_own_token_too() -> None:
    """For ClientCredentials."""
    entra = Entra("https://idp.example")
    entra.add_client("me", "s3cret")
    form = {"grant_type": "client_credentials", "client_id": "me", "client_secret": "s3cret"}
    scope = "https://graph.microsoft.com/.default"
    assert await post(entra, entra.path, {**form, "scope": scope}) == (200, "")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, "access_denied"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"subject_token_type": TYPE + "jwt"}, "invalid_request"),
        ({"requested_issuer": "gitlab"}, "invalid_request"),
        ({"client_id": "may", "requested_token_type": TYPE + "refresh_token"}, "invalid_target"),
        ({"client_id": "may"}, "not_linked"),
        ({"client_id": ["may", "me"]}, "invalid_request"),
    ],
    ids=str,
)
async def test_keycloak_looks_at_every_parameter(changes: dict[str, Any], error: str) -> None:
    """In the order that Keycloak does."""
    keycloak = Keycloak("https://idp.example")
    keycloak.add_provider("github")
    keycloak.add_client("me", "s3cret")
    keycloak.add_client("may", "s3cret", may_exchange=True)
    form = {
        "grant_type": EXCHANGE,
        "client_id": "me",
        "client_secret": "s3cret",
        "subject_token": keycloak.issue_token("alice", audience="me"),
        "subject_token_type": TYPE + "access_token",
        "requested_issuer": "github",
        **changes,
    }
    assert (await post(keycloak, "/realms/acme/protocol/openid-connect/token", form))[1] == error


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, ""),
        ({"connection": None}, "invalid_request"),
        ({"requested_token_type": TYPE + "access_token"}, "invalid_request"),
        ({"scope": "repo"}, "invalid_request"),
        ({"subject_token_type": TYPE + "id_token"}, "invalid_grant"),
        ({"subject_token_type": TYPE + "refresh_token"}, "invalid_grant"),
        ({"client_id": "plain"}, "unauthorized_client"),
    ],
    ids=str,
)
async def test_token_vault_looks_at_every_parameter(changes: dict[str, Any], error: str) -> None:
    """As the page of the grant has them."""
    auth0 = Auth0("https://idp.example")
    auth0.add_client("me", "s3cret", vault=True, api="me")
    auth0.add_client("plain", "s3cret")
    auth0.connect("auth0|alice", "github", "gho_alice")
    form = {
        "grant_type": VAULT,
        "client_id": "me",
        "client_secret": "s3cret",
        "subject_token": auth0.issue_token("auth0|alice", audience=["me", "other"]),
        "subject_token_type": TYPE + "access_token",
        "requested_token_type": FEDERATED,
        "connection": "github",
        **changes,
    }
    form = {name: value for name, value in form.items() if value is not None}
    assert (await post(auth0, "/oauth/token", form))[1] == error
