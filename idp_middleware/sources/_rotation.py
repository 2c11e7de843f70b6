"""One refresh for each refresh token, however many processes want it, and nothing lost of what it brings.

Refresh tokens that rotate work once. A second use reads as theft to their providers, who then revoke all that came of
the same login (RFC 9700 section 4.14.2). Hence the three rules here:

1. A refresh token is sent only by whoever has written a claim into its entry, by compare-and-swap on the very version
   that was looked at. That is the lock, the second look, and the intent that outlives a `kill -9`, all in one write.
2. What comes back is stored before anybody gets it, however often that has to be tried, whoever has stopped waiting.
3. Whoever finds that the entry is no longer the one it claimed looks again, and leaves it as it is.

A claim that was left behind says that the refresh token may be spent. Where reuse is fatal it is never sent again: the
access token serves until it expires, and then the user has to connect anew. Knows the store, nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hmac import compare_digest
from secrets import token_hex
from time import monotonic, time
from typing import Final, TypeVar

from idp_middleware._token_keeper import CLOCK_SKEW, REFRESH_BEFORE
from idp_middleware.errors import (
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenError,
    TokenSourceBusy,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.sources._patient import AT_ONCE
from idp_middleware.stores import Claim, Entry, StoredToken, TokenKey, TokenStore

log = logging.getLogger("idp_middleware.tokens")

_A = TypeVar("_A")
_T = TypeVar("_T")

# In seconds.
PATIENCE: Final = 10.0  # of whoever waits for a refresh, which goes on without them
PATIENCE_WITH_OTHERS: Final = 9.0  # with a refresh of another process …
POLL: Final = 0.05  # … that is looked at so often
STORE_AGAIN: Final = (0.05, 5.0)  # doubling from, up to


class Withdrawn(Exception):
    """The provider takes the refresh token no longer."""


class MaybeSpent(Exception):
    """The refresh token was sent, and nobody knows what came of it; `error` is for those who wait."""

    def __init__(self, error: TokenError) -> None:
        super().__init__(str(error))
        self.error = error


class Rotation:
    """Renews entries of a store, one at a time each, in tasks that nobody's cancellation stops.

    `exchange(token)` sends a refresh token and gives what it brought, within `lasts / 2` seconds: the other half of a
    claim is for storing that, and for clocks that differ. It raises `Withdrawn`, `MaybeSpent`, or another error of ours
    where the refresh token can be sent again. `discard(token)` takes a token back that nobody will have.
    """

    def __init__(
        self,
        store: TokenStore,
        exchange: Callable[[StoredToken], Awaitable[StoredToken]],
        discard: Callable[[StoredToken], Awaitable[None]],
        *,
        lasts: float,
        reuse_is_fatal: bool,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._discard = discard
        self._lasts = lasts
        self._fatal = reuse_is_fatal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()

    def _begin(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._flights: dict[tuple[TokenKey, str | None], asyncio.Task[Entry | IdPError]] = {}

    async def renewed(self, key: TokenKey, refused: str | None) -> Entry:
        """The entry with an access token that is fresh, or at least serves, and is not the `refused` one.

        Raises:
            IdentityNotLinked: it was deleted meanwhile.
            ReconnectRequired: there is no refresh token that would still be taken, or could safely be sent.
            TokenSourceTimeout, TokenSourceUnavailable, TokenSourceFailed: no refresh this time.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # An app under test may see several loops; tasks and semaphores of another one are of no use here.
            self._loop = loop
            self._begin()
        flights, name = self._flights, (key, refused)
        flight = flights.get(name)
        if flight is None:
            flight = flights[name] = loop.create_task(self._fly(key, refused))
            flight.add_done_callback(lambda _: flights.pop(name))
        # Unlike wait_for, this leaves the flight alone whatever becomes of whoever waits.
        await asyncio.wait([flight], timeout=PATIENCE)
        if not flight.done():
            raise TokenSourceTimeout("the refresh takes long; it goes on")
        if flight.cancelled():
            raise TokenSourceUnavailable("shutting down")
        outcome = flight.result()
        if isinstance(outcome, Entry):
            return outcome
        raise copy.copy(outcome)

    async def aclose(self) -> None:
        """Let the refreshes under way come to their end, which may take `lasts / 2` seconds."""
        if self._loop is not asyncio.get_running_loop() or not self._flights:
            return
        _, late = await asyncio.wait(self._flights.values(), timeout=self._lasts / 2)
        for flight in late:
            flight.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _fly(self, key: TokenKey, refused: str | None) -> Entry | IdPError:
        """Failures are returned: a task's exception is one object for all who wait, or "never retrieved" if none do."""
        try:
            return await self._renew(key, refused)
        except IdPError as exc:
            return exc

    async def _renew(self, key: TokenKey, refused: str | None) -> Entry:
        give_up = monotonic() + PATIENCE_WITH_OTHERS
        while True:
            entry = await self._look(key)
            if entry is None:
                raise IdentityNotLinked("deleted", connection=key.connection)
            if is_fresh(entry, refused):
                return entry
            if entry.withdrawn:
                raise ReconnectRequired("the refresh token is withdrawn, or may be spent", connection=key.connection)
            left = 0.0 if entry.claim is None else time_left(entry.claim)
            # To send: nobody has, or somebody may have and it harms nobody to do so again.
            mine = entry.token.refresh_token is not None and (entry.claim is None or (left <= 0 and not self._fatal))
            if mine:
                renewed = await self._claim_and_spend(entry)
                if renewed is not None:
                    return renewed
            elif serves(entry, refused):
                return entry
            elif entry.token.refresh_token is None:
                raise ReconnectRequired("over, and without a refresh token", connection=key.connection)
            elif left <= 0:
                log.warning("a refresh of %r has left no outcome: its user must reconnect", key.connection)
                await self._store.compare_and_swap(replace(entry, claim=None, withdrawn=True))
            elif monotonic() < give_up:
                await asyncio.sleep(POLL * random.uniform(0.5, 1.5))  # noqa: S311 - spreads looks, hides nothing
            else:
                raise TokenSourceBusy("another process refreshes it", retry_after=left)

    async def _claim_and_spend(self, entry: Entry) -> Entry | None:
        """The renewed entry; None where it is another by now. Raises as `renewed` does."""
        # Waited for before the claim, which would go stale in a queue.
        async with self._turns:
            claim = Claim(owner=token_hex(16), at=time(), lasts=self._lasts)
            try:
                claimed = await self._store.compare_and_swap(replace(entry, claim=claim))
            except Exception:
                # It may be written all the same, and would then look like one that was left behind.
                claimed = await self._insist(self._look, entry.key)
                if claimed is None or claimed.claim != claim:
                    raise
            return None if claimed is None else await self._spend(claimed, claim)

    async def _spend(self, claimed: Entry, claim: Claim) -> Entry | None:
        error: IdPError
        try:
            token = await self._exchange(claimed.token)
        except Withdrawn as exc:
            outcome = replace(claimed, claim=None, withdrawn=True)
            error = ReconnectRequired(str(exc), connection=claimed.key.connection)
        except MaybeSpent as exc:
            # Left behind from the start: nobody need wait for what will not come.
            left_behind = ended(claim) if self._fatal else None
            outcome, error = replace(claimed, claim=left_behind), exc.error
        except IdPError as exc:
            outcome, error = replace(claimed, claim=None), exc
        else:
            settled = await self._settle(claimed, replace(claimed, token=token, stored_at=time(), claim=None))
            if settled is None:
                await self._discard_orphan(claimed.key, token)
            return settled
        if await self._settle(claimed, outcome) is None:
            return None
        raise error

    async def _settle(self, claimed: Entry, outcome: Entry) -> Entry | None:
        """Store the outcome of a claim; None where the entry is no longer the one that was claimed.

        A new token is stored as long as the refresh token is there that was spent for it: what others have noted beside
        that, such as that it may be lost, is no longer so. Save that it is to be revoked: then nobody gets the new one,
        but it is what has to be revoked now.
        """
        while True:
            stored = await self._insist(self._store.compare_and_swap, outcome)
            if stored is not None:
                return None if stored.revoked else stored
            current = await self._insist(self._look, claimed.key)
            spent_for = outcome.token is not claimed.token
            if not spent_for or current is None or not _same(_refresh_token(current), _refresh_token(claimed)):
                return None
            if current.revoked and current.claim is not None:
                outcome = replace(current, token=outcome.token, claim=ended(current.claim))
            else:
                outcome = replace(outcome, version=current.version)

    async def _discard_orphan(self, key: TokenKey, token: StoredToken) -> None:
        """Take back what came for an entry that is gone: no revocation would ever find it.

        Beside another login's it is left alone, which a provider might end with it.
        """
        if await self._insist(self._look, key) is None:
            try:
                await self._discard(token)
            except IdPError as exc:
                log.warning("what a refresh of %r brought too late could not be taken back: %s", key.connection, exc)

    async def _insist(self, work: Callable[[_A], Awaitable[_T]], about: _A) -> _T:
        """What the store says, asked until it does: between a claim and its outcome there is no giving up."""
        pause, longest = STORE_AGAIN
        while True:
            try:
                return await work(about)
            except Exception as exc:  # of somebody's own store, perhaps
                what = exc if isinstance(exc, IdPError) else type(exc).__name__
                log.error("the store fails in the middle of a refresh, next try in %.2g s: %s", pause, what)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _look(self, key: TokenKey) -> Entry | None:
        return next((entry for entry in await self._store.get(key) if entry.key == key), None)


def is_fresh(entry: Entry, refused: str | None) -> bool:
    """Whether nothing needs doing: sooner than the engine will ask for a newer one, it is not the time."""
    return _lives_beyond(entry, refused, min(CLOCK_SKEW + REFRESH_BEFORE, 0.3 * _life(entry)))


def serves(entry: Entry, refused: str | None) -> bool:
    """Whether the access token can still be used."""
    return _lives_beyond(entry, refused, min(CLOCK_SKEW, 0.1 * _life(entry)))


def _lives_beyond(entry: Entry, refused: str | None, margin: float) -> bool:
    if entry.withdrawn or (refused is not None and _same(entry.token.access_token, refused)):
        return False
    return entry.token.expires_at is None or time() < entry.token.expires_at - margin


def _life(entry: Entry) -> float:
    return 0.0 if entry.token.expires_at is None else max(0.0, entry.token.expires_at - entry.stored_at)


def time_left(claim: Claim) -> float:
    """Seconds. A clock that was set back, or is ahead on another host, must not make a claim last for ever."""
    return claim.lasts - abs(time() - claim.at)


def ended(claim: Claim) -> Claim:
    """The same, without keeping anybody waiting."""
    return replace(claim, lasts=0.0)


def _refresh_token(entry: Entry) -> str:
    return entry.token.refresh_token or ""


def _same(one: str, other: str) -> bool:
    """Whether two secrets are equal, told in constant time."""
    return compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))
