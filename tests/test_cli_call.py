"""`idp-middleware call`: what is told of each step, and what to do where one fails."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idp_middleware import _call
from idp_middleware._cli import main
from idp_middleware.testing import Identity, serve
from tests.filed import SECRET, Parties, parties
from tests.stack import AUDIENCE, USERS

TOKEN = USERS["alice"]
MORE = """
provider = "github"
scopes = ["read:github"]
methods = ["GET"]
paths = ["/user", "/echo/**", "/die"]
[sources.same]
type = "pass-through"
[routes.own]
upstream = "{api}"
source = "same"
"""


class World:
    def __init__(self, set_up: Parties, capsys: pytest.CaptureFixture[str]) -> None:
        self.auth0, self.api = set_up.auth0, set_up.api
        self._capsys = capsys

    def call(self, *arguments: str, status: int = 0) -> tuple[str, dict[str, str]]:
        """The answer, and what was told of each step."""
        assert main(["call", *arguments]) == status
        out, err = self._capsys.readouterr()
        assert TOKEN not in out + err
        assert SECRET not in out + err
        return out, {line[:10].rstrip(): line[10:] for line in err.splitlines()}

    def token_file(self, **options: Any) -> str:
        token = self.auth0.issue_token("auth0|alice", **{"audience": AUDIENCE, "scope": "read:github", **options})
        Path("token").write_text(token)
        return "token"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    with parties() as set_up:
        Path("idp.toml").write_text(set_up.file(MORE))
        yield World(set_up, capsys)


def test_each_step_is_told_and_the_answer_is_the_output(world: World) -> None:
    """The steps go to standard error, so that the answer can be piped on."""
    out, steps = world.call("github", "/user?x=1", "--as", "auth0|alice")
    assert '"login": "alice"' in out
    assert list(steps) == ["route", "caller", "source", "token", "upstream"]
    assert re.fullmatch(r"github: GET http://127.0.0.1:\d+/user with a query", steps["route"])
    assert steps["caller"] == f"auth0|alice of {world.auth0.issuer}, taken at your word; scopes are not looked at"
    assert re.fullmatch(r"auth0 gave a token, connection github, in \d+ ms", steps["source"])
    assert re.fullmatch(r"Bearer, sha256 [0-9a-f]{12}…; expiry unknown; scopes unknown", steps["token"])
    assert re.fullmatch(r"status 200 in \d+ ms; application/json; charset=utf-8; \d+ bytes", steps["upstream"])
    assert world.api.last.target == b"/user?x=1"
    assert world.api.last.bearer == TOKEN


def test_an_api_that_echoes_the_token_does_not_show_it(world: World) -> None:
    """The output is what people paste into tickets."""
    out, _ = world.call("github", "echo/all", "--as", "auth0|alice")
    assert "authorization" in out


def test_a_long_answer_is_cut(world: World) -> None:
    """It is for looking at."""
    world.api.respond("/user", body="x" * 100_000)
    out, steps = world.call("github", "/user", "--as", "auth0|alice")
    assert out == "x" * 65536
    assert "more than 65536 bytes, of which the first 65536 are shown" in steps["upstream"]


def test_a_callers_own_token_is_verified(world: World) -> None:
    """Then scopes count, as they will for the app."""
    out, steps = world.call("github", "/user", "--token-file", world.token_file())
    assert '"login": "alice"' in out
    assert steps["caller"] == f"auth0|alice of {world.auth0.issuer}, by the token that was given"
    _, steps = world.call("github", "/user", "--token-file", world.token_file(scope="openid"), status=1)
    assert "scope missing" in steps["FAIL"]
    _, steps = world.call("github", "/user", "--token-file", world.token_file(audience="https://x.example"), status=1)
    assert steps["to do"].startswith("it is for 'https://x.example'")


def test_a_source_that_needs_the_callers_token_says_so(world: World) -> None:
    """It can't be made up from a subject."""
    _, steps = world.call("own", "/user", "--as", "auth0|alice", status=1)
    assert "--token-file" in steps["to do"]
    world.call("own", "/user", "--token-file", world.token_file())
    assert world.api.last.bearer == Path("token").read_text()


@pytest.mark.parametrize(
    ("arguments", "wrong", "todo"),
    [
        (
            ["/user", "--as", "auth0|carol"],
            "identity-not-linked: Auth0 does not know the user",
            "connect an account for",
        ),
        (["/other", "--as", "auth0|alice"], "caller-forbidden: path not on", "change the route's"),
        (["/user", "--as", "auth0|alice", "--method", "POST"], "method-not-allowed", "to the route's methods"),
        (["/echo/../user", "--as", "auth0|alice"], "bad-request: dot segment", "check the path"),
        (["/user", "--as", "auth0|alice", "--account", "7"], "identity-not-linked: no such identity", "github first"),
        (["/user", "--as", "alice"], "identity-not-linked: Auth0 does not know", "check the subject after --as"),
        (["/die", "--as", "auth0|alice"], "the answer broke off", "try again"),
    ],
)
def test_where_a_step_fails_it_says_what_to_do(arguments: list[str], wrong: str, todo: str, world: World) -> None:
    """And nothing is sent after that."""
    out, steps = world.call("github", *arguments, status=1)
    assert out == ""
    assert wrong in steps["FAIL"]
    assert todo in steps["to do"]


def test_a_source_that_is_not_there_is_for_check_to_find(world: World) -> None:
    """The token engine tells nobody an address; `check` knows every one of the file."""
    file = Path("idp.toml")
    file.write_text(re.sub('base_url = ".*"', 'base_url = "http://127.0.0.1:9"', file.read_text()))
    _, steps = world.call("github", "/user", "--as", "auth0|alice", status=1)
    assert steps["to do"].startswith("idp-middleware check tells which server")


def test_several_accounts_are_named(world: World) -> None:
    """So that one of them can be chosen."""
    world.auth0.link("auth0|alice", Identity("github", "102", access_token="gho_other"))
    _, steps = world.call("github", "/user", "--as", "auth0|alice", status=1)
    assert steps["to do"].startswith("name one of the accounts: 101, 102 (--account")
    world.call("github", "/user", "--as", "auth0|alice", "--account", "101")


def test_a_token_that_the_api_refuses(world: World) -> None:
    """Renewed once, as for any caller; then it is the user's to connect again."""
    world.api.revoke(TOKEN)
    out, steps = world.call("github", "/user", "--as", "auth0|alice")
    assert "Bad credentials" in out
    assert steps["upstream"].startswith("status 401")
    assert "connect the account again" in steps["to do"]
    world.api.accept(TOKEN)
    world.auth0.respond("/api/v2/", body={"identities": [{"connection": "github", "access_token": "gho_old"}]}, times=1)
    _, steps = world.call("github", "/user", "--as", "auth0|alice")
    assert steps["token"].startswith("was refused, and renewed once: Bearer, sha256 ")


def test_an_unknown_route_names_those_that_there_are(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, as for any other wrong argument."""
    assert main(["call", "gitlab", "/user", "--as", "auth0|alice"]) == 2
    assert capsys.readouterr().err == (
        "idp-middleware: [routes]: gitlab: there is no such route; there is github, own\n"
    )


def test_with_several_issuers_the_subjects_has_to_be_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Two issuers may both know an alice."""
    text = Path("idp.toml").read_text().replace("[authenticator]", "[[authenticator]]")
    Path("idp.toml").write_text('[[authenticator]]\ntype = "session"\n' + text)
    assert main(["call", "github", "/user", "--as", "auth0|alice"]) == 2
    assert f"--issuer: name the subject's issuer: urn:idp-middleware:session, {world.auth0.issuer}" in (
        capsys.readouterr().err
    )
    _, steps = world.call("github", "/user", "--as", "auth0|alice", "--issuer", world.auth0.issuer)
    assert steps["caller"].startswith(f"auth0|alice of {world.auth0.issuer}")


@pytest.mark.parametrize(
    ("terminal", "shown"),
    [(True, b"?]0;title?te?[1mxt\n"), (False, b"\x1b]0;title\x07te\xc2\x9b[1mxt")],
)
def test_a_terminal_is_not_steered_by_an_answer(terminal: bool, shown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences of somebody's API; a program gets every byte."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    _call.show(b"\x1b]0;title\x07te\xc2\x9b[1mxt")
    assert raw.getvalue() == shown


def test_nor_by_what_is_told_of_it(world: World) -> None:
    """A field may hold what some terminals take for the beginning of such a sequence."""

    async def api(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(b"content-type", b"text/\x9b1mplain"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    with serve(api) as server:
        file = Path("idp.toml")
        file.write_text(f'{file.read_text()}\n[routes.odd]\nupstream = "{server.url}"\nsource = "same"\n')
        _, steps = world.call("odd", "/", "--token-file", world.token_file())
    assert "text/?1mplain" in steps["upstream"]
