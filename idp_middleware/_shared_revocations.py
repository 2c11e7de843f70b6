"""Which users' tokens have been revoked, told to all processes through the store that they share.

Two things are written: a mark, which whoever finds a token in the store compares its age with; and, where the store
can tell the order of events, an announcement, for who keeps tokens and finds nothing new in the store for an hour.
Knows marks, not what is done about them.
"""

from __future__ import annotations

from time import time
from typing import Any, Final, Protocol, TypeAlias, cast

from cryptography.fernet import MultiFernet

from idp_middleware._shared_guard import StoreGuard
from idp_middleware._shared_store import Store
from idp_middleware._shared_values import MAX_TTL, Asked, SharedValues

Owner: TypeAlias = tuple[tuple[str, ...], str | None, str, str]
"""Whose tokens: the source's identity, the connection, and the user's issuer and subject."""

ANNOUNCED_FOR: Final = 3600
"""Seconds for which an announcement stands."""

SKEW: Final = 5.0
"""Seconds by which clocks of hosts may differ: so long after a revocation, processes each ask for themselves."""

MANY: Final = 1000
"""Announcements that are read at a time."""


class AnnouncingStore(Store, Protocol):
    """A store in which processes can tell each other something."""

    async def announce(self, name: str, seconds: int) -> bool:
        """Add a name to the list of announcements, each of which stands so long."""

    async def announced(self, seconds: float, at_most: int) -> list[tuple[str, str]]:
        """The announcements of the last so many seconds, each with when it was made, by the store's clock."""


class SharedRevocations:
    """The revocations in one store."""

    __slots__ = ("_guard", "_marks", "_store")

    at_most: Final = MANY

    def __init__(self, *, store: Store, guard: StoreGuard, fernet: MultiFernet | None) -> None:
        self._store = store
        self._guard = guard
        self._marks = SharedValues("revoked", store=store, guard=guard, fernet=fernet, write=_members, read=_owner)

    @property
    def announcing(self) -> AnnouncingStore | None:
        return cast("AnnouncingStore", self._store) if hasattr(self._store, "announce") else None

    async def revoke(self, owner: Owner) -> bool:
        """Mark and announce that nothing counts that was obtained for `owner` before now; False where that failed."""
        await self._marks.set(owner, owner, time(), ttl=MAX_TTL)
        if (store := self.announcing) is not None:
            await self._guard.run(store.announce, self._marks.name(owner), ANNOUNCED_FOR)
        return not self._guard.resting(writes=True)

    async def revoked_at(self, owner: Owner) -> float:
        """Up to when what was asked for may be of before `owner`'s tokens were revoked last (seconds since the epoch).

        0.0 if they never were, or nobody knows. Never raises.
        """
        mark = await self._marks.get(owner)
        return 0.0 if mark is None else mark[1] + SKEW

    async def announced(self, seconds: float) -> list[tuple[str, str]] | None:
        """What was announced in the last so many seconds: names of marks, each with when; None where nobody knows."""
        store = self.announcing
        return None if store is None else await self._guard.run(store.announced, seconds, self.at_most, writes=False)

    async def owner(self, name: str) -> Owner | None:
        """Whom the mark of that name is about."""
        mark = await self._marks.named(name)
        return None if mark is None else mark[0]


def _members(owner: Owner) -> dict[str, Any]:
    return {"owner": owner}


def _owner(members: dict[str, Any]) -> Asked[Owner]:
    identity, connection, issuer, subject = members["owner"]
    return (tuple(identity), connection, issuer, subject), float(members["asked_at"])
