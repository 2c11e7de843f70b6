"""What there is to see of the middleware at work: one record for each thing that happened, and who is told.

Records are made to be kept: no token, path, query string or user name is in them. Knows ASGI's messages; nothing of
routes' insides, of how anything is done, or of what observers do with a record.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from starlette.types import Message, Receive, Scope, Send

from idp_middleware._types import Caller, RawHeaders
from idp_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from idp_middleware._routes import Origin

logger = logging.getLogger("idp_middleware")

TokenOutcome: TypeAlias = Literal["held", "joined", "shared", "source", "renewed", "none"]
"""Where a request's token came from: this process, another request's flight, the cache that workers share, the source,
the source once more after the upstream had refused the first; or there was none to be had.
"""

Ended: TypeAlias = Literal["whole", "left", "aborted"]
"""Whether the answer was sent to its end, the caller left before that, or we broke off (so did the upstream, or the
server shut down)."""

TokenEvent: TypeAlias = Literal["obtained", "refreshed", "renewed", "refused", "failed", "forgotten", "revoked"]
"""What became of a caller's token: the source gave a first one, one ahead of expiry, one in place of one that the
upstream had refused; the upstream refused it; the source gave none; it was dropped here, or taken back at the provider.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request under the prefix, once it is over.

    `route` is None for a name that is none. `caller` is a digest (see `digest`), None for who was not let in.
    `problem` names the answer if it was one of ours (`errors`). `status` is None where there was no answer. Bytes are
    those of bodies, or of a WebSocket's messages. Stages are in seconds, 0.0 where a request did not get so far:
    `upstream` is up to the head of the response. `token` is None where none was asked for.
    """

    route: str | None
    caller: str | None
    method: str
    status: int | None
    problem: str | None
    bytes_in: int
    bytes_out: int
    authenticate: float
    token_wait: float
    upstream: float
    total: float
    token: TokenOutcome | None
    upgraded: bool
    ended: Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """Something that happened to a caller's token.

    `source` is the kind of the token source. `caller` and `account` are digests; `account` is None unless the request
    named one. `problem` is that of the failure, and `seconds` is how long the source took.
    """

    event: TokenEvent
    route: str
    source: str
    caller: str
    account: str | None = None
    problem: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """The shared cache failed to `read`, `write`, `delete`, `claim` or `open` (decrypt) a value; the source is asked
    instead."""

    operation: str


@dataclass(frozen=True, slots=True)
class CircuitRecord:
    """A token source is left alone for a while (`open`), or asked again."""

    source: str
    open: bool


Record: TypeAlias = RequestRecord | TokenRecord | CacheRecord | CircuitRecord


class Observer(Protocol):
    """Is told of everything, at once and on the event loop: so it must be quick.

    More kinds of records may come: pass over those you don't know. What it raises is logged once and harms nobody.
    """

    def __call__(self, record: Record, /) -> None: ...


class Trace:
    """One request as an observer follows it that has a `begin`: what `begin` returns."""

    __slots__ = ()

    def sending(self, origin: Origin, method: str, headers: RawHeaders) -> RawHeaders:  # noqa: ARG002
        """About to ask the upstream (a second time after a refused token). Returns the header fields to send."""
        return headers

    def answered(self, status: int | None, error: BaseException | None) -> None:
        """The head of its answer is there, or an error."""

    def end(self, record: RequestRecord) -> None:
        """It is over."""


class Observers:
    """All of them as one, which never raises."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        for observer in observers:
            if not callable(observer):
                raise ConfigurationError(f"must be callable, and a {type(observer).__name__} is not", key="observers")
        self._observers = tuple(observers)
        self._begins: list[tuple[Observer, Callable[[Scope, str | None], Trace]]] = [
            (observer, observer.begin) for observer in observers if hasattr(observer, "begin")
        ]
        self._complained: set[int] = set()

    def __call__(self, record: Record) -> None:
        for observer in self._observers:
            try:
                observer(record)
            except Exception as exc:
                self.complain(observer, exc)

    def begin(self, scope: Scope, route: str | None) -> list[tuple[Observer, Trace]]:
        traces = []
        for observer, begin in self._begins:
            try:
                traces.append((observer, begin(scope, route)))
            except Exception as exc:
                self.complain(observer, exc)
        return traces

    def complain(self, observer: Observer, error: Exception) -> None:
        """Once for each observer: it would fail at every request."""
        if id(observer) not in self._complained:
            self._complained.add(id(observer))
            # The kind only: what it says may quote what it was told.
            logger.error("the observer %s raised %s, and may miss more", type(observer).__name__, type(error).__name__)


class Watch:
    """One request while it is watched: `with` it, and hand on its `receive` and `send`."""

    __slots__ = (
        "_observers",
        "_receive",
        "_reset",
        "_scope",
        "_send",
        "_started",
        "_traces",
        "_whole",
        "authenticate",
        "bytes_in",
        "bytes_out",
        "caller",
        "found",
        "outcome",
        "problem",
        "route",
        "status",
        "token_wait",
        "upstream",
    )

    def __init__(self, observers: Observers, scope: Scope, receive: Receive, send: Send, route: str | None) -> None:
        self._observers = observers
        self._scope = scope
        self._receive = receive
        self._send = send
        self._whole = False
        self.route = route
        self.caller: Caller | None = None
        self.problem: str | None = None
        self.status: int | None = None
        self.bytes_in = self.bytes_out = 0
        self.authenticate = self.token_wait = self.upstream = 0.0
        self.found: TokenOutcome = "held"
        """Of the search under way. One that goes on in the background writes here when nobody reads it any more."""
        self.outcome: TokenOutcome | None = None

    def __enter__(self) -> Watch:
        self._reset: Token[Watch | None] = _watching.set(self)
        self._traces = self._observers.begin(self._scope, self.route)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        record = self._record(perf_counter() - self._started, broke=error is not None)
        for observer, trace in self._traces:
            try:
                trace.end(record)
            except Exception as exc:
                self._observers.complain(observer, exc)
        self._observers(record)
        with suppress(ValueError):
            # Of another context, where a server runs parts of a request in several.
            _watching.reset(self._reset)

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        kind: str = message["type"]
        if kind.endswith("http.response.start"):
            self.status = message["status"]
        elif kind.endswith("http.response.body"):
            self.bytes_out += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
        elif kind == "websocket.send":
            self.bytes_out += len(message.get("bytes") or message.get("text") or b"")
        elif kind == "websocket.accept":
            self.status = 101
            # It ends when either side says so.
            self._whole = True
        elif kind == "websocket.close":
            self.status = self.status or 403
            self._whole = True

    def sending(self, origin: Origin, method: str, headers: RawHeaders) -> RawHeaders:
        for observer, trace in self._traces:
            try:
                headers = trace.sending(origin, method, headers)
            except Exception as exc:
                self._observers.complain(observer, exc)
        return headers

    def answered(self, status: int | None, error: BaseException | None) -> None:
        for observer, trace in self._traces:
            try:
                trace.answered(status, error)
            except Exception as exc:
                self._observers.complain(observer, exc)

    def _record(self, total: float, *, broke: bool) -> RequestRecord:
        caller = self.caller
        return RequestRecord(
            route=self.route,
            caller=None if caller is None else digest(caller.issuer, caller.subject),
            method=self._scope.get("method", "GET"),
            status=self.status,
            problem=self.problem,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            authenticate=self.authenticate,
            token_wait=self.token_wait,
            upstream=self.upstream,
            total=total,
            token=None if self.route is None else self.outcome,
            upgraded=self.status == 101,
            ended="aborted" if broke else "whole" if self._whole else "left",
        )


_watching: Final[ContextVar[Watch | None]] = ContextVar("idp_middleware", default=None)


def watched() -> Watch | None:
    """The request that this task, or the one that started it, is for; None unless somebody watches."""
    return _watching.get()


def note_token(found: TokenOutcome) -> None:
    """Say where the token comes from that is being looked for, if somebody watches."""
    watch = _watching.get()
    if watch is not None:
        watch.found = found


@lru_cache(maxsize=10_000)
def digest(*names: str) -> str:
    """16 hexadecimal digits that stand for a caller (issuer, subject) or an account: the same in every process.

    The first of a SHA-256 over the names, each with its length before it. Whoever knows a user's name can find that
    user's records, as an operator has to; the records alone name nobody.
    """
    spelled = b"".join(b"%d:%s" % (len(data), data) for data in (name.encode("utf-8", "replace") for name in names))
    return hashlib.sha256(spelled).hexdigest()[:16]


def source_name(source: Any) -> str:
    """What records call a token source: the name of its class, or of the function that it is."""
    return getattr(source, "name", None) or type(source).__name__
