"""Keeps the failures of a shared store from being anybody's: bounded waits, rests, one line in the log, counters.

What goes wrong comes out as None, a miss: the source can always be asked instead. Knows nothing of what is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, TypeVar

from idp_middleware._observation import CacheRecord, Record
from idp_middleware._shared_store import StoreFailed, StoreRefused

log = logging.getLogger("idp_middleware.cache")

# All times are in seconds.
PATIENCE: Final = 1.0  # with one command; asking the identity provider takes about as long
REST: Final = 5.0  # after a failure, so that a dead store doesn't cost each request its patience
LOG_EVERY: Final = 60.0

COUNTED: Final = ("hits", "misses", "writes", "claims", "waits", "overtaken", "refusals", "failures")

_T = TypeVar("_T")


class StoreGuard:
    """Runs commands of a store, never raising what they raise.

    A store that fails is left alone for a while, and then tried by one command before all use it again. One that
    refuses to write (full, read-only) is still read.
    """

    __slots__ = ("_log_again_at", "_rests", "counts", "observe")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self.observe: Callable[[Record], None] | None = None
        """Is told of failures, and never raises."""
        # Until when nothing is read; and nothing written.
        self._rests = [0.0, 0.0]
        self._log_again_at = 0.0

    def resting(self, *, writes: bool) -> bool:
        """Whether a command would be of no use now; where not, others wait for what comes of this one."""
        now = monotonic()
        for which in range(1 + writes):
            if now < self._rests[which]:
                return True
            if self._rests[which]:
                self._rests[which] = now + PATIENCE
        return False

    async def run(
        self,
        command: Callable[..., Coroutine[Any, Any, _T]],
        *args: Any,
        writes: bool = True,
        always: bool = False,
        **options: Any,
    ) -> _T | None:
        """What the command answers; None where it fails, or would (`always` tries all the same)."""
        if self.resting(writes=writes) and not always:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await command(*args, **options)
        except StoreRefused as exc:
            self.counts["refusals"] += 1
            self._rests[writes] = monotonic() + REST
            self._tell(_operation(command))
            self.complain("the shared token cache refused to %s: %s", _operation(command), exc)
        except (StoreFailed, TimeoutError) as exc:
            self.counts["failures"] += 1
            self._rests[0] = monotonic() + REST
            self._tell(_operation(command))
            self.complain("the shared token cache failed to %s: %s", _operation(command), str(exc) or "TimeoutError")
        else:
            self._rests[0] = 0.0
            if writes:
                self._rests[1] = 0.0
            if command.__name__ == "put":
                # Here, since None is also what comes of one that failed.
                self.counts["writes" if answer is None else "overtaken"] += 1
            return answer
        return None

    def unreadable(self) -> None:
        """A value was there, and is no use: another key, another version, or somebody else's."""
        self._tell("open")
        self.complain("a value in the shared token cache is not one of ours, or under another key")

    def _tell(self, operation: str) -> None:
        if self.observe is not None:
            self.observe(CacheRecord(operation))

    def complain(self, message: str, *args: object) -> None:
        """One line in the log, and then none for a while."""
        now = monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + LOG_EVERY
            log.warning(message, *args)


def _operation(command: Callable[..., object]) -> str:
    return {"get": "read", "put": "write", "drop": "delete"}.get(command.__name__, "claim")
