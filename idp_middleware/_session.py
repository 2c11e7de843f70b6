"""Who is calling: a `Caller` from the cookie session of the app around us, and proof that the app's own page asked.

Knows what Starlette's SessionMiddleware and AuthenticationMiddleware leave in the scope, and what browsers say of where
a request comes from. Knows nothing of cookies, which are those middlewares' business, nor of tokens and routes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from starlette.requests import HTTPConnection

from idp_middleware._claims import check_subject, scopes, string_set, text
from idp_middleware._public_urls import public_origin
from idp_middleware._types import Caller
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import CallerForbidden, ConfigurationError, NotMine

ISSUER: Final = "urn:idp-middleware:session"
"""Who vouches for a session's subject, unless told: nobody who issues tokens, so that no two users get mixed up."""

HEADER: Final = "X-CSRF"

# Browsers send no such field by themselves, and pages of other origins can't without a preflight.
_HEADER = re.compile(r"[Xx]-[A-Za-z0-9-]+\Z")


class SessionAuthenticator:
    """The user of a server-rendered app, or of a single-page app with a backend of its own, by the session.

    The middleware that makes the session runs outside of `IdPMiddleware`; with `add_middleware`, that is the one added
    later. A request with a session that nobody has logged in to is `NotMine`.

    Browsers send cookies along with whatever any page makes them ask, so each request, a GET too, has to show that the
    app's own page asked (RFC 10017 section 6.1.3.3), or is refused with 403:

    - it has the field `header` with the value 1, exactly once: pages of other origins can't send it without asking
      first, which nobody but you answers (with a CORS middleware);
    - `Origin`, where the browser sends it, is our own (scheme and `Host` of the request) or one of `allowed_origins`;
      "null" is neither;
    - `Sec-Fetch-Site`, where the browser sends it, is `same-origin`; with an allowed `Origin`, anything.

    Pages can't set fields on a WebSocket, but browsers always send an `Origin` with one: there it is required instead.

    Behind a proxy that ends TLS, the server has to be told to believe its `X-Forwarded-Proto` (uvicorn:
    `--proxy-headers`, `--forwarded-allow-ips`), or else name your own origin in `allowed_origins`.

    Args:
        subject: where the session has the user's id at the identity provider: a key, or the way to it through nested
            tables as in `user.sub`. Default `sub`.
        user: take `scope["user"]` and `scope["auth"]`, as AuthenticationMiddleware leaves them, instead of the session:
            the identity of an authenticated user, and the scopes.
        issuer: who vouches for the subject. Those of another issuer are other users, so with the default a session and
            a token never share what is kept; name the identity provider's issuer for its own subjects.
        scope_claims: keys beside the subject's that hold scopes, as a space-separated string or a list.
        header: the field to ask for; must start with `X-`.
        allowed_origins: origins of pages that may use the session, such as `https://app.example.com`.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        subject: str | None = None,
        user: bool = False,
        issuer: str = ISSUER,
        scope_claims: Collection[str] = ("scope", "scp", "permissions"),
        header: str = HEADER,
        allowed_origins: Collection[str] = (),
    ) -> None:
        if user and subject is not None:
            raise ConfigurationError("is for the session; the user has an identity", key="subject")
        if not isinstance(header, str) or not _HEADER.match(header):
            raise ConfigurationError("must be a field name that starts with X-", key="header")
        self._subject = "sub" if subject is None else subject
        self._path = self._subject.split(".")
        if not all(self._path):
            raise ConfigurationError("must be keys with dots between them", key="subject")
        self._user = user
        self._issuer = text(issuer, "issuer")
        self._scope_claims = string_set(scope_claims, "scope_claims") if scope_claims else frozenset()
        self._header = header.lower().encode()
        self._allowed_origins = frozenset(
            map(_origin, allowed_origins and string_set(allowed_origins, "allowed_origins"))
        )

    def __repr__(self) -> str:
        return "SessionAuthenticator(user=True)" if self._user else f"SessionAuthenticator(subject={self._subject!r})"

    @property
    def issuer(self) -> str:
        """Who vouches for its callers."""
        return self._issuer

    @property
    def security_scheme(self) -> dict[str, str]:
        """As an OpenAPI document has it: the cookie goes along by itself, the field has to be sent."""
        name, described = (
            self._header.decode(),
            "1, on a page of the app's own origin; the session's cookie does the rest.",
        )
        return {"type": "apiKey", "in": "header", "name": name, "description": described}

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        """The user whose session it is.

        Raises:
            NotMine: nobody is logged in.
            CallerForbidden: somebody is, but it can't be told that the app's own page asked.
            ConfigurationError: the middleware around us that has to provide the session or user is missing, or what
                it provides is not a string.
        """
        subject, granted = self._from_user(conn) if self._user else self._from_session(conn)
        self._check_page(conn)
        claims = {"iss": self._issuer, "sub": subject}
        check_subject(claims)
        return Caller(subject=subject, scopes=granted, claims=claims)

    def _from_session(self, conn: HTTPConnection) -> tuple[str, frozenset[str]]:
        if "session" not in conn.scope:
            raise ConfigurationError(
                "there is no session: SessionMiddleware has to run outside of IdPMiddleware, so add it after that"
            )
        *way, key = self._path
        table: Any = conn.scope["session"]
        for step in way:
            table = table.get(step) if isinstance(table, Mapping) else None
        subject = table.get(key) if isinstance(table, Mapping) else None
        return _string(subject, f"the session's {self._subject}"), scopes(table, self._scope_claims)

    def _from_user(self, conn: HTTPConnection) -> tuple[str, frozenset[str]]:
        if "user" not in conn.scope:
            raise ConfigurationError(
                "there is no user: AuthenticationMiddleware has to run outside of IdPMiddleware, so add it after that"
            )
        user = conn.scope["user"]
        # Exactly: a method of that name, as some frameworks have, is always true.
        if user.is_authenticated is not True:
            raise NotMine("the user is not authenticated", error=None, scheme=_SCHEME)
        try:
            subject = user.identity
        except NotImplementedError:
            raise ConfigurationError("the user's class has no identity") from None
        granted = getattr(conn.scope.get("auth"), "scopes", ())
        return _string(subject, "the user's identity"), scopes({"scope": list(granted)}, ("scope",))

    def _check_page(self, conn: HTTPConnection) -> None:
        """Raises `CallerForbidden` unless a page that may has made the browser ask."""
        found: dict[bytes, list[bytes]] = {self._header: [], b"origin": [], b"sec-fetch-site": []}
        for name, value in conn.scope["headers"]:
            if (values := found.get(name.lower())) is not None:
                values.append(value)
        websocket = conn.scope["type"] == "websocket"
        origins, sites = found[b"origin"], found[b"sec-fetch-site"]
        if websocket and not origins:
            raise CallerForbidden("a WebSocket with a session, but no Origin")
        if not websocket and found[self._header] != [b"1"]:
            raise CallerForbidden(f"a session, but no field {self._header.decode()}: 1")
        if len(origins) == 1 and origins[0].decode("latin-1") in self._allowed_origins:
            return
        # What can't be told is "", and so might an Origin be.
        if origins and (not origins[0] or origins != [_own_origin(conn)]):
            raise CallerForbidden("a session, but the page is of another origin")
        if sites not in ([], [b"same-origin"]):
            raise CallerForbidden("a session, but the browser says that no page of ours asked")


# A 401 has to name a scheme (RFC 9110 section 11.6.1), and none is registered for sessions. Not Bearer: a token is not
# what is missing.
_SCHEME: Final = "Cookie"


def _string(value: object, what: str) -> str:
    if value is None or value == "":
        raise NotMine("nobody is logged in", error=None, scheme=_SCHEME)
    if not isinstance(value, str):
        raise ConfigurationError(f"{what} is a {type(value).__name__}, not a string")
    return value


def _own_origin(conn: HTTPConnection) -> bytes:
    # As browsers write it (RFC 6454 section 6.1); a WebSocket is asked for by a page of http or https.
    return re.sub("^ws", "http", public_origin(conn.scope)).lower().encode()


def _origin(value: str) -> str:
    """As browsers write it: without a default port."""
    origin, path, query = parse_base_url(value, "allowed_origins")
    if path or query:
        raise ConfigurationError(
            f"{value!r} is more than an origin, such as https://app.example.com", key="allowed_origins"
        )
    return f"{origin.scheme}://{origin.authority.decode()}"
