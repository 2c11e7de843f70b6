"""`idp-middleware init`: what it writes loads, and says where each value comes from."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from idp_middleware import IdPMiddleware, load_config
from idp_middleware._cli import main
from idp_middleware._init import _PLANS, draft
from idp_middleware.config import SOURCES
from idp_middleware.providers import PRESETS

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
VALUES = {"URL": "https://sso.acme.example/x", "DOMAIN": "acme.eu.auth0.com", "ISSUER": "https://sso.acme.example/"}
VALUES |= {"AGENT": "DiscordBot (https://acme.example, 1)", "VERSION": "202606"}
FEW = [["github"], ["google", "slack", "microsoft_graph"], ["x_oauth1", "twitch", "facebook", "salesforce"]]


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def set_variables(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """All that the file names, each with a value of its kind."""
    for name in re.findall(r"^[^#\n]*?\$\{(\w+)\}", text, re.M):
        ending = name.rpartition("_")[2]
        value = {"KEYS": KEY, "STORE": "tokens.db"}.get(ending) or VALUES.get(ending, "a-value")
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("providers", FEW, ids=lambda each: each[0])
@pytest.mark.parametrize("source", SOURCES)
def test_what_it_writes_loads_once_its_variables_are_set(
    source: str, providers: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For every source; every variable is named in the next steps, with what it is for."""
    arguments = [argument for each in providers for argument in ("--provider", each)]
    assert main(["init", "--source", source, *arguments]) == 0
    said = capsys.readouterr().out
    text = Path("idp.toml").read_text()
    set_variables(monkeypatch, text)
    config = load_config("idp.toml")
    IdPMiddleware(**config)
    assert list(config["routes"]) == providers
    for name in re.findall(r"^[^#\n]*?\$\{(\w+)\}", text, re.M):
        assert f"export {name}=" in said
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("provider", PRESETS)
def test_every_preset_can_be_asked_for(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a preset needs besides becomes a variable too."""
    text = draft("auth0-management", [provider]).text
    Path("idp.toml").write_text(text)
    set_variables(monkeypatch, text)
    assert list(load_config("idp.toml")["routes"]) == [provider]


def test_every_source_has_a_plan() -> None:
    """A new one is noticed here."""
    assert _PLANS.keys() == SOURCES.keys()


def test_comments_are_what_the_code_says() -> None:
    """So that they can't drift."""
    made = draft("auth0-management", ["github"])
    assert "read:user_idp_tokens" in made.text
    assert "# of the machine-to-machine application." in made.text.replace("client_id: ", "")
    assert made.variables["AUTH0_DOMAIN"] == "domain: the tenant, such as `acme.eu.auth0.com`."
    assert '# algorithms = ["RS256"]' in made.text
    assert 'connection = "google-oauth2"' in draft("auth0-token-vault", ["google"]).text


def test_the_next_steps_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """From the file to a call."""
    assert main(["init", "--source", "auth0-management", "--provider", "github", "--output", "my.toml"]) == 0
    said = capsys.readouterr().out
    assert "my.toml is written." in said
    assert "read:user_idp_tokens" in said
    assert "idp-middleware check my.toml\n" in said
    assert "idp-middleware call github / --as SUBJECT --config my.toml\n" in said


def test_a_file_that_is_there_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody's work, unless they say so."""
    Path("idp.toml").write_text("mine")
    arguments = ["init", "--source", "static", "--provider", "github"]
    assert main(arguments) == 1
    assert "is there already; --force writes over it" in capsys.readouterr().err
    assert Path("idp.toml").read_text() == "mine"
    assert main([*arguments, "--force"]) == 0
    assert "[routes.github]" in Path("idp.toml").read_text()


def test_a_place_that_cannot_be_written_to_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """No such folder, say."""
    assert main(["init", "--source", "static", "--provider", "github", "--output", "no/such/idp.toml"]) == 1
    assert capsys.readouterr().err == "idp-middleware: cannot write no/such/idp.toml: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--source: is needed; there is auth0-management, "),
        (["--source", "static"], "--provider: is needed; there is atlassian, "),
        (["--source", "auth0", "--provider", "github"], "--source: there is no 'auth0'; there is auth0-management"),
        (["--source", "static", "--provider", "gitea"], "--provider: there is no 'gitea'; there is atlassian"),
    ],
)
def test_without_a_terminal_arguments_are_needed(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that waits for an answer waits for ever."""
    assert main(["init", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("idp.toml").exists()


@pytest.mark.parametrize(("answers", "status"), [(["static", "github slack"], 0), ([""], 2), ([None], 2)])
def test_a_terminal_is_asked(answers: list[str | None], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what the arguments leave open."""
    for stream in ("stdin", "stdout"):
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, stream, terminal)

    def answer(prompt: str) -> str:
        given = answers.pop(0)
        if given is None:
            raise EOFError
        return given

    monkeypatch.setattr("builtins.input", answer)
    assert main(["init"]) == status
    assert Path("idp.toml").exists() is (status == 0)
