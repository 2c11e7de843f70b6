"""The cache that workers and hosts share: tokens and issuers' keys by digest, encrypted, behind those in each process.

Puts the parts together: `_shared_values` says how a value looks at rest and who may ask for it, `_shared_guard` keeps
failures harmless, `_shared_redis` and `_shared_aiocache` are where things are kept. Knows how a token and a key set
look as JSON; nothing of callers, routes or sources.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from secrets import token_hex
from time import time
from types import MappingProxyType
from typing import Any

from idp_middleware._advice import network_advice
from idp_middleware._fernet import fernet
from idp_middleware._observation import Record
from idp_middleware._shared_aiocache import AiocacheStore, BaseCache, leaves_the_process
from idp_middleware._shared_guard import PATIENCE, StoreGuard
from idp_middleware._shared_revocations import SharedRevocations
from idp_middleware._shared_store import Store, StoreFailed
from idp_middleware._shared_values import SharedValues
from idp_middleware._types import Token, _HoldsSecret
from idp_middleware.errors import CheckFailed, ConfigurationError

__all__ = ["BaseCache", "TokenCache", "as_token_cache"]


class TokenCache(_HoldsSecret):
    """Tokens, and the keys of issuers, in an aiocache backend or (`from_url`) in Redis.

    Only in Redis do processes also wait for each other, so that one of them asks and the rest take what it brings.

    Args:
        backend: where they are kept. Its serializer is not used: values are JSON, never pickled.
        encryption_keys: Fernet keys (32 random bytes, URL-safe base64); the first encrypts, all of them decrypt, so a
            new one is put in front and the old one kept until its tokens have expired. Only a `SimpleMemoryCache`,
            which never leaves the process, does without.

    Raises:
        ConfigurationError: no usable keys.
    """

    __slots__ = ("_guard", "_keys", "_store", "_tokens", "revocations")

    def __init__(self, backend: BaseCache, *, encryption_keys: Sequence[str] | Sequence[bytes] = ()) -> None:
        if not isinstance(backend, BaseCache):
            raise ConfigurationError(f"must be an aiocache backend, not {type(backend).__name__}", key="cache")
        if not encryption_keys and leaves_the_process(backend):
            raise ConfigurationError("are needed: tokens leave this process only encrypted", key="encryption_keys")
        self._keep_in(AiocacheStore(backend), encryption_keys)

    @classmethod
    def from_url(cls, url: str, *, encryption_keys: Sequence[str] | Sequence[bytes]) -> TokenCache:
        """A cache in Redis: `redis://[[user]:password@]host[:port][/db]`, or `rediss://` for TLS.

        Needs the extra `redis`. Closed by `aclose`, where a backend passed to the constructor is its owner's to close.

        Raises:
            ConfigurationError: not such a URL, no usable keys, or the extra is not installed.
        """
        if not isinstance(url, str) or not url.startswith(("redis://", "rediss://")):
            raise ConfigurationError("must be a redis:// or rediss:// URL, such as redis://127.0.0.1:6379/0", key="url")
        try:
            from idp_middleware._shared_redis import open_redis
        except ImportError:
            raise ConfigurationError("needs the extra: pip install 'idp-middleware[redis]'", key="url") from None
        if not encryption_keys:
            raise ConfigurationError("are needed: tokens leave this process only encrypted", key="encryption_keys")
        cache = cls.__new__(cls)
        cache._keep_in(open_redis(url, patience=PATIENCE), encryption_keys)
        return cache

    def _keep_in(self, store: Store, encryption_keys: Sequence[str] | Sequence[bytes]) -> None:
        self._store = store
        self._guard = StoreGuard()
        common: dict[str, Any] = {
            "store": store,
            "guard": self._guard,
            "fernet": fernet(encryption_keys) if encryption_keys else None,
        }
        self._tokens = SharedValues("token", write=_token_members, read=_token, **common)
        self._keys = SharedValues("keys", write=_key_members, read=_key_set, **common)
        self.revocations: SharedRevocations = SharedRevocations(**common)

    @property
    def observe(self) -> Callable[[Record], None] | None:
        """Is told of failures, and never raises."""
        return self._guard.observe

    @observe.setter
    def observe(self, observe: Callable[[Record], None] | None) -> None:
        self._guard.observe = observe

    @property
    def statistics(self) -> Mapping[str, int]:
        """How often since the start, in this process.

        `hits` and `misses` of look-ups, `writes`, `claims` to ask a source, `waits` for what another process asks for,
        answers that were `overtaken` by a later one and not written, commands that the store refused (`refusals`: full,
        read-only) or did not answer (`failures`).
        """
        return MappingProxyType(self._guard.counts)

    async def get(self, key: tuple[Any, ...]) -> tuple[Token, float] | None:
        """The token kept under `key`, and when it was asked for (seconds since the epoch). Never raises."""
        return await self._tokens.get(key)

    async def set(self, key: tuple[Any, ...], token: Token, asked_at: float, *, ttl: float) -> None:
        """Keep a token for `ttl` seconds. Never raises."""
        await self._tokens.set(key, token, asked_at, ttl=ttl)

    async def delete(self, key: tuple[Any, ...]) -> None:
        """Drop the token kept under `key`, and any that another process has asked for before now. Never raises."""
        await self._tokens.delete(key)

    async def obtain(
        self,
        key: tuple[Any, ...],
        ask: Callable[[], Awaitable[tuple[Token, float]]],
        *,
        serves: Callable[[tuple[Token, float]], bool],
        until: Callable[[tuple[Token, float]], float],
    ) -> tuple[Token, float]:
        """The token kept under `key` if it serves; else what `ask` brings, kept until `until` says (since the epoch).

        One process at a time asks. Raises what `ask` raises; after `IdentityNotLinked` nothing is kept.
        """
        return await self._tokens.obtain(key, ask, serves=serves, until=until)

    async def obtain_keys(
        self,
        key: tuple[Any, ...],
        ask: Callable[[], Awaitable[tuple[dict[str, Any], float]]],
        *,
        serves: Callable[[tuple[dict[str, Any], float]], bool],
        until: Callable[[tuple[dict[str, Any], float]], float],
    ) -> tuple[dict[str, Any], float]:
        """As `obtain`, for an issuer's key set: a JSON object.

        Public, but sealed like a token: whoever could plant a key in the cache could sign in as anybody.
        """
        return await self._keys.obtain(key, ask, serves=serves, until=until)

    async def check(self) -> str:
        """As `Checkable`: what is put in, for two seconds, comes out again."""
        name = written = f"idp-middleware:check:{token_hex(8)}"
        try:
            async with asyncio.timeout(3 * PATIENCE):
                # No drop: that would leave a mark for a minute.
                await self._store.put(name, written, 2)
                value = await self._store.get(name)
        except (StoreFailed, TimeoutError) as exc:
            wrong, todo = _refused(str(exc) or type(exc).__name__, network_advice(exc))
            raise CheckFailed(f"the shared cache: {wrong}", todo=todo) from None
        if value not in (written, written.encode()):
            todo = "check that the server keeps what is written, and is not a read-only replica"
            raise CheckFailed("the shared cache: it does not give back what was put in", todo=todo)
        return "gives back what was put in"

    async def aclose(self) -> None:
        """Close the connections that `from_url` opened; a later command opens new ones."""
        await self._store.aclose()


def as_token_cache(cache: TokenCache | BaseCache | None) -> TokenCache | None:
    """What `IdPMiddleware(cache=…)` takes, as what the engine takes. Raises `ConfigurationError`."""
    return cache if cache is None or isinstance(cache, TokenCache) else TokenCache(cache)


def _token_members(token: Token) -> dict[str, Any]:
    return {
        "value": token.value,
        "expires_at": token.expires_at,
        "type": token.type,
        "scopes": sorted(token.scopes),
        "extra": dict(token.extra),
        "account": token.account,
    }


def _token(members: dict[str, Any]) -> tuple[Token, float]:
    expires_at = members["expires_at"]
    token = Token(
        members["value"],
        None if expires_at is None else float(expires_at),
        members["type"],
        frozenset(_text(scope) for scope in members["scopes"]),
        dict(members["extra"]),
        None if members["account"] is None else _text(members["account"]),
    )
    # A host whose clock is ahead must not lengthen a token's life here.
    return token, min(float(members["asked_at"]), time())


def _refused(kind: str, network: tuple[str, str] | None) -> tuple[str, str]:
    if "Auth" in kind or "NOAUTH" in kind:
        return f"it refuses us ({kind})", "check user name and password in url"
    if "Timeout" in kind:
        # As where a server without TLS is asked for it: it waits for more of the question.
        return "it does not answer in time", "check that it is well, and url: its scheme (rediss:// for TLS) and port"
    if network is not None:
        return network
    return f"it failed ({kind})", "check url: its scheme (rediss:// for TLS), host, port and database"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _key_members(keys: dict[str, Any]) -> dict[str, Any]:
    return {"keys": keys}


def _key_set(members: dict[str, Any]) -> tuple[dict[str, Any], float]:
    keys = members["keys"]
    if not isinstance(keys, dict):
        raise TypeError("not a JSON object")
    return keys, float(members["asked_at"])
