"""Tables of a TOML file as calls of constructors, with every mistake told by file, table and key.

The keys of a table are the keyword arguments of whatever it stands for, read off the signature: an argument added to a
token source or to `ProxyRoute` is a key without another line. Knows TOML and the environment; knows none of the
tables. Shows no value that came from the environment.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from idp_middleware._config_types import fits, in_words, kind_of, nested, nested_items, parameters, size, vocabulary
from idp_middleware.errors import ConfigurationError

SECRETS = frozenset({"app_secret", "client_secret", "consumer_secret", "encryption_keys", "private_key", "value"})
"""Keys whose value must come from the environment, whichever table they stand in."""

_SIZES = frozenset({"max_body"})
"""Keys that also take a size with a unit."""

_BEGIN = {"authenticator": '; it says who may call, and begins with type = "jwt", issuer and audience'}
"""What a table that has to be there is for."""

# "$${" is the text "${"; whatever else begins like a variable has to be one.
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*\}?)")
_VARIABLE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KEY = re.compile(r"\s*([^\s=\[\]]+)\s*=")
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")


class ConfigFile:
    """One file while it is read: where a mistake is, and which variables must not show in the message."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._data: dict[str, Any] = {}
        self._variables: dict[str, str] = {}

    def top(self) -> Table:
        """The whole file, as a table without a name."""
        text = ""
        try:
            with open(self.path, "rb") as file:
                # Editors on Windows still put a byte order mark in front.
                text = file.read().decode("utf-8-sig")
            self._data = tomllib.loads(text)
            return Table(self, (), self._data)
        except FileNotFoundError:
            message = "there is no such file; idp-middleware init writes one"
        except OSError as exc:
            message = f"cannot be read ({exc.strerror})"
        except UnicodeDecodeError as exc:
            message = f"is not UTF-8 (at byte {exc.start})"
        except tomllib.TOMLDecodeError as exc:
            raise self._explain(str(exc), text) from None
        raise ConfigurationError(message, file=self.path)

    def _explain(self, complaint: str, text: str) -> ConfigurationError:
        """tomllib's complaint with the line in front, and the commonest one in plain words."""
        complaint, _, place = complaint.removesuffix(")").partition(" (at ")
        lines = text.split("\n")
        found = re.match(r"line (\d+)", place)
        number = int(found[1]) if found else len(lines)
        if not complaint.startswith(("Cannot overwrite", "Cannot declare", "Duplicate inline")):
            quotes = "; text needs quotes around it" if complaint == "Invalid value" else ""
            return ConfigurationError(f"line {number}: {complaint[:1].lower()}{complaint[1:]}{quotes}", file=self.path)
        headers = [header[1].strip() for line in lines[:number] if (header := _HEADER.fullmatch(line))]
        key = _KEY.match(lines[number - 1])
        return ConfigurationError(
            f"line {number} has it for the second time; keep one",
            key=key and key[1],
            table=(headers or [None])[-1],
            file=self.path,
        )

    def substitute(self, value: Any) -> Any:
        """`value` with each `${NAME}` in its strings replaced by that environment variable."""
        if isinstance(value, str):
            return _VARIABLE.sub(self._variable, value)
        if isinstance(value, list):
            return [self.substitute(item) for item in value]
        if isinstance(value, dict):
            return {key: self.substitute(item) for key, item in value.items()}
        return value

    def _variable(self, match: re.Match[str]) -> str:
        if match[1] is None:
            return "${"
        name = _VARIABLE_NAME.fullmatch(match[1])
        if name is None:
            raise ConfigurationError('"${" begins a variable, as in "${NAME}"; for the plain characters write "$${"')
        value = os.environ.get(name[1])
        if not value:
            state = "not set" if value is None else "empty"
            others = dict.fromkeys(each for each in _variables(self._data) if not os.environ.get(each))
            others.pop(name[1], None)
            more = f", and also {', '.join(others)}" if others else ""
            raise ConfigurationError(f"the environment variable {name[1]} is {state}; set it where this runs{more}")
        self._variables[name[1]] = value
        return value

    @contextmanager
    def locating(self, table: str | None, key: str | None = None) -> Iterator[None]:
        """Adds to a `ConfigurationError` on its way out where it was, and takes values of variables out of it."""
        try:
            yield
        except ConfigurationError as exc:
            message = exc.message
            for name, value in sorted(self._variables.items(), key=lambda item: -len(item[1])):
                # One of a few letters is no secret, and is part of too many words.
                for spelling in {value, repr(value)[1:-1]} if len(value) > 3 else ():
                    message = message.replace(spelling, f"${{{name}}}")
            raise ConfigurationError(
                message, key=exc.key or key, table=exc.table or table, file=exc.file or self.path
            ) from None


class Table:
    """A table of the file. What is taken from it is known; anything else in it is a mistake."""

    def __init__(self, file: ConfigFile, path: tuple[str, ...], data: Mapping[str, Any], number: int = 0) -> None:
        self._file = file
        self._path = path
        self._data = data
        self._taken: list[str] = []
        self.key = path[-1] if path else ""
        self.name = f"{_dotted(path)} #{number}" if number else _dotted(path)

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def __bool__(self) -> bool:
        return bool(self._data)

    def wrong(self, message: str, key: str | None = None) -> NoReturn:
        raise ConfigurationError(message, key=key, table=self.name, file=self._file.path)

    def take(self, key: str, annotation: Any, default: Any = None) -> Any:
        """The value of a key, checked against a type annotation."""
        self._taken.append(key)
        if key not in self._data:
            return default
        value = self._data[key]
        with self._file.locating(self.name, key):
            _refuse_literal_secret(key, value, f"{self.key}_{key}")
            # Tables before anything is put into their strings: they do that themselves, and twice would be too often.
            path = (*self._path, key)
            if (dataclass := nested(annotation)) is not None and isinstance(value, dict):
                return Table(self._file, path, value).build(dataclass)
            if (dataclass := nested_items(annotation)) is not None and isinstance(value, list):
                if all(isinstance(item, dict) for item in value):
                    tables = [Table(self._file, path, item, number) for number, item in enumerate(value, start=1)]
                    return [table.build(dataclass) for table in tables]
                raise ConfigurationError(f"must be {in_words(annotation)}")
            value = self._file.substitute(value)
            if key in _SIZES and isinstance(value, str):
                return size(value)
            if not fits(value, annotation):
                hint = "; put it in brackets" if isinstance(value, str) and fits([value], annotation) else ""
                raise ConfigurationError(f"must be {in_words(annotation)}, not {kind_of(value)}{hint}")
            return value

    def choose(self, key: str, choices: Collection[str], what: str) -> str:
        """The value of a key that has to be one of `choices`, each of which is a `what`."""
        value: str | None = self.take(key, str)
        if value is None:
            self.wrong(f"is missing; it names a {what}{_among(choices)}", key)
        if value not in choices:
            with self._file.locating(self.name, key):
                raise ConfigurationError(f"there is no {what} {value!r}{_hint(value, choices)}")
        return value

    def table(self, key: str) -> Table:
        """A table inside, which has to be there."""
        self._taken.append(key)
        path = (*self._path, key)
        if key not in self._data:
            raise ConfigurationError(f"is missing{_BEGIN.get(key, '')}", table=_dotted(path), file=self._file.path)
        data = self._data[key]
        if not isinstance(data, dict):
            self.wrong(f"must be a table, [{_dotted(path)}], not {kind_of(data)}", key)
        return Table(self._file, path, data)

    def one_or_more(self, key: str) -> list[Table]:
        """A table inside, or the several that stand there as an array of tables."""
        data = self._data.get(key)
        if not isinstance(data, list):
            return [self.table(key)]
        self._taken.append(key)
        path = (*self._path, key)
        if not data or not all(isinstance(item, dict) for item in data):
            self.wrong(f"must be a table, [{_dotted(path)}], or several of [[{_dotted(path)}]]", key)
        return [Table(self._file, path, item, number) for number, item in enumerate(data, start=1)]

    def tables(self, key: str) -> list[Table]:
        """The tables inside a table of tables, which need not be there."""
        if key not in self._data:
            self._taken.append(key)
            return []
        outer = self.table(key)
        for name, data in outer._data.items():
            if not isinstance(data, dict):
                path = _dotted((*outer._path, name))
                outer.wrong(f"must be a table, [{path}], not {kind_of(data)}; the tables are [{outer.name}.NAME]", name)
        return [outer.table(name) for name in outer._data]

    def no_more(self, *known: str) -> None:
        """Raises `ConfigurationError` for the first key that is neither taken nor `known`."""
        for key, value in self._data.items():
            if key not in self._taken and key not in known:
                what = "table" if isinstance(value, dict) else "key"
                self.wrong(f"there is no such {what}{_hint(key, [*self._taken, *known])}", key)

    def build(self, factory: Callable[..., Any], **given: Any) -> Any:
        """What `factory` makes of the table; `given` are arguments that the file doesn't decide."""
        accepted = {name: kind for name, kind in vocabulary(factory).items() if name not in given}
        self.no_more(*accepted)
        for key, (kind, required) in accepted.items():
            if required and key not in self._data:
                self.wrong(f"is missing; add {key} = {self._example(key, kind)}", key)
        arguments = {key: self.take(key, kind) for key, (kind, _) in accepted.items() if key in self._data}
        with self._file.locating(self.name):
            return factory(**arguments, **given)

    def _example(self, key: str, kind: Any) -> str:
        """How a key is written, for who has left it out."""
        text = f'"{_variable_for(f"{self.key}_{key}")}"' if key in SECRETS else '"…"'
        if fits("", kind):
            return text
        return f"[{text}]" if fits([""], kind) else "…"

    def build_type(self, factories: Mapping[str, Callable[..., Any]], **given: Any) -> Any:
        """As `build`, with the factory that the table's `type` names, and what it takes of `given`."""
        factory = factories[self.choose("type", factories, "type")]
        taken = parameters(factory)
        return self.build(factory, **{name: value for name, value in given.items() if name in taken})


def _variables(value: Any) -> Iterator[str]:
    """The names of the variables in all strings of a value of the file, in their order."""
    if isinstance(value, str):
        yield from (
            name[1] for match in _VARIABLE.finditer(value) if (name := _VARIABLE_NAME.fullmatch(match[1] or ""))
        )
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _variables(item)


def _variable_for(name: str) -> str:
    """What a secret's variable of the environment may be called."""
    return "${" + re.sub(r"[^A-Z0-9]+", "_", name.upper()) + "}"


def _refuse_literal_secret(key: str, value: object, name: str) -> None:
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        secret = text if key in SECRETS else _password(text) if key in ("url", "store") else None
        if secret and not any(match[1] for match in _VARIABLE.finditer(secret)):
            variable = _variable_for(name)
            raise ConfigurationError(f'is a secret, so take it from the environment: write "{variable}" and set that')


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(key if _BARE_KEY.fullmatch(key) else json.dumps(key) for key in path)


def _among(choices: Collection[str]) -> str:
    return f" ({', '.join(sorted(choices))})" if choices else ""


def _hint(wrong: str, choices: Collection[str]) -> str:
    # The Python name of an argument ends in what it is called here: `token_source` is `source`.
    ending = [choice for choice in choices if wrong.endswith(f"_{choice}")]
    close = ending or difflib.get_close_matches(wrong, choices, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(sorted(choices))}" if choices else ""
