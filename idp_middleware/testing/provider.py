"""A recording provider API in the manner of GitHub's, with the awkward answers that a proxy must get right.

Knows which tokens it takes and whose they are. Knows nothing of the middleware.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qsl

from idp_middleware.testing._double import Answer, Double
from idp_middleware.testing._recording import RecordedRequest

BLOCK = bytes(range(256)) * 256
"""What `/bytes` and `/chunked` send again and again: 64 KiB, one object however much is streamed."""

_BINARY = ("Content-Type", "application/octet-stream")


class ProviderAPI(Double):
    """A provider's API as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `GET /user` | the owner of the token |
    | `GET /user/repos` | two pages, tied together by a `Link` field with absolute URLs |
    | any `/echo/…` | JSON of what arrived: method, target, headers, size and sha256 of the body |
    | `PUT` or `POST /upload` | JSON: size and sha256 of the body |
    | `GET /bytes/{n}`, `/chunked/{n}` | n bytes, with Content-Length or chunked |
    | `GET /slow?chunks=5&delay=0.2` | a stream with gaps of `delay` seconds |
    | `GET /events?chunks=5&delay=0.2` | the same as server-sent events |
    | any `/status/{code}` | that status |
    | `GET /set-cookie` | two cookies |
    | `GET /redirect?to=…` | 302 to there |
    | `GET /die?after=10` | breaks off after so many bytes of a longer body; needs a real server |

    Every request passes until a token is registered with `accept`; then only registered ones do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[str, str] = {}
        self._expiries: dict[str, float] = {}
        self._revoked: set[str] = set()
        self._open = True

    def accept(self, token: str, login: str = "alice", *, expires_in: float | None = None) -> None:
        """Take this token, as that of `login`; from now on, all that are not registered are refused.

        It is taken for `expires_in` seconds, where given.
        """
        self._owners[token] = login
        self._expiries[token] = math.inf if expires_in is None else time.time() + expires_in
        self._revoked.discard(token)
        self._open = False

    def revoke(self, token: str) -> None:
        """Refuse this token from now on."""
        self._owners.pop(token, None)
        self._revoked.add(token)

    def tokens_seen(self) -> list[str]:
        """The bearer tokens that came, each once, in the order of their first use."""
        return list(dict.fromkeys(request.bearer for request in self.requests if request.bearer))

    def answer(self, request: RecordedRequest) -> Answer:
        if request.bearer in self._revoked or not (self._open or self._takes(request.bearer)):
            sent = request.header("authorization") is not None
            return _error(401, "Bad credentials" if sent else "Requires authentication")
        try:
            return self._endpoint(request, dict(parse_qsl(request.query))) or _error(404, "Not Found")
        except ValueError:
            return _error(422, "Validation Failed")

    def _takes(self, token: str | None) -> bool:
        return token in self._owners and time.time() < self._expiries[token]

    def _endpoint(self, request: RecordedRequest, query: dict[str, str]) -> Answer | None:
        match request.method, request.path.split("/")[1:]:
            case _, ["echo", *_]:
                return Answer(200, _seen(request))
            case _, ["status", code]:
                return _status(int(code))
            case (("PUT" | "POST"), ["upload"]):
                return Answer(200, {"size": request.size, "sha256": request.sha256})
            case (("GET" | "HEAD"), path):
                return self._page(request, path, query)
        return None

    def _page(self, request: RecordedRequest, path: list[str], query: dict[str, str]) -> Answer | None:
        match path:
            case ["user"]:
                return Answer(200, {"login": self._owners.get(request.bearer or "", "anyone"), "type": "User"})
            case ["user", "repos"]:
                return _repositories(f"{request.scheme}://{request.header('host')}", int(query.get("page", "1")))
            case ["bytes", n]:
                return Answer(200, _blocks(_size(n)), [_BINARY, ("Content-Length", n)])
            case ["chunked", n]:
                return Answer(200, _blocks(_size(n)), [_BINARY])
            case ["slow"]:
                return Answer(200, _gaps(query, "chunk {}\n"), {"Content-Type": "text/plain"})
            case ["events"]:
                headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
                return Answer(200, _gaps(query, "id: {0}\ndata: event {0}\n\n"), headers)
            case ["set-cookie"]:
                cookies = ["session=upstream; Path=/; HttpOnly; Secure", "theme=dark; Domain=example.com; Path=/"]
                return Answer(200, {}, [("Set-Cookie", cookie) for cookie in cookies])
            case ["redirect"]:
                return Answer(302, b"", {"Location": query.get("to", "/user")})
            case ["die"]:
                after = _size(query.get("after", "10"))
                return Answer(200, _blocks(after), [_BINARY, ("Content-Length", str(after + 1000))])
        return None


def _seen(request: RecordedRequest) -> dict[str, Any]:
    return {
        "method": request.method,
        "target": request.target.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
        "size": request.size,
        "sha256": request.sha256,
    }


def _status(code: int) -> Answer:
    if not 200 <= code <= 599:
        raise ValueError(code)
    return Answer(code, b"" if code in (204, 205, 304) else {"status": code})


def _repositories(base: str, page: int) -> Answer:
    if page not in (1, 2):
        return Answer(200, [])
    other, relations = (2, ("next", "last")) if page == 1 else (1, ("prev", "first"))
    link = ", ".join(f'<{base}/user/repos?page={other}>; rel="{relation}"' for relation in relations)
    body = [{"id": number, "name": f"repository-{number}"} for number in (page * 2 - 1, page * 2)]
    return Answer(200, body, {"Link": link})


def _size(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


async def _blocks(total: int) -> AsyncGenerator[bytes, None]:
    for _ in range(total // len(BLOCK)):
        yield BLOCK
    if rest := total % len(BLOCK):
        yield BLOCK[:rest]


def _gaps(query: dict[str, str], template: str) -> AsyncGenerator[bytes, None]:
    # Read before the head is sent, while a wrong number can still be an answer.
    chunks, delay = _size(query.get("chunks", "5")), float(query.get("delay", "0.2"))

    async def stream() -> AsyncGenerator[bytes, None]:
        for number in range(chunks):
            if number:
                await asyncio.sleep(delay)
            yield template.format(number).encode()

    return stream()


def _error(status: int, message: str) -> Answer:
    documentation = "https://docs.github.com/rest"
    return Answer(status, {"message": message, "documentation_url": documentation, "status": str(status)})
