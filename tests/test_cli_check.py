"""`idp-middleware check` as it is shown: to people, with and without colour, and to machines."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from idp_middleware import _report
from idp_middleware._check import Finding
from idp_middleware._cli import main
from idp_middleware.testing import Auth0, ProviderAPI, serve
from tests.stack import free_port

FINDINGS = [
    Finding("authenticator", "", "ok", "https://acme.example/ has keys: 1 for RS256"),
    Finding("route", "github", "warning", "https://api.example answers with a web page (200)", "check upstream"),
    Finding("source", "auth0", "failed", "status 401", "check client_id"),
]
FILE = """
[authenticator]
type = "session"
[sources.s]
type = "static"
value = "${TOKEN}"
[routes.api]
upstream = "URL"
source = "s"
"""


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "t0ken-of-the-service")
    with serve(ProviderAPI()) as api:
        path = Path("idp.toml")
        path.write_text(FILE.replace("URL", api.url))
        yield path


def test_what_to_do_stands_below_what_is_wrong() -> None:
    """And what is well takes one line."""
    assert _report.as_text(FINDINGS) == (
        "ok    authenticator           https://acme.example/ has keys: 1 for RS256\n"
        "warn  route github            https://api.example answers with a web page (200)\n"
        "                              to do: check upstream\n"
        "FAIL  source auth0            status 401\n"
        "                              to do: check client_id"
    )


def test_colour_marks_the_verdict_only() -> None:
    """Words can then still be searched for and copied."""
    coloured = _report.as_text(FINDINGS, colour=True)
    assert coloured.startswith("\033[32mok    \033[0mauthenticator")
    assert "\033[33mwarn  \033[0mroute" in coloured
    assert "\033[1;31mFAIL  \033[0msource" in coloured


@pytest.mark.parametrize(
    ("terminal", "variables", "seen"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    terminal: bool, variables: dict[str, str], seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://no-color.org; a file or a pipe gets plain text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    assert _report.in_colour(stream) is seen


def test_machines_get_every_member(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The members are documented in docs/commands.md, and stay."""
    assert main(["check", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: report[name] for name in ("version", "ok")} == {"version": 1, "ok": True}
    assert [(each["part"], each["name"], each["status"], each["todo"]) for each in report["findings"]] == [
        ("authenticator", "", "ok", ""),
        ("source", "s", "ok", ""),
        ("route", "api", "ok", ""),
    ]
    assert json.loads(_report.as_json(FINDINGS))["ok"] is False
    page = (Path(__file__).parent.parent / "docs" / "commands.md").read_text()
    for member in (*report, *report["findings"][0], "authenticator", "caller", "source", "route", "cache", "file"):
        assert f"`{member}`" in page


def test_a_file_that_is_wrong_is_a_finding_for_machines(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever parses the output need not read standard error as well; the status is that of a wrong file."""
    file.write_text("prefx = 1")
    assert main(["check", str(file), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][0]["part"] == "file"
    assert "did you mean 'prefix'?" in report["findings"][0]["detail"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read as a token (No such file or directory)"),
        ("", "holds no token: one line, without spaces"),
        ("two words", "holds no token: one line, without spaces"),
        ("tokén", "cannot be read as a token (is not text)"),
    ],
)
def test_a_token_file_without_a_token_is_one_line(
    content: str | None, complaint: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is reached."""
    if content is not None:
        Path("token").write_text(content, encoding="utf-8")
    assert main(["check", str(file), "--token-file", "token"]) == 2
    assert capsys.readouterr() == ("", f"idp-middleware: token: {complaint}\n")


def test_a_token_comes_by_a_pipe_too(file: Path) -> None:
    """As other tools print it; then it is in no file and no history."""
    done = subprocess.run(
        [sys.executable, "-m", "idp_middleware", "check", str(file), "--token-file", "-"],
        input="Bearer a-token\n",
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 1
    assert "FAIL  caller" in done.stdout
    assert "a-token" not in done.stdout


def test_who_goes_by_more_than_tokens_says_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one that wants to have been told by the app who the user is."""
    file.write_text(file.read_text().replace('"session"', '"session"\nuser = true'))
    Path("token").write_text("a-token")
    assert main(["check", str(file), "--token-file", "token"]) == 1
    assert "FAIL  caller                  a token alone does not do: " in capsys.readouterr().out


def test_an_authority_of_ones_own_is_named_as_openssl_has_it(tmp_path: Path) -> None:
    """In-house Keycloaks have one; issuer, source and upstream are trusted alike."""
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "server.pem").write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    tls = {"ssl_certfile": str(tmp_path / "server.pem"), "ssl_keyfile": str(tmp_path / "server.pem")}
    port = free_port()
    auth0 = Auth0(f"https://localhost:{port}/")
    auth0.add_client("client", "secret")
    with serve(auth0, port=port, **tls):
        (tmp_path / "idp.toml").write_text(f"""
            [authenticator]
            type = "jwt"
            issuer = "{auth0.issuer}"
            audience = "https://api.acme.example"
            [sources.auth0]
            type = "auth0-management"
            base_url = "{auth0.issuer}"
            client_id = "client"
            client_secret = "${{CLIENT_SECRET}}"
            [routes.github]
            upstream = "{auth0.issuer}"
            source = "auth0"
            connection = "github"
        """)
        for authorities, status in (({}, 1), ({"SSL_CERT_FILE": str(tmp_path / "ca.pem")}, 0)):
            done = subprocess.run(
                [sys.executable, "-m", "idp_middleware", "check", str(tmp_path / "idp.toml")],
                env={**os.environ, **authorities, "CLIENT_SECRET": "secret"},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == status, done.stdout + done.stderr
            assert done.stdout.count("an authority that is not known here") == 3 * status
