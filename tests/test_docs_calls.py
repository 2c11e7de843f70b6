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
from idp_middleware.observers import AccessLog, AuditLog
from idp_middleware.stores import TokenKey
from idp_middleware.testing import serve
from tests import pages
from tests.at_home import AUDIENCE, Home


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Home]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTH0_CLIENT_ID", "the-auth0-client-id")
    monkeypatch.setenv("AUTH0_CLIENT_SECRET", "the-auth0-client-secret")
    with ExitStack() as servers:
        yield Home(servers)


def test_no_other_json_is_shown() -> None:
    """The tests below compare it with what there really is; a block that none of them knows would be free to rot."""
    assert [block.page for block in pages.blocks("json")] == ["docs/observability.md"] * 2 + ["docs/overview.md"]


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


def test_the_log_lines_that_a_page_shows_are_what_is_written(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """Dashboards are built on their fields: the same ones, in the same order, of the same types."""
    caplog.set_level("INFO", "idp_middleware")
    auth0 = sources.Auth0Management(
        base_url=home.idp, client_id="the-auth0-client-id", client_secret="the-auth0-client-secret"
    )
    app = IdPMiddleware(
        authenticator=JWTAuthenticator(issuer=home.auth0.issuer, audience=AUDIENCE),
        routes={name: ProxyRoute(home.api, token_source=auth0, connection=name) for name in ("github", "gitlab")},
        observers=[AccessLog(), AuditLog()],
    )
    with serve(app) as server:
        for path in ("gitlab/user", "github/user"):
            httpx.get(f"{server.url}/idp/{path}", headers=home.bearer(), trust_env=False, timeout=30)
    access = [record for record in caplog.records if record.name == "idp_middleware.access"]
    (failed,) = (
        record for record in caplog.records if record.name == "idp_middleware.audit" and record.levelname == "WARNING"
    )
    shown = [json.loads(block.text) for block in pages.blocks("json") if block.page == "docs/observability.md"]
    for record, line in zip((access[-1], failed), shown, strict=True):
        written = json.loads(record.getMessage())
        assert [(key, type(value)) for key, value in written.items()] == [
            (key, type(value)) for key, value in line.items()
        ]


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
