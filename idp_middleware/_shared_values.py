"""Values that processes share: sealed at rest, and asked for by one process while the others wait for it.

Knows how a value looks in the store and who may ask its source. Knows neither tokens nor keys, nor which store it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic, time
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from cryptography.fernet import InvalidToken, MultiFernet

from idp_middleware._shared_guard import StoreGuard
from idp_middleware._shared_store import ClaimingStore, Store
from idp_middleware.errors import IdentityNotLinked

# All times are in seconds.
LEASE: Final = 5.0  # of a claim, renewed while its holder asks: how long nobody asks after a holder was killed
MAX_WAIT: Final = 10.0  # for what another process asks for; then one asks oneself
POLLS: Final = (0.02, 0.25)  # growing from, up to
MAX_TTL: Final = 30 * 24 * 3600  # memcached reads anything longer as a date

_VERSION = "4"
"""Of the key and of what is stored under it: another version finds nothing, rather than something it misreads."""

T = TypeVar("T")

Asked: TypeAlias = tuple[T, float]
"""A value, and when it was asked for (seconds since the epoch)."""


@dataclass(slots=True)
class _Claim(Generic[T]):
    found: Asked[T] | None = None
    owner: str = ""
    fence: str = ""


class SharedValues(Generic[T]):
    """Values of one kind, which `write` makes JSON members of; `read` takes them back, with when (`asked_at`).

    `read` raises `ValueError`, `KeyError` or `TypeError` for anything else.
    """

    __slots__ = ("_fernet", "_guard", "_kind", "_read", "_store", "_write")

    def __init__(
        self,
        kind: str,
        *,
        store: Store,
        guard: StoreGuard,
        fernet: MultiFernet | None,
        write: Callable[[T], dict[str, Any]],
        read: Callable[[dict[str, Any]], Asked[T]],
    ) -> None:
        self._kind = kind
        self._store = store
        self._guard = guard
        self._fernet = fernet
        self._write = write
        self._read = read

    async def get(self, key: tuple[Any, ...]) -> Asked[T] | None:
        """What is kept under `key`. Never raises."""
        return await self.named(self.name(key))

    async def named(self, name: str) -> Asked[T] | None:
        """What is kept under the key of that `name`. Never raises."""
        return self._opened(name, await self._guard.run(self._store.get, name, writes=False))

    async def set(self, key: tuple[Any, ...], value: T, asked_at: float, *, ttl: float) -> None:
        """Keep a value for `ttl` seconds, as one that was asked for just now. Never raises."""
        await self._put(self.name(key), (value, asked_at), ttl, _Claim())

    async def delete(self, key: tuple[Any, ...]) -> None:
        """Drop what is kept under `key`, and what others have asked for before now. Never raises."""
        # However the store fares: what stays in it comes back.
        await self._guard.run(self._store.drop, self.name(key), always=True)

    async def obtain(
        self,
        key: tuple[Any, ...],
        ask: Callable[[], Awaitable[Asked[T]]],
        *,
        serves: Callable[[Asked[T]], bool],
        until: Callable[[Asked[T]], float],
    ) -> Asked[T]:
        """What is kept under `key` if it serves; else what `ask` brings, which is then kept until `until` says.

        Where the store knows claims, one process at a time asks, and the others take what it brings; but whoever has
        waited long enough asks as well. Raises what `ask` raises: after `IdentityNotLinked`, nothing is kept.
        """
        name = self.name(key)
        there = self._opened(name, await self._guard.run(self._store.get, name, writes=False))
        if there is not None and serves(there):
            self._guard.counts["hits"] += 1
            return there
        self._guard.counts["misses"] += 1
        async with self._claimed(name, serves) as claim:
            if claim.found is not None:
                return claim.found
            try:
                asked = await ask()
            except IdentityNotLinked:
                await self._guard.run(self._store.drop, name, fence=claim.fence, always=True)
                raise
            later = await self._put(name, asked, until(asked) - time(), claim)
            # Whoever overtook us may have been given a token that has put an end to ours.
            return later if later is not None and serves(later) else asked

    @asynccontextmanager
    async def _claimed(self, name: str, serves: Callable[[Asked[T]], bool]) -> AsyncIterator[_Claim[T]]:
        """The right to ask, or what somebody else has brought; neither, where the wait ends or the store fails."""
        claim = _Claim[T]()
        if not hasattr(self._store, "claim"):
            yield claim
            return
        store = cast("ClaimingStore", self._store)
        owner = token_hex(16)
        give_up, pause = monotonic() + MAX_WAIT, POLLS[0]
        while (told := await self._guard.run(store.claim, name, owner, LEASE)) is not None:
            claim.fence = told.fence
            if told.won:
                claim.owner = owner
            there = self._opened(name, told.value)
            if there is not None and serves(there):
                claim.found = there
                break
            if told.won or monotonic() > give_up:
                break
            if pause == POLLS[0]:
                self._guard.counts["waits"] += 1
            # At a moment of one's own, lest all ask at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads polls, hides nothing
            pause = min(pause * 1.5, POLLS[1])
        if not claim.owner:
            yield claim
            return
        self._guard.counts["claims"] += 1
        renewal = asyncio.create_task(self._renew(store, name, owner))
        try:
            yield claim
        finally:
            renewal.cancel()
            if claim.owner:
                await self._guard.run(store.release, name, owner, always=True)

    async def _renew(self, store: ClaimingStore, name: str, owner: str) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            await self._guard.run(store.extend, name, owner, LEASE)

    async def _put(self, name: str, asked: Asked[T], ttl: float, claim: _Claim[T]) -> Asked[T] | None:
        """Keep a value and let go of the claim; the one that is there instead, if that was asked for later."""
        # Whole seconds suit every store. Zero would mean "for ever" to one of them and an error to another.
        seconds = int(max(0, min(ttl, MAX_TTL)))
        if seconds == 0:
            return None
        sealed = self._sealed(name, asked)
        owner, claim.owner = claim.owner, ""
        later = await self._guard.run(self._store.put, name, sealed, seconds, owner=owner, fence=claim.fence)
        return self._opened(name, later)

    def name(self, key: tuple[Any, ...]) -> str:
        """SHA-256 over the parts, each with its length before it: no two keys spell the same bytes."""
        digest = hashlib.sha256(b"".join(_encoded((_VERSION, self._kind, key)))).hexdigest()
        return f"idp-middleware:{self._kind}:{digest}"

    def _sealed(self, name: str, asked: Asked[T]) -> str:
        # The name goes inside as well: whoever can write to the cache could otherwise serve one user's token to another
        # by copying it, and Fernet has no associated data to say where a value belongs.
        text = json.dumps({**self._write(asked[0]), "name": name, "asked_at": asked[1]})
        return text if self._fernet is None else self._fernet.encrypt(text.encode()).decode()

    def _opened(self, name: str, sealed: Any) -> Asked[T] | None:
        if sealed is None:
            return None
        with suppress(InvalidToken, ValueError, KeyError, TypeError, RecursionError):
            members = json.loads(sealed if self._fernet is None else self._fernet.decrypt(sealed))
            if members["name"] == name:
                return self._read(members)
        self._guard.unreadable()
        return None


def _encoded(part: Any) -> Iterator[bytes]:
    if part is None:
        yield b"n"
    elif isinstance(part, str):
        data = part.encode("utf-8", "surrogatepass")
        yield b"s%d:" % len(data)
        yield data
    elif isinstance(part, (tuple, frozenset)):
        parts = part if isinstance(part, tuple) else sorted(part)
        yield b"t%d:" % len(parts)
        for inner in parts:
            yield from _encoded(inner)
    else:
        raise TypeError(f"a cache key holds strings, None, tuples and frozensets, not {type(part).__name__}")
