"""`idp-middleware explain`: what an error points to is there, and can be read on a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.reference import problems
from idp_middleware import ProxyRoute, load_config
from idp_middleware._cli import main
from idp_middleware._explain import topics
from idp_middleware._meanings import keys
from idp_middleware.errors import ConfigurationError
from tests.pages import DOCS

NAMES = [problem.name for problem in problems()]
ALL = [topic for kind in topics() for topic in kind]


def explained(capsys: pytest.CaptureFixture[str], *topic: str) -> str:
    assert main(["explain", *topic]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_each_problem_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name, and by the `type` that an answer has: nobody should have to take it apart."""
    told = explained(capsys, name)
    assert told == explained(capsys, f"urn:idp-middleware:problem:{name}")
    assert told.startswith(f"{name}\n")
    # Its words are those of the page, all of them.
    page = (DOCS / "errors" / f"{name}.md").read_text()
    prose = re.sub(r"```.*?```|\]\([^)]*\)|^#.*$|^\|[-|]+$", " ", page, flags=re.M | re.S)
    assert set(re.findall(r"\w{5,}", prose)) <= set(re.findall(r"\w{5,}", told))


@pytest.mark.parametrize("topic", ALL)
def test_a_topic_can_be_read_on_a_terminal(
    topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lines that fit, without what only a browser makes sense of."""
    monkeypatch.setenv("COLUMNS", "70")
    told = explained(capsys, topic)
    assert len(told.splitlines()) > 2
    # What can't be broken is left whole: URLs, commands, answers.
    assert all(len(line) <= 70 or line.startswith("    ") for line in told.splitlines())
    assert not re.search(r"\]\(|```|<!--|^\||\*\*[^`*]+\*\*", told, re.M)


def test_without_a_topic_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Who does not know what there is begins here; and nothing is left out."""
    words = set(re.findall(r"[\w.-]+", explained(capsys)))
    assert set(ALL) <= words
    assert set(topics()[0]) == set(NAMES)
    assert {"configuration", "authenticator", "sources", "routes", "rules", "cache"} <= set(topics()[1])


def test_a_table_is_explained_with_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """As a message has it, too: `[routes.github]` is what can be copied."""
    told = explained(capsys, "routes")
    assert told == explained(capsys, "[routes.github]")
    for key in keys(ProxyRoute):
        assert (f"    {key.name}: " in told) == (key.name != "name")
    assert "consumer_secret: a string; has to be there; from the environment" in told
    assert "upstream: a string; has to be there unless a provider knows it" in told
    assert "It has no keys." in explained(capsys, "sources.pass-through")
    assert "domain: " in explained(capsys, "sources.auth0-management")


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("identity-not-link", "did you mean 'identity-not-linked'?"),
        ("auth0-management", "did you mean 'sources.auth0-management'?"),
        ("xyzzy", "without a topic, explain lists them"),
    ],
)
def test_an_unknown_topic_is_a_wrong_argument(topic: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and what may have been meant."""
    assert main(["explain", topic]) == 2
    assert capsys.readouterr().err == f"idp-middleware: there is no topic {topic!r}; {hint}\n"


def test_each_table_of_the_file_is_a_topic(tmp_path: Path) -> None:
    """The file's reader knows which there are: a new one needs its section, or its mistakes point to nothing."""
    (tmp_path / "idp.toml").write_text("zzz = 1")
    with pytest.raises(ConfigurationError, match="there is no such key") as caught:
        load_config(tmp_path / "idp.toml")
    known = set(caught.value.message.partition("; there is ")[2].split(", "))
    assert known - set(topics()[1]) == {"prefix", "access_log", "audit_log", "metrics"}


@pytest.mark.parametrize(
    ("table", "topic"),
    [
        (None, "configuration"),
        ("authenticator #2", "authenticator"),
        ("routes", "routes"),
        ("routes.rules", "routes"),
        ("routes.a.timeout", "routes"),
        ("routes.a.rules #1", "rules"),
        ('routes."a.b".rules #12', "rules"),
        ("sources.auth0.refresh #1", "sources"),
    ],
)
def test_an_error_of_a_file_names_its_topic(table: str | None, topic: str) -> None:
    """One that knows no file was made in Python, where the traceback says more than a page."""
    assert str(ConfigurationError("no", table=table, file="idp.toml")).endswith(
        f": no (idp-middleware explain {topic})"
    )
    assert "explain" not in str(ConfigurationError("no", table=table))
    assert topic in topics()[1]
