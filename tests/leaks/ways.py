"""The ways in which an object is written out: on purpose, by habit, or by a tool that means well."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from tests.leaks.canaries import Canaries


def _traceback(value: Any) -> str:
    """As an error reporter has it where a function fails that has the object in a variable."""

    def fails(argument: Any) -> None:
        arguments, named = [argument], {"argument": argument}
        raise LookupError(f"{len(arguments)}, {len(named)}")

    try:
        fails(value)
    except LookupError as exc:
        return "".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format())
    raise AssertionError


def _logged(value: Any) -> str:
    record = logging.makeLogRecord({"msg": "%s %r", "args": (value, value)})
    return f"{record.getMessage()} {vars(record)!r}"


def _pickled(value: Any) -> str:
    return "".join(pickle.dumps(value, protocol).decode("latin-1") for protocol in range(pickle.HIGHEST_PROTOCOL + 1))


def _copied(value: Any) -> str:
    return "".join(
        f"{each!r} {each} {getattr(each, '__dict__', '')!r}" for each in (copy.copy(value), copy.deepcopy(value))
    )


def _through(value: Any) -> str:
    """All that `vars` gives, and what that gives, and so on: how people write JSON of what JSON has no word for."""
    seen: set[int] = set()
    told: list[str] = []

    def look(each: Any) -> None:
        if id(each) in seen or isinstance(each, (type, type(json), Callable)):  # type: ignore[arg-type]
            return
        seen.add(id(each))
        if isinstance(each, Mapping):
            for key, inner in list(each.items()):
                look(key)
                look(inner)
        elif isinstance(each, (list, tuple, set, frozenset)):
            for inner in list(each):
                look(inner)
        elif hasattr(each, "__dict__"):
            told.append(repr(each))
            look(vars(each))
        else:
            told.append(repr(each))

    look(value)
    return "\n".join(told)


WAYS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "repr": repr,
        "str": str,
        "format": lambda value: f"{value}{value!a}",
        "in a list": lambda value: repr([value, {"value": value}]),
        "pprint": pprint.pformat,
        "vars": lambda value: repr(vars(value)),
        "vars, all the way": _through,
        "pickle": _pickled,
        "copy": _copied,
        "json": lambda value: json.dumps(value, default=str),
        "json of vars": lambda value: json.dumps(value, default=lambda each: getattr(each, "__dict__", repr(each))),
        "asdict": lambda value: repr(dataclasses.asdict(value)),
        "astuple": lambda value: repr(dataclasses.astuple(value)),
        "a traceback with variables": _traceback,
        "a log": _logged,
    }
)


def told(value: Any, canaries: Canaries) -> set[tuple[str, str]]:
    """Way and canary, for each secret that a way of writing the object out shows. To refuse is to show nothing."""
    found = set()
    for way, write in WAYS.items():
        with suppress(Exception):
            found |= {(way, find.canary) for find in canaries.find(write(value))}
    return found
