"""Markdown made from the code: keys of the configuration file, public names, presets, problems, the command line.

Knows signatures, annotations and docstrings, and reads them with the eyes of the configuration file itself
(`_config_types`), so that a key that is missing here is missing there too. A docstring's `Args` are its keys' meanings.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from docs.docstrings import Described, linked
from docs.names import names
from idp_middleware import ProxyRoute, Rule, Timeout, TokenCache, config, errors, providers, sources
from idp_middleware._cli import _parser
from idp_middleware._config_file import SECRETS
from idp_middleware._config_types import in_words, vocabulary

_SHARED = {
    "client_secret": "the app's password there",
    "client_auth": "how it is sent: `post`, in the body, or `basic`, in the `Authorization` header",
    "private_key": "instead of a secret, the key in PEM that signs a statement for each request (`private_key_jwt`)",
    "key_id": "the key's name at the server, where the client has several there",
    "issuer": "the server's name, where signed statements have to be for that rather than for the endpoint",
    "allow_insecure": "permit `http://` to a host that is not loopback",
    "timeout": "bounds on waiting for the server; see [time-outs](#time-outs)",
    "domain": "the tenant, such as `acme.eu.auth0.com`",
    "upstream": "the base URL, where it is not the preset's own",
    "encryption_keys": "Fernet keys: the first encrypts, all of them decrypt; see [secrets](#secrets)",
    "url": "`redis://[[user]:password@]host[:port][/db]`, or `rediss://` for TLS",
}
"""What keys mean whose meaning is told in prose in the code, or where several share it."""


def keys(factory: Callable[..., Any], *, without: Iterable[str] = ()) -> str:
    """A table of the keys that stand for the arguments of `factory`."""
    described, defaults = meanings(factory), _defaults(factory)
    rows = []
    for key, (kind, required) in vocabulary(factory).items():
        if key in without:
            continue
        what = in_words(kind)
        if key == "max_body":
            what += ' or a size such as "10MiB"'
        if key in SECRETS:
            what += " **(secret)**"
        default = "**required**" if required else _written(defaults.get(key))
        rows.append(f"| `{key}` | {what} | {default} | {_cell(described[key])} |")
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """What each key means, from the docstring that tells it: its own, or the one its options are handed on to."""
    own, routes = Described(factory).arguments, Described(ProxyRoute).arguments
    found = {}
    for key in vocabulary(factory):
        meaning = own.get(key) or (routes.get(key) if factory in _ROUTES else None) or _SHARED.get(key)
        if meaning in (None, "as above."):
            meaning = _mentioned(key, factory)
        found[key] = meaning
    return found


def _mentioned(key: str, factory: Callable[..., Any]) -> str:
    """The sentence of the prose that a key is in."""
    prose = " ".join(Described(factory).prose.partition("\n- ")[0].split())
    for sentence in re.split(r"(?<=[.:;]) (?=[A-Z`])", prose):
        if f"`{key}`" in sentence:
            return sentence.rstrip(";")
    raise LookupError(f"{factory.__name__}: no docstring says what {key} means")


def _defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    found = dict(_TYPED_DEFAULTS)
    for each in (ProxyRoute, factory) if factory in _ROUTES else (factory,):
        for name, parameter in inspect.signature(each).parameters.items():
            if parameter.default is not parameter.empty and "factory" not in repr(parameter.default):
                found[name] = parameter.default
    return found


_TYPED_DEFAULTS: Mapping[str, Any] = {"client_auth": "post", "allow_insecure": False}
_ROUTES = (ProxyRoute, *providers.PRESETS.values())


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
        own = {key: kind for key, kind in vocabulary(preset).items() if key not in vocabulary(ProxyRoute)}
        needed = ", ".join(f"`{key}`" for key, (_, required) in own.items() if required)
        base = inspect.signature(preset).parameters["upstream"].default
        said = Described(preset).prose
        refused = re.search(r"- Refused: (.*?)\. ", " ".join(said.split()) + " ")
        overview.append(
            f"| [`{name}`](#{name}) | `{base}` | {needed} | {refused[1] if refused else 'as its sibling'} |"
        )
        rows = [
            f"| `{key}` | {in_words(kind)}{' **(secret)**' if key in SECRETS else ''} | "
            f"{'**required**' if required else ''} | {_cell(meanings(preset)[key])} |"
            for key, (kind, required) in own.items()
        ]
        table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows] if rows else []
        parts += [f"## {name} {{ #{name} }}", linked(said), "\n".join(table)]
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
