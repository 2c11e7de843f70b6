"""Documents, mail, meetings, customers: Dropbox, Google, HubSpot, Microsoft Graph, Notion, Zoom.

Facts of vendors' APIs, as `providers` describes them; nothing of tokens or where they come from.
"""

from __future__ import annotations

from typing import Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import TokenSourceLike
from idp_middleware.providers._route import RouteOptions, route


def google(
    *, token_source: TokenSourceLike, upstream: str = "https://www.googleapis.com", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Google's APIs under one host: Calendar (`/calendar/v3`), Drive (`/drive/v3`), userinfo (`/oauth2/v3`).

    Others have hosts of their own, and so routes of their own: `upstream="https://gmail.googleapis.com"`, people, docs,
    sheets, slides, tasks, chat.

    - Refused: 401.
    - Rate limited: 403 with a reason such as `userRateLimitExceeded`, or 429; both pass through.
    - Refresh: tokens live about an hour. Refresh tokens (`access_type=offline` and `prompt=consent` at login) stay the
      same; they end when revoked, unused for six months, or after a change of password where Gmail is among the scopes,
      and after seven days while the app's consent screen is in testing.

    Sources: https://developers.google.com/workspace/drive/api/guides/handle-errors and
    https://developers.google.com/identity/protocols/oauth2

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def microsoft_graph(
    *,
    token_source: TokenSourceLike,
    upstream: str = "https://graph.microsoft.com/v1.0",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """Microsoft Graph; `upstream` is another base URL for `/beta` and national clouds.

    - Refused: 401. With a `WWW-Authenticate` that demands claims, another token is as good as none before the user has
      signed in again: it passes through. So does 403 with `insufficient_claims`.
    - Rate limited: 429, and 503 and 509, with `Retry-After`.
    - Refresh: tokens live about an hour. A refresh brings a new refresh token and leaves the old one in force; they
      live 90 days, those of single-page apps 24 hours.

    Sources: https://learn.microsoft.com/graph/errors, https://learn.microsoft.com/graph/throttling and
    https://learn.microsoft.com/entra/identity-platform/refresh-tokens

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def dropbox(
    *, token_source: TokenSourceLike, upstream: str = "https://api.dropboxapi.com/2", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Dropbox's API, all but the contents of files: those are `dropbox_content`.

    - Refused: 401 with an `error` tagged `expired_access_token` or `invalid_access_token`. Other 401s (`missing_scope`,
      `user_suspended`) cost one useless renewal.
    - Rate limited: 429 with `Retry-After`.
    - Refresh: tokens live about four hours; refresh tokens (`token_access_type=offline` at login) stay the same.

    Sources: https://www.dropbox.com/developers/documentation/http/documentation, auth.stone in
    https://github.com/dropbox/dropbox-api-spec, https://developers.dropbox.com/oauth-guide

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def dropbox_content(
    *,
    token_source: TokenSourceLike,
    upstream: str = "https://content.dropboxapi.com/2",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """Contents of files at Dropbox, up and down; what to do is in the caller's field `Dropbox-API-Arg`.

    All else is as with `dropbox`, the token too.

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def notion(
    *, token_source: TokenSourceLike, upstream: str = "https://api.notion.com/v1", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Notion's API. A request without a `Notion-Version` is turned away; a caller's own goes before this one.

    - Refused: 401, `unauthorized`.
    - Rate limited: 429, `rate_limited`, with `Retry-After`.
    - Refresh: it brings a new access token and a new refresh token. How long either lives is not documented.

    Sources: https://developers.notion.com/reference/status-codes, https://developers.notion.com/reference/versioning
    and https://developers.notion.com/reference/refresh-a-token

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options, default_headers={"notion-version": "2025-09-03"})


def zoom(
    *, token_source: TokenSourceLike, upstream: str = "https://api.zoom.us/v2", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Zoom's REST API, which takes the token from the header only.

    - Refused: 401, `code` 124.
    - Rate limited: 429. That a `Retry-After` comes with it is not confirmed.
    - Refresh: tokens live an hour. A refresh brings a new refresh token and ends the old one; some 90 days is how long
      they are said to live.

    Sources: https://developers.zoom.us/docs/api/errors/, https://developers.zoom.us/docs/integrations/oauth/ and
    https://developers.zoom.us/blog/access-token-change-faq/

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def hubspot(
    *, token_source: TokenSourceLike, upstream: str = "https://api.hubapi.com", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """HubSpot's API.

    - Refused: 401.
    - Rate limited: 429. That a `Retry-After` comes with it is not confirmed.
    - Refresh: tokens live 30 minutes. Whether refresh tokens are replaced is not documented.

    Sources: https://developers.hubspot.com/changelog/upcoming-expiration-of-oauth-access-tokens-is-changing and
    https://developers.hubspot.com/docs/api-reference/error-handling

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)
