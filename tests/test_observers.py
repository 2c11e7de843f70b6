"""What observers are told, and what they can't do to a request."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from contextlib import nullcontext
from contextvars import copy_context
from datetime import datetime

import pytest
from aiocache import SimpleMemoryCache
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, Token, TokenCache, sources
from idp_middleware.errors import ConfigurationError, TokenSourceUnavailable
from idp_middleware.observers import (
    AccessLog,
    AuditLog,
    CacheRecord,
    CircuitRecord,
    RequestRecord,
    TokenRecord,
    digest,
    log_to_stdout,
)
from idp_middleware.testing import Identity
from tests.stack import USERS, eventually, raw_upstream, read_head, running

ALICE = "auth0|alice"


class Kept(list):
    """An observer that keeps what it is told."""

    __call__ = list.append

    @property
    def requests(self):
        return [record for record in self if isinstance(record, RequestRecord)]

    @property
    def events(self):
        return [(record.event, record.problem) for record in self if isinstance(record, TokenRecord)]

    def request(self, number=1):
        """The last of so many, which is about to be here."""
        return eventually(lambda: len(self.requests) == number and self.requests)[-1]


def from_function(source, **options):
    """Routes with this async function as the token source."""
    return lambda api, _: {"github": ProxyRoute(api, token_source=source, **options)}


async def a_token(caller, route):
    return Token(USERS["alice"], expires_at=time.time() + 3600)


def test_a_request_is_told_of_once_it_is_over():
    """Everything a dashboard or an access log asks, at once."""
    kept = Kept()
    with running(observers=[kept]) as stack, stack.client() as client:
        answer = client.post("/idp/github/user/repos?secret=1", content=b"12345")
        record = kept.request()
        caller = digest(stack.auth0.issuer, ALICE)
    assert (record.route, record.method, record.status) == ("github", "POST", answer.status_code)
    assert (record.bytes_in, record.bytes_out) == (5, len(answer.content))
    assert (record.caller, record.problem, record.token) == (caller, None, "source")
    assert (record.ended, record.upgraded) == ("whole", False)
    assert min(record.authenticate, record.token_wait, record.upstream) > 0
    assert record.total >= record.authenticate + record.token_wait + record.upstream


def test_each_token_has_a_place_that_it_came_from():
    """The hit rate of the cache is what sizing starts from."""
    kept = Kept()
    with running(observers=[kept]) as stack, stack.client() as client:
        for number in (1, 2):
            client.get("/idp/github/user")
            kept.request(number)
    assert [record.token for record in kept.requests] == ["source", "held"]
    assert kept.events == [("obtained", None)]


def test_a_token_that_another_worker_has_got_is_told_apart():
    """A shared cache that never hits is a misconfigured one."""
    kept, backend = Kept(), SimpleMemoryCache()

    class Source:
        identity = ("the same everywhere",)
        cache_key = staticmethod(lambda caller, route: (caller.subject,))
        token = staticmethod(lambda caller, route, refused=None: a_token(caller, route))

    for number in (1, 2):
        options = {"routes": from_function(Source()), "cache": TokenCache(backend), "observers": [kept]}
        with running(**options) as stack, stack.client() as client:
            assert client.get("/idp/github/user").status_code == 200
            kept.request(number)
    assert [record.token for record in kept.requests] == ["source", "shared"]
    assert kept.events == [("obtained", None)]


def test_a_request_that_waits_for_another_ones_token_is_told_apart():
    """A herd behind one slow question to the identity provider is not a herd of questions."""
    kept, asked = Kept(), threading.Event()

    async def slow(caller, route):
        asked.set()
        await asyncio.sleep(0.5)
        return await a_token(caller, route)

    def ask():
        with stack.client() as client:
            client.get("/idp/github/user")

    with running(routes=from_function(slow), observers=[kept]) as stack:
        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert asked.wait(5)
        threads[1].start()
        for thread in threads:
            thread.join()
        kept.request(2)
    assert sorted(record.token for record in kept.requests) == ["joined", "source"]


@pytest.mark.parametrize(
    ("target", "user", "route", "problem"),
    [
        ("/idp/nowhere/user", "alice", None, "route-not-found"),
        ("/idp/github/user", None, "github", "caller-unauthenticated"),
        ("/idp/github/../user", "alice", "github", "bad-request"),
    ],
)
def test_answers_of_ours_are_told_by_their_problem(target, user, route, problem):
    """And a route that is none has no name: anybody could make up as many as a metrics store has room for."""
    kept = Kept()
    with running(observers=[kept]) as stack:
        answer = stack.ask("GET", target, user=user)
        record = kept.request()
    assert (record.route, record.problem, record.status) == (route, problem, answer.status)
    assert record.token is None


def test_a_refused_token_and_the_one_in_its_place_are_told():
    """That is what an auditor asks about first."""
    kept = Kept()
    with running(observers=[kept]) as stack, stack.client() as client:
        client.get("/idp/github/user")
        stack.provider.revoke(USERS["alice"])
        stack.provider.accept("gho_new", login="alice")
        stack.auth0.unlink(ALICE, "github")
        stack.auth0.link(ALICE, Identity("github", "101", access_token="gho_new"))
        assert client.get("/idp/github/user").status_code == 200
        kept.request(2)
    assert [record.token for record in kept.requests] == ["source", "renewed"]
    assert kept.events == [("obtained", None), ("refused", None), ("renewed", None)]


def test_a_token_that_nobody_gives_is_a_failure_by_its_name():
    """Which of them it is decides who is woken."""
    kept = Kept()

    async def source(caller, route):
        raise TokenSourceUnavailable("down")

    with running(routes=from_function(source), observers=[kept]) as stack:
        stack.ask("GET", "/idp/github/user", "IdP-Account: 101")
        record = kept.request()
    assert (record.token, record.problem) == ("none", "token-source-unavailable")
    (event,) = (record for record in kept if isinstance(record, TokenRecord))
    assert (event.event, event.problem, event.source) == ("failed", record.problem, "source")
    assert (event.caller, event.account) == (record.caller, digest("101"))


def test_a_source_that_is_left_alone_is_told_and_not_counted_as_asked():
    """What was not asked has not failed: a panel of its failures should say how the source is, not how many wait."""
    kept, asked = Kept(), []

    async def source(caller, route):
        asked.append(caller)
        raise TokenSourceUnavailable("down")

    with running(routes=from_function(source), observers=[kept]) as stack:
        for number in range(1, 13):
            stack.ask("GET", "/idp/github/user", user="alice" if number % 2 else "bob")
            kept.request(number)
    assert len(asked) < 12
    assert kept.events == [("failed", "token-source-unavailable")] * len(asked)
    told = [record for record in kept if isinstance(record, CircuitRecord)]
    assert told == [CircuitRecord("source", route="github", open=True)]
    assert {record.token for record in kept.requests} == {"none"}


def test_what_lives_on_holds_nothing_of_the_request_that_began_it():
    """A pool's task would otherwise have a caller's credential in its context for hours."""
    kept, contexts = Kept(), []

    async def source(caller, route):
        contexts.append(copy_context())
        return await a_token(caller, route)

    with running(routes=from_function(source), observers=[kept]) as stack, stack.client() as client:
        client.get("/idp/github/user")
        kept.request()
    (watch,) = (value for value in contexts[0].values() if type(value).__name__ == "Watch")

    def private(each):
        return isinstance(each, Caller) or hasattr(each, "__self__") or (isinstance(each, dict) and "headers" in each)

    eventually(lambda: not any(map(private, gc.get_referents(watch))))


def test_a_renewal_ahead_of_expiry_is_told_but_not_as_the_requests_own():
    """The request was served by the token that is still good."""
    kept = Kept()

    async def short(caller, route):
        await asyncio.sleep(0.01)
        return Token(USERS["alice"], expires_at=time.time() + 1.5)

    with running(routes=from_function(short), observers=[kept]) as stack, stack.client() as client:
        client.get("/idp/github/user")
        # From four fifths of its life less the margin on, a token is renewed.
        time.sleep(1.15)
        client.get("/idp/github/user")
        eventually(lambda: len(kept.events) == 2)
        kept.request(2)
    assert [record.token for record in kept.requests] == ["source", "held"]
    assert kept.events == [("obtained", None), ("refreshed", None)]


async def test_a_shared_cache_that_fails_is_told():
    """Requests go on without it, so nobody would see it by them."""
    kept = Kept()

    class Broken(SimpleMemoryCache):
        async def _get(self, *args, **options):
            raise OSError

        async def _delete(self, *args, **options):
            raise OSError

    cache = TokenCache(Broken())
    cache.observe = kept
    assert await cache.get(("alice",)) is None
    await cache.delete(("alice",))
    assert kept == [CacheRecord("read"), CacheRecord("delete")]


def test_a_caller_who_leaves_is_told_apart():
    """Left is neither an answer nor a fault of ours."""
    kept, here = Kept(), threading.Event()

    async def slow(caller, route):
        here.set()
        await asyncio.sleep(30)

    with running(routes=from_function(slow), observers=[kept]) as stack:
        with stack.connect() as client:
            client.send(stack.raw_request("GET", "/idp/github/user", close=False))
            assert here.wait(5)
        record = kept.request()
    assert (record.ended, record.status, record.problem) == ("left", None, None)


def test_an_answer_that_breaks_off_is_told_apart():
    """Its status was 200, and it was no success."""
    kept = Kept()

    def half(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    with (
        raw_upstream(half) as url,
        running(
            routes=lambda _, source: {"github": ProxyRoute(url, token_source=source, connection="github")},
            observers=[kept],
        ) as stack,
    ):
        stack.raw(stack.raw_request("GET", "/idp/github/user"))
        record = kept.request()
    assert (record.ended, record.status, record.bytes_out) == ("aborted", 200, 4)


def test_a_websocket_is_told_of_when_it_ends():
    """Of its messages the bytes both ways; and who was refused is told as for other requests."""
    kept = Kept()

    def echo(websocket):
        for message in websocket:
            websocket.send(message * 2)

    with (
        serve_websockets(echo, "127.0.0.1", 0) as upstream,
        running(
            routes=lambda _, source: {
                "github": ProxyRoute(
                    f"http://127.0.0.1:{upstream.socket.getsockname()[1]}",
                    token_source=source,
                    connection="github",
                    websocket=True,
                )
            },
            uvicorn={"ws": "websockets-sansio"},
            observers=[kept],
        ) as stack,
    ):
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{stack.gateway.port}/idp/github/live"
        with connect(url, additional_headers=stack.bearer(), proxy=None) as websocket:
            websocket.send("äb")
            assert websocket.recv() == "äbäb"
            websocket.send(b"de")
            assert websocket.recv() == b"dede"
            assert kept.requests == []
        record = kept.request()
        with pytest.raises(InvalidStatus):
            connect(url, proxy=None)
        refused = kept.request(2)
    assert (record.status, record.upgraded, record.ended, record.method) == (101, True, "whole", "GET")
    assert (record.bytes_in, record.bytes_out, record.token) == (5, 10, "source")
    assert min(record.authenticate, record.token_wait, record.upstream) > 0
    assert (refused.status, refused.problem, refused.ended) == (401, "caller-unauthenticated", "whole")


async def test_a_websocket_that_a_server_can_only_close_counts_as_what_the_server_makes_of_it():
    """403, for a close before the handshake is done (https://asgi.readthedocs.io/en/latest/specs/www.html#close)."""
    kept, sent = Kept(), []
    routes = from_function(a_token)("https://api.example.com", None)
    middleware = IdPMiddleware(authenticator=a_token, routes=routes, observers=[kept])

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    path = "/idp/github/live"
    scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": [], "query_string": b""}
    await middleware(scope, receive, send)
    assert sent == ["websocket.close"]
    assert (kept.request().status, kept.request().problem) == (403, "caller-forbidden")


def test_what_the_app_asks_for_itself_is_no_request_but_its_tokens_are_told():
    """It goes the same way, and nobody sent it."""
    kept = Kept()

    async def ask(stack):
        caller = Caller(ALICE, claims={"iss": stack.auth0.issuer})
        async with stack.middleware.client("github", caller) as client:
            assert (await client.get("/user")).status_code == 200
            stack.provider.revoke(USERS["alice"])
            assert (await client.get("/user")).status_code == 401
        await stack.middleware.aclose()

    with running(observers=[kept]) as stack:
        asyncio.run(ask(stack))
    assert kept.requests == []
    assert kept.events == [("obtained", None), ("refused", None), ("renewed", None)]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_taken_back_is_told(fails):
    """And that it may still be good, where the provider did not say that it is not."""
    kept = Kept()

    class Source:
        token = staticmethod(a_token)

        async def revoke(self, caller, route):
            if fails:
                raise TokenSourceUnavailable("down")

    route = ProxyRoute("https://api.example.com", token_source=Source())
    middleware = IdPMiddleware(authenticator=a_token, routes={"github": route}, observers=[kept])
    with pytest.raises(TokenSourceUnavailable) if fails else nullcontext():
        await middleware.revoke("github", Caller(ALICE))
    told = ("failed", "token-source-unavailable") if fails else ("revoked", None)
    assert sorted(kept.events, key=str) == sorted([told, ("forgotten", None)], key=str)


class Broken:
    """An observer that fails at whatever it is told, and says what it was told."""

    def __call__(self, record):
        raise ValueError(f"told {record}")

    def begin(self, scope, route, *, mount):
        raise ValueError(f"told {scope}")


class BreaksLater:
    """… and one that seems all right at first."""

    def __init__(self):
        self.called = []

    def __call__(self, record):
        pass

    def begin(self, scope, route, *, mount):
        return self

    def __getattr__(self, name):
        def fail(*args):
            self.called.append(name)
            raise ValueError(name)

        return fail


def test_an_observer_that_raises_harms_nobody_and_is_named_once(caplog):
    """Neither the request nor the other observers, nor the log: it would fail at each request."""
    kept, later = Kept(), BreaksLater()
    with running(observers=[Broken(), later, kept]) as stack, stack.client() as client:
        for number in (1, 2):
            assert client.get("/idp/github/user").status_code == 200
            kept.request(number)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        "the observer Broken raised ValueError, and may miss more",
        "the observer BreaksLater raised ValueError, and may miss more",
    ]
    assert set(later.called) == {"sending", "answered", "end"}


def test_a_token_that_is_at_hand_is_no_event():
    """One for each request would bury those that tell something."""
    kept = Kept()
    with (
        running(routes=from_function(sources.Static(USERS["alice"])), observers=[kept]) as stack,
        stack.client() as client,
    ):
        client.get("/idp/github/user")
        assert kept.request().token == "held"
    assert kept.events == []


async def test_an_authenticator_is_closed_and_shares_keys_as_if_nobody_watched():
    """What stands in its place has whatever else it has."""

    class Authenticator:
        closed = shared = False
        authenticate = staticmethod(a_token)

        def use_cache(self, cache):
            self.shared = True

        async def aclose(self):
            self.closed = True

    authenticator = Authenticator()
    middleware = IdPMiddleware(authenticator=authenticator, routes={}, cache=SimpleMemoryCache(), observers=[Kept()])
    await middleware.aclose()
    assert authenticator.closed
    assert authenticator.shared
    await IdPMiddleware(authenticator=a_token, routes={}, observers=[Kept()]).aclose()


def test_what_cannot_be_called_is_no_observer():
    """A mistake is told where it is made."""
    with pytest.raises(ConfigurationError, match=r"observers: must be callable, and a str is not"):
        IdPMiddleware(authenticator=a_token, routes={}, observers=["access"])


def test_the_access_log_is_one_line_of_json_for_each_request(caplog):
    """For whoever ships lines, and, as a dict, for whoever formats for himself; with nothing private in it."""
    caplog.set_level(logging.INFO, "idp_middleware.access")
    kept = Kept()
    with running(observers=[AccessLog(), kept]) as stack, stack.client() as client:
        answer = client.get("/idp/github/user/private-path?private=query")
        kept.request()
    (record,) = (record for record in caplog.records if record.name == "idp_middleware.access")
    told = json.loads(record.getMessage())
    assert told == record.idp
    assert (told["route"], told["method"], told["status"]) == ("github", "GET", answer.status_code)
    assert (told["token"], told["bytes_out"], told["ended"]) == ("source", len(answer.content), "whole")
    assert 0 < told["ms_upstream"] < told["ms_total"]
    assert datetime.fromisoformat(told["time"]).tzinfo is not None
    assert not any(each in record.getMessage() for each in ("private", "alice", USERS["alice"]))


def test_the_audit_log_tells_what_became_of_a_token(caplog):
    """Louder where it did not go well, so that a handler can be put at a level."""
    caplog.set_level(logging.INFO, "idp_middleware.audit")
    log = AuditLog()
    fields = {"route": "github", "source": "Auth0Management", "caller": digest("issuer", ALICE), "seconds": 0.25}
    log(TokenRecord(event="obtained", **fields))
    log(TokenRecord(event="failed", problem="token-source-timeout", account=digest("101"), **fields))
    log(CacheRecord("read"))
    records = [record for record in caplog.records if record.name == "idp_middleware.audit"]
    assert [record.levelno for record in records] == [logging.INFO, logging.WARNING]
    assert json.loads(records[1].getMessage()) == records[1].idp
    assert records[0].idp.items() >= ({"event": "obtained", "problem": None, "account": None} | fields).items()
    assert records[1].idp["account"] == digest("101")


def test_a_log_that_nobody_reads_is_not_written(caplog):
    """A record costs as much as the rest of a request."""
    caplog.set_level(logging.WARNING, "idp_middleware")
    AuditLog()(TokenRecord(event="obtained", route="github", source="S", caller="c"))
    assert caplog.records == []


def test_logs_go_to_standard_output_unless_somebody_has_said_where(capsys, monkeypatch):
    """A gateway of its own has nobody else to say so."""
    log = logging.getLogger("idp_middleware.audit")
    for name in ("idp_middleware.access", "idp_middleware.audit"):
        logger = logging.getLogger(name)
        # pytest's own handlers are at the root.
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logging.NOTSET)
    log_to_stdout()
    log_to_stdout()
    log.info("said")
    assert capsys.readouterr().out == "said\n"


def test_a_digest_is_one_for_each_caller_and_names_nobody():
    """Two issuers may both know an alice, and no two callers may be taken for one by where a name is cut."""
    digests = {digest("a", "bc"), digest("ab", "c"), digest("abc"), digest("", "abc")}
    assert len(digests) == 4
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in digests)
