"""Slack, which refuses tokens with status 200.

Facts of a vendor's API, as `providers` describes them; nothing of tokens or where they come from.
"""

from __future__ import annotations

from typing import Final, Unpack

from idp_middleware._refusal import Refusal
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import TokenSourceLike
from idp_middleware.providers._route import RouteOptions, route

_REFUSED: Final = Refusal(
    told_under=frozenset({200}),
    member=("error",),
    values=frozenset({"account_inactive", "invalid_auth", "not_authed", "token_expired", "token_revoked"}),
)


def slack(
    *, token_source: TokenSourceLike, upstream: str = "https://slack.com/api", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Slack's Web API.

    - Refused: status 200 and `"ok": false` with an `error` that says so. Short answers are looked into for that, so
      none is asked for compressed.
    - Rate limited: 429 with `Retry-After`.
    - Refresh: tokens end only where the app has token rotation turned on, and then live twelve hours; a refresh ends
      the old refresh token. A user's own token comes under `authed_user` in the answer to a login.

    Sources: https://docs.slack.dev/apis/web-api/ and each method's list of errors there (such as
    https://docs.slack.dev/reference/methods/auth.test), https://docs.slack.dev/apis/web-api/rate-limits and
    https://docs.slack.dev/authentication/using-token-rotation. That errors have status 200 is what Slack's own client
    libraries count on.

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options, refused=_REFUSED)
