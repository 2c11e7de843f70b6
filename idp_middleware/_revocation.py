"""Taking users' tokens back, to the end, whoever stops waiting for it; and hearing of it from other processes.

Half of a revocation would be a token that its user believes gone. Knows the token engine and the shared cache; nothing
of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from idp_middleware._limits import Slot
from idp_middleware._loops import running_loop
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache
    from idp_middleware._shared_revocations import Owner
    from idp_middleware._tokens import TokenEngine

# In seconds.
HEARD_EVERY: Final = 2.0  # how long other processes go on using what was revoked, a second of patience with Redis aside
OVERLAP: Final = 5.0  # between two looks, for a command that took its time
HEARD_OF: Final = 1800.0  # who has heard nothing for longer may have missed something


class Revocations:
    """Those of one middleware."""

    def __init__(self, tokens: TokenEngine) -> None:
        self._tokens = tokens
        self._under_way: set[asyncio.Task[None]] = set()

    async def revoke(self, caller: Caller, route: ProxyRoute, slot: Slot | None = None) -> None:
        """Revoke a caller's token for a route, and give the slot back at its end. Raises as `TokenEngine.revoke`."""
        task = asyncio.create_task(self._tokens.revoke(caller, route))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        if slot is not None:
            task.add_done_callback(lambda _: slot.give_back())
        await asyncio.shield(task)

    async def aclose(self) -> None:
        """Let those under way come to their end."""
        if self._under_way:
            await asyncio.wait(self._under_way)


class News:
    """Looks for revocations by other processes, as long as this one keeps what they could be about.

    A look every now and then, rather than a subscription: what happens while the connection is away is not lost, and
    one command in two seconds costs less than a connection that has to be watched.

    Args:
        cache: where they are told.
        forget: is called with whom each is about; with None where that can't be told, so that it may be anybody.
    """

    def __init__(self, cache: TokenCache, forget: Callable[[Owner | None], Coroutine[Any, Any, None]]) -> None:
        self._cache = cache
        self._forget = forget
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.Task[None] | None = None
        self._forgetting: set[asyncio.Task[None]] = set()
        self._heard_at = 0.0
        self._known: set[tuple[str, str]] = set()

    def follow(self) -> None:
        """Look from now on. A timer and not a task, so that a loop that ends leaves nothing behind."""
        loop = running_loop()
        if self._loop is not loop and self._cache.revocations.announcing is not None:
            if self._loop is None:
                # What another loop has kept may be about something older.
                self._heard_at = monotonic()
            self._loop = loop
            self._arm()

    def _arm(self) -> None:
        if self._loop is not None:
            self._timer = self._loop.call_later(HEARD_EVERY, self._begin)

    def _begin(self) -> None:
        if self._loop is not None:
            self._look = self._loop.create_task(self._hear())
            self._look.add_done_callback(lambda _: self._arm())

    async def _hear(self) -> None:
        now = monotonic()
        silence = now - self._heard_at
        told = await self._cache.revocations.announced(silence + OVERLAP)
        if told is None:
            return
        self._heard_at = now
        news, self._known = [each for each in told if each not in self._known], set(told)
        whom: set[Owner | None] = {await self._cache.revocations.owner(name) for name, _ in news}
        if silence > HEARD_OF or len(told) >= self._cache.revocations.at_most:
            whom.add(None)
        for owner in whom if None not in whom else {None}:
            # On its own: it waits for what is being asked for, and the next news must not.
            task = asyncio.create_task(self._forget(owner))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

    async def aclose(self) -> None:
        """Look no more."""
        loop, self._loop = self._loop, None
        if self._timer is not None:
            self._timer.cancel()
        if self._look is not None and loop is running_loop():
            tasks = {self._look, *self._forgetting}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
