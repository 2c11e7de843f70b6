"""`GET /idp`: what a caller may use and has linked, on real sockets; never a token or an address of anything behind."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiocache import SimpleMemoryCache
from starlette.middleware.sessions import SessionMiddleware

from idp_middleware import (
    Caller,
    IdPMiddleware,
    ProxyRoute,
    Rule,
    SessionAuthenticator,
    Token,
    TokenCache,
    sources,
)
from idp_middleware import errors as e
from idp_middleware.testing import Identity
from tests.stack import CLIENT, USERS, one_route, running

FIELDS = {
    "name", "url", "allowed", "methods", "scopes", "missing_scopes", "websocket", "connection",
    "state", "problem", "accounts", "token_scopes", "expires_at", "connect_url",
}  # fmt: skip

UNASKED = {
    "state": None, "problem": None, "accounts": [], "token_scopes": [], "expires_at": None, "connect_url": None,
}  # fmt: skip


def overview(stack, user="alice", **options):
    with stack.client(user) as client:
        answer = client.get("/idp", **options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def by_name(stack, user="alice", **options):
    told = overview(stack, user, **options)
    assert all(entry.keys() == FIELDS for entry in told["routes"])
    return {entry["name"]: entry for entry in told["routes"]}


@pytest.fixture(scope="module")
def plain():
    with running() as stack:
        yield stack


def test_a_linked_account_is_told_with_what_is_known_of_it(plain):
    """All that a page needs to show it and to call it."""
    assert overview(plain) == {
        "subject": "auth0|alice",
        "routes": [
            {
                "name": "github",
                "url": "/idp/github",
                "allowed": True,
                "methods": None,
                "scopes": ["read:github"],
                "missing_scopes": [],
                "websocket": False,
                "connection": "github",
                "state": "linked",
                "problem": None,
                "accounts": [{"id": "101"}],
                "token_scopes": [],
                "expires_at": None,
                "connect_url": None,
            }
        ],
    }
    assert by_name(plain, "bob")["github"]["accounts"] == [{"id": "102"}]


def test_what_is_kept_costs_no_question_and_what_it_finds_out_is_kept(plain):
    """A page that asks every few seconds is no burden on the identity provider, nor is the call that follows."""
    overview(plain)
    before = len(plain.auth0.requests)
    with plain.client() as client:
        assert [client.get(path).status_code for path in ("/idp", "/idp/", "/idp/github/user")] == [200] * 3
    assert len(plain.auth0.requests) == before


def test_only_a_verified_caller_is_told(plain):
    """What is there, and what is linked, is nobody else's business."""
    with plain.client(None) as client:
        for path in ("/idp", "/idp/", "/idp?x"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/idp", headers={"authorization": "Bearer nonsense"}).status_code == 401


def test_head_has_the_head_of_get(plain):
    """RFC 9110 section 9.3.2."""
    with plain.client() as client:
        get, head = client.get("/idp"), client.head("/idp")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_405(plain, method):
    """And a body that comes along is not taken for the next request."""
    with plain.client() as client:
        answer = client.request(method, "/idp", content=b"GET /idp/github/user HTTP/1.1\r\n\r\n")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.json()["type"] == "urn:idp-middleware:problem:method-not-allowed"
        assert client.get("/idp").status_code == 200


def test_no_token_and_no_address_of_what_is_behind_is_in_it(plain):
    """Whatever the states are."""
    for user in USERS:
        text = json.dumps(overview(plain, user))
        for secret in (*USERS.values(), CLIENT[1], str(plain.api.port), str(plain.idp.port)):
            assert secret not in text


def test_a_route_that_the_caller_may_not_use_is_listed_but_not_looked_up():
    """So that a page can say which scope is missing, and nobody can use this to learn what they may not."""
    asked = []

    async def source(caller, route):
        asked.append(route.name)
        return Token("provider-token")

    async def no(caller, conn):
        return False

    async def broken(caller, conn):
        return {}[conn.path_params]

    async def unkind(caller, conn):
        raise e.CallerForbidden("not today", scopes={"patience"})

    async def yes(caller, conn):
        return True

    def routes(api, _):
        rules = [Rule(scopes={"x", "y"}), Rule(paths=["/free"], scopes={"x"}), Rule(paths=["/admin"], deny=True)]
        return {
            "scopes": ProxyRoute(api, token_source=source, scopes={"read:github", "b", "a"}),
            "rules": ProxyRoute(api, token_source=source, rules=rules),
            "no": ProxyRoute(api, token_source=source, authorize=no),
            "broken": ProxyRoute(api, token_source=source, authorize=broken),
            "unkind": ProxyRoute(api, token_source=source, authorize=unkind),
            "yes": ProxyRoute(api, token_source=source, authorize=yes, rules=[Rule(scopes={"read:github"}), Rule()]),
        }

    with running(routes=routes) as stack:
        told = by_name(stack)
    assert asked == ["yes"]
    assert {name: entry["allowed"] for name, entry in told.items()} == {
        "scopes": False,
        "rules": False,
        "no": False,
        "broken": False,
        "unkind": False,
        "yes": True,
    }
    assert all(told[name].items() >= UNASKED.items() for name in told if name != "yes")
    assert (told["scopes"]["scopes"], told["scopes"]["missing_scopes"]) == (["a", "b", "read:github"], ["a", "b"])
    assert (told["rules"]["missing_scopes"], told["no"]["missing_scopes"]) == (["x"], [])


OUTCOMES = {
    "identity-not-linked": (e.IdentityNotLinked("none"), "not-linked"),
    "reconnect-required": (e.ReconnectRequired("over", connect_url="https://app.example/again"), "reconnect-required"),
    "identity-ambiguous": (e.IdentityAmbiguous("two", accounts=["1", "2"]), "ambiguous"),
    "token-source-failed": (e.TokenSourceFailed("at http://10.0.0.1: the-secret"), "unavailable"),
    "token-source-unavailable": (e.TokenSourceUnavailable("away"), "unavailable"),
    "token-source-timeout": (e.TokenSourceTimeout("slow"), "unavailable"),
    "interaction-required": (e.InteractionRequired("step up", claims="{}"), "unavailable"),
}


def test_each_way_of_having_no_token_is_a_state_with_its_problem():
    """In the words of the answers that a call would get; one bad source spoils nothing for the others."""

    class Source:
        connect_url = "https://app.example/connect"

        async def token(self, caller, route, *, refused=None):
            if route.name in OUTCOMES:
                raise OUTCOMES[route.name][0]
            if route.name == "mistaken":
                raise LookupError("the-secret")
            return Token("the-secret", time.time() + 3600, scopes=frozenset({"b", "a"}))

    def routes(api, _):
        return {name: ProxyRoute(api, token_source=Source(), methods=["POST", "GET"]) for name in names}

    names = [*OUTCOMES, "mistaken", "fine"]
    with running(routes=routes) as stack:
        told = by_name(stack)
    states = {name: (entry["state"], entry["problem"]) for name, entry in told.items()}
    expected = {name: (state, name) for name, (_, state) in OUTCOMES.items()}
    assert states == expected | {"mistaken": ("unavailable", "token-source-failed"), "fine": ("linked", None)}
    assert list(told) == names
    assert told["identity-ambiguous"]["accounts"] == [{"id": "1"}, {"id": "2"}]
    assert told["fine"]["token_scopes"] == ["a", "b"]
    assert told["fine"]["methods"] == ["GET", "POST"]
    assert told["fine"]["expires_at"] == pytest.approx(time.time() + 3600, abs=60)
    urls = {name: entry["connect_url"] for name, entry in told.items() if entry["connect_url"]}
    assert urls == {
        "identity-not-linked": "https://app.example/connect",
        "reconnect-required": "https://app.example/again",
    }
    assert "the-secret" not in json.dumps(told)


def test_look_ups_run_at_once_and_a_slow_source_keeps_nobody(monkeypatch):
    """The others are told in time; what the slow one brings is there the next time."""
    monkeypatch.setattr("idp_middleware._own.LOOK_UPS_WITHIN", 0.5)
    running_now, most, slowly, loops = 0, 0, asyncio.Event(), set()

    async def source(caller, route):
        nonlocal running_now, most
        loops.add(asyncio.get_running_loop())
        running_now += 1
        most = max(most, running_now)
        await (slowly.wait() if route.name == "slow" else asyncio.sleep(0.02))
        running_now -= 1
        return Token("provider-token")

    def routes(api, _):
        return {name: ProxyRoute(api, token_source=source) for name in ("slow", *(f"r{n}" for n in range(20)))}

    with running(routes=routes) as stack:
        told = by_name(stack)
        assert (told["slow"]["state"], told["slow"]["problem"]) == ("unavailable", "token-source-timeout")
        assert {entry["state"] for name, entry in told.items() if name != "slow"} == {"linked"}
        assert 1 < most <= 8
        loops.pop().call_soon_threadsafe(slowly.set)
        end = time.monotonic() + 5
        while by_name(stack)["slow"]["state"] != "linked":
            assert time.monotonic() < end


def test_a_request_that_names_an_account_is_told_about_that():
    """As a call with the same header would be answered."""
    with running() as stack:
        stack.auth0.link("auth0|alice", Identity("github", "999", access_token="gho_alice_at_work"))
        assert by_name(stack)["github"]["accounts"] == [{"id": "101"}, {"id": "999"}]
        for account in ("101", "999"):
            entry = by_name(stack, headers={"idp-account": account})["github"]
            assert (entry["state"], entry["accounts"]) == ("linked", [{"id": account}])
        assert by_name(stack, headers={"idp-account": "5"})["github"]["state"] == "not-linked"


def test_a_source_that_knows_no_account_leaves_the_one_the_caller_named():
    """It has been found, since there is a token for it."""

    async def source(caller, route):
        return Token("provider-token")

    with running(routes=lambda api, _: {"x": ProxyRoute(api, token_source=source)}) as stack:
        assert by_name(stack)["x"]["accounts"] == []
        assert by_name(stack, headers={"idp-account": "7"})["x"]["accounts"] == [{"id": "7"}]


def test_the_account_comes_through_the_shared_cache_too():
    """From another worker, that is."""
    shared = SimpleMemoryCache()
    answers = []
    for _ in range(2):
        with running(cache=TokenCache(shared)) as stack:
            answers.append(by_name(stack)["github"]["accounts"])
    assert answers == [[{"id": "101"}]] * 2


def test_a_session_needs_the_proof_that_the_apps_own_page_asked():
    """Reading who a user is linked with is worth an attack too."""

    def wrap(middleware):
        async def logged_in(scope, receive, send):
            if scope["type"] == "http":
                scope["session"]["sub"] = "auth0|alice"
            await middleware(scope, receive, send)

        return SessionMiddleware(logged_in, secret_key="k")

    with running(authenticator=SessionAuthenticator(), wrap=wrap) as stack, stack.client(None) as client:
        assert client.get("/idp").status_code == 403
        told = client.get("/idp", headers={"x-csrf": "1"}).json()
        assert (told["subject"], told["routes"][0]["allowed"]) == ("auth0|alice", False)


def test_urls_lead_to_where_the_app_is_mounted():
    """They are what a page on the same origin can call."""

    with running(uvicorn={"root_path": "/svc"}) as stack:
        assert [entry["url"] for entry in overview(stack)["routes"]] == ["/svc/idp/github"]


def test_the_apps_own_token_counts_as_linked():
    """There is nothing that a user could connect."""

    def routes(api, source):
        return {**one_route(api, source), "intranet": ProxyRoute(api, token_source=sources.Static("the-apps-own"))}

    with running(routes=routes) as stack:
        entry = by_name(stack)["intranet"]
        assert (entry["state"], entry["connection"], entry["accounts"]) == ("linked", None, [])


async def test_a_caller_who_leaves_stops_the_look_ups():
    """Nobody is left to be told."""
    stopped = asyncio.Event()

    class Source:
        def cache_key(self, caller, route):
            return None

        async def token(self, caller, route, *, refused=None):
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()

    async def authenticate(conn):
        return Caller("alice")

    middleware = IdPMiddleware(
        routes={"x": ProxyRoute("http://127.0.0.1:9", token_source=Source())}, authenticator=authenticate
    )
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/idp",
        "raw_path": b"/idp",
        "query_string": b"",
        "headers": [(b"host", b"x")],
    }
    messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    sent = []

    async def send(message):
        sent.append(message)

    await asyncio.wait_for(middleware(scope, receive, send), 10)
    assert stopped.is_set()
    assert sent == []
