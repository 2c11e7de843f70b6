"""The route map: which upstream, which token source, what is allowed, and the target that a request leads to.

Knows paths as the raw bytes they came in, and never decodes what it forwards. Knows nothing of HTTP clients, of what a
token holds, or of configuration files.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from idp_middleware._limits import Slots, slots_for
from idp_middleware._refusal import UNAUTHORIZED, Refusal
from idp_middleware._rules import (
    Authorize,
    Readings,
    Rule,
    apply_rules,
    check_authorize,
    check_method,
    check_rules,
    compile_paths,
    strings,
)
from idp_middleware._signing import Instance, Sign
from idp_middleware._types import KEPT_WHOLE, Timeout, Token, TokenSource, TokenSourceLike, _HoldsSecret
from idp_middleware._urls import Origin, parse_base_url, refuse_unsafe_path
from idp_middleware.errors import (
    BadRequest,
    CallerForbidden,
    ConfigurationError,
    MethodNotAllowed,
    RouteNotFound,
    TokenSourceFailed,
)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What a route takes when it says nothing. TRACE and CONNECT are never forwarded (RFC 9110 sections 9.3.6, 9.3.8)."""

_OURS = frozenset({"authorization", "connection", "content-length", "host", "transfer-encoding"})
"""Fields that are written on the way, once each."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]*\Z")

MAX_INSTANCES = 1000
"""Servers of users that a route remembers having looked at."""


@dataclass(frozen=True, slots=True, repr=False)
class ProxyRoute(_HoldsSecret):
    """One entry of the route map: an upstream, the source of its tokens, and what a caller may do there.

    Args:
        upstream: base URL of the provider's API; its path (and query, if any) begins every forwarded target.
        token_source: gives the caller's token for this upstream.
        connection: the identity provider's name for where the identity came from.
        scopes: what the caller must hold to use the route.
        token_scopes: what the user's token must be good for, as the provider spells it; where a token's scopes are
            known and some are missing, the user is asked to reconnect.
        methods: allowed request methods; default `METHODS`.
        paths: allowed paths after the route's name, as patterns: `*` is one segment, `**` any number of them.
        rules: what else a request has to fit, where all the above is not enough: one `Rule` that allows it, and none
            that denies it.
        authorize: an async function of the caller and the connection that has the last word; only True is yes.
        headers: fields set on each upstream request, whatever the caller sent.
        default_headers: fields added where the caller sent none.
        timeout: bounds on waiting for the upstream.
        max_body: largest request body in bytes; None streams any size. Also of each message from a caller's WebSocket,
            where 16 MiB are the default.
        max_concurrent: requests that may be under way at a time in each process, streams and WebSockets until they end;
            one more is answered 503 `route-overloaded`. Default no limit.
        max_concurrent_per_caller: the same of each caller; 429 `too-many-requests`.
        cookies: names of the caller's cookies that go to the upstream; the others, and by default all, stay here.
        forwarded: for where only trusted proxies can reach the app: pass on their `X-Forwarded-For`, with our peer
            added, and `X-Forwarded-Proto` and `-Host`. By default none are passed on, and none added.
        websocket: relay WebSockets too, message by message as they are. Each lives until the caller's token expires, or
            for an hour where nobody knows when that is, and is then closed with 4401. Needs the extra `websocket`.
        websocket_bearer: for browsers, which can't set `Authorization` on a WebSocket: take the caller's token as an
            offered subprotocol too, `idp.bearer.` and the token in base64url (offer `idp.bearer` beside it).
        rewrite_bodies: for clients that follow URLs from bodies, or check their host: put ours in place of the base URL
            in JSON, XML and text. Ranges are then not forwarded, nor what is compressed asked for; a changed answer's
            `ETag` is weak.
        scrub: mask the token wherever the upstream's answer echoes it, in header fields and in bodies of any kind. What
            is compressed and ranges as above.
        refused: how the upstream says that it does not take the token; default status 401.
        sign: makes `Authorization`, and perhaps a query of its own, where a bearer token in that field is not all.
        instance: the base URL of the server that a token is for, where users have one each; it has to be under
            `upstream`, whose host may then begin with `*.` for any name there.
        allow_set_cookie: pass the upstream's `Set-Cookie` on; an API's cookies seldom belong on the app's origin.
        allow_insecure: permit `http://` to a host that is not loopback.
        name: filled in by the route map.

    Raises:
        ConfigurationError: where it is written, naming the argument at fault.
    """

    upstream: str
    _: KW_ONLY
    token_source: TokenSourceLike = field(repr=False)
    connection: str | None = None
    scopes: Collection[str] = frozenset()
    token_scopes: Collection[str] = frozenset()
    methods: Collection[str] = METHODS
    paths: Collection[str] | None = None
    rules: Collection[Rule] = ()
    authorize: Authorize | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    default_headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    timeout: Timeout = field(default_factory=Timeout)
    max_body: int | None = None
    max_concurrent: int | None = None
    max_concurrent_per_caller: int | None = None
    cookies: Collection[str] = ()
    forwarded: bool = False
    websocket: bool = False
    websocket_bearer: bool = False
    rewrite_bodies: bool = False
    scrub: bool = False
    refused: Refusal = UNAUTHORIZED
    sign: Sign | None = field(default=None, repr=False)
    instance: Instance | None = field(default=None, repr=False)
    allow_set_cookie: bool = False
    allow_insecure: bool = False
    name: str = ""

    # Worked out once, so that a request only looks them up.
    origin: Origin = field(init=False, repr=False, compare=False)
    base_path: bytes = field(init=False, repr=False, compare=False)
    base_query: bytes = field(init=False, repr=False, compare=False)
    source: TokenSource = field(init=False, repr=False, compare=False)
    fixed_headers: tuple[tuple[bytes, bytes], ...] = field(init=False, repr=False, compare=False)
    fixed_names: frozenset[bytes] = field(init=False, repr=False, compare=False)
    cookie_names: frozenset[bytes] = field(init=False, repr=False, compare=False)
    fallback_headers: tuple[tuple[bytes, bytes], ...] = field(init=False, repr=False, compare=False)
    suspect: frozenset[int] = field(init=False, repr=False, compare=False)
    """Statuses of answers that may be refusals of the token."""
    tailored: bool = field(init=False, repr=False, compare=False)
    """Whether a request has to be made for its token: see `_signing.tailored`."""
    slots: Slots | None = field(init=False, repr=False, compare=False)
    """Of the requests under way; None where any number may be."""
    _allowed_path: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _instances: dict[str, ProxyRoute] = field(init=False, repr=False, compare=False)
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        upstream = self.upstream
        if self.instance is not None and isinstance(upstream, str):
            upstream = _within(upstream)
        origin, base_path, base_query = parse_base_url(upstream, "upstream", allow_insecure=self.allow_insecure)
        computed = {
            "origin": origin,
            "base_path": base_path.rstrip(b"/"),
            "base_query": base_query,
            "source": _as_source(self.token_source),
            "scopes": frozenset(strings(self.scopes, "scopes")),
            "token_scopes": frozenset(strings(self.token_scopes, "token_scopes")),
            "methods": frozenset(check_method(m) for m in strings(self.methods, "methods")),
            "fixed_headers": _encoded(self.headers, "headers"),
            "fallback_headers": _encoded(self.default_headers, "default_headers"),
            "cookies": tuple(strings(self.cookies, "cookies")),
            "_allowed_path": None if self.paths is None else compile_paths(strings(self.paths, "paths")),
            "rules": check_rules(self.rules),
            "authorize": check_authorize(self.authorize),
            "suspect": frozenset(self.refused.statuses | self.refused.told_under),
            "tailored": self.sign is not None or self.instance is not None,
            "slots": slots_for(self.max_concurrent, self.max_concurrent_per_caller),
            "_instances": {},
        }
        for name, value in computed.items():
            object.__setattr__(self, name, value)
        # Whoever reads X_User as X-User must not find the caller's beside ours.
        fixed_names = frozenset(name.replace(b"_", b"-") for name, _ in self.fixed_headers)
        if self.rewrite_bodies or self.scrub or self.refused.told_under:
            # What is looked through has to be readable, and whole: two ranges could hold half a token each.
            if b"accept-encoding" in fixed_names:
                raise ConfigurationError("Accept-Encoding is identity where bodies are looked through", key="headers")
            fixed_headers = (*self.fixed_headers, (b"accept-encoding", b"identity"))
            object.__setattr__(self, "fixed_headers", fixed_headers)
            fixed_names |= {b"accept-encoding", b"range", b"if-range"}
        object.__setattr__(self, "fixed_names", fixed_names)
        for name in self.cookies:
            if not _TOKEN.match(name):
                raise ConfigurationError(f"{name!r} is not a cookie's name", key="cookies")
        object.__setattr__(self, "cookie_names", frozenset(name.encode() for name in self.cookies))
        if self.paths is not None:
            object.__setattr__(self, "paths", tuple(self.paths))
        for part in ("connect", "read", "write", "pool"):
            if getattr(self.timeout, part) <= 0:
                raise ConfigurationError(f"{part} must be more than 0 seconds", key="timeout")
        if self.max_body is not None and self.max_body < 0:
            raise ConfigurationError("must not be negative", key="max_body")
        if self.websocket and "GET" not in self.methods:
            raise ConfigurationError("needs the method GET, which a WebSocket begins with", key="websocket")
        if self.websocket and find_spec("websockets") is None:
            raise ConfigurationError("needs the extra: pip install 'idp-middleware[websocket]'", key="websocket")
        if self.websocket_bearer and not self.websocket:
            raise ConfigurationError("is for a route with websocket only; add websocket = true", key="websocket_bearer")
        if getattr(self.source, "needs_connection", False) and not self.connection:
            raise ConfigurationError(
                f'{type(self.source).__name__} needs to know which connection: add connection = "…", '
                "as the identity provider names it",
                key="connection",
            )

    @property
    def address(self) -> str:
        """The base URL as it may be shown: without its query, which may hold a key."""
        return self.upstream.partition("?")[0]

    def __repr__(self) -> str:
        return f"ProxyRoute({self.address!r}, connection={self.connection!r}, name={self.name!r})"

    def at(self, token: Token) -> ProxyRoute:
        """This route at the server that `token` is for.

        Raises `TokenSourceFailed` where the token does not say, or names one that is not under `upstream`.
        """
        if self.instance is None:
            return self
        url = self.instance(token)
        route = self._instances.get(url)
        if route is None:
            try:
                route = replace(self, upstream=url, instance=None)
            except ConfigurationError:
                raise TokenSourceFailed("the token is for a server whose URL is none, or unsafe") from None
            wildcard = self.upstream != _within(self.upstream)
            if not _is_under(route, self, any_name=wildcard):
                raise TokenSourceFailed("the token is for a server that the route does not lead to")
            if len(self._instances) >= MAX_INSTANCES:
                self._instances.clear()
            self._instances[url] = route
        return route

    def check_method(self, method: str) -> None:
        """Raises `MethodNotAllowed`; methods are case-sensitive (RFC 9110 section 9.1), so `get` is not `GET`."""
        if method not in self.methods:
            raise MethodNotAllowed(allowed=self.methods)

    def check_scopes(self, scopes: frozenset[str]) -> None:
        """Raises `CallerForbidden` unless `scopes` are all that the route asks for."""
        if not scopes.issuperset(self.scopes):
            raise CallerForbidden("scope missing", scopes=self.scopes)

    def check_path(self, rest: bytes) -> None:
        """Raises `CallerForbidden` unless `rest` (from the slash after the route's name) fits one of `paths`.

        An encoded slash is one segment to some servers and two to others, so the path has to fit both ways.
        """
        if self._allowed_path is None:
            return
        if not all(map(self._allowed_path.match, Readings(rest).strict)):
            raise CallerForbidden("path not on the route's list")

    def check_rules(self, scopes: frozenset[str], method: str, rest: bytes) -> None:
        """Raises `CallerForbidden` unless a rule allows this to who holds `scopes`, and none denies it."""
        apply_rules(self.rules, scopes, method, rest)  # type: ignore[arg-type]

    def target(self, rest: bytes, query: bytes) -> bytes:
        """The request target (RFC 9112 section 3.2.1) at the upstream for what followed the route's name.

        Joined on raw bytes: nothing is decoded, re-encoded or folded. Raises `BadRequest` for what another parser on
        the way might read as a different path.
        """
        if _SUSPECT.search(rest):
            refuse_unsafe_path(rest)
        if query and _UNSAFE_IN_QUERY.search(query):
            raise BadRequest("unsafe byte in the query")
        target = self.base_path + rest or b"/"
        if self.base_query:
            query = self.base_query + b"&" + query if query else self.base_query
        return target + b"?" + query if query else target


# Anything worth a closer look; the common path has none of it.
_SUSPECT = re.compile(rb"[^!-~]|[#\\%;?]|/\.")
_UNSAFE_IN_QUERY = re.compile(rb"[^!-~]|#")

OWN_NAMES = frozenset({"health", "ready"})
"""What stands where a route's name would, and is answered here."""


class RouteMap:
    """The routes by name, and the cut of a raw path into route and rest.

    Raises `ConfigurationError` for a prefix or a name that could not be matched byte for byte, and for a name that is
    `taken`.
    """

    def __init__(self, routes: Mapping[str, ProxyRoute], prefix: str, *, taken: Collection[str] = ()) -> None:
        if not prefix.startswith("/") or prefix != quote(prefix, safe="/~") or "//" in prefix or prefix.endswith("/"):
            raise ConfigurationError(
                "must start with a slash, not end with one, and need no percent-encoding: /idp, say", key="prefix"
            )
        for name, route in routes.items():
            if not isinstance(route, ProxyRoute):
                raise ConfigurationError(f"must be a ProxyRoute, not {type(route).__name__}", table=f"routes.{name}")
            if not _NAME.match(name):
                raise ConfigurationError(
                    "a route's name has letters, digits and . _ ~ - only", table="routes", key=name
                )
            if name in taken:
                raise ConfigurationError("is a path of the middleware's own here", table="routes", key=name)
            if name in OWN_NAMES:
                raise ConfigurationError(
                    f"{prefix}/{name} is the middleware's own; give the route another name", table="routes", key=name
                )
        self.prefix = prefix
        self._prefix = prefix.encode()
        self._prefix_slash = self._prefix + b"/"
        self._routes = {name.encode(): replace(route, name=name) for name, route in routes.items()}

    def __iter__(self) -> Any:
        return iter(self._routes.values())

    def named(self, name: str) -> ProxyRoute | None:
        """The route of that name, if there is one."""
        return self._routes.get(name.encode())

    def under_prefix(self, scope: Mapping[str, Any]) -> bytes | None:
        """The raw path after the prefix (`b""`, or from the slash on), or None where the scope is not under it."""
        # Cheap and wrong only in letting too much in: the raw path below decides.
        if self.prefix not in scope["path"]:
            return None
        raw: bytes | None = scope.get("raw_path")
        if raw is None or scope.get("root_path"):
            raw = raw_path(scope)
        if raw.startswith(self._prefix_slash):
            return raw[len(self._prefix) :]
        return b"" if raw == self._prefix else None

    def match(self, rest: bytes) -> tuple[ProxyRoute, bytes]:
        """The route named by the first segment of `rest`, and what follows its name.

        Raises `RouteNotFound`.
        """
        end = rest.find(b"/", 1)
        name, remainder = (rest[1:], b"") if end < 0 else (rest[1:end], rest[end:])
        route = self._routes.get(name)
        if route is None:
            raise RouteNotFound("no such route")
        return route, remainder

    def name_of(self, rest: bytes) -> str | None:
        """The name of the route that `match` finds, if there is one."""
        route = self._routes.get(rest[1:].partition(b"/")[0])
        return None if route is None else route.name


def raw_path(scope: Mapping[str, Any]) -> bytes:
    """The path of a scope as it came, without what the app is mounted under.

    `raw_path` is optional in ASGI and always holds the whole path; `root_path` is decoded, so it is cut off segment by
    segment. A scope whose raw path does not begin with its root path yields what is under no prefix.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quote(scope["path"], safe="/~!$&'()*+,;=:@").encode()
    root: str = scope.get("root_path", "")
    if not root:
        return raw
    parts = raw.split(b"/", root.count("/") + 1)
    head = b"/".join(parts[:-1])
    if unquote_to_bytes(head).decode("utf-8", "replace") != root:
        # Some servers leave root_path out of the path (the ASGI specification says both have it).
        return raw
    return b"/" + parts[-1]


def _within(upstream: str) -> str:
    """An upstream whose host begins with `*.`, as the URL of what the names in its place are under."""
    scheme, separator, rest = upstream.partition("://*.")
    if separator and "." not in rest.partition("/")[0]:
        raise ConfigurationError("leaves too much open: any name under a top-level domain", key="upstream")
    return f"{scheme}://{rest}" if separator else upstream


def _is_under(route: ProxyRoute, pattern: ProxyRoute, *, any_name: bool) -> bool:
    """Whether a user's own server is one that the route's upstream describes."""
    if route.origin.scheme != pattern.origin.scheme or route.origin.port != pattern.origin.port or route.base_query:
        return False
    if any_name:
        named = route.origin.host.endswith("." + pattern.origin.host)
    else:
        named = route.origin.host == pattern.origin.host
    return named and (route.base_path + b"/").startswith(pattern.base_path + b"/")


def _encoded(headers: Mapping[str, str], key: str) -> tuple[tuple[bytes, bytes], ...]:
    encoded = []
    for name, value in headers.items():
        if not _TOKEN.match(name):
            raise ConfigurationError(f"{name!r} is not a header name", key=key)
        if name.lower() in _OURS:
            raise ConfigurationError(f"{name} is written by the middleware itself; leave it out", key=key)
        if not isinstance(value, str) or not re.fullmatch(r"[\t -~]*", value):
            raise ConfigurationError(f"{name} has a value that can't stand in a header", key=key)
        encoded.append((name.lower().encode(), value.encode()))
    return tuple(encoded)


class _FunctionSource:
    """A plain async function `(caller, route)` or `(caller, route, *, refused)` as a `TokenSource`."""

    def __init__(self, function: Any) -> None:
        parameters = inspect.signature(function).parameters
        self._takes_refused = "refused" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    async def token(self, caller: Any, route: Any, *, refused: Any = None) -> Any:
        if self._takes_refused:
            return await self._function(caller, route, refused=refused)
        return await self._function(caller, route)


def _as_source(source: TokenSourceLike) -> TokenSource:
    if hasattr(source, "token"):
        return source
    if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(getattr(source, "__call__", None)):  # noqa: B004
        return _FunctionSource(source)
    raise ConfigurationError("must have an async method token(), or be an async function", key="token_source")
