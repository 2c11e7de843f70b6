"""Pages as the site generator gets them: with what is generated from the code, and with the project's own files.

Two lines in a page stand for more:

    <!-- include: SECURITY.md -->          a file of the project, so that nothing is told twice
    <!-- reference: sources -->            what `docs.reference` makes of the code, so that it cannot drift

Nothing of that is committed. Links are written for who reads the files where they are; here they are led to the pages
that have these files' contents. Knows Markdown's links and fences; nothing of what the pages are about.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from docs import reference

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs"

HOMES = {
    "README.md": "docs/index.md",
    "ARCHITECTURE.md": "docs/architecture.md",
    "CHANGELOG.md": "docs/changelog.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "SECURITY.md": "docs/security.md",
    "benchmarks/results.md": "docs/measurements.md",
    "examples/README.md": "docs/examples.md",
}
"""Which page has which file of the project."""

_DIRECTIVE = re.compile(r"^<!-- (include|reference): ([^ ]+) -->$", re.M)
_FENCED = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.M | re.S)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def pages() -> list[Path]:
    """The sources of all pages."""
    return sorted(PAGES.rglob("*.md"))


def assemble(directory: Path) -> None:
    """Everything that the site is built from, in `directory`: the configuration, and the pages in `docs`."""
    target = directory / "docs"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(ROOT / "mkdocs.yml", directory)
    for page in pages():
        place = target / page.relative_to(PAGES)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(expanded(page, target))
    for asset in ("*.css", "*.svg", "*.png", "*.js"):
        for path in PAGES.rglob(asset):
            shutil.copy(path, target / path.relative_to(PAGES))


def build(directory: Path) -> int:
    """The exit status of the site generator, which leaves the site in `directory/site`."""
    program = Path(sys.executable).with_name("zensical")
    return subprocess.run([program, "build", "--strict", "--clean"], cwd=directory).returncode


def expanded(page: Path, target: Path) -> str:
    """The text of a page, with what its directives stand for. Images that it needs go to `target`."""

    def directive(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "reference":
            make: Callable[[], str] = reference.PARTS[name]
            return make()
        return _led(ROOT / name, page, target)

    return _DIRECTIVE.sub(directive, _led(page, page, target))


def _led(source: Path, page: Path, target: Path) -> str:
    """What stands in `source`, with links that work where it will stand in `page`."""

    def link(match: re.Match[str]) -> str:
        image, text, to, anchor = match.groups()
        path = os.path.relpath(os.path.normpath(source.parent / to), ROOT)
        there = HOMES.get(path, path)
        if not (ROOT / there).exists():
            # For the site generator to complain about, which shows where it is.
            return match[0]
        if image:
            (target / "images").mkdir(exist_ok=True)
            shutil.copy(ROOT / there, target / "images")
            there = f"docs/images/{PurePosixPath(there).name}"
        elif not there.startswith("docs/"):
            # Of the project, but no page.
            return text if text.startswith("`") else f"{text} (`{there}`)"
        return f"{image}[{text}]({os.path.relpath(ROOT / there, page.parent)}{anchor or ''})"

    text = source.read_text()
    parts, end = [], 0
    for fence in _FENCED.finditer(text):
        parts += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(link, text[end:])])
