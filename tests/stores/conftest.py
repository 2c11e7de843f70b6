"""The stores that every user of one may meet: SQLite's, SQLAlchemy's over SQLite, and over a PostgreSQL of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from idp_middleware.stores import SQLAlchemyTokenStore, SQLiteTokenStore, TokenStore
from tests.stack import eventually, free_port

KEY = Fernet.generate_key().decode()

MakeStore = Callable[..., Any]


def _postgres_binary(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests."""
    initdb, server, ready = map(_postgres_binary, ("initdb", "postgres", "pg_isready"))
    if initdb is None or server is None or ready is None:
        pytest.skip("needs PostgreSQL's initdb, postgres and pg_isready")
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}
        if os.geteuid() == 0:  # as whom it refuses to run
            options["user"] = "postgres"
            shutil.chown(folder, "postgres")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(
            [initdb, "-D", "data", "-U", "tester", "-A", "trust", "--no-sync"], check=True, **quiet, **options
        )
        port = free_port()
        where = ["-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        running = subprocess.Popen([server, "-D", "data", *where], **quiet, **options)
        try:
            eventually(
                lambda: subprocess.run([ready, "-h", "127.0.0.1", "-p", str(port)], **quiet).returncode == 0, within=30
            )
            yield f"postgresql+asyncpg://tester@127.0.0.1:{port}/postgres"
        finally:
            running.terminate()
            running.wait(20)


@pytest.fixture(params=["sqlite", "sqlalchemy-sqlite", "sqlalchemy-postgresql"])
async def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeStore]:
    """Another view of the same store with each call, as another process has it."""
    opened: list[Any] = []
    url = ""
    if request.param == "sqlalchemy-sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/tokens.db"
    elif request.param == "sqlalchemy-postgresql":
        url = request.getfixturevalue("postgres")

    def make(keys: list[str] | None = None) -> Any:
        if url:
            store: Any = SQLAlchemyTokenStore(url, encryption_keys=keys or [KEY])
        else:
            store = SQLiteTokenStore(tmp_path / "tokens.db", encryption_keys=keys or [KEY])
        opened.append(store)
        return store

    yield make
    for store in opened:
        await store.aclose()


@pytest.fixture
async def store(make_store: MakeStore) -> TokenStore:
    """One of each kind."""
    return make_store()
