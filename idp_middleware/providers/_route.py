"""What all presets share: a `ProxyRoute` of the vendor's facts and the user's options.

Knows which of a route's options are the user's to set, and that the user's word goes before the vendor's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypedDict

from idp_middleware._refusal import UNAUTHORIZED, Refusal
from idp_middleware._routes import ProxyRoute
from idp_middleware._rules import Authorize, Rule
from idp_middleware._signing import Instance, Sign
from idp_middleware._types import Timeout, TokenSourceLike


class RouteOptions(TypedDict, total=False):
    """What every preset hands on to `ProxyRoute`, where it is described."""

    connection: str | None
    scopes: Collection[str]
    token_scopes: Collection[str]
    methods: Collection[str]
    paths: Collection[str] | None
    rules: Collection[Rule]
    authorize: Authorize | None
    headers: Mapping[str, str]
    default_headers: Mapping[str, str]
    timeout: Timeout
    max_body: int | None
    max_concurrent: int | None
    max_concurrent_per_caller: int | None
    cookies: Collection[str]
    forwarded: bool
    websocket: bool
    websocket_bearer: bool
    rewrite_bodies: bool
    scrub: bool
    allow_set_cookie: bool
    allow_insecure: bool


def route(
    upstream: str,
    token_source: TokenSourceLike,
    options: RouteOptions,
    *,
    headers: Mapping[str, str] | None = None,
    default_headers: Mapping[str, str] | None = None,
    refused: Refusal = UNAUTHORIZED,
    sign: Sign | None = None,
    instance: Instance | None = None,
) -> ProxyRoute:
    """A route with a vendor's facts under the user's options. Raises `ConfigurationError` as `ProxyRoute`."""
    merged = options.copy()
    merged["headers"] = _over(headers, options.get("headers"))
    merged["default_headers"] = _over(default_headers, options.get("default_headers"))
    return ProxyRoute(upstream, token_source=token_source, refused=refused, sign=sign, instance=instance, **merged)


def _over(facts: Mapping[str, str] | None, given: Mapping[str, str] | None) -> dict[str, str]:
    # The same field under two spellings would go out twice.
    return {**(facts or {}), **{name.lower(): value for name, value in (given or {}).items()}}
