"""The page of configuration errors: each common mistake with what is really said, and that says what to do next."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from idp_middleware import load_config
from idp_middleware._explain import explain, topics
from idp_middleware.errors import ConfigurationError
from tests.pages import DOCS
from tests.test_config import AUTHENTICATOR, FILE, ROUTE, SOURCE

PAGE = DOCS / "errors" / "configuration.md"
GOOD_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
CACHE = FILE + '[cache]\nurl = "redis://127.0.0.1"\n'
STORE = FILE.replace(
    'type = "auth0-management"\ndomain = "acme.eu.auth0.com"',
    'type = "refresh-token"\nstore = "tokens.db"\ntoken_url = "https://gitlab.com/oauth/token"',
)

MISTAKES = {
    "the wrong directory": None,
    "a comma or quote too few": FILE + "methods = [GET]\n",
    "the same table twice": FILE + ROUTE,
    "no `[authenticator]`": SOURCE + ROUTE,
    "no route": AUTHENTICATOR + SOURCE,
    "`[sources]` without a name": AUTHENTICATOR + SOURCE.replace("[sources.auth0]", "[sources]") + ROUTE,
    "a misspelt table": FILE.replace("[authenticator]", "[authenticater]"),
    "a misspelt key": FILE + 'conection = "github"\n',
    "`audience` left out": FILE.replace('audience = "https://api.acme.example"', ""),
    "no `client_secret`": FILE.replace('client_secret = "${AUTH0_CLIENT_SECRET}"', ""),
    "an unknown type of source": FILE.replace('"auth0-management"', '"auth0-managment"'),
    "an unknown provider": FILE.replace('provider = "github"', 'provider = "githb"'),
    "neither provider nor upstream": FILE.replace('provider = "github"', ""),
    "a route without a source": FILE.replace('source = "auth0"', ""),
    "a source that is not there": FILE.replace('source = "auth0"', 'source = "auht0"'),
    "no `connection`": FILE.replace('connection = "github"', ""),
    "a variable that is not set": FILE.replace("${AUTH0_CLIENT_SECRET}", "${AUTH0_SECRET}"),
    "a variable that is empty": FILE.replace("${AUTH0_CLIENT_SECRET}", "${EMPTY}"),
    "a secret in the file": FILE.replace("${AUTH0_CLIENT_SECRET}", "b7f3c1"),
    "a string where a list belongs": FILE + 'methods = "GET"\n',
    "a size in words": FILE + 'max_body = "lots"\n',
    "a method in lower case": FILE + 'methods = ["get"]\n',
    "a path without its slash": FILE + 'paths = ["user"]\n',
    "an `http://` upstream": FILE + 'upstream = "http://api.acme.example"\n',
    "an issuer that is no URL": FILE.replace("https://acme.eu.auth0.com/", "acme.eu.auth0.com"),
    "a domain that is a URL": FILE.replace('domain = "', 'domain = "https://'),
    "a prefix without its slash": 'prefix = "idp"\n' + FILE,
    "a route with a name of ours": FILE.replace("[routes.github]", "[routes.health]"),
    "a field that is ours to write": FILE + 'headers = { Authorization = "token" }\n',
    "a key that is no Fernet key": CACHE + 'encryption_keys = ["${NO_KEY}"]\n',
    "a cache without keys": CACHE,
    "a cache that is no URL": CACHE.replace("redis://", "") + 'encryption_keys = ["${IDP_KEY}"]\n',
    "a store without keys": STORE,
    "a rule that denies all": FILE + "[[routes.github.rules]]\ndeny = true\n",
    "rules that only deny": FILE + '[[routes.github.rules]]\ndeny = true\npaths = ["/admin/**"]\n',
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTH0_SECRET", raising=False)
    for name, value in {
        "AUTH0_CLIENT_ID": "the-client",
        "AUTH0_CLIENT_SECRET": "s3cr3t-of-the-client",
        "EMPTY": "",
        "NO_KEY": "a-password-of-our-own",
        "IDP_KEY": GOOD_KEY,
    }.items():
        monkeypatch.setenv(name, value)


def error(text: str | None) -> ConfigurationError:
    if text is not None:
        Path("idp.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config("idp.toml")
    return caught.value


def said(text: str | None) -> str:
    return str(error(text))


def rows(text: str | None = None) -> dict[str, str]:
    """Mistake → message, as the page has them."""
    return dict(re.findall(r"^\| ([^|]+) \| ``? ?(.*?) ?``? \|$", text or PAGE.read_text(), re.M))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_page_has_what_is_said(mistake: str) -> None:
    """Whoever looks a message up finds it, word for word, up to the pointer that is the same for all of a section."""
    exc = error(MISTAKES[mistake])
    assert str(exc) == f"{rows()[mistake]} (idp-middleware explain {exc.topic})", mistake


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_message_points_to_speaks_of_it(mistake: str) -> None:
    """The topic is there, with the message among its own; and it says what a key is that the file may have."""
    exc = error(MISTAKES[mistake])
    told = explain(exc.topic, width=10_000)
    assert f"{mistake.replace('`', '')}\n    {rows()[mistake]}" in told.replace("`", "")
    if exc.key not in (None, "conection", "authenticater", "health", "type"):
        of_types = [explain(topic, width=100) for topic in topics()[2] if topic.startswith(f"{exc.topic}.")]
        assert any(re.search(rf"^    {exc.key}: |`{exc.key}`", text, re.M) for text in [told, *of_types]), exc.key


def test_the_page_has_no_other() -> None:
    """A row without a file that brings it about would be made up."""
    assert rows().keys() == MISTAKES.keys()
    assert len(MISTAKES) >= 10


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_message_says_what_to_do_next(mistake: str) -> None:
    """Not only what is wrong: an example, a choice, a name that was meant, or the thing to do."""
    next_step = r"""
        did\ you\ mean | there\ is\ [a-z0-9-]+, | such\ as\ | ,\ say | \b(?:add|write|writes|set|keep|give|put|leave)\b
        | must\ (?:be|have|start|hold)\b | \(they\ are | as\ cryptography | makes\ one | names\ a | needs\ \w+\ =
        | line\ \d+: | the\ tables\ are | begins\ with
    """
    assert re.search(next_step, said(MISTAKES[mistake]), re.X), said(MISTAKES[mistake])
