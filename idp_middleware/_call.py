"""`idp-middleware call`: one call through the token engine and the HTTP engine that the middleware has, step by step.

What is said of a token is its type, its life, its scopes and a digest to compare it by. Knows how steps are told;
takes them with the same functions as a request under the prefix, from the authorized caller on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from time import monotonic, time
from typing import Final

from idp_middleware._advice import advice
from idp_middleware._authorized import send_authorized
from idp_middleware._body_rewriting import rewritten
from idp_middleware._engine import Engine
from idp_middleware._given_caller import caller_named, caller_of, route_named
from idp_middleware._request_headers import without
from idp_middleware._routes import ProxyRoute
from idp_middleware._tokens import TokenEngine
from idp_middleware._types import Caller, Token
from idp_middleware._upstream import UpstreamResponse
from idp_middleware.config import Config
from idp_middleware.errors import (
    CheckFailed,
    IdentityNotLinked,
    IdPError,
    TokenSourceFailed,
    TokenSourceUnavailable,
    UpstreamAborted,
)

MAX_SHOWN: Final = 64 * 1024
"""Bytes of the upstream's body."""

_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")

Tell = Callable[[str, str], None]
"""Shows one step: its name, and what came of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What to call, and as whom: a `subject` that is taken at its word, or the caller's own `token`."""

    route: str
    path: str
    method: str = "GET"
    subject: str | None = None
    issuer: str | None = None
    account: str | None = None
    token: str | None = field(default=None, repr=False)


async def call(config: Config, wanted: Call, tell: Tell) -> bytes | None:
    """The upstream's answer, up to `MAX_SHOWN` bytes; None where it did not come to that, and `tell` has heard why.

    Raises `ConfigurationError` for a route that is not in the file, or an issuer that has to be named.
    """
    # An API that echoes requests has the token, and so would whoever reads this.
    route = replace(route_named(config, wanted.route), name=wanted.route, scrub=True, rewrite_bodies=False)
    tokens, upstream = TokenEngine(config.cache), Engine()
    try:
        return await _steps(config, wanted, route, tokens, upstream, tell)
    except (IdPError, CheckFailed) as exc:
        wrong, todo = advice(exc)
        if isinstance(exc, TokenSourceUnavailable):
            todo = "idp-middleware check tells which server that is, and why; if it finds nothing, try again later"
        if type(exc) is IdentityNotLinked and wanted.subject is not None:
            todo += "; if they have, check the subject after --as"
        if isinstance(exc, TokenSourceFailed) and "comes with no credential" in str(exc):
            todo = "this source hands over the caller's own token: give one with --token-file instead of --as"
        tell("FAIL", wrong)
        tell("to do", todo)
        return None
    finally:
        await tokens.aclose()
        await upstream.aclose()
        for part in (config.authenticator, *config.sources.values()):
            if (aclose := getattr(part, "aclose", None)) is not None:
                await aclose()


async def _steps(
    config: Config, wanted: Call, route: ProxyRoute, tokens: TokenEngine, upstream: Engine, tell: Tell
) -> bytes:
    path, _, query = wanted.path.partition("?")
    rest = f"/{path.lstrip('/')}".encode() if path.strip("/") else b""
    tell(
        "route", f"{wanted.route}: {wanted.method} {route.address}{rest.decode()}" + (" with a query" if query else "")
    )
    route.check_method(wanted.method)
    route.check_path(rest)
    target = route.target(rest, query.encode())
    caller = await _caller(config, wanted, route, tell)
    source = next(name for name, source in config.sources.items() if source is route.token_source)
    asked_at = monotonic()
    token = await tokens.token(caller, route)
    where = f", connection {route.connection}" if route.connection else ""
    tell("source", f"{source} gave a token{where}, in {_milliseconds(asked_at)}")
    tell("token", _described(token))
    asked_at = monotonic()
    response, used, at, _ = await send_authorized(
        tokens,
        upstream,
        caller,
        route,
        method=wanted.method,
        rest=rest,
        query=query.encode(),
        target=target,
        headers=[*without(list(route.fallback_headers), route.fixed_names), *route.fixed_headers],
        body=None,
        timeout=route.timeout,
    )
    if used.value != token.value:
        tell("token", f"was refused, and renewed once: {_described(used)}")
    response = await rewritten(response, route=at, token=used, scope={}, prefix=config.prefix)
    body = await _body(response)
    kind = dict(response.headers).get(b"content-type", b"no content type").decode("latin-1")
    cut = f", of which the first {MAX_SHOWN} are shown" if len(body) > MAX_SHOWN else ""
    size = f"{len(body) if not cut else f'more than {MAX_SHOWN}'} bytes{cut}"
    tell("upstream", f"status {response.status} in {_milliseconds(asked_at)}; {kind}; {size}")
    if response.status in route.suspect:
        tell("to do", "the API does not take this token: the user may have to connect the account again")
    return body[:MAX_SHOWN]


async def _caller(config: Config, wanted: Call, route: ProxyRoute, tell: Tell) -> Caller:
    if wanted.token is not None:
        caller = replace(await caller_of(config.authenticator, wanted.token), account=wanted.account)
        tell("caller", f"{caller.subject} of {caller.issuer}, by the token that was given")
        route.check_scopes(caller.scopes)
        return caller
    caller = caller_named(config, wanted.subject or "", issuer=wanted.issuer, account=wanted.account)
    tell("caller", f"{caller.subject} of {caller.issuer or 'no issuer'}, taken at your word; scopes are not looked at")
    return caller


def _described(token: Token) -> str:
    life = "expiry unknown" if token.expires_at is None else f"expires in {max(0.0, token.expires_at - time()):.0f} s"
    scopes = f"scopes {' '.join(sorted(token.scopes))}" if token.scopes else "scopes unknown"
    return f"{token.type}, sha256 {sha256(token.value.encode()).hexdigest()[:12]}…; {life}; {scopes}"


def _milliseconds(since: float) -> str:
    return f"{(monotonic() - since) * 1000:.0f} ms"


async def _body(response: UpstreamResponse) -> bytes:
    body = bytearray()
    try:
        while len(body) <= MAX_SHOWN and (chunk := await response.read()):
            body += chunk
    except UpstreamAborted:
        raise CheckFailed("the answer broke off", todo="try again; look at the upstream's own log") from None
    finally:
        await response.aclose()
    return bytes(body)


def show(body: bytes) -> None:
    """The body on standard output: as it is for a program, without what steers a terminal for a terminal."""
    if sys.stdout.isatty():
        body = _CONTROLS.sub(b"?", body).rstrip(b"\n") + b"\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()
