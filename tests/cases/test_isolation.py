"""Group G: one user's token is nobody else's, and nobody reads one anywhere."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from contextlib import contextmanager, suppress

import pytest
import time_machine

from idp_middleware import Caller, IntrospectionAuthenticator, JWTAuthenticator, ProxyRoute, Token, errors, sources
from idp_middleware.testing import Identity
from tests.cases.conftest import TOKENS, app_behind, provider_token
from tests.leaks.ways import WAYS
from tests.stack import CLIENT, OK, USERS, RawMessage, recording_upstream, running

ALICES = TOKENS["auth0|alice"].encode()


@pytest.fixture(scope="module")
def routes(recorder):
    def route(**options):
        return ProxyRoute(f"{recorder.url}/base", token_source=provider_token, **options)

    return {"up": route(), "scrubbed": route(scrub=True)}


@contextmanager
def gateway(parser, upstream, source=provider_token, *, app=app_behind, **options):
    """A stack of a test's own, with what it keeps."""
    routes = {"up": ProxyRoute(upstream.url, token_source=source)}
    with running(http=parser, routes=lambda api, _: routes, app=app, **options) as stack:
        yield stack


async def anybody(conn):
    """An authenticator for tests whose clock runs away from tokens: the caller is who they say."""
    return Caller(conn.headers["x-user"])


def credentials(upstream):
    return [request.all(b"authorization") for request in upstream.requests]


def test_users_share_connections_and_nothing_on_them(stack, upstream):
    """G01: on one connection of the caller's side and one to the upstream, to and fro."""
    users = ["alice", "bob", "alice", "alice", "bob"]
    with stack.connect() as client:
        for user in users:
            client.send(stack.raw_request("GET", "/idp/up/x", user=user, close=False))
            assert client.answer().status == 200
    assert credentials(upstream) == [[f"Bearer {TOKENS[f'auth0|{user}']}".encode()] for user in users]
    assert upstream.connections <= 1


def test_a_hundred_first_requests_of_one_user_ask_once(parser):
    """G05: a page that asks ten things at once is the rule, and identity providers limit rates."""

    async def call(stack, data):
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
        writer.write(data)
        head = await reader.read()
        writer.close()
        return int(head.split(b" ", 2)[1])

    async def at_once(stack):
        data = stack.raw_request("GET", "/idp/github/user")
        return await asyncio.gather(*(call(stack, data) for _ in range(100)))

    with running(http=parser) as stack:
        stack.auth0.stall("/oauth/token", 0.1)
        assert asyncio.run(at_once(stack)) == [200] * 100
        assert stack.auth0.count("/oauth/token") == stack.auth0.count("/api/v2/users") == 1
        assert set(stack.provider.tokens_seen()) == {USERS["alice"]}


@pytest.mark.parametrize(("status", "answered"), [(500, 503), (503, 503), (403, 502), (200, 502)])
def test_a_failure_for_one_user_is_neither_anothers_nor_kept(parser, status, answered):
    """G07: and the next request finds out that it is over."""
    with running(http=parser) as stack:
        stack.auth0.respond("/api/v2/users/auth0|alice", status=status, body={"error": "no"})
        assert stack.ask("GET", "/idp/github/user").status == answered
        assert stack.ask("GET", "/idp/github/user", user="bob").status == 200
        stack.auth0.reset_faults()
        assert stack.ask("GET", "/idp/github/user").status == 200
        assert stack.provider.tokens_seen() == [USERS["bob"], USERS["alice"]]


def test_not_linked_is_remembered_for_seconds_only(parser):
    """G07: long enough for a page that asks ten times, short enough for who links the account now."""
    with running(http=parser) as stack:
        stack.auth0.unlink("auth0|alice", "github")
        for _ in range(3):
            assert stack.ask("GET", "/idp/github/user").problem == "identity-not-linked"
        assert stack.auth0.count("/api/v2/users") == 1
        stack.auth0.link("auth0|alice", Identity("github", "101", access_token=USERS["alice"]))
        with time_machine.travel(time.time() + 6):
            assert stack.ask("GET", "/idp/github/user").status == 200


HOUR, YEAR = 3600, 365 * 86400


@pytest.mark.parametrize(
    ("expires_in", "serves"),
    [
        ("0", 0),
        ("-1", 0),
        ('"0"', 0),
        ('"3600"', HOUR),
        ("3600.5", HOUR),
        ("1e9", YEAR),
        ("1e999", YEAR),
        ("NaN", 300),
        ("null", 300),
        ("true", 300),
        ('"soon"', 300),
        ("[3600]", 300),
        ("9" * 400, 300),
        (None, 300),
    ],
)
def test_a_token_serves_no_longer_than_it_is_known_to(parser, upstream, expires_in, serves):
    """G08: whatever a server makes of a number of seconds. Unknown is five minutes, and a year all that is believed."""
    numbers = itertools.count(1)

    def token_endpoint(request):
        member = "" if expires_in is None else f', "expires_in": {expires_in}'
        body = f'{{"access_token": "token-{next(numbers)}", "token_type": "Bearer"{member}}}'.encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def sent(stack):
        assert stack.ask("GET", "/idp/up/x", "X-User: alice", user=None).status == 200
        return upstream.last.all(b"authorization")[0]

    with recording_upstream() as tokens:
        tokens.answer = token_endpoint
        source = sources.ClientCredentials(token_url=f"{tokens.url}/token", client_id="gateway", client_secret="x")
        with gateway(parser, upstream, source, authenticator=anybody) as stack:
            assert sent(stack) == b"Bearer token-1"
            assert sent(stack) == (b"Bearer token-1" if serves else b"Bearer token-2")
            asked = len(tokens.requests)
            with time_machine.travel(time.time() + serves + 1):
                assert sent(stack) == b"Bearer token-%d" % (asked + 1)


def test_no_log_has_a_secret_at_any_level(parser, caplog):
    """G11: root at DEBUG, the server at its trace, a good request, a renewal, a failure and a refusal."""
    caplog.set_level(1)
    cookie = "c00k1e-of-the-app"
    with running(http=parser, uvicorn={"log_level": "trace", "access_log": True}) as stack:
        token = stack.token()
        for path in ("/idp/github/user", "/idp/github/status/500", "/idp/github/status/401", "/idp/none", "/else"):
            stack.ask("GET", path, f"Authorization: Bearer {token}", f"Cookie: s={cookie}", user=None)
        stack.ask("GET", "/idp/github/user", f"Authorization: Bearer {token}x", user=None)
        issued = {r.header("authorization") for r in stack.auth0.requests} - {None}
    assert issued
    # They were all heard.
    assert {record.name.partition(".")[0] for record in caplog.records} >= {"idp_middleware", "httpcore", "uvicorn"}
    assert min(record.levelno for record in caplog.records) < logging.DEBUG
    logged = "\n".join(f"{record.getMessage()} {vars(record)!r}" for record in caplog.records)
    signature = token.rpartition(".")[2]
    for secret in (signature, USERS["alice"], CLIENT[1], cookie, *(each.split()[-1] for each in issued)):
        assert secret not in logged


def test_nothing_writes_a_secret_out_after_use(stack, upstream):
    """G13: whichever way an object is turned into text, the parts that are at work included."""
    assert stack.ask("GET", "/idp/up/x").status == 200
    token = Token("v4lue-of-a-token", extra={"access_token_secret": "s3cret-beside-it"})
    caller = Caller("auth0|alice", claims={"email": "4lice@example.com"}, credential="cr3dential")
    jwt = JWTAuthenticator(issuer="https://acme.example/", audience="api")
    asking = IntrospectionAuthenticator(
        introspection_url="https://acme.example/", client_id="gateway", client_secret="client-s3cret"
    )
    source = sources.Auth0Management(domain="acme.eu.auth0.com", client_id="gateway", client_secret="client-s3cret")
    held = [
        stack.middleware,
        stack.middleware.route("up"),
        token,
        caller,
        jwt,
        asking,
        source,
        sources.Static("st4tic-t0ken"),
    ]
    shown = ""
    for value in held:
        for write in WAYS.values():
            # Refusing to be written out is one way of not being.
            with suppress(Exception):
                shown += write(value)
    assert "auth0|alice" in shown
    secrets = ("v4lue", "s3cret", "4lice@", "cr3dential", "client-s3cret", "st4tic", TOKENS["auth0|alice"])
    assert [secret for secret in secrets if secret in shown] == []


def test_the_app_behind_sees_the_request_as_it_came_and_no_token(parser, upstream):
    """G14, G18: no token is asked for on its account, and what is in its scope shows none."""
    scopes, asked = [], []

    async def app(scope, receive, send):
        scopes.append(scope)
        await app_behind(scope, receive, send)

    async def source(caller, route):
        asked.append(caller)
        return await provider_token(caller, route)

    with gateway(parser, upstream, source, app=app) as stack:
        assert stack.ask("GET", "/idp/up/x").status == 200
        token = stack.token()
        fields = [f"Authorization: Bearer {token}", "X-Other: 1"]
        assert stack.ask("GET", "/other?a=1", *fields, user=None).status == 418
    (scope,) = (scope for scope in scopes if scope["type"] == "http")
    assert (b"authorization", f"Bearer {token}".encode()) in scope["headers"]
    assert [name for name, _ in scope["headers"]] == [b"host", b"authorization", b"x-other"]
    assert TOKENS["auth0|alice"] not in repr(scope) + repr(scope.get("state"))
    assert len(asked) == len(upstream.requests) == 1


def test_what_we_log_has_no_query(parser, upstream, caplog):
    """G15: URLs are where secrets end up that are not ours; the access log is the server's, and off here."""
    caplog.set_level(logging.DEBUG)
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n"
    with gateway(parser, upstream) as stack:
        answer = stack.ask("GET", "/idp/up/x?key=s3cret&a=b")
    assert answer.status == 502
    assert upstream.last.target == b"/x?key=s3cret&a=b"
    assert "upstream-unreachable" in caplog.text
    assert "s3cret" not in caplog.text + repr(answer)


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "500 Internal Server Error", "200 OK"])
@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/octet-stream"])
def test_a_page_that_echoes_the_token_is_masked_where_the_route_says_so(stack, upstream, status, kind):
    """G16: debug pages show the request. Without `scrub` an answer is the upstream's word for word."""

    def debug_page(request: RawMessage) -> bytes:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Echo: ".encode() + request.all(b"authorization")[0]
        return head + b"\r\nContent-Length: %d\r\n\r\n" % len(request.head) + request.head

    upstream.answer = debug_page
    masked = stack.ask("GET", "/idp/scrubbed/x")
    assert ALICES in upstream.last.head
    assert ALICES not in masked.head + masked.body
    assert masked.body.startswith(b"GET /base/x HTTP/1.1\r\n")
    assert ALICES in stack.ask("GET", "/idp/up/x").body


def test_an_upstreams_failure_is_the_callers_to_read(stack, upstream):
    """G17: status, body and what it runs on; only `Server` and `Date` are the server's that we run on."""
    upstream.answer = (
        b"HTTP/1.1 503 Service Unavailable\r\nServer: internal/1.2\r\nX-Powered-By: PHP/8\r\nRetry-After: 7\r\n"
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 5\r\n\r\nsorry"
    )
    answer = stack.ask("GET", "/idp/up/x")
    assert (answer.status, answer.body, answer.problem) == (503, b"sorry", None)
    assert answer.all(b"server") == [b"uvicorn"]
    assert len(answer.all(b"date")) == 1
    assert b"1970" not in answer.head
    assert (answer.all(b"x-powered-by"), answer.all(b"retry-after")) == ([b"PHP/8"], [b"7"])


@pytest.mark.parametrize(
    "field",
    [
        "X-Upstream: http://127.0.0.1:1",
        "X-Forwarded-Host: evil.example",
        "X-Audience: https://evil.example",
        "X-User-Id: auth0|bob",
        "X-Forwarded-User: auth0|bob",
        "X-Auth-Request-User: auth0|bob",
        "X-Sub: auth0|bob",
        "Host: evil.example",
        "IdP-Connection: other",
        "Cookie: session=bob",
    ],
)
def test_no_field_of_the_callers_chooses_a_token_or_an_upstream(stack, upstream, field):
    """G20: the route and the verified caller do."""
    query = "?sub=auth0|bob&access_token=x&upstream=http://127.0.0.1:1"
    request = f"GET /idp/up/x{query} HTTP/1.1\r\n{field}\r\nAuthorization: Bearer {stack.token()}\r\n"
    host = "" if field.startswith("Host") else "Host: a\r\n"
    with stack.connect() as client:
        client.send(f"{request}{host}\r\n".encode())
        assert client.answer().status == 200
    assert credentials(upstream) == [[b"Bearer " + ALICES]]
    assert upstream.last.target == f"/base/x{query}".encode()


def test_an_account_is_one_of_the_callers_own(parser):
    """G20: `IdP-Account` is the one field that has a say, and only among one's own."""
    with running(http=parser) as stack:
        assert stack.ask("GET", "/idp/github/user", "IdP-Account: 101").status == 200
        assert stack.ask("GET", "/idp/github/user", "IdP-Account: 102").problem == "identity-not-linked"
        assert stack.ask("GET", "/idp/github/user", "IdP-Account: 102", user="bob").status == 200
        assert stack.provider.tokens_seen() == [USERS["alice"], USERS["bob"]]


@pytest.mark.parametrize(
    "make",
    [
        lambda url, **more: ProxyRoute(url, token_source=provider_token, **more),
        lambda url, **more: JWTAuthenticator(issuer=url, audience="api", **more),
        lambda url, **more: JWTAuthenticator(issuer="https://a.example/", audience="api", jwks_url=url, **more),
        lambda url, **more: IntrospectionAuthenticator(introspection_url=url, client_id="a", client_secret="b", **more),
        lambda url, **more: sources.ClientCredentials(token_url=url, client_id="a", client_secret="b", **more),
        lambda url, **more: sources.TokenExchange(token_url=url, client_id="a", client_secret="b", **more),
    ],
    ids=["upstream", "issuer", "jwks", "introspection", "client credentials", "token exchange"],
)
def test_plain_http_leads_off_this_machine_by_consent_only(make):
    """G21: refused where it is written, before there is a server; certificates can't be left unchecked at all."""
    for url in ("http://up.example", "http://10.0.0.1", "http://localhost.example", "http://127.0.0.1.example"):
        with pytest.raises(errors.ConfigurationError, match="https://"):
            make(url)
    make("http://127.0.0.1:9100")
    make("http://up.example", allow_insecure=True)
    with pytest.raises(TypeError, match="verify"):
        make("https://up.example", verify=False)


def test_ten_thousand_users_later_the_first_is_forgotten(upstream):
    """G22: what is kept is bounded, and who comes often stays. On one parser, since none has a part in it."""
    asked = []

    async def source(caller, route):
        asked.append(caller.subject)
        return Token(f"token-of-{caller.subject}", expires_at=time.time() + 3600)

    upstream.answer = OK
    with gateway("httptools", upstream, source, authenticator=anybody) as stack, stack.connect() as client:

        def ask(*users):
            for start in range(0, len(users), 50):
                batch = users[start : start + 50]
                lines = (f"GET /idp/up/x HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n" for user in batch)
                client.send("".join(lines).encode())
                for _ in batch:
                    assert client.answer().status == 200

        ask("first", "often")
        for start in range(0, 10_050, 1005):
            ask(*(str(number) for number in range(start, start + 1005)), "often")
        ask("first", "often")
    assert asked.count("first") == 2
    assert asked.count("often") == 1
    assert len(asked) == 10_050 + 3
