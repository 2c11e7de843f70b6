"""The cache that workers and hosts share: tokens by digest, encrypted, behind the one in each process.

The only module that imports aiocache (0.12), and the only one that knows how a token looks at rest. Knows nothing of
callers, routes or sources. Whatever goes wrong here is a miss: the identity provider can always be asked instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any, Final

from aiocache import SimpleMemoryCache
from aiocache.base import BaseCache as BaseCache  # for the annotations of whoever takes one
from cryptography.fernet import InvalidToken

from idp_middleware._fernet import fernet
from idp_middleware._observation import CacheRecord, Record
from idp_middleware._types import Token, _HoldsSecret
from idp_middleware.errors import ConfigurationError

log = logging.getLogger("idp_middleware.cache")

# All times are in seconds.
PATIENCE: Final = 1.0  # with one command; asking the identity provider takes about as long
REST: Final = 5.0  # after a failure, so that a dead cache doesn't cost each request its patience
LOG_EVERY: Final = 60.0
MAX_TTL: Final = 30 * 24 * 3600  # memcached reads anything longer as a date

_PREFIX = "idp-middleware:token:"
_VERSION = "3"
"""Of the key and of what is stored under it: another version finds nothing, rather than something it misreads."""


class TokenCache(_HoldsSecret):
    """Tokens in an aiocache backend.

    Args:
        backend: where they are kept. Its serializer is not used: values are JSON, never pickled.
        encryption_keys: Fernet keys (32 random bytes, URL-safe base64); the first encrypts, all of them decrypt, so a
            new one is put in front and the old one kept until its tokens have expired. Only a `SimpleMemoryCache`,
            which never leaves the process, does without.

    Raises:
        ConfigurationError: no usable keys.
    """

    __slots__ = ("_backend", "_fernet", "_log_again_at", "_owned", "_resting_until", "observe")

    def __init__(self, backend: BaseCache, *, encryption_keys: Sequence[str] | Sequence[bytes] = ()) -> None:
        if not isinstance(backend, BaseCache):
            raise ConfigurationError(f"must be an aiocache backend, not {type(backend).__name__}", key="cache")
        if not encryption_keys and not isinstance(backend, SimpleMemoryCache):
            raise ConfigurationError("are needed: tokens leave this process only encrypted", key="encryption_keys")
        self._backend = backend
        self._owned = False
        self._fernet = fernet(encryption_keys) if encryption_keys else None
        self._resting_until = 0.0
        self._log_again_at = 0.0
        self.observe: Callable[[Record], None] | None = None
        """Is told of failures."""

    @classmethod
    def from_url(cls, url: str, *, encryption_keys: Sequence[str] | Sequence[bytes]) -> TokenCache:
        """A cache in Redis: `redis://[[user]:password@]host[:port][/db]`, or `rediss://` for TLS.

        Needs the extra `redis`. Closed by `aclose`, where a backend passed to the constructor is its owner's to close.

        Raises:
            ConfigurationError: not such a URL, no usable keys, or the extra is not installed.
        """
        cache = cls(_redis(url), encryption_keys=encryption_keys)
        cache._owned = True
        return cache

    async def get(self, key: tuple[Any, ...]) -> tuple[Token, float] | None:
        """The token kept under `key`, and when it was asked for (seconds since the epoch). Never raises."""
        if monotonic() < self._resting_until:
            return None
        name = _digest(key)
        try:
            # aiocache's own bound is wait_for, a task per command; loads_fn keeps its serializer (pickle?) out of it.
            async with asyncio.timeout(PATIENCE):
                value = await self._backend.get(_PREFIX + name, loads_fn=_as_it_is, timeout=0)
        except Exception as exc:
            self._failed("read", exc)
            return None
        if value is None:
            return None
        try:
            return self._opened(name, value)
        except (InvalidToken, ValueError, KeyError, TypeError, RecursionError) as exc:
            self._tell("open")
            self._complain("a value in the shared token cache is not one of ours, or under another key: %s", exc)
            return None

    async def set(self, key: tuple[Any, ...], token: Token, asked_at: float, *, ttl: float) -> None:
        """Keep a token for `ttl` seconds. Never raises."""
        # Whole seconds suit every backend. Zero would mean "for ever" to one of them and an error to another.
        seconds = int(max(0, min(ttl, MAX_TTL)))
        if seconds == 0 or monotonic() < self._resting_until:
            return
        name = _digest(key)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._backend.set(
                    _PREFIX + name, self._sealed(name, token, asked_at), ttl=seconds, dumps_fn=_as_it_is, timeout=0
                )
        except Exception as exc:
            self._failed("write", exc)

    async def delete(self, key: tuple[Any, ...]) -> None:
        """Drop what is kept under `key`. Never raises."""
        name = _digest(key)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._backend.delete(_PREFIX + name, timeout=0)
        except Exception as exc:
            self._failed("delete", exc)

    async def aclose(self) -> None:
        """Close the connections that `from_url` opened; a later command opens new ones."""
        if self._owned:
            await self._backend.close(timeout=0)

    def _sealed(self, name: str, token: Token, asked_at: float) -> str:
        # The name goes inside as well: whoever can write to the cache could otherwise serve one user's token to another
        # by copying it, and Fernet has no associated data to say where a value belongs.
        fields = {
            "name": name,
            "asked_at": asked_at,
            "value": token.value,
            "expires_at": token.expires_at,
            "type": token.type,
            "scopes": sorted(token.scopes),
            "extra": dict(token.extra),
            "account": token.account,
        }
        text = json.dumps(fields)
        return text if self._fernet is None else self._fernet.encrypt(text.encode()).decode()

    def _opened(self, name: str, sealed: str | bytes) -> tuple[Token, float]:
        fields = json.loads(sealed if self._fernet is None else self._fernet.decrypt(sealed))
        if fields["name"] != name:
            raise ValueError("found under another key")
        expires_at = fields["expires_at"]
        token = Token(
            fields["value"],
            None if expires_at is None else float(expires_at),
            fields["type"],
            frozenset(_text(scope) for scope in fields["scopes"]),
            dict(fields["extra"]),
            None if fields["account"] is None else _text(fields["account"]),
        )
        # A host whose clock is ahead must not lengthen a token's life here.
        return token, min(float(fields["asked_at"]), time())

    def _failed(self, what: str, error: Exception) -> None:
        self._resting_until = monotonic() + REST
        self._tell(what)
        # The kind only: the text may name hosts and users.
        self._complain("the shared token cache failed to %s: %s", what, type(error).__name__)

    def _tell(self, what: str) -> None:
        if self.observe is not None:
            self.observe(CacheRecord(what))

    def _complain(self, message: str, *args: object) -> None:
        now = monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + LOG_EVERY
            log.warning(message, *args)


def as_token_cache(cache: TokenCache | BaseCache | None) -> TokenCache | None:
    """What `IdPMiddleware(cache=…)` takes, as what the engine takes. Raises `ConfigurationError`."""
    return cache if cache is None or isinstance(cache, TokenCache) else TokenCache(cache)


def _as_it_is(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _redis(url: str) -> BaseCache:
    # No message holds the URL: there may be a password in it.
    if not isinstance(url, str) or not url.startswith(("redis://", "rediss://")):
        raise ConfigurationError("must be a redis:// or rediss:// URL", key="url")
    try:
        from aiocache import RedisCache
        from redis.asyncio import ConnectionPool
    except ImportError:
        raise ConfigurationError("needs the extra: pip install 'idp-middleware[redis]'", key="url") from None
    # Older redis-py does not check the host name unless told to.
    tls = {"ssl_check_hostname": True} if url.startswith("rediss://") else {}
    pool = None
    with suppress(ValueError):
        pool = ConnectionPool.from_url(url, **tls)
    if pool is None:
        # Not from within an `except`: what was wrong quotes what may be the password.
        raise ConfigurationError("is not a valid Redis URL", key="url")

    class Redis(RedisCache):  # type: ignore[misc]
        """Without the commands that aiocache 0.12 uses although redis-py has deprecated them."""

        async def _set(self, key: str, value: str, ttl: int, **_: Any) -> Any:
            return await self.client.set(key, value, ex=ttl)

        async def _close(self, **_: Any) -> None:
            await self.client.aclose()

    # aiocache's own URL reader knows no user names, no TLS and no percent-encoding, so redis-py reads it.
    return Redis(connection_pool_class=lambda **_: pool)


def _digest(key: tuple[Any, ...]) -> str:
    """SHA-256 over the parts, each with its length before it: no two keys spell the same bytes."""
    return hashlib.sha256(b"".join(_encoded((_VERSION, key)))).hexdigest()


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
