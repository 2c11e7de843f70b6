"""What a token endpoint's answer is taken for, through the source that does nothing but ask one."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus

import httpx
import pytest

from idp_middleware import Caller, ProxyRoute, Token
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    ConfigurationError,
    IdPError,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.sources import ClientCredentials

URL = "https://idp.example/token"
GOOD = {"access_token": "at", "token_type": "Bearer", "expires_in": 3600}


class Endpoint:
    """Answers the same to each request, and keeps them."""

    def __init__(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer, self.status, self.headers = answer, status, headers
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        content = self.answer if isinstance(self.answer, (bytes, str)) else json.dumps(self.answer)
        return httpx.Response(self.status, content=content, headers=self.headers)


def source(endpoint: Endpoint, **options: Any) -> ClientCredentials:
    given = {"token_url": URL, "client_id": "me", "client_secret": "s3cret", **options}
    return ClientCredentials(**given, transport=httpx.MockTransport(endpoint))


async def ask(endpoint: Endpoint, **options: Any) -> Token:
    asked = source(endpoint, **options)
    try:
        return await asked.token(Caller("alice"), ProxyRoute("https://api.example.com", token_source=asked))
    finally:
        await asked.aclose()


async def test_the_request_is_the_form_of_the_rfc() -> None:
    """RFC 6749 section 4.4.2, the client's password in the body as section 2.3.1 has it."""
    endpoint = Endpoint(GOOD)
    await ask(endpoint, scope="read write", audience="https://api.example.com")
    (request,) = endpoint.requests
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(request.content.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["me"],
        "client_secret": ["s3cret"],
        "scope": ["read write"],
        "audience": ["https://api.example.com"],
    }


async def test_what_is_not_asked_for_is_not_sent() -> None:
    """An empty scope is an error to some servers."""
    endpoint = Endpoint(GOOD)
    await ask(endpoint, scope="")
    assert parse_qs(endpoint.requests[0].content.decode()).keys() == {"grant_type", "client_id", "client_secret"}


async def test_an_answer_becomes_a_token() -> None:
    """Type in any case (RFC 6749 section 5.1), scopes separated by spaces, or commas as some have it."""
    token = await ask(Endpoint({**GOOD, "token_type": "bEaReR", "scope": "read, write admin"}))
    assert (token.value, token.type, token.scopes) == ("at", "Bearer", {"read", "write", "admin"})
    assert token.expires_at == pytest.approx(time.time() + 3600, abs=30)


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        (3600, 3600),
        ("3600", 3600),
        (3600.9, 3600.9),
        (0, 0),
        (-1, 0),
        (10**30, 365 * 86400),
        (float("inf"), 365 * 86400),
        (10**400, None),
        (None, None),
        (True, None),
        ("soon", None),
        ([3600], None),
        (float("nan"), None),
    ],
    ids=repr,
)
async def test_a_life_is_whatever_a_server_makes_of_a_number_of_seconds(expires_in: Any, life: float | None) -> None:
    """All of these have been seen, or will be."""
    token = await ask(Endpoint({**GOOD, "expires_in": expires_in}))
    if life is None:
        assert token.expires_at is None
    else:
        assert token.expires_at == pytest.approx(time.time() + life, abs=30)


async def test_a_life_that_is_not_told_is_unknown() -> None:
    """expires_in is recommended only."""
    token = await ask(Endpoint({"access_token": "at", "token_type": "bearer"}))
    assert token.expires_at is None


@pytest.mark.parametrize(
    "answer",
    [
        {"token_type": "Bearer"},
        {**GOOD, "access_token": None},
        {**GOOD, "access_token": ""},
        {**GOOD, "access_token": 7},
        {**GOOD, "access_token": ["at"]},
        {**GOOD, "access_token": "two words"},
        {**GOOD, "access_token": "at\r\nx-evil: 1"},
        {**GOOD, "access_token": "ät"},
        {"access_token": "at"},
        {**GOOD, "token_type": "DPoP"},
        {**GOOD, "token_type": "N_A"},
        {**GOOD, "token_type": None},
        {**GOOD, "token_type": ["Bearer"]},
        [],
        "",
        "<html>",
        b"\xff",
        "[" * 200_000,
    ],
    ids=lambda answer: repr(answer)[:60],
)
async def test_nonsense_is_a_failed_source(answer: Any) -> None:
    """A token of a type we do not understand must not be used (RFC 6749 section 7.1), nor one that is no header."""
    with pytest.raises(TokenSourceFailed) as caught:
        await ask(Endpoint(answer))
    assert "at" not in str(caught.value).split()


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (400, {"error": "invalid_grant"}, "invalid_grant"),
        (401, {"error": "invalid_client", "error_description": "wrong\nsecret"}, "invalid_client"),
        (403, {"error": "access_denied", "error_description": "Create a client-grant"}, "access_denied"),
        (200, {"error": "bad_verification_code", **GOOD}, "bad_verification_code"),
        (200, {"error": {"message": "no"}, **GOOD}, ""),
        (400, {"message": "no"}, ""),
        (201, GOOD, ""),
    ],
)
async def test_a_refusal_is_told_to_the_operator(status: int, answer: dict[str, Any], code: str) -> None:
    """HTTP 200 with an error is one too. What else the answer holds is not handed on."""
    with pytest.raises(TokenSourceFailed) as caught:
        await ask(Endpoint({**answer, "refresh_token": "rt"}, status))
    assert (code or "no error code") in str(caught.value)
    assert "rt" not in repr(vars(caught.value))
    assert str(answer.get("error_description", "")).replace("\n", " ") in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_description_that_repeats_our_secret_is_cleaned() -> None:
    """Some servers are too helpful, and this goes to a log."""
    answer = {"error": "invalid_client", "error_description": "client me with s3cret is wrong" + "!" * 1000}
    with pytest.raises(TokenSourceFailed) as caught:
        await ask(Endpoint(answer, 401))
    assert "client me with *** is wrong" in str(caught.value)
    assert "s3cret" not in repr(caught.value)
    assert len(str(caught.value)) < 500


LONG = 's3cr+t/of&the=client "me" <1>'


@pytest.mark.parametrize("member", ["error", "error_description"])
@pytest.mark.parametrize("client_auth", ["post", "basic"])
@pytest.mark.parametrize(
    "spelled",
    [
        lambda body, basic: parse_qs(body).get("client_secret", [LONG])[0],
        lambda body, basic: body,
        lambda body, basic: body.lower(),
        lambda body, basic: json.dumps({"client_secret": LONG}),
        lambda body, basic: json.dumps({"client_secret": LONG}).replace("/", "\\/"),
        lambda body, basic: html.escape(LONG),
        lambda body, basic: quote(LONG, safe="/"),
        lambda body, basic: f"you sent {LONG[:20]}",
        lambda body, basic: f"… {LONG[8:]}",
        lambda body, basic: f"Authorization: {basic}",
    ],
)
async def test_our_secret_is_not_told_however_a_server_repeats_it(
    member: str, client_auth: str, spelled: Callable[[str, str], str]
) -> None:
    """Whole or cut off, as it was sent or as it was understood, in the description or where the code should be."""

    class Repeating(Endpoint):
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            said = spelled(request.content.decode(), request.headers.get("authorization", ""))
            return httpx.Response(400, json={"error": "invalid_request", member: said})

    with pytest.raises(TokenSourceFailed) as caught:
        await ask(Repeating(None), client_secret=LONG, client_auth=client_auth)
    told = str(caught.value)
    for form in (LONG, LONG.lower(), quote_plus(LONG), quote_plus(LONG).lower(), json.dumps(LONG)[1:-1]):
        assert [form[at : at + 8] for at in range(len(form) - 7) if form[at : at + 8] in told] == []
    basic = base64.b64encode(f"me:{quote_plus(LONG)}".encode()).decode()
    assert [basic[at : at + 8] for at in range(4, len(basic) - 7) if basic[at : at + 8] in told] == []


async def test_an_endless_description_is_looked_at_in_part() -> None:
    """It costs the same however much a server says."""
    long = "s3cret" * 170_000
    started = time.process_time()
    with pytest.raises(TokenSourceFailed) as caught:
        await ask(Endpoint({"error": long, "error_description": long}, 400), client_secret="x" * 16_000)
    assert len(str(caught.value)) < 500
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("status", [500, 502, 503, 599])
async def test_a_server_error_is_not_final(status: int) -> None:
    """Whatever its body says."""
    endpoint = Endpoint({"error": "invalid_grant"}, status, {"retry-after": "7"})
    with pytest.raises(TokenSourceUnavailable) as caught:
        await ask(endpoint)
    assert caught.value.retry_after == 7
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 404, 405])
async def test_a_page_instead_of_an_answer_is_a_failed_source(status: int) -> None:
    """A wrong URL; redirects are not followed, since they would take the secret along."""
    endpoint = Endpoint("<html>", status, {"location": "https://evil.example/"})
    with pytest.raises(TokenSourceFailed, match=str(status)):
        await ask(endpoint)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (httpx.ConnectError("to 10.0.0.7"), TokenSourceUnavailable),
        (httpx.ReadError("reset"), TokenSourceUnavailable),
        (httpx.ReadTimeout("slow"), TokenSourceTimeout),
        (httpx.RemoteProtocolError("closed"), TokenSourceUnavailable),
        (httpx.UnsupportedProtocol("odd"), TokenSourceFailed),
    ],
)
async def test_a_transport_that_fails_is_told_in_our_words(failure: Exception, error: type[IdPError]) -> None:
    """No error of the HTTP library, no address."""
    with pytest.raises(error) as caught:
        await ask(Endpoint(failure))
    assert "10.0.0.7" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_one_token_serves_all_callers_until_it_expires() -> None:
    """It is the app's own; the engine keeps it."""
    endpoint = Endpoint(GOOD)
    asked = source(endpoint)
    engine = TokenEngine()
    intranet = ProxyRoute("https://api.example.com", token_source=asked)
    assert {(await engine.token(Caller(str(n)), intranet)).value for n in range(10)} == {"at"}
    assert len(endpoint.requests) == 1
    await engine.aclose()
    await asked.aclose()


def test_configuration_alone_decides_whether_two_are_the_same() -> None:
    """The secret does not: rotating it must not lose all tokens, and it has no place in a key."""
    endpoint = Endpoint(GOOD)
    same = [source(endpoint), source(endpoint, client_secret="rotated")]
    others = [
        source(endpoint, client_id="you"),
        source(endpoint, scope="read"),
        source(endpoint, audience="read"),
        source(endpoint, token_url=URL + "2"),
    ]
    assert len({one.identity for one in same}) == 1
    assert len({one.identity for one in [*same, *others]}) == 5
    assert "s3cret" not in str(same[0].identity)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"token_url": "http://idp.example/token"}, "token_url"),
        ({"token_url": "idp.example"}, "token_url"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": None}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
    ],
)
def test_mistakes_are_told_where_they_are_made(options: dict[str, Any], key: str) -> None:
    """Long before the first request."""
    with pytest.raises(ConfigurationError) as caught:
        source(Endpoint(GOOD), **options)
    assert caught.value.key == key


def test_nothing_shows_the_secret() -> None:
    """Whatever a debugger, a log line or pytest prints of it."""
    one = source(Endpoint(GOOD), token_url="http://127.0.0.1/token")
    assert repr(one) == "ClientCredentials(token_url='http://127.0.0.1/token', client_id='me')"
    with pytest.raises(TypeError):
        one.__reduce_ex__(4)
