"""What an authorization server has to say of a token before its bearer is let in (RFC 7662 section 2.2).

Pure functions on the answer: knows nothing of how it was asked for or how long it is kept. A token that is not good is
the caller's matter (`CallerUnauthenticated`), an answer that is none is the server's (`TokenError`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from idp_middleware._claims import MAX_DATE, check_audience, check_kind, check_subject, media_type, refuse
from idp_middleware._idp_http import Answer
from idp_middleware.errors import TokenSourceFailed, TokenSourceUnavailable

MAX_ANSWER: Final = 64 * 1024
"""Bytes; what it says is kept."""

# Servers also answer for refresh tokens and ID tokens, whatever the hint (RFC 7662 section 2.1), and say so here: the
# RFC's own member, then those of Ory Hydra and Cognito, OpenIddict, Keycloak.
_KIND_MEMBERS = ("token_type", "token_use", "token_usage", "typ")
_ACCESS_TOKENS = frozenset({"bearer", "access_token", "access", "at+jwt", "jwt"})


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """What an answer must say; None leaves it open. `leeway` is in seconds."""

    issuer: str | None
    audience: frozenset[str] | None
    leeway: float


def read_answer(answer: Answer) -> dict[str, Any]:
    """The members that have a value. An error is never taken for an answer (section 2.3)."""
    if answer.status >= 500:
        raise TokenSourceUnavailable(f"introspection: status {answer.status}", retry_after=answer.retry_after())
    if answer.status in (401, 403):
        raise TokenSourceFailed(f"introspection: our client is refused (status {answer.status})")
    if answer.status != 200 or len(answer.body) > MAX_ANSWER:
        raise TokenSourceFailed(f"introspection: status {answer.status}, {len(answer.body)} bytes")
    return {name: value for name, value in answer.json().items() if value is not None}


def check_answer(said: Mapping[str, Any], policy: AnswerPolicy, now: float) -> float:
    """When the token expires, leeway included, in seconds since the epoch; infinity where nobody says.

    `sub` is a usable subject after this.
    """
    active = said.get("active")
    if active is False:
        refuse("not active")
    if active is not True:
        raise TokenSourceFailed("introspection: active is neither true nor false")
    if any(name in said and media_type(said[name]) not in _ACCESS_TOKENS for name in _KIND_MEMBERS):
        refuse("not an access token")
    check_kind(said)
    if policy.issuer is not None and said.get("iss", policy.issuer) != policy.issuer:
        refuse("from another issuer")
    if policy.audience is not None:
        check_audience(said, policy.audience)
    check_subject(said)
    expires = _date(said, "exp", math.inf) + policy.leeway
    if expires <= now:
        refuse("expired")
    if max(_date(said, "nbf", 0.0), _date(said, "iat", 0.0)) > now + policy.leeway:
        refuse("not valid yet")
    return expires


def _date(said: Mapping[str, Any], name: str, absent: float) -> float:
    value = said.get(name)
    if value is None:
        return absent
    # bool is an int to Python; NaN fails any comparison.
    if type(value) not in (int, float) or not 0 <= value <= MAX_DATE:
        raise TokenSourceFailed(f"introspection: {name} is not a number of seconds")
    return float(value)
