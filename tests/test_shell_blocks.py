"""The commands that pages show are run, as their readers would, and do what the pages say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import pages, shell_blocks
from tests.at_home import Home
from tests.fleet.redis_server import RedisServer, running_redis
from tests.shell_blocks import Environment

SHELL: dict[str, list[str]] = {}
for _block in pages.blocks("sh"):
    SHELL.setdefault(_block.page, []).extend(shell_blocks.commands(_block))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell_blocks.wheel(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """For pages that begin after the installation."""
    return Environment(tmp_path_factory.mktemp("installed"), wheels).create().install()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell_blocks.copy_of_the_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def home() -> Iterator[Home]:
    with ExitStack() as servers:
        yield Home(servers)


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "make"))), reason="bash, curl or make is not installed")
@pytest.mark.parametrize("page", SHELL)
def test_the_shell_of_a_page_runs(
    page: str, home: Home, project: Path, wheels: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From its first line to its last: what is shown is what people paste."""
    if any(command.startswith("pip install") for command in SHELL[page]):
        environment = Environment(tmp_path / "environment", wheels).create()
    else:
        environment = request.getfixturevalue("installed")
    if any("redis://127.0.0.1:6379/0" in block.text for block in pages.blocks("toml") if block.page == page):
        home.places["redis://127.0.0.1:6379/0"] = request.getfixturevalue("redis").url
    said = shell_blocks.run(page, home, tmp_path, environment, project)
    assert "does not provide the extra" not in said
    asked = sum("/idp/github/" in command for command in SHELL[page])
    assert len([seen for seen in home.github.tokens_seen() if seen == "gho_alice"]) >= asked
    assert "gho_alice" not in said
