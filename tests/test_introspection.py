"""Opaque tokens: what is asked of their server, which answers let somebody in, and how long those serve (RFC 7662)."""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import pickle
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import time_machine
from starlette.requests import HTTPConnection

from idp_middleware import Caller, IntrospectionAuthenticator, _introspection
from idp_middleware.errors import (
    CallerUnauthenticated,
    ConfigurationError,
    IdPError,
    NotMine,
    TokenSourceBusy,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.testing import Auth0, IntrospectionServer, serve
from tests.stack import free_port, running

ISSUER = "https://login.acme.example"
URL = ISSUER + "/introspect"
API = "https://api.acme.example"
CLIENT = ("the-api", "s3cr3t-of-the-api")


@pytest.fixture
def server() -> IntrospectionServer:
    server = IntrospectionServer(ISSUER)
    server.add_client(*CLIENT)
    return server


@pytest.fixture
async def authenticator(server: IntrospectionServer) -> AsyncIterator[IntrospectionAuthenticator]:
    authenticator = authenticator_for(server)
    yield authenticator
    await authenticator.aclose()


def authenticator_for(server: Any, **options: Any) -> IntrospectionAuthenticator:
    transport = server if isinstance(server, httpx.AsyncBaseTransport) else httpx.ASGITransport(app=server)
    options = {
        "introspection_url": URL,
        "client_id": CLIENT[0],
        "client_secret": CLIENT[1],
        "transport": transport,
        **options,
    }
    return IntrospectionAuthenticator(**options)


def bearer(token: str | bytes, scheme: bytes = b"Bearer") -> HTTPConnection:
    value = scheme + b" " + (token.encode() if isinstance(token, str) else token)
    return HTTPConnection({"type": "http", "headers": [(b"authorization", value)]})


async def refused(authenticator: IntrospectionAuthenticator, token: str | bytes) -> IdPError:
    with pytest.raises(IdPError) as caught:
        await authenticator.authenticate(bearer(token))
    return caught.value


async def test_an_active_token_becomes_its_caller(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """What the server says of it is what is known of the caller."""
    token = server.issue_token("alice", scope="read:github write:github", username="Alice")

    caller = await authenticator.authenticate(bearer(token))

    assert caller.subject == "alice"
    assert caller.scopes == {"read:github", "write:github"}
    assert caller.claims["username"] == "Alice"
    assert caller.credential == token


async def test_the_question_is_the_one_of_the_rfc(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """Sections 2.1 and 4: a form in the body, never a query; our own credentials, never the caller's."""
    token = server.issue_token("alice", token="ab+/c-._~=")
    await authenticator.authenticate(bearer(token))

    assert (server.last.method, server.last.target) == ("POST", b"/introspect")
    assert parse_qs(server.last.body.decode()) == {"token": [token], "token_type_hint": ["access_token"]}
    assert server.last.header("authorization") == "Basic " + base64.b64encode(":".join(CLIENT).encode()).decode()


async def test_awkward_credentials_arrive_whole() -> None:
    """RFC 6749 section 2.3.1: without the encoding, a colon in the id would end it."""
    server = IntrospectionServer(ISSUER)
    server.add_client("https://api.acme.example:8443/", "p%ss: wörd+/")
    authenticator = authenticator_for(server, client_id="https://api.acme.example:8443/", client_secret="p%ss: wörd+/")
    assert (await authenticator.authenticate(bearer(server.issue_token("alice")))).subject == "alice"


# --- the token as it comes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [b"two words", b'"quoted"', b"a,b", b"a=b", b"=", b"tok\xe9n", b"tok\0n", b"a" * 16385, b" a", b"a\r\nx: y", b""],
)
async def test_a_malformed_token_is_never_asked_about(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator, token: bytes
) -> None:
    """RFC 6750 section 2.1 says what a token is made of; nonsense is not worth a question."""
    error = await refused(authenticator, token)
    assert (type(error), error.status) == (CallerUnauthenticated, 401)
    assert server.requests == []


async def test_without_a_token_it_is_another_authenticators_turn(authenticator: IntrospectionAuthenticator) -> None:
    """RFC 6750 section 3.1: no error code where no token of ours was sent."""
    for headers in ([], [(b"authorization", b"Basic YTpi")], [(b"authorization", b"token abc")]):
        with pytest.raises(NotMine) as caught:
            await authenticator.authenticate(HTTPConnection({"type": "http", "headers": headers}))
        assert caught.value.headers() == [("www-authenticate", "Bearer")]


async def test_two_authorization_fields_are_refused(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """Another party on the way might take the other one."""
    field = (b"authorization", b"Bearer " + server.issue_token("alice").encode())
    with pytest.raises(CallerUnauthenticated) as caught:
        await authenticator.authenticate(HTTPConnection({"type": "http", "headers": [field, field]}))
    assert not isinstance(caught.value, NotMine)
    assert server.requests == []


async def test_githubs_scheme_works_where_configured(server: IntrospectionServer) -> None:
    """Clients of GitHub's API send `token`."""
    authenticator = authenticator_for(server, schemes=["token"])
    token = server.issue_token("alice")
    assert (await authenticator.authenticate(bearer(token, b"Token"))).subject == "alice"
    with pytest.raises(NotMine):
        await authenticator.authenticate(bearer(token))


async def test_another_issuers_jwt_is_not_shown_to_this_server(server: IntrospectionServer) -> None:
    """Whoever gets to see a token can use it; a JWT says whose it is."""
    foreign = Auth0("https://other.example/").issue_token("alice", audience=API)
    own = Auth0(ISSUER).issue_token("alice", audience=API, iss=ISSUER)
    unnamed = Auth0(ISSUER).issue_token("alice", audience=API, iss=None)
    server.issue_token("alice", token=own)
    server.issue_token("alice", token=unnamed)

    knowing = authenticator_for(server, issuer=ISSUER)
    assert isinstance(await refused(knowing, foreign), NotMine)
    assert server.requests == []
    for token in (own, unnamed):
        assert (await knowing.authenticate(bearer(token))).subject == "alice"

    # Without an issuer nothing is known to be another's.
    server.issue_token("alice", token=foreign)
    assert (await authenticator_for(server).authenticate(bearer(foreign))).subject == "alice"


# --- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        {"active": False},
        {"sub": None},
        {"sub": ""},
        {"sub": " "},
        {"sub": 7},
        {"sub": ["alice"]},
        {"sub": "al\nice"},
        {"sub": "\ud800"},
        {"exp": 0},
        {"exp": 1_799_999_989},
        {"nbf": 1_800_000_011},
        {"iat": 1_800_000_011},
        {"iss": "https://login.acme.example/"},
        {"iss": ["https://login.acme.example"]},
        {"aud": "https://other.example"},
        {"aud": []},
        {"aud": None},
        {"aud": [API, 7]},
        {"aud": {API: True}},
        {"token_type": "DPoP"},
        {"token_type": "refresh_token"},
        {"token_type": 7},
        {"token_use": "refresh_token"},
        {"token_usage": "refresh_token"},
        {"typ": "Refresh"},
        {"typ": "ID"},
        {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
        {"at_hash": "x"},
        {"events": {}},
    ],
)
async def test_a_token_that_is_not_good_here_is_refused(server: IntrospectionServer, members: dict[str, Any]) -> None:
    """Active is not enough: sections 2.2 and 4 leave the rest to us, and a refresh token is active too."""
    with time_machine.travel(1_800_000_000, tick=False):
        authenticator = authenticator_for(server, issuer=ISSUER, audience=[API, "the-api"])
        good = server.issue_token("alice", aud=API)
        token = server.issue_token("alice", **{"aud": API, **members})
        assert (await authenticator.authenticate(bearer(good))).subject == "alice"

        error = await refused(authenticator, token)

        assert type(error) is CallerUnauthenticated
        assert error.headers()[0][1].startswith('Bearer error="invalid_token"')


@pytest.mark.parametrize(
    "members",
    [
        {"exp": None},
        {"exp": 1_799_999_991},
        {"exp": 1_800_000_000.5},
        {"nbf": 1_800_000_010, "iat": 1_800_000_010},
        {"iss": None, "token_type": None},
        {"aud": ["https://other.example", "the-api"]},
        {"token_type": "bearer"},
        {"token_type": "access_token"},
        {"token_use": "access_token", "token_usage": "access_token", "typ": "at+jwt"},
        {"sub": "auth0|ålice b"},
    ],
)
async def test_what_servers_really_say_is_taken(server: IntrospectionServer, members: dict[str, Any]) -> None:
    """All but `active` is optional (section 2.2), clocks differ, and servers word the kind of a token their own way."""
    with time_machine.travel(1_800_000_000, tick=False):
        authenticator = authenticator_for(server, issuer=ISSUER, audience=[API, "the-api"])
        token = server.issue_token("alice", **{"aud": API, **members})
        assert (await authenticator.authenticate(bearer(token))).subject == members.get("sub", "alice")


async def test_null_is_the_same_as_nothing(server: IntrospectionServer) -> None:
    """Some servers send every member they know."""
    server.respond(
        "/", body={"active": True, "sub": "alice", "exp": None, "iss": None, "token_type": None, "aud": None}
    )
    assert (await authenticator_for(server, issuer=ISSUER).authenticate(bearer("t"))).scopes == frozenset()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"body": {}}, TokenSourceFailed),
        ({"body": {"active": "true", "sub": "alice"}}, TokenSourceFailed),
        ({"body": {"active": 1, "sub": "alice"}}, TokenSourceFailed),
        ({"body": {"active": "false"}}, TokenSourceFailed),
        ({"body": {"active": True, "sub": "alice", "exp": "1900000000"}}, TokenSourceFailed),
        ({"body": {"active": True, "sub": "alice", "exp": True}}, TokenSourceFailed),
        ({"body": {"active": True, "sub": "alice", "exp": 1_900_000_000_000}}, TokenSourceFailed),
        ({"body": '{"active": true, "sub": "alice", "exp": NaN}'}, TokenSourceFailed),
        ({"body": '{"active": true, "sub": "alice", "exp": -1e999}'}, TokenSourceFailed),
        ({"body": {"active": True, "sub": "alice", "nbf": []}}, TokenSourceFailed),
        ({"body": [{"active": True, "sub": "alice"}]}, TokenSourceFailed),
        ({"body": "active"}, TokenSourceFailed),
        ({"body": '{"active":true,"sub":"alice","x":' + "[" * 50_000}, TokenSourceFailed),
        ({"body": {"active": True, "sub": "alice", "x": "x" * 65_536}}, TokenSourceFailed),
        ({"body": {"active": True, "sub": "alice", "x": "x" * 2_000_000}}, TokenSourceFailed),
        ({"status": 201, "body": {"active": True, "sub": "alice"}}, TokenSourceFailed),
        ({"status": 307, "headers": {"Location": URL}}, TokenSourceFailed),
        ({"status": 400, "body": {"active": True, "sub": "alice"}}, TokenSourceFailed),
        ({"status": 401, "body": {"active": True, "sub": "alice"}}, TokenSourceFailed),
        ({"status": 403}, TokenSourceFailed),
        ({"status": 500, "body": {"active": True, "sub": "alice"}}, TokenSourceUnavailable),
        ({"status": 503, "headers": {"Retry-After": "7"}}, TokenSourceUnavailable),
        ({"status": 429, "headers": {"Retry-After": "60"}}, TokenSourceBusy),
    ],
)
async def test_what_is_no_answer_lets_nobody_in(
    server: IntrospectionServer,
    authenticator: IntrospectionAuthenticator,
    answer: dict[str, Any],
    problem: type[IdPError],
) -> None:
    """Section 2.3. The fault is the server's, so it is not the caller who is told to get another token."""
    token = server.issue_token("alice")
    server.respond("/introspect", times=1, **answer)

    assert type(await refused(authenticator, token)) is problem
    if "Retry-After" not in answer.get("headers", {}):
        # And it is not remembered.
        assert (await authenticator.authenticate(bearer(token))).subject == "alice"


async def test_retry_after_is_passed_on(server: IntrospectionServer, authenticator: IntrospectionAuthenticator) -> None:
    """Whoever waits for us should wait for as long as we do."""
    server.respond("/", status=503, headers={"Retry-After": "7"}, times=1)
    assert (await refused(authenticator, "t")).headers() == [("retry-after", "7")]


async def test_a_transport_that_breaks_is_the_servers_failure() -> None:
    """Whatever the application brought along, a caller gets a clean answer."""

    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise RuntimeError("with a secret")

    error = await refused(authenticator_for(Broken()), "t")
    assert (type(error), str(error)) == (TokenSourceFailed, "not an answer (RuntimeError)")


async def test_a_server_that_hangs_is_a_time_out() -> None:
    """504, and nobody let in meanwhile."""

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("too slow", request=request)

    assert isinstance(await refused(authenticator_for(Slow()), "t"), TokenSourceTimeout)


async def test_a_server_that_is_away_is_an_outage() -> None:
    """503 and not 401: the client's token may be as good as ever."""
    url = f"http://127.0.0.1:{free_port()}/introspect"
    authenticator = IntrospectionAuthenticator(introspection_url=url, client_id="a", client_secret="b")
    assert isinstance(await refused(authenticator, "t"), TokenSourceUnavailable)
    await authenticator.aclose()


@pytest.mark.parametrize(
    ("claims", "chosen", "expected"),
    [
        ({"scope": "a b"}, None, {"a", "b"}),
        ({"scope": ["a"], "scp": "b", "permissions": ["c"]}, None, {"a", "b", "c"}),
        ({"scope": "a", "roles": ["b"]}, ["roles"], {"b"}),
        ({"scope": "a"}, [], set()),
        ({"scope": {"a": 1}, "scp": 7}, None, set()),
    ],
)
async def test_scopes_come_from_the_chosen_members(
    server: IntrospectionServer, claims: dict[str, Any], chosen: list[str] | None, expected: set[str]
) -> None:
    """`scope` is the RFC's; others put them elsewhere."""
    options = {} if chosen is None else {"scope_claims": chosen}
    caller = await authenticator_for(server, **options).authenticate(bearer(server.issue_token("alice", **claims)))
    assert caller.scopes == expected


@pytest.mark.parametrize(
    ("issuer", "said", "known_as"),
    [
        (ISSUER, ISSUER, ISSUER),
        (ISSUER, None, ISSUER),
        (None, None, URL),
        (None, "https://other.example/", URL),
    ],
)
async def test_the_subject_is_known_under_a_name_that_the_server_cannot_choose(
    server: IntrospectionServer, issuer: str | None, said: str | None, known_as: str
) -> None:
    """Two issuers may both know an alice; a server must not turn its alice into another's by what it says."""
    token = server.issue_token("alice", iss=said)
    assert (await authenticator_for(server, issuer=issuer).authenticate(bearer(token))).issuer == known_as


# --- how long an answer serves ---------------------------------------------------------------------------------------


async def test_an_answer_serves_for_a_while(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """One question for a page that makes fifty requests."""
    token = server.issue_token("alice")
    first = await authenticator.authenticate(bearer(token))
    assert await authenticator.authenticate(bearer(token)) is first
    assert server.count() == 1


async def test_a_revocation_shows_within_a_minute(server: IntrospectionServer) -> None:
    """Revocation is what opaque tokens are for; not even an outage makes an answer serve longer."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        authenticator = authenticator_for(server)
        revoked, kept = server.issue_token("alice"), server.issue_token("bob")
        for token in (revoked, kept):
            await authenticator.authenticate(bearer(token))
        server.revoke(revoked)
        clock.shift(59)
        await authenticator.authenticate(bearer(revoked))
        clock.shift(2)
        assert type(await refused(authenticator, revoked)) is CallerUnauthenticated
        server.respond("/", status=500)
        assert isinstance(await refused(authenticator, kept), TokenSourceUnavailable)
        server.reset_faults()
        assert (await authenticator.authenticate(bearer(kept))).subject == "bob"


@pytest.mark.parametrize(("max_age", "after", "questions"), [(0, 0, 2), (5, 4, 1), (5, 6, 2), (600, 599, 1)])
async def test_the_while_can_be_chosen(
    server: IntrospectionServer, max_age: float, after: float, questions: int
) -> None:
    """Some would rather ask each time than let a revoked token serve for a second."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        authenticator = authenticator_for(server, max_age=max_age)
        token = server.issue_token("alice")
        await authenticator.authenticate(bearer(token))
        clock.shift(after)
        await authenticator.authenticate(bearer(token))
        assert server.count() == questions


async def test_an_answer_never_outlives_the_token(server: IntrospectionServer) -> None:
    """Ten seconds of leeway, then it has to be asked about again."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        authenticator = authenticator_for(server)
        token = server.issue_token("alice", expires_in=20)
        await authenticator.authenticate(bearer(token))
        clock.shift(29)
        await authenticator.authenticate(bearer(token))
        clock.shift(1)
        assert type(await refused(authenticator, token)) is CallerUnauthenticated
        assert server.count() == 2


async def test_a_clock_that_was_set_back_makes_no_answer_serve_longer(server: IntrospectionServer) -> None:
    """A minute of the clock would else be an hour and a minute of the revoked token's."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        authenticator = authenticator_for(server)
        token, unknown = server.issue_token("alice", expires_in=7200), "not-yet"
        await authenticator.authenticate(bearer(token))
        await refused(authenticator, unknown)
        clock.shift(-3600)
        server.issue_token("bob", token=unknown)
        server.revoke(token)
        assert type(await refused(authenticator, token)) is CallerUnauthenticated
        assert (await authenticator.authenticate(bearer(unknown))).subject == "bob"


async def test_a_refusal_is_remembered_for_two_seconds(server: IntrospectionServer) -> None:
    """Spares the server a client that insists, but not a token that a slow replica gets to know a moment later."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        authenticator = authenticator_for(server)
        first = await refused(authenticator, "later")
        clock.shift(1.9)
        again = await refused(authenticator, "later")
        assert (str(first), str(again), server.count()) == ("not active", "not active", 1)
        assert again is not first
        server.issue_token("alice", token="later")
        clock.shift(0.2)
        assert (await authenticator.authenticate(bearer("later"))).subject == "alice"


async def test_tokens_do_not_share_answers(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """The key is the whole token."""
    callers = {user: server.issue_token(user, token=f"token-of-{user}") for user in ("alice", "bob")}
    for _ in range(2):
        for user, token in callers.items():
            assert (await authenticator.authenticate(bearer(token))).subject == user


async def test_servers_do_not_share_answers() -> None:
    """GHSA-4mq7-pvjg-xp2r of Oathkeeper: a token that is active at one server was let in for another."""
    one, two = IntrospectionServer("https://one.example"), IntrospectionServer("https://two.example")
    for each in (one, two):
        each.add_client(*CLIENT)
    token = one.issue_token("alice")
    assert (await authenticator_for(one).authenticate(bearer(token))).subject == "alice"
    assert type(await refused(authenticator_for(two), token)) is CallerUnauthenticated


async def test_memory_is_bounded_and_made_up_tokens_push_no_good_one_out(
    server: IntrospectionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone can make tokens up; the least recently seen goes first."""
    monkeypatch.setattr(_introspection, "MAX_REMEMBERED", 3)
    authenticator = authenticator_for(server)
    tokens = [server.issue_token(f"user-{number}") for number in range(4)]
    for token in (*tokens[:3], tokens[0], tokens[3]):
        await authenticator.authenticate(bearer(token))
    for number in range(20):
        await refused(authenticator, f"made-up-{number}")
    asked = server.count()

    for token in (tokens[0], tokens[2], tokens[3]):
        await authenticator.authenticate(bearer(token))
    assert server.count() == asked
    await authenticator.authenticate(bearer(tokens[1]))
    await refused(authenticator, "made-up-0")
    assert server.count() == asked + 2
    assert max(len(authenticator._accepted), len(authenticator._refused)) == 3


def test_a_hit_costs_next_to_nothing(server: IntrospectionServer) -> None:
    """It is on every request's way: two microseconds; the bound is generous."""
    authenticator = authenticator_for(server)
    conn = bearer(server.issue_token("alice"))

    async def measure() -> float:
        await authenticator.authenticate(conn)
        started = time.perf_counter()
        for _ in range(2000):
            await authenticator.authenticate(conn)
        return (time.perf_counter() - started) / 2000

    assert min(asyncio.run(measure()) for _ in range(3)) < 25e-6


# --- many at once ----------------------------------------------------------------------------------------------------


async def test_many_requests_with_one_token_are_one_question(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """A page that starts with fifty requests at once."""
    server.stall("/", 0.05)
    token = server.issue_token("alice")
    callers = await asyncio.gather(*(authenticator.authenticate(bearer(token)) for _ in range(50)))
    assert {caller.subject for caller in callers} == {"alice"}
    assert server.count() == 1
    assert authenticator._flights == {}


async def test_each_who_waited_gets_a_refusal_of_their_own(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """One exception raised by many would collect all their frames, with all they hold."""
    server.stall("/", 0.05)
    outcomes = await asyncio.gather(
        *(authenticator.authenticate(bearer("unknown")) for _ in range(5)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {CallerUnauthenticated}
    assert len(set(map(id, outcomes))) == 5
    assert server.count() == 1


async def test_a_caller_who_gives_up_takes_nothing_away_from_the_others(
    server: IntrospectionServer, authenticator: IntrospectionAuthenticator
) -> None:
    """The first of many requests is no more important than the others."""
    server.stall("/", 0.1)
    token = server.issue_token("alice")
    first = asyncio.create_task(authenticator.authenticate(bearer(token)))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(authenticator.authenticate(bearer(token)))
    await asyncio.sleep(0.02)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).subject == "alice"
    assert server.count() == 1


async def test_who_makes_tokens_up_does_not_keep_regulars_waiting(server: IntrospectionServer) -> None:
    """Anyone can fill the queue of those who are not known yet; a token that was good has a queue of its own."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        authenticator = authenticator_for(server)
        token = server.issue_token("alice")
        await authenticator.authenticate(bearer(token))
        clock.shift(61)
        asked = server.count()
        server.stall("/", 30, times=10)
        flood = [asyncio.create_task(authenticator.authenticate(bearer(f"made-up-{number}"))) for number in range(50)]
        async with asyncio.timeout(10):
            while server.count() < asked + 10:  # noqa: ASYNC110 - the double has no event for it
                await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            assert (await authenticator.authenticate(bearer(token))).subject == "alice"
        assert server.count() == asked + 11
        await authenticator.aclose()
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {TokenSourceUnavailable}


def test_it_serves_one_event_loop_beside_another(server: IntrospectionServer) -> None:
    """Test clients run each app in a loop of its own; a question that one left unanswered must not block the next."""
    authenticator = authenticator_for(server)
    token = server.issue_token("alice")
    server.stall("/", 30, times=1)

    async def give_up() -> None:
        async with asyncio.timeout(0.05):
            await authenticator.authenticate(bearer(token))

    async def call() -> Caller:
        return await authenticator.authenticate(bearer(token))

    with asyncio.Runner() as runner:
        with pytest.raises(TimeoutError):
            runner.run(give_up())
        assert asyncio.run(call()).subject == "alice"
        assert runner.run(call()).subject == "alice"
    gc.collect()


# --- set-up, and what it gives away ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("introspection_url", {"introspection_url": "http://login.acme.example/introspect"}),
        ("introspection_url", {"introspection_url": "https://the-api:secret@login.acme.example/introspect"}),
        ("introspection_url", {"introspection_url": ""}),
        ("client_id", {"client_id": ""}),
        ("client_secret", {"client_secret": ""}),
        ("client_secret", {"client_secret": None}),
        ("issuer", {"issuer": ""}),
        ("audience", {"audience": []}),
        ("audience", {"audience": ""}),
        ("scope_claims", {"scope_claims": "scope"}),
        ("schemes", {"schemes": ["DPoP"]}),
        ("leeway", {"leeway": 301}),
        ("leeway", {"leeway": True}),
        ("max_age", {"max_age": -1}),
        ("max_age", {"max_age": 3601}),
        ("max_age", {"max_age": float("nan")}),
        ("max_age", {"max_age": "60"}),
    ],
)
def test_a_mistake_is_found_where_it_is_written(key: str, options: dict[str, Any]) -> None:
    """Not with the first request."""
    with pytest.raises(ConfigurationError) as caught:
        authenticator_for(IntrospectionServer(), **options)
    assert caught.value.key == key


def test_it_gives_nothing_away(server: IntrospectionServer) -> None:
    """It holds our own secret, and what it remembers are other people's sessions."""
    authenticator = authenticator_for(server)
    token = server.issue_token("alice")
    caller = asyncio.run(authenticator.authenticate(bearer(token)))
    assert CLIENT[1] not in repr(authenticator)
    assert token not in repr(authenticator) + repr(caller)
    assert not any(token.encode() in key for key in authenticator._accepted)
    with pytest.raises(TypeError):
        pickle.dumps(authenticator)
    assert copy.deepcopy(authenticator) is authenticator


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_an_opaque_token_leads_to_the_users_own_provider_token() -> None:
    """On real sockets: the user's provider token, and nothing of the opaque one past us; an outage is a 503."""
    server = IntrospectionServer()
    server.add_client(*CLIENT)
    with serve(server) as login:
        authenticator = IntrospectionAuthenticator(
            introspection_url=login.url + "/introspect", client_id=CLIENT[0], client_secret=CLIENT[1]
        )
        token = server.issue_token("auth0|alice", scope="read:github")
        with running(authenticator=authenticator) as stack, stack.client(user=None) as client:
            answer = client.get("/idp/github/user", headers={"authorization": f"Bearer {token}"})
            assert (answer.status_code, answer.json()["login"]) == (200, "alice")
            assert token not in repr(stack.provider.last.headers)

            narrow = server.issue_token("auth0|alice", scope="other")
            answer = client.get("/idp/github/user", headers={"authorization": f"Bearer {narrow}"})
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:idp-middleware:problem:caller-forbidden")

            answer = client.get("/idp/github/user", headers={"authorization": "Bearer unknown"})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')

            login.stop()
            answer = client.get("/idp/github/user", headers={"authorization": "Bearer another"})
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:idp-middleware:problem:token-source-unavailable"
            assert "127.0.0.1" not in answer.text
            assert stack.provider.count() == 1
