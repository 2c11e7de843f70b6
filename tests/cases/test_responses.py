"""Group D: what of an upstream's answer reaches the caller, and that the connection is fit for the next one."""

from __future__ import annotations

import gzip
import threading

import pytest
from starlette.middleware.cors import CORSMiddleware

from idp_middleware import ProxyRoute
from tests.cases.conftest import provider_token
from tests.stack import OK, raw_upstream, read_head, running


@pytest.fixture(scope="module")
def routes(recorder):
    base = f"{recorder.url}/base"
    return {
        "up": ProxyRoute(base, token_source=provider_token),
        "cookies": ProxyRoute(base, token_source=provider_token, allow_set_cookie=True),
    }


def ok(*fields: bytes, body: bytes = b"ok", status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, b"", body])


def relayed(answer) -> list[tuple[bytes, bytes]]:
    """The fields of an answer without those that are always added."""
    return [field for field in answer.fields if field[0] not in (b"date", b"server", b"cache-control", b"vary")]


def test_separate_fields_stay_separate(stack, upstream):
    """D01, D30: some clients can't split them again, and a Set-Cookie can't be joined at all; the order is kept."""
    upstream.answer = ok(
        b"Set-Cookie: a=1; Expires=Thu, 01 Jan 2099 00:00:00 GMT",
        b'WWW-Authenticate: Bearer realm="a"',
        b"Link: <https://a.example/1>; rel=next",
        b"SET-COOKIE: b=2",
        b"WWW-AUTHENTICATE: Basic",
        b"Link: <https://a.example/2>; rel=last",
        b"X-Multi: b",
        b"x-multi: a",
    )
    answer = stack.ask("GET", "/idp/cookies/x")
    assert relayed(answer) == [
        (b"set-cookie", b"a=1; Expires=Thu, 01 Jan 2099 00:00:00 GMT"),
        (b"www-authenticate", b'Bearer realm="a"'),
        (b"link", b"<https://a.example/1>; rel=next"),
        (b"set-cookie", b"b=2"),
        (b"www-authenticate", b"Basic"),
        (b"link", b"<https://a.example/2>; rel=last"),
        (b"x-multi", b"b"),
        (b"x-multi", b"a"),
        (b"content-length", b"2"),
    ]
    assert stack.ask("GET", "/idp/up/x").all(b"set-cookie") == []


def test_what_the_upstream_says_of_its_connection_does_not_end_ours(stack, upstream):
    """D02: nor do the fields that its Connection names get through."""
    upstream.answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n"
        b"Proxy-Authenticate: Basic\r\nProxy-Connection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    )
    with stack.connect() as client:
        for _ in range(3):
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            answer = client.answer()
            assert (answer.status, answer.body) == (200, b"ok")
            assert {name for name, _ in relayed(answer)} <= {b"transfer-encoding", b"content-length"}
    # The first may have come over one that was open before.
    assert upstream.connections >= 2


@pytest.mark.parametrize(
    ("head", "length"),
    [(b"Content-Length: 10\r\n\r\n", [b"10"]), (b"Transfer-Encoding: chunked\r\n\r\n", []), (b"\r\n", [])],
)
def test_an_answer_to_head_has_no_body_and_the_connection_goes_on(stack, upstream, head, length):
    """D06: a body that is announced and not sent would shift every later answer."""
    heads = b"HTTP/1.1 200 OK\r\n" + head
    upstream.answer = lambda request: heads if request.start.startswith(b"HEAD") else OK
    with stack.connect() as client:
        for _ in range(2):
            client.send(stack.raw_request("HEAD", "/idp/up/x", close=False))
            answer = client.answer(bodiless=True)
            assert (answer.status, answer.all(b"content-length")) == (200, length)
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            assert client.answer().body == b"ok"


@pytest.mark.parametrize(
    ("answered", "status"),
    [
        (b"204 No Content\r\n\r\n", 204),
        (b"204 No Content\r\nContent-Length: 5\r\n\r\n", 204),
        (b"204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204),
        (b'304 Not Modified\r\nETag: "e"\r\nContent-Length: 5\r\n\r\n', 304),
        (b"304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304),
        (b"205 Reset Content\r\nContent-Length: 0\r\n\r\n", 205),
    ],
)
def test_an_answer_without_a_body_leaves_no_byte_behind(stack, upstream, answered, status):
    """D07: RFC 9110 section 8.6, whatever the upstream announced; the next answer begins where it should."""
    upstream.answer = lambda request: b"HTTP/1.1 " + answered if request.target == b"/base/none" else OK
    with stack.connect() as client:
        for _ in range(2):
            client.send(stack.raw_request("GET", "/idp/up/none", close=False))
            answer = client.answer()
            assert (answer.status, answer.body) == (status, b"")
            if status != 205:
                assert answer.all(b"content-length") + answer.all(b"transfer-encoding") == []
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            assert client.answer().body == b"ok"


@pytest.mark.parametrize("body", [gzip.compress(b"x" * 5000, mtime=0), b"\x1f\x8bnot gzip at all"])
def test_an_encoded_body_stays_encoded_sound_or_not(stack, upstream, body):
    """D08, D11: nobody here has to read it, so nobody inflates it or trips over it."""
    upstream.answer = ok(b"Content-Encoding: gzip", b"Vary: Accept-Encoding", body=body)
    answer = stack.ask("GET", "/idp/up/x", "Accept-Encoding: gzip")
    assert (answer.status, answer.body) == (200, body)
    assert relayed(answer) == [(b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(body))]


@pytest.mark.parametrize(
    "status", [b"200 OK", b"206 Partial", b"299 Odd", b"418 Teapot", b"451 Legal", b"520 Odd", b"599 X"]
)
def test_any_status_is_relayed(stack, upstream, status):
    """D16: also those that no list knows."""
    upstream.answer = ok(status=status)
    answer = stack.ask("GET", "/idp/up/x")
    assert (answer.status, answer.body, answer.problem) == (int(status[:3]), b"ok", None)


@pytest.mark.parametrize("interim", [b"102 Processing", b"103 Early Hints\r\nLink: </x>; rel=preload", b"100 Continue"])
def test_interim_answers_are_dropped(stack, upstream, interim):
    """D18: ASGI has no way to pass them on; what they say is not taken for the answer's."""
    upstream.answer = b"HTTP/1.1 %b\r\n\r\nHTTP/1.1 %b\r\n\r\n" % (interim, interim) + OK
    with stack.connect() as client:
        for _ in range(2):
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            answer = client.answer()
            assert (answer.status, answer.body, answer.all(b"link")) == (200, b"ok", [])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 20 Odd\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"ICY 200 OK\r\n\r\n",
        b"internal-host.corp:8443 refused\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=ascii,
)
def test_what_is_no_sound_answer_is_502_and_none_of_it_gets_out(stack, upstream, answer):
    """D20: two parsers could read it differently; and it may hold what is nobody's business."""
    upstream.answer = lambda request: answer if request.target == b"/base/bad" else OK
    with stack.connect() as client:
        client.send(stack.raw_request("GET", "/idp/up/bad", close=False))
        refused = client.answer()
        assert (refused.status, refused.problem) == (502, "upstream-unreachable")
        assert b"internal-host" not in refused.body + refused.head
        client.send(stack.raw_request("GET", "/idp/up/x", close=False))
        assert client.answer().body == b"ok"


def test_date_and_server_come_once(stack, upstream):
    """D21: from the server we run on."""
    upstream.answer = ok(b"Date: Thu, 01 Jan 2026 00:00:00 GMT", b"Server: upstream/1", b"X-Powered-By: x")
    answer = stack.ask("GET", "/idp/up/x")
    assert answer.all(b"server") == [b"uvicorn"]
    assert len(answer.all(b"date")) == 1
    assert b"2026 00:00:00" not in answer.all(b"date")[0]


def test_trailers_of_an_answer_are_dropped_with_their_announcement(stack, upstream):
    """D22: a Trailer field would promise what does not come."""
    upstream.answer = (
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    with stack.connect() as client:
        for _ in range(2):
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            answer = client.answer()
            assert (answer.body, answer.framed[-5:]) == (b"ok", b"0\r\n\r\n")
            assert {name for name, _ in relayed(answer)} == {b"transfer-encoding"}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("Location", "{up}/base/y?page=2#z", "/idp/up/y?page=2#z"),
        ("Location", "/base/y", "/idp/up/y"),
        ("Location", "y", "/idp/up/v1/y"),
        ("Location", "?page=2", "/idp/up/v1/x?page=2"),
        ("Location", "{user}/base/y", "/idp/up/y"),
        ("Location", "{user}/login", "{up}/login"),
        ("Location", "/login", "{up}/login"),
        ("Location", "/base/../admin", "{up}/admin"),
        ("Location", "https://evil.example/base", "https://evil.example/base"),
        ("Location", "//evil.example/base", "//evil.example/base"),
        ("Location", "javascript:alert(1)", "javascript:alert(1)"),
        ("Location", "http://[::1", "http://[::1"),
        ("Content-Location", "{up}/base/y", "/idp/up/y"),
        ("Content-Location", "y", "/idp/up/v1/y"),
        (
            "Link",
            '<{up}/base/y>; rel="next", </base/z>; rel=last',
            '<{us}/idp/up/y>; rel="next", <{us}/idp/up/z>; rel=last',
        ),
        ("Link", "<https://evil.example/>; rel=next", "<https://evil.example/>; rel=next"),
        ("Refresh", "5; url={up}/base/y", "5; url=/idp/up/y"),
        ("Refresh", "0;URL='{up}/base/y'", "0;URL='/idp/up/y'"),
        ("Refresh", '1.5, "y"', '1.5, "/idp/up/v1/y"'),
        ("Refresh", "3;{user}/base/y", "3;/idp/up/y"),
        ("Refresh", "0; url=https://evil.example/", "0; url=https://evil.example/"),
        ("Refresh", "5", "5"),
    ],
)
def test_urls_of_the_upstream_lead_back_under_the_prefix(stack, upstream, field, value, expected):
    """D24: whoever follows them stays with us; no user name of the upstream's gets out."""
    places = {"up": upstream.url, "us": stack.url, "user": upstream.url.replace("://", "://user:pw@")}
    upstream.answer = ok(f"{field}: {value.format(**places)}".encode(), status=b"201 Created")
    answer = stack.ask("GET", "/idp/up/v1/x?a=1")
    assert answer.all(field.lower().encode()) == [expected.format(**places).encode()]
    assert b"user:pw" not in answer.head


def test_a_redirect_is_the_callers_to_follow(stack, upstream):
    """D24: one request up, one answer back; the token goes nowhere else."""
    upstream.answer = ok(f"Location: {upstream.url}/base/y".encode(), status=b"307 Temporary Redirect")
    assert stack.ask("POST", "/idp/up/x", "Content-Length: 2", body=b"hi").status == 307
    assert upstream.targets() == [b"/base/x"]


@pytest.mark.parametrize(
    "field",
    [
        b'Alt-Svc: h3=":443"',
        b'Clear-Site-Data: "*"',
        b"Strict-Transport-Security: max-age=1",
        b"Public-Key-Pins: pin-sha256=x; max-age=1",
        b"NEL: {}",
        b"Report-To: {}",
        b"Service-Worker-Allowed: /",
        b"X-Accel-Redirect: /etc/passwd",
        b"X-Sendfile: /etc/passwd",
    ],
)
def test_what_would_hold_for_our_whole_origin_is_dropped(stack, upstream, field):
    """D27: an API may not pin, clear or reroute the app that calls it."""
    upstream.answer = ok(field, b"Content-Security-Policy: default-src 'none'", b"X-Keep: 1")
    assert relayed(stack.ask("GET", "/idp/up/x")) == [
        (b"content-security-policy", b"default-src 'none'"),
        (b"x-keep", b"1"),
        (b"content-length", b"2"),
    ]


def test_cross_origin_rules_are_the_apps_alone(parser, routes, upstream):
    """D26: two answers to one question are none: browsers refuse a doubled Access-Control-Allow-Origin."""
    upstream.answer = ok(b"Access-Control-Allow-Origin: *", b"Access-Control-Expose-Headers: X-A", b"X-A: 1")
    wrap = lambda middleware: CORSMiddleware(middleware, allow_origins=["https://app.example"])  # noqa: E731
    with running(http=parser, routes=lambda api, source: routes, wrap=wrap) as stack:
        answer = stack.ask("GET", "/idp/up/x", "Origin: https://app.example")
        assert answer.all(b"access-control-allow-origin") == [b"https://app.example"]
        assert answer.all(b"access-control-expose-headers") == []
        preflight = ["Origin: https://app.example", "Access-Control-Request-Method: GET"]
        assert stack.ask("OPTIONS", "/idp/up/x", *preflight, user=None).status == 200
    assert len(upstream.requests) == 1


def test_bytes_of_values_are_kept(stack, upstream):
    """D28: Latin-1, nothing at all and tabs inside, as they came."""
    upstream.answer = ok(b"X-Latin: \xe9\xff", b"X-Empty:", b"X-Tab: a\tb")
    assert relayed(stack.ask("GET", "/idp/up/x")) == [
        (b"x-latin", b"\xe9\xff"),
        (b"x-empty", b""),
        (b"x-tab", b"a\tb"),
        (b"content-length", b"2"),
    ]


def test_a_folded_field_is_502(stack, upstream):
    """D28: RFC 9112 section 5.2 leaves a gateway the choice; nobody sends them any more but to confuse."""
    upstream.answer = ok(b"X-Fold: one\r\n two")
    assert stack.ask("GET", "/idp/up/x").problem == "upstream-unreachable"


def test_white_space_around_a_value_is_no_part_of_it(stack, upstream):
    """D28: RFC 9112 section 5.1: a server that is strict about what it sends would break the connection off."""
    upstream.answer = ok(b"X-A:\t1 \t", b"Refresh: 3; url=/base/y ")
    assert relayed(stack.ask("GET", "/idp/up/x"))[:2] == [(b"x-a", b"1"), (b"refresh", b"3; url=/idp/up/y")]
    assert b"x-a: 1\r\n" in stack.ask("GET", "/idp/up/x").head


def test_large_heads_within_reason_are_relayed(stack, upstream):
    """D29: a cookie of 10 kB and 200 fields are both seen in the wild."""
    cookie = b"a=" + b"x" * 10_000
    upstream.answer = ok(b"Set-Cookie: " + cookie, *(b"X-%d: 1" % i for i in range(200)))
    answer = stack.ask("GET", "/idp/cookies/x")
    assert answer.all(b"set-cookie") == [cookie]
    assert len(relayed(answer)) == 202


def test_heads_beyond_reason_are_502(stack, upstream):
    """D29: somebody has to bound what is gathered before anything can be relayed."""
    upstream.answer = ok(*(b"X-%d: %b" % (i, b"x" * 1000) for i in range(200)))
    assert stack.ask("GET", "/idp/up/x").problem == "upstream-unreachable"
    upstream.answer = OK
    assert stack.ask("GET", "/idp/up/x").status == 200


def test_a_body_without_a_length_is_relayed_as_it_comes(parser):
    """D14, D15: the head and the first piece do not wait for the second, nor for the end of the connection."""
    arrived = threading.Event()

    def two_pieces(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nfirst")
        if arrived.wait(5):
            connection.sendall(b"second")

    with raw_upstream(two_pieces) as url:
        routes = {"up": ProxyRoute(url, token_source=provider_token)}
        with running(http=parser, routes=lambda api, source: routes) as stack, stack.connect() as client:
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            received = b""
            while b"first" not in received:
                received += client.socket.recv(65536)
            arrived.set()
            while not received.endswith(b"0\r\n\r\n"):
                received += client.socket.recv(65536)
            assert b"\r\nsecond\r\n" in received
