"""Every way a request can fail, and the answer each becomes.

    ConfigurationError (a ValueError)     a mistake in the set-up; never an answer
    CheckFailed                           what `idp-middleware check` shows; never an answer
    IdPError
    ├── BadRequest                  400
    │   └── BodyTooLarge            413
    ├── CallerUnauthenticated       401
    │   └── InteractionRequired     401
    │   └── NotMine                       and another authenticator may be asked
    ├── CallerForbidden             403
    ├── RouteNotFound               404
    ├── MethodNotAllowed            405
    ├── TooManyRequests             429
    ├── RouteOverloaded             503
    ├── TokenError                        no token for this caller
    │   ├── IdentityNotLinked       403
    │   ├── ReconnectRequired       403
    │   ├── IdentityAmbiguous       409
    │   ├── TokenSourceFailed       502
    │   ├── TokenSourceUnavailable  503
    │   │   └── TokenSourceBusy     503
    │   └── TokenSourceTimeout      504
    └── UpstreamError                     the provider's API did not answer
        ├── UpstreamUnreachable     502
        └── UpstreamTimeout         504
    ClientDisconnected                    nobody is left to answer
    UpstreamAborted                       after the response started: can only break the connection

An exception knows its status, its problem name and what may be told to the caller. Its `str` is for the operator's
log; neither carries a secret. This module imports nothing of ours.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

PROBLEM_TYPE_PREFIX = "urn:idp-middleware:problem:"


class ConfigurationError(ValueError):
    """A mistake in the set-up, told in one line that names where it is, and for a file what explains it.

    `key`, `table` and `file` are filled in by whoever knows them on the way out.
    """

    def __init__(
        self, message: str, *, key: str | None = None, table: str | None = None, file: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.table = table
        self.file = file

    def __str__(self) -> str:
        where = [part for part in (self.file, f"[{self.table}]" if self.table else None, self.key) if part]
        told = f"{': '.join(where)}: {self.message}" if where else self.message
        return f"{told} (idp-middleware explain {self.topic})" if self.file else told

    @property
    def topic(self) -> str:
        """What `idp-middleware explain` tells of this table by: `routes` of `routes.github`."""
        if re.fullmatch(r"routes\..+\.rules(?: #\d+)?", self.table or ""):
            return "rules"
        return re.split(r"[. ]", self.table)[0] if self.table else "configuration"


class CheckFailed(Exception):
    """What the `check()` of an authenticator, a token source or a store found wrong, for `idp-middleware check`.

    The message says what is wrong; `todo` is what to do about it, in one sentence to the operator. Neither holds a
    secret.
    """

    def __init__(self, message: str, *, todo: str) -> None:
        super().__init__(message)
        self.todo = todo


class IdPError(Exception):
    """Base of all that becomes an answer.

    The message is for the operator's log. What the caller reads is `title` and the subclass's members.
    """

    status: ClassVar[int] = 500
    name: ClassVar[str] = "internal"
    title: ClassVar[str] = "The request failed."
    proxy_error: str = "proxy_internal_error"
    """The error type for `Proxy-Status` (RFC 9209 section 2.3)."""

    def members(self) -> dict[str, Any]:
        """Extension members of the problem document (RFC 9457 section 3.2)."""
        return {}

    def headers(self) -> list[tuple[str, str]]:
        """Header fields beyond those that every answer of ours has."""
        return []


class BadRequest(IdPError):
    """A target that can't be joined to the upstream safely, or a malformed header."""

    status = 400
    name = "bad-request"
    title = "The request is malformed or its path cannot be forwarded safely."
    proxy_error = "http_request_error"


class BodyTooLarge(BadRequest):
    """The body is over the route's `max_body`."""

    status = 413
    name = "body-too-large"
    title = "The request body is larger than this route accepts."


def _quoted(value: str) -> str:
    """A quoted-string (RFC 9110 section 5.6.4) of what may stand in one; anything else becomes a space."""
    clean = "".join(c if " " <= c <= "~" else " " for c in value)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


class CallerUnauthenticated(IdPError):
    """No, an expired, a forged or a foreign token (RFC 6750 section 3).

    `error` is None where no token was sent at all: then the challenge carries no error code (section 3.1).
    """

    status = 401
    name = "caller-unauthenticated"
    title = "The request needs a valid access token."
    proxy_error = "http_request_denied"

    def __init__(self, message: str = "", *, error: str | None = "invalid_token", scheme: str = "Bearer") -> None:
        super().__init__(message)
        self.error = error
        self.scheme = scheme

    def headers(self) -> list[tuple[str, str]]:
        if self.error is None:
            return [("www-authenticate", self.scheme)]
        return [
            (
                "www-authenticate",
                f'{self.scheme} error={_quoted(self.error)}, error_description="The access token is not valid here"',
            )
        ]


class NotMine(CallerUnauthenticated):
    """Nothing in the request is meant for this authenticator, so another may be asked.

    A credential that is this authenticator's own, only not valid, is a plain `CallerUnauthenticated` and ends there:
    who sends an expired token is not to be somebody else by a cookie. Where no other is asked, this is a 401 too.
    """


class InteractionRequired(CallerUnauthenticated):
    """The identity provider gives no token before the user has signed in again and met its demands (a second factor).

    `claims` are the demands, the JSON text that it sent: the client adds them to its next authorization request and
    comes back with the new token. The challenge is Microsoft's, which its client libraries read: `claims` in Base64
    (https://learn.microsoft.com/entra/identity-platform/claims-challenge). Trying again with the same token is useless.
    """

    name = "interaction-required"
    title = "The user must sign in again and meet what the identity provider asks for."

    def __init__(self, message: str = "", *, claims: str | None = None, authorization_uri: str | None = None) -> None:
        super().__init__(message, error="insufficient_claims" if claims else "interaction_required")
        self.claims = claims
        self.authorization_uri = authorization_uri

    def _encoded(self) -> str | None:
        return base64.b64encode(self.claims.encode("utf-8", "replace")).decode() if self.claims else None

    def members(self) -> dict[str, Any]:
        # Besides the header, which a page of another origin sees only if it is exposed to it.
        return {"claims": claims} if (claims := self._encoded()) else {}

    def headers(self) -> list[tuple[str, str]]:
        parameters = {
            "realm": "",
            "authorization_uri": self.authorization_uri,
            "error": self.error,
            "claims": self._encoded(),
        }
        told = ", ".join(f"{name}={_quoted(value)}" for name, value in parameters.items() if value is not None)
        return [("www-authenticate", f"{self.scheme} {told}")]


class CallerForbidden(IdPError):
    """A scope is missing, or the path is not allowed."""

    status = 403
    name = "caller-forbidden"
    title = "The caller may not do this."
    proxy_error = "http_request_denied"

    def __init__(self, message: str = "", *, scopes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.scopes: tuple[str, ...] = tuple(sorted(scopes))

    def headers(self) -> list[tuple[str, str]]:
        if not self.scopes:
            return []
        return [("www-authenticate", f'Bearer error="insufficient_scope", scope={_quoted(" ".join(self.scopes))}')]


class RouteNotFound(IdPError):
    """Under the prefix, but on no route."""

    status = 404
    name = "route-not-found"
    title = "There is no such route."
    proxy_error = "destination_not_found"


class MethodNotAllowed(IdPError):
    """The route does not take this method."""

    status = 405
    name = "method-not-allowed"
    title = "The route does not allow this method."
    proxy_error = "http_request_denied"

    def __init__(self, message: str = "", *, allowed: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.allowed: tuple[str, ...] = tuple(sorted(allowed))

    def headers(self) -> list[tuple[str, str]]:
        return [("allow", ", ".join(self.allowed))]


class TooManyRequests(IdPError):
    """As many requests of this caller are under way on the route as one may have (RFC 6585 section 4)."""

    status = 429
    name = "too-many-requests"
    title = "Too many requests of yours are under way; wait for one to end."
    proxy_error = "http_request_denied"

    def headers(self) -> list[tuple[str, str]]:
        return [("retry-after", "1")]


class RouteOverloaded(IdPError):
    """As many requests are under way on the route as it takes, whoever's they are."""

    status = 503
    name = "route-overloaded"
    title = "Too many requests are under way on this route."
    proxy_error = "connection_limit_reached"

    def headers(self) -> list[tuple[str, str]]:
        return [("retry-after", "1")]


class TokenError(IdPError):
    """There is no token for this caller."""

    status = 502
    proxy_error = "proxy_internal_response"


class IdentityNotLinked(TokenError):
    """The user has no such account linked, or the identity provider doesn't know the user."""

    status = 403
    name = "identity-not-linked"
    title = "The user has not linked an account for this connection."

    def __init__(self, message: str = "", *, connection: str | None = None, connect_url: str | None = None) -> None:
        super().__init__(message)
        self.connection = connection
        self.connect_url = connect_url

    def members(self) -> dict[str, Any]:
        members = {"connection": self.connection, "connect_url": self.connect_url}
        return {name: value for name, value in members.items() if value is not None}


class ReconnectRequired(IdentityNotLinked):
    """Linked, but the provider has withdrawn it, or `scopes` are missing: the user must connect the account again."""

    name = "reconnect-required"
    title = "The user must connect this account again."

    def __init__(
        self,
        message: str = "",
        *,
        connection: str | None = None,
        connect_url: str | None = None,
        scopes: Iterable[str] = (),
    ) -> None:
        super().__init__(message, connection=connection, connect_url=connect_url)
        self.scopes: tuple[str, ...] = tuple(sorted(scopes))

    def members(self) -> dict[str, Any]:
        members = super().members()
        return {**members, "scopes": list(self.scopes)} if self.scopes else members


class IdentityAmbiguous(TokenError):
    """Several linked accounts fit and the request names none.

    `accounts` are ids at the provider, for the header `IdP-Account`.
    """

    status = 409
    name = "identity-ambiguous"
    title = "Several linked accounts fit; name one with the header IdP-Account."

    def __init__(self, message: str = "", *, accounts: Sequence[str] = (), connection: str | None = None) -> None:
        super().__init__(message)
        self.accounts: tuple[str, ...] = tuple(accounts)
        self.connection = connection

    def members(self) -> dict[str, Any]:
        members: dict[str, Any] = {"accounts": list(self.accounts)}
        if self.connection is not None:
            members["connection"] = self.connection
        return members


class TokenSourceFailed(TokenError):
    """The identity provider answered nonsense or refused our client.

    `todo` is what the operator can do about it, where that is known; it is the end of the message, too.
    """

    name = "token-source-failed"
    title = "The identity provider did not give a token."

    def __init__(self, message: str = "", *, todo: str = "") -> None:
        super().__init__(f"{message}; {todo}" if todo else message)
        self.todo = todo


class TokenSourceUnavailable(TokenError):
    """The identity provider is unreachable or rate limits us.

    `retry_after` is in seconds.
    """

    status = 503
    name = "token-source-unavailable"
    title = "The identity provider cannot be reached right now."
    proxy_error = "connection_limit_reached"

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> list[tuple[str, str]]:
        seconds = 1 if self.retry_after is None else max(1, math.ceil(self.retry_after))
        return [("retry-after", str(seconds))]


class TokenSourceBusy(TokenSourceUnavailable):
    """It is there, but limits our rate, or is asked as much as we let it be; says nothing of its health."""


class TokenSourceTimeout(TokenError):
    """The identity provider did not answer in time."""

    status = 504
    name = "token-source-timeout"
    title = "The identity provider did not answer in time."
    proxy_error = "http_response_timeout"


class UpstreamError(IdPError):
    """The provider's API did not answer."""

    status = 502


class UpstreamUnreachable(UpstreamError):
    """DNS, connect, TLS, or a reset before a response; `error` is RFC 9209's word for which."""

    name = "upstream-unreachable"
    title = "The provider's API cannot be reached."
    proxy_error: str = "destination_unavailable"

    def __init__(self, message: str = "", *, error: str | None = None) -> None:
        super().__init__(message)
        if error is not None:
            self.proxy_error = error


class UpstreamTimeout(UpstreamError):
    """The provider's API did not answer in time."""

    status = 504
    name = "upstream-timeout"
    title = "The provider's API did not answer in time."
    proxy_error = "http_response_timeout"


class ClientDisconnected(Exception):
    """The client left; there is nobody to answer."""


class UpstreamAborted(Exception):
    """The upstream broke off after the response had started.

    Raised out of the application so that the server breaks the client's connection too: a clean end would pass a
    truncated body off as whole (RFC 9112 section 8).
    """


def problem(error: IdPError) -> Mapping[str, Any]:
    """The problem document (RFC 9457) that a caller sees for `error`."""
    return {
        "type": PROBLEM_TYPE_PREFIX + error.name,
        "title": error.title,
        "status": error.status,
        **error.members(),
    }
