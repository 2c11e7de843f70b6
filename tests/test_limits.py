"""How many requests may be under way on a route, and of each caller; and that no slot is ever lost."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

from idp_middleware import ProxyRoute, Timeout, Token, errors, sources
from tests.stack import PARSERS, USERS, eventually, running

STREAM = "/idp/github/slow?chunks=10000&delay=0.05"


def limited(**limits):
    def routes(api, source):
        names = ("github", "other")
        return {name: ProxyRoute(api, token_source=source, connection="github", **limits) for name in names}

    return routes


@contextmanager
def streams(stack, *users, path=STREAM):
    """Streams under way, one for each of the users named."""
    with ExitStack() as opened:
        for user in users:
            client = opened.enter_context(stack.client(user))
            answer = opened.enter_context(client.stream("GET", path))
            assert answer.status_code == 200
        yield


def outcome(stack, user="alice", path="/idp/github/user"):
    with stack.client(user) as client:
        answer = client.get(path)
    return answer.status_code if answer.status_code < 400 else outcome_of(answer)


def outcome_of(answer):
    return (answer.status_code, answer.json()["type"].rpartition(":")[2], answer.headers["retry-after"])


OVERLOADED = (503, "route-overloaded", "1")
TOO_MANY = (429, "too-many-requests", "1")


@pytest.mark.parametrize("http", PARSERS)
def test_a_route_takes_so_many_at_a_time(http):
    """Whoever's they are, streams for as long as they run; other routes are another matter."""
    with running(routes=limited(max_concurrent=2), http=http) as stack:
        with streams(stack, "alice", "bob"):
            assert [outcome(stack, user) for user in USERS] == [OVERLOADED] * 2
            assert outcome(stack, path="/idp/other/user") == 200
            assert stack.provider.count("/user") == 1
        eventually(lambda: outcome(stack) == 200)


def test_a_caller_takes_so_many_at_a_time():
    """So that one user's page with a hundred tabs is not everybody's trouble."""
    with running(routes=limited(max_concurrent=3, max_concurrent_per_caller=2)) as stack:
        with streams(stack, "alice", "alice"):
            assert (outcome(stack), outcome(stack, "bob")) == (TOO_MANY, 200)
            with streams(stack, "bob"):
                assert (outcome(stack), outcome(stack, "bob")) == (TOO_MANY, OVERLOADED)
        eventually(lambda: outcome(stack) == 200)


def test_who_is_turned_away_costs_nobody_anything():
    """No token is asked for, and the body that comes along is not read."""
    asked = []

    async def source(caller, route):
        asked.append(caller.subject)
        return Token(USERS[caller.subject.removeprefix("auth0|")])

    def routes(api, _):
        return {"github": ProxyRoute(api, token_source=source, max_concurrent=1)}

    with running(routes=routes) as stack, streams(stack, "alice"):
        answer = stack.ask("POST", "/idp/github/echo/x", "Content-Length: 100000000", user="bob")
        assert (answer.status, answer.problem) == (503, "route-overloaded")
        assert asked == ["auth0|alice"]
        # Who may not do it at all is told that, as ever.
        with stack.client(None) as client:
            assert client.get("/idp/github/user").status_code == 401


def test_websockets_count_until_they_end():
    """They hold a connection as any stream does."""

    def echo(connection):
        for message in connection:
            connection.send(message)

    with serve_websockets(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]

        def routes(api, _):
            route = ProxyRoute(
                f"http://127.0.0.1:{port}",
                token_source=sources.Static("t"),
                websocket=True,
                max_concurrent=2,
                max_concurrent_per_caller=1,
            )
            return {"ws": route}

        with running(routes=routes, uvicorn={"ws": "websockets-sansio"}) as stack:
            url = f"ws://127.0.0.1:{stack.gateway.port}/idp/ws/"

            def opened(user):
                return connect(url, additional_headers=stack.bearer(user), proxy=None)

            with opened("alice") as mine, opened("bob"):
                mine.send("hello")
                assert mine.recv(timeout=5) == "hello"
                with pytest.raises(InvalidStatus) as caught:
                    opened("alice")
                assert caught.value.response.status_code == 429

            def again():
                with suppress(InvalidStatus), opened("alice"):
                    return True
                return False

            eventually(again)
        server.shutdown()


def test_no_slot_is_lost_however_requests_end():
    """Callers who leave at any moment, upstreams and sources that fail in any way: afterwards there is room for all."""
    outcomes = random.Random(7)
    failing = True

    async def source(caller, route):
        if failing and outcomes.random() < 0.3:
            raise outcomes.choice([errors.IdentityNotLinked("none"), LookupError("a mistake")])
        return Token(USERS[caller.subject.removeprefix("auth0|")])

    def routes(api, _):
        limits = {"max_concurrent": 3, "max_concurrent_per_caller": 2, "max_body": 200_000}
        timeout = Timeout(read=0.2)
        return {
            "github": ProxyRoute(api, token_source=source, timeout=timeout, **limits),
            "dead": ProxyRoute("http://127.0.0.1:9", token_source=source, **limits),
        }

    targets = [
        "/github/user", "/github/bytes/3000000", "/github/slow?chunks=3&delay=0.02", "/github/die?after=100000",
        "/github/slow?chunks=2&delay=1", "/github/status/401", "/github/status/204", "/dead/x",
    ]  # fmt: skip

    with running(routes=routes) as stack:

        def one(seed):
            mine = random.Random(seed)
            method = mine.choice(["GET", "GET", "POST", "PUT"])
            body = b"x" * mine.choice([0, 10, 100_000, 300_000]) if method != "GET" else b""
            length = [f"Content-Length: {len(body) + mine.choice([0, 0, 50])}"] if body else []
            user = mine.choice([*USERS, None])
            request = stack.raw_request(method, "/idp" + mine.choice(targets), *length, body=body, user=user)
            with suppress(OSError), stack.connect(timeout=3) as client:
                client.send(request[: mine.choice([len(request), len(request), len(request) // 2])])
                client.socket.settimeout(mine.choice([0.01, 0.1, 0.5, 1]))
                # Some read to the end, some a little, some reset the connection.
                for _ in range(mine.choice([0, 1, 1000])):
                    if not client.socket.recv(65536):
                        break
                if mine.random() < 0.3:
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        def many(first):
            for seed in range(first, first + 9):
                one(seed)

        threads = [threading.Thread(target=many, args=(n * 1000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        failing = False
        with ExitStack() as held:
            long = "/idp/github/slow?chunks=400&delay=0.05"

            def another(user):
                client = held.enter_context(stack.client(user))
                answer = client.send(client.build_request("GET", long), stream=True)
                held.callback(answer.close)
                return answer.status_code == 200

            for user in ("alice", "alice", "bob"):
                eventually(lambda user=user: another(user), within=15)
            # And there are no more of them than there were.
            assert (outcome(stack), outcome(stack, "bob")) == (TOO_MANY, OVERLOADED)


class Held:
    """A source that gives and takes back as soon as it may: how many of both are under way."""

    def __init__(self):
        self.open = threading.Event()
        self.revoking = self.asking = 0

    async def token(self, caller, route, *, refused=None):
        self.asking += 1
        await self._may()
        self.asking -= 1
        return Token(USERS[caller.subject.removeprefix("auth0|")])

    async def revoke(self, caller, route):
        self.revoking += 1
        await self._may()
        self.revoking -= 1

    async def _may(self):
        while not self.open.is_set():  # noqa: ASYNC110 (it is set by another thread)
            await asyncio.sleep(0.01)


@contextmanager
def held(**limits):
    """A stack with such a source, and a way to leave requests of a user under way; they are answered in the end."""
    source = Held()

    def routes(api, _):
        names = ("github", "other")
        return {name: ProxyRoute(api, token_source=source, connection="github", **limits) for name in names}

    with running(routes=routes) as stack, ThreadPoolExecutor(20) as pool:

        def begin(method, path, user="alice"):
            return pool.submit(lambda: status(stack, method, path, user))

        try:
            yield stack, source, begin
        finally:
            source.open.set()


def status(stack, method, path, user="alice", **options):
    with stack.client(user) as client:
        answer = client.request(method, path, **options)
    return answer.status_code if answer.status_code != 429 else outcome_of(answer)


def impatient(stack, *request):
    try:
        return status(stack, *request, timeout=0.5)
    except httpx.TimeoutException:
        return "it waits"


def test_a_caller_revokes_so_many_times_at_a_time():
    """Each may go to the provider. On another route, and for others, that is another matter."""
    with held() as (stack, source, begin):
        under_way = [begin("DELETE", "/idp/github/token") for _ in range(4)]
        eventually(lambda: source.revoking == 4)
        assert status(stack, "DELETE", "/idp/github/token") == TOO_MANY
        elsewhere = [begin("DELETE", "/idp/other/token"), begin("DELETE", "/idp/github/token", "bob")]
        eventually(lambda: source.revoking == 6)
        source.open.set()
        assert [each.result(10) for each in (*under_way, *elsewhere)] == [204] * 6
        assert status(stack, "DELETE", "/idp/github/token") == 204


def test_a_revocation_counts_until_its_end_though_its_caller_leaves():
    """It goes on; whoever leaves at once could else begin any number of them."""
    with held() as (stack, source, _):
        for number in range(4):
            with stack.connect() as client:
                client.send(stack.raw_request("DELETE", "/idp/github/token", close=False))
                eventually(lambda number=number: source.revoking == number + 1)
        # Leaving is noticed a moment later.
        time.sleep(0.3)
        assert status(stack, "DELETE", "/idp/github/token") == TOO_MANY
        source.open.set()
        eventually(lambda: status(stack, "DELETE", "/idp/github/token") == 204)


def test_a_revocation_needs_no_slot_of_its_route():
    """Who holds all of them with a stolen token must not keep its owner from having it revoked."""
    with held(max_concurrent=1, max_concurrent_per_caller=1) as (stack, source, _):
        source.open.set()
        with streams(stack, "alice"):
            assert outcome(stack) == TOO_MANY
            assert status(stack, "DELETE", "/idp/github/token") == 204
            assert status(stack, "GET", "/idp") == 200


def test_a_caller_looks_so_many_times_at_a_time():
    """Each look may ask for the tokens of all routes. Who leaves gives the place back."""
    with held() as (stack, source, begin):
        with ExitStack() as leaving:
            for _ in range(4):
                client = leaving.enter_context(stack.connect())
                client.send(stack.raw_request("GET", "/idp", close=False))
            eventually(lambda: impatient(stack, "GET", "/idp") == TOO_MANY)
            bobs = begin("GET", "/idp", "bob")
            # One question for each user and route, whoever waits for it.
            eventually(lambda: source.asking == 4)
        eventually(lambda: impatient(stack, "GET", "/idp") == "it waits")
        source.open.set()
        assert bobs.result(10) == 200
        eventually(lambda: status(stack, "GET", "/idp") == 200)


@pytest.mark.parametrize("limit", ["max_concurrent", "max_concurrent_per_caller"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "10"])
def test_a_limit_that_lets_nobody_in_is_a_mistake(limit, value):
    """To close a route, take it out."""
    with pytest.raises(errors.ConfigurationError) as caught:
        ProxyRoute("https://api.example.com", token_source=sources.Static("t"), **{limit: value})
    assert caught.value.key == limit


def test_the_apps_own_client_is_not_limited():
    """What an app asks itself is its own affair, as with the rest of what a route allows callers."""
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            idp = scope["idp_middleware"]
            caller = await idp.authenticate(HTTPConnection(scope))
            async with idp.client("github", caller) as client:
                seen.append((await client.get("/user")).status_code)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    with (
        running(routes=limited(max_concurrent=1), app=app) as stack,
        streams(stack, "alice"),
        stack.client() as client,
    ):
        assert client.get("/own").status_code == 204
    assert seen == [200]
