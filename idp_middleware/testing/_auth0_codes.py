"""An Auth0 tenant's authorization codes: what was asked for, and the tokens that a code is worth, once.

Knows the grant (RFC 6749 section 4.1.3, RFC 7636); nothing of logins.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from idp_middleware.testing import _auth0_wire as wire
from idp_middleware.testing._clients import Client
from idp_middleware.testing._double import Answer
from idp_middleware.testing._issuer import Issuer

GRANT = "authorization_code"
CODE_LIFETIME = 600
"""Seconds; the most that RFC 6749 section 4.1.2 recommends."""
ACCESS_TOKEN_LIFETIME, ID_TOKEN_LIFETIME = 86400, 36000
"""Seconds, as at Auth0."""

_OF_OPENID = frozenset({"openid", "profile", "email"})
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}\Z")


@dataclass(frozen=True, slots=True)
class Asked:
    """An authorization request that may be answered at its redirect_uri."""

    client: Client
    redirect_uri: str
    state: str | None
    nonce: str | None
    scope: tuple[str, ...]
    audience: str | None
    challenge: str | None = field(repr=False)
    connection: str | None


@dataclass(frozen=True, slots=True)
class _Code:
    asked: Asked
    subject: str
    expires_at: float


class Codes:
    """The codes of one tenant; `apis` are the audiences it knows, with the scopes of each."""

    def __init__(self, tenant: Issuer) -> None:
        self.apis: dict[str, frozenset[str]] = {}
        self._tenant = tenant
        self._codes: dict[str, _Code] = {}

    def issue(self, asked: Asked, subject: str) -> str:
        code = secrets.token_urlsafe(32)
        self._codes[code] = _Code(asked, subject, time.time() + CODE_LIFETIME)
        return code

    def exchange(self, parameters: Mapping[str, str], client: Client) -> Answer:
        """The answer to an authenticated client with a code; whatever is wrong, the code is spent."""
        for name in ("code", "redirect_uri"):
            if not parameters.get(name):
                return wire.refused(400, "invalid_request", f"Missing required parameter: {name}")
        code = self._codes.pop(parameters["code"], None)
        if code is None or code.asked.client.client_id != client.client_id or code.expires_at <= time.time():
            return wire.refused(403, "invalid_grant", "Invalid authorization code")
        if parameters["redirect_uri"] != code.asked.redirect_uri:
            return wire.refused(403, "invalid_grant", "The redirect URI is wrong.")
        if not _verifies(parameters.get("code_verifier"), code.asked.challenge):
            return wire.refused(403, "invalid_grant", "Failed to verify code verifier")
        return Answer(200, self._tokens(code.asked, code.subject), {"Cache-Control": "no-store"})

    def _tokens(self, asked: Asked, subject: str) -> dict[str, Any]:
        allowed = _OF_OPENID | self.apis.get(asked.audience or "", frozenset())
        granted = [each for each in asked.scope if each in allowed]
        scope = " ".join(granted)
        if asked.audience is None:
            # Good for the tenant's own endpoints only, and opaque.
            access_token = secrets.token_urlsafe(24)
        else:
            audience = [asked.audience, self._tenant.issuer + "userinfo"] if "openid" in granted else asked.audience
            access_token = self._tenant.issue_token(
                subject,
                audience=audience,
                scope=scope,
                expires_in=ACCESS_TOKEN_LIFETIME,
                azp=asked.client.client_id,
            )
        tokens = {
            "access_token": access_token,
            "scope": scope,
            "expires_in": ACCESS_TOKEN_LIFETIME,
            "token_type": "Bearer",
        }
        if "openid" in granted:
            profile = wire.profile(subject, (), with_tokens=False)
            names = [
                *(["name", "nickname"] if "profile" in granted else []),
                *(["email"] if "email" in granted else []),
            ]
            tokens["id_token"] = self._tenant.issue_token(
                subject,
                audience=asked.client.client_id,
                expires_in=ID_TOKEN_LIFETIME,
                azp=None,
                nonce=asked.nonce,
                **{name: profile[name] for name in names},
            )
        return tokens


def _verifies(verifier: str | None, challenge: str | None) -> bool:
    """RFC 7636 section 4.6. A verifier for a code that was asked for without one shows a downgrade (RFC 9700 section
    2.1.1).
    """
    if verifier is None or challenge is None:
        return verifier is challenge
    digest = hashlib.sha256(verifier.encode()).digest()
    return bool(_VERIFIER.match(verifier)) and base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == challenge
