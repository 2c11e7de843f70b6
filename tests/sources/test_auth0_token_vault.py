"""Auth0's Token Vault, with access tokens and refresh tokens as what is exchanged."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import pytest

from idp_middleware import Caller, ProxyRoute
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    CallerUnauthenticated,
    ConfigurationError,
    IdentityNotLinked,
    ReconnectRequired,
    TokenSourceFailed,
)
from idp_middleware.sources import Auth0TokenVault
from idp_middleware.testing import Auth0
from tests.sources.contract import SECRET, Contract, ExchangesTheCallersToken, Rig

API = "https://api.acme.example"
TYPE = "urn:ietf:params:oauth:token-type:"


class Vault(Contract):
    path = "/oauth/token"
    url_key = "base_url"

    def double(self) -> Auth0:
        auth0 = Auth0()
        auth0.add_client("me", SECRET, vault=True, api=API)
        auth0.connect("auth0|alice", "github", "gho_alice", account="101", scope="repo,user")
        auth0.connect("auth0|bob", "github", "gho_bob", account="102")
        return auth0

    def source(self, url: str, **options: Any) -> Auth0TokenVault:
        return Auth0TokenVault(**{"base_url": url, "client_id": "me", "client_secret": SECRET, **options})

    def owner(self, double: Auth0, value: str) -> str:
        return value.removeprefix("gho_")

    def subject(self, user: str) -> str:
        return f"auth0|{user}"

    def credential(self, double: Auth0, user: str) -> str:
        return double.issue_token(self.subject(user), audience=API)

    def variations(self) -> list[dict[str, Any]]:
        return [{"client_id": "you"}]

    async def test_an_account_that_is_not_connected_is_not_linked(self, rig: Rig) -> None:
        """The commonest answer: a login alone fills no vault."""
        rig.double.disconnect("auth0|alice", "github")
        with rig.refusing(IdentityNotLinked) as caught:
            await rig.token()
        assert caught.value.members() == {"connection": "github"}

    async def test_an_account_that_is_named_is_the_one(self, rig: Rig) -> None:
        """login_hint is the id at the provider. Never another in its place."""
        rig.double.connect("auth0|alice", "github", "gho_work", account="109")
        assert (await rig.token(account="109")).value == "gho_work"
        assert (await rig.token(account="101")).value == "gho_alice"
        with rig.refusing(IdentityNotLinked):
            await rig.token(account="102")

    async def test_what_the_provider_has_withdrawn_needs_the_user(self, rig: Rig) -> None:
        """Auth0 could not renew it."""
        rig.double.withdraw("auth0|alice", "github")
        with rig.refusing(ReconnectRequired, match="flow_failed") as caught:
            await rig.token()
        assert caught.value.members() == {"connection": "github"}

    async def test_scopes_may_be_separated_by_commas(self, rig: Rig) -> None:
        """As GitHub has them, and Auth0 passes them on."""
        token = await rig.token()
        assert token.scopes == {"repo", "user"}
        assert token.expires_at == pytest.approx(rig.double.last.time + 1377, abs=10)

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"client_secret": "wrong"}, "access_denied.*check client_id"),
            ({"client_id": "machine"}, "unauthorized_client.*grant the application Token Vault"),
        ],
    )
    async def test_a_refusal_of_ours_is_told_to_the_operator(
        self, rig: Rig, options: dict[str, Any], hint: str
    ) -> None:
        """With what to look at."""
        rig.double.add_client("machine", SECRET)
        with rig.refusing(TokenSourceFailed, match=hint):
            await rig.another(**options).token()

    @pytest.mark.parametrize("code", ["mfa_required", "invalid_request", "odd_one"])
    async def test_other_refusals_are_failures_too(self, rig: Rig, code: str) -> None:
        """Known or not."""
        rig.double.fail(self.path, status=403, body={"error": code})
        with rig.refusing(TokenSourceFailed, match=code):
            await rig.token()

    def test_the_tenant_is_named_by_domain_or_url(self) -> None:
        """Exactly one of them."""
        by_domain = self.source("x", base_url=None, domain="ACME.eu.auth0.com")
        assert by_domain.identity == self.source("https://acme.eu.auth0.com").identity
        for options in ({"domain": "acme.eu.auth0.com"}, {"base_url": None}):
            with pytest.raises(ConfigurationError):
                self.source("https://acme.eu.auth0.com", **options)

    def test_a_route_has_to_say_which_connection(self) -> None:
        """Auth0 has many."""
        with pytest.raises(ConfigurationError) as caught:
            ProxyRoute("https://api.github.com", token_source=self.source("https://acme.eu.auth0.com"))
        assert caught.value.key == "connection"


class TestAccessTokens(Vault, ExchangesTheCallersToken):
    async def test_the_request_is_auth0s(self, rig: Rig) -> None:
        """A form, as Auth0's own SDKs send it, and no scope."""
        caller = rig.caller(account="101")
        await rig.source.token(caller, rig.route)
        assert parse_qs(rig.double.last.body.decode()) == {
            "grant_type": ["urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token"],
            "requested_token_type": ["http://auth0.com/oauth/token-type/federated-connection-access-token"],
            "client_id": ["me"],
            "client_secret": [SECRET],
            "subject_token": [caller.credential],
            "subject_token_type": [TYPE + "access_token"],
            "connection": ["github"],
            "login_hint": ["101"],
        }

    async def test_the_provider_takes_the_callers_token_no_more(self, rig: Rig) -> None:
        """A new one mends that."""
        for code in ("invalid_grant", "expired_token"):
            rig.double.fail(self.path, status=401, body={"error": code}, times=1)
            with rig.refusing(CallerUnauthenticated):
                await rig.token()
        stale = rig.double.issue_token("auth0|alice", audience=API, expires_in=-10)
        with rig.refusing(CallerUnauthenticated):
            await rig.token(credential=stale)

    async def test_a_token_for_another_api_is_the_set_ups_mistake(self, rig: Rig) -> None:
        """The application is linked to one API."""
        other = rig.double.issue_token("auth0|alice", audience="https://other.example")
        with rig.refusing(TokenSourceFailed, match="linked to the API"):
            await rig.token(credential=other)

    async def test_all_tokens_of_a_user_share_what_is_kept(self, rig: Rig) -> None:
        """It is the provider's token, and no narrower for a narrower token of the caller's."""
        engine = TokenEngine()
        first = await engine.token(rig.caller(), rig.route)
        other = rig.double.issue_token("auth0|alice", audience=API, scope="less")
        assert await engine.token(rig.caller(credential=other), rig.route) is first
        await engine.aclose()


class TestRefreshTokens(Vault):
    """Of the app's own keeping, so that a caller that is only a subject will do."""

    @pytest.fixture(autouse=True)
    def session(self) -> None:
        self.kept: dict[str, str | None] = {}

    def source(self, url: str, **options: Any) -> Auth0TokenVault:
        async def refresh_token(caller: Caller) -> str | None:
            return self.kept.get(caller.subject)

        return super().source(url, **{"refresh_token": refresh_token, **options})

    def credential(self, double: Auth0, user: str) -> str:
        token = self.kept.setdefault(self.subject(user), double.issue_refresh_token(self.subject(user), "me"))
        assert token is not None
        return token

    async def test_a_job_needs_no_token_of_the_callers(self, rig: Rig) -> None:
        """It runs when nobody is there."""
        self.credential(rig.double, "alice")
        token = await rig.source.token(Caller("auth0|alice"), rig.route)
        assert token.value == "gho_alice"
        sent = parse_qs(rig.double.last.body.decode())
        assert sent["subject_token_type"] == [TYPE + "refresh_token"]

    async def test_a_user_without_one_is_not_linked(self, rig: Rig) -> None:
        """Nor is anything asked."""
        with rig.refusing(IdentityNotLinked, match="no Auth0 refresh token"):
            await rig.source.token(Caller("auth0|carol"), rig.route)
        assert rig.asked() == 0

    async def test_one_that_was_revoked_needs_the_user(self, rig: Rig) -> None:
        """A new access token of the caller's would mend nothing."""
        rig.double.revoke(self.credential(rig.double, "alice"))
        with rig.refusing(ReconnectRequired):
            await rig.token()
