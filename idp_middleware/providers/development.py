"""Where code and its tickets are kept: Atlassian, Bitbucket, GitHub, GitLab.

Facts of vendors' APIs, as `providers` describes them; nothing of tokens or where they come from.
"""

from __future__ import annotations

import re
from typing import Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Token, TokenSourceLike
from idp_middleware.errors import ConfigurationError, TokenSourceFailed
from idp_middleware.providers._route import RouteOptions, route

_SEGMENT = re.compile(r"[A-Za-z0-9-]{1,64}")


def github(
    *, token_source: TokenSourceLike, upstream: str = "https://api.github.com", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """GitHub's REST and GraphQL API, with the user tokens of OAuth apps and of GitHub Apps.

    `upstream` is another base URL for GitHub Enterprise Server (`https://HOST/api/v3`).

    A request without a `User-Agent` is turned away. The version is the one GitHub assumes where a request names none,
    so that naming it changes nothing until GitHub moves on. A caller's own `Accept` or version goes before these.

    - Refused: 401.
    - Rate limited: 403 or 429, with `x-ratelimit-remaining: 0` or `retry-after`; both pass through.
    - Refresh: OAuth apps' tokens have no refresh token, and no expiry that GitHub documents. Those of GitHub Apps live
      eight hours; their refresh tokens live six months and work once, and using one ends the old access token too. A
      refused refresh is an answer with status 200 and an `error`.

    Sources: https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api,
    https://docs.github.com/en/rest/about-the-rest-api/api-versions,
    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api and
    https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/refreshing-user-access-tokens

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    facts = {
        "accept": "application/vnd.github+json",
        "user-agent": "idp_middleware",
        "x-github-api-version": "2022-11-28",
    }
    return route(upstream, token_source, options, default_headers=facts)


def gitlab(
    *, token_source: TokenSourceLike, upstream: str = "https://gitlab.com/api/v4", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """GitLab's REST API; with another `upstream` that of one's own GitLab (`https://HOST/api/v4`).

    - Refused: 401.
    - Rate limited: 429. That a `Retry-After` comes with it is not confirmed.
    - Refresh: tokens live two hours. A refresh ends both old tokens, and its request needs the `redirect_uri` of the
      login.

    Sources: https://docs.gitlab.com/api/rest/troubleshooting/ and https://docs.gitlab.com/api/oauth2/

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def bitbucket(
    *, token_source: TokenSourceLike, upstream: str = "https://api.bitbucket.org/2.0", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Bitbucket Cloud's REST API.

    - Refused: 401 with the message "Access token expired.". Since May 2026 the token is taken from the header only.
    - Rate limited: 429. That a `Retry-After` comes with it is not confirmed.
    - Refresh: tokens live two hours. Refresh tokens are replaced at each use since May 2026, and end after three months
      without one.

    Sources: https://community.developer.atlassian.com/t/99003 and
    https://support.atlassian.com/bitbucket-cloud/docs/api-request-limits/

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def atlassian(
    *,
    token_source: TokenSourceLike,
    product: str | None = None,
    cloud_id: str | None = None,
    upstream: str = "https://api.atlassian.com",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """Atlassian Cloud's gateway (OAuth 2.0, "3LO"), where each site has a cloud id.

    By itself it is the gateway as a whole: callers ask `/oauth/token/accessible-resources` which sites the token is for
    and write `/ex/jira/{cloudid}/…`, as in Atlassian's documentation. With a `product` ("jira", "confluence") the route
    is that product at one site, `cloud_id`; or without that, at the site of each user's token, whose `extra` has it as
    `cloud_id` (an app's token store keeps it).

    - Refused: 401.
    - Rate limited: 429, mostly with `Retry-After`.
    - Refresh: tokens live an hour; refresh tokens (scope `offline_access`) are replaced at each use. A refused refresh
      often has status 403.

    Sources: https://developer.atlassian.com/cloud/oauth/getting-started/making-calls-to-api/ and
    https://developer.atlassian.com/cloud/jira/platform/rate-limiting/

    Raises:
        ConfigurationError: as `ProxyRoute`; and for a `product` or `cloud_id` that is no segment of a path.
    """
    for name, value in (("product", product), ("cloud_id", cloud_id)):
        if value is not None and not _SEGMENT.fullmatch(value):
            raise ConfigurationError("must be letters, digits and hyphens", key=name)
    if product is None:
        if cloud_id is not None:
            raise ConfigurationError("needs to be known, such as jira, to lead to one site", key="product")
        return route(upstream, token_source, options)
    base = f"{upstream.rstrip('/')}/ex/{product}"
    if cloud_id is not None:
        return route(f"{base}/{cloud_id}", token_source, options)

    def instance(token: Token) -> str:
        site = token.extra.get("cloud_id")
        if not isinstance(site, str) or not _SEGMENT.fullmatch(site):
            raise TokenSourceFailed("the token came without the cloud_id of a site")
        return f"{base}/{site}"

    return route(base, token_source, options, instance=instance)
