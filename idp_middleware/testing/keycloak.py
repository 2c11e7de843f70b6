"""A strict local Keycloak realm: the broker's stored tokens, by all three ways that Keycloak hands them out.

Answers and errors as in Keycloak's own source (IdentityBrokerService, AbstractIdentityProvider,
AbstractOAuth2IdentityProvider, OIDCIdentityProvider). Knows nothing of the middleware.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode
from uuid import uuid4

from idp_middleware.testing._clients import METHODS, Client, Clients, NotAuthenticated
from idp_middleware.testing._double import Answer
from idp_middleware.testing._issuer import Issuer, Refused
from idp_middleware.testing._keys import SigningKey
from idp_middleware.testing._recording import RecordedRequest
from idp_middleware.testing.token_endpoint import TOKEN_EXCHANGE, TYPES, error, form_of

FEATURES = ("identity-brokering-api:v1", "identity-brokering-api:v2", "token-exchange:v1")


@dataclass(slots=True)
class Stored:
    """What a provider answered when a user linked an account; the moment is in seconds since the epoch."""

    access_token: str = field(repr=False)
    expires_at: float | None
    renewed: str | None = field(repr=False)
    scope: str
    as_form: bool
    in_session: bool

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at < time.time()


class Keycloak(Issuer):
    """A realm of Keycloak as an ASGI app.

    | endpoint, under `/realms/{realm}` | answers |
    |---|---|
    | `GET /.well-known/openid-configuration`, `/protocol/openid-connect/certs` | discovery and the key set |
    | `GET /broker/{alias}/token` | the stored answer of the provider, to a user's token with the role `read-token` |
    | `POST /broker/{alias}/token` | its token, to a client with a user's token |
    | `POST /protocol/openid-connect/token` | the same, by legacy token exchange with `requested_issuer` |

    `features` are those that it runs with; real ones have only the first by default.
    """

    def __init__(self, base_url: str = "", *, realm: str = "acme", features: Collection[str] = FEATURES) -> None:
        self.realm = realm
        self.features: frozenset[str] = frozenset(features)
        super().__init__(base_url)
        self._clients = Clients()
        self._providers: dict[str, bool] = {}
        self._links: dict[tuple[str, str], Stored | None] = {}

    def spelled(self, url: str) -> str:
        return f"{url}/realms/{self.realm}"

    def metadata(self) -> dict[str, Any]:
        connect = f"{self._known_issuer()}/protocol/openid-connect"
        return {
            "issuer": self.issuer,
            "token_endpoint": f"{connect}/token",
            "jwks_uri": f"{connect}/certs",
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
        key: SigningKey | None = None,
        external_tokens: Collection[str] = (),
        may_exchange: bool = False,
    ) -> None:
        """Register a confidential client.

        `external_tokens` are the aliases whose tokens it may retrieve; `may_exchange` is the permission for legacy
        token exchange. Its secret may come in the body or in a header, or it has a `key` instead.
        """
        methods = ("client_secret_post", "client_secret_basic")
        settings = {"external_tokens": tuple(external_tokens), "may_exchange": may_exchange}
        self._clients.add(client_id, client_secret, methods=methods, key=key, **settings)

    def add_provider(self, alias: str, *, store_tokens: bool = True) -> None:
        """Add an identity provider."""
        self._providers[alias] = store_tokens

    def link(
        self,
        subject: str,
        alias: str,
        access_token: str | None = None,
        *,
        expires_in: float | None = None,
        renewed: str | None = None,
        scope: str = "",
        as_form: bool = False,
        in_session: bool = False,
    ) -> None:
        """Link an account, in place of one before; without a token none was stored.

        `expires_in` (seconds) may be negative; then `renewed` is what the provider gives for the refresh token, if it
        takes that still. `as_form`: the provider's answer was a form. `in_session`: the token is the session's.
        """
        moment = None if expires_in is None else time.time() + expires_in
        stored = None if access_token is None else Stored(access_token, moment, renewed, scope, as_form, in_session)
        self._links[subject, alias] = stored

    def unlink(self, subject: str, alias: str) -> None:
        """Unlink the account. Raises `KeyError` where there is none."""
        del self._links[subject, alias]

    def issue_token(self, subject: str, *, read_token: bool = True, **options: Any) -> str:
        """As `Issuer.issue_token`, with the role `read-token` of the client `broker`."""
        roles = {"resource_access": {"broker": {"roles": ["read-token"]}}} if read_token else {}
        return super().issue_token(subject, **{"sid": uuid4().hex, **roles, **options})

    def endpoint(self, request: RecordedRequest) -> Answer:
        under = f"/realms/{self.realm}"
        match request.method, request.raw_path.removeprefix(under).split("/")[1:]:
            case "GET", ["broker", alias, "token"] if request.raw_path.startswith(under):
                return self._v1(request, unquote(alias))
            case "POST", ["broker", alias, "token"] if request.raw_path.startswith(under):
                return self._with_client(request, unquote(alias))
            case "POST", ["protocol", "openid-connect", "token"] if request.raw_path.startswith(under):
                return self._with_client(request, None)
        return Answer(404, {"error": "HTTP 404 Not Found"})

    def _v1(self, request: RecordedRequest, alias: str) -> Answer:
        if "identity-brokering-api:v1" not in self.features:
            return _message(400, "Identity Brokering API feature not enabled")
        try:
            claims = self.claims_of(request.bearer or "")
        except Refused:
            return _message(400, "Invalid token.")
        subject, client = claims["sub"], claims.get("azp")
        roles = claims.get("resource_access", {}).get("broker", {}).get("roles", [])
        if "read-token" not in roles:
            refusal = f"Client [{client}] not authorized to retrieve tokens from identity provider [{alias}]."
            return _message(403, refusal)
        if alias not in self._providers:
            return Answer(502, "<html>Unexpected error when retrieving token</html>", {"Content-Type": "text/html"})
        if not self._providers[alias]:
            return _message(400, f"Identity Provider [{alias}] does not support this operation.")
        if (subject, alias) not in self._links:
            return _message(400, f"User [{subject}] is not associated with identity provider [{alias}].")
        stored = self._links[subject, alias]
        if stored is None:
            return _message(404, f"No token stored for user [{subject}] with associated identity provider [{alias}].")
        if stored.expired and not stored.as_form and not _renew(stored):
            return _message(502, "Unable to refresh token")
        return _provider_answer(stored)

    def _with_client(self, request: RecordedRequest, alias: str | None) -> Answer:
        try:
            parameters = {name: values[0] for name, values in form_of(request).items()}
        except ValueError as exc:
            return error("invalid_request", str(exc))
        audiences = [self._known_issuer(), self.metadata()["token_endpoint"]]
        try:
            client = self._clients.authenticate(request, parameters, audiences=audiences)
        except NotAuthenticated as exc:
            return error("unauthorized_client", f"Invalid client or Invalid client credentials ({exc})", status=401)
        if alias is None:
            return self._exchange(client, parameters)
        return self._v2(client, parameters.get("token", ""), alias)

    def _v2(self, client: Client, token: str, alias: str) -> Answer:
        if "identity-brokering-api:v2" not in self.features:
            return error("invalid_request", "Identity Brokering API feature not enabled")
        if alias not in client.settings["external_tokens"]:
            return error("invalid_client", "Client not allowed to retrieve token for the provider", status=403)
        try:
            claims = self.claims_of(token)
        except Refused:
            return error("invalid_token", "Invalid token")
        audience = claims.get("aud")
        if client.client_id not in (claims.get("azp"), *(audience if isinstance(audience, list) else [audience])):
            return error("unauthorized_client", "Client is not within the token audience", status=403)
        if alias not in self._providers:
            return error("invalid_request", "Invalid identity provider")
        if (claims["sub"], alias) not in self._links:
            return error("invalid_request", "User not associated to identity provider")
        stored = self._links[claims["sub"], alias]
        if stored is None:
            return error("token_expired", "No token stored.")
        if stored.expired and not _renew(stored):
            return error("token_expired", "linked token is expired")
        return _token(stored)

    def _exchange(self, client: Client, parameters: dict[str, str]) -> Answer:
        if parameters.get("grant_type") != TOKEN_EXCHANGE or "token-exchange:v1" not in self.features:
            return error("unsupported_grant_type", "Unsupported grant_type")
        if parameters.get("subject_token_type", TYPES + "access_token") != TYPES + "access_token":
            return error("invalid_request", "subject_token_type")
        try:
            claims = self.claims_of(parameters.get("subject_token", ""))
        except Refused:
            return error("invalid_token", "Invalid token")
        alias = parameters.get("requested_issuer")
        if alias not in self._providers:
            return error("invalid_request", "Invalid issuer")
        if not client.settings["may_exchange"]:
            return error("access_denied", "Client not allowed to exchange", status=403)
        if parameters.get("requested_token_type", TYPES + "access_token") != TYPES + "access_token":
            return error("invalid_target", "response_token_type_unsupported")
        link: dict[str, Any] = {"account-link-url": self._link_url(client.client_id, alias, claims.get("sid", ""))}
        stored = self._links.get((claims["sub"], alias))
        if stored is None:
            return error("not_linked", "identity provider is not linked", **link)
        if stored.expired and not _renew(stored):
            return error("token_expired", "linked token is expired", **link)
        return _token(stored, issued_token_type=TYPES + "access_token", **link)

    def _link_url(self, client_id: str, alias: str, session: str) -> str:
        nonce = uuid4().hex
        check = hashlib.sha256(f"{nonce}{session}{client_id}{alias}".encode()).hexdigest()
        return f"{self.issuer}/broker/{alias}/link?{urlencode({'nonce': nonce, 'hash': check, 'client_id': client_id})}"


def _renew(stored: Stored) -> bool:
    if stored.renewed is None:
        return False
    stored.access_token, stored.renewed, stored.expires_at = stored.renewed, None, time.time() + 3600
    return True


def _provider_answer(stored: Stored) -> Answer:
    """The answer as the provider gave it, with the moment that Keycloak adds; the life in it was true once."""
    body: dict[str, Any] = {"access_token": stored.access_token, "scope": stored.scope, "token_type": "bearer"}
    if stored.as_form:
        return Answer(200, urlencode(body), {"Content-Type": "application/octet-stream"})
    if stored.expires_at is not None:
        body |= {"expires_in": 28800, "refresh_token": "the-providers", "accessTokenExpiration": int(stored.expires_at)}
    return Answer(200, body)


def _token(stored: Stored, **members: Any) -> Answer:
    """A token without the type, and with a life that is 0 where unknown, or a moment where a session keeps it."""
    life = 0 if stored.expires_at is None else int(stored.expires_at - (0 if stored.in_session else time.time()))
    body = {"access_token": stored.access_token, "expires_in": life, "refresh_expires_in": 0, "not-before-policy": 0}
    return Answer(200, {**body, **members}, {"Cache-Control": "no-store"})


def _message(status: int, message: str) -> Answer:
    return Answer(status, {"errorMessage": message})
