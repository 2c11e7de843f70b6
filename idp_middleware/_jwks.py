"""An issuer's key set: found by OpenID discovery or at a given URL, fetched when needed, kept while it can't be.

Never keeps a caller with a known key waiting: keys are refreshed behind their back. Knows nothing of tokens or callers,
nor of what is in a key.

    first use           fetched while the callers wait, once for all of them; nothing works without (503)
    every MAX_AGE       fetched in the background; this is how a withdrawn key is noticed
    an unknown key id   fetched while that caller waits, at most once per COOL_DOWN, the longest a new key is refused
    a failed fetch      changes nothing but when to try next, and that an unknown key id is not the caller's fault (503)

Behind a cache that workers share, one of them fetches, and the others take what it brought: by age while it is younger
than MAX_AGE; for an unknown key id if it has that key, or is younger than COOL_DOWN, which then holds for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, TypeAlias

from idp_middleware._idp_http import IdPClient
from idp_middleware._jwk import Key, read_keys
from idp_middleware._loops import under_way
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import ConfigurationError, IdPError, TokenSourceFailed, TokenSourceUnavailable

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache

MAX_AGE = 600.0
"""Seconds; identity providers advise to keep keys for five to ten minutes."""

COOL_DOWN = 30.0
"""Seconds between two fetches for unknown key ids, which anyone can make up (CVE-2026-48524 of PyJWT)."""

_FIRST_RETRY = 1.0
_LONGEST_RETRY = 300.0
_CLOCKS_DIFFER = 5.0

Wanted: TypeAlias = tuple[str | None, str]
"""A key id (or none) and an algorithm."""

Fetched: TypeAlias = tuple[dict[str, Any], float]
"""A key set, and when it was asked for (seconds since the epoch)."""

logger = logging.getLogger(__name__)


class KeySet:
    """The keys that `issuer` signs with now, of those that may verify one of `algorithms`."""

    def __init__(
        self,
        *,
        issuer: str,
        jwks_url: str | None,
        algorithms: Collection[str],
        allow_insecure: bool,
        client: IdPClient,
    ) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._algorithms = algorithms
        self._allow_insecure = allow_insecure
        self._client = client
        self.shared: TokenCache | None = None
        self._keys: tuple[Key, ...] = ()
        self._flight: asyncio.Task[None] | None = None
        self._failures = 0
        self._reason = ""
        # No fetch by age within these; two of them so that a clock that was set back does not stop the fetching.
        self._since = self._until = 0.0
        self._asked_at = 0.0
        self._fetched_at = 0.0

    def keep_fresh(self, now: float) -> None:
        """Start a fetch in the background if the keys have come of age; costs two comparisons if not."""
        if self._keys and not self._since <= now < self._until:
            self._fly()

    async def find(self, kid: str | None, alg: str) -> list[Key]:
        """The keys that a token with this key id (or none) and algorithm may be signed with.

        Raises `TokenSourceUnavailable` as long as no key set could be had at all, and where there is no such key in one
        that could not be fetched anew: it may be a new one, and who is told that a token is invalid throws it away.
        """
        if not self._keys:
            await self._first_fetch()
            return self._fitting(kid, alg)
        found = self._fitting(kid, alg)
        if not found and (self._flying() or self._may_ask()):
            # Not awaited as such: a caller who gives up must not take the fetch away from the others.
            await asyncio.wait((self._fly((kid, alg)),))
            found = self._fitting(kid, alg)
        if not found and self._failures:
            wait = max(0.0, self._asked_at + COOL_DOWN - time.time())
            raise TokenSourceUnavailable(f"no such key, and no new ones: {self._reason}", retry_after=wait)
        return found

    async def aclose(self) -> None:
        """Break a running fetch off."""
        if (flight := self._flying()) is not None:
            flight.cancel()
            await asyncio.wait((flight,))

    def _fitting(self, kid: str | None, alg: str) -> list[Key]:
        return [key for key in self._keys if key.fits(kid, alg)]

    def _may_ask(self) -> bool:
        now = time.time()
        if 0 <= now - self._asked_at < COOL_DOWN:
            return False
        self._asked_at = now
        return True

    async def _first_fetch(self) -> None:
        now = time.time()
        if not self._since <= now < self._until:
            await asyncio.wait((self._fly(),))
        if not self._keys:
            wait = max(0.0, self._until - time.time())
            raise TokenSourceUnavailable(f"no keys of the issuer: {self._reason}", retry_after=wait)

    def _flying(self) -> asyncio.Task[None] | None:
        return self._flight if under_way(self._flight) else None

    def _fly(self, wanted: Wanted | None = None) -> asyncio.Task[None]:
        flight = self._flying()
        if flight is None:
            flight = self._flight = asyncio.create_task(self._refresh(wanted))
        return flight

    async def _refresh(self, wanted: Wanted | None) -> None:
        try:
            if self.shared is None:
                fetched = await self._fetch()
            else:
                fetched = await self.shared.obtain_keys(
                    (self._issuer, self._jwks_url, frozenset(self._algorithms)),
                    self._fetch,
                    serves=lambda found: self._will_do(found, wanted),
                    until=lambda fetched: fetched[1] + MAX_AGE,
                )
        except IdPError as exc:
            self._failed(str(exc), getattr(exc, "retry_after", None))
        else:
            self._adopt(*fetched)

    async def _fetch(self) -> Fetched:
        asked_at = time.time()
        document = await self._document(await self._url())
        if not self._read(document):
            raise TokenSourceFailed("no usable keys in the key set")
        return {"keys": document["keys"]}, asked_at

    def _read(self, document: dict[str, Any]) -> tuple[Key, ...]:
        return read_keys(document, self._algorithms, self._keys)

    def _will_do(self, found: Fetched, wanted: Wanted | None) -> bool:
        """Whether what another worker has fetched is as good as what we would fetch."""
        document, asked_at = found
        age = time.time() - asked_at
        # Never an older one than ours: whoever can write to the cache could bring a withdrawn key back.
        # Nor one from the future, which would pass for new as long as that lasts.
        if asked_at <= self._fetched_at or not -_CLOCKS_DIFFER < age < MAX_AGE or not (keys := self._read(document)):
            return False
        return wanted is None or age < COOL_DOWN or any(key.fits(*wanted) for key in keys)

    def _adopt(self, document: dict[str, Any], asked_at: float) -> None:
        keys = self._read(document)
        for key in self._keys:
            key.live = key in keys
        self._keys = keys
        self._failures = 0
        self._fetched_at = asked_at
        self._since = min(asked_at, time.time())
        self._until = self._since + MAX_AGE

    def _failed(self, reason: str, retry_after: float | None) -> None:
        first, longest = (COOL_DOWN, _LONGEST_RETRY) if self._keys else (_FIRST_RETRY, COOL_DOWN)
        pause = min(first * 2 ** min(self._failures, 10), longest)
        if retry_after is not None:
            pause = max(pause, min(retry_after, _LONGEST_RETRY))
        self._failures += 1
        self._reason = reason
        # An unknown key id is no reason to try again sooner.
        self._since = self._asked_at = time.time()
        self._until = self._since + pause
        kept = "the known keys keep serving" if self._keys else "no caller can be verified"
        logger.warning("Keys of %s not fetched: %s; %s", self._issuer, reason, kept)

    async def _url(self) -> str:
        """Where the key set is (OpenID Connect Discovery 1.0 section 4), asked each time: it may move."""
        if self._jwks_url is not None:
            return self._jwks_url
        metadata = await self._document(self._issuer.removesuffix("/") + "/.well-known/openid-configuration")
        # Section 4.3: else one issuer could hand out another's tokens as its own (RFC 9207's mix-up, one level up).
        if metadata.get("issuer") != self._issuer:
            raise TokenSourceFailed("the discovery document is another issuer's")
        url: Any = metadata.get("jwks_uri")
        try:
            parse_base_url(url, "jwks_uri", allow_insecure=self._allow_insecure)
        except ConfigurationError as exc:
            raise TokenSourceFailed(f"jwks_uri {exc.message}") from None
        return str(url)

    async def _document(self, url: str) -> dict[str, Any]:
        answer = await self._client.request("GET", url)
        # Redirects included: whoever can redirect could choose the keys.
        if answer.status != 200:
            raise TokenSourceUnavailable(f"status {answer.status}", retry_after=answer.retry_after())
        return answer.json()
