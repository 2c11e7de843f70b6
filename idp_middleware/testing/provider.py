"""A recording provider API, in the manner of GitHub's, with the awkward endpoints that a proxy must get right.

Knows which tokens it takes and whose they are. Knows nothing of the middleware.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import parse_qsl

from idp_middleware.testing._double import Answer, Double, Payload, RecordedRequest, _Rule, raw_headers

BLOCK = bytes(range(256)) * 256
"""What `/bytes` and `/chunked` send again and again: 64 KiB, one object however much is streamed."""

_DOCS = "https://docs.github.com/rest"


class ProviderAPI(Double):
    """A provider's API as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `GET /user` | the owner of the token |
    | `GET /user/repos` | two pages, linked by a `Link` field with absolute URLs |
    | any `/echo/…` | JSON of what arrived: method, target, headers, size and sha256 of the body |
    | `PUT`, `POST /upload` | JSON: size and sha256 of the body |
    | `GET /bytes/{n}`, `/chunked/{n}` | n bytes, with Content-Length or chunked |
    | `GET /slow?chunks=5&delay=0.2` | a stream with gaps of `delay` seconds |
    | `GET /events?chunks=5&delay=0.2` | the same as server-sent events |
    | any `/status/{code}` | that status |
    | `GET /set-cookie` | two cookies |
    | `GET /redirect?to=…` | 302 to there |
    | `GET /die?after=N` | breaks off after N bytes of more; needs a real server |

    Every token passes until one is registered with `accept`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[str, str] = {}
        self._revoked: set[str] = set()
        self._open = True

    def accept(self, token: str, login: str = "alice") -> None:
        """Take this token, as that of `login`; from now on, all others are refused."""
        self._open = False
        self._owners[token] = login
        self._revoked.discard(token)

    def revoke(self, token: str) -> None:
        """Refuse this token from now on."""
        self._owners.pop(token, None)
        self._revoked.add(token)

    def tokens_seen(self) -> list[str]:
        """The bearer tokens that came, each once, in the order of their first use."""
        return list(dict.fromkeys(request.bearer for request in self.requests if request.bearer))

    def respond(
        self,
        path_prefix: str,
        *,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
        body: Payload = b"",
        times: int | None = None,
    ) -> None:
        """Answer with this instead, whatever the token: the next `times` requests or all of them."""
        self._rules.append(_Rule(path_prefix, times, status=status, body=body, headers=raw_headers(headers)))

    def reset_responses(self) -> None:
        """Answer as usual again."""
        self._rules.clear()

    def answer(self, request: RecordedRequest) -> Answer:
        if request.bearer in self._revoked or not (self._open or request.bearer in self._owners):
            known = request.header("authorization") is not None
            return _error(401, "Bad credentials" if known else "Requires authentication")
        query = dict(parse_qsl(request.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True))
        try:
            return self._endpoint(request, query) or _error(404, "Not Found")
        except ValueError:
            return _error(422, "Validation Failed")

    def _endpoint(self, request: RecordedRequest, query: dict[str, str]) -> Answer | None:
        parts = request.path.split("/")[1:]
        if parts[0] == "echo":
            return Answer(200, _seen(request))
        if parts[0] == "status" and len(parts) == 2:
            return _status(int(parts[1]))
        if parts == ["upload"] and request.method in ("PUT", "POST"):
            return Answer(200, {"size": request.size, "sha256": request.sha256})
        if request.method not in ("GET", "HEAD"):
            return None
        match parts:
            case ["user"]:
                login = self._owners.get(request.bearer or "", "anyone")
                return Answer(200, {"login": login, "type": "User"})
            case ["user", "repos"]:
                return _repositories(f"{request.scheme}://{request.header('host')}", int(query.get("page", "1")))
            case ["bytes", n]:
                return Answer(200, _blocks(int(n)), [*_BINARY, (b"content-length", b"%d" % int(n))])
            case ["chunked", n]:
                return Answer(200, _blocks(int(n)), list(_BINARY))
            case ["slow"]:
                return Answer(200, _gaps(query, "chunk {}\n"), raw_headers([("content-type", "text/plain")]))
            case ["events"]:
                fields = [("content-type", "text/event-stream"), ("cache-control", "no-cache")]
                return Answer(200, _gaps(query, "id: {0}\ndata: event {0}\n\n"), raw_headers(fields))
            case ["set-cookie"]:
                cookies = ["session=upstream; Path=/; HttpOnly; Secure", "theme=dark; Domain=example.com; Path=/"]
                return Answer(200, {}, raw_headers([("set-cookie", cookie) for cookie in cookies]))
            case ["redirect"]:
                return Answer(302, b"", raw_headers([("location", query.get("to", "/user"))]))
            case ["die"]:
                after = int(query.get("after", "10"))
                return Answer(200, _blocks(after), [*_BINARY, (b"content-length", b"%d" % (after + 1000))])
        return None


_BINARY = [(b"content-type", b"application/octet-stream")]


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
    return Answer(200, body, raw_headers([("link", link)]))


async def _blocks(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // len(BLOCK)):
        yield BLOCK
    if rest := total % len(BLOCK):
        yield BLOCK[:rest]


def _gaps(query: dict[str, str], template: str) -> AsyncIterator[bytes]:
    chunks, delay = int(query.get("chunks", "5")), float(query.get("delay", "0.2"))

    async def stream() -> AsyncIterator[bytes]:
        for number in range(chunks):
            if number:
                await asyncio.sleep(delay)
            yield template.format(number).encode()

    return stream()


def _error(status: int, message: str) -> Answer:
    return Answer(status, {"message": message, "documentation_url": _DOCS, "status": str(status)})
