"""Auth0's Token Vault: which accounts are connected, and what an Auth0 token of a user is exchanged for.

Answers as https://auth0.com/docs/api/authentication/token-vault-token-exchange/get-token has them, with the error codes
that applications see.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from idp_middleware.testing import _auth0_wire as wire
from idp_middleware.testing._clients import Client
from idp_middleware.testing._double import Answer
from idp_middleware.testing._issuer import Issuer, Refused

GRANT = "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token"
FEDERATED = "http://auth0.com/oauth/token-type/federated-connection-access-token"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a type
REFRESH_TOKEN = "urn:ietf:params:oauth:token-type:refresh_token"  # noqa: S105 - likewise


@dataclass(frozen=True, slots=True)
class Connected:
    """An account in the vault; `expires_in` is in seconds."""

    connection: str
    account: str | None
    access_token: str = field(repr=False)
    scope: str
    expires_in: int | None


class Vault:
    """The vault of one tenant."""

    def __init__(self) -> None:
        self._connected: dict[str, list[Connected]] = {}
        self._withdrawn: set[tuple[str, str]] = set()
        self._refresh_tokens: dict[str, tuple[str, str]] = {}

    def connect(self, subject: str, connected: Connected) -> None:
        accounts = self._connected.setdefault(subject, [])
        accounts[:] = [
            each for each in accounts if (each.connection, each.account) != (connected.connection, connected.account)
        ]
        accounts.append(connected)
        self._withdrawn.discard((subject, connected.connection))

    def disconnect(self, subject: str, connection: str) -> None:
        accounts = self._connected.get(subject, [])
        accounts[:] = [each for each in accounts if each.connection != connection]

    def withdraw(self, subject: str, connection: str) -> None:
        self._withdrawn.add((subject, connection))

    def issue_refresh_token(self, subject: str, client_id: str) -> str:
        token = f"v1.{secrets.token_urlsafe(24)}"
        self._refresh_tokens[token] = (subject, client_id)
        return token

    def answer(self, parameters: Mapping[str, str], client: Client, tenant: Issuer) -> Answer:
        """The answer to an authenticated client."""
        if not client.settings["vault"]:
            return wire.refused(403, "unauthorized_client", f"Grant type '{GRANT}' not allowed for the client.")
        for name in ("connection", "subject_token", "subject_token_type", "requested_token_type"):
            if not parameters.get(name):
                return wire.refused(400, "invalid_request", f"Missing required parameter: {name}")
        if parameters["requested_token_type"] != FEDERATED:
            return wire.refused(400, "invalid_request", "Unsupported requested_token_type")
        if "scope" in parameters:
            return wire.refused(400, "invalid_request", "scope is not allowed with this grant")
        try:
            subject = self._subject(parameters, client, tenant)
        except Refused as exc:
            return wire.refused(401, "invalid_grant", f"The subject token is not good: {exc}")
        if subject is None:
            return wire.refused(403, "unauthorized_client", "The client is not linked to the API of the token.")
        return self._exchanged(subject, parameters)

    def _subject(self, parameters: Mapping[str, str], client: Client, tenant: Issuer) -> str | None:
        """Whose the subject token is; None where it is not for this client."""
        token, kind = parameters["subject_token"], parameters["subject_token_type"]
        if kind == REFRESH_TOKEN:
            subject, client_id = self._refresh_tokens.get(token, ("", ""))
            if token in tenant._revoked or client_id != client.client_id:
                raise Refused("invalid")
            return subject
        if kind != ACCESS_TOKEN:
            raise Refused("unknown type")
        claims = tenant.claims_of(token)
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        return str(claims["sub"]) if client.settings["api"] in audiences else None

    def _exchanged(self, subject: str, parameters: Mapping[str, str]) -> Answer:
        connection, hint = parameters["connection"], parameters.get("login_hint")
        for account in self._connected.get(subject, []):
            if account.connection == connection and hint in (None, account.account):
                break
        else:
            code = "federated_connection_refresh_token_not_found"
            return wire.refused(401, code, "Federated connection Refresh Token not found.")
        if (subject, connection) in self._withdrawn:
            code = "federated_connection_refresh_token_flow_failed"
            return wire.refused(401, code, "Failed to exchange the federated connection Refresh Token.")
        body = {
            "access_token": account.access_token,
            # Some connections separate with commas, and are passed on so.
            "scope": account.scope,
            "expires_in": account.expires_in,
            "issued_token_type": FEDERATED,
            "token_type": "Bearer",
        }
        body = {name: value for name, value in body.items() if value is not None}
        return Answer(200, body, {"Cache-Control": "no-store"})
