"""A token store in one SQLite file, for all processes of one host.

The only module that imports sqlite3. Knows rows of digests and sealed values, nothing of what is in them.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from time import monotonic, sleep, time
from typing import Final, TypeVar

from idp_middleware._types import _HoldsSecret
from idp_middleware.errors import ConfigurationError, TokenSourceFailed, TokenSourceUnavailable
from idp_middleware.stores._sealing import Vault
from idp_middleware.stores._values import Entry, StoredToken, TokenKey

_BUSY: Final = 5.0
"""Seconds to wait for another process's write, which takes milliseconds."""

_APPLICATION: Final = 0x49445054  # "IDPT"
_SCHEMA: Final = 1
_TABLE: Final = """
    CREATE TABLE tokens (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        version TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (owner, name)
    ) WITHOUT ROWID
"""

_T = TypeVar("_T")

_left_behind: list[sqlite3.Connection] = []
"""Connections of a parent process: SQLite lets nothing cross a fork, not even the close."""


class SQLiteTokenStore(_HoldsSecret):
    """Users' tokens in one file, encrypted, that several processes of a host may use at a time.

    The file is made on first use, readable and writable by its owner only; a second and a third with `-wal` and `-shm`
    at the end stand beside it while it is open. It has to be on a local disk: SQLite's write-ahead log does not work
    over a network (sqlite.org/wal.html). A write is on the disk when it returns, so that neither `kill -9` nor a power
    cut brings a spent refresh token back.

    Args:
        path: of the file; its folder has to exist.
        encryption_keys: Fernet keys (32 random bytes, URL-safe base64); the first encrypts, all of them decrypt. A new
            one is put in front, and the old one kept until each user's token has been refreshed or put again.

    Raises:
        ConfigurationError: no usable keys, or no such folder.
    """

    def __init__(self, path: str | os.PathLike[str], *, encryption_keys: Sequence[str] | Sequence[bytes]) -> None:
        self._vault = Vault(encryption_keys)
        self._path = os.path.abspath(os.fspath(path))
        if os.path.isdir(self._path) or not os.path.isdir(os.path.dirname(self._path)):
            raise ConfigurationError("must name a file in a folder that exists", key="path")
        self._connection: sqlite3.Connection | None = None
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        # One thread, so that one connection will do.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idp_middleware token store")

    @property
    def identity(self) -> tuple[str, ...]:
        """Which store it is."""
        return ("sqlite", self._path)

    async def get(self, key: TokenKey) -> Sequence[Entry]:
        """As `TokenStore.get`."""
        query, values = self._which(key)
        select = f"SELECT value, version FROM tokens {query}"  # noqa: S608 - either of two texts of ours
        rows = await self._run(lambda db: db.execute(select, values).fetchall())
        return [self._vault.open(key, value, version) for value, version in rows]

    async def put(self, key: TokenKey, token: StoredToken) -> None:
        """As `TokenStore.put`."""
        entry = Entry(key=key, token=token, version=token_hex(16), stored_at=time())
        row = (self._vault.owner(key), self._vault.name(key), entry.version, self._vault.seal(entry))
        await self._run(lambda db: db.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)", row))

    async def compare_and_swap(self, entry: Entry) -> Entry | None:
        """As `TokenStore.compare_and_swap`."""
        version = token_hex(16)
        row = (
            version,
            self._vault.seal(entry),
            self._vault.owner(entry.key),
            self._vault.name(entry.key),
            entry.version,
        )
        written = await self._run(
            lambda db: (
                db.execute(
                    "UPDATE tokens SET version = ?, value = ? WHERE owner = ? AND name = ? AND version = ?", row
                ).rowcount
            )
        )
        return replace(entry, version=version) if written else None

    async def delete(self, key: TokenKey, *, version: str | None = None) -> None:
        """As `TokenStore.delete`."""
        query, values = self._which(key)
        if version is not None:
            query = "WHERE owner = ? AND name = ? AND version = ?"
            values = (self._vault.owner(key), self._vault.name(key), version)
        delete = f"DELETE FROM tokens {query}"  # noqa: S608 - one of three texts of ours
        await self._run(lambda db: db.execute(delete, values))

    async def aclose(self) -> None:
        """Close the file; a later call opens it again."""
        await self._in_thread(self._close)

    def __repr__(self) -> str:
        return f"SQLiteTokenStore({self._path!r})"

    def _which(self, key: TokenKey) -> tuple[str, tuple[str, ...]]:
        if key.account is None:
            return "WHERE owner = ?", (self._vault.owner(key),)
        return "WHERE owner = ? AND name = ?", (self._vault.owner(key), self._vault.name(key))

    async def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return await self._in_thread(lambda: self._work(work))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if self._process != os.getpid():
            if self._connection is not None:
                _left_behind.append(self._connection)
                self._connection = None
            self._begin()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _work(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            if self._connection is None:
                self._connection = _open(self._path)
            return work(self._connection)
        except (sqlite3.Error, OSError) as exc:
            # Opened anew next time: by then somebody may have mended what is wrong with it.
            self._close()
            raise TokenSourceUnavailable(f"token store: {_what(exc)}") from None

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _open(path: str) -> sqlite3.Connection:
    # SQLite would make it with the umask's mode; the files beside it take after this one. Only a new file is opened
    # here: closing it would drop the locks that another connection of this process holds on an old one.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    # Threads: closed by another than opened it, after a fork or where an executor was replaced.
    db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        _patiently(lambda: db.execute("PRAGMA journal_mode = WAL"))
        db.execute("PRAGMA synchronous = FULL")
        if _pragma(db, "user_version") != _SCHEMA or _pragma(db, "application_id") != _APPLICATION:
            _patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            _migrate(db)
            db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection) -> None:
    """Nothing but the first version yet: from an empty file to that, unless another process was faster."""
    application, schema = _pragma(db, "application_id"), _pragma(db, "user_version")
    if (application, schema) == (_APPLICATION, _SCHEMA):
        return
    if application == _APPLICATION:
        raise TokenSourceFailed(f"token store: version {schema} of the file; this version of ours reads {_SCHEMA}")
    if schema or db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise TokenSourceFailed("token store: the file is a database of something else")
    db.execute(_TABLE)
    db.execute(f"PRAGMA application_id = {_APPLICATION}")
    db.execute(f"PRAGMA user_version = {_SCHEMA}")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _patiently(work: Callable[[], object]) -> None:
    """SQLite refuses a change of journal mode at once where others are opening the file too, whatever its time-out."""
    give_up = monotonic() + _BUSY
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or monotonic() > give_up:
                raise
            sleep(0.01)


def _what(error: Exception) -> str:
    """SQLite's word for it ("SQLITE_FULL"), which names no file."""
    return getattr(error, "sqlite_errorname", None) or type(error).__name__
