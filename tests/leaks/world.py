"""The parties of one scenario, with a canary for every secret and a sink for every way out.

    the caller  ←→  the gateway (any set-up of it)  ←→  the upstream (a tap)
                          ↑↓
              the identity provider (an `Authority`)

All of it on real sockets; the gateway's process is the test's, so what it logs, prints and leaves in files is there to
be looked at.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from aiocache import SimpleMemoryCache
from starlette.requests import HTTPConnection

from idp_middleware import IdPMiddleware
from idp_middleware._answers import problem_response
from idp_middleware.testing import RunningServer, serve
from tests.leaks.authority import USERS, Authority, everything_of, seeded
from tests.leaks.canaries import Canaries
from tests.leaks.sinks import FILES, SINKS, LogSink, Sinks, Tap, fields, files_under, heads, logging_everything, report
from tests.leaks.watching import Watching
from tests.stack import raw_upstream

API_KEY_FIELD = "X-Api-Key"

# Every ASGI frame has the caller's request as its `scope`, the server's own included: who records local variables has
# that. And a `Caller` says who it is.
IN_REPORTS = frozenset(
    f"{user}'s {what}" for user in USERS for what in ("token", "opaque token", "session cookie", "id")
)


@dataclass(frozen=True)
class SetUp:
    """One way to configure the gateway, and which secret goes where in it.

    `make` gives the arguments of `IdPMiddleware`; `credentials` the header lines that a user sends. `serves` names the
    tokens of a user that the upstream gets, with `scheme`, and `asked` what the identity provider gets, by path.
    `around` are ASGI middlewares outside of ours.
    """

    name: str
    make: Callable[[World], dict[str, Any]]
    credentials: Callable[[World, str], list[str]]
    serves: tuple[str, ...] = ("{user}'s provider token", "{user}'s second provider token")
    scheme: str = "Bearer"
    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    around: Callable[[World, Any], Any] = lambda world, app: app
    comes_back: tuple[str, ...] = ()


class Leak(NamedTuple):
    """A secret in the wrong place."""

    canary: str
    sink: str
    encoding: str


@dataclass(frozen=True)
class Answer:
    """What the caller received."""

    status: int
    data: bytes


@dataclass
class World:
    """See the module."""

    set_up: SetUp
    folder: Path
    canaries: Canaries
    sinks: Sinks
    authority: Authority
    tap: Tap
    log: LogSink | None = None
    idp: RunningServer | None = None
    api_url: str = ""
    patience: float = 10.0
    """Seconds that the gateway waits for an answer of the identity provider or the upstream."""
    gateway: RunningServer | None = None
    middleware: IdPMiddleware | None = None
    watching: Watching = field(default_factory=Watching)
    shared: SimpleMemoryCache = field(default_factory=SimpleMemoryCache)
    """What the gateway's token cache keeps things in; in the place of one that others can read."""
    also_belongs: set[tuple[str, str]] = field(default_factory=set)
    """Sink and canary, where a scenario is about the one being in the other."""

    @property
    def idp_url(self) -> str:
        assert self.idp is not None
        return self.idp.url

    def request(
        self,
        method: str = "GET",
        target: str = "/idp/github/user",
        *lines: str,
        user: str = "alice",
        body: bytes = b"",
        credentials: bool = True,
    ) -> bytes:
        """A user's request, with everything that a user may send along."""
        sent = [f"{method} {target} HTTP/1.1", "Host: app.example", f"X-For: {user}"]
        if credentials:
            sent += self.set_up.credentials(self, user)
        if not any(line.lower().startswith("cookie:") for line in sent):
            sent.append("Cookie: session=" + self.canaries.of(user, "session cookie"))
        if body:
            sent.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*sent, *lines, "Connection: close", "", ""]).encode("latin-1") + body

    def ask(self, *args: Any, **options: Any) -> Answer:
        """Send a request, and take in all that comes back until the gateway closes."""
        return self.exchange(self.request(*args, **options))

    def exchange(self, data: bytes, *, stop_after: int | None = None, timeout: float = 20.0) -> Answer:
        """Send these bytes; `stop_after` so many of the answer, the caller leaves."""
        assert self.gateway is not None
        received = b""
        with socket.create_connection(("127.0.0.1", self.gateway.port), timeout) as connection, suppress(OSError):
            connection.sendall(data)
            while stop_after is None or len(received) < stop_after:
                chunk = connection.recv(65536)
                if not chunk:
                    break
                received += chunk
        belongs = {name for user in USERS for name in self._named(self.set_up.comes_back, user)}
        self.sinks.put("the caller", received, belongs=self._allowed("the caller", belongs))
        status = re.match(rb"HTTP/1\.1 (\d{3})", received)
        return Answer(int(status[1]) if status else 0, received)

    def token_of(self, user: str) -> bytes:
        """What the upstream gets for a user now."""
        name = self._named(self.set_up.serves, user)[0]
        return self.canaries[name].encode() if name in self.canaries else b""

    def leaks(self) -> set[Leak]:
        """Every canary in a sink where it does not belong."""
        return {
            Leak(find.canary, sink, find.encoding)
            for sink in SINKS
            for data, belongs in self.sinks.everything(sink)
            for find in self.canaries.find(data)
            if find.canary not in belongs
        }

    def collect(self) -> None:
        """Put into the sinks what others have kept: the upstream, the identity provider, the folder."""
        self._learn_the_management_tokens()
        for arrived in self.tap.arrived:
            self._collect_upstream(bytes(arrived))
        for request in self.authority.requests:
            belongs = {
                name
                for prefix, names in self.set_up.asked.items()
                if request.path.startswith(prefix)
                for user in USERS
                for name in self._named(names, user)
            }
            # It is who keeps the users.
            belongs |= {f"{user}'s id" for user in USERS}
            self.sinks.put(
                "the identity provider",
                everything_of(request),
                belongs=self._allowed("the identity provider", belongs),
            )
        for name, content in files_under(self.folder):
            self.sinks.put(FILES, name.encode() + b"\n" + content)
        self.sinks.put(FILES, repr(self.shared._cache))
        self.watching.collect(self.sinks)

    def _collect_upstream(self, arrived: bytes) -> None:
        """All but the one `Authorization` that each request has to have; and whether it has that."""
        rest = arrived
        for head in heads(arrived):
            named = fields(head)
            sent = [value for name, value in named if name == b"authorization"]
            (user,) = [value.decode() for name, value in named if name == b"x-for"]
            right = [self.canaries[name] for name in self._named(self.set_up.serves, user) if name in self.canaries]
            if len(sent) == 1:
                rest = rest.replace(head, head.replace(sent[0], self._less(sent[0], right), 1), 1)
        self.sinks.put("the upstream", rest, belongs=self._allowed("the upstream", {"API key of the route"}))

    def _less(self, sent: bytes, right: list[str]) -> bytes:
        """What an `Authorization` has in it besides the one token that it should have."""
        if self.set_up.scheme == "OAuth":
            # RFC 5849 section 3.5.1.
            for token in right:
                sent = sent.replace(f'oauth_token="{quote(token, safe="~")}"'.encode(), b"", 1)
            return sent
        return b"" if sent in {f"{self.set_up.scheme} {token}".encode() for token in right} else sent

    def _learn_the_management_tokens(self) -> None:
        held = [
            request.header("authorization") or ""
            for request in self.authority.requests
            if request.path.startswith("/api/v2/")
        ]
        for number, token in enumerate(dict.fromkeys(held)):
            name = "management token" if number == 0 else f"management token {number}"
            self.canaries.add(name, token, telling=token.rpartition(".")[2])
            self.also_belongs.add(("the identity provider", name))

    def _allowed(self, sink: str, belongs: set[str]) -> frozenset[str]:
        return frozenset(belongs | {name for where, name in self.also_belongs if where == sink})

    def _named(self, names: tuple[str, ...], user: str) -> list[str]:
        return [name.format(user=user) for name in names]


class Reporter:
    """What an error reporter's ASGI middleware does: report what an app lets through, and let it through."""

    def __init__(self, app: Any, sinks: Sinks, belongs: frozenset[str]) -> None:
        self.app = app
        self._sinks = sinks
        self._belongs = belongs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as exc:
            self._sinks.put("error reports", report(exc), belongs=self._belongs)
            raise


def the_app_behind(sinks: Sinks) -> Any:
    """Tells its caller all that it is told, which is the caller's own and nothing else."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        sinks.put("the app behind", repr(scope), belongs=IN_REPORTS)
        if scope["path"] == "/own":
            await client_of_its_own(scope, sinks)
        if scope["type"] == "http":
            told = repr({name: value for name, value in scope.items() if name != "headers"}).encode()
            await send({"type": "http.response.start", "status": 299, "headers": []})
            await send({"type": "http.response.body", "body": told})

    return app


async def client_of_its_own(scope: Any, sinks: Sinks) -> None:
    """The app asks the upstream itself, and looks at all that it gets: the answer, the request, or an error."""
    middleware = scope["idp_middleware"]
    caller = await middleware.authenticate(HTTPConnection(scope))
    (user,) = (value for name, value in scope["headers"] if name == b"x-for")
    client = middleware.client("github", caller)
    sinks.put("the app behind", f"{client!r} {vars(client)!r}", belongs=IN_REPORTS)
    try:
        answer = await client.post("/user", headers={"x-for": user.decode()}, content=b"its own")
        told = [answer, vars(answer), answer.headers.raw, answer.request, answer.request.headers.raw, answer.content]
        sinks.put("the app behind", repr(told), belongs=IN_REPORTS)
    except Exception as exc:
        sinks.put("error reports", report(exc), belongs=IN_REPORTS)


@contextmanager
def world(
    set_up: SetUp,
    folder: Path,
    *,
    middleware: Callable[..., IdPMiddleware] = IdPMiddleware,
    wrap: Callable[[World, Any], Any] = lambda world, app: app,
    uvicorn: Mapping[str, Any] | None = None,
    level: int = logging.DEBUG,
    patience: float = 10.0,
    in_reports: frozenset[str] = IN_REPORTS,
    change: Callable[[World, dict[str, Any]], dict[str, Any]] = lambda world, arguments: arguments,
) -> Iterator[World]:
    """A world that is running; at the end, everything that left the process is in its sinks.

    `middleware` makes the middleware, `change` changes its arguments, `wrap` puts something around it. `in_reports` are
    those canaries that may be in error reports.
    """
    canaries, sinks = seeded(), Sinks()
    authority, tap = Authority(canaries), Tap()
    made = World(set_up, folder, canaries, sinks, authority, tap, patience=patience)

    def on_error(conn: HTTPConnection, error: Any) -> Any:
        sinks.put("error reports", report(error), belongs=in_reports)
        return problem_response(conn, error)

    with ExitStack() as running:
        made.api_url = running.enter_context(raw_upstream(tap.serve))
        made.idp = running.enter_context(serve(authority))
        arguments = {"on_error": on_error, **made.watching.arguments(), **set_up.make(made)}
        made.middleware = middleware(the_app_behind(sinks), **change(made, arguments))
        app = Reporter(set_up.around(made, made.middleware), sinks, in_reports)
        made.log = running.enter_context(
            logging_everything(sinks, in_reports, not_of=f"serve {made.idp_url}", level=level)
        )
        options = {"log_level": None, "access_log": True, "timeout_graceful_shutdown": 0.2, **(uvicorn or {})}
        made.gateway = running.enter_context(serve(wrap(made, app), **options))
        yield made
        # Of requests that a caller has left, the end may be yet to come.
        made.gateway.stop()
        tap.closing.set()
        made.collect()
