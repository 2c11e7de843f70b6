"""A strict local authorization server with opaque tokens and an introspection endpoint (RFC 7662).

Refuses what the RFC lets a server refuse, and never says why a token is not active. Knows nothing of the middleware.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus
from uuid import uuid4

from idp_middleware.testing._double import Answer, Double
from idp_middleware.testing._recording import RecordedRequest


@dataclass(slots=True)
class _Issued:
    expires_at: float
    members: dict[str, Any] = field(repr=False)


class IntrospectionServer(Double):
    """An authorization server as an ASGI app: `POST /introspect`, and nothing else.

    Clients authenticate by HTTP Basic only (RFC 6749 section 2.3.1). `issuer` is the server's URL; left empty, `serve`
    fills it in.
    """

    def __init__(self, issuer: str = "") -> None:
        super().__init__()
        self.issuer = issuer
        self._clients: dict[str, bytes] = {}
        self._tokens: dict[str, _Issued] = {}

    def add_client(self, client_id: str, client_secret: str) -> None:
        """Register an API that may ask about tokens."""
        self._clients[client_id] = client_secret.encode()

    def issue_token(
        self, subject: str | None, *, token: str | None = None, expires_in: float = 3600, **members: Any
    ) -> str:
        """A token that is active for `expires_in` seconds; `members` override what is said of it, and None removes one.

        Without a `subject` it is a client's own.
        """
        token = uuid4().hex if token is None else token
        now = int(time.time())
        said = {
            "active": True,
            "iss": self.issuer or None,
            "sub": subject,
            "client_id": "a-single-page-app",
            "token_type": "Bearer",
            "iat": now,
            "exp": int(now + expires_in),
            **members,
        }
        expires_at = now + expires_in
        self._tokens[token] = _Issued(expires_at, {name: value for name, value in said.items() if value is not None})
        return token

    def revoke(self, token: str) -> None:
        """Say from now on that the token is not active. Raises `KeyError` for an unknown one."""
        del self._tokens[token]

    def answer(self, request: RecordedRequest) -> Answer:
        if (request.method, request.raw_path) != ("POST", "/introspect"):
            return Answer(404, {"error": "not_found"})
        if not self._authenticated(request):
            return Answer(401, {"error": "invalid_client"}, {"WWW-Authenticate": 'Basic realm="introspection"'})
        kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded" or request.query:
            return _malformed("the parameters belong into a form in the body")
        pairs = parse_qsl(request.body.decode("latin-1"), keep_blank_values=True)
        parameters = dict(pairs)
        if len(parameters) != len(pairs) or not parameters.get("token"):
            return _malformed("exactly one token, and no parameter twice")
        if "client_secret" in parameters:
            return _malformed("one way of authentication only")
        issued = self._tokens.get(parameters["token"])
        # Section 2.2: unknown, revoked and expired ones look the same.
        active = issued is not None and time.time() < issued.expires_at
        return Answer(200, dict(issued.members) if issued is not None and active else {"active": False})

    def _authenticated(self, request: RecordedRequest) -> bool:
        scheme, _, credentials = (request.header("authorization") or "").partition(" ")
        try:
            pair = base64.b64decode(credentials, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        client_id, _, secret = pair.partition(":")
        known = self._clients.get(unquote_plus(client_id))
        return (
            scheme.lower() == "basic"
            and known is not None
            and hmac.compare_digest(known, unquote_plus(secret).encode())
        )


def _malformed(description: str) -> Answer:
    return Answer(400, {"error": "invalid_request", "error_description": description})
