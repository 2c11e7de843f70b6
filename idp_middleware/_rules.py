"""What a route allows beyond its own lists: rules for methods and paths, and a function for the rest.

A route with rules allows what one of them allows and none denies; nothing that no rule is about. So a slip of the pen
closes a door where it might have opened one. Works on raw paths and the caller's scopes; knows nothing of upstreams,
tokens, or how a caller was verified.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from starlette.requests import HTTPConnection

from idp_middleware._types import Caller
from idp_middleware.errors import CallerForbidden, ConfigurationError

Authorize: TypeAlias = Callable[[Caller, HTTPConnection], Awaitable[bool]]
"""Whether this caller may do this; only True is yes. May raise an `errors.IdPError` of its own instead."""

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]+\Z")
_PATTERN = re.compile(r"[A-Za-z0-9/._~!$&'()+,;=:@*-]+\Z")
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile("/+")


@dataclass(frozen=True, slots=True)
class Rule:
    """Which requests, and who may make them.

    Args:
        methods: the request methods it is about; default all.
        paths: the paths after the route's name it is about, as patterns: `*` is one segment, or part of one, `**` any
            number of them; default all.
        scopes: what the caller must hold, all of it. For one scope or another, write two rules.
        deny: nobody may, whatever the other rules say. Then the paths are taken in the widest sense that some server
            might take them in: in any case, with or without a slash at the end or doubled, without `;…`, and decoded as
            often as they are encoded; and who may not `GET` may not `HEAD`.

    Raises:
        ConfigurationError: where it is written, naming the argument at fault.
    """

    _: KW_ONLY
    methods: Collection[str] | None = None
    paths: Collection[str] | None = None
    scopes: Collection[str] = frozenset()
    deny: bool = False
    _paths: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        methods = None if self.methods is None else frozenset(map(check_method, strings(self.methods, "methods")))
        paths = None if self.paths is None else tuple(strings(self.paths, "paths"))
        scopes = frozenset(strings(self.scopes, "scopes"))
        if methods is not None and not methods:
            raise ConfigurationError("is empty, so the rule would be about nothing", key="methods")
        if self.deny and scopes:
            raise ConfigurationError("make no difference where nobody may; leave them out", key="scopes")
        if self.deny and methods is None and paths is None:
            raise ConfigurationError("without methods or paths, nobody might do anything; add one of them", key="deny")
        if self.deny and methods is not None and "GET" in methods:
            methods |= {"HEAD"}
        for name, value in (
            ("methods", methods),
            ("paths", paths),
            ("scopes", scopes),
            ("_paths", None if paths is None else compile_paths(paths, any_case=self.deny)),
        ):
            object.__setattr__(self, name, value)

    def is_about(self, method: str, readings: Readings) -> bool:
        """Whether the request is one of those the rule is about."""
        if self.methods is not None and method not in self.methods:
            return False
        if self._paths is None:
            return True
        if self.deny:
            return any(map(self._paths.match, readings.possible))
        return all(map(self._paths.match, readings.strict))


class Readings:
    """The paths that servers may take a raw path for."""

    __slots__ = ("_possible", "strict")

    def __init__(self, rest: bytes) -> None:
        rest = rest or b"/"
        whole = unquote_to_bytes(rest).decode("latin-1")
        # A slash that was encoded is one segment to some servers and two to others. Put back as a character that no
        # pattern can hold.
        parts = "/".join(unquote_to_bytes(part).decode("latin-1").replace("/", "\0") for part in rest.split(b"/"))
        self.strict: tuple[str, str] = (whole, parts)
        """What an allowed path has to fit both of."""
        self._possible: set[str] | None = None

    @property
    def possible(self) -> set[str]:
        """What a denied path has to fit one of."""
        if self._possible is None:
            found = set(self.strict)
            text = self.strict[0]
            # Servers behind servers each decode. Four times is generous, and bounds what a path can cost.
            for _ in range(4):
                text = unquote(text, "latin-1")
                found.add(text)
            found |= {_PARAMETERS.sub("", path) for path in found}
            found |= {_SLASHES.sub("/", path) for path in found}
            found |= {path.rstrip("/") + end for path in found for end in ("", "/")}
            self._possible = found
        return self._possible


def check_rules(rules: Collection[Rule]) -> tuple[Rule, ...]:
    """A route's argument `rules`. Raises `ConfigurationError`."""
    if not isinstance(rules, Collection) or not all(isinstance(rule, Rule) for rule in rules):
        raise ConfigurationError("must be a list of Rule", key="rules")
    if rules and all(rule.deny for rule in rules):
        raise ConfigurationError("allow nothing; where all else is allowed, add an empty one", key="rules")
    return tuple(rules)


def apply_rules(rules: tuple[Rule, ...], scopes: frozenset[str], method: str, rest: bytes) -> None:
    """Raises `CallerForbidden` unless one of `rules` allows this request to who holds `scopes`, and none denies it.

    `rest` is the raw path from the slash after the route's name. Without rules, all is allowed.
    """
    if not rules:
        return
    readings = Readings(rest)
    about = [rule for rule in rules if rule.is_about(method, readings)]
    if any(rule.deny for rule in about):
        raise CallerForbidden("a rule of the route denies it")
    if not about:
        raise CallerForbidden("no rule of the route allows it")
    if not any(scopes.issuperset(rule.scopes) for rule in about):
        raise CallerForbidden("scope missing", scopes=about[0].scopes)


def check_authorize(authorize: Authorize | None) -> Authorize | None:
    """A route's argument `authorize`. Raises `ConfigurationError`."""
    if authorize is None or inspect.iscoroutinefunction(authorize):
        return authorize
    if not isinstance(authorize, type) and inspect.iscoroutinefunction(getattr(authorize, "__call__", None)):  # noqa: B004
        return authorize
    # A plain function's answer would be a coroutine to nobody, and a coroutine is always true.
    raise ConfigurationError("must be an async function of the caller and the connection", key="authorize")


async def ask(authorize: Authorize, caller: Caller, conn: HTTPConnection) -> None:
    """Raises `CallerForbidden` unless `authorize` says True, and nothing else that is true."""
    if await authorize(caller, conn) is not True:
        raise CallerForbidden("the route's own function says no")


def compile_paths(patterns: Collection[str], *, any_case: bool = False) -> re.Pattern[str]:
    """One expression for several path patterns.

    Raises `ConfigurationError` for what would not mean what it looks like.
    """
    alternatives = []
    for pattern in patterns:
        if not pattern.startswith("/"):
            raise ConfigurationError(f"{pattern!r} must start with a slash", key="paths")
        if not _PATTERN.match(pattern):
            raise ConfigurationError(f"{pattern!r} may hold * and ** but no other special characters", key="paths")
        segments = pattern[1:].split("/")
        for segment in segments:
            if segment in (".", "..") or ("**" in segment and segment != "**"):
                raise ConfigurationError(f"{pattern!r} has a segment {segment!r} that can't match", key="paths")
        alternatives.append(_expression(segments))
    if not alternatives:
        raise ConfigurationError("is empty, so nothing would be allowed; leave it out to allow all", key="paths")
    return re.compile(f"(?:{'|'.join(alternatives)})\\Z", re.DOTALL | (re.IGNORECASE if any_case else 0))


def _expression(segments: list[str]) -> str:
    blocks: list[str] = [""]
    for segment in segments:
        if segment == "**":
            blocks.append("")
        else:
            blocks[-1] += "/" + _wildcards(segment)
    if len(blocks) == 1:
        return blocks[0]
    # Between two stars the first place that fits is as good as any other, and giving the others up (the atomic groups)
    # keeps the time linear in a path that callers choose.
    between = "".join(f"(?>/.*?{block}(?=/))" for block in blocks[1:-1])
    return blocks[0] + between + "/.*" + blocks[-1]


def _wildcards(segment: str) -> str:
    first, *rest = map(re.escape, segment.split("*"))
    return (
        first + "".join(f"(?>[^/]*?{literal})" for literal in rest[:-1]) + "".join("[^/]*" + last for last in rest[-1:])
    )


def strings(values: Collection[str], key: str) -> Collection[str]:
    """An argument that lists strings. Raises `ConfigurationError`."""
    # A bare string is a collection too: scopes="read" would ask for the scopes r, e, a and d.
    if (
        isinstance(values, str)
        or not isinstance(values, Collection)
        or not all(isinstance(value, str) and value for value in values)
    ):
        raise ConfigurationError("must be a list of strings", key=key)
    return values


def check_method(method: str) -> str:
    """A request method that can be forwarded. Raises `ConfigurationError`."""
    if not _METHOD.match(method):
        raise ConfigurationError(f"{method!r} is not a request method (they are upper case)", key="methods")
    if method in ("TRACE", "CONNECT"):
        raise ConfigurationError(f"{method} is never forwarded; leave it out", key="methods")
    return method
