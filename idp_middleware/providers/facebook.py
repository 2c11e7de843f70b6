"""Facebook's Graph API, which takes a proof with each token, refuses in words, and repeats tokens in its answers.

Facts of a vendor's API, as `providers` describes them; nothing of how tokens are obtained.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, Unpack
from urllib.parse import unquote_plus

from idp_middleware._refusal import Refusal
from idp_middleware._routes import ProxyRoute
from idp_middleware._signing import Signed, Unsigned
from idp_middleware._types import Token, TokenSourceLike
from idp_middleware.errors import ConfigurationError
from idp_middleware.providers._route import RouteOptions, route

_REFUSED: Final = Refusal(told_under=frozenset({400}), member=("error", "code"), values=frozenset({102, 190}))

_OURS: Final = frozenset({"access_token", "appsecret_proof"})
"""Parameters that say who is asking, which is not for callers to say."""


def facebook(
    *,
    token_source: TokenSourceLike,
    app_secret: str | None = None,
    upstream: str = "https://graph.facebook.com/v25.0",
    **options: Unpack[RouteOptions],
) -> ProxyRoute:
    """Facebook's Graph API.

    With the `app_secret` each request proves that the token is used by its own app (`appsecret_proof`: HMAC-SHA256 of
    the token, in hexadecimal); turn on "Require App Secret" and a stolen token is of no use. The token goes in
    `Authorization`, of which Facebook's pages speak for WhatsApp on the same host; elsewhere they show a parameter
    `access_token`. That and a proof of the caller's own are taken out of the query.

    Links to further pages in answers hold the token. So answers are scrubbed (`scrub`), unless that is turned off, and
    following such a link under the prefix works. `/me/accounts` answers with other tokens, those of the user's pages:
    deny it with `rules` where callers must not have them.

    - Refused: 400 or 401 with the `code` 190 or 102. That it is one or the other status is not documented. Short
      answers are looked into for that.
    - Rate limited: the codes 4, 17, 32 and 613; they pass through. Their status is not documented.
    - Refresh: there are no refresh tokens. A long-lived token ends after about 60 days, and the user logs in again.

    Sources: https://developers.facebook.com/docs/graph-api/guides/secure-requests,
    https://developers.facebook.com/docs/graph-api/guides/error-handling,
    https://developers.facebook.com/docs/graph-api/overview/rate-limiting and
    https://developers.facebook.com/docs/facebook-login/guides/access-tokens/get-long-lived

    Raises:
        ConfigurationError: as `ProxyRoute`; and for an `app_secret` that is empty.
    """
    if app_secret == "":
        raise ConfigurationError("is empty", key="app_secret")
    key = None if app_secret is None else app_secret.encode()

    async def sign(token: Token, request: Unsigned) -> Signed:
        path, _, query = request.target.partition(b"?")
        parameters = [part for part in query.split(b"&") if part and _name(part) not in _OURS]
        if key is not None:
            proof = hmac.new(key, token.value.encode(), hashlib.sha256).hexdigest()
            parameters.append(f"appsecret_proof={proof}".encode())
        return Signed(token.authorization, b"?".join(filter(None, (path, b"&".join(parameters)))))

    scrubbed: RouteOptions = {"scrub": True, **options}
    return route(upstream, token_source, scrubbed, refused=_REFUSED, sign=sign)


def _name(parameter: bytes) -> str:
    # As PHP reads them, which Facebook's servers descend from: a dot or a space in a name is an underscore there.
    return unquote_plus(parameter.partition(b"=")[0].decode("latin-1")).lstrip().replace(".", "_").replace(" ", "_")
