"""`idp-middleware check`: reach everything that a configuration names, with what the middleware itself would use.

Knows what each kind of authenticator and token source needs to be able to work: one function for each, in the tables
at the end; a kind without one has nothing to reach. A finding holds no secret, since no error of ours does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from starlette.requests import HTTPConnection

from idp_middleware._any_of import AnyOf
from idp_middleware._cache import TokenCache
from idp_middleware._introspection import IntrospectionAuthenticator
from idp_middleware._jwt import JWTAuthenticator
from idp_middleware._middleware import IdPMiddleware
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token
from idp_middleware._upstream import Upstream
from idp_middleware.config import Config
from idp_middleware.errors import CallerUnauthenticated, IdPError
from idp_middleware.sources import Auth0Management, ClientCredentials


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    ok: bool
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAIL':<6}{self.what:<24}{self.detail}"


class _Wrong(Exception):
    """Reached, but it would not work; says why."""


async def check(config: Config) -> list[Finding]:
    """Reach each way in, source and upstream, and the cache, all at once; one finding for each, in that order."""
    middleware = IdPMiddleware(**config.arguments())
    authenticator = config.authenticator
    ways_in = authenticator.authenticators if isinstance(authenticator, AnyOf) else (authenticator,)
    numbers = [f" #{number}" for number in range(1, len(ways_in) + 1)] if len(ways_in) > 1 else [""]
    try:
        return await asyncio.gather(
            *(_probe(f"authenticator{number}", each) for number, each in zip(numbers, ways_in, strict=True)),
            *(_probe(f"source {name}", source) for name, source in config.sources.items()),
            *(
                _finding(f"route {name}", _upstream(middleware._upstream, route))
                for name, route in config.routes.items()
            ),
            *([_finding("cache", _cache(config.cache))] if config.cache else ()),
        )
    finally:
        await middleware.aclose()
        for source in config.sources.values():
            # Those that no route uses are not the middleware's.
            if (aclose := getattr(source, "aclose", None)) is not None:
                await aclose()


async def _probe(what: str, part: object) -> Finding:
    probe = _PROBES.get(type(part))
    return await _finding(what, probe(part)) if probe else Finding(True, what, "nothing to reach")


async def _finding(what: str, probe: Awaitable[str]) -> Finding:
    try:
        return Finding(True, what, await probe)
    except _Wrong as exc:
        return Finding(False, what, str(exc))
    except IdPError as exc:
        return Finding(False, what, f"{exc.name}: {exc}")


async def _issuer(authenticator: JWTAuthenticator) -> str:
    counts = []
    for algorithm in sorted(authenticator._policy.algorithms):
        keys = await authenticator._keys.find(None, algorithm)
        counts.append(f"{len(keys)} for {algorithm}")
    return f"{authenticator._policy.issuer} has keys: {', '.join(counts)}"


async def _introspection(authenticator: IntrospectionAuthenticator) -> str:
    """Nobody's token: to call it not active, the server has to accept our client first."""
    scheme = min(authenticator._schemes)
    made_up = HTTPConnection({"type": "http", "headers": [(b"authorization", scheme + b" " + uuid4().hex.encode())]})
    try:
        await authenticator.authenticate(made_up)
    except CallerUnauthenticated:
        return f"{authenticator._url} answers about tokens"
    raise _Wrong("calls a token active that has just been made up")


async def _auth0_management(source: Auth0Management) -> str:
    token = await source._management.token(None, source._grant)
    if missing := {"read:users", "read:user_idp_tokens"} - token.scopes:
        raise _Wrong(f"gives a management token, but not for {', '.join(sorted(missing))}: grant it to the application")
    return "gives a management token for read:users and read:user_idp_tokens"


async def _client_credentials(source: ClientCredentials) -> str:
    # Any route would do: this source looks at neither caller nor route.
    await source.token(_NOBODY, ProxyRoute("https://localhost", token_source=source))
    return "gives a token"


async def _upstream(upstream: Upstream, route: ProxyRoute) -> str:
    """Any answer counts: without a token, most can only refuse."""
    if route.instance is not None:
        return f"{route.address} is another server for each user, so there is none to reach"
    response = await upstream.send(
        route.origin, b"HEAD", route.target(b"", b""), list(route.fallback_headers), None, route.timeout
    )
    await response.aclose()
    return f"{route.address} answers ({response.status})"


async def _cache(cache: TokenCache) -> str:
    """By what it does: a cache never raises, since the middleware can do without."""
    key, written = ("idp-middleware check",), Token(uuid4().hex)
    await cache.set(key, written, time(), ttl=10.0)
    read = await cache.get(key)
    await cache.delete(key)
    if read is None or read[0].value != written.value:
        raise _Wrong("does not give back what was put in")
    return "gives back what was put in"


_NOBODY = Caller("idp-middleware check")

_PROBES: Mapping[type, Callable[[Any], Awaitable[str]]] = {
    JWTAuthenticator: _issuer,
    IntrospectionAuthenticator: _introspection,
    Auth0Management: _auth0_management,
    ClientCredentials: _client_credentials,
}
