"""Salesforce, where each customer has a server.

Facts of a vendor's API, as `providers` describes them; nothing of how tokens are obtained.
"""

from __future__ import annotations

from typing import Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Token, TokenSourceLike
from idp_middleware.errors import TokenSourceFailed
from idp_middleware.providers._route import RouteOptions, route


def salesforce(
    *, token_source: TokenSourceLike, upstream: str = "https://*.my.salesforce.com", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """Salesforce's REST API at the server that a token is for: its `instance_url`, which came with it.

    `upstream` says where that may be; a token for any other place is not sent. Sandboxes are under the default too
    (`https://acme--test.sandbox.my.salesforce.com`). An app that keeps tokens in a store puts `instance_url` into
    `extra`; most token sources keep it by themselves.

    - Refused: 401 with the `errorCode` INVALID_SESSION_ID.
    - Rate limited: 403 with REQUEST_LIMIT_EXCEEDED; it passes through.
    - Refresh: answers have no `expires_in`, so that a refusal is the first to tell. Whether refresh tokens are replaced
      is a setting of the app.

    Sources: https://developer.salesforce.com/docs/platform/api-rest/guide/errorcodes and
    https://help.salesforce.com/s/articleView?id=xcloud.remoteaccess_oauth_refresh_token_flow.htm

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options, instance=_instance)


def _instance(token: Token) -> str:
    url = token.extra.get("instance_url")
    if not isinstance(url, str):
        raise TokenSourceFailed("the token came without its instance_url")
    return url
