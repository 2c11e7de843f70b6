"""What README shows works as shown."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from idp_middleware import IdPMiddleware, load_config
from idp_middleware.testing import serve

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"]
BLOCKS = [
    pytest.param(language, text, id=f"{page}-{number}-{language}")
    for page in PAGES
    for number, (language, text) in enumerate(
        re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    )
]


def blocks(wanted: str):
    return [block for block in BLOCKS if block.values[0] == wanted]


def test_every_block_has_a_test():
    """A block in a language that nothing here runs would be free to rot."""
    assert {block.values[0] for block in BLOCKS} == {"sh", "python", "toml"}
    assert "make demo" in (ROOT / "README.md").read_text()[:1600]
    assert "make test" in (ROOT / "README.md").read_text()[:1600]


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for who in ("AUTH0", "GOOGLE"):
        monkeypatch.setenv(f"{who}_CLIENT_ID", "an-id")
        monkeypatch.setenv(f"{who}_CLIENT_SECRET", "a-secret")


@pytest.mark.parametrize(("language", "text"), blocks("python"))
def test_a_python_block_runs(language, text):
    """And an app that it makes guards its prefix."""
    namespace: dict = {}
    exec(compile(text, "README.md", "exec"), namespace)
    if "app" in namespace:
        import httpx

        with serve(namespace["app"]) as server:
            refused = httpx.get(f"{server.url}/idp/github/user", trust_env=False)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert httpx.get(f"{server.url}/docs", trust_env=False).status_code == 200


@pytest.mark.parametrize(("language", "text"), blocks("toml"))
def test_a_configuration_block_loads(language, text, tmp_path):
    """As the gateway would load it."""
    (tmp_path / "idp.toml").write_text(text)
    IdPMiddleware(**load_config(tmp_path / "idp.toml"))


@pytest.mark.parametrize(("language", "text"), blocks("sh"))
def test_the_commands_of_a_shell_block_exist(language, text):
    """Make targets, sub-commands with their options, extras, files; running them is what the other tests do."""
    for line in text.splitlines():
        command = line.partition("#")[0].split()
        assert command, line
        if command[0] == "make":
            assert shutil.which("make") is None or (
                subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True).returncode == 0
            )
        elif command[0] == "idp-middleware":
            help_text = subprocess.run(
                [sys.executable, "-m", "idp_middleware", command[1], "--help"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert all(word in help_text for word in command[2:] if word.startswith("--"))
        elif command[0] == "pip":
            extra = re.search(r"\[(\w+)\]", line)
            assert extra is not None
            assert f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()
        elif command[0] == "curl":
            assert "/idp/github/" in line
        else:
            assert command[:2] == ["IDP_CONFIG=idp.toml", "uvicorn"]
            assert command[2] == "idp_middleware.asgi:app"


def test_links_between_pages_lead_somewhere():
    """A file that moved is noticed here."""
    for page in [*PAGES, "ARCHITECTURE.md", "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_tests_and_modules_that_pages_name_exist():
    """SECURITY.md ties each rule to the test that keeps it; ARCHITECTURE.md is the map."""
    for name in re.findall(r"`(test_[\w*]+\.py)`", (ROOT / "SECURITY.md").read_text()):
        assert list((ROOT / "tests").rglob(name)), name
    package = ROOT / "idp_middleware"
    rows = [
        line.split("|")[1] for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| `")
    ]
    mapped = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+(?:\.py|/))`", row)}
    modules = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert mapped == modules - {"__init__.py", "__main__.py", "_version.py"}
