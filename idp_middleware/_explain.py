"""`idp-middleware explain`: the documentation's page on a problem or on a table of `idp.toml`, on the terminal.

The pages are those of `docs/errors`, which the wheel has in it; what is said of keys is read off the code. Knows as
much Markdown as those pages use, and what a topic is called.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from idp_middleware import _meanings
from idp_middleware._cache import TokenCache
from idp_middleware._routes import ProxyRoute
from idp_middleware._rules import Rule
from idp_middleware.config import AUTHENTICATORS, SOURCES
from idp_middleware.errors import PROBLEM_TYPE_PREFIX, ConfigurationError
from idp_middleware.providers import PRESETS

_HERE: Final = Path(__file__).parent
_INSTALLED: Final = _HERE / "_pages"
_PAGES: Final = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "docs" / "errors"
"""Where the wheel has put them, or where they are in a checkout."""

_TYPES: Final[Mapping[str, Mapping[str, Callable[..., Any]]]] = {"authenticator": AUTHENTICATORS, "sources": SOURCES}
_KEYS: Final[Mapping[str, Callable[..., Any]]] = {"routes": ProxyRoute, "rules": Rule, "cache": TokenCache.from_url}

_LINK: Final = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\([^)\s]+\)")
_INDENT: Final = "    "


def topics() -> tuple[list[str], list[str], list[str]]:
    """Problems, tables of the file, and types of these; each has something to tell."""
    problems = sorted(path.stem for path in _PAGES.glob("*.md") if path.stem not in ("index", "configuration"))
    types = [f"{table}.{name}" for table, kinds in _TYPES.items() for name in kinds]
    return problems, list(_sections()), types


def explain(topic: str | None, *, width: int) -> str:
    """The text on a topic, or the list of topics, wrapped at `width` columns.

    Raises `ConfigurationError` for an unknown one.
    """
    if topic is None:
        return _listed(width)
    problems, tables, types = topics()
    name = topic.removeprefix(PROBLEM_TYPE_PREFIX).strip("[]")
    if name in problems:
        return "\n".join(_plain((_PAGES / f"{name}.md").read_text(encoding="utf-8"), width)).rstrip()
    if name in types:
        table, _, kind = name.partition(".")
        factory = _TYPES[table][kind]
        about = _wrapped(f'`type = "{kind}"`: {_meanings.Described(factory).prose}', width)
        keys = list(_keys(_meanings.keys(factory), width))
        return "\n".join([*about, "", *(["KEYS", "", *keys] if keys else ["It has no keys."])])
    # As a message has it: [routes.github].
    table = ConfigurationError("", table=name).topic
    if table not in tables:
        close = difflib.get_close_matches(name, [*problems, *tables, *types], n=1)
        what = f"; did you mean {close[0]!r}?" if close else "; without a topic, explain lists them"
        raise ConfigurationError(f"there is no topic {topic!r}{what}")
    return "\n".join([*_plain(_sections()[table], width), *_more(table, width)]).rstrip()


def _listed(width: int) -> str:
    problems, tables, types = topics()
    lines = []
    for title, names in (
        ("Problems, by the last word of an answer's `type`:", problems),
        ("Tables of idp.toml:", tables),
        ("One type of these, with its keys:", types),
    ):
        lines += [title, *_wrapped(", ".join(names), width, _INDENT)]
    return "\n".join(lines)


def _sections() -> dict[str, str]:
    """Topic → its section on the page of configuration errors: that on a table, or on the whole file."""
    text = (_PAGES / "configuration.md").read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^(?=## )", text, flags=re.M)[1:]:
        title = section.partition("\n")[0].removeprefix("## ").strip("`")
        if title.startswith("["):
            found[ConfigurationError("", table=title.strip("[]")).topic] = section
        elif title == "The file":
            found["configuration"] = section
    return found


def _more(table: str, width: int) -> Iterator[str]:
    """What the code knows of a table."""
    if table in _KEYS:
        yield from ["KEYS", ""]
        known = [key for key in _meanings.keys(_KEYS[table]) if (table, key.name) != ("routes", "name")]
        yield from _keys(known, width, unless=" unless a provider knows it" if table == "routes" else "")
    if table == "routes":
        for name, preset in PRESETS.items():
            if own := _meanings.own_keys(preset):
                yield from ["", f'With provider = "{name}" also', "", *_keys(own, width)]
    if table in _TYPES:
        yield from ["TYPES", "", *_wrapped(f"`idp-middleware explain {table}.TYPE` has the keys of each.", width), ""]
    for kind, factory in _TYPES.get(table, {}).items():
        yield f"{_INDENT}{kind}"
        yield from _wrapped(_meanings.Described(factory).first, width, _INDENT * 2)


def _keys(keys: Iterable[_meanings.Key], width: int, *, unless: str = "") -> Iterator[str]:
    for key in keys:
        notes = [key.kind, *(["has to be there" + unless] * key.required), *(["from the environment"] * key.secret)]
        yield f"{_INDENT}{key.name}: {'; '.join(notes)}"
        # Other sections of the site's page are not at hand.
        yield from _wrapped(re.sub(r"; see \[[^\]]+\]\(#[^)]+\)", "", key.meaning), width, _INDENT * 2)


def _plain(markdown: str, width: int) -> Iterator[str]:
    """The lines of a page as a terminal shows them: wrapped, without links, tables as lists."""
    for block in re.split(r"(^```\w*\n.*?^```$)|\n{2,}", markdown, flags=re.M | re.S):
        text = (block or "").strip("\n")
        if not text:
            continue
        if text.startswith("```"):
            yield from textwrap.indent(text.partition("\n")[2].removesuffix("\n```"), _INDENT).splitlines()
        elif text.startswith("#"):
            title = text.lstrip("# ").strip("`")
            yield title.upper() if re.match(r"## \w", text) else title
        elif text.startswith("|"):
            yield from _table(text, width)
        else:
            for item in re.split(r"\n(?=- |\d+\. )", text):
                yield from _wrapped(item, width)
        yield ""


def _table(text: str, width: int) -> Iterator[str]:
    for row in text.splitlines()[2:]:
        cells = (re.sub(r"^(``?) ?([^`]*?) ?\1$", r"\2", cell.strip()) for cell in row.strip("|").split(" | "))
        for cell, indent in zip(cells, ("", *[_INDENT] * 9), strict=False):
            yield from _wrapped(cell, width, indent)


def _wrapped(text: str, width: int, indent: str = "") -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        words = re.sub(r"\*\*([^*]+)\*\*", r"\1", _LINK.sub(r"\1", " ".join(paragraph.split())))
        hanging = indent + ("  " if words.startswith("- ") else "")
        yield from textwrap.wrap(
            words,
            width,
            initial_indent=indent,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
