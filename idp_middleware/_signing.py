"""For APIs where a bearer token in `Authorization` is not all: requests that are signed, users with a server each.

Knows what such a request looks like, and what of it may be changed: where it goes is the route's word alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from idp_middleware._types import RawHeaders, Token
from idp_middleware.errors import BodyTooLarge

if TYPE_CHECKING:
    from idp_middleware._routes import ProxyRoute
    from idp_middleware._upstream import RequestBody
    from idp_middleware._urls import Origin

MAX_FORM = 64 * 1024
"""Bytes of a form that is signed; as much of a body as is kept to be sent twice."""

FORM = b"application/x-www-form-urlencoded"


class Unsigned(NamedTuple):
    """A request that is about to be sent, all but its `Authorization`."""

    method: str
    origin: Origin
    target: bytes
    """Path and query, raw."""
    headers: RawHeaders
    body: RequestBody | None

    @property
    def url(self) -> str:
        """Where it goes."""
        return f"{self.origin.scheme}://{self.origin.authority.decode()}{self.target.decode('latin-1')}"

    async def form(self) -> bytes | None:
        """The body if it is an HTML form, which still is sent; None if it is anything else.

        Raises `BodyTooLarge` for more than `MAX_FORM` bytes, and what reading the body raises.
        """
        kinds = [value.partition(b";")[0].strip().lower() for name, value in self.headers if name == b"content-type"]
        if self.body is None or kinds != [FORM]:
            return None
        form = b""
        while chunk := await self.body.read():
            form += chunk
            if len(form) > MAX_FORM:
                break
        if len(form) > MAX_FORM or not self.body.rewind():
            raise BodyTooLarge("a form that has to be signed")
        return form


class Signed(NamedTuple):
    """What becomes of it: the value of `Authorization`, and the target it is sent to at the same origin."""

    authorization: bytes
    target: bytes


Sign: TypeAlias = Callable[[Token, Unsigned], Awaitable[Signed]]
"""May raise an `errors.IdPError`: `TokenSourceFailed` where the token lacks what is needed to sign."""

Instance: TypeAlias = Callable[[Token], str]
"""The base URL of the server that a token is for. Raises `errors.TokenSourceFailed` where the token does not say."""


class Tailored(NamedTuple):
    """A request as it is sent for one token."""

    route: ProxyRoute
    """At the user's own server, if users have one each."""
    target: bytes
    """What references in the answer are relative to: without what signing added."""
    sent: bytes
    """The target that is sent."""
    authorization: tuple[bytes, bytes]


async def tailored(
    route: ProxyRoute,
    token: Token,
    *,
    method: str,
    rest: bytes,
    query: bytes,
    headers: RawHeaders,
    body: RequestBody | None = None,
) -> Tailored:
    """The request on a route that is `tailored`, made for `token`.

    `rest` is the raw path from the slash after the route's name, `query` the raw query, `headers` all but
    `Authorization`. Raises `errors.IdPError`.
    """
    if route.instance is not None:
        route = route.at(token)
    target = route.target(rest, query)
    signed = Signed(token.authorization, target)
    if route.sign is not None:
        signed = await route.sign(token, Unsigned(method, route.origin, target, headers, body))
    return Tailored(route, target, signed.target, (b"authorization", signed.authorization))
