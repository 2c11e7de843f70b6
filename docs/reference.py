"""Markdown made from the code: keys of the configuration file, public names, presets, problems, the command line.

Knows Markdown, and how pages show things. What there is to show is the code's own word: `idp_middleware._meanings`
reads keys and docstrings, with the eyes of the configuration file itself.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from docs.names import linked, names
from idp_middleware import ProxyRoute, Rule, Timeout, TokenCache, _meanings, config, errors, providers, sources
from idp_middleware._cli import _parser
from idp_middleware._meanings import Described


def keys(factory: Callable[..., Any], *, without: Iterable[str] = ()) -> str:
    """A table of the keys that stand for the arguments of `factory`."""
    return _table(key for key in _meanings.keys(factory) if key.name not in without)


def _table(listed: Iterable[_meanings.Key]) -> str:
    rows = [
        f"| `{key.name}` | {key.kind}{' **(secret)**' if key.secret else ''} | "
        f"{'**required**' if key.required else _written(key.default)} | {_cell(key.meaning)} |"
        for key in listed
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]) if rows else ""


def _written(value: Any) -> str:
    """A default as the file would have it."""
    if value is None or value == () or value == frozenset():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, frozenset | set):
        return "`" + ", ".join(sorted(value)) + "`"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value}`" if isinstance(value, int | float) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _types(factories: Mapping[str, Callable[..., Any]]) -> str:
    parts = []
    for name, factory in factories.items():
        parts += [f'### `type = "{name}"`', Described(factory).prose, keys(factory)]
    return "\n\n".join(parts)


def _tables() -> str:
    """What stands in tables inside of tables."""
    rules = f"### `[[routes.NAME.rules]]`\n\n{Described(Rule).first}\n\n{keys(Rule)}"
    refresh = sources.ProviderRefresh
    entries = f"### `[[sources.NAME.refresh]]` of `auth0-management`\n\n{Described(refresh).prose}\n\n{keys(refresh)}"
    rows = [f"| `{field.name}` | {field.default} | {_TIMEOUTS[field.name]} |" for field in fields(Timeout)]
    times = "\n".join(["### Time-outs", "", "| key | seconds | bounds |", "|---|---|---|", *rows])
    return "\n\n".join([rules, entries, times])


_TIMEOUTS = {
    "connect": "DNS, TCP and TLS",
    "read": "the wait for the next bytes",
    "write": "the wait until the next bytes are taken",
    "pool": "the wait for a free connection",
}


def _presets() -> str:
    """What each preset has besides the keys of every route, and what its vendor's pages say."""
    overview = ["| `provider` | leads to | needs besides | a refused token looks like |", "|---|---|---|---|"]
    parts = []
    for name, preset in providers.PRESETS.items():
        own = _meanings.own_keys(preset)
        needed = ", ".join(f"`{key.name}`" for key in own if key.required)
        base = inspect.signature(preset).parameters["upstream"].default
        said = Described(preset).prose
        refused = re.search(r"- Refused: (.*?)\. ", " ".join(said.split()) + " ")
        overview.append(
            f"| [`{name}`](#{name}) | `{base}` | {needed} | {refused[1] if refused else 'as its sibling'} |"
        )
        parts += [f"## {name} {{ #{name} }}", linked(said), _table(own)]
    return "\n\n".join(["\n".join(overview), *filter(None, parts)])


def _problems() -> str:
    """All answers of our own, each with its page."""
    rows = [
        f"| [`{error.name}`]({error.name}.md) | {error.status} | {error.title} | `{error.proxy_error}` |"
        for error in problems()
    ]
    return "\n".join(["| problem | status | title | `Proxy-Status: …; error=` |", "|---|---|---|---|", *rows])


def problems() -> list[type[errors.IdPError]]:
    """Every error that has a name of its own, by status."""
    found: dict[str, type[errors.IdPError]] = {}
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.IdPError) and error.name != errors.IdPError.name:
            found.setdefault(error.name, error)
    return sorted(found.values(), key=lambda error: (error.status, error.name))


def helps() -> dict[str, str]:
    """The help of each command, and of the whole under "". As on a terminal of 90 columns without colours."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS="90", NO_COLOR="1")
    try:
        parser = _parser()
        (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
        return {name: each.format_help() for name, each in {"": parser, **commands.choices}.items()}
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _commands() -> str:
    return "\n\n".join(
        f"### {f'{name} --help' if name else '--help'}\n\n```text\n{text}```" for name, text in helps().items()
    )


PARTS: Mapping[str, Callable[[], str]] = {
    "authenticators": lambda: _types(config.AUTHENTICATORS),
    "cache": lambda: keys(TokenCache.from_url),
    "commands": _commands,
    "names": names,
    "presets": _presets,
    "problems": _problems,
    "routes": lambda: keys(ProxyRoute, without={"name"}),
    "sources": lambda: _types(config.SOURCES),
    "tables": _tables,
}
