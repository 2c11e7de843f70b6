"""What every test double does: records each request, follows a script, and answers with raw ASGI messages.

Knows nothing of what is asked or answered, nor of the middleware: a witness that shared code with the accused would
share its mistakes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.types import Message, Receive, Scope, Send

from idp_middleware.testing._recording import RecordedRequest

Payload: TypeAlias = bytes | str | dict[str, Any] | list[Any]
"""A body: bytes and text as they are, anything else as JSON."""

Fields: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields; pairs, where a name comes more than once."""

_BODILESS = (204, 304)


@dataclass(slots=True)
class Answer:
    """A response; a body that ends before its announced length breaks the connection off."""

    status: int
    body: Payload | AsyncGenerator[bytes, None] = b""
    headers: Fields = ()


@dataclass(slots=True)
class _Rule:
    """What happens to requests under a prefix; without an `answer` they go on, after the delay, as usual."""

    prefix: str
    times: int | None
    delay: float
    answer: Answer | None


class Double:
    """An ASGI app that records what it is asked. Subclasses say what they answer.

    `requests` has every request in the order of arrival, from the moment its head arrived. May be set up and asked
    from other threads than the one that serves it.
    """

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._rules: list[_Rule] = []

    @property
    def last(self) -> RecordedRequest:
        """The latest request. Raises `IndexError` where there was none."""
        return self.requests[-1]

    def count(self, path_prefix: str = "/", *, method: str | None = None) -> int:
        """How many requests came under a path, those that a fault answered included."""
        return sum(_under(path_prefix, request) and method in (None, request.method) for request in self.requests)

    def clear(self) -> None:
        """Forget the recorded requests."""
        self.requests.clear()

    def respond(
        self,
        path_prefix: str,
        *,
        status: int = 200,
        headers: Fields = (),
        body: Payload = b"",
        times: int | None = None,
    ) -> None:
        """Answer with this instead, whoever asks: the next `times` requests or all of them.

        Where several of these fit a request, the one set first goes first. A `Content-Length` larger than the body
        breaks the connection off after it, which needs a real server. `path_prefix` may be written decoded or as
        it stands in the request line.
        """
        fields = tuple(headers.items() if isinstance(headers, Mapping) else headers)
        self._script(path_prefix, times, answer=Answer(status, body, fields))

    def stall(self, path_prefix: str, seconds: float, *, times: int | None = None) -> None:
        """Wait before answering as usual, or as the next rule says."""
        self._script(path_prefix, times, delay=seconds)

    def drop(self, path_prefix: str, *, times: int | None = None) -> None:
        """Break the connection off within the answer's body. Needs a real server."""
        self._script(path_prefix, times, answer=Answer(200, b"", [("content-length", "1000")]))

    def reset_faults(self) -> None:
        """Answer as usual again."""
        self._rules.clear()

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
            request.feed(message.get("body", b""))
            request.complete = not message.get("more_body", False)
        await _unless_client_leaves(request, receive, self._respond(request, send))

    async def _respond(self, request: RecordedRequest, send: Send) -> None:
        await _send(request, await self._scripted(request) or self.answer(request), send)

    def _script(self, path_prefix: str, times: int | None, *, delay: float = 0.0, answer: Answer | None = None) -> None:
        self._rules.append(_Rule(path_prefix, times, delay, answer))

    async def _scripted(self, request: RecordedRequest) -> Answer | None:
        for rule in list(self._rules):
            if rule.times == 0 or not _under(rule.prefix, request):
                continue
            if rule.times is not None:
                rule.times -= 1
            await asyncio.sleep(rule.delay)
            if rule.answer is not None:
                return rule.answer
        return None


def _under(prefix: str, request: RecordedRequest) -> bool:
    return request.path.startswith(prefix) or request.raw_path.startswith(prefix)


async def _send(request: RecordedRequest, answer: Answer, send: Send) -> None:
    fields = answer.headers.items() if isinstance(answer.headers, Mapping) else answer.headers
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    names = dict(headers)
    body = answer.body
    if isinstance(body, AsyncGenerator):
        await send(_start(answer.status, headers))
        content, sent = b"", 0
        async with aclosing(body):
            async for chunk in body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                sent += len(chunk)
    else:
        if not isinstance(body, bytes | str):
            body = json.dumps(body)
            if b"content-type" not in names:
                headers.append((b"content-type", b"application/json; charset=utf-8"))
        content = body.encode() if isinstance(body, str) else body
        sent = len(content)
        if b"content-length" not in names and answer.status not in _BODILESS:
            headers.append((b"content-length", b"%d" % sent))
        await send(_start(answer.status, headers))
    announced = int(names.get(b"content-length", sent))
    if announced > sent and request.method != "HEAD" and answer.status not in _BODILESS:
        await send({"type": "http.response.body", "body": content, "more_body": True})
        return
    request.answered = True
    await send({"type": "http.response.body", "body": content})


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _unless_client_leaves(
    request: RecordedRequest, receive: Receive, answering: Coroutine[Any, Any, None]
) -> None:
    work, leaving = asyncio.ensure_future(answering), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        # A server says "disconnected" after a whole answer, too.
        if work.done() or request.answered:
            await work
        else:
            request.disconnected = True
    finally:
        work.cancel()
        leaving.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
