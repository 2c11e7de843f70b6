"""How long a newcomer's machine takes from nothing to a page that shows a proxied answer.

    python -m tests.browser.stopwatch

Two ways, each from an empty folder, with the commands that README says and Chromium at the end: the demo, from a clean
clone; and an app of one's own with an `idp.toml`. The time that people need to read, type and click around in Auth0 is
not in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.browser.conftest import FLAGS, NAMES
from tests.stack import free_port

ROOT = Path(__file__).parents[2]
APP = """
from fastapi import FastAPI
from idp_middleware import IdPMiddleware, load_config

app = FastAPI()
app.add_middleware(IdPMiddleware, **load_config("idp.toml"))
"""
CALL = """async token => {
  const answer = await fetch("/idp/github/user", { headers: { Authorization: `Bearer ${token}` } });
  document.body.innerText = await answer.text();
}"""
# A newcomer's shell knows nothing of this checkout.
BARE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


class Stopwatch:
    """Tells each step when it is done, and what it all came to."""

    def __init__(self, title: str) -> None:
        print(f"\n{title}")
        self._began = self._last = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        print(f"  {now - self._last:6.1f} s  {what}", flush=True)
        self._last = now

    def run(self, command: str, folder: Path) -> None:
        subprocess.run(
            command, shell=True, cwd=folder, env=BARE, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.done(command)

    def total(self) -> None:
        print(f"  {self._last - self._began:6.1f} s  in all")


@contextmanager
def running(command: str, folder: Path, until: str, **environment: str) -> Iterator[re.Match[str]]:
    """A command that serves, from the line that says so."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        cwd=folder,
        env=BARE | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        found = next(match for line in process.stdout if (match := re.search(until, line)))
        yield found
    finally:
        process.terminate()
        process.wait(30)


def the_demo(folder: Path, page: Page) -> None:
    watch = Stopwatch("The demo: clean clone → a page that shows a proxied answer")
    watch.run(f"git clone -q {ROOT} demo", folder)
    with running("make demo", folder / "demo", r"Open (http://\S+)/ in a browser") as ready:
        watch.done("make demo (sets up .venv, plays seven calls, serves)")
        page.goto(ready[1])
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="auth0|alice").click()
        page.get_by_role("button", name="Who am I?").click()
        page.locator("#body").filter(has_text='"login": "alice"').wait_for()
        watch.done("open the page, log in as alice, press Who am I?")
    watch.total()


def an_app_of_ones_own(folder: Path, page: Page) -> None:
    auth0, github = Auth0(), ProviderAPI()
    auth0.add_client("an-id", "a-secret")
    auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice")])
    github.accept("gho_alice", login="alice")
    with serve(auth0) as idp, serve(github) as api:
        watch = Stopwatch("An app of one's own with idp.toml: empty folder → a page that shows a proxied answer")
        watch.run("python3 -m venv .venv", folder)
        watch.run(f".venv/bin/pip install '{ROOT}[server]' fastapi", folder)
        (folder / "app.py").write_text(APP)
        watch.run(".venv/bin/idp-middleware init --source auth0-management --provider github", folder)
        # Stand-ins have URLs where Auth0 has a domain and GitHub a known place.
        config = folder / "idp.toml"
        text = config.read_text().replace('issuer = "https://${AUTH0_DOMAIN}/"', f'issuer = "{idp.url}/"')
        text = text.replace('domain = "${AUTH0_DOMAIN}"', f'base_url = "{idp.url}"')
        config.write_text(text.replace('provider = "github"', f'provider = "github"\nupstream = "{api.url}"'))
        settings = {
            "AUTH0_CLIENT_ID": "an-id",
            "AUTH0_CLIENT_SECRET": "a-secret",
            "IDP_AUDIENCE": "https://api.acme.example",
        }
        port = free_port()
        with running(f".venv/bin/uvicorn app:app --port {port}", folder, "Uvicorn running on", **settings):
            watch.done("uvicorn app:app")
            page.goto(f"http://127.0.0.1:{port}/docs", wait_until="commit")
            page.evaluate(CALL, auth0.issue_token("auth0|alice", audience=settings["IDP_AUDIENCE"]))
            page.get_by_text('"login": "alice"').wait_for()
            watch.done("open a page of the app, fetch /idp/github/user with alice's token")
        watch.total()


def main() -> None:
    path = next(filter(None, map(shutil.which, NAMES)), None) or sys.exit("there is no Chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as name:
        page = playwright.chromium.launch(executable_path=path, args=FLAGS).new_page()
        for number, measure in enumerate((the_demo, an_app_of_ones_own)):
            folder = Path(name) / str(number)
            folder.mkdir()
            measure(folder, page)


if __name__ == "__main__":
    main()
