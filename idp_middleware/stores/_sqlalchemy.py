"""A token store in a database that SQLAlchemy reaches, for processes of several hosts; PostgreSQL is what it is for.

The only module that imports SQLAlchemy (2.0 and later), which the extra `sqlalchemy` brings. Knows rows of digests and
sealed values, nothing of what is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from secrets import token_hex
from time import time
from typing import TYPE_CHECKING, Any, Final

from idp_middleware._types import _HoldsSecret
from idp_middleware.errors import ConfigurationError, TokenSourceUnavailable
from idp_middleware.stores._sealing import Vault
from idp_middleware.stores._values import Entry, StoredToken, TokenKey

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PATIENCE: Final = 10.0
"""Seconds for one operation, the wait for a connection included."""

_TABLE: Final = "idp_middleware_tokens_1"
"""The version of the schema is in the name: another one is another table."""


class SQLAlchemyTokenStore(_HoldsSecret):
    """Users' tokens in a table `idp_middleware_tokens_1`, encrypted.

    The table is made on first use; where the database's user may not do that, make it from `metadata` beforehand.
    Belongs to one event loop, as an `AsyncEngine` does. The hosts' clocks have to agree within some ten seconds.

    Args:
        engine: an `AsyncEngine`, which stays its owner's to dispose of, or the URL for one:
            `postgresql+asyncpg://user:password@host/database`.
        encryption_keys: Fernet keys (32 random bytes, URL-safe base64); the first encrypts, all of them decrypt. A new
            one is put in front, and the old one kept until each user's token has been refreshed or put again.

    Raises:
        ConfigurationError: no usable keys, not such a URL, or the extra is not installed.
    """

    # Without a `__dict__`, for who writes out all that `vars` gives: an engine has its password in its.
    __slots__ = ("_engine", "_owned", "_rows", "_sql", "_there", "_vault", "metadata")

    def __init__(self, engine: AsyncEngine | str, *, encryption_keys: Sequence[str] | Sequence[bytes]) -> None:
        self._vault = Vault(encryption_keys)
        try:
            import sqlalchemy
        except ImportError:
            raise ConfigurationError(
                "needs the extra: pip install 'idp-middleware[sqlalchemy]'", key="engine"
            ) from None
        self._sql = sqlalchemy
        self._owned = isinstance(engine, str)
        self._engine: AsyncEngine = _engine(engine, sqlalchemy.exc) if isinstance(engine, str) else engine
        self.metadata: MetaData = sqlalchemy.MetaData()
        self._rows = sqlalchemy.Table(
            _TABLE,
            self.metadata,
            sqlalchemy.Column("owner", sqlalchemy.String(64), primary_key=True),
            sqlalchemy.Column("name", sqlalchemy.String(64), primary_key=True),
            sqlalchemy.Column("version", sqlalchemy.String(32), nullable=False),
            sqlalchemy.Column("value", sqlalchemy.Text, nullable=False),
        )
        self._there = False

    @property
    def identity(self) -> tuple[str, ...]:
        """Which store it is; the password is left out."""
        return ("sqlalchemy", self._engine.url.render_as_string(hide_password=True))

    async def get(self, key: TokenKey) -> Sequence[Entry]:
        """As `TokenStore.get`."""
        query = self._sql.select(self._rows.c.value, self._rows.c.version).where(*self._which(key))
        async with self._transaction() as connection:
            rows = (await connection.execute(query)).all()
        return [self._vault.open(key, value, version) for value, version in rows]

    async def put(self, key: TokenKey, token: StoredToken) -> None:
        """As `TokenStore.put`."""
        entry = Entry(key=key, token=token, version=token_hex(16), stored_at=time())
        row = {"version": entry.version, "value": self._vault.seal(entry)}
        names = {"owner": self._vault.owner(key), "name": self._vault.name(key)}
        one = (self._rows.c.owner == names["owner"], self._rows.c.name == names["name"])
        async with self._transaction() as connection:
            # "Upsert" is spelt differently by each database; this is the same for all of them.
            if (await connection.execute(self._rows.update().where(*one).values(row))).rowcount:
                return
            try:
                async with connection.begin_nested():
                    await connection.execute(self._rows.insert().values(names | row))
            except self._sql.exc.IntegrityError:
                await connection.execute(self._rows.update().where(*one).values(row))

    async def compare_and_swap(self, entry: Entry) -> Entry | None:
        """As `TokenStore.compare_and_swap`."""
        version = token_hex(16)
        change = (
            self._rows.update()
            .where(
                self._rows.c.owner == self._vault.owner(entry.key),
                self._rows.c.name == self._vault.name(entry.key),
                self._rows.c.version == entry.version,
            )
            .values(version=version, value=self._vault.seal(entry))
        )
        async with self._transaction() as connection:
            written = (await connection.execute(change)).rowcount
        return replace(entry, version=version) if written else None

    async def delete(self, key: TokenKey, *, version: str | None = None) -> None:
        """As `TokenStore.delete`."""
        which = self._which(key)
        if version is not None:
            which += [self._rows.c.name == self._vault.name(key), self._rows.c.version == version]
        async with self._transaction() as connection:
            await connection.execute(self._rows.delete().where(*which))

    async def aclose(self) -> None:
        """Close the connections of an engine that was made from a URL; a later call opens new ones."""
        if self._owned:
            await self._engine.dispose()

    def __repr__(self) -> str:
        # A query may have a password, too.
        url = self._engine.url.set(query={})
        return f"SQLAlchemyTokenStore({url.render_as_string(hide_password=True)!r})"

    def _which(self, key: TokenKey) -> list[Any]:
        which: list[Any] = [self._rows.c.owner == self._vault.owner(key)]
        if key.account is not None:
            which.append(self._rows.c.name == self._vault.name(key))
        return which

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(_PATIENCE):
                if not self._there:
                    await self._make_table()
                async with self._engine.begin() as connection:
                    yield connection
        except Exception as exc:
            # Drivers let errors of their own through. The kind only: the text holds statement, values and host.
            raise TokenSourceUnavailable(f"token store: {type(exc).__name__}") from None

    async def _make_table(self) -> None:
        for again in (True, False):
            try:
                async with self._engine.begin() as connection:
                    await connection.run_sync(self.metadata.create_all)
                break
            except self._sql.exc.SQLAlchemyError:
                # Perhaps another process made it between our look and our deed, and will be seen now.
                if not again:
                    raise
        self._there = True


def _engine(url: str, exc: Any) -> AsyncEngine:
    """Raises `ConfigurationError`, which does not hold the URL: there may be a password in it."""
    from sqlalchemy.ext.asyncio import create_async_engine

    wrong = "is not the URL of a database with an asyncio driver"
    try:
        return create_async_engine(url, pool_pre_ping=True)
    except (exc.ArgumentError, exc.InvalidRequestError, ValueError):
        pass
    except ImportError as missing:
        wrong = f"needs the driver {missing.name}"
    # Not from within an `except`: what was wrong quotes parts of the URL.
    raise ConfigurationError(wrong, key="engine")
