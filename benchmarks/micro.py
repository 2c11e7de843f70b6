"""The pieces of ours, one by one, in process: what a request costs that is none of ours, a verification, a big map.

Run as a program (by the interpreter that has the package) it measures and prints JSON; through public names only.
Variants take turns, and each figure is the median over the turns, in µs of CPU per call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.processes import on_core

if TYPE_CHECKING:
    from idp_middleware import Caller, IdPMiddleware, JWTAuthenticator, Token

TURNS = 9
SECONDS = 300
ISSUER = "http://127.0.0.1:1/"
AUDIENCE = "https://api.acme.example"
ALGORITHMS = ("RS256", "ES256", "EdDSA")

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Piece:
    """`microseconds` of CPU per call; `against` is what the same call costs in the plain case, if there is one."""

    group: str
    label: str
    microseconds: float
    against: float | None = None


def run(python: str, core: int | None, *, quick: bool) -> list[Piece]:
    """Measure in a process of its own. Empty, with a word on standard error, where that fails."""
    command = [python, "-m", "benchmarks.micro", *(["--quick"] if quick else [])]
    try:
        with on_core(core):
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True, cwd=Path(__file__).parents[1]
            )
    except (OSError, subprocess.SubprocessError) as exc:
        print(f"the pieces could not be measured: {exc}", file=sys.stderr)
        return []
    return [Piece(**piece) for piece in json.loads(done.stdout)]


async def _compare(first: Call, second: Call, calls: int) -> tuple[float, float]:
    """Median µs per call of each, taking turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for call, times in zip((first, second), taken, strict=True):
            started = time.process_time_ns()
            for _ in range(calls):
                await call()
            times.append((time.process_time_ns() - started) / calls / 1000)
    return median(taken[0]), median(taken[1])


def _scope(path: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"app.example"), (b"accept", b"*/*"), *headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }


async def _send(_: MutableMapping[str, Any]) -> None:
    pass


def _receive() -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """The end of an empty body, then a client that stays."""
    told = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            await asyncio.get_running_loop().create_future()
        told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def outside_the_prefix(calls: int) -> list[Piece]:
    from idp_middleware import IdPMiddleware, ProxyRoute, sources

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({})

    async def nobody(_: Any) -> Caller:
        raise NotImplementedError

    routes = {"api": ProxyRoute("https://api.example.com", token_source=sources.Static("token"))}
    wrapped = IdPMiddleware(app, authenticator=nobody, routes=routes)
    scope, receive = _scope("/some/other/path"), _receive()
    bare, ours = await _compare(lambda: app(scope, receive, _send), lambda: wrapped(scope, receive, _send), calls)
    return [Piece("outside the prefix", "added to a request that is the wrapped app's own", ours - bare)]


async def verification(calls: int, misses: int) -> list[Piece]:
    import httpx
    from starlette.requests import HTTPConnection

    from idp_middleware import JWTAuthenticator
    from idp_middleware.testing import Auth0

    def connection(token: str) -> HTTPConnection:
        return HTTPConnection(_scope("/idp/api/user", [(b"authorization", f"Bearer {token}".encode())]))

    pieces = []
    for algorithm in ALGORITHMS:
        auth0 = Auth0(ISSUER)
        authenticator: JWTAuthenticator = JWTAuthenticator(
            issuer=ISSUER, audience=AUDIENCE, algorithms=[algorithm], transport=httpx.ASGITransport(auth0)
        )
        tokens = [
            auth0.issue_token(f"auth0|{number}", audience=AUDIENCE, scope="read:github", algorithm=algorithm)
            for number in range(misses)
        ]
        first, *fresh = [connection(token) for token in tokens]
        await authenticator.authenticate(first)
        started = time.process_time_ns()
        for each in fresh:
            await authenticator.authenticate(each)
        miss = (time.process_time_ns() - started) / len(fresh) / 1000

        async def hit(authenticator: JWTAuthenticator = authenticator, conn: HTTPConnection = first) -> None:
            await authenticator.authenticate(conn)

        seen, _ = await _compare(hit, hit, calls)
        pieces += [
            Piece("verification", f"{algorithm}, token not seen before", miss),
            Piece("verification", f"{algorithm}, token verified before", seen),
        ]
    return pieces


async def big_maps(calls: int, routes: int, users: int) -> list[Piece]:
    """The whole way but for the sockets: an instant transport stands in for the upstream."""
    one, many = _middleware(1, {}), _middleware(routes, {})
    last = _scope(f"/idp/api{routes - 1}/user")
    plain, big = await _compare(
        lambda: one(_scope("/idp/api0/user"), _receive(), _send), lambda: many({**last}, _receive(), _send), calls
    )
    pieces = [Piece("size", f"a request with {routes:,} routes instead of 1", big, plain)]

    asked: dict[str, int] = {}
    crowd = _middleware(1, asked)
    scopes = [_scope("/idp/api0/user", [(b"x-user", str(number).encode())]) for number in range(users)]
    for scope in scopes:
        await crowd(scope, _receive(), _send)
    asked.clear()
    order = random.Random(1)
    plain, big = await _compare(
        lambda: one(scopes[order.randrange(1)], _receive(), _send),
        lambda: crowd(scopes[order.randrange(users)], _receive(), _send),
        calls,
    )
    share = sum(asked.values()) / (calls * TURNS)
    label = f"a request of any of {users:,} users instead of 1 ({share:.0%} asked the source again)"
    return [*pieces, Piece("size", label, big, plain)]


async def observers(calls: int) -> list[Piece]:
    """What each adds to a request, written to nowhere; those that are not installed left out."""
    from idp_middleware.observers import AccessLog, AuditLog

    logger = logging.getLogger("idp_middleware")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    kinds: dict[str, Callable[[], Any]] = {
        "one that does nothing": lambda: lambda _: None,
        "the audit log (a kept token is no event)": AuditLog,
        "the access log": AccessLog,
    }
    with suppress(ImportError):
        from idp_middleware.prometheus import Prometheus

        kinds["Prometheus"] = Prometheus
    with suppress(ImportError):
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider

        from idp_middleware.opentelemetry import OpenTelemetry

        metering = MeterProvider([InMemoryMetricReader()])
        kinds["OpenTelemetry, no SDK"] = OpenTelemetry
        kinds["OpenTelemetry, exporting nothing"] = lambda: OpenTelemetry(
            tracer_provider=TracerProvider(), meter_provider=metering
        )
    plain, scope = _middleware(1, {}), _scope("/idp/api0/user")
    pieces = []

    async def ask(middleware: IdPMiddleware) -> None:
        await middleware({**scope}, _receive(), _send)
        # Lets what a request has begun come to its end; thousands of them would weigh on both.
        await asyncio.sleep(0)

    handler = logging.FileHandler(os.devnull)
    logger.addHandler(handler)
    for label, make in kinds.items():
        watched = _middleware(1, {}, observers=[make()])
        bare, ours = await _compare(partial(ask, plain), partial(ask, watched), calls)
        pieces.append(Piece("observers", f"added by {label}", ours - bare))
    logger.removeHandler(handler)
    handler.close()
    return pieces


def _middleware(routes: int, asked: dict[str, int], **options: Any) -> IdPMiddleware:
    """With `routes` routes, callers by the field X-User, and a count of what the source was asked."""
    import httpx

    from idp_middleware import Caller, IdPMiddleware, ProxyRoute, Token

    async def authenticate(conn: Any) -> Caller:
        return Caller(conn.headers.get("x-user", "0"))

    async def source(caller: Caller, _route: ProxyRoute) -> Token:
        asked[caller.subject] = asked.get(caller.subject, 0) + 1
        return Token(f"token-of-{caller.subject}", expires_at=time.time() + 86400)

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{}"

    class Instant(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers=[(b"content-length", b"2")], stream=Body())

    return IdPMiddleware(
        authenticator=authenticate,
        routes={f"api{number}": ProxyRoute("https://api.example.com", token_source=source) for number in range(routes)},
        transport=Instant(),
        **options,
    )


async def main(quick: bool) -> list[Piece]:
    calls = 1_000 if quick else 5_000
    return [
        *await outside_the_prefix(calls * 10),
        *await verification(calls, misses=100 if quick else 400),
        *await big_maps(calls, routes=1_000, users=10_000 if quick else 100_000),
        *await observers(calls),
    ]


if __name__ == "__main__":
    print(json.dumps([asdict(piece) for piece in asyncio.run(main("--quick" in sys.argv))]))
