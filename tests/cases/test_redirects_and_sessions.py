"""Group H: where an answer leads, whose cookies are whose, and whether the app's own page asked.

H09, H11 and H12 are about a log-in, which is the app's: what is true of us beside one is here.
"""

from __future__ import annotations

import base64
import json

import pytest
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from idp_middleware import AnyOf, ProxyRoute, SessionAuthenticator, errors
from tests import test_jwt_forged as forged
from tests.cases.conftest import TOKENS, provider_token
from tests.stack import recording_upstream, running
from tests.test_session import signed as signed_with

KEY = "the key of the sessions"
CONNECT = "https://app.example/connect/github"
OURS = "X-CSRF: 1"


def signed(data: object, key: str = KEY) -> str:
    return signed_with(data, key)


@pytest.fixture(scope="module")
def routes(recorder):
    def route(**options):
        return ProxyRoute(f"{recorder.url.replace('127.0.0.1', 'localhost')}/base", **options)

    async def not_linked(caller, route):
        raise errors.IdentityNotLinked("no such account", connection="github", connect_url=CONNECT)

    return {
        "up": route(token_source=provider_token),
        "cookies": route(token_source=provider_token, allow_set_cookie=True),
        "unlinked": route(token_source=not_linked),
    }


async def log_in(request):
    request.session["sub"] = f"auth0|{request.path_params['user']}"
    return PlainTextResponse("")


@pytest.fixture(scope="module")
def with_sessions(parser, routes):
    """A server-rendered app with a log-in of its own, and tokens beside its sessions."""
    app = Starlette(routes=[Route("/login/{user}", log_in, methods=["POST"])])

    def around(middleware):
        return SessionMiddleware(middleware, KEY, session_cookie="__Host-s", same_site="strict", https_only=True)

    authenticator = AnyOf(forged.authenticator(), SessionAuthenticator())
    with running(
        http=parser, routes=lambda api, source: routes, app=app, authenticator=authenticator, wrap=around
    ) as stack:
        yield stack


def cookie(user="alice", key=KEY):
    return f"Cookie: __Host-s={signed({'sub': f'auth0|{user}'}, key)}"


def redirect(location, status=b"302 Found"):
    return b"HTTP/1.1 %b\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, location)


def test_a_redirect_elsewhere_is_the_callers_to_follow(stack, upstream):
    """H01: followed here, it would take the token along; there the caller's browser has none to take."""
    with recording_upstream() as evil:
        location = f"{evil.url}/base/x?a=b#c".encode()
        upstream.answer = redirect(location)
        answer = stack.ask("GET", "/idp/up/x")
        assert (answer.status, answer.all(b"location")) == (302, [location])
        assert evil.requests == []
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", [b"307 Temporary Redirect", b"308 Permanent Redirect", b"303 See Other", b"301 M"])
def test_a_redirected_upload_is_sent_once(stack, upstream, status):
    """H02: and its status says what the caller's next request should be, so it is not ours to change."""
    upstream.answer = redirect(b"/base/elsewhere", status)
    answer = stack.ask("POST", "/idp/up/x", "Content-Length: 4", body=b"body")
    assert answer.status == int(status[:3])
    assert answer.all(b"location") == [b"/idp/up/elsewhere"]
    assert [request.body for request in upstream.requests] == [b"body"]


@pytest.mark.parametrize(
    ("location", "led_back"),
    [
        ("http://localhost:1/base/x", False),
        ("http://localhost/base/x", False),
        ("https://localhost:{port}/base/x", False),
        ("http://127.0.0.1:{port}/base/x", False),
        ("http://localhost.:{port}/base/x", False),
        ("http://localhost:{port}@evil.example/base/x", False),
        ("//evil.example/base/x", False),
        ("http://LOCALHOST:{port}/base/x", True),
        ("HTTP://localhost:{port}/base/x", True),
        ("http://user@localhost:{port}/base/x", True),
        ("//localhost:{port}/base/x", True),
        ("x", True),
    ],
)
def test_what_looks_like_the_upstream_is_not_it(stack, upstream, location, led_back):
    """H03: nothing is followed, and only what leads to the very origin leads back under the prefix."""
    location = location.replace("{port}", upstream.url.rpartition(":")[2])
    upstream.answer = redirect(location.encode())
    answer = stack.ask("GET", "/idp/up/x")
    assert (answer.status, len(upstream.requests)) == (302, 1)
    assert answer.all(b"location") == [b"/idp/up/x" if led_back else location.encode()]


COOKIES = [b"a=1; Domain=up.example; Path=/base", b"__Host-s=forged; Path=/; Secure", b"b=2"]


def test_an_upstreams_cookies_are_not_for_our_origin(stack, upstream):
    """H05: it could log the user in as somebody else. A route may let them pass, as they are: browsers judge them."""
    fields = b"".join(b"Set-Cookie: %b\r\n" % value for value in COOKIES)
    upstream.answer = b"HTTP/1.1 200 OK\r\n" + fields + b"Set-Cookie2: c=3\r\nContent-Length: 0\r\n\r\n"
    assert stack.ask("GET", "/idp/up/x").all(b"set-cookie") == []
    assert stack.ask("GET", "/idp/cookies/x").all(b"set-cookie") == COOKIES


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["X-CSRF: 0"],
        [OURS, OURS],
        [OURS, "Origin: https://evil.example"],
        [OURS, "Origin: null"],
        [OURS, "Origin: http://127.0.0.1"],
        [OURS, "Origin: {own}", "Origin: https://evil.example"],
        [OURS, "Sec-Fetch-Site: cross-site"],
        [OURS, "Sec-Fetch-Site: same-site"],
        [OURS, "Sec-Fetch-Site: none"],
        ["Origin: {own}", "Sec-Fetch-Site: same-origin"],
    ],
)
def test_a_page_of_anothers_can_do_nothing_with_the_cookie(with_sessions, upstream, method, fields):
    """H07: RFC 10017 section 6.1.3.3; each of the three alone is enough to refuse."""
    fields = [field.replace("{own}", with_sessions.url) for field in fields]
    assert with_sessions.ask(method, "/idp/up/x", cookie(), *fields, user=None).problem == "caller-forbidden"
    assert upstream.requests == []


@pytest.mark.parametrize("fields", [[], ["Origin: {own}"], ["Origin: {own}", "Sec-Fetch-Site: same-origin"]])
def test_the_apps_own_page_can(with_sessions, upstream, fields):
    """H07: else refusing the others would prove nothing."""
    fields = [OURS, *(field.replace("{own}", with_sessions.url) for field in fields)]
    for user in ("alice", "bob"):
        assert with_sessions.ask("POST", "/idp/up/x", cookie(user), *fields, user=None).status == 200
        assert upstream.last.all(b"authorization") == [f"Bearer {TOKENS[f'auth0|{user}']}".encode()]
        assert upstream.last.all(b"cookie") == []


def test_a_cookie_with_every_protection_that_browsers_know_serves(with_sessions, upstream):
    """H09: the app's session middleware sets it, and can have all of them; nothing of ours ever sets one."""
    (set_by_the_app,) = with_sessions.ask("POST", "/login/alice", user=None).all(b"set-cookie")
    pair, *attributes = set_by_the_app.decode().split("; ")
    assert pair.startswith("__Host-s=")
    assert {attribute.lower() for attribute in attributes} >= {"path=/", "httponly", "secure", "samesite=strict"}
    assert not [attribute for attribute in attributes if attribute.lower().startswith("domain")]
    answer = with_sessions.ask("GET", "/idp/up/x", f"Cookie: {pair}", OURS, user=None)
    assert (answer.status, answer.all(b"set-cookie")) == (200, [])
    for target, fields in (("/idp/up/x", []), ("/idp/none", []), ("/idp/up/../x", []), ("/idp/up/x", [cookie()])):
        assert with_sessions.ask("GET", target, *fields, user=None).all(b"set-cookie") == []


@pytest.mark.parametrize(
    ("authorization", "fields", "status"),
    [
        ("good", [OURS], 200),
        ("good", [], 200),
        ("forged", [OURS], 401),
        ("twice", [OURS], 401),
        ("Bearer", [OURS], 401),
    ],
)
def test_of_a_token_and_a_cookie_the_first_authenticators_counts(
    with_sessions, upstream, authorization, fields, status
):
    """H10: here the token's alice, never the cookie's bob, not even where her token is no longer good."""
    good = f"Authorization: Bearer {forged.token().decode()}"
    sent = {
        "good": [good],
        "twice": [good, good],
        "forged": [f"Authorization: Bearer {forged.token(sign=forged.fixed(b'x' * 256)).decode()}"],
        "Bearer": ["Authorization: Bearer "],
    }
    answer = with_sessions.ask("GET", "/idp/up/x", cookie("bob"), *sent[authorization], *fields, user=None)
    assert answer.status == status
    alices = [[f"Bearer {TOKENS['auth0|alice']}".encode()]]
    assert [request.all(b"authorization") for request in upstream.requests] == (alices if status == 200 else [])


@pytest.mark.parametrize(
    "sent",
    [
        "__Host-s=",
        "__Host-s=" + signed({"sub": "auth0|alice"}, "another key"),
        "__Host-s=" + signed({"sub": "auth0|alice"})[:-1],
        "__Host-s=" + "A" + signed({"sub": "auth0|alice"}),
        "__Host-s=" + "A" * 20_000,
        "__Host-s=" + base64.b64encode(json.dumps({"sub": "auth0|alice"}).encode()).decode(),
        "__host-s=" + signed({"sub": "auth0|alice"}),
        "s=" + signed({"sub": "auth0|alice"}),
        "__Host-s=" + signed({"sub": "auth0|alice"}) + "; __Host-s=forged",
    ],
    ids=lambda sent: sent[:24],
)
def test_a_cookie_that_does_not_verify_is_nobodys(with_sessions, upstream, sent):
    """H11: whose it is, is the session middleware's to say; so is clearing it, with the next log-in."""
    answer = with_sessions.ask("GET", "/idp/up/x", f"Cookie: {sent}", OURS, user=None)
    assert (answer.status, answer.problem) == (401, "caller-unauthenticated")
    assert answer.all(b"set-cookie") == []
    assert upstream.requests == []


@pytest.mark.parametrize("to", ["//evil.example", "/%5C%5Cevil.example", "https:evil.example", "/%09/evil.example"])
@pytest.mark.parametrize("target", ["/idp", "/idp/", "/idp/unlinked/x", "/idp/none/x", "/idp/unlinked"])
def test_no_answer_of_ours_leads_anywhere_that_a_request_names(stack, upstream, target, to):
    """H12: there is no log-in here to come back from; where to connect an account is the operator's word."""
    fields = [f"Referer: https://{to}", "X-Forwarded-Host: evil.example", f"X-Return-To: {to}"]
    query = f"?return_to={to}&redirect_uri={to}&next={to}"
    answer = stack.ask("GET", target + query, *fields)
    assert answer.status in (200, 403, 404)
    assert not {name for name, _ in answer.fields} & {b"location", b"refresh", b"link", b"content-location"}
    assert b"evil" not in answer.head + answer.body
    if target.startswith("/idp/unlinked"):
        assert json.loads(answer.body)["connect_url"] == CONNECT
    assert upstream.requests == []


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1"])
@pytest.mark.parametrize(("target", "user"), [("/idp/up/x", "alice"), ("/idp/up/x", None), ("/idp/none", "alice")])
def test_no_page_of_another_origin_may_read_an_answer(stack, upstream, origin, target, user):
    """H13: neither ours nor the upstream's: its permission was for its own origin. CORS is the app's to allow."""
    upstream.answer = (
        f"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n"
        "Access-Control-Expose-Headers: *\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    answer = stack.ask("GET", target, f"Origin: {origin}", "Cookie: s=1", user=user)
    assert not [name for name, _ in answer.fields if name.startswith(b"access-control-")]
    assert all(request.all(b"origin") == [] for request in upstream.requests)
