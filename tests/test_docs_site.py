"""The documentation's site builds without a warning, fetches nothing, and leaves out nothing that the code has."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from docs import names, reference
from docs.assemble import assemble, build
from idp_middleware import _meanings, config, load_config, providers
from idp_middleware._config_types import vocabulary
from idp_middleware.errors import ConfigurationError
from tests import pages

PACKAGE = pages.ROOT / "idp_middleware"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("zensical", reason="the dependency group docs is not installed")
    directory = tmp_path_factory.mktemp("site")
    assemble(directory)
    assert build(directory) == 0
    return directory / "site"


def test_every_page_is_built(site: Path) -> None:
    """Strictly: a link or an anchor that leads nowhere fails the build."""
    for page in pages.DOCS.rglob("*.md"):
        assert (site / page.relative_to(pages.DOCS).with_suffix(".html")).exists()


def test_mkdocs_has_nothing_to_warn_of(site: Path, tmp_path: Path) -> None:
    """It has an eye for what Zensical lets pass: pages without a place in the navigation, links out of the pages.

    With a theme of its own: what Material for MkDocs is made of does not bear on links.
    """
    pytest.importorskip("mkdocs", reason="the dependency group docs is not installed")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--theme", "mkdocs", "--site-dir", tmp_path]
    done = subprocess.run(mkdocs, cwd=site.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


def test_readers_fetch_nothing_from_others(site: Path) -> None:
    """No font, script or picture of somebody else's: pages of a security tool are read where nothing gets out."""
    loaded = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'> ]+)""")
    for page in site.rglob("*.html"):
        assert loaded.findall(page.read_text()) == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text()) == []


def test_links_to_other_places_are_https(site: Path) -> None:
    """Those that come from docstrings included; what answers there is checked by nobody here."""
    for page in site.rglob("*.html"):
        for url in re.findall(r"""href=["']?([a-z]+:[^"'> ]+)""", page.read_text()):
            parts = urlsplit(url)
            assert (parts.scheme, bool(re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc))) == ("https", True), url


@pytest.mark.parametrize(
    "factory",
    [*config.AUTHENTICATORS.values(), *config.SOURCES.values(), *providers.PRESETS.values()],
    ids=lambda factory: factory.__name__,
)
def test_every_key_says_what_it_means(factory) -> None:
    """The reference is made of docstrings: one that leaves a key out is told here, by its name."""
    meanings = _meanings.meanings(factory)
    assert meanings.keys() == vocabulary(factory).keys()
    assert all(len(meaning) > 10 for meaning in meanings.values())


def test_the_reference_has_every_name(site: Path) -> None:
    """Public names, types, presets, problems and commands, as the code has them now."""
    read = {path.name: path.read_text() for path in site.glob("*.html")}
    for kind in [*config.AUTHENTICATORS, *config.SOURCES]:
        assert f'type = "{kind}"' in read["configuration.html"].replace("&quot;", '"')
    for preset in providers.PRESETS:
        assert f'id="{preset}"' in read["providers.html"]
    for name in names.MODULES:
        module = importlib.import_module(f"idp_middleware.{name}".rstrip("."))
        for public in names.public_names(module):
            assert public in read["api.html"], f"{module.__name__}.{public}"
    for command in reference.helps():
        assert f"idp-middleware {command}".strip() in read["commands.html"]


def test_the_reference_has_every_public_module() -> None:
    """All that have no underscore, but for those that nobody imports: a file's reader, and what servers are told of."""
    public = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    known = {*names.MODULES, "asgi", "config"}
    assert {name for name in public if not name.startswith("_")} <= known


def test_the_reference_has_every_key_at_the_top_of_the_file(tmp_path: Path) -> None:
    """They are written down by hand, so what the file's reader knows is the measure."""
    (tmp_path / "idp.toml").write_text("zzz = 1")
    with pytest.raises(ConfigurationError, match="there is no such key") as caught:
        load_config(tmp_path / "idp.toml")
    known = caught.value.message.partition("; there is ")[2].split(", ")
    assert {"prefix", "routes"} < set(known)
    text = (pages.DOCS / "configuration.md").read_text()
    for key in known:
        assert f"| `{key}` |" in text or f"[{key}" in text, key
