"""A caller by a token in a file or by a name, and a route by its name: what a command is to be done for.

Knows how an authenticator is asked, and what it may have against a token. Says of a token only whom and what it is for.
"""

from __future__ import annotations

import sys
from typing import Any

from starlette.requests import HTTPConnection

from idp_middleware._any_of import AnyOf
from idp_middleware._claims import unverified
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Authenticator, Caller
from idp_middleware.config import Config
from idp_middleware.errors import CallerUnauthenticated, CheckFailed, ConfigurationError

_MAX_TOKEN = 64 * 1024


def read_token(path: str) -> str:
    """The token in a file, or on standard input for `-`. Raises `ConfigurationError`."""
    try:
        if path == "-":
            text = sys.stdin.read(_MAX_TOKEN)
        else:
            with open(path, encoding="ascii") as file:
                text = file.read(_MAX_TOKEN)
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "is not text"
        raise ConfigurationError(f"cannot be read as a token ({reason})", key=path) from None
    token = text.strip().removeprefix("Bearer ")
    if not token or not token.isprintable() or " " in token:
        raise ConfigurationError("holds no token: one line, without spaces", key=path)
    return token


def route_named(config: Config, name: str) -> ProxyRoute:
    """Raises `ConfigurationError` for one that is not in the file."""
    route = config.routes.get(name)
    if route is None:
        there = ", ".join(config.routes)
        raise ConfigurationError(f"there is no such route; there is {there}", table="routes", key=name)
    return route


def caller_named(config: Config, subject: str, *, issuer: str | None, account: str | None) -> Caller:
    """A subject, taken at its word; of the file's issuer, unless another is named.

    Raises `ConfigurationError` where one has to be.
    """
    issuer = _issuer_of(config) if issuer is None else issuer
    return Caller(subject, claims={"iss": issuer} if issuer else {}, account=account)


def _issuer_of(config: Config) -> str:
    """Who vouches for callers, where the configuration leaves no choice."""
    authenticator = config.authenticator
    ways_in = authenticator.authenticators if isinstance(authenticator, AnyOf) else (authenticator,)
    issuers = dict.fromkeys(str(getattr(each, "issuer", "")) for each in ways_in)
    if len(issuers) > 1:
        raise ConfigurationError(f"name the subject's issuer: {', '.join(filter(None, issuers))}", key="--issuer")
    return next(iter(issuers))


async def caller_of(authenticator: Authenticator, token: str) -> Caller:
    """Whom the authenticator takes the bearer of a token for. Raises `CheckFailed` or another error of `errors`."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        # Nobody has logged in there: what sessions have to say.
        "session": {},
    }
    try:
        return await authenticator.authenticate(HTTPConnection(scope))
    except ConfigurationError as exc:
        todo = "try it in the app itself: who is calling is told there by more than a token"
        raise CheckFailed(f"a token alone does not do: {exc}", todo=todo) from None
    except CallerUnauthenticated as exc:
        raise CheckFailed(f"the token is refused: {exc}", todo=_todo(str(exc), token)) from None


def _todo(reason: str, token: str) -> str:
    try:
        header, claims = unverified(token.encode())
    except CallerUnauthenticated:
        return "send an access token as the authenticator wants it; this is no JWT"
    told = {
        "audience": f"it is for {_shown(claims.get('aud'))}: have the app ask for a token for the audience of "
        "[authenticator], or write this one there, if it is this API's",
        "issuer": f"it is from {_shown(claims.get('iss'))}: write that as issuer, exactly, if it is yours",
        "expired": "get a new one; if it is new, compare this machine's clock with the issuer's",
        "not valid yet": "set this machine's clock (by NTP)",
        "algorithm": f"write algorithms = [{_shown(header.get('alg'))}], if that is what the issuer signs with",
        "key of the issuer": "it was not signed by this issuer's present keys: is it of another environment?",
        "type": "send the access token, not the ID token or a refresh token",
        "plain access token": "send the access token, not the ID token or a sender-constrained one",
    }
    return next((todo for words, todo in told.items() if words in reason), "get a new access token from the issuer")


def _shown(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(repr(each)[:200] for each in values[:5])
