"""People, music, games: Discord, LinkedIn, Spotify, Twitch.

Facts of vendors' APIs, as `providers` describes them; nothing of tokens or where they come from.
"""

from __future__ import annotations

import re
from typing import Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import TokenSourceLike
from idp_middleware.errors import ConfigurationError
from idp_middleware.providers._route import RouteOptions, route


def linkedin(
    *,
    token_source: TokenSourceLike,
    version: str,
    upstream: str = "https://api.linkedin.com/rest",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """LinkedIn's versioned API. What has no version, such as `/v2/userinfo`, needs another `upstream`.

    `version` (`YYYYMM`) has no default: LinkedIn assumes none either, and withdraws each after a year or two. A
    caller's own goes before it.

    - Refused: 401.
    - Rate limited: 429; limits are per day.
    - Refresh: tokens live 60 days. Refresh tokens are for partners LinkedIn has approved; they end 365 days after the
      login, however often they are used.

    Sources: https://learn.microsoft.com/linkedin/marketing/versioning,
    https://learn.microsoft.com/linkedin/shared/api-guide/concepts/protocol-version,
    https://learn.microsoft.com/linkedin/shared/api-guide/concepts/error-handling and
    https://learn.microsoft.com/linkedin/shared/authentication/programmatic-refresh-tokens

    Raises:
        ConfigurationError: as `ProxyRoute`; and for what is no version.
    """
    if not re.fullmatch(r"[0-9]{6}(\.[0-9]{2})?", version):
        raise ConfigurationError("must be a year and a month, such as 202606", key="version")
    facts = {"linkedin-version": version, "x-restli-protocol-version": "2.0.0"}
    return route(upstream, token_source, options, default_headers=facts)


def discord(
    *,
    token_source: TokenSourceLike,
    user_agent: str,
    upstream: str = "https://discord.com/api/v10",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """Discord's API, with users' tokens; without a version in the URL it would be a deprecated one.

    `user_agent` says who you are, in Discord's form: `DiscordBot (https://app.example, 1.0)`. A request that has
    another may be blocked, a browser's too, so callers' own are replaced.

    - Refused: 401. Too many of those, 403s and 429s have the address blocked: 10,000 in ten minutes.
    - Rate limited: 429 with `Retry-After`.
    - Refresh: tokens live seven days. Whether refresh tokens are replaced is not documented.

    Sources: https://docs.discord.com/developers/reference, https://docs.discord.com/developers/topics/oauth2 and
    https://docs.discord.com/developers/topics/rate-limits

    Raises:
        ConfigurationError: as `ProxyRoute`; and for a `user_agent` in another form.
    """
    if not re.fullmatch(r"DiscordBot \([^ ,()]+, [^ ,()]+\)[ -~]*", user_agent):
        raise ConfigurationError("must be DiscordBot (URL, VERSION)", key="user_agent")
    return route(upstream, token_source, options, headers={"user-agent": user_agent})


def spotify(
    *, token_source: TokenSourceLike, upstream: str = "https://api.spotify.com/v1", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Spotify's Web API.

    - Refused: 401.
    - Rate limited: 429, mostly with `Retry-After`.
    - Refresh: tokens live an hour. A refresh token may be absent from the answer, and then stays the same; six months
      after the user's consent it ends, however often it is used.

    Sources: https://developer.spotify.com/documentation/web-api/concepts/api-calls,
    https://developer.spotify.com/documentation/web-api/concepts/rate-limits and
    https://developer.spotify.com/blog/2026-06-18-refresh-token-expiration

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def twitch(
    *,
    token_source: TokenSourceLike,
    client_id: str,
    upstream: str = "https://api.twitch.tv/helix",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """Twitch's API. `client_id` is that of the app whose tokens they are: each request has to name it.

    - Refused: 401. A 401 for a missing scope costs one useless renewal.
    - Rate limited: 429 with `Ratelimit-Reset`.
    - Refresh: when refused, rather than by time; a refresh may bring a new refresh token. Apps have to validate their
      tokens once an hour (`https://id.twitch.tv/oauth2/validate`), which nobody does here.

    Sources: https://dev.twitch.tv/docs/api/guide/, https://dev.twitch.tv/docs/authentication/refresh-tokens/ and
    https://dev.twitch.tv/docs/authentication/validate-tokens/

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options, headers={"client-id": client_id})
