"""A strict local Microsoft Entra ID: the on-behalf-of flow, with Conditional Access in its way where told.

Errors as in https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow and
https://learn.microsoft.com/entra/identity-platform/reference-error-codes. Knows nothing of the middleware.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from typing import Any
from uuid import uuid4

from idp_middleware.testing._clients import Client
from idp_middleware.testing._double import Answer
from idp_middleware.testing._issuer import Refused
from idp_middleware.testing._keys import SigningKey
from idp_middleware.testing.token_endpoint import CLIENT_CREDENTIALS, Issued, TokenEndpoint, error

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLAIMS = json.dumps({"access_token": {"capolids": {"essential": True, "values": ["c1"]}}}, separators=(",", ":"))


class Entra(TokenEndpoint):
    """One tenant of Entra ID as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `GET /{tenant}/v2.0/.well-known/openid-configuration`, `/{tenant}/discovery/v2.0/keys` | discovery, the key set |
    | `POST /{tenant}/oauth2/v2.0/token` | a token, on behalf of the user whose token for this app is sent |

    Callers' tokens come from `issue_token`, with the app's client id as `audience`.
    """

    def __init__(self, base_url: str = "", *, tenant: str = "acme.example") -> None:
        self.tenant = tenant
        self.path: str = f"/{tenant}/oauth2/v2.0/token"
        super().__init__(base_url)
        self._demands: dict[str, str | None] = {}
        self._without_consent: set[str] = set()

    def spelled(self, url: str) -> str:
        return f"{url}/{self.tenant}/v2.0"

    def metadata(self) -> dict[str, Any]:
        server = self._known_issuer().removesuffix(f"/{self.tenant}/v2.0")
        return {
            **super().metadata(),
            "token_endpoint": server + self.path,
            "jwks_uri": f"{server}/{self.tenant}/discovery/v2.0/keys",
        }

    def add_client(
        self,
        client_id: str,
        client_secret: str | None = None,
        *,
        auth: str = "client_secret_post",
        key: SigningKey | None = None,
        grants: Collection[str] = (CLIENT_CREDENTIALS, JWT_BEARER),
        scopes: Collection[str] = ("https://graph.microsoft.com/.default",),
        targets: Collection[str] = (),
    ) -> None:
        """Register an app that has consent to ask for these scopes."""
        super().add_client(client_id, client_secret, auth=auth, key=key, grants=grants, scopes=scopes, targets=targets)

    def demand(self, subject: str, claims: str | None = CLAIMS) -> None:
        """Ask for a second factor before this user's next token, with a claims challenge unless None."""
        self._demands[subject] = claims

    def withhold_consent(self, subject: str) -> None:
        """Nobody has consented for this user."""
        self._without_consent.add(subject)

    def grants(self) -> Collection[str]:
        return (CLIENT_CREDENTIALS, JWT_BEARER)

    def granted(self, grant: str, client: Client, parameters: Mapping[str, list[str]]) -> Answer:
        if grant == CLIENT_CREDENTIALS:
            return super().granted(grant, client, parameters)
        for name in ("assertion", "scope", "requested_token_use"):
            if name not in parameters:
                return sts("invalid_request", 900144, f"The request body must contain the parameter: '{name}'.")
        if parameters["requested_token_use"] != ["on_behalf_of"]:
            return sts("invalid_request", 90014, "requested_token_use")
        try:
            claims = self.claims_of(parameters["assertion"][0])
        except Refused as exc:
            if str(exc) == "expired":
                return sts("invalid_grant", 500133, "Assertion is not within its valid time range.")
            if str(exc) == "revoked":
                return sts("invalid_grant", 50173, "The provided grant has expired due to it being revoked.")
            return sts("invalid_grant", 50013, "Assertion failed signature validation.")
        if claims.get("aud") not in (client.client_id, f"api://{client.client_id}"):
            return sts("invalid_grant", 500131, "Assertion audience does not match the Client app.")
        subject = str(claims["sub"])
        if subject in self._without_consent:
            why = "The user or administrator has not consented to use the application."
            return sts("invalid_grant", 65001, why, suberror="consent_required")
        if subject in self._demands:
            members = {"claims": demand} if (demand := self._demands[subject]) else {}
            why = "Due to a configuration change made by your administrator, you must use multi-factor authentication."
            return sts("interaction_required", 50079, why, suberror="basic_action", **members)
        scopes = tuple(parameters["scope"][0].split())
        if not set(scopes) <= set(client.settings["scopes"]):
            return sts("invalid_scope", 70011, "The provided value for scope is not valid.")
        issued = Issued(client.client_id, grant, subject, scopes)
        return self.issue(issued, ext_expires_in=self.expires_in)


def sts(code: str, number: int, description: str, **members: Any) -> Answer:
    """An error of Entra ID's security token service."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    trace, correlation = str(uuid4()), str(uuid4())
    text = f"AADSTS{number}: {description} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {stamp}"
    return error(
        code,
        text,
        error_codes=[number],
        timestamp=stamp,
        trace_id=trace,
        correlation_id=correlation,
        error_uri=f"https://login.microsoftonline.com/error?code={number}",
        **members,
    )
