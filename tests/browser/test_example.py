"""`examples/spa` works as it stands: the library, the app and its `idp.toml`, in a real browser."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.browser.conftest import screenshot
from tests.browser.test_page import a_second_later

SPA = Path(__file__).parents[2] / "examples" / "spa"


@dataclass
class Example:
    url: str
    auth0: Auth0
    github: ProviderAPI


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Example]:
    """The example, with stand-ins where Auth0 and GitHub would be; alice has linked nothing yet."""
    if not (SPA / "node_modules").is_dir():
        pytest.skip("what the example's page loads is not installed: npm ci --prefix examples/spa")
    auth0, github = Auth0(), ProviderAPI()
    auth0.add_client("machine", "secret")
    auth0.add_api("https://api.acme.example", {"read:github"})
    auth0.add_user("auth0|alice")
    auth0.add_account("auth0|alice", Identity("github", "101", access_token="gho_alices"))
    github.accept("gho_alices", login="alice")
    copy = tmp_path / "spa"
    shutil.copytree(SPA, copy)
    with serve(auth0) as idp, serve(github) as api:
        config = copy / "idp.toml"
        config.write_text(config.read_text().replace('"github"\nsource', f'"github"\nupstream = "{api.url}"\nsource'))
        for name, value in {
            "AUTH0_URL": idp.url,
            "AUTH0_CLIENT_ID": "machine",
            "AUTH0_CLIENT_SECRET": "secret",
            "SPA_CLIENT_ID": "spa",
        }.items():
            monkeypatch.setenv(name, value)
        with serve(runpy.run_path(str(copy / "app.py"))["app"]) as server:
            home = [f"{server.url}/"]
            auth0.add_client("spa", auth="none", redirect_uris=home, logout_uris=home)
            yield Example(server.url, auth0, github)


def log_in(page: Page, example: Example) -> None:
    page.goto(example.url)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="auth0|alice").click()


def test_a_user_logs_in_connects_and_sees_repositories(page: Page, example: Example) -> None:
    """What a reader would try first, with a library that others maintain."""
    log_in(page, example)
    expect(page.get_by_role("status")).to_have_text("The user has not linked an account for this connection.")
    a_second_later(page)
    page.get_by_role("button", name="Connect GitHub").click()
    page.get_by_role("button", name="Allow").click()

    expect(page.get_by_role("status")).to_have_text("2 of them.")
    expect(page.get_by_role("listitem")).to_have_text(["repository-1", "repository-2"])
    screenshot(page, "example")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert example.github.tokens_seen() == ["gho_alices"]
    assert "gho_" not in page.content()
    assert page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])") == "[{},{}]"

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()


def test_a_login_that_was_not_begun_here_is_refused(page: Page, example: Example) -> None:
    """By the library."""
    page.goto(f"{example.url}/?code=made-up&state=made-up")

    expect(page.get_by_role("status")).to_contain_text("The login failed: ")
    assert example.auth0.count("/oauth/token") == 0


def test_it_is_short() -> None:
    """An example is read."""
    assert len((SPA / "app.py").read_text().splitlines()) <= 60
    assert len((SPA / "static" / "login.js").read_text().splitlines()) <= 75
    assert len((SPA / "static" / "app.js").read_text().splitlines()) <= 60
