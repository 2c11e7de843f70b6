"""Whether a token endpoint takes our client, found out without a grant of any user.

It is asked with a grant that has just been made up: a server has to know its client before it looks at that (RFC 6749
sections 5.2 and 3.2.1), so which error comes back tells. Nothing is issued, spent or revoked by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final
from uuid import uuid4

from idp_middleware._advice import reaching, shown
from idp_middleware.errors import CheckFailed
from idp_middleware.sources._token_endpoint import Fields, GrantRefused, TokenEndpoint

_ABOUT_THE_GRANT: Final = frozenset({"invalid_grant", "invalid_request", "invalid_token", "expired_token"})

CLIENT: Final = "check client_id and its secret or key, and how the server wants them (client_auth)"
_HINTS: Final = {
    "invalid_client": CLIENT,
    "incorrect_client_credentials": CLIENT,  # GitHub, with status 200
    "access_denied": CLIENT,  # Auth0, with status 401
    "unauthorized_client": "allow the client this grant, at the server",
    "unsupported_grant_type": "the server does not offer this grant at this URL: turn it on there, or check the URL",
    "invalid_scope": "check scope: the server does not know it, or does not grant it to this client",
    "invalid_target": "check audience and resource: the server has no such API for this client",
    "no grant": "authorize the client for this API, at the server",
    "no such API": "check audience: the server has no such API",
    "": "check the URL: what answers there is no token endpoint",
}

_DENIED: Final = {"not authorized to access": "no grant", "Service not": "no such API"}


def made_up() -> str:
    """A token that nobody has, and that nobody takes for one of theirs."""
    return f"idp-middleware-check-{uuid4().hex}"


def check_failed(refused: GrantRefused, url: str, hints: Mapping[str, str] = MappingProxyType({})) -> CheckFailed:
    """What the endpoint at `url` said no to, with what to do about it."""
    said = refused.answer.get("error_description")
    # Auth0 has one code for three things.
    words = next((what for words, what in _DENIED.items() if isinstance(said, str) and words in said), refused.code)
    code = words if refused.code == "access_denied" else refused.code
    todo = hints.get(code) or _HINTS.get(code) or "look this error up in the server's manual"
    return CheckFailed(f"{shown(url)}: {refused}", todo=todo)


async def check_client(
    endpoint: TokenEndpoint,
    fields: Fields,
    hints: Mapping[str, str],
    *,
    url: str | None = None,
    fine: Collection[str] = (),
) -> str:
    """What was found, for an endpoint that refuses the made-up grant in `fields`, and not our client.

    `hints` say what to do about an error of the server; `fine` are more errors that are about the grant, wherever in
    the answer they stand. Raises `errors.CheckFailed`.
    """
    url = url or endpoint.url
    with reaching(url):
        try:
            await endpoint.grant(fields, url=url)
        except GrantRefused as exc:
            said = {value for value in exc.answer.values() if isinstance(value, str)}
            if exc.code not in _ABOUT_THE_GRANT and not said & {*fine}:
                raise check_failed(exc, url, hints) from None
            return f"{shown(url)} takes the client {endpoint.client_id}"
    raise CheckFailed(
        f"{shown(url)} gives a token for a grant that was just made up", todo="check the URL; do not use this server"
    )
