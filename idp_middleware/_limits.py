"""How many requests of a route are under way, and how many of each caller; who is one too many is turned away.

At once rather than after a wait: who waits holds a connection and a task, and that is what there are too many of. Knows
callers; nothing of requests.
"""

from __future__ import annotations

from idp_middleware._types import Caller
from idp_middleware.errors import ConfigurationError, RouteOverloaded, TooManyRequests


class Slots:
    """Those of one route. One event loop at a time uses them."""

    __slots__ = ("_at_most", "_each_at_most", "_of", "_taken")

    def __init__(self, at_most: int | None, each_at_most: int | None) -> None:
        self._at_most = at_most
        self._each_at_most = each_at_most
        self._taken = 0
        self._of: dict[tuple[str, str], int] = {}

    def take(self, caller: Caller) -> Slot:
        """A slot for one request of a caller.

        Raises `TooManyRequests` where the caller has as many as each may have, `RouteOverloaded` where all are taken.
        """
        who = (caller.issuer, caller.subject)
        of_caller = self._of.get(who, 0)
        # First: who has had their share is told so, whatever the others are doing.
        if self._each_at_most is not None and of_caller >= self._each_at_most:
            raise TooManyRequests(f"{of_caller} requests of the caller are under way")
        if self._at_most is not None and self._taken >= self._at_most:
            raise RouteOverloaded(f"{self._taken} requests are under way")
        self._taken += 1
        self._of[who] = of_caller + 1
        return Slot(self, who)

    def give_back(self, who: tuple[str, str]) -> None:
        self._taken -= 1
        self._of[who] -= 1
        if not self._of[who]:
            # Or there would be an entry for everybody who ever came.
            del self._of[who]


class Slot:
    """One request's place; whoever has it gives it back once."""

    __slots__ = ("_slots", "_who")

    def __init__(self, slots: Slots, who: tuple[str, str]) -> None:
        self._slots = slots
        self._who = who

    def give_back(self) -> None:
        self._slots.give_back(self._who)


def slots_for(at_most: int | None, each_at_most: int | None) -> Slots | None:
    """Slots for a route's `max_concurrent` and `max_concurrent_per_caller`; None where neither is limited.

    Raises `ConfigurationError` for a limit that lets nobody in.
    """
    for key, value in (("max_concurrent", at_most), ("max_concurrent_per_caller", each_at_most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError("must be a number of requests, 1 or more", key=key)
    return None if at_most is None and each_at_most is None else Slots(at_most, each_at_most)
