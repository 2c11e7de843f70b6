"""The whole of it on real sockets: a caller, the middleware on uvicorn, Auth0 and a provider's API.

Everything that tests of the way through need, built from the doubles that users have too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

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
            authenticator=options.pop("authenticator", JWTAuthenticator(issuer=auth0.issuer, audience=AUDIENCE)),
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
