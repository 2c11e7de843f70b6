"""What each preset knows, row by row, and that it leaves the user the last word."""

from __future__ import annotations

import dataclasses
import tomllib
from typing import Any

import pytest

from idp_middleware import ProxyRoute, Rule, load_config, providers
from idp_middleware.errors import ConfigurationError
from idp_middleware.providers import PRESETS, RouteOptions
from tests.providers.facts import FACTS


async def some_source(caller: Any, route: Any) -> Any:
    raise AssertionError("no token is asked for here")


def encoded(fields: Any) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in fields.items()}


def test_each_preset_has_its_row() -> None:
    """The name in a file is the name in Python, and no preset is without a test."""
    assert set(PRESETS) == set(FACTS)
    for name, preset in PRESETS.items():
        assert getattr(providers, name) is preset
    assert set(providers.__all__) == {"PRESETS", "RouteOptions", *PRESETS}


@pytest.mark.parametrize("name", FACTS)
def test_a_preset_knows_its_vendors_facts(name: str) -> None:
    """A wrong base URL or a missing field is found here, not by the first user."""
    facts = FACTS[name]
    route = PRESETS[name](token_source=some_source, **facts.arguments)
    assert route.upstream == facts.upstream
    assert dict(route.fallback_headers) == encoded(facts.default)
    assert dict(route.fixed_headers) == encoded(facts.fixed)


@pytest.mark.parametrize("name", FACTS)
def test_a_presets_docstring_says_where_its_facts_are_from(name: str) -> None:
    """The next reader checks them there."""
    text = PRESETS[name].__doc__ or ""
    if name != "dropbox_content":
        assert "https://" in text
        for word in ("- Refused:", "- Rate limited:", "- Refresh:", "Source"):
            assert word in text


def test_every_option_of_a_route_passes_through_a_preset() -> None:
    """An option that a preset forgot would be an option that only some vendors have."""
    the_vendors = {"upstream", "token_source", "name", "_", "refused", "sign", "instance"}
    options = {field.name for field in dataclasses.fields(ProxyRoute) if field.init} - the_vendors
    assert set(RouteOptions.__annotations__) == options
    route = providers.github(
        token_source=some_source,
        upstream="https://github.acme.example/api/v3",
        connection="github",
        scopes={"read:github"},
        token_scopes={"repo"},
        methods=["GET"],
        rules=[Rule(paths=["/user"])],
        max_body=10,
    )
    assert (route.upstream, route.connection, route.max_body) == ("https://github.acme.example/api/v3", "github", 10)
    assert (route.scopes, route.token_scopes, route.methods) == ({"read:github"}, {"repo"}, {"GET"})
    assert len(route.rules) == 1


def test_a_field_of_the_users_replaces_the_presets_in_whatever_case() -> None:
    """Two Accept fields would be merged by the API into one that nobody asked for."""
    route = providers.github(token_source=some_source, default_headers={"Accept": "application/json"})
    assert [value for name, value in route.fallback_headers if name == b"accept"] == [b"application/json"]
    assert b"user-agent" in dict(route.fallback_headers)
    route = providers.twitch(token_source=some_source, client_id="one", headers={"Client-ID": "two", "X-A": "b"})
    assert dict(route.fixed_headers) == {b"client-id": b"two", b"x-a": b"b"}


def test_what_an_api_repeats_is_scrubbed_unless_that_is_turned_off() -> None:
    """Facebook writes the token into its links."""
    assert providers.facebook(token_source=some_source).scrub
    assert not providers.facebook(token_source=some_source, scrub=False).scrub
    assert not providers.github(token_source=some_source).scrub


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("github", {"upstream": "http://github.acme.example"}, "upstream"),
        ("linkedin", {"version": "v2"}, "version"),
        ("linkedin", {"version": "20260101"}, "version"),
        ("discord", {"user_agent": "my app"}, "user_agent"),
        ("discord", {"user_agent": "DiscordBot (https://app.example)"}, "user_agent"),
        ("facebook", {"app_secret": ""}, "app_secret"),
        ("atlassian", {"cloud_id": "1324a887"}, "product"),
        ("atlassian", {"product": "jira/../.."}, "product"),
        ("atlassian", {"product": "jira", "cloud_id": "a/b"}, "cloud_id"),
        ("atlassian", {"product": ""}, "product"),
        ("salesforce", {"upstream": "https://*.com"}, "upstream"),
        ("salesforce", {"upstream": "http://*.my.salesforce.com"}, "upstream"),
        ("salesforce", {"upstream": "https://*.*.salesforce.com"}, "upstream"),
        ("github", {"upstream": "https://*.github.com"}, "upstream"),
    ],
)
def test_what_could_not_work_is_refused_where_it_is_written(name: str, arguments: dict[str, str], key: str) -> None:
    """A preset is no way around a route's checks, and has some of its own."""
    with pytest.raises(ConfigurationError) as caught:
        PRESETS[name](token_source=some_source, **{**FACTS[name].arguments, **arguments})
    assert caught.value.key == key


def test_versions_of_linkedin() -> None:
    """Months, and corrections of them."""
    for version in ("202606", "202508.02"):
        route = providers.linkedin(token_source=some_source, version=version)
        assert dict(route.fallback_headers)[b"linkedin-version"] == version.encode()


def test_one_site_of_atlassians() -> None:
    """For a company's own app, whose users all have the same."""
    route = providers.atlassian(token_source=some_source, product="jira", cloud_id="1324a887-45db")
    assert route.upstream == "https://api.atlassian.com/ex/jira/1324a887-45db"
    assert not route.tailored


@pytest.mark.parametrize("name", FACTS)
def test_a_preset_in_a_file(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it can't do without can be written there, and its secrets only as variables."""
    arguments = FACTS[name].arguments
    lines = []
    for key, value in arguments.items():
        monkeypatch.setenv(key.upper(), value)
        lines.append(f'{key} = "{"${" + key.upper() + "}" if key.endswith("_secret") else value}"')
    text = f"""
        [authenticator]
        type = "jwt"
        issuer = "https://acme.eu.auth0.com/"
        audience = "https://api.acme.example"
        [sources.s]
        type = "static"
        value = "${{TOKEN}}"
        [routes.r]
        provider = "{name}"
        source = "s"
        token_scopes = ["some"]
        {chr(10).join(lines)}
    """
    assert tomllib.loads(text)
    monkeypatch.setenv("TOKEN", "t0ken")
    file = tmp_path / "idp.toml"
    file.write_text(text)
    route = load_config(file)["routes"]["r"]
    assert (route.upstream, route.token_scopes) == (FACTS[name].upstream, {"some"})
    for key in arguments:
        if key.endswith("_secret"):
            file.write_text(text.replace("${" + key.upper() + "}", arguments[key]))
            with pytest.raises(ConfigurationError, match="environment"):
                load_config(file)
