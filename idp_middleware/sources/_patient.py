"""Keeps to the pace an identity provider sets: few requests at a time, and none before it said to come back.

Knows status 429 and how long to wait, nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

from idp_middleware._idp_http import DEFAULT_TIMEOUT, Answer, IdPClient, Transport
from idp_middleware._turns import Turns
from idp_middleware._types import Timeout
from idp_middleware.errors import TokenSourceBusy

# In seconds.
MAX_WAIT: Final = 5.0  # that a request spends on waiting for a rate limit; a caller waits behind it
MAX_CLOSED: Final = 3600.0  # an answer that says "come back in 2099" is not believed
SHORTEST: Final = 0.25  # doubling: for an answer that says "now" again and again

AT_ONCE: Final = 10
"""Requests at a time: the burst that Auth0 allows a tenant not in production (its page "Rate Limit Configurations")."""


class PatientClient(IdPClient):
    """An `IdPClient` that waits a rate limit out if that is short, and else says how long it will be.

    `timeout.pool` also bounds the wait for one of the `AT_ONCE` turns.
    """

    def __init__(self, *, transport: Transport | None = None, timeout: Timeout = DEFAULT_TIMEOUT) -> None:
        super().__init__(transport=transport, timeout=timeout)
        self._turns = Turns(AT_ONCE, patience=timeout.pool)
        self._closed_until = 0.0

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    ) -> Answer:
        """As `IdPClient.request`, but never an answer 429.

        A function as `json` or `form` is called for each attempt, for a body that must not be sent twice.

        Raises:
            TokenSourceBusy: the rate limit lasts too long to wait (`retry_after` says how long), or too many requests
                wait for their turn.
        """
        give_up = monotonic() + MAX_WAIT
        shortest = SHORTEST
        while True:
            async with self._turns.turn():
                # Looked at after the wait for a turn, since whoever was ahead may have been turned away.
                wait = self._closed_until - monotonic()
                if wait <= 0:
                    answer = await super().request(method, url, headers=headers, json=_now(json), form=_now(form))
                    if answer.status != 429:
                        return answer
                    told = answer.retry_after()
                    wait = min(max(1.0 if told is None else told, shortest), MAX_CLOSED)
                    shortest *= 2
                    self._closed_until = max(self._closed_until, monotonic() + wait)
            # Those who waited for the same moment don't come all at once.
            pause = wait + random.uniform(0.0, SHORTEST)  # noqa: S311 - spreads requests, hides nothing
            if monotonic() + wait > give_up:
                raise TokenSourceBusy("the identity provider limits our rate", retry_after=wait)
            await asyncio.sleep(pause)


def _now(body: Any) -> Any:
    return body() if callable(body) else body
