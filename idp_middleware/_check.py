"""`idp-middleware check`: reach everything that a configuration names, with what the middleware itself would use.

Each authenticator, source and cache knows by its own `check` what it needs to be able to work (`Checkable`); what has
none has nothing to reach. Here is who is asked, and what an upstream's answer tells. A finding holds no secret, since
no error of ours does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass

from idp_middleware._advice import advice, shown
from idp_middleware._any_of import AnyOf
from idp_middleware._engine import Engine
from idp_middleware._given_caller import caller_of
from idp_middleware._routes import ProxyRoute
from idp_middleware._upstream import Upstream
from idp_middleware.config import Config
from idp_middleware.errors import CheckFailed, IdPError

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    `part` is what it is about: `authenticator`, `caller`, `source`, `route` or `cache`, and `name` which of them.
    `detail` is what was found, or what is wrong; then `todo` is what to do about it.
    """

    part: str
    name: str
    status: str
    detail: str
    todo: str = ""

    @property
    def ok(self) -> bool:
        """Whether it would work."""
        return self.status != FAILED

    @property
    def what(self) -> str:
        """What it is about, in one."""
        return f"{self.part} {self.name}".rstrip()

    def __str__(self) -> str:
        label = {OK: "ok", WARNING: "warn", FAILED: "FAIL"}[self.status]
        return f"{label:<6}{self.what:<24}{self.detail}"


async def check(config: Config, *, token: str | None = None) -> list[Finding]:
    """Reach each way in, source and upstream, and the cache, all at once; one finding for each, in that order.

    `token` is one of a caller, to see whether it would be let in.
    """
    upstream = Engine()
    ways_in = (
        config.authenticator.authenticators if isinstance(config.authenticator, AnyOf) else (config.authenticator,)
    )
    try:
        return await asyncio.gather(
            *(
                _finding("authenticator", f"#{number}" if len(ways_in) > 1 else "", _ask(each))
                for number, each in enumerate(ways_in, start=1)
            ),
            *([_finding("caller", "", _caller(config, token))] if token is not None else ()),
            *(_finding("source", name, _ask(source)) for name, source in config.sources.items()),
            *(_route(name, route, upstream) for name, route in config.routes.items()),
            *([_finding("cache", "", _ask(config.cache))] if config.cache else ()),
        )
    finally:
        await upstream.aclose()
        for part in (config.authenticator, *config.sources.values(), config.cache):
            if (aclose := getattr(part, "aclose", None)) is not None:
                await aclose()


async def _finding(part: str, name: str, asked: Awaitable[str]) -> Finding:
    try:
        return Finding(part, name, OK, await asked)
    except (IdPError, CheckFailed) as exc:
        return Finding(part, name, FAILED, *advice(exc))


async def _ask(part: object) -> str:
    """By `Checkable`."""
    check = getattr(part, "check", None)
    return "nothing to reach" if check is None else str(await check())


async def _caller(config: Config, token: str) -> str:
    caller = await caller_of(config.authenticator, token)
    scopes = ", ".join(sorted(caller.scopes)) or "none"
    refused = [name for name, route in config.routes.items() if not caller.scopes.issuperset(route.scopes)]
    if refused:
        missing = sorted({scope for name in refused for scope in config.routes[name].scopes} - caller.scopes)
        raise CheckFailed(
            f"{caller.subject} is let in, but not on {', '.join(refused)}: the token's scopes are {scopes}",
            todo=f"have the app ask for {', '.join(missing)} as well, and the issuer grant it to the user",
        )
    return f"{caller.subject} is let in, with the scopes {scopes}"


async def _route(name: str, route: ProxyRoute, upstream: Upstream) -> Finding:
    if route.instance is not None:
        return Finding("route", name, OK, f"{route.address} is another server for each user, so there is none to reach")
    try:
        # Any answer counts: without a token, most can only refuse.
        response = await upstream.send(
            route.origin, b"HEAD", route.target(b"", b""), list(route.fallback_headers), None, route.timeout
        )
        await response.aclose()
    except IdPError as exc:
        wrong, todo = advice(exc)
        return Finding("route", name, FAILED, f"{route.address}: {wrong}", todo)
    for wrong, todo in _doubts(response.status, dict(response.headers)):
        return Finding("route", name, WARNING, f"{route.address} {wrong}", todo)
    return Finding("route", name, OK, f"{route.address} answers ({response.status})")


def _doubts(status: int, fields: dict[bytes, bytes]) -> Iterator[tuple[str, str]]:
    """What does not look like an API, though some do it at their base URL."""
    location = fields.get(b"location", b"").decode("latin-1")
    if 300 <= status < 400 and location.startswith(("http://", "https://")):
        yield f"redirects to {shown(location)} ({status})", "if the API has moved there, write that as upstream"
    if status == 200 and fields.get(b"content-type", b"").startswith(b"text/html"):
        yield "answers with a web page (200)", "check upstream: an API's base URL is seldom its web site's"
    if status >= 500:
        yield f"answers, but with an error of its own ({status})", "try again later; check upstream if it stays so"
