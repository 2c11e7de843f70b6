"""A strict local Auth0 tenant: client-credentials grant, Management API user look-up, discovery and keys.

Refuses what Auth0 refuses, in the words Auth0 uses. Knows nothing of the middleware.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from idp_middleware.testing import _auth0_wire as wire
from idp_middleware.testing._auth0_wire import Identity
from idp_middleware.testing._double import Answer, Double, Fields, Payload
from idp_middleware.testing._keys import SigningKey, sign, signing_key
from idp_middleware.testing._recording import RecordedRequest


@dataclass(frozen=True, slots=True)
class _Client:
    secret: bytes = field(repr=False)
    scopes: tuple[str, ...]


class Auth0(Double):
    """An Auth0 tenant as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `GET /.well-known/openid-configuration`, `/.well-known/jwks.json` | discovery and the key set |
    | `POST /oauth/token` | a management token, for the client-credentials grant |
    | `GET /api/v2/users/{id}` | a user with the linked identities |

    `issuer` is the tenant's URL; left empty, `serve` fills it in. `management_token_lifetime` is in seconds; Auth0's
    own default is a day.
    """

    def __init__(self, issuer: str = "") -> None:
        super().__init__()
        self.issuer = issuer
        self.management_token_lifetime = 86400
        self._clients: dict[str, _Client] = {}
        self._users: dict[str, list[Identity]] = {}
        self._management_tokens: dict[str, tuple[float, frozenset[str]]] = {}
        self._generation = 0
        self._published: list[SigningKey] = [signing_key()]

    @property
    def issuer(self) -> str:
        """The `iss` of every token, with the slash at the end that Auth0's have; empty until known."""
        return self._issuer

    @issuer.setter
    def issuer(self, url: str) -> None:
        self._issuer = url.rstrip("/") + "/" if url else ""

    @property
    def management_audience(self) -> str:
        """The audience of the Management API."""
        return self._known_issuer() + "api/v2/"

    def add_client(
        self,
        client_id: str,
        client_secret: str,
        *,
        scopes: Collection[str] = ("read:users", "read:user_idp_tokens"),
    ) -> None:
        """Register a machine-to-machine application, with the Management API scopes it was granted.

        Without any scope it has no grant for the Management API at all. It authenticates with the secret in the body,
        as Auth0 has it by default.
        """
        self._clients[client_id] = _Client(client_secret.encode(), tuple(scopes))

    def add_user(self, subject: str, identities: Iterable[Identity] = ()) -> None:
        """Add or replace a user. Raises `ValueError` for a subject that is none of Auth0's (`auth0|alice`)."""
        if not wire.USER_ID.match(subject):
            raise ValueError(f"{subject!r} is not a user id of Auth0's, such as auth0|alice")
        self._users[subject] = list(identities)

    def remove_user(self, subject: str) -> None:
        """Delete a user. Raises `KeyError` for an unknown one."""
        del self._users[subject]

    def link(self, subject: str, identity: Identity) -> None:
        """Link an account, in place of the same one linked before. Raises `KeyError` for an unknown user."""
        self.unlink(subject, identity.connection, identity.user_id)
        self._users[subject].append(identity)

    def unlink(self, subject: str, connection: str, user_id: str | None = None) -> None:
        """Unlink the accounts of a connection, or the one named. Raises `KeyError` for an unknown user."""
        self._users[subject] = [
            identity
            for identity in self._users[subject]
            if identity.connection != connection or user_id not in (None, identity.user_id)
        ]

    def issue_token(
        self,
        subject: str,
        *,
        audience: str | list[str],
        scope: str = "",
        expires_in: float = 3600,
        algorithm: str = "RS256",
        key: Any = None,
        headers: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A caller's access token, or a forgery of one.

        `claims` and `headers` override what a good token has, and None removes it. `expires_in` is in seconds and may
        be negative. The tenant's key for an algorithm is published when first used; any other `key`, a `SigningKey`
        or what PyJWT takes, is not. HMAC needs a `key`, which may be a public key in PEM; "none" signs nothing.

        Raises `ValueError` where an algorithm has no key, or the issuer is not known yet.
        """
        now = int(time.time())
        good = {
            "iss": self._known_issuer(),
            "sub": subject,
            "aud": audience,
            "iat": now,
            "exp": int(now + expires_in),
            "scope": scope or None,
            "azp": "a-single-page-app",
        }
        payload = {name: value for name, value in (good | claims).items() if value is not None}
        if key is None and algorithm != "none" and not algorithm.startswith("HS"):
            key = self._own_key(algorithm)
        return sign(payload, algorithm=algorithm, key=key, headers=headers)

    def rotate_keys(self, *, keep_old: bool = False) -> None:
        """Sign with new keys from now on; the old ones leave the key set, unless kept as in a planned rotation."""
        self._generation += 1
        self._published = [signing_key("RS256", self._generation), *(self._published if keep_old else ())]

    def revoke_management_tokens(self) -> None:
        """Refuse every management token issued so far."""
        self._management_tokens.clear()

    def fail(
        self,
        path_prefix: str,
        *,
        status: int = 500,
        times: int | None = None,
        body: Payload | None = None,
        headers: Fields = (),
    ) -> None:
        """Answer with an error, the next `times` requests or all of them; by default with one of Auth0's."""
        if body is None:
            phrase = HTTPStatus(status).phrase
            body = {"statusCode": status, "error": phrase, "message": phrase}
        self.respond(path_prefix, status=status, times=times, body=body, headers=headers)

    def rate_limit(
        self,
        path_prefix: str,
        *,
        retry_after: int | None = None,
        reset_in: float | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer 429, with `Retry-After` and/or Auth0's `X-RateLimit-*` fields; both in seconds from now."""
        self._script(path_prefix, times, answer=wire.rate_limited(path_prefix, retry_after, reset_in))

    def answer(self, request: RecordedRequest) -> Answer:
        match request.method, request.raw_path:
            case "GET", "/.well-known/openid-configuration":
                return Answer(200, wire.discovery(self._known_issuer()))
            case "GET", "/.well-known/jwks.json":
                return Answer(200, {"keys": [key.jwk for key in self._published]})
            case "POST", "/oauth/token":
                return self._token(request)
            case "GET", path if path.startswith(wire.USERS):
                return self._user(request)
        return wire.problem(404, "Not Found")

    def _token(self, request: RecordedRequest) -> Answer:
        try:
            parameters = wire.parameters_of(request)
        except ValueError as exc:
            return wire.refused(400, "invalid_request", str(exc))
        grant = parameters.get("grant_type")
        if not grant:
            return wire.refused(400, "invalid_request", "Missing required parameter: grant_type")
        if grant != "client_credentials":
            return wire.refused(403, "unsupported_grant_type", f"Unsupported grant type: {grant}")
        client = self._clients.get(parameters.get("client_id", ""))
        secret = parameters.get("client_secret", "").encode()
        if client is None or not hmac.compare_digest(client.secret, secret):
            return wire.refused(401, "access_denied", "Unauthorized")
        audience = parameters.get("audience")
        if not audience:
            return wire.refused(403, "access_denied", wire.NO_AUDIENCE)
        if audience != self.management_audience:
            return wire.refused(403, "access_denied", f"Service not enabled within domain: {audience}")
        if not client.scopes:
            return wire.refused(403, "access_denied", wire.NO_GRANT.format(audience))
        return self._management_token(parameters["client_id"], client)

    def _management_token(self, client_id: str, client: _Client) -> Answer:
        lifetime, now = self.management_token_lifetime, time.time()
        scope = " ".join(client.scopes)
        claims = {
            "iss": self.issuer,
            "sub": f"{client_id}@clients",
            "aud": self.management_audience,
            "iat": int(now),
            "exp": int(now) + lifetime,
            "scope": scope,
            "gty": "client-credentials",
            "azp": client_id,
            "jti": uuid4().hex,
        }
        token = sign(claims, algorithm="RS256", key=self._own_key("RS256"))
        self._management_tokens[token] = (now + lifetime, frozenset(client.scopes))
        body = {"access_token": token, "scope": scope, "expires_in": lifetime, "token_type": "Bearer"}
        return Answer(200, body, {"Cache-Control": "no-store"})

    def _user(self, request: RecordedRequest) -> Answer:
        subject = wire.subject_of(request)
        if subject is None:
            return wire.bad_user_id(request)
        if request.header("authorization") is None:
            return wire.problem(401, "Missing authentication")
        token = request.bearer
        if token is None or token.count(".") != 2:
            return wire.problem(400, "Bad HTTP authentication header format", errorCode="Bearer")
        expires_at, scopes = self._management_tokens.get(token, (math.inf, None))
        message = "Invalid token"
        if expires_at <= time.time():
            message, scopes = "Expired token received for JSON Web Token validation", None
        if scopes is None:
            return wire.problem(401, message, attributes={"error": message})
        if "read:users" not in scopes:
            message = "Insufficient scope, expected any of: read:users"
            return wire.problem(403, message, errorCode="insufficient_scope")
        if subject not in self._users:
            return wire.problem(404, "The user does not exist.", errorCode="inexistent_user")
        profile = wire.profile(subject, self._users[subject], with_tokens="read:user_idp_tokens" in scopes)
        try:
            return Answer(200, wire.selected(profile, request.query), {"Cache-Control": "no-store"})
        except ValueError as exc:
            return wire.problem(400, f"Query validation error: '{exc}'.", errorCode="invalid_query_string")

    def _own_key(self, algorithm: str) -> SigningKey:
        key = signing_key(algorithm, self._generation)
        if key not in self._published:
            self._published.append(key)
        return key

    def _known_issuer(self) -> str:
        if not self.issuer:
            raise ValueError("the issuer is not known yet: serve the tenant first, or say Auth0(issuer=…)")
        return self.issuer
