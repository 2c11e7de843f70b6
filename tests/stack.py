"""The whole of it on real sockets: a caller, the middleware on uvicorn, Auth0 and a provider's API.

Everything that tests of the way through need, built from the doubles that users have too.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import httpx

from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute, sources
from idp_middleware.testing import Auth0, Identity, ProviderAPI, RunningServer, serve

AUDIENCE = "https://api.acme.example"
CLIENT = ("the-client", "the-client-secret")
USERS = {"alice": "gho_alice_provider_token", "bob": "gho_bob_provider_token"}

PARSERS = ("h11", "httptools")


@dataclass
class Stack:
    """The parties of one test."""

    auth0: Auth0
    provider: ProviderAPI
    idp: RunningServer
    api: RunningServer
    gateway: RunningServer
    middleware: IdPMiddleware

    @property
    def url(self) -> str:
        return self.gateway.url

    def token(self, user: str = "alice", **options: Any) -> str:
        """A caller's token for one of the users."""
        return self.auth0.issue_token(f"auth0|{user}", **{"audience": AUDIENCE, "scope": "read:github", **options})

    def bearer(self, user: str = "alice", **options: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(user, **options)}"}

    def client(self, user: str | None = "alice", **options: Any) -> httpx.Client:
        headers = {} if user is None else self.bearer(user)
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30, **options)

    def raw(self, data: bytes, *, timeout: float = 10.0) -> bytes:
        """What comes back for these very bytes, until the server closes or falls silent after a whole answer."""
        with socket.create_connection(("127.0.0.1", self.gateway.port), timeout) as sock:
            sock.sendall(data)
            return read_answers(sock, timeout)

    def raw_request(
        self, method: str, target: str, *fields: str, body: bytes = b"", user: str | None = "alice", close: bool = True
    ) -> bytes:
        """The bytes of a request, with the user's token unless `user` is None."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.gateway.port}", *fields]
        if user is not None:
            lines.append(f"Authorization: Bearer {self.token(user)}")
        if close:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def connect(self, *, timeout: float = 10.0) -> RawClient:
        """A connection of one's own."""
        return RawClient(self.gateway.port, timeout)

    def ask(self, method: str, target: str, *fields: str, body: bytes = b"", user: str | None = "alice") -> RawMessage:
        """The one answer to a request on a connection that stays open."""
        with self.connect() as client:
            client.send(self.raw_request(method, target, *fields, body=body, user=user, close=False))
            return client.answer(bodiless=method == "HEAD")


def read_answers(sock: socket.socket, timeout: float = 10.0) -> bytes:
    """All bytes until the peer closes."""
    received = b""
    sock.settimeout(timeout)
    try:
        while chunk := sock.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


Routes = Callable[[str, Any], dict[str, ProxyRoute]]


def one_route(api: str, source: Any) -> dict[str, ProxyRoute]:
    """The route map of most tests."""
    return {"github": ProxyRoute(api, token_source=source, connection="github", scopes={"read:github"})}


@contextmanager
def running(
    *,
    routes: Routes = one_route,
    app: Any = None,
    http: str = "httptools",
    provider: Any = None,
    wrap: Callable[[IdPMiddleware], Any] = lambda middleware: middleware,
    uvicorn: dict[str, Any] | None = None,
    schemes: Collection[str] = ("bearer",),
    **options: Any,
) -> Iterator[Stack]:
    """A stack with alice and bob known, linked and accepted."""
    auth0, provider = Auth0(), ProviderAPI() if provider is None else provider
    auth0.add_client(*CLIENT)
    for number, (user, token) in enumerate(USERS.items(), start=101):
        auth0.add_user(f"auth0|{user}", [Identity("github", str(number), access_token=token)])
        if isinstance(provider, ProviderAPI):
            provider.accept(token, login=user)
    with ExitStack() as servers:
        idp = servers.enter_context(serve(auth0))
        api = servers.enter_context(serve(provider))
        source = sources.Auth0Management(base_url=idp.url, client_id=CLIENT[0], client_secret=CLIENT[1])
        middleware = IdPMiddleware(
            app,
            routes=routes(api.url, source),
            authenticator=options.pop(
                "authenticator", JWTAuthenticator(issuer=auth0.issuer, audience=AUDIENCE, schemes=schemes)
            ),
            **options,
        )
        gateway = servers.enter_context(serve(wrap(middleware), http=http, **uvicorn or {}))
        yield Stack(auth0, provider, idp, api, gateway, middleware)


def eventually(condition: Callable[[], Any], *, within: float = 5.0) -> Any:
    """Wait for what another thread brings about; returns it, or fails."""
    end = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)
    return result


def free_port() -> int:
    """A port that was free a moment ago, for who must know it beforehand."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def raw_upstream(handler: Callable[[socket.socket], None]) -> Iterator[str]:
    """An upstream that speaks bytes: `handler` gets each connection, in a thread of its own. Yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handler(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing alone does not wake a thread in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()
        thread.join(5)


def read_head(connection: socket.socket) -> bytes:
    """A request's head, with whatever came along behind it."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            break
        received += chunk
    return received


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A request or an answer, byte for byte."""

    head: bytes
    """Start line and field lines, with the blank line."""
    body: bytes
    """Without what framed it."""
    framed: bytes
    """The body as it stood on the wire."""

    @property
    def start(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """In order; names in lower case, values without the white space around them."""
        lines = self.head.split(b"\r\n")[1:-2]
        pairs = (line.partition(b":")[::2] for line in lines)
        return [(name.lower(), value.strip(b" \t")) for name, value in pairs]

    def all(self, name: bytes) -> list[bytes]:
        """The values of all fields of a name, each on its own."""
        return [value for field, value in self.fields if field == name]

    @property
    def problem(self) -> str | None:
        """The name of the problem that an answer of ours tells of; None for anybody else's answer."""
        if self.all(b"content-type") != [b"application/problem+json"]:
            return None
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert self.all(b"cache-control") == [b"no-store"]
        assert self.all(b"proxy-status")[0].startswith(b"idp_middleware; error=")
        return str(document["type"]).removeprefix("urn:idp-middleware:problem:")


def read_message(stream: BinaryIO, *, bodiless: bool = False) -> RawMessage | None:
    """The next message; None where the peer has closed instead.

    Raises `EOFError` where it closes within one. An answer without a length ends with the connection.
    """
    head = stream.readline()
    if not head:
        return None
    while not head.endswith(b"\r\n\r\n"):
        head += _more(stream.readline())
    message = RawMessage(head, b"", b"")
    if bodiless:
        return message
    if message.all(b"transfer-encoding"):
        body = framed = b""
        while True:
            line = _more(stream.readline())
            chunk = _exactly(stream, int(line.partition(b";")[0], 16) + 2)
            framed += line + chunk
            if chunk == b"\r\n":
                return RawMessage(head, body, framed)
            body += chunk[:-2]
    lengths = message.all(b"content-length")
    if lengths:
        body = _exactly(stream, int(lengths[0]))
    else:
        has_body = head.startswith(b"HTTP/") and message.status >= 200 and message.status not in (204, 304)
        body = stream.read() if has_body else b""
    return RawMessage(head, body, body)


def _more(data: bytes) -> bytes:
    if not data:
        raise EOFError("the message was broken off")
    return data


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the message was broken off")
    return data


class RawClient:
    """A client's connection: requests are bytes, and answers are read one at a time."""

    def __init__(self, port: int, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, *, bodiless: bool = False) -> RawMessage:
        """The next answer. Raises `EOFError` where it does not come whole."""
        message = read_message(self._stream, bodiless=bodiless)
        if message is None:
            raise EOFError("closed without an answer")
        return message

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        with suppress(ConnectionResetError):
            return self._stream.read()
        return b""


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class RecordingUpstream:
    """Keeps the exact bytes of each request, and answers with `answer`, or with what that makes of the request.

    A connection is kept open unless an answer says `Connection: close`, is HTTP/1.0 or empty.
    """

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.requests: list[RawMessage] = []
        self.connections = 0
        self.answer: bytes | Callable[[RawMessage], bytes] = OK

    @property
    def last(self) -> RawMessage:
        return self.requests[-1]

    def targets(self) -> list[bytes]:
        return [request.target for request in self.requests]

    def serve(self, connection: socket.socket) -> None:
        self.connections += 1
        with connection.makefile("rb") as stream, suppress(EOFError):
            while (request := read_message(stream)) is not None:
                self.requests.append(request)
                answer = self.answer if isinstance(self.answer, bytes) else self.answer(request)
                connection.sendall(answer)
                head = answer.partition(b"\r\n\r\n")[0].lower()
                if not head.startswith(b"http/1.1") or b"connection: close" in head:
                    break


@contextmanager
def recording_upstream() -> Iterator[RecordingUpstream]:
    """A raw upstream that records and answers until the block ends."""
    recorder = RecordingUpstream()
    with raw_upstream(recorder.serve) as recorder.url:
        yield recorder
