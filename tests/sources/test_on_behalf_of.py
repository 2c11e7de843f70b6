"""Microsoft's on-behalf-of flow, against an Entra ID as strict as Microsoft's."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest

from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute
from idp_middleware.errors import (
    CallerUnauthenticated,
    ConfigurationError,
    IdentityNotLinked,
    InteractionRequired,
    TokenSourceFailed,
    TokenSourceUnavailable,
    problem,
)
from idp_middleware.sources import OnBehalfOf
from idp_middleware.testing import Entra, ProviderAPI, serve, signing_key
from tests.sources.contract import SECRET, KeptForEachToken, Rig

GRAPH = "https://graph.microsoft.com/.default"
THUMBPRINT = "AA11BB22CC33DD44EE55FF66AA77BB88CC99DD00AA11BB22CC33DD44EE55FF66"


class TestOnBehalfOf(KeptForEachToken):
    path = "/acme.example/oauth2/v2.0/token"
    url_key = "base_url"
    connection = None

    def double(self) -> Entra:
        entra = Entra()
        entra.add_client("me", SECRET)
        return entra

    def source(self, url: str, **options: Any) -> OnBehalfOf:
        given = {"tenant": "acme.example", "client_id": "me", "client_secret": SECRET, "scope": GRAPH, **options}
        return OnBehalfOf(base_url=url, **given)

    def owner(self, double: Entra, value: str) -> str:
        return str(double.issued[value].subject)

    def variations(self) -> list[dict[str, Any]]:
        return [{"client_id": "you"}, {"tenant": "other.example"}, {"scope": "User.Read"}]

    async def test_the_request_is_microsofts(self, rig: Rig) -> None:
        """The page of the flow, "Middle-tier access token request"."""
        caller = rig.caller()
        token = await rig.source.token(caller, rig.route)
        assert parse_qs(rig.double.last.body.decode()) == {
            "grant_type": ["urn:ietf:params:oauth:grant-type:jwt-bearer"],
            "client_id": ["me"],
            "client_secret": [SECRET],
            "assertion": [caller.credential],
            "scope": [GRAPH],
            "requested_token_use": ["on_behalf_of"],
        }
        assert token.scopes == {GRAPH}

    async def test_a_certificate_may_stand_in_for_the_secret(self, rig: Rig) -> None:
        """With its thumbprint in the header, where others have the key's name; Microsoft wants PS256."""
        key = signing_key("PS256", 7)
        rig.double.add_client("me", key=key)
        certified = rig.another(client_secret=None, private_key=key.private_pem, key_id=THUMBPRINT)
        await certified.token()
        sent = parse_qs(rig.double.last.body.decode())
        header = jwt.get_unverified_header(sent["client_assertion"][0])
        encoded = base64.urlsafe_b64encode(bytes.fromhex(THUMBPRINT)).decode().rstrip("=")
        assert header == {"alg": "PS256", "typ": "JWT", "x5t#S256": encoded}
        assert "client_secret" not in sent

    async def test_a_claims_challenge_is_passed_on(self, rig: Rig) -> None:
        """A 401 in the form that Microsoft's client libraries read, so that the user can meet the policy."""
        rig.double.demand("alice")
        with rig.refusing(InteractionRequired, match="AADSTS50079") as caught:
            await rig.token()
        ((name, challenge),) = caught.value.headers()
        assert (name, caught.value.status) == ("www-authenticate", 401)
        claims = json.loads(base64.b64decode(caught.value.members()["claims"]))
        assert claims == {"access_token": {"capolids": {"essential": True, "values": ["c1"]}}}
        assert challenge == (
            f'Bearer realm="", authorization_uri="{rig.url}/acme.example/oauth2/v2.0/authorize", '
            f'error="insufficient_claims", claims="{caught.value.members()["claims"]}"'
        )
        assert (await rig.token("bob")).value

    async def test_claims_count_whatever_the_code(self, rig: Rig) -> None:
        """Entra ID sends them with invalid_grant as well."""
        rig.double.refuse("invalid_grant", claims='{"x": 1}')
        with rig.refusing(InteractionRequired) as caught:
            await rig.token()
        assert problem(caught.value)["claims"] == base64.b64encode(b'{"x": 1}').decode()

    @pytest.mark.parametrize("claims", [None, "", 7, "x" * 5000, {"x": 1}])
    async def test_interaction_without_usable_claims_is_told_too(self, rig: Rig, claims: Any) -> None:
        """The user has to sign in all the same. A header has no room for any number of bytes."""
        rig.double.refuse("interaction_required", claims=claims)
        with rig.refusing(InteractionRequired) as caught:
            await rig.token()
        assert 'error="interaction_required"' in caught.value.headers()[0][1]
        assert caught.value.members() == {}

    async def test_the_provider_takes_the_callers_token_no_more(self, rig: Rig) -> None:
        """An expired one is replaced silently; one that was revoked needs the user."""
        stale = rig.double.issue_token("alice", audience="me", expires_in=-10)
        with rig.refusing(CallerUnauthenticated, match="AADSTS500133"):
            await rig.token(credential=stale)
        caller = rig.caller()
        rig.double.revoke(caller.credential)
        with rig.refusing(InteractionRequired, match="AADSTS50173"):
            await rig.source.token(caller, rig.route)

    async def test_a_token_for_another_app_is_the_set_ups_mistake(self, rig: Rig) -> None:
        """No other token of the caller's mends that: it is the authenticator that takes the wrong audience."""
        for token in (rig.double.issue_token("alice", audience="other"), "not.a.token"):
            with rig.refusing(TokenSourceFailed, match=r"AADSTS500?13.*must be for this app"):
                await rig.token(credential=token)

    async def test_missing_consent_is_not_linked(self, rig: Rig) -> None:
        """Nothing is broken; somebody has to agree first."""
        rig.double.withhold_consent("alice")
        with rig.refusing(IdentityNotLinked, match=f"consent for scope {GRAPH}"):
            await rig.token()
        for error, members in (("consent_required", {}), ("invalid_grant", {"error_codes": [65001]})):
            rig.double.refuse(error, **members)
            with rig.refusing(IdentityNotLinked):
                await rig.token("bob")

    @pytest.mark.parametrize("codes", [None, "50013", {}, [None, "x"], [1]])
    async def test_numbers_are_a_hint_only(self, rig: Rig, codes: Any) -> None:
        """They may change; then invalid_grant means what MSAL takes it for."""
        rig.double.refuse("invalid_grant", error_codes=codes)
        with rig.refusing(InteractionRequired):
            await rig.token()

    async def test_a_passing_trouble_is_not_final(self, rig: Rig) -> None:
        """AADSTS90033 comes with status 400."""
        rig.double.refuse("temporarily_unavailable", error_codes=[90033])
        with rig.refusing(TokenSourceUnavailable):
            await rig.token()

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"client_secret": "wrong"}, "invalid_client.*certificate"),
            ({"scope": "https://graph.microsoft.com/Mail.Read"}, "AADSTS70011.*check scope"),
        ],
    )
    async def test_a_refusal_of_ours_is_told_to_the_operator(
        self, rig: Rig, options: dict[str, Any], hint: str
    ) -> None:
        """With what to look at."""
        with rig.refusing(TokenSourceFailed, match=hint):
            await rig.another(**options).token()

    async def test_an_account_is_not_replaced_by_another(self, rig: Rig) -> None:
        """There are none here, so the request meant something else."""
        with rig.refusing(IdentityNotLinked):
            await rig.token(account="1001")

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"tenant": ""}, "tenant"),
            ({"tenant": "a/b"}, "tenant"),
            ({"tenant": None}, "tenant"),
            ({"scope": ""}, "scope"),
            ({"client_secret": None, "private_key": signing_key().private_pem}, "key_id"),
            ({"client_secret": None, "private_key": signing_key().private_pem, "key_id": "name"}, "key_id"),
        ],
    )
    def test_mistakes_are_told_where_they_are_made(self, options: dict[str, Any], key: str) -> None:
        """Long before the first request."""
        with pytest.raises(ConfigurationError) as caught:
            self.source("https://idp.example", **options)
        assert caught.value.key == key


def test_the_caller_sees_the_challenge() -> None:
    """All the way through the middleware: the header, the members, nothing sent upstream; and after it is met, data."""
    entra, graph = Entra(), ProviderAPI()
    entra.add_client("me", SECRET)
    with serve(entra) as idp, serve(graph) as api:
        source = OnBehalfOf(base_url=idp.url, tenant="acme.example", client_id="me", client_secret=SECRET, scope=GRAPH)
        middleware = IdPMiddleware(
            None,
            routes={"graph": ProxyRoute(api.url, token_source=source)},
            authenticator=JWTAuthenticator(issuer=entra.issuer, audience="me"),
        )
        entra.demand("alice")
        with serve(middleware) as gateway, httpx.Client(base_url=gateway.url, trust_env=False) as client:
            headers = {"authorization": f"Bearer {entra.issue_token('alice', audience='me')}"}
            refused = client.get("/idp/graph/user", headers=headers)
            assert refused.status_code == 401
            assert 'error="insufficient_claims", claims="eyJ' in refused.headers["www-authenticate"]
            assert refused.json()["type"] == "urn:idp-middleware:problem:interaction-required"
            assert graph.requests == []
            headers = {"authorization": f"Bearer {entra.issue_token('bob', audience='me')}"}
            assert client.get("/idp/graph/user", headers=headers).status_code == 200
            assert entra.issued[graph.tokens_seen()[0]].subject == "bob"
