"""A strict local authorization server: client credentials (RFC 6749 section 4.4) and token exchange (RFC 8693).

Knows the RFCs and nothing of vendors, nor of the middleware.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from idp_middleware.testing._clients import METHODS, Client, Clients, NotAuthenticated
from idp_middleware.testing._double import Answer
from idp_middleware.testing._issuer import Issuer, Refused
from idp_middleware.testing._keys import SigningKey
from idp_middleware.testing._recording import RecordedRequest

CLIENT_CREDENTIALS = "client_credentials"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - the name of a grant
TYPES = "urn:ietf:params:oauth:token-type:"
_REPEATABLE = ("audience", "resource")


@dataclass(frozen=True, slots=True)
class Issued:
    """What a token was issued for; `subject` is None for the client's own."""

    client_id: str
    grant: str
    subject: str | None = None
    scopes: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()


class TokenEndpoint(Issuer):
    """An authorization server as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `GET /.well-known/openid-configuration`, `/jwks` | discovery and the key set |
    | `POST /token` | a token, for a client's own credentials or in exchange for a token of this issuer |

    Callers' tokens come from `issue_token`. `issued` says of each token it gave what it was given for. `expires_in`
    (seconds; None: not told) is the life of tokens, `token_type` and `issued_token_type` (None: as asked for) what
    answers say.
    """

    path = "/token"

    def __init__(self, issuer: str = "") -> None:
        super().__init__(issuer)
        self.issued: dict[str, Issued] = {}
        self.expires_in: int | None = 3600
        self.token_type = "Bearer"  # noqa: S105 - the name of a type
        self.issued_token_type: str | None = None
        self._clients = Clients()

    def metadata(self) -> dict[str, Any]:
        issuer = self._known_issuer()
        return {
            "issuer": issuer,
            "token_endpoint": issuer + self.path,
            "jwks_uri": issuer + "/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": list(METHODS),
        }

    def add_client(
        self,
        client_id: str,
        client_secret: str | None = None,
        *,
        auth: str = "client_secret_post",
        key: SigningKey | None = None,
        grants: Collection[str] = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE),
        scopes: Collection[str] = ("read", "write"),
        targets: Collection[str] = (),
    ) -> None:
        """Register a client that may use these grants and ask for these scopes, audiences and resources (`targets`).

        It authenticates with its secret, as `auth` says (one of RFC 7591's names), or with a `key`.
        """
        settings = {"grants": tuple(grants), "scopes": tuple(scopes), "targets": tuple(targets)}
        self._clients.add(client_id, client_secret, methods=[auth], key=key, **settings)

    def refuse(self, error: str, *, status: int = 400, times: int | None = 1, **members: Any) -> None:
        """Answer with an error of the token endpoint, the next `times` requests or all of them."""
        self.respond(self.path, status=status, times=times, body={"error": error, **members})

    def endpoint(self, request: RecordedRequest) -> Answer:
        if (request.method, request.raw_path) != ("POST", self.path):
            return Answer(404, {"error": "not_found"})
        try:
            parameters = form_of(request)
        except ValueError as exc:
            return error("invalid_request", str(exc))
        single = {name: values[0] for name, values in parameters.items()}
        try:
            client = self._clients.authenticate(
                request, single, audiences=[self._known_issuer(), self.metadata()["token_endpoint"]]
            )
        except NotAuthenticated as exc:
            return error("invalid_client", str(exc), status=401, headers={"WWW-Authenticate": "Basic"})
        grant = single.get("grant_type", "")
        if not grant:
            return error("invalid_request", "grant_type is missing")
        if grant not in self.grants():
            return error("unsupported_grant_type", grant)
        if grant not in client.settings["grants"]:
            return error("unauthorized_client", f"the client may not use {grant}")
        return self.granted(grant, client, parameters)

    def grants(self) -> Collection[str]:
        """The grant types of this server."""
        return (CLIENT_CREDENTIALS, TOKEN_EXCHANGE)

    def granted(self, grant: str, client: Client, parameters: Mapping[str, list[str]]) -> Answer:
        """The answer to an authenticated client that may use this grant."""
        subject = None
        if grant == TOKEN_EXCHANGE:
            try:
                subject = self._subject(parameters)
            except (Refused, ValueError) as exc:
                # Section 2.2.2 has this one code for a request that is malformed and a subject token that is not good.
                return error("invalid_request", str(exc))
        scopes = tuple(" ".join(parameters.get("scope", ["read"])).split())
        if not set(scopes) <= set(client.settings["scopes"]):
            return error("invalid_scope", " ".join(scopes))
        audiences, resources = (tuple(parameters.get(name, ())) for name in _REPEATABLE)
        if not {*audiences, *resources} <= set(client.settings["targets"]):
            return error("invalid_target", "no such audience or resource for this client")
        requested = parameters.get("requested_token_type", [TYPES + "access_token"])[0]
        issued = Issued(client.client_id, grant, subject, scopes, audiences, resources)
        extra = {"issued_token_type": self.issued_token_type or requested} if grant == TOKEN_EXCHANGE else {}
        return self.issue(issued, **extra)

    def issue(self, issued: Issued, **members: Any) -> Answer:
        """A new token for that."""
        value = f"issued-{len(self.issued) + 1}"
        self.issued[value] = issued
        body = {
            "access_token": value,
            "token_type": self.token_type,
            "expires_in": self.expires_in,
            "scope": " ".join(issued.scopes),
            **members,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return Answer(200, body, {"Cache-Control": "no-store"})

    def _subject(self, parameters: Mapping[str, list[str]]) -> str:
        for name in ("subject_token", "subject_token_type"):
            if name not in parameters:
                raise ValueError(f"{name} is missing")
        if "actor_token" in parameters or "actor_token_type" in parameters:
            raise ValueError("no delegation here")
        if parameters["subject_token_type"][0] not in (TYPES + "access_token", TYPES + "jwt"):
            raise ValueError("subject_token_type")
        return str(self.claims_of(parameters["subject_token"][0])["sub"])


def form_of(request: RecordedRequest) -> dict[str, list[str]]:
    """The parameters of a token request (RFC 6749 section 3.2). Raises `ValueError` for what is no such form."""
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ValueError("not a form")
    if request.query:
        raise ValueError("parameters in the URL")
    parameters: dict[str, list[str]] = {}
    for name, value in parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True):
        if not value:
            raise ValueError(f"{name} is empty")
        parameters.setdefault(name, []).append(value)
    for name, values in parameters.items():
        if len(values) > 1 and name not in _REPEATABLE:
            raise ValueError(f"{name} comes more than once")
    return parameters


def error(
    code: str, description: str, *, status: int = 400, headers: Mapping[str, str] | None = None, **members: Any
) -> Answer:
    """An error of a token endpoint (RFC 6749 section 5.2)."""
    fields = {"Cache-Control": "no-store", **(headers or {})}
    return Answer(status, {"error": code, "error_description": description, **members}, fields)
