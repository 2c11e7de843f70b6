"""The store in one file: who may read it, what is in it, and what several processes and `kill -9` do to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from idp_middleware.errors import ConfigurationError, TokenSourceFailed, TokenSourceUnavailable
from idp_middleware.stores import SQLiteTokenStore, StoredToken, TokenKey
from tests.stores.conftest import KEY

ALICE = TokenKey(issuer="https://acme.example/", subject="auth0|alice", connection="github")
BOB = TokenKey(issuer="https://acme.example/", subject="auth0|bob", connection="github")
TOKEN = StoredToken(access_token="access-s3cret", refresh_token="refresh-s3cret")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteTokenStore]:
    store = SQLiteTokenStore(path, encryption_keys=[KEY])
    yield store
    await store.aclose()


def raw(path: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return db.execute(statement, values).fetchall()
    finally:
        db.close()


# At rest


async def test_its_owner_alone_may_read_the_files(path: Path, store: SQLiteTokenStore) -> None:
    """Whatever the umask says, and the files beside it too."""
    before = os.umask(0)
    try:
        await store.put(ALICE, TOKEN)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"tokens.db": 0o600, "tokens.db-wal": 0o600, "tokens.db-shm": 0o600}


async def test_neither_token_nor_subject_is_at_rest_in_clear(path: Path, store: SQLiteTokenStore) -> None:
    """Whoever copies the files learns nothing about anybody."""
    await store.put(ALICE, TOKEN)
    at_rest = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert [word for word in (b"s3cret", b"alice", b"github", b"acme") if word in at_rest] == []


async def test_a_row_copied_to_another_user_is_not_believed(path: Path, store: SQLiteTokenStore) -> None:
    """Who can write to the file must not be able to hand alice's token to bob."""
    await store.put(ALICE, TOKEN)
    ((owner, name, version, value),) = raw(path, "SELECT owner, name, version, value FROM tokens")
    await store.put(BOB, TOKEN)
    raw(path, "UPDATE tokens SET value = ?", value)
    with pytest.raises(TokenSourceFailed, match="belongs"):
        await store.get(BOB)
    raw(path, "DELETE FROM tokens WHERE owner = ?", owner)
    raw(path, "UPDATE tokens SET name = ?, version = ?", name, version)
    with pytest.raises(TokenSourceFailed, match="belongs"):
        await store.get(BOB)


@pytest.mark.parametrize("value", ["", "nonsense", b"\xff", 7], ids=repr)
async def test_a_damaged_row_is_an_error_and_goes_with_the_next_put(
    path: Path, store: SQLiteTokenStore, value: Any
) -> None:
    """Not a missing one, which would look like a user who has never connected."""
    await store.put(ALICE, TOKEN)
    raw(path, "UPDATE tokens SET value = ?", value)
    with pytest.raises(TokenSourceFailed):
        await store.get(ALICE)
    await store.put(ALICE, TOKEN)
    assert len(await store.get(ALICE)) == 1


async def test_an_entry_of_a_version_to_come_is_an_error(path: Path, store: SQLiteTokenStore) -> None:
    """Rolled back by hand, an older version of this package must not misread a newer one's entries."""
    await store.put(ALICE, TOKEN)
    raw(path, "UPDATE tokens SET value = ?", Fernet(KEY).encrypt(b'{"claim": {"by": "x"}}').decode())
    with pytest.raises(TokenSourceFailed, match="version"):
        await store.get(ALICE)


# The file


@pytest.mark.parametrize("place", ["nowhere/tokens.db", "."])
def test_a_path_that_can_be_no_file_is_told_at_once(tmp_path: Path, place: str) -> None:
    """Long before the first user connects."""
    with pytest.raises(ConfigurationError) as caught:
        SQLiteTokenStore(tmp_path / place, encryption_keys=[KEY])
    assert caught.value.key == "path"


async def test_a_database_of_something_else_is_left_alone(path: Path, store: SQLiteTokenStore) -> None:
    """A mistyped path must not put our table into the app's own database."""
    raw(path, "CREATE TABLE users (name TEXT)")
    with pytest.raises(TokenSourceFailed, match="something else"):
        await store.put(ALICE, TOKEN)
    assert raw(path, "SELECT name FROM sqlite_master") == [("users",)]


async def test_a_file_of_a_version_to_come_is_left_alone(path: Path, store: SQLiteTokenStore) -> None:
    """Whoever goes back a version is told, rather than served from what is misread."""
    await store.put(ALICE, TOKEN)
    await store.aclose()
    raw(path, "PRAGMA user_version = 2")
    with pytest.raises(TokenSourceFailed, match="version 2"):
        await store.get(ALICE)


async def test_what_is_no_database_is_unavailable_until_it_is_mended(path: Path, store: SQLiteTokenStore) -> None:
    """The message names no path; once the file is right again, so is the store."""
    path.write_bytes(b"not a database, and longer than a header of one: " * 10)  # noqa: ASYNC240
    with pytest.raises(TokenSourceUnavailable, match=r"SQLITE_NOTADB") as caught:
        await store.get(ALICE)
    assert str(path) not in str(caught.value)
    path.unlink()  # noqa: ASYNC240
    await store.put(ALICE, TOKEN)
    assert len(await store.get(ALICE)) == 1


async def test_a_file_that_was_emptied_under_a_running_process_is_set_up_again(
    path: Path, store: SQLiteTokenStore
) -> None:
    """After an error the file is looked at as if for the first time, since it may not be the one it was."""
    await store.put(ALICE, TOKEN)
    for statement in ("DROP TABLE tokens", "PRAGMA user_version = 0", "PRAGMA application_id = 0"):
        raw(path, statement)
    with pytest.raises(TokenSourceUnavailable, match="SQLITE_ERROR"):
        await store.put(ALICE, TOKEN)
    await store.put(ALICE, TOKEN)
    assert len(await store.get(ALICE)) == 1


async def test_a_folder_that_may_not_be_written_to_is_unavailable(tmp_path: Path) -> None:
    """The operating system's word for it, no path."""
    folder = tmp_path / "folder"
    folder.mkdir()
    store = SQLiteTokenStore(folder / "tokens.db", encryption_keys=[KEY])
    folder.rmdir()
    with pytest.raises(TokenSourceUnavailable, match="FileNotFoundError") as caught:
        await store.put(ALICE, TOKEN)
    assert str(tmp_path) not in str(caught.value)
    await store.aclose()


# Others


async def test_a_file_that_others_lock_is_waited_for_within_bounds_and_off_the_loop(
    path: Path, store: SQLiteTokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that takes long stops nobody's other requests, and ends in an answer."""
    monkeypatch.setattr("idp_middleware.stores._sqlite._BUSY", 0.3)
    await store.put(ALICE, TOKEN)
    await store.aclose()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    put = asyncio.create_task(store.put(ALICE, TOKEN))
    ticks = 0
    while not put.done():
        await asyncio.sleep(0.01)
        ticks += 1
    with pytest.raises(TokenSourceUnavailable, match="SQLITE_BUSY"):
        await put
    assert ticks >= 5
    assert len(await store.get(ALICE)) == 1  # reading waits for no writer
    other.execute("ROLLBACK")
    other.close()
    await store.put(ALICE, TOKEN)


async def test_opening_waits_for_others_who_have_the_file_open(path: Path, store: SQLiteTokenStore) -> None:
    """While others write, SQLite refuses a change of journal mode at once, whatever its time-out."""
    await store.put(ALICE, TOKEN)
    await store.aclose()
    raw(path, "PRAGMA journal_mode = DELETE")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    timer.start()
    assert len(await store.get(ALICE)) == 1
    timer.join()
    assert raw(path, "PRAGMA journal_mode") == [("wal",)]
    other.close()


def processes(count: int, path: Path, body: str) -> list[subprocess.Popen[str]]:
    """Python processes that have imported everything and wait for a line before they go on."""
    program = (
        "import asyncio, sys\n"
        "from idp_middleware.stores import SQLiteTokenStore, StoredToken, TokenKey\n"
        f"store = SQLiteTokenStore({str(path)!r}, encryption_keys=[{KEY!r}])\n"
        "key = TokenKey(issuer='https://acme.example/', subject='auth0|alice', connection='github')\n"
        f"async def main():\n{body}\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    return started


def go(started: list[subprocess.Popen[str]]) -> None:
    for each in started:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()


async def test_several_processes_make_one_file_at_once(path: Path, store: SQLiteTokenStore) -> None:
    """All workers of a new deployment see their first request in the same second."""
    started = processes(
        4, path, "    await store.put(key, StoredToken(access_token='at'))\n    await store.aclose()\n    print('done')"
    )
    go(started)
    assert [each.communicate(timeout=30)[0] for each in started] == ["done\n"] * 4
    assert len(await store.get(ALICE)) == 1


async def test_what_was_put_outlives_kill_9(path: Path, store: SQLiteTokenStore) -> None:
    """A put that has returned is there, and the file is whole."""
    (writer,) = processes(
        1,
        path,
        "    for number in range(100000):\n"
        "        await store.put(key, StoredToken(access_token=f'n{number}'))\n"
        "        print(number, flush=True)",
    )
    go([writer])
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    # Not `communicate`, which leaves out what had been read ahead.
    rest = writer.stdout.read().split("\n")
    writer.communicate()
    # Perhaps the last one was being written when it hit.
    last = int(rest[-2]) if len(rest) > 1 else 19
    (entry,) = await store.get(ALICE)
    assert int(entry.token.access_token[1:]) in (last, last + 1)
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_process_that_forks_shares_the_file_and_not_the_connection(path: Path, store: SQLiteTokenStore) -> None:
    """A server that loads the app and forks its workers afterwards; SQLite lets no connection cross that."""
    await store.put(ALICE, TOKEN)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            loop = asyncio.new_event_loop()
            asyncio.events._set_running_loop(None)
            (entry,) = loop.run_until_complete(store.get(ALICE))
            loop.run_until_complete(store.put(BOB, entry.token))
            status = 0
        finally:
            os._exit(status)
    assert await asyncio.to_thread(_status, child) == 0
    assert len(await store.get(BOB)) == 1


def _status(child: int) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def test_an_app_under_test_sees_several_loops(path: Path) -> None:
    """Each test client of Starlette's has one of its own."""
    store = SQLiteTokenStore(path, encryption_keys=[KEY])
    asyncio.run(store.put(ALICE, TOKEN))
    assert len(asyncio.run(store.get(ALICE))) == 1
    asyncio.run(store.aclose())
