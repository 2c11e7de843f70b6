"""The fixtures for suites of other people's apps, used as they would: in a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from idp_middleware import IdPMiddleware, JWTAuthenticator, load_config, providers, sources
from idp_middleware.testing import Keycloak, World
from tests import pages

ROOT = pages.ROOT
PLUGIN = "pytest_idp_middleware"
PAGE = "docs/testing.md"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder, with nothing of ours in its configuration."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=100)


def test_pytest_finds_the_plugin_by_itself() -> None:
    """Where the package is installed; that the module is in the wheel, the wheel's own test says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
    assert f"{PLUGIN}.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]


def test_every_block_of_the_page_runs_as_a_suite(tmp_path: Path) -> None:
    """What a reader would paste into a file, warnings being errors."""
    blocks = [block.text for block in pages.blocks("python") if block.page == PAGE]
    settings = [block for block in blocks if "def idp_settings" in block]
    (tmp_path / "test_page.py").write_text("\n".join(blocks))
    assert len(settings) == 1
    # pytest-asyncio wants this one to be said.
    scope = "asyncio_default_fixture_loop_scope=function"
    done = run(tmp_path, "-W", "error", "-o", scope, "test_page.py")
    assert re.search(r"^4 passed", done.stdout, re.M), done.stdout + done.stderr


def test_a_suite_that_does_not_use_it_does_not_import_the_package(tmp_path: Path) -> None:
    """Nor a server when it does: pytest's start is everybody's."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_nothing_is_imported():\n"
        "    assert not [name for name in sys.modules if name.startswith(('idp_middleware', 'httpx', 'jwt'))]\n"
        "def test_a_world_needs_no_server(idp_world, idp_auth0, idp_api):\n"
        "    assert idp_world.auth0 is idp_auth0 and idp_api('x') is idp_world.api('x')\n"
        "    assert 'uvicorn' not in sys.modules\n"
    )
    done = run(tmp_path, "test_other.py")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_an_assertion_says_what_was_seen_instead() -> None:
    """Otherwise a failure is a riddle."""
    world = World()
    with pytest.raises(AssertionError, match=r"no API saw a request with alice's github token\. None saw any request"):
        world.assert_called_as("alice", "github")
    world.assert_not_called()


async def test_what_apis_saw_is_told_by_user_and_connection() -> None:
    """A token of the wrong user or of the wrong connection is what these tests are for."""
    import httpx

    world = World()
    bob, alice = world.link("bob", "github"), world.link("auth0|alice", "google-oauth2", account="g-1")
    assert (alice.account, bob.account, str(bob)) == ("g-1", "github-bob", "bob's github token")
    assert bob.token not in repr(bob)
    async with httpx.AsyncClient(transport=world.transport) as client:
        for token in (bob.token, alice.token, "forged"):
            await client.get("https://api.github.com/user", headers={"authorization": f"Bearer {token}"})
        await client.post("https://other.example/x")
    assert (
        world.assert_called_as("bob", "github", method="GET", path="/user", host="api.github.com").bearer == bob.token
    )
    world.assert_called_as("alice", "google-oauth2")
    for wanted in ({"method": "POST"}, {"path": "/x"}, {"host": "other.example"}):
        with pytest.raises(AssertionError):
            world.assert_called_as("bob", "github", **wanted)
    with pytest.raises(AssertionError) as caught:
        world.assert_called_as("alice", "github", method="GET", path="/user")
    assert str(caught.value) == (
        "no API saw GET /user with alice's github token.\n"
        "  api.github.com saw GET /user with bob's github token\n"
        "  api.github.com saw GET /user with auth0|alice's google-oauth2 token\n"
        "  api.github.com saw GET /user with a token that nobody has linked\n"
        "  other.example saw POST /x with no token"
    )
    with pytest.raises(AssertionError, match=r"other\.example was not to be called"):
        world.assert_not_called("other.example")
    world.assert_not_called("third.example")
    assert [request.path for request in world.requests()] == ["/user", "/user", "/user", "/x"]


async def test_tokens_end_by_time_by_revocation_and_by_unlinking() -> None:
    """Each of which the app under test has an answer for."""
    import httpx

    world = World()
    ended, revoked, good = world.link("a", "x", expires_in=0), world.link("b", "x"), world.link("c", "x", expires_in=99)
    world.revoke(revoked)
    async with httpx.AsyncClient(transport=world.transport, base_url="https://api.example") as client:

        async def status(token: str) -> int:
            return (await client.get("/user", headers={"authorization": f"Bearer {token}"})).status_code

        assert [await status(each.token) for each in (ended, revoked, good)] == [401, 401, 200]
        world.revoke(good)
        assert await status(good.token) == 401
        answer = await client.get("/echo/x", headers={"authorization": f"Bearer {world.link('d', 'x').token}"})
    with pytest.raises(AssertionError, match=r"the answer to GET https://api.example/echo/x has d's x token"):
        world.assert_no_token_in(answer)


def test_a_file_goes_through_the_transport_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table that reaches something takes it; those that reach nothing need none."""
    from starlette.testclient import TestClient

    world = World()
    sso = world.add("https://sso.acme.example", Keycloak())
    assert sso.issuer == "https://sso.acme.example/realms/acme"
    monkeypatch.setenv("SECRET", world.client_secret)
    (tmp_path / "idp.toml").write_text("""
        [[authenticator]]
        type = "jwt"
        issuer = "https://acme.eu.auth0.com/"
        audience = "https://api.acme.example"
        [[authenticator]]
        type = "session"
        [sources.vault]
        type = "auth0-token-vault"
        domain = "acme.eu.auth0.com"
        client_id = "test-client"
        client_secret = "${SECRET}"
        [sources.same]
        type = "pass-through"
        [routes.github]
        provider = "github"
        source = "vault"
        connection = "github"
        [routes.same]
        upstream = "https://own.example"
        source = "same"
    """)
    app = IdPMiddleware(**load_config(tmp_path / "idp.toml", transport=world.transport))
    world.link("alice", "github", scope="repo", expires_in=3)
    client = TestClient(app)
    assert client.get("/idp/github/user", headers=world.headers("alice")).json()["login"] == "alice"
    world.assert_called_as("alice", "github", host="api.github.com")
    world.unlink("alice", "github")
    assert client.get("/idp/same/user", headers=world.headers("alice")).status_code == 401


def test_alices_token_expires_in_three_seconds() -> None:
    """The app under test sees what it would see in production: a token that was good a moment ago."""
    import httpx2
    import time_machine
    from starlette.testclient import TestClient

    world = World()
    source = sources.Auth0Management(
        domain="acme.eu.auth0.com",
        client_id=world.client_id,
        client_secret=world.client_secret,
        transport=world.transport,
    )
    idp = IdPMiddleware(
        authenticator=JWTAuthenticator(issuer=world.auth0.issuer, audience=world.audience, transport=world.transport),
        routes={"github": providers.github(token_source=source, connection="github")},
        transport=world.transport,
    )
    with time_machine.travel(1_900_000_000, tick=False) as clock, TestClient(idp) as client:
        headers = world.headers("alice")

        def user() -> httpx2.Response:
            return client.get("/idp/github/user", headers=headers)

        first = world.link("alice", "github", expires_in=3)
        assert user().status_code == 200
        clock.shift(4)
        assert user().status_code == 401
        assert world.assert_called_as("alice", "github").bearer == first.token
        clock.shift(60)
        second = world.link("alice", "github")
        assert user().status_code == 200
        assert world.assert_called_as("alice", "github").bearer == second.token
