"""The pages that people read, and the blocks of code in them. Other tests run these, each language in its way.

All Python of a page is one program, as a reader would type it, and so is its shell (`shell_blocks`). A `toml` block is
an `idp.toml`; one that shows only some of its tables is completed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from idp_middleware.testing import signing_key

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

RUN = {"python", "sh", "toml", "json"}
SHOWN = {"http", "text", "js", "yaml", "promql"}
"""Languages that are no program of a page's own; `test_docs_shown.py` knows what becomes of each."""

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)\}|environ\[\"(\w+)\"\]")

AUTHENTICATOR = """
[authenticator]
type = "jwt"
issuer = "https://acme.eu.auth0.com/"
audience = "https://api.acme.example"
"""
SOURCE = """
[sources.{name}]
type = "static"
value = "${{API_KEY}}"
"""
ROUTE = """
[routes.completed]
upstream = "https://api.example.com"
source = "{name}"
connection = "github"
"""


class Block(NamedTuple):
    """One block of code."""

    page: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.language}"


def pages() -> list[str]:
    """All pages, as paths from the project's directory."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *docs]


def blocks(*languages: str) -> list[Block]:
    """All blocks, or those of these languages."""
    return [
        Block(page, number, language, text)
        for page in pages()
        for number, (language, text) in enumerate(_BLOCK.findall((ROOT / page).read_text()))
        if not languages or language in languages
    ]


def programs() -> dict[str, list[Block]]:
    """The Python of each page that has some."""
    found: dict[str, list[Block]] = {}
    for block in blocks("python"):
        found.setdefault(block.page, []).append(block)
    return found


def configuration(text: str) -> str:
    """An `idp.toml` of which the block shows some tables."""
    if "[authenticator]" not in text:
        text += AUTHENTICATOR
    shown = re.findall(r"^\[sources\.([\w-]+)\]", text, re.M)
    wanted = set(re.findall(r'^source = "([\w-]+)"', text, re.M))
    for name in sorted(wanted - set(shown)):
        text += SOURCE.format(name=name)
    if not re.search(r"^\[routes\.", text, re.M):
        text += ROUTE.format(name=(shown or ["completed"])[0])
        text += "" if shown else SOURCE.format(name="completed")
    return text


def environment(text: str) -> dict[str, str]:
    """A value for each variable of the environment that `text` names, of the kind that its name tells of."""
    names = {name for pair in _VARIABLE.findall(text) for name in pair if name and name not in os.environ}
    return {name: _value(name) for name in names}


def _value(name: str) -> str:
    if name.endswith("PRIVATE_KEY"):
        return signing_key().private_pem
    if name.endswith("_KEY") and "API" not in name:
        return "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    if name.endswith("REDIS_URL"):
        return "redis://127.0.0.1:6379/0"
    if name.endswith("_URL"):
        return f"https://{name.removesuffix('_URL').lower().replace('_', '-')}.acme.example"
    return f"the-{name.lower().replace('_', '-')}"
