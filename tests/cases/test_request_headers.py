"""Group A: what of a request's header fields reaches the upstream, byte for byte."""

from __future__ import annotations

import socket
from contextlib import suppress

import httpx
import pytest

from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute, sources
from idp_middleware.testing import serve
from tests.cases.conftest import TOKENS, provider_token
from tests.stack import AUDIENCE, free_port


@pytest.fixture(scope="module")
def routes(recorder):
    def route(**options):
        return ProxyRoute(f"{recorder.url}/base", token_source=provider_token, **options)

    return {
        "up": route(),
        "fixed": route(headers={"X-User": "from-the-route"}),
        "cookies": route(cookies=["b", "pref"]),
        "proxied": route(forwarded=True),
        "small": route(max_body=10),
        "form": route(methods=["GET", "POST", "OPTIONS"]),
    }


def authority(upstream) -> bytes:
    return upstream.url.removeprefix("http://").encode()


def test_a_plain_request_becomes_exactly_this(stack, upstream):
    """A06, A15, A17: one Authorization, one Host, both ours; no User-Agent, Accept or Connection is made up."""
    assert stack.ask("GET", "/idp/up/x").status == 200
    via = upstream.last.all(b"via")[0]
    assert via.startswith(b"1.1 idp_middleware-")
    assert upstream.last.head == (
        b"GET /base/x HTTP/1.1\r\nhost: %b\r\nvia: %b\r\nauthorization: Bearer provider-token-of-alice\r\n\r\n"
        % (authority(upstream), via)
    )


def test_the_callers_token_appears_nowhere_upstream(stack, upstream):
    """A06: not in the head, not in the body, however the fields are spelled."""
    token = stack.token()
    request = (
        f"POST /idp/up/x?q=1 HTTP/1.1\r\nHost: a\r\naUtHoRiZaTiOn: bearer {token}\r\nX-Other: 1\r\n"
        "Content-Length: 4\r\n\r\nbody"
    )
    with stack.connect() as client:
        client.send(request.encode())
        assert client.answer().status == 200
    assert upstream.last.all(b"authorization") == [b"Bearer provider-token-of-alice"]
    assert token.encode() not in upstream.last.head + upstream.last.framed


def test_fields_that_connection_names_end_here(stack, upstream):
    """A01: nominated fields are this connection's, in any case, in several lines, with empty members."""
    fields = ["Connection: keep-alive, X-Hop,, x-HOP2", "Connection: X-Hop3", "X-Hop: 1", "X-Hop2: 2", "x-hop3: 3"]
    assert stack.ask("GET", "/idp/up/x", *fields, "X-Keep: 3").status == 200
    assert [name for name, _ in upstream.last.fields] == [b"host", b"x-keep", b"via", b"authorization"]


def test_what_we_add_cannot_be_nominated_away(stack, upstream):
    """A01: else a caller could strip the token, the route's own fields, or what stops loops."""
    nominated = "Connection: authorization, host, via, x-user, content-length"
    assert stack.ask("POST", "/idp/fixed/x", nominated, "Content-Length: 4", body=b"body").status == 200
    assert upstream.last.all(b"authorization") == [b"Bearer provider-token-of-alice"]
    assert upstream.last.all(b"host") == [authority(upstream)]
    assert upstream.last.all(b"x-user") == [b"from-the-route"]
    assert len(upstream.last.all(b"via")) == 1
    assert upstream.last.body == b"body"


@pytest.mark.parametrize(
    "field",
    [
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic cHJveHk6cHc=",
        "Proxy-Authenticate: Basic",
        "Proxy-Authentication-Info: x",
        "Upgrade: foo/2",
        "Trailer: X-Sum",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "TE: trailers",
        "TE: gzip, trailers",
        "TE: deflate;q=0.5",
        "Expect: 200-ok",
        "Connection: close",
    ],
)
def test_fields_of_one_connection_are_dropped_without_being_named(stack, upstream, field):
    """A04, A05, A23, A26: hop-by-hop by definition; TE too, since ASGI could not pass the trailers on."""
    assert stack.ask("GET", "/idp/up/x", field).status == 200
    assert [name for name, _ in upstream.last.fields] == [b"host", b"via", b"authorization"]


@pytest.mark.parametrize(
    "field",
    [
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /admin",
        "X_Forwarded_For: 1.2.3.4",
        "Forwarded: for=evil.example",
        "X-Real-IP: 9.9.9.9",
        "x_real_ip: 9.9.9.9",
        "True-Client-IP: 9.9.9.9",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
    ],
)
def test_claims_of_who_called_are_dropped_and_none_are_added(stack, upstream, field):
    """A11: anybody can write them, and some upstreams believe them."""
    assert stack.ask("GET", "/idp/up/x", field).status == 200
    assert [name for name, _ in upstream.last.fields] == [b"host", b"via", b"authorization"]


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ([], b"127.0.0.1"),
        (["X-Forwarded-For: 1.2.3.4"], b"1.2.3.4, 127.0.0.1"),
        (["X-Forwarded-For: 1.2.3.4, 5.6.7.8", "x-forwarded-for: ::1"], b"1.2.3.4, 5.6.7.8, ::1, 127.0.0.1"),
    ],
)
def test_behind_a_trusted_proxy_the_peer_is_added_to_who_came_before(stack, upstream, sent, seen):
    """A12: once, in one line."""
    assert stack.ask("GET", "/idp/proxied/x", *sent).status == 200
    assert upstream.last.all(b"x-forwarded-for") == [seen]


def test_behind_a_trusted_proxy_its_word_on_scheme_and_host_stands(stack, upstream):
    """A12: it saw the caller's connection, we did not; without its word there is what we saw."""
    stack.ask("GET", "/idp/proxied/x")
    assert upstream.last.all(b"x-forwarded-proto") == [b"http"]
    assert upstream.last.all(b"x-forwarded-host") == [b"127.0.0.1:%d" % stack.gateway.port]
    claims = ["X-Forwarded-Proto: https", "X-Forwarded-Host: app.example", "Forwarded: for=evil", "X-Real-IP: 9.9.9.9"]
    stack.ask("GET", "/idp/proxied/x", *claims)
    assert upstream.last.all(b"x-forwarded-proto") == [b"https"]
    assert upstream.last.all(b"x-forwarded-host") == [b"app.example"]
    assert not upstream.last.all(b"forwarded") + upstream.last.all(b"x-real-ip")


@pytest.mark.parametrize("name", ["X-User", "x-user", "X-USER", "X_User", "x_user"])
def test_a_field_that_the_route_sets_cannot_be_sent_beside_it(stack, upstream, name):
    """A14: servers that make variables of names take X_User for X-User."""
    assert stack.ask("GET", "/idp/fixed/x", f"{name}: admin").status == 200
    assert [value for field, value in upstream.last.fields if b"user" in field] == [b"from-the-route"]


def test_host_is_the_upstreams_whatever_the_caller_wrote(stack, upstream):
    """A15: once, the authority of the route's base URL."""
    with stack.connect() as client:
        client.send(stack.raw_request("GET", "/idp/up/x", close=False).replace(b"Host: 127.0.0.1", b"Host: evil"))
        assert client.answer().status == 200
    assert upstream.last.all(b"host") == [authority(upstream)]


@pytest.mark.parametrize("hosts", ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nhost: a\r\n"])
def test_a_request_without_exactly_one_host_is_refused(stack, upstream, hosts):
    """A15: RFC 9112 section 3.2 demands it, and not every server sees to it."""
    request = f"GET /idp/up/x HTTP/1.1\r\n{hosts}Authorization: Bearer {stack.token()}\r\n\r\n"
    with stack.connect() as client:
        client.send(request.encode())
        assert client.answer().status == 400
    assert upstream.requests == []


def test_values_and_their_order_are_kept_byte_for_byte(stack, upstream):
    """A19, A20, A31, A32: bytes beyond ASCII, empty values, tabs inside, and the order of lines of one name."""
    fields = [
        "Accept-Encoding: br;q=1, identity;q=0.1",
        "X-Multi: a",
        "X-Latin: \xe9\xff",
        "X-Multi: b",
        "X-Empty:",
        "x-multi: c",
        "X-Tab: a\tb \t c",
        "User-Agent: mine/1",
    ]
    assert stack.ask("GET", "/idp/up/x", *fields).status == 200
    assert upstream.last.fields[1:-2] == [
        (b"accept-encoding", b"br;q=1, identity;q=0.1"),
        (b"x-multi", b"a"),
        (b"x-latin", b"\xe9\xff"),
        (b"x-multi", b"b"),
        (b"x-empty", b""),
        (b"x-multi", b"c"),
        (b"x-tab", b"a\tb \t c"),
        (b"user-agent", b"mine/1"),
    ]


def test_cookies_stay_here(stack, upstream):
    """A21: they are the app's session, and none of the upstream's business."""
    assert stack.ask("GET", "/idp/up/x", "Cookie: app_session=S; pref=1", "Cookie: b=2").status == 200
    assert upstream.last.all(b"cookie") == []


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (["Cookie: a=1", "Cookie: b=2"], [b"b=2"]),
        (["Cookie: a=1; b=2;pref=x=y; B=3", 'Cookie: b="4"; bb=5'], [b'b=2; pref=x=y; b="4"']),
        (["Cookie: app_session=S"], []),
        (["Cookie: b", "Cookie: ;; =;"], []),
        ([], []),
    ],
)
def test_cookies_that_the_route_names_go_on_in_one_line(stack, upstream, sent, seen):
    """A22: HTTP/2 splits the field; upstreams want it whole (RFC 9113 section 8.2.3)."""
    assert stack.ask("GET", "/idp/cookies/x", *sent).status == 200
    assert upstream.last.all(b"cookie") == seen


def test_max_forwards_0_ends_here(stack, upstream):
    """A27: RFC 9110 section 7.6.2: the last recipient answers OPTIONS itself."""
    with stack.connect() as client:
        for _ in range(2):
            client.send(stack.raw_request("OPTIONS", "/idp/form/x", "Max-Forwards: 0", close=False))
            answer = client.answer()
            assert (answer.status, answer.all(b"allow"), answer.body) == (204, [b"GET, OPTIONS, POST"], b"")
    assert upstream.requests == []


def test_max_forwards_counts_down(stack, upstream):
    """A27: once per hop for OPTIONS; it says nothing for other methods, and is dropped."""
    assert stack.ask("OPTIONS", "/idp/up/x", "Max-Forwards: 5").status == 200
    assert upstream.last.all(b"max-forwards") == [b"4"]
    assert stack.ask("GET", "/idp/up/x", "Max-Forwards: 0").status == 200
    assert upstream.last.all(b"max-forwards") == []


@pytest.mark.parametrize("value", ["-1", "x", "1, 2", "", "5" * 30])
def test_max_forwards_that_is_no_number_is_refused(stack, upstream, value):
    """A27: nobody can say whether the request may go on."""
    answer = stack.ask("OPTIONS", "/idp/up/x", f"Max-Forwards: {value}")
    assert (answer.status, answer.problem) == (400, "bad-request")
    assert upstream.requests == []


def test_max_forwards_0_does_not_say_who_may_call(stack, upstream):
    """A27: an answer of ours is for verified callers, as any other."""
    assert stack.ask("OPTIONS", "/idp/up/x", "Max-Forwards: 0", user=None).problem == "caller-unauthenticated"


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "FOO-BAR", "get", "PRI", "PROPFIND"])
def test_a_method_that_the_route_does_not_take_goes_nowhere(stack, upstream, method):
    """A28: methods are case-sensitive, so `get` is not GET; a parser may refuse before us."""
    answer = stack.ask(method, "/idp/up/x")
    assert answer.status in (400, 405)
    assert answer.problem in (None, "method-not-allowed")
    assert upstream.requests == []


def test_connect_to_an_authority_goes_nowhere(stack, upstream):
    """A28: one parser hands `h:443` through as a path; it is not under the prefix."""
    assert stack.ask("CONNECT", f"127.0.0.1:{stack.gateway.port}").status in (400, 418)
    assert upstream.requests == []


def test_via_tells_the_way(stack, upstream):
    """A29: RFC 9110 section 7.6.3: added to what came, in one line and in order."""
    assert stack.ask("GET", "/idp/up/x", "Via: 1.0 a", "Via: 1.1 b (comment)").status == 200
    (via,) = upstream.last.all(b"via")
    assert via.startswith(b"1.0 a, 1.1 b (comment), 1.1 idp_middleware-")


@pytest.mark.parametrize("hide", [[], ["Connection: via"]])
def test_a_route_that_leads_back_here_ends_after_one_hop(stack, parser, hide):
    """A30: a loop must not run until the sockets do."""
    port = free_port()
    seen = []
    loop = IdPMiddleware(
        routes={"me": ProxyRoute(f"http://127.0.0.1:{port}/idp/me", token_source=sources.PassThrough())},
        authenticator=JWTAuthenticator(issuer=stack.auth0.issuer, audience=AUDIENCE),
    )

    async def counted(scope, receive, send):
        if scope["type"] == "http":
            seen.append(scope["raw_path"])
        await loop(scope, receive, send)

    with serve(counted, port=port, http=parser), socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(stack.raw_request("GET", "/idp/me/x", *hide))
        assert b" 502 " in sock.recv(65536).split(b"\r\n")[0]
    assert seen == [b"/idp/me/x", b"/idp/me/x"]


def test_folded_lines_are_unfolded_or_refused(stack, upstream, parser):
    """A34: RFC 9112 section 5.2; never passed on as two lines."""
    answer = stack.ask("GET", "/idp/up/x", "X-A: one\r\n two")
    if parser == "h11":
        assert (answer.status, upstream.last.all(b"x-a")) == (200, [b"one two"])
    else:
        assert (answer.status, upstream.requests) == (400, [])


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        ("Bearer {}", 200),
        ("bearer {}", 200),
        ("BEARER {}", 200),
        ("Bearer  {}", 401),
        ("Bearer\t{}", 401),
        ("Bearer {} b", 401),
        ("Bearer {},{}", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic {}", 401),
        ("Token {}", 401),
        ("{}", 401),
        ("", 401),
    ],
)
def test_credentials_are_well_formed_or_refused(stack, upstream, credentials, status):
    """A36: the scheme in any case, one space, one token; what two readers may read differently is nobody's."""
    answer = stack.ask("GET", "/idp/up/x", "Authorization: " + credentials.replace("{}", stack.token()), user=None)
    assert answer.status == status
    assert len(upstream.requests) == (status == 200)


@pytest.mark.parametrize("order", [("alice", "bob"), ("alice", "alice")])
def test_two_authorization_fields_are_refused(stack, upstream, order):
    """A06, A36: two readers could pick different ones."""
    fields = [f"Authorization: Bearer {stack.token(user)}" for user in order]
    assert stack.ask("GET", "/idp/up/x", *fields, user=None).problem == "caller-unauthenticated"
    assert upstream.requests == []


def test_a_token_in_the_query_or_the_body_is_no_credential(stack, upstream):
    """A37: RFC 6750 sections 2.2 and 2.3; those end up in logs and histories."""
    token = stack.token()
    assert stack.ask("GET", f"/idp/up/x?access_token={token}", user=None).status == 401
    body = f"access_token={token}".encode()
    form = ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
    assert stack.ask("POST", "/idp/up/x", *form, body=body, user=None).status == 401
    assert upstream.requests == []


@pytest.mark.parametrize("status", [b"206 Partial Content", b"304 Not Modified"])
def test_ranges_and_conditions_are_between_the_caller_and_the_upstream(stack, upstream, status):
    """A38: asked unchanged, and answered unchanged."""
    upstream.answer = b'HTTP/1.1 %b\r\nETag: "e"\r\nContent-Range: bytes 0-1/9\r\n' % status + (
        b"Content-Length: 2\r\n\r\nok" if status.startswith(b"206") else b"\r\n"
    )
    asked = ['If-None-Match: W/"e", "f"', 'If-Range: "e"', "If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"]
    answer = stack.ask("GET", "/idp/up/x", "Range: bytes=0-1", *asked)
    assert upstream.last.fields[1:-2] == [
        (b"range", b"bytes=0-1"),
        (b"if-none-match", b'W/"e", "f"'),
        (b"if-range", b'"e"'),
        (b"if-modified-since", b"Thu, 01 Jan 2026 00:00:00 GMT"),
    ]
    assert answer.start.split(b" ", 1)[1] == status
    assert (answer.all(b"etag"), answer.all(b"content-range")) == ([b'"e"'], [b"bytes 0-1/9"])


@pytest.mark.parametrize(
    "field",
    [
        "Referer: https://app.example/?token=secret",
        "Origin: https://app.example",
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X_Method_Override: DELETE",
        "Sec-Fetch-Site: cross-site",
    ],
)
def test_what_speaks_of_our_page_or_of_another_method_is_dropped(stack, upstream, field):
    """A39, A40: a referrer may hold secrets; an allowed POST must not be a forbidden DELETE."""
    assert stack.ask("POST", "/idp/form/x", field, "Content-Length: 0").status == 200
    assert upstream.last.start.startswith(b"POST ")
    assert [name for name, _ in upstream.last.fields] == [b"host", b"via", b"authorization", b"content-length"]


def test_other_fields_of_the_callers_decide_nothing(stack, upstream):
    """Which upstream, whose token: the route and the verified caller say that, and nothing else."""
    fields = ["X-Upstream: http://127.0.0.1:1", "X-User-Id: bob", "X-Audience: bob", "X-Up: 1"]
    assert stack.ask("GET", "/idp/up/x", *fields).status == 200
    assert upstream.last.all(b"authorization") == [f"Bearer {TOKENS['auth0|alice']}".encode()]


@pytest.mark.parametrize(
    "fields",
    [[f"X-{i}: 1" for i in range(300)], ["X-Large: " + "x" * 70_000], [f"X-{i}: {'x' * 999}" for i in range(70)]],
)
def test_a_header_section_out_of_proportion_is_refused(stack, upstream, fields):
    """One parser takes any number and any size, to be built anew for each hop."""
    # Refused before it was read, its connection may be reset before the answer is.
    with suppress(ConnectionError):
        assert stack.ask("GET", "/idp/up/x", *fields).status == 400
    assert upstream.requests == []


def test_a_large_header_section_within_reason_passes(stack, upstream):
    """Tokens and cookies of several kilobytes are common."""
    fields = [f"X-{i}: 1" for i in range(200)]
    assert stack.ask("GET", "/idp/up/x", "X-Large: " + "x" * 20_000, *fields).status == 200
    assert upstream.last.all(b"x-large") == [b"x" * 20_000]


@pytest.mark.parametrize(
    ("method", "target", "field", "status"),
    [
        ("POST", "/idp/up/x", "X: 1", 401),
        ("POST", "/idp/up/../x", "X: 1", 400),
        ("TRACE", "/idp/up/x", "Authorization: Bearer {}", 405),
        ("POST", "/idp/small/x", "Authorization: Bearer {}", 413),
    ],
)
def test_a_request_that_is_refused_is_not_asked_for_its_body(stack, upstream, method, target, field, status):
    """A24: that is what Expect is for (RFC 9110 section 10.1.1); the connection ends, since the body may come yet."""
    fields = ["Expect: 100-continue", "Content-Length: 100", field.replace("{}", stack.token())]
    with stack.connect() as client:
        client.send(stack.raw_request(method, target, *fields, user=None, close=False))
        assert client.answer().status == status
        client.send(b"x" * 100)
        assert client.rest() == b""
    assert upstream.requests == []


@pytest.mark.parametrize(
    "field",
    ["Bad Name: 1", "Bad\tName: 1", "Bäd: 1", "No-Colon", ": 1", "X: a\rb", "X: a\nb", "X: \0", "(X): 1"],
    ids=ascii,
)
def test_a_field_that_is_none_reaches_nobody_as_it_came(stack, upstream, field):
    """A32: a parser refuses it, or it is something that no other parser reads as more."""
    with suppress(ConnectionError):
        assert stack.ask("GET", "/idp/up/x", field).status in (200, 400)
    for request in upstream.requests:
        assert {name for name, _ in request.fields} <= {b"host", b"x", b"b", b"via", b"authorization"}
        assert b"\r" not in request.head.replace(b"\r\n", b"")
        assert b"\n" not in request.head.replace(b"\r\n", b"")


def test_an_older_client_is_served_in_its_own_words(stack, upstream):
    """A29: HTTP/1.0 in, 1.1 up, and Via says so; the answer ends with the connection."""
    request = f"GET /idp/up/x HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer {stack.token()}\r\n\r\n"
    with stack.connect() as client:
        client.send(request.encode())
        assert client.rest().endswith(b"\r\n\r\nok")
    assert upstream.last.start == b"GET /base/x HTTP/1.1"
    assert upstream.last.all(b"via")[0].startswith(b"1.0 idp_middleware-")


def test_the_parsers_agree_with_a_client_library(stack, upstream):
    """The same request through a client that people use, to see that nothing above is an artefact of raw bytes."""
    answer = httpx.get(f"{stack.url}/idp/up/x", headers=stack.bearer(), trust_env=False)
    assert answer.status_code == 200
    assert {name for name, _ in upstream.last.fields} >= {b"accept", b"accept-encoding", b"user-agent"}
