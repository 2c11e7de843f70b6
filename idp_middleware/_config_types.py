"""What a type annotation accepts from a TOML file, and how that is said in words.

Only as much of the type system as constructors here use: scalars, lists of strings, tables of strings, dataclasses as
tables, lists of those, and unions of these. An argument of any other type can't be written in a file, so it is no key.
Knows neither files nor what the arguments mean.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from datetime import date, time
from typing import Any

from idp_middleware.errors import ConfigurationError

_SCALARS = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}
_LIST = "a list of strings"
_TABLE = "a table"
_STRINGS = "a table of strings"
_TABLES = "a list of tables"

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]{1,12}) ?([A-Za-z]+)")


def vocabulary(factory: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Argument → its annotation, and whether it has to be given."""
    accepted: dict[str, tuple[Any, bool]] = {}
    for name, parameter in inspect.signature(factory, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            # **options: Unpack[SomeTypedDict]
            (options,) = typing.get_args(parameter.annotation)
            accepted |= {key: (kind, False) for key, kind in typing.get_type_hints(options).items() if in_words(kind)}
        elif in_words(parameter.annotation):
            accepted[name] = parameter.annotation, parameter.default is parameter.empty
    return accepted


def parameters(factory: Callable[..., Any]) -> set[str]:
    """All arguments by keyword, those too that a file can't give."""
    names = set[str]()
    for name, parameter in inspect.signature(factory, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = typing.get_args(parameter.annotation)
            names |= typing.get_type_hints(options).keys()
        else:
            names.add(name)
    return names


def in_words(annotation: Any) -> str:
    """What a value for this annotation is called; "" where TOML has none."""
    return " or ".join(filter(None, map(_word, _alternatives(annotation))))


def fits(value: object, annotation: Any) -> bool:
    """Whether a value of TOML is what the annotation asks for."""
    return any(_fits(value, kind) for kind in _alternatives(annotation))


def nested(annotation: Any) -> Callable[..., Any] | None:
    """The dataclass that a table would become."""
    return next((kind for kind in _alternatives(annotation) if isinstance(kind, type) and is_dataclass(kind)), None)


def nested_items(annotation: Any) -> Callable[..., Any] | None:
    """The dataclass that each of a list of tables would become."""
    for kind in _alternatives(annotation):
        if _word(kind) == _TABLES:
            return next(item for item in typing.get_args(kind) if is_dataclass(item))  # type: ignore[return-value]
    return None


def kind_of(value: object) -> str:
    """What a value of TOML is called: its kind, since the value may be a secret."""
    if isinstance(value, list | dict):
        items = value if isinstance(value, list) else value.values()
        other = next((item for item in items if not isinstance(item, str)), None)
        if other is not None:
            return f"a {'list' if isinstance(value, list) else 'table'} with {kind_of(other)}"
        return _LIST if isinstance(value, list) else _STRINGS
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "infinity"
    if isinstance(value, date | time):
        return "a date or time"
    return _SCALARS[type(value)]


def size(text: str) -> int:
    """Bytes in a size such as "10MiB" (2^20) or "10 MB" (10^6)."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise ConfigurationError(f'must be a size in bytes, such as 1048576 or "1MiB" ({", ".join(_UNITS)})')
    return int(match[1]) * unit


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _word(kind: Any) -> str:
    if kind in _SCALARS:
        return _SCALARS[kind]
    if is_dataclass(kind):
        return _TABLE
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Collection) and any(map(is_dataclass, arguments)):
        return "" if issubclass(origin, Mapping) else _TABLES
    if not isinstance(origin, type) or not all(
        str in _alternatives(argument) or argument is ... for argument in arguments
    ):
        return ""
    if issubclass(origin, Mapping):
        return _STRINGS
    return _LIST if issubclass(origin, Collection) else ""


def _fits(value: object, kind: Any) -> bool:
    word = _word(kind)
    if word == _LIST:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if word == _STRINGS:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    # Exactly: True is an int to isinstance.
    return bool(word) and type(value) is kind
