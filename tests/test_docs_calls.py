"""What the first pages show makes a real call, once the tenant and the API in it are ones on this machine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection, Request

from idp_middleware import Caller, IdPMiddleware, JWTAuthenticator, ProxyRoute, load_config, sources
from idp_middleware.errors import CallerUnauthenticated, ConfigurationError, IdentityNotLinked
from idp_middleware.stores import TokenKey
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

    def program(self, page: str) -> dict[str, Any]:
        """The names that a page's Python leaves, all of it run."""
        namespace: dict[str, Any] = {"__name__": "example"}
        for block in pages.programs()[page]:
            exec(compile(self.at_home(block.text), str(block), "exec"), namespace)
        return namespace

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
    first = next(block for block in pages.blocks("python") if block.page == page)
    namespace: dict[str, Any] = {"__name__": "app"}
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


def test_the_handler_that_a_page_shows_calls_as_its_user(home: Home) -> None:
    """And what the client of a job does, without a request."""
    example = home.program("docs/own-calls.md")
    home.github.respond("/user/starred", headers={"content-type": "application/json"}, body='[{"full_name": "a/b"}]')
    with serve(example["app"]) as server:
        answer = httpx.get(f"{server.url}/starred", headers=home.bearer(), trust_env=False, timeout=30)
        assert httpx.get(f"{server.url}/starred", trust_env=False, timeout=30).status_code == 401
    assert answer.json() == {"auth0|alice": ["a/b"]}
    home.github.respond("/notifications")
    asyncio.run(home.program("docs/own-calls.md")["nightly"]())
    assert home.github.count("/notifications") == 1
    assert set(home.github.tokens_seen()) == {"gho_alice"}


async def test_the_sources_that_a_page_shows_give_tokens(home: Home) -> None:
    """The function and the class, and what either says of a user it does not know."""
    example = home.program("docs/sources/own.md")
    route = example["intranet"]
    for source in (route.source, example["MyVault"]()):
        assert (await source.token(Caller("auth0|alice"), route)).value == "token-of-alice"
        with pytest.raises(IdentityNotLinked):
            await source.token(Caller("auth0|bob"), route)
    with pytest.raises(ConfigurationError, match="needs to know which connection"):
        ProxyRoute("https://intranet.acme.example/api", token_source=example["MyVault"]())


async def test_the_authenticator_that_a_page_shows_knows_its_callers(home: Home) -> None:
    """By the key, and nobody without one."""
    by_api_key = home.program("docs/callers.md")["by_api_key"]

    def conn(*headers: tuple[bytes, bytes]) -> HTTPConnection:
        return HTTPConnection({"type": "http", "headers": list(headers)})

    assert await by_api_key(conn((b"x-api-key", b"k-4711"))) == Caller("partner|1", frozenset({"read:github"}))
    with pytest.raises(CallerUnauthenticated):
        await by_api_key(conn())


async def test_the_last_word_that_a_page_shows_is_had(home: Home) -> None:
    """Everybody may read; who is on call may write."""
    office_hours = home.program("docs/authorization.md")["office_hours"]
    for method, scopes, allowed in (("GET", set(), True), ("POST", set(), False), ("POST", {"on-call"}, True)):
        conn = Request({"type": "http", "method": method, "headers": []})
        assert await office_hours(Caller("auth0|alice", frozenset(scopes)), conn) is allowed


async def test_what_a_page_puts_into_the_store_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the key that the source will look for, with an expiry that it can use."""
    monkeypatch.setenv("IDP_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
    monkeypatch.setenv("GITLAB_CLIENT_ID", "id")
    monkeypatch.setenv("GITLAB_CLIENT_SECRET", "secret")
    example = home.program("docs/sources/refresh-token.md")
    now = int(time.time())
    told = {"access_token": "glat", "refresh_token": "glrt", "created_at": now, "expires_in": 7200, "scope": "api"}
    await example["connected"]("auth0|alice", told)
    caller = Caller("auth0|alice", claims={"iss": home.auth0.issuer})
    token = await example["gitlab"].source.token(caller, example["gitlab"])
    assert (token.value, token.scopes) == ("glat", {"api"})
    key = TokenKey(issuer=caller.issuer, subject="auth0|alice", connection="gitlab")
    (entry,) = await example["store"].get(key)
    assert (entry.token.refresh_token, entry.token.expires_at) == ("glrt", now + 7200)
    await example["gitlab"].source.aclose()
