"""What every test double does: records each request, follows a script, and answers with raw ASGI messages.

Knows nothing of what is asked or answered, nor of the middleware: a witness that shared code with the accused would
share its mistakes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.types import Receive, Scope, Send

KEPT = 1024 * 1024
"""Bytes of a request body that are kept; all of it is counted and hashed."""

Payload: TypeAlias = bytes | str | dict[str, Any] | list[Any]
"""A body: bytes and text as they are, anything else as JSON."""


@dataclass(slots=True, eq=False)
class RecordedRequest:
    """One request as it arrived, filled in while its body comes.

    `path` is decoded, `target` is what stood in the request line. `headers` are raw pairs in the order they came,
    names in lower case. `body` holds the first MiB, while `size` and `sha256` cover all that arrived; `complete`
    tells whether the body ended. `disconnected`: the client left before it had the whole answer. `time` is in seconds
    since the epoch.
    """

    method: str
    path: str
    target: bytes
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    scheme: str = field(default="http", repr=False)
    time: float = field(default_factory=time.time, repr=False)
    body: bytes = field(default=b"", repr=False)
    size: int = 0
    complete: bool = False
    disconnected: bool = False
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all body bytes that arrived."""
        digest: str = self._hash.hexdigest()
        return digest

    def header(self, name: str) -> str | None:
        """All fields of that name, joined with a comma (RFC 9110 section 5.2); None where there is none."""
        values = [value for key, value in self.headers if key == name.lower().encode()]
        return b", ".join(values).decode("latin-1") if values else None

    @property
    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer …`; None where there is none, or more than one such field."""
        scheme, _, token = (self.header("authorization") or "").partition(" ")
        return token if scheme.lower() == "bearer" and token and "," not in token else None

    def json(self) -> Any:
        """The body as JSON. Raises `ValueError` where it is none."""
        return json.loads(self.body)

    def _feed(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._hash.update(chunk)
        if len(self.body) < KEPT:
            self.body += chunk[: KEPT - len(self.body)]


@dataclass(slots=True)
class Answer:
    """A response; a streamed body that ends before its announced length breaks the connection off."""

    status: int
    body: Payload | AsyncIterator[bytes] = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class _Rule:
    prefix: str
    times: int | None
    delay: float = 0.0
    status: int | None = None
    """None: the request goes on to the ordinary answer."""
    body: Payload = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    cut: bool = False


class Double:
    """An ASGI app that records what it is asked. Subclasses say what they answer."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._rules: list[_Rule] = []

    @property
    def last(self) -> RecordedRequest:
        """The latest request. Raises `IndexError` where there was none."""
        return self.requests[-1]

    def count(self, path_prefix: str = "/", *, method: str | None = None) -> int:
        """How many requests came, those that a fault answered included."""
        return sum(
            1 for r in self.requests if r.path.startswith(path_prefix) and (method is None or r.method == method)
        )

    def clear(self) -> None:
        """Forget the recorded requests."""
        self.requests.clear()

    def answer(self, request: RecordedRequest) -> Answer:
        """The ordinary answer to a request whose body has arrived."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        request = RecordedRequest(scope["method"], scope["path"], target, list(scope["headers"]), scope["scheme"])
        self.requests.append(request)
        while not request.complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                request.disconnected = True
                return
            request._feed(message.get("body", b""))
            request.complete = not message.get("more_body", False)
        await _unless_disconnected(request, receive, self._respond(request, send))

    async def _respond(self, request: RecordedRequest, send: Send) -> None:
        answer = await self._scripted(request)
        await _send(send, answer or self.answer(request))

    async def _scripted(self, request: RecordedRequest) -> Answer | None:
        raw_path = request.target.partition(b"?")[0].decode("latin-1")
        for rule in self._rules:
            if rule.times == 0 or not (request.path.startswith(rule.prefix) or raw_path.startswith(rule.prefix)):
                continue
            if rule.times is not None:
                rule.times -= 1
            await asyncio.sleep(rule.delay)
            if rule.cut:
                return Answer(200, _nothing(), [(b"content-length", b"1000")])
            if rule.status is not None:
                return Answer(rule.status, rule.body, list(rule.headers))
        return None


def raw_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Header fields in the form of ASGI."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


async def _send(send: Send, answer: Answer) -> None:
    headers = list(answer.headers)
    names = {name for name, _ in headers}
    body = answer.body
    if isinstance(body, AsyncIterator):
        announced = next((int(value) for name, value in headers if name == b"content-length"), None)
        await send(_start(answer.status, headers))
        sent = 0
        async for chunk in body:
            sent += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if announced is None or sent == announced:
            await send({"type": "http.response.body", "body": b""})
        return
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
        if b"content-type" not in names:
            headers.append((b"content-type", b"application/json; charset=utf-8"))
    content = body.encode() if isinstance(body, str) else body
    if b"content-length" not in names and answer.status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(content)))
    await send(_start(answer.status, headers))
    await send({"type": "http.response.body", "body": content})


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> MutableMapping[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _unless_disconnected(request: RecordedRequest, receive: Receive, work: Any) -> None:
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
        else:
            request.disconnected = True
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
