"""Group J: an answer made for one user is never served to another."""

from __future__ import annotations

import pytest

VARY = b"Authorization, Cookie, IdP-Account"


def ok(*fields: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"Content-Length: 2", b"", b"ok"])


@pytest.mark.parametrize(
    "status", [b"200 OK", b"301 Moved", b"404 Not Found", b"410 Gone", b"500 Broken", b"206 Partial"]
)
def test_an_answer_without_rules_is_private(stack, upstream, status):
    """J01: RFC 9111 section 3.5 protects only what was asked for with an Authorization that the cache can see."""
    upstream.answer = ok(status=status)
    answer = stack.ask("GET", "/idp/up/x")
    assert answer.all(b"cache-control") == [b"private"]
    assert answer.all(b"vary") == [VARY]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"Cache-Control: public, max-age=60, s-maxage=600"], b"max-age=60, private"),
        ([b"Cache-Control: no-store"], b"no-store"),
        ([b"cache-control: PUBLIC", b"Cache-Control: immutable"], b"immutable, private"),
        ([b"Cache-Control: no-cache"], b"no-cache, private"),
        ([b"Cache-Control: max-age=60, private"], b"max-age=60, private"),
        ([b'Cache-Control: private="set-cookie", max-age=60'], b'private="set-cookie", max-age=60, private'),
        ([b"Cache-Control:"], b"private"),
        ([b"Expires: Thu, 01 Jan 2099 00:00:00 GMT", b"Pragma: no-cache"], b"private"),
    ],
)
def test_rules_of_the_upstream_hold_less_what_would_make_it_public(stack, upstream, fields, expected):
    """J01: its permission was given to a request with a token that shared caches don't see."""
    upstream.answer = ok(*fields)
    assert stack.ask("GET", "/idp/up/x").all(b"cache-control") == [expected]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"Vary: Accept"], b"Accept, " + VARY),
        ([b"Vary: Accept", b"vary: Accept-Encoding"], b"Accept, Accept-Encoding, " + VARY),
        ([b"Vary: *"], b"*"),
    ],
)
def test_what_an_answer_varies_by_is_added_to(stack, upstream, fields, expected):
    """J03: one browser, two users: the second must not see the first one's answer."""
    upstream.answer = ok(*fields)
    assert stack.ask("GET", "/idp/up/x").all(b"vary") == [expected]


def test_our_own_answers_are_never_stored(stack, upstream):
    """J04: a refusal is over as soon as its cause is."""
    upstream.answer = b""
    for method, target, user, status in (
        ("GET", "/idp/up/x", None, 401),
        ("GET", "/idp/unknown", "alice", 404),
        ("TRACE", "/idp/up/x", "alice", 405),
        ("GET", "/idp/up/x", "alice", 502),
        ("GET", "/idp/up/..", "alice", 400),
    ):
        answer = stack.ask(method, target, user=user)
        assert (answer.status, answer.all(b"cache-control")) == (status, [b"no-store"])
    answer = stack.ask("HEAD", "/idp/up/x", user=None)
    assert (answer.status, answer.all(b"cache-control")) == (401, [b"no-store"])


def test_whether_something_has_changed_is_the_upstreams_to_say_for_each_user(stack, upstream):
    """J05: alice's ETag in bob's hands gets a 304 only if the upstream says so to bob's token."""

    def knows(request):
        mine = b"provider-token-of-alice" in request.head and request.all(b"if-none-match") == [b'"alices"']
        return b'HTTP/1.1 304 Not Modified\r\nETag: "alices"\r\n\r\n' if mine else ok(b'ETag: "bobs"')

    upstream.answer = knows
    condition = 'If-None-Match: "alices"'
    alice = stack.ask("GET", "/idp/up/x", condition)
    bob = stack.ask("GET", "/idp/up/x", condition, user="bob")
    assert (alice.status, alice.all(b"etag"), alice.all(b"cache-control")) == (304, [b'"alices"'], [b"private"])
    assert (bob.status, bob.all(b"etag")) == (200, [b'"bobs"'])
    assert [request.all(b"authorization") for request in upstream.requests] == [
        [b"Bearer provider-token-of-alice"],
        [b"Bearer provider-token-of-bob"],
    ]


def test_a_part_is_relayed_as_the_part_it_is(stack, upstream):
    """J06: a cache that took it for the whole would serve half of it."""
    upstream.answer = ok(b"Content-Range: bytes 0-1/9", b'ETag: "e"', status=b"206 Partial Content")
    answer = stack.ask("GET", "/idp/up/x", "Range: bytes=0-1", 'If-Range: "e"')
    assert (upstream.last.all(b"range"), upstream.last.all(b"if-range")) == ([b"bytes=0-1"], [b'"e"'])
    assert (answer.status, answer.all(b"content-range"), answer.body) == (206, [b"bytes 0-1/9"], b"ok")
    upstream.answer = ok(b"Content-Range: bytes */9", status=b"416 Range Not Satisfiable")
    assert stack.ask("GET", "/idp/up/x", "Range: bytes=99-").all(b"content-range") == [b"bytes */9"]


@pytest.mark.parametrize(
    "name",
    [
        b"CDN-Cache-Control",
        b"Cloudflare-CDN-Cache-Control",
        b"Akamai-Cache-Control",
        b"Surrogate-Control",
        b"Edge-Control",
        b"X-Accel-Expires",
    ],
)
def test_rules_for_caches_in_between_do_not_undo_ours(stack, upstream, name):
    """J08: RFC 9213: they would be obeyed in place of Cache-Control."""
    upstream.answer = ok(name + b": max-age=600", b"Cache-Control: public, max-age=600")
    answer = stack.ask("GET", "/idp/up/x")
    assert answer.all(b"cache-control") == [b"max-age=600, private"]
    assert answer.all(name.lower()) == []
