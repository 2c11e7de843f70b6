"""A strict local Auth0 tenant: login, client-credentials grant, Management API user look-up, Token Vault, discovery.

Refuses what Auth0 refuses, in the words Auth0 uses. Knows nothing of the middleware.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from idp_middleware.testing import _auth0_wire as wire
from idp_middleware.testing._auth0_codes import GRANT as CODE
from idp_middleware.testing._auth0_codes import Codes
from idp_middleware.testing._auth0_login import Account, Logins
from idp_middleware.testing._auth0_vault import GRANT, Connected, Vault
from idp_middleware.testing._auth0_wire import Identity
from idp_middleware.testing._clients import PUBLIC, Clients, NotAuthenticated
from idp_middleware.testing._double import Answer, Fields, Payload
from idp_middleware.testing._issuer import Issuer
from idp_middleware.testing._keys import SigningKey, sign
from idp_middleware.testing._recording import RecordedRequest


class Auth0(Issuer):
    """An Auth0 tenant as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `GET /.well-known/openid-configuration`, `/.well-known/jwks.json` | discovery and the key set |
    | `GET /authorize`, `/u/login` | a login page without passwords, and a code for the app |
    | `POST /oauth/token` | tokens for a code; a management token for a secret; a provider's from Token Vault |
    | `GET /oidc/logout` | the end of the session, and back to the app |
    | `GET /api/v2/users/{id}` | a user with the linked identities |

    `issuer` is the tenant's URL; left empty, `serve` fills it in. `management_token_lifetime` is in seconds; Auth0's
    own default is a day.
    """

    def __init__(self, issuer: str = "") -> None:
        super().__init__(issuer)
        self.management_token_lifetime = 86400
        self._clients = Clients()
        self._vault = Vault()
        self._users: dict[str, list[Identity]] = {}
        self._codes = Codes(self)
        self._logins = Logins(self._clients, self._users, self._codes)
        self._management_tokens: dict[str, tuple[float, frozenset[str]]] = {}

    def spelled(self, url: str) -> str:
        return url + "/"

    def metadata(self) -> dict[str, Any]:
        return wire.discovery(self._known_issuer())

    @property
    def management_audience(self) -> str:
        """The audience of the Management API."""
        return self._known_issuer() + "api/v2/"

    def add_client(
        self,
        client_id: str,
        client_secret: str | None = None,
        *,
        scopes: Collection[str] = ("read:users", "read:user_idp_tokens"),
        auth: str = "client_secret_post",
        key: SigningKey | None = None,
        vault: bool = False,
        api: str | None = None,
        redirect_uris: Collection[str] = (),
        logout_uris: Collection[str] = (),
    ) -> None:
        """Register an application, with the Management API scopes it was granted.

        Without any scope it has no grant for the Management API at all. It authenticates with the secret in the body,
        as Auth0 has it by default, or as `auth` says; or with a `key` (`private_key_jwt`). `vault` grants Token Vault;
        for access tokens it must also be linked to their `api`, the audience.

        Users log in to those that have `redirect_uris`. A single-page app has no secret and `auth="none"`: then it
        needs PKCE, and has no grant but the code's. `logout_uris` are where a logout may lead.
        """
        settings = {
            "scopes": () if auth == PUBLIC else tuple(scopes),
            "vault": vault,
            "api": api,
            "redirect_uris": frozenset(redirect_uris),
            "logout_uris": frozenset(logout_uris),
        }
        self._clients.add(client_id, client_secret, methods=[auth], key=key, **settings)

    def add_api(self, audience: str, scopes: Collection[str] = ()) -> None:
        """Register an API that users' tokens may be for, and the scopes an app may ask for there."""
        self._codes.apis[audience] = frozenset(scopes)

    def add_account(self, subject: str, identity: Identity, *, vault: bool = False) -> None:
        """An account of the user at a provider, which they may connect: then it is linked, or put into Token Vault.

        They are asked whether to when an app's authorization request names its `connection`. A tenant needs an Action
        that links accounts for the one, and the My Account API for the other.
        """

        def connect() -> None:
            if vault:
                token, account = identity.access_token or "", identity.user_id
                self.connect(subject, identity.connection, token, account=account, expires_in=identity.expires_in)
            else:
                self.link(subject, identity)

        self._logins.add_account(subject, identity.connection, Account(identity.user_id, connect))

    def connect(
        self,
        subject: str,
        connection: str,
        access_token: str,
        *,
        account: str | None = None,
        scope: str = "",
        expires_in: int | None = 1377,
    ) -> None:
        """Put a connected account into Token Vault, or renew what is there; `account` is its id at the provider."""
        self._vault.connect(subject, Connected(connection, account, access_token, scope, expires_in))

    def disconnect(self, subject: str, connection: str) -> None:
        """Remove the connected accounts of a connection from Token Vault."""
        self._vault.disconnect(subject, connection)

    def withdraw(self, subject: str, connection: str) -> None:
        """Fail to renew the tokens of a connection from now on, as if the user had withdrawn consent there."""
        self._vault.withdraw(subject, connection)

    def issue_refresh_token(self, subject: str, client_id: str) -> str:
        """A refresh token of Auth0's for an application. `revoke` takes it too."""
        return self._vault.issue_refresh_token(subject, client_id)

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
        answer = super().answer(request)
        answer.headers = {**dict(answer.headers), **self._logins.readable_by(request)}
        return answer

    def endpoint(self, request: RecordedRequest) -> Answer:
        if (answer := self._logins.answer(request)) is not None:
            return answer
        match request.method, request.raw_path:
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
        if grant not in ("client_credentials", CODE, GRANT):
            return wire.refused(403, "unsupported_grant_type", f"Unsupported grant type: {grant}")
        try:
            client = self._clients.authenticate(request, parameters, audiences=[self.issuer])
        except NotAuthenticated:
            return wire.refused(401, "access_denied", "Unauthorized")
        if grant == CODE:
            return self._codes.exchange(parameters, client)
        if PUBLIC in client.methods:
            return wire.refused(403, "unauthorized_client", f"Grant type '{grant}' not allowed for the client.")
        if grant == GRANT:
            return self._vault.answer(parameters, client, self)
        audience = parameters.get("audience")
        if not audience:
            return wire.refused(403, "access_denied", wire.NO_AUDIENCE)
        if audience != self.management_audience:
            return wire.refused(403, "access_denied", f"Service not enabled within domain: {audience}")
        if not client.settings["scopes"]:
            return wire.refused(403, "access_denied", wire.NO_GRANT.format(audience))
        return self._management_token(client.client_id, client.settings["scopes"])

    def _management_token(self, client_id: str, scopes: tuple[str, ...]) -> Answer:
        lifetime, now = self.management_token_lifetime, time.time()
        scope = " ".join(scopes)
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
        self._management_tokens[token] = (now + lifetime, frozenset(scopes))
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
