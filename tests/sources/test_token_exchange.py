"""RFC 8693 against a server that takes nothing but what the RFC has."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import pytest

from idp_middleware.errors import CallerUnauthenticated, ConfigurationError, IdentityNotLinked, TokenSourceFailed
from idp_middleware.sources import TokenExchange
from idp_middleware.testing import TokenEndpoint
from tests.sources.contract import SECRET, KeptForEachToken, Rig

TYPE = "urn:ietf:params:oauth:token-type:"


class TestTokenExchange(KeptForEachToken):
    path = "/token"
    url_key = "token_url"
    connection = None

    def double(self) -> TokenEndpoint:
        endpoint = TokenEndpoint()
        endpoint.add_client("me", SECRET, targets=["orders", "billing", "https://orders.example", "https://b.example"])
        return endpoint

    def source(self, url: str, **options: Any) -> TokenExchange:
        # Nothing that is no URL becomes one by what is appended.
        token_url = url + "/token" if "#" not in url and url else url
        return TokenExchange(**{"token_url": token_url, "client_id": "me", "client_secret": SECRET, **options})

    def owner(self, double: TokenEndpoint, value: str) -> str:
        return str(double.issued[value].subject)

    def variations(self) -> list[dict[str, Any]]:
        return [
            {"client_id": "you"},
            {"audience": "orders"},
            {"audience": ["orders", "billing"]},
            {"resource": "https://orders.example"},
            {"scope": "read"},
            {"requested_token_type": TYPE + "jwt"},
            {"subject_token_type": TYPE + "jwt"},
        ]

    async def test_the_request_is_the_rfcs(self, rig: Rig) -> None:
        """Section 2.1; what is not asked for is not sent."""
        caller = rig.caller()
        token = await rig.source.token(caller, rig.route)
        assert parse_qs(rig.double.last.body.decode()) == {
            "grant_type": ["urn:ietf:params:oauth:grant-type:token-exchange"],
            "client_id": ["me"],
            "client_secret": [SECRET],
            "subject_token": [caller.credential],
            "subject_token_type": [TYPE + "access_token"],
        }
        assert (token.type, token.scopes) == ("Bearer", {"read"})

    async def test_audiences_and_resources_may_be_several(self, rig: Rig) -> None:
        """As parameters that are repeated, not as a list in one."""
        both = {"audience": ["orders", "billing"], "resource": ("https://orders.example", "https://b.example")}
        source = rig.another(**both, scope="read write").source
        token = await source.token(rig.caller(), rig.route)
        issued = rig.double.issued[token.value]
        assert issued.audiences == ("orders", "billing")
        assert issued.resources == ("https://orders.example", "https://b.example")
        assert issued.scopes == ("read", "write")

    async def test_another_type_can_be_asked_for(self, rig: Rig) -> None:
        """N_A is then what the RFC has the server say, and the operator knows that the API takes it."""
        wanting = rig.another(requested_token_type=TYPE + "saml2")
        rig.double.token_type = "N_A"
        token = await wanting.token()
        assert token.type == "Bearer"
        rig.double.issued_token_type = TYPE + "access_token"
        with rig.refusing(TokenSourceFailed):
            await wanting.token()

    @pytest.mark.parametrize("issued", ["id_token", "refresh_token", "saml2"])
    async def test_a_type_that_was_not_asked_for_is_refused(self, rig: Rig, issued: str) -> None:
        """A refresh token must not be sent to an API, though the answer calls it Bearer."""
        rig.double.issued_token_type = TYPE + issued
        with rig.refusing(TokenSourceFailed, match="another type"):
            await rig.token()

    async def test_a_jwt_is_an_access_token_too(self, rig: Rig) -> None:
        """Section 3: the type says the form. And some servers leave it out altogether."""
        rig.double.issued_token_type = TYPE + "jwt"
        await rig.token()
        rig.double.respond(self.path, body={"access_token": "at", "token_type": "bearer"})
        assert (await rig.token()).value == "at"

    async def test_a_life_that_is_not_told_is_unknown(self, rig: Rig) -> None:
        """expires_in is recommended only."""
        rig.double.expires_in = None
        assert (await rig.token()).expires_at is None

    async def test_the_provider_takes_the_callers_token_no_more(self, rig: Rig) -> None:
        """A code that is about the token alone gets the caller a 401; the RFC's own may be a mistake in the set-up."""
        for code in ("invalid_grant", "invalid_token", "expired_token"):
            rig.double.refuse(code)
            with rig.refusing(CallerUnauthenticated, match=code):
                await rig.token()
        caller = rig.caller()
        rig.double.revoke(caller.credential)
        with rig.refusing(TokenSourceFailed, match=r"invalid_request \(revoked\).*does not take the caller's token"):
            await rig.source.token(caller, rig.route)

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"client_id": "stranger"}, "invalid_client.*check client_id"),
            ({"client_secret": "wrong"}, "invalid_client.*check client_id"),
            ({"client_auth": "basic"}, "invalid_client.*client_auth"),
            ({"audience": "elsewhere"}, "invalid_target.*no such audience"),
            ({"resource": "https://elsewhere.example"}, "invalid_target.*no such audience"),
            ({"scope": "admin"}, "invalid_scope.*check scope"),
            ({"subject_token_type": TYPE + "saml2"}, "invalid_request.*audience"),
        ],
    )
    async def test_a_refusal_of_ours_is_told_to_the_operator(
        self, rig: Rig, options: dict[str, Any], hint: str
    ) -> None:
        """With what to look at."""
        wrong = rig.another(**options)
        with rig.refusing(TokenSourceFailed, match=hint):
            await wrong.token()

    @pytest.mark.parametrize("code", ["unauthorized_client", "unsupported_grant_type", "access_denied", "odd_one"])
    async def test_other_refusals_are_failures_too(self, rig: Rig, code: str) -> None:
        """Known or not, with HTTP 200 or not."""
        for status in (200, 400, 403):
            rig.double.refuse(code, status=status)
            with rig.refusing(TokenSourceFailed, match=code):
                await rig.token()

    async def test_an_account_is_not_replaced_by_another(self, rig: Rig) -> None:
        """There are none here, so the request meant something else."""
        with rig.refusing(IdentityNotLinked):
            await rig.token(account="1001")

    @pytest.mark.parametrize(("key", "value"), [("audience", [""]), ("resource", [7]), ("audience", ["a", None])])
    def test_mistakes_are_told_where_they_are_made(self, key: str, value: Any) -> None:
        """Long before the first request."""
        with pytest.raises(ConfigurationError) as caught:
            self.source("https://idp.example", **{key: value})
        assert caught.value.key == key
