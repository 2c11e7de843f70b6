"""Redis or Valkey as the store that workers and hosts share. The only module that imports redis-py.

What has to be one step is one Lua script. A value is kept with its fence in front: when it was asked for, by the clock
of Redis, so that clocks of hosts may differ and an answer that comes late never replaces a later one. redis-py's own
`Lock` has an owner and lets go by script, but neither reads again in the step that wins nor has a fence.

Knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from idp_middleware._shared_store import Claimed, StoreFailed, StoreRefused
from idp_middleware.errors import ConfigurationError

CONNECTIONS: Final = 50
"""At most, to one Redis from one process; who finds none free waits as long as for a slow answer."""

OUTDATED_FOR: Final = 60
"""Seconds for which an answer from before a value was dropped is not taken: longer than asking a source takes."""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# Owner and lease (milliseconds). To claim again what one has is to have it: redis-py may have sent this twice.
_CLAIM = (
    _NOW
    + """
local holder = redis.call('GET', KEYS[2])
if not holder then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
return {(not holder or holder == ARGV[1]) and 1 or 0, string.format('%.0f', now), redis.call('GET', KEYS[1])}
"""
)

# Owner, fence, value, seconds. A fence to come is that of a Redis whose clock was ahead, before a failover.
_PUT = (
    _NOW
    + """
local fence = tonumber(ARGV[2]) or now
local there = redis.call('GET', KEYS[1])
local other = there and tonumber(string.match(there, '^(%d+):'))
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
if other and other > fence and other <= now then return there end
redis.call('SET', KEYS[1], string.format('%.0f', fence) .. ':' .. ARGV[3], 'EX', ARGV[4])
return false
"""
)

_EXTEND = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


# What is announced, and the seconds for which announcements stand.
_ANNOUNCE = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2] * 1000000))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""
)

# Milliseconds to look back, and how many at most.
_ANNOUNCED = (
    _NOW
    + """
local since = string.format('%.0f', now - ARGV[1] * 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], since, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
"""
)

_ANNOUNCEMENTS: Final = "idp-middleware:announcements"


class RedisStore:
    """Values with fences, and claims, over connections that are opened when needed."""

    __slots__ = ("_announce", "_announced", "_claim", "_extend", "_put", "_redis", "_release")

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = redis.register_script(_CLAIM)
        self._put = redis.register_script(_PUT)
        self._extend = redis.register_script(_EXTEND)
        self._release = redis.register_script(_RELEASE)
        self._announce = redis.register_script(_ANNOUNCE)
        self._announced = redis.register_script(_ANNOUNCED)

    async def get(self, name: str) -> bytes | None:
        async with self._answering():
            return _value(await self._redis.get(_slot(name)))

    async def claim(self, name: str, owner: str, lease: float) -> Claimed:
        async with self._answering():
            won, fence, there = await self._claim([_slot(name), _lock(name)], [owner, int(lease * 1000)])
            return Claimed(won == 1, fence.decode(), _value(there))

    async def put(self, name: str, value: str, seconds: int, *, owner: str = "", fence: str = "") -> bytes | None:
        async with self._answering():
            return _value(await self._put([_slot(name), _lock(name)], [owner, fence, value, seconds]))

    async def drop(self, name: str, *, fence: str = "") -> None:
        # An empty value, and not none: its fence is what turns away an answer that is still on its way.
        await self.put(name, "", OUTDATED_FOR, fence=fence)

    async def extend(self, name: str, owner: str, lease: float) -> None:
        async with self._answering():
            await self._extend([_lock(name)], [owner, int(lease * 1000)])

    async def release(self, name: str, owner: str) -> None:
        async with self._answering():
            await self._release([_lock(name)], [owner])

    async def announce(self, name: str, seconds: int) -> bool:
        async with self._answering():
            return bool(await self._announce([_ANNOUNCEMENTS], [name, seconds]))

    async def announced(self, seconds: float, at_most: int) -> list[tuple[str, str]]:
        async with self._answering():
            told = [each.decode() for each in await self._announced([_ANNOUNCEMENTS], [int(seconds * 1000), at_most])]
            return list(zip(told[::2], told[1::2], strict=True))

    async def aclose(self) -> None:
        """Close the connections; a later command opens new ones."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Turns what redis-py raises into errors of ours."""
        try:
            yield
        except ResponseError as exc:
            if "READONLY" in str(exc):
                # It was the primary when we connected. Its name may by now lead to the one that is.
                with suppress(Exception):
                    await self._redis.connection_pool.disconnect(inuse_connections=False)
            raise StoreRefused(_refusal(exc)) from None
        except Exception as exc:
            raise StoreFailed(type(exc).__name__) from None


def _refusal(error: Exception) -> str:
    """Redis's word for what is wrong, which the text begins with; the rest may quote names and arguments."""
    for word in ("OOM", "READONLY", "NOPERM", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CROSSSLOT", "MOVED"):
        if word in str(error):
            return word
    return type(error).__name__


def _slot(name: str) -> str:
    # In braces, what a cluster goes by: a value and its lock have to be on one node.
    kind, _, digest = name.rpartition(":")
    return f"{kind}:{{{digest}}}"


def _lock(name: str) -> str:
    return f"{_slot(name)}:lock"


def _value(kept: Any) -> bytes | None:
    """A value without its fence; None for what was dropped."""
    return None if kept is None else kept.partition(b":")[2] or None


def open_redis(url: str, *, patience: float) -> RedisStore:
    """The store at a `redis://` or `rediss://` URL; `patience` is in seconds. Connects when first used.

    Raises `ConfigurationError`, whose message never holds the URL: there may be a password in it.
    """
    # Older redis-py does not check the host name unless told to.
    tls = {"ssl_check_hostname": True} if url.startswith("rediss://") else {}
    pool = None
    with suppress(ValueError):
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=patience,
            # Once more, at once: a Redis that was restarted has closed the connections that we kept.
            retry=Retry(NoBackoff(), 1),
            # That a connection was reset while nobody used it, uvloop says so.
            retry_on_error=[RuntimeError],
            **tls,
        )
    if pool is None:
        # Not from within an `except`: what was wrong quotes what may be the password.
        raise ConfigurationError("is not a valid Redis URL", key="url")
    return RedisStore(Redis(connection_pool=pool))
