"""What README and the documentation show works as shown, and their links lead somewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from urllib.parse import urlsplit

import httpx
import pytest

from docs.reference import helps
from idp_middleware import IdPMiddleware, load_config
from idp_middleware.testing import serve
from tests import pages

ROOT = pages.ROOT


def test_every_block_has_a_test():
    """A block in a language that nothing here runs would be free to rot."""
    assert {block.language for block in pages.all_blocks()} <= pages.RUN | pages.SHOWN
    assert "make demo" in (ROOT / "README.md").read_text()[:1600]
    assert "make test" in (ROOT / "README.md").read_text()[:1600]


def test_few_blocks_are_not_run():
    """The exception stays one, with its reason in the source."""
    left_out = [block for block in pages.all_blocks() if block.language in pages.RUN and block.not_run]
    assert len(left_out) <= 12, [f"{block}: {block.not_run}" for block in left_out]


@pytest.mark.parametrize(("page", "program"), pages.programs().items(), ids=[*pages.programs()])
def test_the_python_of_a_page_runs(page, program, monkeypatch, tmp_path):
    """From its first block to its last, as one program; and an app that it makes guards its prefix."""
    monkeypatch.chdir(tmp_path)
    for block in pages.blocks("toml"):
        # What the page calls idp.toml, the program may read.
        if block.page == page:
            text = pages.configuration(block.text)
            (tmp_path / "idp.toml").write_text(text)
            for name, value in pages.environment(text).items():
                monkeypatch.setenv(name, value)
    namespace: dict = {"__name__": "example"}
    guarded = None
    for block in program:
        for name, value in pages.environment(block.text).items():
            monkeypatch.setenv(name, value)
        exec(compile(block.text, str(block), "exec"), namespace)
        app = namespace.get("app")
        if app is not None and app is not guarded:
            guarded = app
            with serve(app) as server:
                refused = httpx.get(f"{server.url}/idp/github/user", trust_env=False)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), str(block)
                assert httpx.get(f"{server.url}/docs", trust_env=False).status_code in (200, 404)


@pytest.mark.parametrize("block", pages.blocks("toml"), ids=str)
def test_a_configuration_block_loads(block, tmp_path, monkeypatch):
    """As the gateway would load it."""
    text = pages.configuration(block.text)
    for name, value in pages.environment(text).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "idp.toml").write_text(text)
    IdPMiddleware(**load_config("idp.toml"))


@pytest.mark.parametrize("block", pages.blocks("json"), ids=str)
def test_a_json_block_is_json(block):
    """A comma too many is copied by everybody."""
    json.loads(block.text)


@pytest.mark.parametrize("block", pages.blocks("sh"), ids=str)
def test_the_commands_of_a_shell_block_exist(block):
    """Make targets, sub-commands with their options, extras, files; running them is what the other tests do."""
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).split()
        while command and re.match(r"[A-Z_]+=", command[0]):
            del command[0]
        if not command:
            continue
        if command[0] == "make":
            assert shutil.which("make") is None or (
                subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True).returncode == 0
            ), line
        elif command[0] == "idp-middleware":
            text = helps()[command[1]]
            assert all(word in text for word in command[2:] if word.startswith("--")), line
        elif command[:2] == ["pip", "install"]:
            (extras,) = re.findall(r"'?idp-middleware(?:\[([\w,]+)\])?'?", line)
            for extra in filter(None, extras.split(",")):
                assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), line
        elif command[0] == "curl":
            assert re.search(r"https?://[a-z0-9.:]+/", line), line
        elif command[0] == "uvicorn":
            assert command[1] in ("idp_middleware.asgi:app", "app:app"), line
        else:
            assert command[0] in ("export", "python", "pytest"), f"{line}: is not run; say why above the block"


def test_links_between_pages_lead_somewhere():
    """A file that moved is noticed here; anchors are the site's business (`test_docs_site`)."""
    for page in [*pages.pages(), "ARCHITECTURE.md", "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_links_to_other_places_are_https():
    """And well-formed: what answers there is checked by nobody here."""
    for page in [*pages.pages(), "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"]:
        for url in re.findall(r"\]\(([a-z]+:[^)]*)\)|<(https?:[^>]*)>", (ROOT / page).read_text()):
            parts = urlsplit(url[0] or url[1])
            assert parts.scheme == "https", f"{page}: {url}"
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), f"{page}: {url}"


def test_every_page_is_in_the_navigation():
    """One that is not is found by nobody. The site generator has no word for it."""
    listed = re.findall(r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    there = [path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md")]
    assert sorted(listed) == sorted(there), "mkdocs.yml has the list: nav"


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
