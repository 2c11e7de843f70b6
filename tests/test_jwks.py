"""When an issuer's keys are fetched, and what survives when they can't be."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import time_machine
from starlette.requests import HTTPConnection

from idp_middleware import Caller, JWTAuthenticator
from idp_middleware.errors import CallerUnauthenticated, TokenSourceUnavailable
from idp_middleware.testing import Auth0, serve, signing_key

ISSUER = "https://acme.eu.auth0.com/"
API = "https://api.acme.example"
NOW = 1_800_000_000
DISCOVERY, JWKS = "/.well-known/openid-configuration", "/.well-known/jwks.json"


@pytest.fixture
def auth0() -> Auth0:
    return Auth0(ISSUER)


@pytest.fixture
async def authenticator(auth0: Auth0) -> AsyncIterator[JWTAuthenticator]:
    authenticator = JWTAuthenticator(issuer=ISSUER, audience=API, transport=httpx.ASGITransport(app=auth0))
    yield authenticator
    await authenticator.aclose()


@pytest.fixture
def clock() -> Any:
    with time_machine.travel(NOW, tick=False) as clock:
        yield clock


def alice(auth0: Auth0, **options: Any) -> str:
    return auth0.issue_token("auth0|alice", audience=API, **{"expires_in": 10 * 86400, **options})


async def caller(authenticator: JWTAuthenticator, token: str) -> Caller:
    conn = HTTPConnection({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]})
    return await authenticator.authenticate(conn)


async def call(authenticator: JWTAuthenticator, token: str) -> str:
    return (await caller(authenticator, token)).subject


async def refused(authenticator: JWTAuthenticator, token: str) -> bool:
    try:
        await call(authenticator, token)
    except CallerUnauthenticated:
        return True
    return False


async def unavailable(authenticator: JWTAuthenticator, token: str) -> bool:
    try:
        await call(authenticator, token)
    except TokenSourceUnavailable:
        return True
    return False


async def soon(condition: Callable[[], bool]) -> None:
    """Let what runs in the background get there."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the double has no event to wait for)
            await asyncio.sleep(0.001)
    # What was answered is yet to be taken in.
    for _ in range(50):
        await asyncio.sleep(0)


def with_key_id(token: str, kid: str) -> str:
    """The same token with another key id; the signature no longer fits, but nobody knows before they have the key."""
    header = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "typ": "JWT", "kid": kid}).encode()).decode()
    return header.rstrip("=") + "." + token.partition(".")[2]


# --- first use -------------------------------------------------------------------------------------------------------


async def test_a_hundred_first_callers_share_one_fetch(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """A start under load must not become a flood at the identity provider."""
    auth0.stall(JWKS, 0.05)
    tokens = [auth0.issue_token(f"auth0|{n}", audience=API) for n in range(100)]
    subjects = await asyncio.gather(*(call(authenticator, token) for token in tokens))
    assert subjects == [f"auth0|{n}" for n in range(100)]
    assert (auth0.count(DISCOVERY), auth0.count(JWKS)) == (1, 1)


async def test_a_cancelled_first_caller_fails_nobody_else(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """Callers give up at any time; the fetch is not theirs alone."""
    auth0.stall(JWKS, 0.1)
    token = alice(auth0)
    first = asyncio.create_task(call(authenticator, token))
    await soon(lambda: auth0.count(JWKS) == 1)
    others = [asyncio.create_task(call(authenticator, token)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(*others) == ["auth0|alice"] * 5
    assert first.cancelled()
    assert auth0.count(JWKS) == 1


async def test_everyone_cancelled_still_leaves_the_keys(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """The next caller profits from what the last one gave up on."""
    auth0.stall(JWKS, 0.05, times=1)
    first = asyncio.create_task(call(authenticator, alice(auth0)))
    await soon(lambda: auth0.count(JWKS) == 1)
    first.cancel()
    assert await call(authenticator, alice(auth0)) == "auth0|alice"
    assert auth0.count(JWKS) == 1


class Broken(httpx.AsyncBaseTransport):
    """A transport that fails in its own way."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("not HTTP"),
        httpx.InvalidURL("bad"),
        OSError("no route"),
        RuntimeError("loop is closed"),
        RecursionError(),
        KeyError("x"),
    ],
)
async def test_no_keys_yet_is_unavailable_and_not_unauthenticated(error: Exception, clock: Any) -> None:
    """A 401 would tell every client to log in again. Tries back off from one second to thirty."""
    transport = Broken(error)
    authenticator = JWTAuthenticator(issuer=ISSUER, audience=API, transport=transport)
    token = alice(Auth0(ISSUER))
    for attempt, pause in enumerate([1, 2, 4, 8, 16, 30, 30], start=1):
        for _ in range(3):
            with pytest.raises(TokenSourceUnavailable) as unavailable:
                await call(authenticator, token)
            assert unavailable.value.headers() == [("retry-after", str(pause))]
        assert transport.requests == attempt
        clock.shift(pause)


async def test_unavailable_ends_when_the_issuer_is_back(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """A middleware that starts before its identity provider recovers by itself."""
    auth0.fail(DISCOVERY, status=503, times=1)
    with pytest.raises(TokenSourceUnavailable):
        await call(authenticator, alice(auth0))
    clock.shift(1)
    assert await call(authenticator, alice(auth0)) == "auth0|alice"


async def test_a_rate_limit_is_heeded(auth0: Auth0, authenticator: JWTAuthenticator, clock: Any) -> None:
    """Retry-After says when; asking sooner only prolongs it."""
    auth0.rate_limit(DISCOVERY, retry_after=20)
    with pytest.raises(TokenSourceUnavailable) as unavailable:
        await call(authenticator, alice(auth0))
    assert unavailable.value.retry_after == 20
    clock.shift(19)
    with pytest.raises(TokenSourceUnavailable):
        await call(authenticator, alice(auth0))
    assert auth0.count() == 1
    clock.shift(1)
    assert await call(authenticator, alice(auth0)) == "auth0|alice"


async def test_junk_tokens_fetch_nothing(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """What cheap checks refuse must not cost the issuer a request."""
    for token in ("a.b.c", alice(auth0, algorithm="none") + "AA", alice(auth0, expires_in=-60), alice(auth0, aud="x")):
        assert await refused(authenticator, token)
    assert auth0.requests == []


# --- unknown key ids -------------------------------------------------------------------------------------------------


async def test_a_new_key_works_at_once(auth0: Auth0, authenticator: JWTAuthenticator, clock: Any) -> None:
    """Key rotation should not be noticed by anyone."""
    old = alice(auth0)
    await call(authenticator, old)
    clock.shift(1)
    auth0.rotate_keys(keep_old=True)
    new = alice(auth0)
    assert await asyncio.gather(*(call(authenticator, token) for token in (new, old, new, new))) == ["auth0|alice"] * 4
    assert auth0.count(JWKS) == 2


async def test_a_second_rotation_works_within_the_cool_down(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """The documented bound is thirty seconds."""
    await call(authenticator, alice(auth0))
    auth0.rotate_keys()
    await call(authenticator, alice(auth0))
    auth0.rotate_keys()
    assert await refused(authenticator, alice(auth0))
    clock.shift(29)
    assert await refused(authenticator, alice(auth0))
    clock.shift(1)
    assert await call(authenticator, alice(auth0)) == "auth0|alice"


async def test_random_key_ids_cost_one_fetch_per_cool_down(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """CVE-2026-48524: anyone can make them up, and valid callers must not feel it."""
    token = alice(auth0)
    await call(authenticator, token)
    fetched = auth0.count(JWKS)
    for _ in range(20):
        attack = [refused(authenticator, with_key_id(token, secrets.token_hex(8))) for _ in range(500)]
        assert all(await asyncio.gather(*attack))
        assert await call(authenticator, token) == "auth0|alice"
        assert await call(authenticator, alice(auth0, jti=secrets.token_hex(8))) == "auth0|alice"
        clock.shift(1)
    assert auth0.count(JWKS) - fetched == 1
    clock.shift(30)
    assert await refused(authenticator, with_key_id(token, "x"))
    assert await refused(authenticator, with_key_id(token, "y"))
    assert auth0.count(JWKS) - fetched == 2


async def test_a_known_key_never_waits_for_an_unknown_one(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """Else a stalled key endpoint and one forged token would stop everybody."""
    token = alice(auth0)
    await call(authenticator, token)
    auth0.stall(JWKS, 60)
    waiting = asyncio.create_task(refused(authenticator, with_key_id(token, "unknown")))
    await soon(lambda: auth0.count(JWKS) == 2)
    async with asyncio.timeout(10):
        assert await call(authenticator, token) == "auth0|alice"
        assert await call(authenticator, alice(auth0, jti="another")) == "auth0|alice"
    assert not waiting.done()
    await authenticator.aclose()
    assert await waiting


async def test_the_event_loop_runs_on_while_keys_are_fetched() -> None:
    """A fetch on the loop's own thread would stop every stream that the process relays."""
    with serve(auth0 := Auth0()):
        auth0.stall(JWKS, 0.3, times=1)
        authenticator = JWTAuthenticator(issuer=auth0.issuer, audience=API)
        fetch = asyncio.create_task(call(authenticator, alice(auth0)))
        turns = 0
        while not fetch.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert await fetch == "auth0|alice"
        assert turns > 3
        await authenticator.aclose()


# --- keys of age -----------------------------------------------------------------------------------------------------


async def test_keys_of_age_are_fetched_behind_the_callers_backs(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """Ten minutes, as identity providers advise; the keys at hand serve meanwhile, even if the fetch never ends."""
    token = alice(auth0)
    await call(authenticator, token)
    clock.shift(599)
    await call(authenticator, token)
    assert auth0.count(JWKS) == 1
    auth0.stall(JWKS, 60)
    clock.shift(1)
    async with asyncio.timeout(10):
        for _ in range(3):
            assert await call(authenticator, token) == "auth0|alice"
            assert await call(authenticator, alice(auth0, jti=secrets.token_hex(8))) == "auth0|alice"
    await soon(lambda: auth0.count(JWKS) == 2)
    await call(authenticator, token)
    assert auth0.count(JWKS) == 2


async def test_a_refresh_without_news_changes_nothing(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """Every ten minutes, all tokens at once would be verified anew."""
    token = alice(auth0)
    before = await caller(authenticator, token)
    clock.shift(600)
    await caller(authenticator, token)
    await soon(lambda: auth0.count(JWKS) == 2)
    assert await caller(authenticator, token) is before


async def test_a_withdrawn_key_takes_its_tokens_with_it(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """A key is withdrawn because somebody else may have it; that a token was verified before is no excuse."""
    by_old = alice(auth0)
    await call(authenticator, by_old)
    auth0.rotate_keys(keep_old=True)
    by_new = alice(auth0)
    await call(authenticator, by_new)
    assert await call(authenticator, by_old) == "auth0|alice"

    withdrawn = Auth0(ISSUER)
    withdrawn.rotate_keys()
    auth0.answer = withdrawn.answer  # type: ignore[method-assign]
    clock.shift(600)
    assert await call(authenticator, by_old) == "auth0|alice"
    await soon(lambda: auth0.count(JWKS) == 3)

    assert await refused(authenticator, by_old)
    assert await call(authenticator, by_new) == "auth0|alice"


async def test_a_clock_that_is_set_back_stops_nothing(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """Virtual machines wake up in the wrong year, and are corrected."""
    await call(authenticator, alice(auth0))
    assert await refused(authenticator, with_key_id(alice(auth0), "x"))
    assert auth0.count(JWKS) == 2
    clock.shift(-86400)
    assert await refused(authenticator, with_key_id(alice(auth0), "y"))
    assert auth0.count(JWKS) == 3
    auth0.rotate_keys()
    clock.shift(-86400)
    assert await call(authenticator, alice(auth0)) == "auth0|alice"


# --- outages ---------------------------------------------------------------------------------------------------------


async def test_an_hour_without_keys_is_not_noticed(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys seldom change; what verified yesterday's tokens verifies today's. The issuer is asked less and less."""
    known = alice(auth0)
    await call(authenticator, known)
    auth0.fail("/", status=503)
    asked = auth0.count()
    for minute in range(60):
        clock.shift(60)
        assert await call(authenticator, known) == "auth0|alice"
        assert await call(authenticator, alice(auth0, jti=f"{minute}")) == "auth0|alice"
        await soon(lambda: True)
    assert 5 <= auth0.count() - asked <= 16
    assert "the known keys keep serving" in caplog.text
    assert known not in caplog.text

    auth0.reset_faults()
    auth0.rotate_keys()
    clock.shift(300)
    assert await call(authenticator, known) == "auth0|alice"
    await soon(lambda: auth0.count(JWKS) == 2)
    assert await refused(authenticator, known)
    assert await call(authenticator, alice(auth0)) == "auth0|alice"


async def test_every_outage_starts_with_short_pauses(auth0: Auth0, authenticator: JWTAuthenticator, clock: Any) -> None:
    """The last one's length says nothing of this one's."""
    token = alice(auth0)
    await call(authenticator, token)
    for _ in range(2):
        auth0.fail(JWKS)
        for pause in (600, 30, 60, 120, 240, 300, 300):
            asked = auth0.count(JWKS)
            clock.shift(pause - 1)
            await call(authenticator, token)
            await soon(lambda: True)
            assert auth0.count(JWKS) == asked
            clock.shift(1)
            await call(authenticator, token)
            await soon(lambda asked=asked: auth0.count(JWKS) == asked + 1)  # type: ignore[misc]
        auth0.reset_faults()
        clock.shift(300)
        await call(authenticator, token)
        await soon(lambda asked=asked: auth0.count(JWKS) == asked + 2)  # type: ignore[misc]


async def test_random_key_ids_during_an_outage_stay_within_the_cool_down(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """An outage is when the issuer needs the rest most."""
    token = alice(auth0)
    await call(authenticator, token)
    auth0.fail("/", status=503)
    clock.shift(600)
    asked = auth0.count()
    for _ in range(30):
        assert all([await unavailable(authenticator, with_key_id(token, secrets.token_hex(8))) for _ in range(20)])
        assert await call(authenticator, token) == "auth0|alice"
        clock.shift(1)
    assert auth0.count() - asked == 1


async def test_a_new_key_that_cannot_be_fetched_is_no_fault_of_its_callers(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any
) -> None:
    """Told that it is invalid, clients would throw a good token away; told when to come back, they do."""
    old = alice(auth0)
    await call(authenticator, old)
    auth0.rotate_keys(keep_old=True)
    new = alice(auth0)
    auth0.fail("/", status=503)
    for wait in (30, 20, 10):
        with pytest.raises(TokenSourceUnavailable) as told:
            await call(authenticator, new)
        assert told.value.headers() == [("retry-after", str(wait))]
        assert await call(authenticator, old) == "auth0|alice"
        clock.shift(10)
    auth0.reset_faults()
    assert await call(authenticator, new) == "auth0|alice"
    assert await refused(authenticator, with_key_id(new, "unknown"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>maintenance</html>",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": null}',
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "x"}]}',
        b'{"keys": ' + b"[" * 100_000,
        b'{"keys": [' + b"9" * 5000 + b"]}",
        b'{"keys": [' + b" " * 1_100_000 + b"]}",
        b"\xff\xfe",
    ],
)
async def test_a_useless_answer_wipes_nothing(
    auth0: Auth0, authenticator: JWTAuthenticator, clock: Any, body: bytes
) -> None:
    """A 200 from a maintenance page or a poisoned cache is not a key set."""
    token = alice(auth0)
    await call(authenticator, token)
    auth0.fail(JWKS, status=200, body=body)
    assert await unavailable(authenticator, with_key_id(token, "unknown"))
    assert auth0.count(JWKS) == 2
    assert await call(authenticator, token) == "auth0|alice"
    assert await call(authenticator, alice(auth0, jti="another")) == "auth0|alice"


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
@pytest.mark.parametrize("status", [301, 302, 307, 308, 204, 206, 404, 500])
async def test_only_a_200_is_an_answer(
    auth0: Auth0, authenticator: JWTAuthenticator, path: str, status: int, clock: Any
) -> None:
    """A redirect is not followed: whoever can redirect could choose the keys."""
    stranger = signing_key("RS256", 99)
    body = {"keys": [stranger.jwk], "issuer": ISSUER, "jwks_uri": ISSUER + "evil.json"}
    auth0.fail(path, status=status, body=b"" if status == 204 else body, headers={"location": ISSUER + "evil.json"})
    with pytest.raises(TokenSourceUnavailable):
        await call(authenticator, alice(auth0, key=stranger))
    assert auth0.count("/evil.json") == 0


async def test_a_broken_off_answer_is_a_failed_fetch() -> None:
    """Half a key set might lack the key that matters."""
    with serve(auth0 := Auth0()):
        authenticator = JWTAuthenticator(issuer=auth0.issuer, audience=API)
        auth0.drop(JWKS, times=1)
        with pytest.raises(TokenSourceUnavailable):
            await call(authenticator, alice(auth0))
        await authenticator.aclose()


async def test_closing_breaks_a_fetch_off_and_is_not_the_end(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """A shutdown must not wait for a stalled issuer; a lifespan may start again."""
    await authenticator.aclose()
    auth0.stall(JWKS, 60, times=1)
    waiting = asyncio.create_task(call(authenticator, alice(auth0)))
    await soon(lambda: auth0.count(JWKS) == 1)
    await authenticator.aclose()
    with pytest.raises(TokenSourceUnavailable):
        await waiting
    assert await call(authenticator, alice(auth0)) == "auth0|alice"
    await authenticator.aclose()
    await authenticator.aclose()


# --- discovery -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"issuer": ISSUER},
        {"jwks_uri": ISSUER + "jwks.json"},
        {"issuer": ISSUER[:-1], "jwks_uri": ISSUER + "jwks.json"},
        {"issuer": ISSUER.upper(), "jwks_uri": ISSUER + "jwks.json"},
        {"issuer": [ISSUER], "jwks_uri": ISSUER + "jwks.json"},
        {"issuer": "https://evil.example/", "jwks_uri": ISSUER + "jwks.json"},
        *(
            {"issuer": ISSUER, "jwks_uri": uri}
            for uri in (
                "http://acme.eu.auth0.com/jwks.json",
                "http://127.0.0.1.evil.example/jwks.json",
                "http://0.0.0.0/jwks.json",
                "ftp://acme.eu.auth0.com/jwks.json",
                "file:///etc/jwks.json",
                "data:application/json,{}",
                "//acme.eu.auth0.com/jwks.json",
                "/jwks.json",
                "jwks.json",
                "",
                None,
                7,
                [ISSUER + "jwks.json"],
                "https://",
                "https://alice:pw@acme.eu.auth0.com/jwks.json",
                "https://acme.eu.auth0.com/jwks.json#x",
                "https://acme.eu.auth0.com/../jwks.json",
                "https://acme.eu.auth0.com/a\r\nb",
                "https://acme.eu.auth0.com:99999/",
                "https://[::1/",
                "https://äcme.example/",
            )
        ),
    ],
)
async def test_a_wrong_discovery_document_leads_nowhere(
    auth0: Auth0, authenticator: JWTAuthenticator, document: dict[str, Any]
) -> None:
    """OpenID Connect Discovery section 4.3: the issuer must match exactly; the keys must come over TLS."""
    auth0.fail(DISCOVERY, status=200, body=document)
    with pytest.raises(TokenSourceUnavailable):
        await call(authenticator, alice(auth0))
    assert auth0.count() == 1


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("https://keys.acme.example/.well-known/jwks.json", {}),
        ("http://127.0.0.1:9100/.well-known/jwks.json?x=1", {}),
        ("http://localhost/.well-known/jwks.json", {}),
        ("http://idp.internal/.well-known/jwks.json", {"allow_insecure": True}),
    ],
)
async def test_keys_may_be_elsewhere(auth0: Auth0, uri: str, options: dict[str, Any]) -> None:
    """Some issuers keep them on another host."""
    auth0.fail(DISCOVERY, status=200, body={"issuer": ISSUER, "jwks_uri": uri})
    authenticator = JWTAuthenticator(issuer=ISSUER, audience=API, transport=httpx.ASGITransport(app=auth0), **options)
    assert await call(authenticator, alice(auth0)) == "auth0|alice"
    assert auth0.last.header("host") == uri.split("/")[2]


@pytest.mark.parametrize(
    ("issuer", "path"),
    [
        ("https://acme.example", DISCOVERY),
        ("https://acme.example/", DISCOVERY),
        ("https://acme.example/realms/acme", "/realms/acme" + DISCOVERY),
        ("https://acme.example/realms/acme/", "/realms/acme" + DISCOVERY),
    ],
)
async def test_discovery_is_asked_below_the_issuer(auth0: Auth0, issuer: str, path: str) -> None:
    """OpenID Connect Discovery section 4: one slash, whether or not the issuer ends with it."""
    auth0.fail(path, status=200, body={"issuer": issuer, "jwks_uri": "https://acme.example" + JWKS})
    authenticator = JWTAuthenticator(issuer=issuer, audience=API, transport=httpx.ASGITransport(app=auth0))
    assert await call(authenticator, alice(auth0, iss=issuer)) == "auth0|alice"
    assert [r.path for r in auth0.requests] == [path, JWKS]


async def test_a_key_set_that_moves_is_found_again(auth0: Auth0, authenticator: JWTAuthenticator, clock: Any) -> None:
    """Where the keys are is asked each time they are."""
    await call(authenticator, alice(auth0))
    auth0.rotate_keys()
    auth0.fail(DISCOVERY, status=200, body={"issuer": ISSUER, "jwks_uri": "https://keys.acme.example" + JWKS})
    assert await call(authenticator, alice(auth0)) == "auth0|alice"
    assert auth0.last.header("host") == "keys.acme.example"


async def test_failures_are_told_without_the_sender_s_words(
    auth0: Auth0, authenticator: JWTAuthenticator, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator sees that keys are missing and why; a made-up key id stays out of the log."""
    caplog.set_level(logging.DEBUG, logger="idp_middleware")
    token = alice(auth0)
    await call(authenticator, token)
    auth0.fail(JWKS, status=500)
    assert await unavailable(authenticator, with_key_id(token, "MARK\r\n"))
    assert f"Keys of {ISSUER} not fetched: status 500; the known keys keep serving" in caplog.messages
    assert "MARK" not in caplog.text


async def test_time_passes_in_real_seconds_too(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """No test above lets the clock run by itself."""
    started = time.time()
    assert await call(authenticator, alice(auth0)) == "auth0|alice"
    assert await refused(authenticator, with_key_id(alice(auth0), "x"))
    assert await refused(authenticator, with_key_id(alice(auth0), "y"))
    if time.time() - started < 30:
        assert auth0.count(JWKS) == 2
