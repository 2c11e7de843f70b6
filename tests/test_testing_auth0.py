"""The Auth0 stand-in is as strict as Auth0: what passes here must not fail there."""

from __future__ import annotations

import http.client
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import jwt
import pytest
import time_machine

from idp_middleware.testing import Auth0, Identity, serve, signing_key

ISSUER = "https://tenant.example/"
AUDIENCE = ISSUER + "api/v2/"
API = "https://api.example"
ALICE = "auth0|alice"
GITHUB = Identity("github", "101", access_token="gho_alice", refresh_token="ghr_alice", expires_in=3599)
CREDENTIALS = {
    "grant_type": "client_credentials",
    "client_id": "client",
    "client_secret": "secret",
    "audience": AUDIENCE,
}


@pytest.fixture
def auth0() -> Auth0:
    tenant = Auth0(ISSUER)
    tenant.add_client("client", "secret")
    tenant.add_user(ALICE, [GITHUB])
    return tenant


@pytest.fixture
async def client(auth0: Auth0) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(auth0), base_url=ISSUER) as client:
        yield client


async def management_token(client: httpx.AsyncClient, **changes: str) -> str:
    response = await client.post("/oauth/token", json=CREDENTIALS | changes)
    assert response.status_code == 200
    token: str = response.json()["access_token"]
    return token


async def look_up(client: httpx.AsyncClient, token: str | None, path: str = quote(ALICE, safe="")) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await client.get(f"/api/v2/users/{path}", headers=headers)


async def verified(client: httpx.AsyncClient, token: str) -> dict[str, Any]:
    keys = jwt.PyJWKSet.from_dict((await client.get("/.well-known/jwks.json")).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=[key.algorithm_name], audience=API, issuer=ISSUER)


class TestDiscovery:
    async def test_names_the_endpoints_of_the_issuer(self, client: httpx.AsyncClient) -> None:
        """A client that trusts discovery must arrive at this tenant."""
        document = (await client.get("/.well-known/openid-configuration")).json()

        assert document["issuer"] == ISSUER
        assert document["jwks_uri"] == ISSUER + ".well-known/jwks.json"
        assert document["token_endpoint"] == ISSUER + "oauth/token"

    @pytest.mark.parametrize(("method", "path"), [("POST", "/.well-known/jwks.json"), ("GET", "/oauth/token")])
    async def test_other_methods_find_nothing(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        """A call with the wrong method must not look like it worked."""
        assert (await client.request(method, path)).status_code == 404

    def test_needs_an_issuer(self) -> None:
        """Tokens without an issuer would be refused far from the mistake."""
        with pytest.raises(ValueError, match="issuer is not known"):
            Auth0().issue_token(ALICE, audience=API)

    def test_the_issuer_ends_in_a_slash_as_auth0s_do(self) -> None:
        """Verifiers compare issuers as strings (RFC 8414 section 3.3)."""
        assert Auth0("https://tenant.example").issuer == ISSUER


class TestCallerTokens:
    @pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
    async def test_verify_with_the_published_keys(
        self, auth0: Auth0, client: httpx.AsyncClient, algorithm: str
    ) -> None:
        """What an independent library accepts is a good token."""
        token = auth0.issue_token(ALICE, audience=API, scope="read:github", algorithm=algorithm, org="acme")

        claims = await verified(client, token)

        assert (claims["sub"], claims["scope"], claims["org"]) == (ALICE, "read:github", "acme")
        assert claims["exp"] - claims["iat"] == 3600

    async def test_a_foreign_key_is_not_published(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """Otherwise a forgery made with it would be none."""
        token = auth0.issue_token(ALICE, audience=API, key=signing_key("RS256", 99))

        with pytest.raises(KeyError):
            await verified(client, token)

    async def test_rotation_withdraws_the_old_key(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """After an emergency rotation nothing signed before may pass."""
        old = auth0.issue_token(ALICE, audience=API)
        auth0.rotate_keys()

        with pytest.raises(KeyError):
            await verified(client, old)
        assert await verified(client, auth0.issue_token(ALICE, audience=API))

    async def test_a_planned_rotation_keeps_the_old_key(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """Callers keep their tokens through an ordinary rotation."""
        old = auth0.issue_token(ALICE, audience=API)
        auth0.rotate_keys(keep_old=True)
        new = auth0.issue_token(ALICE, audience=API)

        assert await verified(client, old)
        assert await verified(client, new)
        assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(new)["kid"]

    def test_claims_and_headers_can_be_overridden_and_removed(self, auth0: Auth0) -> None:
        """Tests of a verifier forge one part at a time."""
        token = auth0.issue_token(ALICE, audience=API, iss="https://evil.example/", exp=None, headers={"kid": None})

        claims = jwt.decode(token, options={"verify_signature": False})

        assert claims["iss"] == "https://evil.example/"
        assert "exp" not in claims
        assert "kid" not in jwt.get_unverified_header(token)

    def test_a_token_can_be_expired(self, auth0: Auth0) -> None:
        """Expiry is the commonest reason to refuse a token."""
        claims = jwt.decode(auth0.issue_token(ALICE, audience=API, expires_in=-60), options={"verify_signature": False})

        assert claims["exp"] < time.time() - 50

    def test_unsigned_and_confused_tokens_can_be_forged(self, auth0: Auth0) -> None:
        """The two classic attacks on JWT verifiers (RFC 8725 section 2.1)."""
        unsigned = auth0.issue_token(ALICE, audience=API, algorithm="none")
        pem = signing_key().public_pem
        confused = auth0.issue_token(ALICE, audience=API, algorithm="HS256", key=pem)

        assert unsigned.endswith(".")
        assert jwt.get_unverified_header(unsigned)["alg"] == "none"
        assert confused == auth0.issue_token(ALICE, audience=API, algorithm="HS256", key=pem.decode())

    @pytest.mark.parametrize("algorithm", ["HS256", "XY999"])
    def test_an_algorithm_without_a_key_is_a_mistake(self, auth0: Auth0, algorithm: str) -> None:
        """A test that forges nothing by accident proves nothing."""
        with pytest.raises(ValueError, match=algorithm):
            auth0.issue_token(ALICE, audience=API, algorithm=algorithm)


class TestTokenEndpoint:
    @pytest.mark.parametrize("encoding", ["json", "data"])
    async def test_gives_a_management_token(self, client: httpx.AsyncClient, encoding: str) -> None:
        """SDKs send JSON, RFC 6749 says form; Auth0 takes both."""
        response = await client.post("/oauth/token", **{encoding: CREDENTIALS})

        answer = response.json()
        claims = jwt.decode(answer.pop("access_token"), options={"verify_signature": False})
        assert answer == {"expires_in": 86400, "scope": "read:users read:user_idp_tokens", "token_type": "Bearer"}
        assert claims["aud"] == AUDIENCE
        assert claims["sub"] == "client@clients"

    @pytest.mark.parametrize(
        "changes",
        [
            {"client_secret": "wrong"},
            {"client_secret": ""},
            {"client_secret": None},
            {"client_id": "stranger"},
            {"client_id": None},
        ],
    )
    async def test_refuses_a_client_it_does_not_know(
        self, client: httpx.AsyncClient, changes: dict[str, str | None]
    ) -> None:
        """Nobody gets users' tokens with a guess."""
        body = {name: value for name, value in (CREDENTIALS | changes).items() if value is not None}

        response = await client.post("/oauth/token", json=body)

        assert response.status_code == 401
        assert response.json() == {"error": "access_denied", "error_description": "Unauthorized"}

    async def test_takes_no_secret_in_a_header(self, client: httpx.AsyncClient) -> None:
        """An application of Auth0's has one way to authenticate, by default in the body."""
        body = {"grant_type": "client_credentials", "audience": AUDIENCE}

        response = await client.post("/oauth/token", json=body, auth=("client", "secret"))

        assert response.status_code == 401

    @pytest.mark.parametrize("audience", [API, AUDIENCE.rstrip("/"), AUDIENCE + "x", "", None])
    async def test_refuses_another_audience(self, client: httpx.AsyncClient, audience: str | None) -> None:
        """A forgotten slash is the classic mistake, and Auth0 forgives none."""
        body = {name: value for name, value in (CREDENTIALS | {"audience": audience}).items() if value is not None}

        response = await client.post("/oauth/token", json=body)

        assert response.status_code == 403
        assert response.json()["error"] == "access_denied"

    async def test_refuses_a_client_without_a_grant(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """A fresh application of Auth0's may not use the Management API."""
        auth0.add_client("fresh", "secret", scopes=())

        response = await client.post("/oauth/token", json=CREDENTIALS | {"client_id": "fresh"})

        assert response.status_code == 403
        assert "client-grant" in response.json()["error_description"]

    @pytest.mark.parametrize(
        ("grant", "status", "error"),
        [("", 400, "invalid_request"), ("password", 403, "unsupported_grant_type")],
    )
    async def test_refuses_another_grant(self, client: httpx.AsyncClient, grant: str, status: int, error: str) -> None:
        """Only the grant that the flow needs is there."""
        response = await client.post("/oauth/token", json=CREDENTIALS | {"grant_type": grant})

        assert (response.status_code, response.json()["error"]) == (status, error)

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("application/json", b"{"),
            ("application/json", b"[]"),
            ("application/json", b'{"grant_type": 1}'),
            ("application/json", b'{"client_secret": "\\ud800"}'),
            ("application/x-www-form-urlencoded", b"grant_type=client_credentials&grant_type=client_credentials"),
            ("application/x-www-form-urlencoded", b"\xff"),
            ("text/plain", b"grant_type=client_credentials"),
        ],
    )
    async def test_refuses_what_is_no_request(self, client: httpx.AsyncClient, kind: str, body: bytes) -> None:
        """A malformed request is an answer, never a crash of the double."""
        response = await client.post("/oauth/token", content=body, headers={"Content-Type": kind})

        assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


class TestUserLookUp:
    async def test_shows_the_identities_with_their_tokens(self, client: httpx.AsyncClient) -> None:
        """This is what the whole flow is for."""
        response = await look_up(client, await management_token(client))

        assert response.json()["user_id"] == ALICE
        assert response.json()["identities"] == [
            {
                "connection": "github",
                "user_id": "101",
                "provider": "github",
                "isSocial": True,
                "access_token": "gho_alice",
                "refresh_token": "ghr_alice",
                "expires_in": 3599,
            }
        ]

    async def test_hides_tokens_without_the_scope_for_them(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """Auth0 leaves the fields out and says nothing."""
        auth0.add_client("reader", "secret", scopes=["read:users"])

        response = await look_up(client, await management_token(client, client_id="reader"))

        assert response.status_code == 200
        assert response.json()["identities"] == [
            {"connection": "github", "user_id": "101", "provider": "github", "isSocial": True}
        ]

    async def test_needs_the_scope_to_read_users(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """A grant for something else is none for this."""
        auth0.add_client("other", "secret", scopes=["read:user_idp_tokens"])

        response = await look_up(client, await management_token(client, client_id="other"))

        assert response.status_code == 403
        assert response.json() == {
            "statusCode": 403,
            "error": "Forbidden",
            "message": "Insufficient scope, expected any of: read:users",
            "errorCode": "insufficient_scope",
        }

    async def test_says_which_user_does_not_exist(self, client: httpx.AsyncClient) -> None:
        """The error code is how a client tells this from a wrong address."""
        response = await look_up(client, await management_token(client), "auth0%7Cbob")

        assert response.status_code == 404
        assert response.json() == {
            "statusCode": 404,
            "error": "Not Found",
            "message": "The user does not exist.",
            "errorCode": "inexistent_user",
        }

    async def test_refuses_what_is_not_its_management_token(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """Well signed by the right key for the right audience is not enough: it must have been granted."""
        other = Auth0(ISSUER)
        other.add_client("client", "secret")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url=ISSUER) as elsewhere:
            foreign = await management_token(elsewhere)
        forged = auth0.issue_token("client@clients", audience=AUDIENCE, scope="read:users read:user_idp_tokens")

        for token in (foreign, forged, forged[:-4]):
            response = await look_up(client, token)
            assert (response.status_code, response.json()["message"]) == (401, "Invalid token")

    async def test_refuses_an_expired_management_token(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """The sample this project grew from used expired tokens for ever."""
        auth0.management_token_lifetime = 60
        token = await management_token(client)
        assert (await look_up(client, token)).status_code == 200

        with time_machine.travel(time.time() + 61):
            response = await look_up(client, token)

        assert response.status_code == 401
        assert response.json()["message"].startswith("Expired token")

    async def test_refuses_a_revoked_management_token(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """A cached management token may die before its time."""
        token = await management_token(client)
        auth0.revoke_management_tokens()

        assert (await look_up(client, token)).status_code == 401
        assert (await look_up(client, await management_token(client))).status_code == 200

    @pytest.mark.parametrize(
        ("header", "status"),
        [(None, 401), ("Bearer opaque", 400), ("Basic YTpi", 400), ("Bearer", 400), ("Bearer a.b.c, Bearer d", 400)],
    )
    async def test_needs_a_bearer_token(self, client: httpx.AsyncClient, header: str | None, status: int) -> None:
        """An opaque token is what Auth0 gives to those who forgot the audience; it says 400 to it."""
        headers = {} if header is None else {"Authorization": header}

        response = await client.get("/api/v2/users/auth0%7Calice", headers=headers)

        assert (response.status_code, response.json()["statusCode"]) == (status, status)

    @pytest.mark.parametrize("subject", ["oidc|a/b", "auth0|a b?c#d", "google-oauth2|100", "auth0|Ünï", "email|a%7Cb"])
    async def test_takes_any_id_that_is_encoded(self, auth0: Auth0, client: httpx.AsyncClient, subject: str) -> None:
        """Ids come from anywhere, and hold anything."""
        auth0.add_user(subject)

        response = await look_up(client, await management_token(client), quote(subject, safe=""))

        assert response.json()["user_id"] == subject

    @pytest.mark.parametrize(
        "segment", ["auth0|alice", "auth0%257Calice", "auth0%7Calice/", "auth0/alice", "alice", "", "auth0%7C", "a%7"]
    )
    def test_refuses_an_id_that_is_not_one_segment_encoded_once(self, auth0: Auth0, segment: str) -> None:
        """httpx would repair the path on the way, so this asks byte for byte on a real socket."""
        with serve(auth0) as server, httpx.Client(base_url=server.url) as client:
            token = client.post("/oauth/token", json=CREDENTIALS).json()["access_token"]
            connection = http.client.HTTPConnection(str(urlsplit(server.url).netloc))
            connection.request("GET", f"/api/v2/users/{segment}", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            body = response.read()
            connection.close()

        assert response.status == 400
        assert b"invalid_uri" in body

    @pytest.mark.parametrize(
        ("query", "present", "absent"),
        [
            ("?fields=identities", "identities", "email"),
            ("?fields=identities,email&include_fields=true", "email", "user_id"),
            ("?fields=identities&include_fields=false", "user_id", "identities"),
            ("?fields=", "identities", "fields"),
        ],
    )
    async def test_shows_the_fields_asked_for(
        self, client: httpx.AsyncClient, query: str, present: str, absent: str
    ) -> None:
        """Asking for less is how a client keeps the profile out of its memory."""
        response = await look_up(client, await management_token(client), "auth0%7Calice" + query)

        assert present in response.json()
        assert absent not in response.json()

    @pytest.mark.parametrize("query", ["?field=identities", "?fields=identities&include_fields=yes"])
    async def test_refuses_a_query_it_does_not_know(self, client: httpx.AsyncClient, query: str) -> None:
        """A misspelt parameter would silently fetch everything."""
        response = await look_up(client, await management_token(client), "auth0%7Calice" + query)

        assert (response.status_code, response.json()["errorCode"]) == (400, "invalid_query_string")


class TestUsers:
    async def test_accounts_are_linked_replaced_and_unlinked(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """Users link a second account, or the same one anew, while the middleware runs."""
        token = await management_token(client)

        async def linked() -> list[tuple[str, str]]:
            identities = (await look_up(client, token)).json()["identities"]
            return [(identity["user_id"], identity["access_token"]) for identity in identities]

        auth0.link(ALICE, Identity("github", "102", access_token="second"))
        assert await linked() == [("101", "gho_alice"), ("102", "second")]
        auth0.link(ALICE, Identity("github", "101", access_token="renewed"))
        assert await linked() == [("102", "second"), ("101", "renewed")]
        auth0.unlink(ALICE, "github", "102")
        assert await linked() == [("101", "renewed")]
        auth0.unlink(ALICE, "github")
        assert await linked() == []
        auth0.remove_user(ALICE)
        assert (await look_up(client, token)).status_code == 404

    @pytest.mark.parametrize("subject", ["alice", "auth0|", "|alice", "auth0%7Calice"])
    def test_an_id_that_auth0_would_never_give_is_a_mistake(self, auth0: Auth0, subject: str) -> None:
        """A look-up for it could only ever fail."""
        with pytest.raises(ValueError, match="not a user id"):
            auth0.add_user(subject)

    def test_an_identity_shows_no_token(self) -> None:
        """Failed assertions print values, and build logs are public."""
        assert "gho_" not in repr(GITHUB)
        assert "ghr_" not in repr(GITHUB)


class TestFaults:
    async def test_fails_as_often_as_told(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """A transient failure ends; the requests it met are counted."""
        auth0.fail("/.well-known/", status=503, times=2, headers={"Retry-After": "1"})

        answers = [await client.get("/.well-known/jwks.json") for _ in range(3)]

        assert [answer.status_code for answer in answers] == [503, 503, 200]
        assert answers[0].headers["retry-after"] == "1"
        assert answers[0].json()["error"] == "Service Unavailable"
        assert auth0.count("/.well-known/") == 3
        assert auth0.count("/.well-known/", method="POST") == 0

    async def test_fails_for_good_until_reset(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """An outage lasts; an odd body is part of it."""
        auth0.fail("/oauth/token", status=200, body=b"<html>")
        assert [(await client.post("/oauth/token")).text for _ in range(2)] == ["<html>", "<html>"]

        auth0.reset_faults()

        assert await management_token(client)

    async def test_a_fault_may_name_the_path_as_sent(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """One user's look-up can fail while the others' do not."""
        auth0.fail("/api/v2/users/auth0%7Calice", status=500)

        assert (await look_up(client, None)).status_code == 500
        assert (await look_up(client, None, "auth0%7Cbob")).status_code == 401

    async def test_rate_limits_as_the_management_api_does(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """The reset is an absolute time, which is easily taken for seconds to wait."""
        auth0.rate_limit("/api/v2/", reset_in=30)

        response = await look_up(client, None)

        assert response.status_code == 429
        assert response.json()["errorCode"] == "too_many_requests"
        assert response.headers["x-ratelimit-remaining"] == "0"
        assert 25 < int(response.headers["x-ratelimit-reset"]) - time.time() < 32
        assert (await look_up(client, None)).status_code == 401

    async def test_rate_limits_as_the_token_endpoint_does(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """A client's quota comes with the standard field."""
        auth0.rate_limit("/oauth/token", retry_after=7)

        response = await client.post("/oauth/token", json=CREDENTIALS)

        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        assert response.json()["error"] == "too_many_requests"

    def test_stalls_and_drops_on_a_real_connection(self, auth0: Auth0) -> None:
        """Time-outs and broken connections are the failures that in-process tests miss."""
        with serve(auth0) as server, httpx.Client(base_url=server.url, timeout=0.1) as client:
            auth0.stall("/.well-known/", 30, times=1)
            with pytest.raises(httpx.ReadTimeout):
                client.get("/.well-known/jwks.json")
            auth0.drop("/.well-known/", times=1)
            with pytest.raises(httpx.RemoteProtocolError):
                client.get("/.well-known/jwks.json", timeout=10)
            assert client.get("/.well-known/jwks.json", timeout=10).status_code == 200

    async def test_a_stall_ends_in_the_usual_answer(self, auth0: Auth0, client: httpx.AsyncClient) -> None:
        """Slow is not broken."""
        auth0.stall("/.well-known/", 0.01)

        assert (await client.get("/.well-known/jwks.json")).status_code == 200


async def test_records_what_it_was_asked(auth0: Auth0, client: httpx.AsyncClient) -> None:
    """Tests assert on what was sent, and never on our own idea of it."""
    token = await management_token(client)
    await look_up(client, token, "auth0%7Calice?fields=identities")

    grant, user = auth0.requests
    assert grant.json() == CREDENTIALS
    assert grant.header("content-type") == "application/json"
    assert (user.method, user.path) == ("GET", "/api/v2/users/auth0|alice")
    assert user.target == b"/api/v2/users/auth0%7Calice?fields=identities"
    assert user.bearer == token
    assert abs(user.time - time.time()) < 60
    assert auth0.last is user
    assert token not in repr(auth0.requests)
    assert "secret" not in repr(auth0.requests)
    auth0.clear()
    assert auth0.count() == 0


def test_serve_tells_the_tenant_its_issuer() -> None:
    """The port is known only once it listens."""
    auth0 = Auth0()
    with serve(auth0) as server:
        assert auth0.issuer == server.url + "/"
        assert httpx.get(server.url + "/.well-known/openid-configuration").json()["issuer"] == auth0.issuer
