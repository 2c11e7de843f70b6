"""The Auth0 stand-in's login is as strict as Auth0's: an app that gets in here has done what it must do there."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
import time_machine

from idp_middleware.testing import Auth0, Identity

ISSUER = "https://tenant.example/"
API = "https://api.example"
APP = "https://app.example/callback"
ALICE = "auth0|alice"
VERIFIER = "a-verifier-of-the-forty-three-characters-at-least"
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
AUTHORIZE = {
    "client_id": "spa",
    "response_type": "code",
    "redirect_uri": APP,
    "scope": "openid profile read:github write:everything",
    "audience": API,
    "state": "the state",
    "nonce": "the nonce",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}
EXCHANGE = {"grant_type": "authorization_code", "client_id": "spa", "redirect_uri": APP, "code_verifier": VERIFIER}


@pytest.fixture
def auth0() -> Auth0:
    tenant = Auth0(ISSUER)
    tenant.add_client("spa", auth="none", redirect_uris=[APP], logout_uris=["https://app.example/"])
    tenant.add_client("web", "secret", redirect_uris=[APP])
    tenant.add_api(API, {"read:github"})
    tenant.add_user(ALICE)
    tenant.add_user("auth0|<bob>")
    return tenant


@pytest.fixture
async def browser(auth0: Auth0) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(auth0), base_url=ISSUER) as client:
        yield client


def authorization(**changes: str | None) -> dict[str, str]:
    return {name: value for name, value in (AUTHORIZE | changes).items() if value is not None}


def told(response: httpx.Response, target: str = APP) -> dict[str, str]:
    """What an app is told in the URL of a redirect."""
    assert response.status_code == 302
    url, _, query = response.headers["location"].partition("?")
    assert url == target
    return {name: value for name, (value,) in parse_qs(query).items()}


async def log_in(browser: httpx.AsyncClient, user: str = ALICE, **changes: str | None) -> dict[str, str]:
    """As a browser that has no session: what the app is told at the end."""
    asked = await browser.get("/authorize", params=authorization(prompt="login", **changes))
    assert asked.headers["location"].startswith("/u/login?state=")
    page = await browser.get(asked.headers["location"])
    assert page.status_code == 200
    return told(await choose(browser, page, username=user))


async def choose(browser: httpx.AsyncClient, page: httpx.Response, **chosen: str) -> httpx.Response:
    """Press a button of a page."""
    action = re.search('action="([^"]+)"', page.text)
    assert action is not None
    return await browser.post(action[1], data=chosen)


async def exchange(browser: httpx.AsyncClient, of: str, **changes: str | None) -> httpx.Response:
    fields = {name: value for name, value in (EXCHANGE | {"code": of} | changes).items() if value is not None}
    return await browser.post("/oauth/token", data=fields)


async def claims(browser: httpx.AsyncClient, token: str, audience: str) -> dict[str, Any]:
    keys = jwt.PyJWKSet.from_dict((await browser.get("/.well-known/jwks.json")).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=["RS256"], audience=audience, issuer=ISSUER)


class TestLogin:
    async def test_discovery_names_what_there_is(self, browser: httpx.AsyncClient) -> None:
        """Client libraries find their way, and choose PKCE's method, by it."""
        document = (await browser.get("/.well-known/openid-configuration")).json()

        assert document["authorization_endpoint"] == ISSUER + "authorize"
        assert document["end_session_endpoint"] == ISSUER + "oidc/logout"
        assert document["code_challenge_methods_supported"] == ["S256"]

    async def test_gives_a_code_and_for_that_tokens(self, browser: httpx.AsyncClient) -> None:
        """Each says who logged in, and is for whom it was asked."""
        answer = await log_in(browser)
        assert answer["state"] == "the state"

        response = await exchange(browser, answer["code"])

        tokens = response.json()
        assert response.headers["cache-control"] == "no-store"
        assert (tokens["scope"], tokens["token_type"]) == ("openid profile read:github", "Bearer")
        access = await claims(browser, tokens["access_token"], API)
        assert (access["sub"], access["azp"], access["scope"]) == (ALICE, "spa", tokens["scope"])
        assert access["aud"] == [API, ISSUER + "userinfo"]
        identity = await claims(browser, tokens["id_token"], "spa")
        assert (identity["sub"], identity["nonce"], identity["name"]) == (ALICE, "the nonce", "alice")
        assert "email" not in identity

    async def test_tells_of_openid_only_who_asks_for_it(self, browser: httpx.AsyncClient) -> None:
        """An app that wants to know who the user is has to say so; one without an API gets a token for none."""
        tokens = (await exchange(browser, (await log_in(browser, scope="read:github"))["code"])).json()
        assert "id_token" not in tokens
        assert (await claims(browser, tokens["access_token"], API))["aud"] == API

        tokens = (await exchange(browser, (await log_in(browser, audience=None, scope="openid email"))["code"])).json()
        assert "." not in tokens["access_token"]
        assert (await claims(browser, tokens["id_token"], "spa"))["email"] == "alice@example.com"

    async def test_a_confidential_app_proves_itself_too(self, browser: httpx.AsyncClient) -> None:
        """PKCE binds the code to who asked for it, and not to which app that is; without PKCE it need not be used."""
        code = (await log_in(browser, client_id="web"))["code"]
        assert (await exchange(browser, code, client_id="web")).status_code == 401
        assert (await exchange(browser, code, client_id="web", client_secret="secret")).status_code == 200

        answer = await log_in(browser, client_id="web", code_challenge=None, code_challenge_method=None, state=None)
        assert set(answer) == {"code"}
        without = {"client_id": "web", "client_secret": "secret", "code_verifier": None}
        assert (await exchange(browser, answer["code"], **without)).status_code == 200

    async def test_the_page_escapes_and_loads_nothing(self, browser: httpx.AsyncClient) -> None:
        """User ids come from anywhere."""
        page = await browser.get("/authorize", params=authorization(), follow_redirects=True)

        assert "auth0|&lt;bob&gt;" in page.text
        assert "<bob>" not in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert page.headers["cache-control"] == "no-store"

    async def test_a_session_spares_the_second_login_until_logout(self, browser: httpx.AsyncClient) -> None:
        """A page that keeps its token in memory asks again at each load."""
        await log_in(browser)
        assert "code" in told(await browser.get("/authorize", params=authorization()))
        assert "code" in told(await browser.get("/authorize", params=authorization(prompt="none")))

        target = {"client_id": "spa", "post_logout_redirect_uri": "https://app.example/", "state": "bye"}
        left = told(await browser.get("/oidc/logout", params=target), "https://app.example/")

        assert left == {"state": "bye"}
        answer = told(await browser.get("/authorize", params=authorization(prompt="none")))
        assert (answer["error"], answer["state"]) == ("login_required", "the state")

    async def test_a_session_ends_with_its_user(self, auth0: Auth0, browser: httpx.AsyncClient) -> None:
        """Who was deleted is not logged in."""
        await log_in(browser)
        auth0.remove_user(ALICE)

        response = await browser.get("/authorize", params=authorization())

        assert response.headers["location"].startswith("/u/login?")

    async def test_logout_without_a_target_stays(self, browser: httpx.AsyncClient) -> None:
        """An app may have no page to come back to."""
        await log_in(browser)
        assert (await browser.get("/oidc/logout")).text == "OK"
        left = await browser.get(
            "/oidc/logout", params={"client_id": "spa", "post_logout_redirect_uri": "https://app.example/"}
        )
        assert left.headers["location"] == "https://app.example/"


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "status", "said"),
        [
            ({"client_id": "nobody"}, 400, "Unknown client: nobody"),
            ({"client_id": None}, 400, "Unknown client"),
            ({"redirect_uri": "https://evil.example/"}, 403, "Callback URL mismatch"),
            ({"redirect_uri": APP + "/"}, 403, "Callback URL mismatch"),
            ({"redirect_uri": None}, 403, "Callback URL mismatch"),
        ],
    )
    async def test_goes_nowhere_that_was_not_registered(
        self, browser: httpx.AsyncClient, changes: dict[str, str | None], status: int, said: str
    ) -> None:
        """An open redirector hands out codes (RFC 9700 section 4.11)."""
        response = await browser.get("/authorize", params=authorization(**changes))

        assert response.status_code == status
        assert said in response.text
        assert "location" not in response.headers

    @pytest.mark.parametrize("path", ["/authorize", "/oidc/logout"])
    async def test_takes_nothing_twice(self, browser: httpx.AsyncClient, path: str) -> None:
        """Two parsers would differ on which counts."""
        response = await browser.get(f"{path}?client_id=spa&client_id=web")

        assert response.status_code == 400
        assert "more than once" in response.text

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"response_type": "token"}, "unsupported_response_type"),
            ({"response_mode": "fragment"}, "invalid_request"),
            ({"code_challenge": None}, "invalid_request"),
            ({"code_challenge": VERIFIER, "code_challenge_method": "plain"}, "invalid_request"),
            ({"code_challenge_method": None}, "invalid_request"),
            ({"code_challenge": CHALLENGE + "="}, "invalid_request"),
            ({"audience": "https://other.example"}, "access_denied"),
            ({"prompt": "none"}, "login_required"),
        ],
    )
    async def test_tells_the_app_what_is_wrong(
        self, browser: httpx.AsyncClient, changes: dict[str, str | None], error: str
    ) -> None:
        """Its own mistakes come back to it, with its state."""
        answer = told(await browser.get("/authorize", params=authorization(**changes)))

        assert (answer["error"], answer["state"]) == (error, "the state")
        assert answer["error_description"]
        assert "code" not in answer

    @pytest.mark.parametrize(
        ("changes", "status", "error"),
        [
            ({"code": "made-up"}, 403, "invalid_grant"),
            ({"code": None}, 400, "invalid_request"),
            ({"redirect_uri": None}, 400, "invalid_request"),
            ({"redirect_uri": "https://app.example/other"}, 403, "invalid_grant"),
            ({"code_verifier": VERIFIER + "x"}, 403, "invalid_grant"),
            ({"code_verifier": CHALLENGE}, 403, "invalid_grant"),
            ({"code_verifier": None}, 403, "invalid_grant"),
            ({"client_id": "web", "client_secret": "secret"}, 403, "invalid_grant"),
            ({"client_secret": "guessed"}, 401, "access_denied"),
            ({"client_id": "web"}, 401, "access_denied"),
            ({"grant_type": "client_credentials", "audience": ISSUER + "api/v2/"}, 403, "unauthorized_client"),
        ],
    )
    async def test_gives_no_tokens_to_others(
        self, browser: httpx.AsyncClient, changes: dict[str, str | None], status: int, error: str
    ) -> None:
        """A code alone, as a log or a browser's history has it, is worth nothing."""
        response = await exchange(browser, (await log_in(browser))["code"], **changes)

        assert (response.status_code, response.json()["error"]) == (status, error)

    async def test_a_verifier_must_be_long_enough(self, browser: httpx.AsyncClient) -> None:
        """A short one can be guessed (RFC 7636 section 4.1)."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(b"short").digest()).rstrip(b"=").decode()
        code = (await log_in(browser, code_challenge=challenge))["code"]

        assert (await exchange(browser, code, code_verifier="short")).json()["error"] == "invalid_grant"

    async def test_a_verifier_without_a_challenge_is_a_downgrade(self, browser: httpx.AsyncClient) -> None:
        """Somebody took the challenge out on the way (RFC 9700 section 4.8.2)."""
        code = (await log_in(browser, client_id="web", code_challenge=None, code_challenge_method=None))["code"]

        response = await exchange(browser, code, client_id="web", client_secret="secret")

        assert response.json()["error"] == "invalid_grant"

    async def test_a_code_is_good_once_and_not_for_long(self, browser: httpx.AsyncClient) -> None:
        """Whoever comes second is an attacker; and a failed try spends it as well."""
        code = (await log_in(browser))["code"]
        assert (await exchange(browser, code)).status_code == 200
        assert (await exchange(browser, code)).json()["error_description"] == "Invalid authorization code"

        code = (await log_in(browser))["code"]
        assert (await exchange(browser, code, code_verifier=VERIFIER + "x")).status_code == 403
        assert (await exchange(browser, code)).status_code == 403

        code = (await log_in(browser))["code"]
        with time_machine.travel(time.time() + 601):
            assert (await exchange(browser, code)).status_code == 403

    async def test_a_login_is_gone_through_once(self, browser: httpx.AsyncClient) -> None:
        """The Back button must not log somebody in again; nor can a user be made up."""
        page = await browser.get("/authorize", params=authorization(), follow_redirects=True)
        assert (await choose(browser, page, username="auth0|nobody")).status_code == 400
        assert (await choose(browser, page, username=ALICE)).status_code == 302

        assert (await choose(browser, page, username=ALICE)).status_code == 400
        assert (await browser.get("/u/login?state=made-up")).status_code == 400

    @pytest.mark.parametrize(
        "target", [{"client_id": "spa", "post_logout_redirect_uri": APP}, {"post_logout_redirect_uri": APP}]
    )
    async def test_logout_leads_nowhere_else(self, browser: httpx.AsyncClient, target: dict[str, str]) -> None:
        """Nor is anybody logged out by it."""
        await log_in(browser)
        assert (await browser.get("/oidc/logout", params=target)).status_code == 400
        assert "code" in told(await browser.get("/authorize", params=authorization()))

    @pytest.mark.parametrize("given", [{"client_secret": "secret", "auth": "none"}, {}])
    def test_a_client_has_a_secret_or_is_public(self, given: dict[str, str]) -> None:
        """A secret that is not asked for is a mistake in the test."""
        with pytest.raises(ValueError, match="neither"):
            Auth0().add_client("other", **given)


class TestOtherOrigins:
    async def test_pages_of_the_app_may_read_tokens(self, browser: httpx.AsyncClient) -> None:
        """A single-page app exchanges the code itself; no other page may."""
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            response = await browser.post("/oauth/token", data=EXCHANGE, headers={"Origin": origin})
            assert response.headers.get("access-control-allow-origin") == allowed
            asked = await browser.options("/oauth/token", headers={"Origin": origin})
            assert (asked.status_code, asked.headers.get("access-control-allow-origin")) == (204, allowed)

    async def test_anybody_may_read_discovery_and_nobody_the_users(self, browser: httpx.AsyncClient) -> None:
        """What is public is for browsers, too; the Management API is not."""
        origin = {"Origin": "https://app.example"}
        for path in ("/.well-known/openid-configuration", "/.well-known/jwks.json"):
            assert (await browser.get(path, headers=origin)).headers["access-control-allow-origin"] == "*"
        response = await browser.get("/api/v2/users/auth0%7Calice", headers=origin)
        assert "access-control-allow-origin" not in response.headers


class TestConnecting:
    @pytest.fixture(autouse=True)
    def accounts(self, auth0: Auth0) -> None:
        auth0.add_client("machine", "secret", vault=True, api=API)
        auth0.add_account(ALICE, Identity("github", "101", access_token="gho_new"))
        auth0.connect(ALICE, "gitlab", "old", account="201")
        auth0.withdraw(ALICE, "gitlab")
        auth0.add_account(ALICE, Identity("gitlab", "201", access_token="new", expires_in=60), vault=True)

    async def consent_page(self, browser: httpx.AsyncClient, connection: str) -> httpx.Response:
        await log_in(browser)
        return await browser.get("/authorize", params=authorization(connection=connection), follow_redirects=True)

    async def test_links_what_the_user_allows(self, auth0: Auth0, browser: httpx.AsyncClient) -> None:
        """What an app's Connect button leads to, and back with a code."""
        page = await self.consent_page(browser, "github")
        assert "spa wants to use account 101 at github, for auth0|alice." in page.text
        assert auth0._users[ALICE] == []

        answer = told(await choose(browser, page, action="accept"))

        assert (await exchange(browser, answer["code"])).status_code == 200
        assert [identity.access_token for identity in auth0._users[ALICE]] == ["gho_new"]

    async def test_links_nothing_that_the_user_does_not_allow(self, auth0: Auth0, browser: httpx.AsyncClient) -> None:
        """Cancel means cancel."""
        answer = told(await choose(browser, await self.consent_page(browser, "github"), action="cancel"))

        assert answer["error"] == "access_denied"
        assert auth0._users[ALICE] == []

    async def test_renews_what_was_withdrawn_from_the_vault(self, browser: httpx.AsyncClient) -> None:
        """What a Reconnect button leads to."""
        token = (await exchange(browser, (await log_in(browser))["code"])).json()["access_token"]
        vault = {
            "grant_type": "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token",
            "client_id": "machine",
            "client_secret": "secret",
            "connection": "gitlab",
            "subject_token": token,
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "requested_token_type": "http://auth0.com/oauth/token-type/federated-connection-access-token",
        }
        assert (await browser.post("/oauth/token", data=vault)).status_code == 401

        told(await choose(browser, await self.consent_page(browser, "gitlab"), action="accept"))

        renewed = (await browser.post("/oauth/token", data=vault)).json()
        assert (renewed["access_token"], renewed["expires_in"]) == ("new", 60)

    async def test_asks_who_it_is_first(self, browser: httpx.AsyncClient) -> None:
        """Without a session, nobody's account can be linked; and not without asking."""
        page = await browser.get("/authorize", params=authorization(connection="github"), follow_redirects=True)
        chosen = await choose(browser, page, username=ALICE)
        assert "Connect github?" in (await browser.get(chosen.headers["location"])).text

        answer = told(await browser.get("/authorize", params=authorization(connection="github", prompt="none")))
        assert answer["error"] == "interaction_required"

    async def test_an_account_that_is_not_there_cannot_be_connected(self, browser: httpx.AsyncClient) -> None:
        """The app is told."""
        await log_in(browser)
        asked = await browser.get("/authorize", params=authorization(connection="slack"))
        answer = told(await browser.get(urlsplit(asked.headers["location"])._replace(fragment="").geturl()))
        assert answer["error"] == "access_denied"
