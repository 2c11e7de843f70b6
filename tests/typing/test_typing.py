"""The files that `make check` gives to mypy and pyright use all that is public, and do run."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import httpx
import pytest

import idp_middleware
from idp_middleware import errors, fastapi, observers, providers, sources, stores, testing
from tests.typing import consumer, suite

HERE = Path(__file__).parent
USED = {
    name
    for file in ("consumer.py", "suite.py")
    for node in ast.walk(ast.parse((HERE / file).read_text()))
    for name in (getattr(node, "id", None), getattr(node, "attr", None))
    if name is not None
}


@pytest.mark.parametrize(
    "module",
    [idp_middleware, sources, stores, providers, testing, fastapi, observers],
    ids=lambda m: m.__name__,
)
def test_every_public_name_is_used(module: ModuleType) -> None:
    """What no checker has seen in use may have a type that nobody can use: a line for it in `consumer` or `suite`."""
    assert set(module.__all__) - USED == set()


def test_what_the_checkers_see_runs(tmp_path: Path) -> None:
    """Types that agree on something that fails would prove little."""
    app, around = consumer.around_an_app(tmp_path)
    assert app.url_path_for("starred") == "/starred"
    assert around is not app
    with pytest.raises(errors.ConfigurationError):
        consumer.from_a_file(tmp_path / "none.toml")
    suite.others()
    assert suite.a_world().requests() == []
    auth0, github = suite.parties()
    assert auth0.issuer == consumer.IDP
    assert github.requests == []


async def test_a_client_of_the_apps_own_runs(tmp_path: Path) -> None:
    """And what is stored after a log-in comes back."""
    idp = idp_middleware.IdPMiddleware(
        authenticator=consumer.function_authenticator,
        routes={"github": providers.github(token_source=consumer.own_source, connection="c")},
        transport=httpx.MockTransport(lambda request: httpx.Response(200)),
    )
    assert await consumer.in_a_job(idp) == 200
    store = stores.SQLiteTokenStore(tmp_path / "tokens.db", encryption_keys=consumer.KEYS)
    entry = await consumer.after_a_log_in(store)
    await store.aclose()
    assert entry is not None
    assert entry.token.access_token == "a"
