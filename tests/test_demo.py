"""The demo and the example: what people see first has to work."""

from __future__ import annotations

import io
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from idp_middleware import _demo
from idp_middleware._cli import main
from idp_middleware._demo.paper import Paper
from idp_middleware._demo.scenes import Check, Outcome, Scene, Stage
from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve

EXAMPLE = Path(__file__).parent.parent / "examples" / "fastapi_app.py"


def test_every_call_of_the_demo_does_what_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0 is a claim; the output is what lets people believe it."""
    assert main(["demo", "--once"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "7 calls, each did what it should" in out
    assert "WRONG" not in out
    assert out.count("\n  ok ") == 7
    # Both tokens show their last four characters; neither shows more, nor does the JWT of a caller.
    assert re.search(r"browser sent +GET /idp/github/user\n +Authorization: Bearer …\S{4}\n", out)
    assert re.search(r"GitHub received +GET /user\n +Authorization: Bearer …a1ce\n", out)
    assert "gho_" not in out
    assert "eyJ" not in out
    assert "\033[" not in out


def _untrue(outcome: Outcome, stage: Stage) -> Iterator[Check]:
    yield "two is two", True
    yield "two is three", False


@pytest.mark.parametrize(
    ("scene", "complaint"),
    [
        (Scene("x", "GET", "/idp/github/user", _untrue), "WRONG             not true: two is three"),
        (
            Scene("x", "GET", "/idp/github/die?after=10", _untrue),
            "WRONG             not true: the call came through (RemoteProtocolError)",
        ),
        # What a broken middleware might do to a check that expects a document.
        (Scene("x", "GET", "/idp/github/bytes/9", _demo.SCENES[0].checks), "WRONG             not true: it is alice"),
        (
            Scene("x", "GET", "/idp/github/user/repos", _demo.SCENES[0].checks),
            "WRONG             not true: it is alice",
        ),
    ],
)
def test_a_call_that_goes_wrong_is_told_and_is_the_status(
    scene: Scene, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the demo would be a film."""
    monkeypatch.setattr(_demo, "SCENES", (scene,))
    assert main(["demo", "--once"]) == 1
    out = capsys.readouterr().out
    assert complaint in out
    assert out.endswith("1 calls, 1 of them WRONG\n")


def demo(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "idp_middleware", "demo", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    pytest.fail(said)


def test_the_demo_serves_on_until_it_is_interrupted() -> None:
    """What it prints to be pasted has to work as it stands, and so has the page."""
    with demo() as process:
        said = read_until(process, "Serving until Ctrl-C")
        token = re.search(r"^TOKEN=(\S+)$", said, re.MULTILINE)
        url = re.search(r"(http://\S+)/idp/github/user$", said, re.MULTILINE)
        assert token
        assert url
        with httpx.Client(base_url=url[1], trust_env=False, timeout=60) as client:
            answer = client.get("/idp/github/user", headers={"authorization": f"Bearer {token[1]}"})
            assert answer.json()["login"] == "alice"
            assert "Your accounts" in client.get("/").text
            assert client.get("/page.js").headers["content-security-policy"].startswith("default-src 'none'; ")
            assert client.get("/seen").status_code == 401
            seen = client.get("/seen", headers={"authorization": f"Bearer {token[1]}"}).text
            assert "…a1ce" in seen
            assert "gho_" not in seen
            assert token[1] not in seen
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("\nStopped.\n", "", 0)


def test_the_demo_can_be_interrupted_in_the_middle() -> None:
    """Three servers and a call are under way; none of them has the last word."""
    with demo("--once") as process:
        read_until(process, "3  A download")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (err, process.returncode) == ("idp-middleware: interrupted\n", 130)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """no-color.org, and a log file without escape sequences."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    Paper(stream).verdicts([("a", True), ("b", False)])
    assert ("\033[" in stream.getvalue()) is coloured


def test_a_terminal_without_unicode_still_shows_the_rest() -> None:
    """A demo that ends in a UnicodeEncodeError has shown the wrong thing."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Paper(stream).line("Bearer …a1ce")
    stream.seek(0)
    assert stream.read() == "Bearer ?a1ce\n"


def test_the_example_works_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the README shows: an app of one's own, with the middleware in front."""
    auth0, github = Auth0(), ProviderAPI()
    auth0.add_client("client", "secret")
    auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice")])
    github.accept("gho_alice", login="alice")
    with serve(auth0) as idp, serve(github) as api:
        monkeypatch.setenv("AUTH0_URL", idp.url)
        monkeypatch.setenv("AUTH0_CLIENT_ID", "client")
        monkeypatch.setenv("AUTH0_CLIENT_SECRET", "secret")
        monkeypatch.setenv("GITHUB_API_URL", api.url)
        app = runpy.run_path(str(EXAMPLE))["app"]
        token = auth0.issue_token("auth0|alice", audience="https://api.acme.example", scope="read:github")
        with serve(app) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            assert client.get("/").json() == {"hello": "from the app itself"}
            answer = client.get("/idp/github/user", headers={"authorization": f"Bearer {token}"})
            assert answer.json()["login"] == "alice"
    assert len(EXAMPLE.read_text().splitlines()) <= 40
