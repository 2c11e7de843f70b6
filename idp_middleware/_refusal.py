"""How an API says that it does not take a token, and a look at what it says that takes nothing out of the answer.

Status 401 says so (RFC 6750 section 3.1); some APIs say it in words, under a status that means something else, or
nothing at all. Knows answers; nothing of routes, tokens or what follows from a refusal.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from idp_middleware.errors import UpstreamAborted, UpstreamUnreachable

if TYPE_CHECKING:
    from idp_middleware._upstream import UpstreamResponse

LOOK_AT: Final = 8 * 1024
"""Bytes of an answer that are looked at, at most: an error is short."""

_JSON = re.compile(rb"[ \t]*(?:application/(?:[!-.0-:<-~]+\+)?json|text/javascript)[ \t]*(?:;|\Z)", re.IGNORECASE)


class Refusal(NamedTuple):
    """What of an API's answers says "not this token", so that another may be worth a try.

    `statuses` say so by themselves. Under `told_under` it is the case if the answer is JSON, not longer than `LOOK_AT`,
    and its `member` (a path of names) is one of `values`. The first bytes of such an answer wait for the others, so
    this is not for statuses under which an API streams JSON with gaps.
    """

    statuses: frozenset[int] = frozenset({401})
    told_under: frozenset[int] = frozenset()
    member: tuple[str, ...] = ()
    values: frozenset[str | int] = frozenset()

    def told_in(self, body: bytes) -> bool:
        """Whether JSON says so."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return False
        for name in self.member:
            value = value.get(name) if isinstance(value, dict) else None
        return isinstance(value, str | int) and value in self.values


UNAUTHORIZED: Final = Refusal()


async def look_at(response: UpstreamResponse, refusal: Refusal) -> tuple[UpstreamResponse, bool]:
    """The response, of which nothing is missing, and whether it is a refusal.

    Raises `UpstreamUnreachable` or `UpstreamTimeout` where it breaks off meanwhile; then it is closed.
    """
    if response.status in refusal.statuses:
        return response, True
    fields = dict(response.headers)
    length = fields.get(b"content-length", b"")
    too_long = length.isdigit() and int(length) > LOOK_AT
    # No coding was asked for (see `ProxyRoute`); one that comes all the same is not looked into.
    coded = fields.get(b"content-encoding", b"identity").strip(b" \t").lower() != b"identity"
    if too_long or coded or not _JSON.match(fields.get(b"content-type", b"")):
        return response, False
    looked_at = _LookedAt(response)
    try:
        body = await looked_at.look()
    except UpstreamAborted:
        await response.aclose()
        raise UpstreamUnreachable("the response broke off at its beginning") from None
    except BaseException:
        await response.aclose()
        raise
    return looked_at, body is not None and refusal.told_in(body)


class _LookedAt:
    """A response whose beginning has been read and is yet to be relayed."""

    __slots__ = ("_begun", "_response", "_whole", "headers", "status")

    def __init__(self, response: UpstreamResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._begun = b""
        self._whole = False

    @property
    def complete(self) -> bool:
        # While a beginning is kept here, one more read yields that only.
        return self._whole or (not self._begun and self._response.complete)

    async def look(self) -> bytes | None:
        """The whole body; None where it is too long for that."""
        while len(self._begun) <= LOOK_AT:
            last = self._response.complete
            chunk = await self._response.read()
            self._begun += chunk
            if last or not chunk:
                self._whole = True
                return self._begun
        return None

    async def read(self) -> bytes:
        if self._begun:
            begun, self._begun = self._begun, b""
            return begun
        return await self._response.read()

    async def aclose(self) -> None:
        await self._response.aclose()
