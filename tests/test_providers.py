"""Provider presets: one row for each vendor."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from idp_middleware import ProxyRoute, providers
from idp_middleware.errors import ConfigurationError
from idp_middleware.providers import PRESETS, RouteOptions

ROWS: dict[str, tuple[str, dict[bytes, bytes]]] = {
    "github": (
        "https://api.github.com",
        {
            b"accept": b"application/vnd.github+json",
            b"user-agent": b"idp_middleware",
            b"x-github-api-version": b"2022-11-28",
        },
    ),
}


async def some_source(caller: Any, route: Any) -> Any:
    raise AssertionError("no token is asked for here")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_knows_its_vendors_facts(name: str) -> None:
    """A wrong base URL or a missing field is found here, not by the first user."""
    route = PRESETS[name](token_source=some_source)
    upstream, fields = ROWS[name]
    assert route.upstream == upstream
    assert dict(route.fallback_headers) == fields


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_reached_by_its_own_name(name: str) -> None:
    """The name in a file is the name in Python."""
    assert getattr(providers, name) is PRESETS[name]


def test_every_option_of_a_route_passes_through_a_preset() -> None:
    """An option that a preset forgot would be an option that only some vendors have."""
    own = {"upstream", "token_source", "name", "_"}
    options = {field.name for field in dataclasses.fields(ProxyRoute) if field.init} - own
    assert set(RouteOptions.__annotations__) == options
    route = providers.github(
        token_source=some_source,
        upstream="https://github.acme.example/api/v3",
        connection="github",
        scopes={"read:github"},
        methods=["GET"],
        max_body=10,
    )
    assert (route.upstream, route.connection, route.max_body) == ("https://github.acme.example/api/v3", "github", 10)
    assert (route.scopes, route.methods) == ({"read:github"}, {"GET"})


def test_a_field_of_the_users_replaces_the_presets_in_whatever_case() -> None:
    """Two Accept fields would be merged by the API into one that nobody asked for."""
    route = providers.github(token_source=some_source, default_headers={"Accept": "application/json"})
    assert [value for name, value in route.fallback_headers if name == b"accept"] == [b"application/json"]
    assert b"user-agent" in dict(route.fallback_headers)


def test_a_preset_refuses_what_a_route_refuses() -> None:
    """A preset is no way around the checks."""
    with pytest.raises(ConfigurationError, match="https"):
        providers.github(token_source=some_source, upstream="http://github.acme.example")
