"""Taking users' tokens back, to the end, whoever stops waiting for it.

Half of it would be a token that its user believes gone. Knows the token engine; nothing of requests.
"""

from __future__ import annotations

import asyncio

from idp_middleware._routes import ProxyRoute
from idp_middleware._tokens import TokenEngine
from idp_middleware._types import Caller


class Revocations:
    """Those of one middleware."""

    def __init__(self, tokens: TokenEngine) -> None:
        self._tokens = tokens
        self._under_way: set[asyncio.Task[None]] = set()

    async def revoke(self, caller: Caller, route: ProxyRoute) -> None:
        """Revoke a caller's token for a route. Raises as `TokenEngine.revoke`."""
        task = asyncio.create_task(self._tokens.revoke(caller, route))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def aclose(self) -> None:
        """Let those under way come to their end."""
        if self._under_way:
            await asyncio.wait(self._under_way)
