"""Any aiocache backend as a store. The only module that imports aiocache (0.12).

Knows no claims: aiocache's lock takes an owner's word for it, and has no order of events.
"""

from __future__ import annotations

from typing import Any

from aiocache import SimpleMemoryCache
from aiocache.base import BaseCache as BaseCache  # for the annotations of whoever takes one

from idp_middleware._shared_store import StoreFailed


class AiocacheStore:
    """Values in a backend that stays its owner's to close. Its serializer (pickle?) is kept out of it."""

    __slots__ = ("_backend",)

    def __init__(self, backend: BaseCache) -> None:
        self._backend = backend

    async def get(self, name: str) -> Any:
        # `timeout=0`: aiocache's own bound is wait_for, a task per command.
        try:
            return await self._backend.get(name, loads_fn=_as_it_is, timeout=0)
        except Exception as exc:
            raise StoreFailed(type(exc).__name__) from None

    async def put(self, name: str, value: str, seconds: int, *, owner: str = "", fence: str = "") -> None:  # noqa: ARG002
        try:
            await self._backend.set(name, value, ttl=seconds, dumps_fn=_as_it_is, timeout=0)
        except Exception as exc:
            raise StoreFailed(type(exc).__name__) from None

    async def drop(self, name: str, *, fence: str = "") -> None:  # noqa: ARG002
        try:
            await self._backend.delete(name, timeout=0)
        except Exception as exc:
            raise StoreFailed(type(exc).__name__) from None

    async def aclose(self) -> None:
        """Nothing: who made the backend closes it."""


def leaves_the_process(backend: BaseCache) -> bool:
    """Whether what such a backend keeps can be seen from outside."""
    return not isinstance(backend, SimpleMemoryCache)


def _as_it_is(value: Any) -> Any:
    return value
