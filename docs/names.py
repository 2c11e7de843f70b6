"""Markdown of all public names: signature, docstring, arguments and methods."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from idp_middleware import errors
from idp_middleware._meanings import Described

MODULES = (
    "",
    "sources",
    "providers",
    "stores",
    "fastapi",
    "observers",
    "prometheus",
    "opentelemetry",
    "uvicorn",
    "errors",
    "testing",
)
"""Where public names are: the package and what users import of it."""


def names() -> str:
    parts = []
    for module in MODULES:
        name = f"idp_middleware.{module}" if module else "idp_middleware"
        imported = importlib.import_module(name)
        parts += [f"## {name}"]
        for public in public_names(imported):
            thing = getattr(imported, public)
            if not inspect.ismodule(thing):
                parts.append(_entry(public, thing))
    return "\n\n".join(parts)


def public_names(module: Any) -> list[str]:
    """What a module offers: its `__all__`, or what it defines itself."""
    listed: list[str] | None = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    return sorted(
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    )


def _entry(name: str, thing: Any) -> str:
    if not callable(thing):
        return f"### `{name}`\n\nA constant: {_short(thing)}."
    described = Described(thing)
    parts = [f"### `{name}`"]
    if not (isinstance(thing, type) and (issubclass(thing, errors.IdPError) or getattr(thing, "_is_protocol", False))):
        parts.append(f"```text\n{_signature(name, thing)}\n```")
    parts.append(linked(described.prose))
    if described.arguments:
        parts.append("Arguments:")
        parts.append("\n".join(f"- `{key}`: {meaning}" for key, meaning in described.arguments.items()))
    if isinstance(thing, type):
        methods = [
            f"- `{_signature(key, method, bound=True)}`: {Described(method).first}"
            for key, method in vars(thing).items()
            if not key.startswith("_")
            and inspect.isfunction(inspect.unwrap(_function(method)))
            and inspect.getdoc(_function(method))
        ]
        if methods:
            parts += ["Methods:", "\n".join(methods)]
    return "\n\n".join(filter(None, parts))


def _function(method: Any) -> Any:
    return method.__func__ if isinstance(method, classmethod | staticmethod) else method


def _signature(name: str, thing: Any, *, bound: bool = False) -> str:
    function = _function(thing)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return name
    parameters = list(signature.parameters.values())
    if bound and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    shown: list[str] = []
    starred = False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        mark = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f"={_short(each.default)}"
        shown.append(f"{mark}{each.name}{default}")
    text = f"{name}({', '.join(shown)})"
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    if len(text) <= 100 or bound:
        return prefix + text
    return prefix + f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"


def _short(value: Any) -> str:
    text = repr(value)
    if "factory" in text or " at 0x" in text or len(text) > 60:
        return "…"
    return text


def linked(text: str) -> str:
    """With plain URLs as links, short ones."""
    return re.sub(r"(?<![<(`])https://[^\s,`)]+[^\s,.;`)]", lambda url: f"<{url[0]}>", text)
