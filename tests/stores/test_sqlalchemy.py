"""What is SQLAlchemy's own: whose engine it is, and that its errors stay in there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from idp_middleware.errors import ConfigurationError, TokenSourceUnavailable
from idp_middleware.stores import SQLAlchemyTokenStore, StoredToken, TokenKey
from tests.stack import free_port
from tests.stores.conftest import KEY

ALICE = TokenKey(issuer="", subject="alice", connection="github")
TOKEN = StoredToken(access_token="at")


async def test_an_engine_of_the_app_stays_the_apps(tmp_path: Path) -> None:
    """Closing the store must not take the app's connections along; its tables are seen by the app's migrations."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    store = SQLAlchemyTokenStore(engine, encryption_keys=[KEY])
    assert list(store.metadata.tables) == ["idp_middleware_tokens_1"]
    async with engine.connect() as connection:
        await store.put(ALICE, TOKEN)
        await store.aclose()
        rows = (await connection.execute(text("SELECT value FROM idp_middleware_tokens_1"))).all()
    assert len(rows) == 1
    assert "at" not in rows[0][0].split(".")
    await engine.dispose()


@pytest.mark.parametrize(
    "url",
    ["postgresql://user:pa55word@host/db", "nonsense:pa55word", "nosuch+driver://user:pa55word@host/db"],
    ids=["no asyncio driver", "no URL", "no such dialect"],
)
def test_a_url_that_will_not_do_is_told_without_its_password(url: str) -> None:
    """It goes to a terminal or a log."""
    with pytest.raises(ConfigurationError) as caught:
        SQLAlchemyTokenStore(url, encryption_keys=[KEY])
    assert caught.value.key == "engine"
    assert "pa55word" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be installed."""
    monkeypatch.setitem(sys.modules, "aiomysql", None)
    with pytest.raises(ConfigurationError, match="aiomysql"):
        SQLAlchemyTokenStore("mysql+aiomysql://host/db", encryption_keys=[KEY])


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself imports without it."""
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigurationError, match=r"idp-middleware\[sqlalchemy\]"):
        SQLAlchemyTokenStore("sqlite+aiosqlite://", encryption_keys=[KEY])


async def test_a_database_that_is_down_is_unavailable_and_tried_again(tmp_path: Path) -> None:
    """No driver's error, no host, no password."""
    store = SQLAlchemyTokenStore(f"postgresql+asyncpg://u:pa55word@127.0.0.1:{free_port()}/db", encryption_keys=[KEY])
    for _ in range(2):
        with pytest.raises(TokenSourceUnavailable) as caught:
            await store.put(ALICE, TOKEN)
        assert "127.0.0.1" not in str(caught.value)
        assert caught.value.__suppress_context__
    assert "pa55word" not in repr(store) + str(store.identity)
    await store.aclose()

    folder = tmp_path / "later"
    store = SQLAlchemyTokenStore(f"sqlite+aiosqlite:///{folder}/tokens.db", encryption_keys=[KEY])
    with pytest.raises(TokenSourceUnavailable):
        await store.put(ALICE, TOKEN)
    folder.mkdir()
    await store.put(ALICE, TOKEN)
    assert len(await store.get(ALICE)) == 1
    await store.aclose()


async def test_a_database_that_does_not_answer_is_waited_for_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request waits behind it."""
    monkeypatch.setattr("idp_middleware.stores._sqlalchemy._PATIENCE", 0.2)
    engine: Any = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/t.db", pool_size=1, max_overflow=0)
    store = SQLAlchemyTokenStore(engine, encryption_keys=[KEY])
    async with engine.connect():
        with pytest.raises(TokenSourceUnavailable, match="TimeoutError"):
            await store.put(ALICE, TOKEN)
    await engine.dispose()
