"""What the shared cache asks of the place where it keeps things: a value by name, and for some a claim on a name.

Two places: any aiocache backend, which keeps values, and Redis (`_shared_redis`), which can also tell who comes first.
Knows names and opaque values; nothing of what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class StoreFailed(Exception):
    """The store gave no answer. Its words are the kind of failure only: the text may name hosts and users."""


class StoreRefused(StoreFailed):
    """The store answers, and refused this: full, read-only, a command that its access list lacks."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What came of a claim: whether we have it, its place in the order of claims, and the value that was there then."""

    won: bool
    fence: str
    value: str | bytes | None = field(repr=False)


class Store(Protocol):
    """Values by name. Every method raises `StoreFailed`, and is safe to cancel."""

    async def get(self, name: str) -> str | bytes | None: ...

    async def put(self, name: str, value: str, seconds: int, *, owner: str = "", fence: str = "") -> str | bytes | None:
        """Keep a value for some seconds, and let go of the claim of `owner`.

        Where claims exist, an answer that was asked for before the one that is there (by `fence`; "" is now) is not
        written. Then the one that is there comes back.
        """

    async def drop(self, name: str, *, fence: str = "") -> None:
        """Forget the value, and where claims exist refuse for a while what was asked for before."""

    async def aclose(self) -> None: ...


class ClaimingStore(Store, Protocol):
    """A store that all processes see the same order of events in."""

    async def claim(self, name: str, owner: str, lease: float) -> Claimed:
        """Claim a name for `lease` seconds, unless somebody else has."""

    async def extend(self, name: str, owner: str, lease: float) -> None:
        """Let one's claim last `lease` seconds from now; nothing where it is no longer one's own."""

    async def release(self, name: str, owner: str) -> None:
        """Let go of one's claim; nothing where it is no longer one's own."""
