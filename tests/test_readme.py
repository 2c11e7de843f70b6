"""What README and the documentation show works as shown, and their links lead somewhere."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httpx
import pytest

from idp_middleware import IdPMiddleware, load_config
from idp_middleware.testing import serve
from tests import pages

ROOT = pages.ROOT
OTHERS = ["ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/results.md", "examples/README.md"]
"""Files with links, and without programs."""


def test_every_block_has_a_test():
    """A block in a language that nothing here runs would be free to rot."""
    assert {block.language for block in pages.blocks()} <= pages.RUN | pages.SHOWN
    assert "make demo" in (ROOT / "README.md").read_text()[:1600]
    assert "make test" in (ROOT / "README.md").read_text()[:1600]


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


def test_links_between_pages_lead_somewhere():
    """A file that moved is noticed here; anchors are the site's business (`test_docs_site`)."""
    for page in [*pages.pages(), *OTHERS]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_links_to_other_places_are_https():
    """And well-formed: what answers there is checked by nobody here."""
    for page in [*pages.pages(), *OTHERS]:
        for url in re.findall(r"\]\(([a-z]+:[^)]*)\)|<(https?:[^>]*)>", (ROOT / page).read_text()):
            parts = urlsplit(url[0] or url[1])
            assert parts.scheme == "https", f"{page}: {url}"
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), f"{page}: {url}"


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
