"""Provider presets: the facts of one vendor's API each, as a function that returns a `ProxyRoute`.

A preset knows the base URL and what the API wants to see on every request. It knows nothing of users, tokens or how
they are obtained: one preset serves any token source. To add one: a function here with the vendor's page in its
docstring, its name in `PRESETS`, a row in `tests/test_providers.py` and one in the README.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TypedDict, Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._rules import Authorize, Rule
from idp_middleware._types import Timeout, TokenSourceLike

__all__ = ["PRESETS", "RouteOptions", "github"]


class RouteOptions(TypedDict, total=False):
    """What every preset hands on to `ProxyRoute`, where it is described."""

    connection: str | None
    scopes: Collection[str]
    methods: Collection[str]
    paths: Collection[str] | None
    rules: Collection[Rule]
    authorize: Authorize | None
    headers: Mapping[str, str]
    default_headers: Mapping[str, str]
    timeout: Timeout
    max_body: int | None
    cookies: Collection[str]
    forwarded: bool
    rewrite_bodies: bool
    scrub: bool
    allow_set_cookie: bool
    allow_insecure: bool


def github(
    *, token_source: TokenSourceLike, upstream: str = "https://api.github.com", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """GitHub's REST and GraphQL API.

    `upstream` is another base URL for GitHub Enterprise Server (`https://HOST/api/v3`).

    A request without a `User-Agent` is turned away. The version is the one GitHub assumes where a request names none,
    so that naming it changes nothing until GitHub moves on. A caller's own `Accept` or version goes before these.

    Source: https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api and
    https://docs.github.com/en/rest/about-the-rest-api/api-versions

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return _route(
        upstream,
        token_source,
        options,
        {
            "accept": "application/vnd.github+json",
            "user-agent": "idp_middleware",
            "x-github-api-version": "2022-11-28",
        },
    )


PRESETS: Mapping[str, Callable[..., ProxyRoute]] = MappingProxyType({preset.__name__: preset for preset in (github,)})
"""What `provider = "…"` in a configuration file may say."""


def _route(
    upstream: str, token_source: TokenSourceLike, options: RouteOptions, default_headers: Mapping[str, str]
) -> ProxyRoute:
    merged = options.copy()
    # The same field under two spellings would go out twice.
    given = {name.lower(): value for name, value in options.get("default_headers", {}).items()}
    merged["default_headers"] = {**default_headers, **given}
    return ProxyRoute(upstream, token_source=token_source, **merged)
