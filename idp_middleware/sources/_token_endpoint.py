"""The one place that POSTs to a token endpoint and reads the answer (RFC 6749 sections 5.1 and 5.2).

Knows what an answer says, not what a grant is about: a source that needs more than the access token reads it from the
answer, and one that sent a user's grant turns `GrantRefused` with the code "invalid_grant" into `ReconnectRequired`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from idp_middleware._idp_http import IdPClient
from idp_middleware._types import Token
from idp_middleware.errors import TokenSourceFailed, TokenSourceUnavailable

MAX_LIFE: Final = 365 * 24 * 3600.0
"""Seconds; what claims to live longer is believed no further."""

_SECRET_FIELDS = frozenset(
    {"client_secret", "client_assertion", "assertion", "subject_token", "actor_token", "refresh_token", "token", "code"}
)


class GrantRefused(TokenSourceFailed):
    """The token endpoint said no; `code` is its `error` (RFC 6749 section 5.2 has the standard ones)."""

    def __init__(self, message: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


async def request_grant(
    client: IdPClient, url: str, fields: Mapping[str, str], *, as_json: bool = False
) -> dict[str, Any]:
    """The JSON of a successful answer.

    Sends a form as the RFC has it, or JSON where a vendor documents that.

    Raises:
        GrantRefused: an error answer, HTTP 200 with an `error` included (GitHub).
        TokenSourceUnavailable: unreachable, rate limited, or a server error.
        TokenSourceTimeout: no answer in time.
        TokenSourceFailed: not an answer of a token endpoint.
    """
    answer = await client.request("POST", url, **({"json": dict(fields)} if as_json else {"form": fields}))
    if answer.status == 429 or answer.status >= 500:
        raise TokenSourceUnavailable(f"token endpoint: status {answer.status}", retry_after=answer.retry_after())
    body = answer.json()
    if answer.status != 200 or body.get("error") is not None:
        code = _printable(body.get("error"), 80)
        told = f"status {answer.status}, {code or 'no error code'}{_description(body, fields)}"
        raise GrantRefused(f"token endpoint: {told}", code=code)
    return body


def bearer_token(answer: Mapping[str, Any], asked_at: float) -> Token:
    """The access token of an answer of `request_grant`, whose life counts from `asked_at` (seconds since the epoch).

    `expires_in` is what a server makes of "a number of seconds": a string, a float, nothing. One that is not above zero
    serves those who wait for it and nobody else; one that can't be understood is unknown.

    Raises:
        TokenSourceFailed: no token, one that can't stand in a header, or one that is not used as a bearer token.
    """
    # A client must not use a token of a type it does not understand (RFC 6749 section 7.1); case does not matter (5.1).
    kind = answer.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenSourceFailed("token endpoint: the token_type is not Bearer")
    life = _seconds(answer.get("expires_in"))
    scope = answer.get("scope")
    # Some separate scopes with commas (GitHub, Auth0's Token Vault).
    scopes = frozenset(filter(None, re.split("[ ,]+", scope))) if isinstance(scope, str) else frozenset()
    try:
        return Token(answer["access_token"], None if life is None else asked_at + life, scopes=scopes)
    except (KeyError, TypeError, ValueError):
        raise TokenSourceFailed("token endpoint: no usable access_token") from None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_LIFE)


def _description(body: Mapping[str, Any], sent: Mapping[str, str]) -> str:
    """What an operator needs most of the answer, without any secret of ours that it repeats."""
    text = body.get("error_description")
    if not isinstance(text, str) or not text:
        return ""
    for name in _SECRET_FIELDS & sent.keys():
        text = text.replace(sent[name], "***")
    return f" ({_printable(text, 300)})"


def _printable(value: object, longest: int) -> str:
    return re.sub("[^ -~]", " ", value[:longest]) if isinstance(value, str) else ""
