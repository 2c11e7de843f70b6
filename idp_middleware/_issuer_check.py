"""Whether an issuer is one, has keys of the kinds that are wanted, and a clock like ours; for `idp-middleware check`.

Asks as `_jwks` does, and looks closer at what comes back: there it is enough that something is wrong, here it counts
what. Knows nothing of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from email.utils import parsedate_to_datetime
from typing import Any, Final, NoReturn

from idp_middleware._advice import reaching, shown
from idp_middleware._idp_http import Answer, IdPClient
from idp_middleware._jwk import ALGORITHMS, read_keys
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import CheckFailed, ConfigurationError

_BLUR: Final = 2.0
"""Seconds: a `Date` has no fractions, and is a while on its way."""

_NOT_THERE: Final = {
    "issuer": "write issuer as the iss of its tokens has it, path and all; if it does no discovery, give jwks_url",
    "realm_url": "check realm_url: it is what the realm's tokens have as iss",
    "jwks_url": "check jwks_url, or leave it out if the issuer does OpenID discovery",
}


async def check_issuer(
    client: IdPClient,
    *,
    issuer: str,
    jwks_url: str | None,
    algorithms: Collection[str],
    leeway: float,
    allow_insecure: bool,
    key: str = "issuer",
) -> str:
    """What was found. `leeway` is in seconds; `key` is what the issuer is called in the file. Raises `CheckFailed`."""
    if jwks_url is None:
        url = issuer.removesuffix("/") + "/.well-known/openid-configuration"
        jwks_url = _jwks_uri(await _document(client, url, leeway, key=key), issuer, url, allow_insecure, key)
    document = await _document(client, jwks_url, leeway, key="jwks_url")
    keys = read_keys(document, algorithms)
    counts = {name: sum(key.fits(None, name) for key in keys) for name in sorted(algorithms)}
    if not keys:
        _no_keys(document, jwks_url)
    return f"{issuer} has keys: {', '.join(f'{count} for {name}' for name, count in counts.items())}"


def check_clock(answer: Answer, where: str, leeway: float) -> None:
    """Raises `CheckFailed` where the clock of who answered is not ours; `leeway` is in seconds."""
    try:
        ahead = parsedate_to_datetime(answer.headers.get("date", "")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return
    if abs(ahead) > leeway + _BLUR:
        which = "ahead of" if ahead > 0 else "behind"
        raise CheckFailed(
            f"{where}: its clock is {abs(ahead):.0f} s {which} this machine's; good tokens would be refused as not "
            f"valid yet or as expired",
            todo="set this machine's clock (by NTP: timedatectl status), if it is not the server's that is wrong",
        )


def not_an_answer(answer: Answer, url: str) -> CheckFailed | None:
    """For an answer that is no document at all: a redirect, an error, a web page."""
    if 300 <= answer.status < 400:
        to = answer.headers.get("location", "")
        where = f" to {shown(to)}" if to.startswith(("http://", "https://")) else ""
        return CheckFailed(
            f"{shown(url)} redirects{where}, and redirects are not followed", todo="write the URL where it is now"
        )
    if answer.status == 200 and "html" in answer.headers.get("content-type", ""):
        return CheckFailed(f"{shown(url)} is a web page", todo="check the URL: it is a site's, not an API's")
    return None


async def _document(client: IdPClient, url: str, leeway: float, *, key: str) -> dict[str, Any]:
    with reaching(url):
        answer = await client.request("GET", url)
        if (problem := not_an_answer(answer, url)) is not None:
            raise problem
        if answer.status in (404, 410):
            todo = _NOT_THERE[key]
            raise CheckFailed(f"{shown(url)} does not exist (status {answer.status})", todo=todo)
        if answer.status != 200:
            todo = "try again later; if it stays so, ask whoever runs that server"
            raise CheckFailed(f"{shown(url)} answers with status {answer.status}", todo=todo)
        check_clock(answer, shown(url), leeway)
        return answer.json()


def _jwks_uri(metadata: dict[str, Any], issuer: str, url: str, allow_insecure: bool, key: str) -> str:
    named = metadata.get("issuer")
    if not isinstance(named, str) or not named.isprintable():
        raise CheckFailed(f"{shown(url)} names no issuer", todo="check issuer: this is no OpenID provider's document")
    if named != issuer:
        slash = " (mind the slash at the end)" if named.rstrip("/") == issuer.rstrip("/") else ""
        raise CheckFailed(
            f"{shown(url)} is the document of another issuer, {shown(named)}",
            todo=f'write {key} = "{shown(named)}"{slash}, if it is the one you mean',
        )
    jwks_uri: Any = metadata.get("jwks_uri")
    try:
        parse_base_url(jwks_uri, "jwks_uri", allow_insecure=allow_insecure)
    except ConfigurationError as exc:
        todo = "mend the issuer's own configuration, or give jwks_url"
        raise CheckFailed(f"{shown(url)}: its jwks_uri {exc.message}", todo=todo) from None
    return str(jwks_uri)


def _no_keys(document: dict[str, Any], url: str) -> NoReturn:
    others = read_keys(document, ALGORITHMS)
    names = sorted(name for name in ALGORITHMS if any(key.fits(None, name) for key in others))
    if names:
        wanted = ", ".join(f'"{name}"' for name in names)
        raise CheckFailed(
            f"{shown(url)} has keys, but none for the algorithms that are allowed",
            todo=f"write algorithms = [{wanted}], or those of them that its tokens are signed with",
        )
    raise CheckFailed(
        f"{shown(url)} has no key that could verify a token", todo="check that this is the issuer's key set (RFC 7517)"
    )
