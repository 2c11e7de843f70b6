"""Keycloak's broker, by each of its three ways, against a realm that answers as Keycloak's source does."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs

import pytest

from idp_middleware import Token
from idp_middleware.errors import (
    CallerUnauthenticated,
    ConfigurationError,
    IdentityNotLinked,
    ReconnectRequired,
    TokenSourceFailed,
    TokenSourceUnavailable,
)
from idp_middleware.sources import KeycloakBroker
from idp_middleware.testing import Keycloak, signing_key
from tests.sources.contract import SECRET, KeptForEachToken, Rig

REALM = "/realms/acme"
TYPE = "urn:ietf:params:oauth:token-type:"


class Broker(KeptForEachToken):
    url_key = "realm_url"
    api: str

    def double(self) -> Keycloak:
        keycloak = Keycloak()
        keycloak.add_client("me", SECRET, external_tokens=["github", "nowhere"], may_exchange=True)
        keycloak.add_provider("github")
        keycloak.link("alice", "github", "gho_alice", expires_in=3600, renewed="gho_alice_2", scope="repo,user")
        keycloak.link("bob", "github", "gho_bob")
        return keycloak

    def source(self, url: str, **options: Any) -> KeycloakBroker:
        realm_url = url + REALM if "#" not in url and url else url
        return KeycloakBroker(
            **{"realm_url": realm_url, "api": self.api, "client_id": "me", "client_secret": SECRET, **options}
        )

    def owner(self, double: Keycloak, value: str) -> str:
        return value.split("_")[1]

    async def test_an_account_that_is_not_linked(self, rig: Rig) -> None:
        """Each way has its own words for it."""
        rig.double.unlink("alice", "github")
        with rig.refusing(IdentityNotLinked) as caught:
            await rig.token()
        assert caught.value.members()["connection"] == "github"

    async def test_an_account_that_is_named_is_refused(self, rig: Rig) -> None:
        """Keycloak does not say which it has."""
        with rig.refusing(IdentityNotLinked, match="can't tell accounts apart"):
            await rig.token(account="1001")

    async def test_keycloak_renews(self, rig: Rig) -> None:
        """Where the provider gave a refresh token."""
        rig.double.link("alice", "github", "gho_alice_old", expires_in=-10, renewed="gho_alice_new")
        token = await rig.token()
        assert token.value == "gho_alice_new"
        assert token.expires_at == pytest.approx(time.time() + 3600, abs=30)

    async def test_what_could_not_be_renewed_needs_the_user(self, rig: Rig) -> None:
        """The provider takes the refresh token no more."""
        rig.double.link("alice", "github", "gho_alice", expires_in=-10)
        with rig.refusing(ReconnectRequired) as caught:
            await rig.token()
        assert caught.value.members()["connection"] == "github"

    async def test_a_life_that_nobody_knows_is_unknown(self, rig: Rig) -> None:
        """Bob's token is GitHub's, which does not expire; Keycloak calls that 0 seconds."""
        assert (await rig.token("bob")).expires_at is None
        assert (await rig.token("alice")).expires_at == pytest.approx(time.time() + 3600, abs=30)

    async def test_the_provider_takes_the_callers_token_no_more(self, rig: Rig) -> None:
        """The session has ended: the user logged out."""
        caller = rig.caller()
        rig.double.revoke(caller.credential)
        with rig.refusing(CallerUnauthenticated):
            await rig.source.token(caller, rig.route)

    def test_mistakes_are_told_where_they_are_made(self) -> None:
        """Long before the first request."""
        for options, key in (
            ({"api": "v3"}, "api"),
            ({"realm_url": "https://sso.example/realms/acme?x=1"}, "realm_url"),
        ):
            with pytest.raises(ConfigurationError) as caught:
                self.source("https://sso.example", **options)
            assert caught.value.key == key


class TestV1(Broker):
    """With the caller's own token: what comes back is the provider's answer as it was."""

    api = "v1"
    path = f"{REALM}/broker/github/token"

    def source(self, url: str, **options: Any) -> KeycloakBroker:
        return super().source(url, **{"client_id": None, "client_secret": None, **options})

    async def test_no_secret_shows(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        """There is none of ours, and Keycloak's messages name users."""
        caplog.set_level("DEBUG")
        caller = rig.caller()
        given = await rig.source.token(caller, rig.route)
        rig.double.respond(self.path, status=400, body={"errorMessage": f"{caller.credential}"})
        with rig.refusing(TokenSourceFailed) as caught:
            await rig.source.token(caller, rig.route)
        seen = f"{caplog.text}{caught.value!r}{rig.source!r}{rig.source.identity}{given!r}"
        assert [secret for secret in (caller.credential, given.value) if secret in seen] == []

    async def test_the_request_is_keycloaks(self, rig: Rig) -> None:
        """The server developer guide, "Retrieving external IDP tokens"."""
        caller = rig.caller()
        await rig.source.token(caller, rig.route)
        assert (rig.double.last.method, rig.double.last.target.decode()) == ("GET", self.path)
        assert rig.double.last.bearer == caller.credential

    async def test_an_alias_is_one_segment_of_the_path(self, rig: Rig) -> None:
        """Whatever is in it. One that is not there gets Keycloak's page for unexpected errors."""
        self.connection = "a/../b"
        with rig.refusing(TokenSourceUnavailable):
            await rig.another().token()
        assert rig.double.last.raw_path == f"{REALM}/broker/a%2F..%2Fb/token"

    async def test_an_answer_may_be_a_form(self, rig: Rig) -> None:
        """What GitHub says to who does not ask for JSON."""
        rig.double.link("alice", "github", "gho_alice", scope="repo,user", as_form=True)
        assert await rig.token() == Token("gho_alice", None, scopes=frozenset({"repo", "user"}))

    async def test_the_providers_own_life_is_left_alone(self, rig: Rig) -> None:
        """It counts from a login long ago; Keycloak's moment does not."""
        body = {"access_token": "x", "expires_in": 3600}
        rig.double.respond(self.path, body=body, times=1)
        assert (await rig.token()).expires_at is None
        moment = int(time.time()) + 60
        rig.double.respond(self.path, body=json.dumps({**body, "accessTokenExpiration": moment}))
        assert (await rig.token()).expires_at == moment

    async def test_an_expired_token_as_it_was_stored_needs_the_user(self, rig: Rig) -> None:
        """Older versions hand it out all the same (keycloak/keycloak#14644)."""
        body = {"access_token": "x", "token_type": "bearer", "accessTokenExpiration": int(time.time()) - 60}
        rig.double.respond(self.path, body=body)
        with rig.refusing(ReconnectRequired):
            await rig.token()

    async def test_a_form_cannot_say_what_json_may_not(self, rig: Rig) -> None:
        """Decoded once, and still no header."""
        rig.double.respond(self.path, body="access_token=a%0D%0Ab&token_type=bearer")
        with rig.refusing(TokenSourceFailed):
            await rig.token()
        rig.double.reset_faults()
        for body in ("{", "{}" * 3, "<saml2:Assertion/>", "[" * 100_000, "a=" + "&a" * 500):
            rig.double.respond(self.path, body=body, times=1)
            with rig.refusing(TokenSourceFailed):
                await rig.token()

    async def test_a_token_that_was_never_stored_needs_the_user(self, rig: Rig) -> None:
        """The account was linked before tokens were stored; a new login stores one."""
        rig.double.link("alice", "github")
        with rig.refusing(ReconnectRequired):
            await rig.token()

    async def test_a_caller_without_the_role_is_told_to_the_operator(self, rig: Rig) -> None:
        """The user can do nothing about it."""
        with rig.refusing(TokenSourceFailed, match="read-token"):
            await rig.token(credential=rig.double.issue_token("alice", audience="me", read_token=False))

    async def test_a_provider_whose_tokens_are_not_stored(self, rig: Rig) -> None:
        """A switch in Keycloak's console."""
        rig.double.add_provider("github", store_tokens=False)
        with rig.refusing(TokenSourceFailed, match="Store tokens"):
            await rig.token()

    async def test_a_realm_without_the_feature(self, rig: Rig) -> None:
        """It is to be switched off one day."""
        rig.double.features = frozenset()
        with rig.refusing(TokenSourceFailed, match="identity-brokering-api:v1"):
            await rig.token()

    async def test_newer_versions_say_401(self, rig: Rig) -> None:
        """As everybody else does."""
        rig.double.respond(self.path, status=401, body={"error": "HTTP 401 Unauthorized"})
        with rig.refusing(CallerUnauthenticated):
            await rig.token()

    async def test_a_realm_that_is_not_there(self, rig: Rig) -> None:
        """A wrong URL must not tell users to link an account."""
        with rig.refusing(TokenSourceFailed, match="check realm_url"):
            await rig.another(realm_url=f"{rig.url}/realms/other").token()

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"client_id": "me"}, "client_id"),
            ({"client_secret": "x"}, "client_secret"),
            ({"private_key": "x"}, "private_key"),
        ],
    )
    def test_a_client_is_of_no_use(self, options: dict[str, Any], key: str) -> None:
        """Who gives one means another api."""
        with pytest.raises(ConfigurationError) as caught:
            self.source("https://sso.example", **options)
        assert caught.value.key == key


class WithClient(Broker):
    def variations(self) -> list[dict[str, Any]]:
        other = "v2" if self.api == "exchange" else "exchange"
        return [{"client_id": "you"}, {"api": other}, {"api": "v1", "client_id": None, "client_secret": None}]

    async def test_the_client_may_sign(self, rig: Rig) -> None:
        """For the realm, as Keycloak wants it."""
        key = signing_key("ES256", 3)
        rig.double.add_client("signing", key=key, external_tokens=["github"], may_exchange=True)
        token = rig.double.issue_token("alice", audience="signing")
        signing = rig.another(client_id="signing", client_secret=None, private_key=key.private_pem, key_id=key.kid)
        assert (await signing.token(credential=token)).value == "gho_alice"

    async def test_the_moment_of_a_sessions_token(self, rig: Rig) -> None:
        """Keycloak calls it a life: some 1.8 billion seconds."""
        rig.double.link("alice", "github", "gho_alice", expires_in=600, in_session=True)
        assert (await rig.token()).expires_at == pytest.approx(time.time() + 600, abs=30)

    async def test_a_client_that_is_not_known(self, rig: Rig) -> None:
        """With what to look at."""
        for options in ({"client_secret": "wrong"}, {"client_id": "stranger"}):
            with rig.refusing(TokenSourceFailed, match="check the client's credentials"):
                await rig.another(**options).token()

    @pytest.mark.parametrize("life", ["soon", -1, True, [], 10**400, float("nan"), float("inf")])
    async def test_a_life_that_is_nonsense_is_unknown(self, rig: Rig, life: Any) -> None:
        """Unknown is safe: the token serves for a bounded time."""
        rig.double.respond(self.path, body=json.dumps({"access_token": "x", "expires_in": life}))
        assert (await rig.token()).expires_at is None

    def test_a_client_is_needed(self) -> None:
        """Long before the first request."""
        for options, key in (({"client_id": None}, "client_id"), ({"client_secret": None}, "client_secret")):
            with pytest.raises(ConfigurationError) as caught:
                self.source("https://sso.example", **options)
            assert caught.value.key == key


class TestV2(WithClient):
    api = "v2"
    path = f"{REALM}/broker/github/token"

    async def test_the_request_is_keycloaks(self, rig: Rig) -> None:
        """The server developer guide, "Identity brokering API V2"."""
        caller = rig.caller()
        await rig.source.token(caller, rig.route)
        assert (rig.double.last.method, rig.double.last.target.decode()) == ("POST", self.path)
        assert parse_qs(rig.double.last.body.decode()) == {
            "client_id": ["me"],
            "client_secret": [SECRET],
            "token": [caller.credential],
        }

    async def test_a_token_that_was_never_stored_needs_the_user(self, rig: Rig) -> None:
        """ "No token stored." is a token_expired of its."""
        rig.double.link("alice", "github")
        with rig.refusing(ReconnectRequired):
            await rig.token()

    async def test_an_error_on_the_way_to_the_provider_is_not_final(self, rig: Rig) -> None:
        """Keycloak's one word for whatever it did not expect."""
        told = {"error": "invalid_request", "error_description": "Failed to retrieve token from identity provider"}
        rig.double.respond(self.path, status=400, body=told)
        with rig.refusing(TokenSourceUnavailable):
            await rig.token()

    async def test_what_the_operator_has_to_set(self, rig: Rig) -> None:
        """Each refusal says where."""
        other = rig.double.issue_token("alice", audience="other")
        with rig.refusing(TokenSourceFailed, match="in its audience"):
            await rig.token(credential=other)
        rig.double.add_client("fresh", SECRET)
        with rig.refusing(TokenSourceFailed, match="Allowed Identity Providers for External Tokens"):
            await rig.another(client_id="fresh").token()
        self.connection = "nowhere"
        with rig.refusing(TokenSourceFailed, match=r"check connection \(the alias\)"):
            await rig.another().token()
        rig.double.features = frozenset()
        with rig.refusing(TokenSourceFailed, match="feature"):
            await rig.token()


class TestExchange(WithClient):
    api = "exchange"
    path = f"{REALM}/protocol/openid-connect/token"

    async def test_the_request_is_keycloaks(self, rig: Rig) -> None:
        """The guide to securing applications, "Internal token to external token exchange"."""
        caller = rig.caller()
        await rig.source.token(caller, rig.route)
        assert parse_qs(rig.double.last.body.decode()) == {
            "grant_type": ["urn:ietf:params:oauth:grant-type:token-exchange"],
            "client_id": ["me"],
            "client_secret": [SECRET],
            "subject_token": [caller.credential],
            "subject_token_type": [TYPE + "access_token"],
            "requested_token_type": [TYPE + "access_token"],
            "requested_issuer": ["github"],
        }

    async def test_where_to_connect_is_told(self, rig: Rig) -> None:
        """account-link-url, for both kinds of trouble that the user can mend."""
        rig.double.unlink("alice", "github")
        rig.double.link("bob", "github", "gho_bob", expires_in=-10)
        for user, error in (("alice", IdentityNotLinked), ("bob", ReconnectRequired)):
            with rig.refusing(error) as caught:
                await rig.token(user)
            assert caught.value.members()["connect_url"].startswith(f"{rig.url}{REALM}/broker/github/link?nonce=")

    @pytest.mark.parametrize("link", [None, 7, "", "javascript:alert(1)", "https://a b", "https://" + "x" * 3000])
    async def test_what_is_no_link_is_not_told(self, rig: Rig, link: Any) -> None:
        """An app would send its user there."""
        rig.double.respond(self.path, status=400, body={"error": "not_linked", "account-link-url": link})
        with rig.refusing(IdentityNotLinked) as caught:
            await rig.token()
        assert caught.value.members() == {"connection": "github"}

    async def test_what_the_operator_has_to_set(self, rig: Rig) -> None:
        """Each refusal says where."""
        rig.double.add_client("fresh", SECRET)
        with rig.refusing(TokenSourceFailed, match="let the client exchange tokens"):
            await rig.another(client_id="fresh").token()
        self.connection = "nowhere"
        with rig.refusing(TokenSourceFailed, match=r"check connection \(the alias\)"):
            await rig.another().token()
        rig.double.features = frozenset()
        with rig.refusing(TokenSourceFailed, match="without the feature token-exchange"):
            await rig.token()
