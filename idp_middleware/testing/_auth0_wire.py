"""How an Auth0 tenant speaks: what it makes of requests, and the shapes of its answers and errors.

Bodies as in Auth0's documentation (https://auth0.com/docs/api) and its SDKs' issue trackers. Keeps no state.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

from idp_middleware.testing._double import Answer
from idp_middleware.testing._recording import RecordedRequest

USERS = "/api/v2/users/"
USER_ID = re.compile(r"[^|/%\s]+\|.+\Z")

NO_AUDIENCE = "No audience parameter was provided, and no default audience has been configured"
NO_GRANT = 'Client is not authorized to access "{}". You need to create a "client-grant" associated to this API.'

# One segment of a path (RFC 3986 section 3.3); a | may stand in none unless encoded.
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+\Z")


@dataclass(frozen=True, slots=True)
class Identity:
    """An account of a user at a provider, with the tokens that Auth0 keeps for it.

    `user_id` is the id at the provider, without a prefix. `provider` is the strategy; it is the connection's name
    unless told. `expires_in` is in seconds, and like Auth0's says nothing of when the token was issued.
    """

    connection: str
    user_id: str
    _: KW_ONLY
    provider: str | None = None
    access_token: str | None = field(default=None, repr=False)
    access_token_secret: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_in: int | None = None
    is_social: bool = True
    profile: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)


def profile(subject: str, identities: Iterable[Identity], *, with_tokens: bool) -> dict[str, Any]:
    """The document of a user; without the scope for it, tokens are left out silently."""
    name = subject.partition("|")[2]
    return {
        "user_id": subject,
        "name": name,
        "nickname": name,
        "email": f"{name}@example.com",
        "email_verified": True,
        "created_at": "2026-01-01T00:00:00.000Z",
        "updated_at": "2026-01-01T00:00:00.000Z",
        "identities": [_identity(identity, with_tokens=with_tokens) for identity in identities],
    }


def _identity(identity: Identity, *, with_tokens: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "connection": identity.connection,
        "user_id": identity.user_id,
        "provider": identity.provider or identity.connection,
        "isSocial": identity.is_social,
        "profileData": identity.profile,
    }
    if with_tokens:
        document |= {
            "access_token": identity.access_token,
            "access_token_secret": identity.access_token_secret,
            "refresh_token": identity.refresh_token,
            "expires_in": identity.expires_in,
        }
    return {name: value for name, value in document.items() if value is not None}


def subject_of(request: RecordedRequest) -> str | None:
    """The user id in the path: one segment, encoded once; None for anything else."""
    segment = request.raw_path.removeprefix(USERS)
    subject = unquote(segment)
    return subject if _SEGMENT.match(segment) and USER_ID.match(subject) else None


def selected(document: dict[str, Any], query: str) -> dict[str, Any]:
    """What `fields` and `include_fields` leave of a document. Raises `ValueError` for a query that is not allowed."""
    parameters = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if unknown := parameters.keys() - {"fields", "include_fields"}:
        raise ValueError(f"Additional properties not allowed: {', '.join(sorted(unknown))}")
    including = parameters.get("include_fields", "true")
    if including not in ("true", "false"):
        raise ValueError("Expected type boolean on property include_fields")
    fields = set(filter(None, parameters.get("fields", "").split(",")))
    if not fields:
        return document
    return {name: value for name, value in document.items() if (name in fields) == (including == "true")}


def parameters_of(request: RecordedRequest) -> dict[str, str]:
    """The parameters of a token request, from JSON or a form. Raises `ValueError` for what is neither."""
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    values: Any = {}
    if kind == "application/json":
        values = request.json()
    elif kind == "application/x-www-form-urlencoded":
        found = parse_qs(request.body.decode(), keep_blank_values=True)
        values = {name: many[0] if len(many) == 1 else many for name, many in found.items()}
    if not isinstance(values, dict):
        raise ValueError("the body is not an object")
    for name, value in values.items():
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"{name} is not one string")
    return values


def discovery(issuer: str) -> dict[str, Any]:
    """The document of OpenID Connect Discovery 1.0 section 3."""
    return {
        "issuer": issuer,
        "authorization_endpoint": issuer + "authorize",
        "token_endpoint": issuer + "oauth/token",
        "userinfo_endpoint": issuer + "userinfo",
        "jwks_uri": issuer + ".well-known/jwks.json",
        "revocation_endpoint": issuer + "oauth/revoke",
        "end_session_endpoint": issuer + "oidc/logout",
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["openid", "profile", "email"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["HS256", "RS256", "PS256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
    }


def refused(status: int, error: str, description: str) -> Answer:
    """An error of the Authentication API."""
    return Answer(status, {"error": error, "error_description": description})


def problem(status: int, message: str, **members: Any) -> Answer:
    """An error of the Management API."""
    return Answer(status, {"statusCode": status, "error": HTTPStatus(status).phrase, "message": message, **members})


def bad_user_id(request: RecordedRequest) -> Answer:
    """The Management API's word for a path that `subject_of` makes nothing of."""
    message = (
        "Path validation error: Object didn't pass validation for format user-id: "
        f"{request.raw_path.removeprefix(USERS)} on property id (The user_id of the user to retrieve)."
    )
    return problem(400, message, errorCode="invalid_uri")


def rate_limited(path: str, retry_after: int | None, reset_in: float | None) -> Answer:
    """A 429 of the API that the path belongs to; both times in seconds from now."""
    if path.startswith("/api/"):
        answer = problem(429, "Global limit has been reached", errorCode="too_many_requests")
    else:
        answer = refused(429, "too_many_requests", "Client quota exceeded")
    headers = {}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if reset_in is not None:
        reset = math.ceil(time.time() + reset_in)
        headers |= {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}
    answer.headers = headers
    return answer
