"""X (Twitter), with OAuth 2.0 and with OAuth 1.0a.

Facts of a vendor's API, as `providers` describes them; nothing of how tokens are obtained. The only module that imports
oauthlib, which the extra `oauth1` brings.
"""

from __future__ import annotations

from typing import Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._signing import Signed, Unsigned
from idp_middleware._types import Token, TokenSourceLike
from idp_middleware.errors import BadRequest, ConfigurationError, TokenSourceFailed
from idp_middleware.providers._route import RouteOptions, route


def x(
    *, token_source: TokenSourceLike, upstream: str = "https://api.x.com/2", **options: Unpack[RouteOptions]
) -> ProxyRoute:
    """X's API v2, with OAuth 2.0 tokens of users.

    - Refused: 401.
    - Rate limited: 429 with `x-rate-limit-reset`.
    - Refresh: tokens live two hours. Refresh tokens come with the scope `offline.access` only, and are replaced at each
      use. Confidential clients authenticate with Basic (`client_auth`).

    Sources: https://docs.x.com/x-api/fundamentals/response-codes-and-errors,
    https://docs.x.com/x-api/fundamentals/rate-limits,
    https://docs.x.com/fundamentals/authentication/oauth-2-0/authorization-code and https://docs.x.com/x-ads-api/mcp
    (for the replacing)

    Raises:
        ConfigurationError: as `ProxyRoute`.
    """
    return route(upstream, token_source, options)


def x_oauth1(
    *,
    token_source: TokenSourceLike,
    consumer_key: str,
    consumer_secret: str,
    upstream: str = "https://api.x.com",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """X's API, `/2` and `/1.1`, with OAuth 1.0a: requests are signed (HMAC-SHA1) with the app's and the user's secret.

    `consumer_key` and `consumer_secret` are the app's own, as X's developer portal shows them.

    A token needs its `access_token_secret` in `extra`: Auth0 has it in the profile, an app's token store in what the
    app put. The parameters of a query and of a form are signed, so a form of more than 64 KiB is refused; JSON and
    files are not signed. Needs the extra `oauth1`.

    - Refused: 401.
    - Rate limited: 429 with `x-rate-limit-reset`.
    - Refresh: none is needed; tokens serve until the user or X withdraws them.

    Sources: https://docs.x.com/fundamentals/authentication/oauth-1-0a/creating-a-signature (RFC 5849),
    https://docs.x.com/fundamentals/authentication/oauth-1-0a/authorizing-a-request and
    https://docs.x.com/fundamentals/authentication/faq

    Raises:
        ConfigurationError: as `ProxyRoute`; and where the extra is not installed.
    """
    try:
        from oauthlib.common import generate_nonce, generate_timestamp, urldecode
        from oauthlib.oauth1 import Client
        from oauthlib.oauth1.rfc5849 import parameters, signature
    except ImportError:
        raise ConfigurationError("needs the extra: pip install 'idp-middleware[oauth1]'", key="provider") from None

    async def sign(token: Token, request: Unsigned) -> Signed:
        secret = token.extra.get("access_token_secret")
        if not isinstance(secret, str):
            raise TokenSourceFailed("the token came without the access_token_secret that requests are signed with")
        form = await request.form() or b""
        try:
            given = [
                pair for part in (request.target.partition(b"?")[2], form) for pair in urldecode(part.decode("ascii"))
            ]
        except ValueError:
            raise BadRequest("parameters that can't be signed") from None
        if any(name.startswith("oauth_") for name, _ in given):
            raise BadRequest("parameters of OAuth's own")
        own = [
            ("oauth_consumer_key", consumer_key),
            ("oauth_nonce", generate_nonce()),
            ("oauth_signature_method", "HMAC-SHA1"),
            ("oauth_timestamp", generate_timestamp()),
            ("oauth_token", token.value),
            ("oauth_version", "1.0"),
        ]
        # Its parts, since `Client.sign` logs the token.
        text = signature.signature_base_string(
            request.method,
            signature.base_string_uri(request.url),
            signature.normalize_parameters([*given, *own]),
        )
        secrets = Client(consumer_key, client_secret=consumer_secret, resource_owner_secret=secret)
        own.append(("oauth_signature", signature.sign_hmac_sha1_with_client(text, secrets)))
        return Signed(parameters.prepare_headers(own)["Authorization"].encode(), request.target)

    return route(upstream, token_source, options, sign=sign)
