"""Every example is started and called, as a reader would: on real sockets, against the local doubles."""

from __future__ import annotations

import asyncio
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from idp_middleware import IdPMiddleware, load_config
from idp_middleware.testing import Auth0, Identity, Keycloak, ProviderAPI, serve
from tests.stack import free_port

EXAMPLES = Path(__file__).parent.parent / "examples"
TOKENS = {"alice": "gho_alice_provider_token", "bob": "gho_bob_provider_token"}
AUDIENCE = "https://api.acme.example"
REPOSITORIES = ["repository-1", "repository-2"]


class Parties:
    """Auth0 and GitHub, with alice and bob; and what the examples take from the environment."""

    def __init__(self, auth0: Auth0, github: ProviderAPI) -> None:
        self.auth0, self.github = auth0, github

    def app(self, name: str) -> Any:
        # Anew, with this test's environment.
        sys.modules.pop(f"examples.{name}", None)
        return importlib.import_module(f"examples.{name}").app

    def bearer(self, user: str, audience: str = AUDIENCE) -> dict[str, str]:
        token = self.auth0.issue_token(f"auth0|{user}", audience=audience, scope="read:github")
        return {"authorization": f"Bearer {token}"}

    def calls_as(self, user: str) -> None:
        """The last call came with the user's token, and nothing of the caller's."""
        assert self.github.last.bearer == TOKENS[user]
        assert self.github.last.header("cookie") is None


@pytest.fixture
def parties(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parties]:
    auth0, github = Auth0(), ProviderAPI()
    for user, token in TOKENS.items():
        auth0.add_user(f"auth0|{user}", [Identity("github", user, access_token=token)])
        github.accept(token, login=user)
    with serve(auth0) as idp, serve(github) as api:
        for name, value in {
            "AUTH0_URL": idp.url,
            "AUTH0_CLIENT_ID": "the-client",
            "AUTH0_CLIENT_SECRET": "the-secret",
            "GITHUB_API_URL": api.url,
            "DJANGO_SECRET_KEY": "of-this-test-only",
            "SESSION_SECRET": "of-this-test-only",
        }.items():
            monkeypatch.setenv(name, value)
        auth0.add_client("the-client", "the-secret")
        yield Parties(auth0, github)


def get(url: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(f"{url}{path}", headers=headers, trust_env=False, timeout=30)


def test_each_is_short_and_listed() -> None:
    """An example of a page is read; a longer one is skipped."""
    page = (EXAMPLES / "README.md").read_text()
    assert "(spa/" in page
    for path in EXAMPLES.rglob("*"):
        # The single-page app is a page of its own, with its own test.
        if "spa" not in path.parts and path.suffix in (".py", ".toml", ".mjs"):
            assert len(path.read_text().splitlines()) <= 60, path
            assert path.relative_to(EXAMPLES).as_posix() in page, path


@pytest.mark.parametrize("name", ["fastapi_app", "starlette_app"])
def test_an_app_with_the_middleware_in_front(name: str, parties: Parties) -> None:
    """Each user's call goes out with that user's token; without a token none does."""
    with serve(parties.app(name)) as server:
        for user in TOKENS:
            assert get(server.url, "/idp/github/user", parties.bearer(user)).json()["login"] == user
            parties.calls_as(user)
        seen = len(parties.github.requests)
        assert get(server.url, "/idp/github/user").status_code == 401
        assert len(parties.github.requests) == seen


def test_starlettes_own_routes_call_as_the_user(parties: Parties) -> None:
    """And what goes wrong is an answer, not a crash."""
    with serve(parties.app("starlette_app")) as server:
        assert get(server.url, "/repositories", parties.bearer("bob")).json() == {"auth0|bob": REPOSITORIES}
        parties.calls_as("bob")
        refused = get(server.url, "/repositories")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        parties.auth0.unlink("auth0|alice", "github")
        assert get(server.url, "/repositories", parties.bearer("alice")).json()["title"].startswith("The user has not")


def test_djangos_own_views_call_as_the_user(parties: Parties) -> None:
    """Django knows nothing of ASGI middleware, and need not."""
    with serve(parties.app("django_app")) as server:
        assert get(server.url, "/idp/github/user", parties.bearer("alice")).json()["login"] == "alice"
        parties.calls_as("alice")
        assert get(server.url, "/me", parties.bearer("bob")).json() == {"subject": "auth0|bob", "github": "bob"}
        assert get(server.url, "/me").status_code == 401
        assert get(server.url, "/elsewhere").status_code == 404


def test_keycloak_gives_the_token_for_the_callers_own(parties: Parties, monkeypatch: pytest.MonkeyPatch) -> None:
    """The realm's tokens, and the realm's broker."""
    keycloak = Keycloak()
    keycloak.add_provider("github")
    with serve(keycloak) as sso:
        monkeypatch.setenv("KEYCLOAK_REALM", keycloak.issuer)
        assert keycloak.issuer.startswith(sso.url)
        keycloak.link("alice", "github", TOKENS["alice"])
        bearer = {"authorization": f"Bearer {keycloak.issue_token('alice', audience='acme-api')}"}
        with serve(parties.app("keycloak_app")) as server:
            assert get(server.url, "/idp/github/user", bearer).json()["login"] == "alice"
            assert get(server.url, "/starred", bearer).json() == {"alice": REPOSITORIES}
            parties.calls_as("alice")


def test_a_session_is_all_that_a_page_needs(parties: Parties) -> None:
    """Login by code and PKCE, then calls with the cookie; without the header that only the own page can send, none."""
    port = free_port()
    callback = f"http://127.0.0.1:{port}/callback"
    parties.auth0.add_client("the-client", "the-secret", redirect_uris=[callback])
    with (
        serve(parties.app("session_app"), port=port) as server,
        httpx.Client(base_url=server.url, follow_redirects=True, trust_env=False, timeout=30) as browser,
    ):
        form = browser.get("/login")
        state = re.search(r'action="([^"]+)"', form.text)
        assert state
        browser.post(form.url.join(state[1].replace("&amp;", "&")), data={"username": "auth0|alice"})
        answer = browser.get("/idp/github/user", headers={"X-CSRF": "1"})
        assert answer.json()["login"] == "alice"
        parties.calls_as("alice")
        assert browser.get("/idp/github/user").status_code == 403
        assert browser.get("/callback?state=&code=x").status_code == 400
        assert get(server.url, "/idp/github/user", {"X-CSRF": "1"}).status_code == 401


def test_an_app_in_another_language_has_a_gateway_beside_it(parties: Parties) -> None:
    """Node's page and the gateway's calls come from one origin."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the other app")
    gateway = IdPMiddleware(**load_config(EXAMPLES / "gateway" / "idp.toml"))
    with serve(gateway) as beside:
        command = [node, str(EXAMPLES / "gateway" / "app.mjs"), "0"]
        environment = {"GATEWAY_URL": beside.url}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as app:
            try:
                assert app.stdout is not None
                url = app.stdout.readline().strip()
                assert "<ul>" in get(url, "/").text
                answer = get(url, "/idp/github/user/repos", parties.bearer("alice"))
                assert [repository["name"] for repository in answer.json()] == REPOSITORIES
                parties.calls_as("alice")
                assert get(url, "/idp/github/user").status_code == 401
            finally:
                app.kill()


def test_an_agents_tools_call_as_the_user_it_works_for(parties: Parties, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the official client, over streamable HTTP; who comes without a token is told where to get one."""
    pytest.importorskip("mcp", reason="the package mcp is not installed")
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    monkeypatch.setenv("MCP_URL", url)

    async def repositories(user: str) -> Any:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        headers = parties.bearer(user, url)
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return (await client.call_tool("my_repositories", {})).structured_content

    with serve(parties.app("mcp_server"), port=port) as server:
        assert asyncio.run(repositories("alice")) == {"result": REPOSITORIES}
        parties.calls_as("alice")
        parties.auth0.unlink("auth0|bob", "github")
        assert asyncio.run(repositories("bob")) == {"result": ["The user has not connected GitHub yet: ask them to."]}
        refused = httpx.post(url, json={}, headers={"accept": "application/json"}, trust_env=False)
        assert refused.status_code == 401
        assert f"{server.url}/.well-known/oauth-protected-resource" in refused.headers["www-authenticate"]
        assert get(server.url, "/idp/github/user", parties.bearer("alice", AUDIENCE)).status_code == 401
