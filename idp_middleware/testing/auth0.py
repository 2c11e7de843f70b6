"""A strict local Auth0 tenant: client-credentials grant, Management API user look-up, discovery and keys.

Refuses what Auth0 refuses, in the words Auth0 uses (https://auth0.com/docs/api). Knows nothing of the middleware.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote
from uuid import uuid4

import jwt

from idp_middleware.testing._double import Answer, Double, Payload, RecordedRequest, _Rule, raw_headers
from idp_middleware.testing._keys import SigningKey, signing_key

_USERS = "/api/v2/users/"
# One segment of a path (RFC 3986 section 3.3): a raw | is no part of one.
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+\Z")
_USER_ID = re.compile(r"[^|%]+\|.+\Z")
_GRANT_HELP = "https://auth0.com/docs/api/management/v2/client-grants/post-client-grants"


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
    profile: Mapping[str, Any] | None = None

    def _document(self, *, with_tokens: bool) -> dict[str, Any]:
        document = {
            "connection": self.connection,
            "user_id": self.user_id,
            "provider": self.provider or self.connection,
            "isSocial": self.is_social,
            "profileData": self.profile,
        }
        if with_tokens:
            document |= {
                "access_token": self.access_token,
                "access_token_secret": self.access_token_secret,
                "refresh_token": self.refresh_token,
                "expires_in": self.expires_in,
            }
        return {name: value for name, value in document.items() if value is not None}


@dataclass(slots=True)
class _Client:
    secret: str = field(repr=False)
    scopes: tuple[str, ...]


class Auth0(Double):
    """An Auth0 tenant as an ASGI app.

    `issuer` is its URL; left empty, `serve` fills it in. `management_token_lifetime` is in seconds; Auth0's default
    is a day. `requests` has what was asked, `count()` how often.
    """

    def __init__(self, issuer: str = "") -> None:
        super().__init__()
        self.issuer = issuer
        self.management_token_lifetime = 86400
        self._clients: dict[str, _Client] = {}
        self._users: dict[str, list[Identity]] = {}
        self._issued: dict[str, tuple[float, frozenset[str]]] = {}
        self._generation = 0
        self._published: list[SigningKey] = [signing_key("RS256", 0)]

    @property
    def issuer(self) -> str:
        """The `iss` of every token, with the slash at the end that Auth0's have."""
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

        Without any scope it has no grant for the Management API at all.
        """
        self._clients[client_id] = _Client(client_secret, tuple(scopes))

    def add_user(self, subject: str, identities: Iterable[Identity] = ()) -> None:
        """Add or replace a user. Raises `ValueError` for a subject that is none of Auth0's (`connection|id`)."""
        if not _USER_ID.match(subject):
            raise ValueError(f"{subject!r} is not a user id of Auth0's, such as auth0|alice")
        self._users[subject] = list(identities)

    def link(self, subject: str, identity: Identity) -> None:
        """Link an account; the same account linked before is replaced. Raises `KeyError` for an unknown user."""
        self.unlink(subject, identity.connection, identity.user_id)
        self._users[subject].append(identity)

    def unlink(self, subject: str, connection: str, user_id: str | None = None) -> None:
        """Unlink the accounts of a connection, or the one named. Raises `KeyError` for an unknown user."""
        self._users[subject] = [
            identity
            for identity in self._users[subject]
            if identity.connection != connection or user_id not in (None, identity.user_id)
        ]

    def remove_user(self, subject: str) -> None:
        """Delete a user. Raises `KeyError` for an unknown one."""
        del self._users[subject]

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

        `claims` and `headers` override what a good token has; None removes it. `expires_in` is in seconds and may be
        negative. The key of an algorithm is published when first asked for; another `key` signs without being
        published. HMAC algorithms need a `key`, which may be a public key in PEM; "none" signs nothing.

        Raises `ValueError` where an algorithm has no key, or the issuer is not known yet.
        """
        now = int(time.time())
        payload = {
            "iss": self._known_issuer(),
            "sub": subject,
            "aud": audience,
            "iat": now,
            "exp": int(now + expires_in),
            "scope": scope or None,
            "azp": "a-single-page-app",
        } | claims
        return self._sign(_without_none(payload), algorithm, key, headers or {})

    def rotate_keys(self, *, keep_old: bool = False) -> None:
        """Sign with new keys from now on; the old ones leave the key set, unless kept as for a planned rotation."""
        self._generation += 1
        fresh = signing_key("RS256", self._generation)
        self._published = [fresh, *self._published] if keep_old else [fresh]

    def revoke_management_tokens(self) -> None:
        """Forget every management token, as if the client's grant had been withdrawn."""
        self._issued.clear()

    def fail(
        self,
        path_prefix: str,
        *,
        status: int = 500,
        times: int | None = None,
        body: Payload | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with an error, the next `times` requests or all of them."""
        phrase = HTTPStatus(status).phrase
        default = {"statusCode": status, "error": phrase, "message": phrase}
        self._rules.append(
            _Rule(
                path_prefix,
                times,
                status=status,
                body=default if body is None else body,
                headers=raw_headers((headers or {}).items()),
            )
        )

    def rate_limit(
        self,
        path_prefix: str,
        *,
        retry_after: int | None = None,
        reset_in: float | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer 429, with `Retry-After` and/or Auth0's `X-RateLimit-*` fields; both in seconds from now."""
        headers = {}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        if reset_in is not None:
            reset = math.ceil(time.time() + reset_in)
            headers |= {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}
        message = "Too many requests. Check the X-RateLimit-Limit, X-RateLimit-Remaining and X-RateLimit-Reset headers."
        body: Payload = {"error": "too_many_requests", "error_description": "Client quota exceeded"}
        if path_prefix.startswith("/api/"):
            body = _problem(429, message, errorCode="too_many_requests")
        self.fail(path_prefix, status=429, times=times, body=body, headers=headers)

    def stall(self, path_prefix: str, seconds: float, *, times: int | None = None) -> None:
        """Wait before answering as usual."""
        self._rules.append(_Rule(path_prefix, times, delay=seconds))

    def drop(self, path_prefix: str, *, times: int | None = None) -> None:
        """Break the connection off after the head of the answer. Needs a real server."""
        self._rules.append(_Rule(path_prefix, times, cut=True))

    def reset_faults(self) -> None:
        """Answer as usual again."""
        self._rules.clear()

    def answer(self, request: RecordedRequest) -> Answer:
        endpoint = (request.method, request.path)
        if endpoint == ("GET", "/.well-known/openid-configuration"):
            return Answer(200, self._discovery())
        if endpoint == ("GET", "/.well-known/jwks.json"):
            return Answer(200, {"keys": [key.jwk for key in self._published]})
        if endpoint == ("POST", "/oauth/token"):
            return self._token(request)
        if request.method == "GET" and request.path.startswith(_USERS):
            return self._user(request)
        return Answer(404, _problem(404, "Not Found"))

    def _discovery(self) -> dict[str, Any]:
        issuer = self._known_issuer()
        return {
            "issuer": issuer,
            "authorization_endpoint": issuer + "authorize",
            "token_endpoint": issuer + "oauth/token",
            "userinfo_endpoint": issuer + "userinfo",
            "jwks_uri": issuer + ".well-known/jwks.json",
            "revocation_endpoint": issuer + "oauth/revoke",
            "response_types_supported": ["code", "token", "id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["HS256", "RS256", "PS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
        }

    def _token(self, request: RecordedRequest) -> Answer:
        try:
            parameters = _parameters(request)
        except ValueError as exc:
            return Answer(400, {"error": "invalid_request", "error_description": str(exc)})
        grant = parameters.get("grant_type")
        if not grant:
            return _refused(400, "invalid_request", "Missing required parameter: grant_type")
        if grant != "client_credentials":
            return _refused(403, "unsupported_grant_type", f"Unsupported grant type: {grant}")
        client_id, secret = parameters.get("client_id", ""), parameters.get("client_secret", "")
        client = self._clients.get(client_id)
        if not hmac.compare_digest(client.secret.encode() if client else b"\0", secret.encode()) or client is None:
            return _refused(401, "access_denied", "Unauthorized")
        audience = parameters.get("audience")
        if not audience:
            return _refused(
                403,
                "access_denied",
                "No audience parameter was provided, and no default audience has been configured",
            )
        if audience != self.management_audience:
            return _refused(403, "access_denied", f"Service not enabled within domain: {audience}")
        if not client.scopes:
            return _refused(
                403,
                "access_denied",
                f'Client is not authorized to access "{audience}". You need to create a "client-grant" associated '
                f"to this API. See: {_GRANT_HELP}",
            )
        return Answer(
            200,
            {
                "access_token": self._management_token(client_id, client),
                "scope": " ".join(client.scopes),
                "expires_in": self.management_token_lifetime,
                "token_type": "Bearer",
            },
            [(b"cache-control", b"no-store")],
        )

    def _management_token(self, client_id: str, client: _Client) -> str:
        now = time.time()
        payload = {
            "iss": self.issuer,
            "sub": f"{client_id}@clients",
            "aud": self.management_audience,
            "iat": int(now),
            "exp": int(now) + self.management_token_lifetime,
            "scope": " ".join(client.scopes),
            "gty": "client-credentials",
            "azp": client_id,
            "jti": uuid4().hex,
        }
        token = self._sign(payload, "RS256", None, {})
        self._issued[token] = (now + self.management_token_lifetime, frozenset(client.scopes))
        return token

    def _user(self, request: RecordedRequest) -> Answer:
        raw_path, _, query = request.target.decode("latin-1").partition("?")
        segment = raw_path.removeprefix(_USERS)
        subject = unquote(segment)
        if not raw_path.startswith(_USERS) or not _SEGMENT.match(segment) or not _USER_ID.match(subject):
            return _bad_user_id(segment)
        scopes = self._granted(request)
        if isinstance(scopes, Answer):
            return scopes
        if "read:users" not in scopes:
            message = "Insufficient scope, expected any of: read:users"
            return Answer(403, _problem(403, message, errorCode="insufficient_scope"))
        parameters = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
        unknown = parameters.keys() - {"fields", "include_fields"}
        if unknown or parameters.get("include_fields", "true") not in ("true", "false"):
            message = f"Query validation error: {', '.join(sorted(unknown)) or 'include_fields'}"
            return Answer(400, _problem(400, message, errorCode="invalid_query_string"))
        if subject not in self._users:
            return Answer(404, _problem(404, "The user does not exist.", errorCode="inexistent_user"))
        document = self._profile(subject, with_tokens="read:user_idp_tokens" in scopes)
        if fields := set(filter(None, parameters.get("fields", "").split(","))):
            wanted = parameters.get("include_fields", "true") == "true"
            document = {name: value for name, value in document.items() if (name in fields) == wanted}
        return Answer(200, document, [(b"cache-control", b"no-store")])

    def _granted(self, request: RecordedRequest) -> frozenset[str] | Answer:
        if request.header("authorization") is None:
            return Answer(401, _problem(401, "Missing authentication"))
        token = request.bearer
        if token is None or token.count(".") != 2:
            return Answer(400, _problem(400, "Bad HTTP authentication header format", errorCode="Bearer"))
        expires_at, scopes = self._issued.get(token, (None, frozenset()))
        if expires_at is None:
            return Answer(401, _problem(401, "Invalid token", attributes={"error": "Invalid token"}))
        if expires_at <= time.time():
            message = "Expired token received for JSON Web Token validation"
            return Answer(401, _problem(401, message, attributes={"error": message}))
        return scopes

    def _profile(self, subject: str, *, with_tokens: bool) -> dict[str, Any]:
        name = subject.rpartition("|")[2]
        return {
            "user_id": subject,
            "name": name,
            "nickname": name,
            "email": f"{name}@example.com",
            "email_verified": True,
            "created_at": "2026-01-01T00:00:00.000Z",
            "updated_at": "2026-01-01T00:00:00.000Z",
            "identities": [identity._document(with_tokens=with_tokens) for identity in self._users[subject]],
        }

    def _known_issuer(self) -> str:
        if not self.issuer:
            raise ValueError("the issuer is not known yet: serve the tenant first, or set Auth0(issuer=…)")
        return self.issuer

    def _sign(self, payload: dict[str, Any], algorithm: str, key: Any, headers: Mapping[str, Any]) -> str:
        if algorithm == "none" or algorithm.startswith("HS"):
            return _forge(payload, algorithm, key, headers)
        if key is None:
            key = signing_key(algorithm, self._generation)
            if key not in self._published:
                self._published.append(key)
        header = {"kid": key.kid} if isinstance(key, SigningKey) else {}
        private = key.private if isinstance(key, SigningKey) else key
        # PyJWT leaves out a header that is None.
        return jwt.encode(payload, private, algorithm=algorithm, headers={**header, **headers})


def _forge(payload: dict[str, Any], algorithm: str, key: Any, headers: Mapping[str, Any]) -> str:
    # By hand, since PyJWT rightly refuses to sign with a public key or a short secret.
    header = _without_none({"alg": algorithm, "typ": "JWT", **headers})
    signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, payload))
    signature = b""
    if algorithm != "none":
        if key is None:
            raise ValueError(f"{algorithm} needs a key")
        secret = key.encode() if isinstance(key, str) else key
        signature = hmac.new(secret, signed, f"sha{algorithm[2:]}").digest()
    return (signed + b"." + _base64url(signature)).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _parameters(request: RecordedRequest) -> dict[str, str]:
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind == "application/json":
        values = request.json()
        if not isinstance(values, dict):
            raise ValueError("the body is not an object")
    elif kind == "application/x-www-form-urlencoded":
        values = {
            name: found[0] if len(found) == 1 else None for name, found in parse_qs(request.body.decode()).items()
        }
    else:
        values = {}
    if not all(isinstance(value, str) for value in values.values()):
        raise ValueError("every parameter is one string")
    return values


def _refused(status: int, error: str, description: str) -> Answer:
    return Answer(status, {"error": error, "error_description": description})


def _problem(status: int, message: str, **members: Any) -> dict[str, Any]:
    return {"statusCode": status, "error": HTTPStatus(status).phrase, "message": message, **members}


def _bad_user_id(segment: str) -> Answer:
    message = (
        f"Path validation error: 'Object didn't pass validation for format user-id: {segment}' on property id "
        "(ID of the user to retrieve)."
    )
    return Answer(400, _problem(400, message, errorCode="invalid_uri"))
