"""What the first pages show makes a real call, once the tenant and the API in it are ones on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute, load_config, sources
from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests import pages

AUDIENCE = "https://api.acme.example"


class Home:
    """The parties, and words to put their addresses in place of those that a page shows."""

    def __init__(self, servers: ExitStack) -> None:
        self.auth0, self.github = Auth0(), ProviderAPI()
        self.auth0.add_client("the-auth0-client-id", "the-auth0-client-secret")
        self.auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice")])
        self.github.accept("gho_alice", login="alice")
        self.idp, self.api = (servers.enter_context(serve(party)).url for party in (self.auth0, self.github))

    def at_home(self, text: str) -> str:
        for there, here in {
            'issuer="https://acme.eu.auth0.com/"': f'issuer="{self.idp}/"',
            'issuer = "https://acme.eu.auth0.com/"': f'issuer = "{self.idp}/"',
            'domain="acme.eu.auth0.com"': f'base_url="{self.idp}"',
            'domain = "acme.eu.auth0.com"': f'base_url = "{self.idp}"',
            "providers.github(": f'providers.github(upstream="{self.api}", ',
            'provider = "github"': f'provider = "github"\nupstream = "{self.api}"',
        }.items():
            text = text.replace(there, here)
        return text

    def bearer(self) -> dict[str, str]:
        token = self.auth0.issue_token("auth0|alice", audience=AUDIENCE, scope="read:github")
        return {"authorization": f"Bearer {token}"}

    def call(self, app: object) -> None:
        """As the page has it: alice's call is answered by GitHub, for alice."""
        with serve(app) as server:
            answer = httpx.get(f"{server.url}/idp/github/user", headers=self.bearer(), trust_env=False, timeout=30)
            assert (answer.status_code, answer.json()["login"]) == (200, "alice")
        assert self.github.tokens_seen() == ["gho_alice"]
        assert "gho_alice" not in f"{answer.text}{answer.headers}"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Home]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTH0_CLIENT_ID", "the-auth0-client-id")
    monkeypatch.setenv("AUTH0_CLIENT_SECRET", "the-auth0-client-secret")
    with ExitStack() as servers:
        yield Home(servers)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/migration.md"])
def test_the_app_that_a_page_shows_makes_the_call(page: str, home: Home) -> None:
    """It is what people paste."""
    namespace: dict[str, object] = {"__name__": "app"}
    first = next(block for block in pages.blocks("python") if block.page == page)
    exec(compile(home.at_home(first.text), page, "exec"), namespace)
    home.call(namespace["app"])


@pytest.mark.parametrize("page", ["README.md", "docs/gateway.md", "docs/configuration.md"])
def test_the_file_that_a_page_shows_makes_the_call(page: str, home: Home) -> None:
    """As a gateway, with nothing behind it."""
    first = next(block for block in pages.blocks("toml") if block.page == page)
    Path("idp.toml").write_text(home.at_home(first.text))
    home.call(IdPMiddleware(**load_config("idp.toml")))


def test_the_overview_that_a_page_shows_is_what_comes_back(home: Home) -> None:
    """A page is written against it."""
    auth0 = sources.Auth0Management(
        base_url=home.idp, client_id="the-auth0-client-id", client_secret="the-auth0-client-secret"
    )
    app = IdPMiddleware(
        authenticator=JWTAuthenticator(issuer=home.auth0.issuer, audience=AUDIENCE),
        routes={
            "github": ProxyRoute(home.api, token_source=auth0, connection="github", scopes={"read:github"}),
            "gitlab": ProxyRoute(home.api, token_source=auth0, connection="gitlab", methods=["GET"]),
        },
    )
    with serve(app) as server:
        told = httpx.get(f"{server.url}/idp", headers=home.bearer(), trust_env=False, timeout=30).json()
    (shown,) = (block for block in pages.blocks("json") if block.page == "docs/overview.md")
    assert json.loads(shown.text) == told
