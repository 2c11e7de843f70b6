"""One request while somebody watches: what passes by, and how long it took.

Knows ASGI's messages and records; nothing of routes and tokens but what others note here.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from time import perf_counter
from types import TracebackType
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from idp_middleware._observation import Observers, RequestRecord, TokenOutcome, digest
from idp_middleware._types import Caller, RawHeaders
from idp_middleware._urls import Origin


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
        _watching.reset(self._reset)
        # Tasks that this request has begun and that live on have us in their context: for them, no caller's credential.
        self._scope, self._traces, self.caller = {}, [], None
        self._receive = self._send = _over

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body") or b"") or _size(message)
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
            self.bytes_out += _size(message)
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


def _size(message: Message) -> int:
    """Bytes of a WebSocket's message."""
    text: str | None = message.get("text")
    return len(message.get("bytes") or b"") if text is None else len(text.encode())


async def _over(*_: object) -> Any:
    raise RuntimeError("the request is over")


_watching: Final[ContextVar[Watch | None]] = ContextVar("idp_middleware", default=None)


def watched() -> Watch | None:
    """The request that this task, or the one that started it, is for; None unless somebody watches."""
    return _watching.get()


def note_token(found: TokenOutcome) -> None:
    """Say where the token comes from that is being looked for, if somebody watches."""
    watch = _watching.get()
    if watch is not None:
        watch.found = found
