"""What there is to see of the middleware at work: one record for each thing that happened, and who is told.

Records are made to be kept: no token, path, query string or user name is in them. Knows nothing of how anything is
done, nor of what observers do with a record.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Scope

from idp_middleware._types import RawHeaders
from idp_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from idp_middleware._urls import Origin

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
    """The token source of a route is left alone for a while (`open`), or asked again. `source` is its kind."""

    source: str
    route: str
    open: bool


Record: TypeAlias = RequestRecord | TokenRecord | CacheRecord | CircuitRecord


class Observer(Protocol):
    """Is told of everything, at once and on the event loop: so it must be quick.

    More kinds of records may come: pass over those you don't know. What it raises is logged once and harms nobody.
    """

    def __call__(self, record: Record, /) -> None: ...


class Exporter(Observer, Protocol):
    """An observer that also answers those who fetch what it has counted."""

    async def answer(self, conn: HTTPConnection) -> Response: ...


class Trace:
    """One request as an observer follows it from its start: what its `begin(scope, route, mount=…)` returns.

    `route` is the name; `mount` is the path that everything of ours is under, with what the app is mounted at.
    """

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

    def __init__(self, observers: Sequence[Observer], prefix: str) -> None:
        for observer in observers:
            if not callable(observer):
                raise ConfigurationError(f"must be callable, and a {type(observer).__name__} is not", key="observers")
        self._observers = tuple(observers)
        self._prefix = prefix
        self._begins: list[tuple[Observer, Callable[..., Trace]]] = [
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
                traces.append((observer, begin(scope, route, mount=scope.get("root_path", "") + self._prefix)))
            except Exception as exc:
                self.complain(observer, exc)
        return traces

    def complain(self, observer: Observer, error: Exception) -> None:
        """Once for each observer: it would fail at every request."""
        if id(observer) not in self._complained:
            self._complained.add(id(observer))
            # The kind only: what it says may quote what it was told.
            logger.error("the observer %s raised %s, and may miss more", type(observer).__name__, type(error).__name__)


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
