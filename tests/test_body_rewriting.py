"""Bodies that are looked through as they stream: our URLs for the upstream's, and its token for nobody's eyes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import socket
import threading
import time
import zlib
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

from idp_middleware import ProxyRoute, Token
from idp_middleware._body_rewriting import token_texts
from idp_middleware._replacer import BaseURL, Replacer, Texts
from idp_middleware.errors import ConfigurationError
from tests.stack import PARSERS, RawMessage, raw_upstream, read_head, read_message, recording_upstream, running

TOKEN = "gho_alices/token+of~16.chars_and-more=="


async def alices_token(caller, route, *, refused=None):
    """Another one after a refusal."""
    return Token(TOKEN if refused is None else f"renewed_{TOKEN}")


def routes_to(url: str):
    def route(**options):
        return ProxyRoute(f"{url}/base", token_source=alices_token, **options)

    return {
        "plain": route(),
        "led": route(rewrite_bodies=True),
        "scrub": route(scrub=True, allow_set_cookie=True),
        "both": route(rewrite_bodies=True, scrub=True),
    }


@pytest.fixture(scope="module")
def recorder():
    with recording_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(recorder):
    recorder.reset()
    return recorder


@pytest.fixture(scope="module", params=PARSERS)
def shared_stack(request, recorder):
    with running(http=request.param, routes=lambda api, source: routes_to(recorder.url)) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack, upstream):
    return shared_stack


@contextmanager
def served(handler, http="httptools", **options):
    """A stack in front of an upstream whose connections `handler` serves."""
    with (
        raw_upstream(handler) as url,
        running(http=http, routes=lambda api, source: routes_to(url), **options) as stack,
    ):
        yield url, stack


def ok(body: bytes, *fields: str, kind: str = "application/json", status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *fields]
    if kind:
        lines.append(f"Content-Type: {kind}")
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*chunks: bytes, fields: str = "Content-Type: application/json\r\n") -> bytes:
    head = f"HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


# Finding.


def in_pieces(needles, data: bytes, cuts: list[int]) -> bytes:
    """What a replacer makes of `data` that is cut there."""
    replacer = Replacer(needles)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return b"".join(replacer.feed(piece) for piece in pieces) + replacer.end()


WORDS = st.text("ab", min_size=1, max_size=6).map(str.encode)
CUTS = st.lists(st.integers(0, 60), max_size=20)


@given(st.sets(WORDS, min_size=1, max_size=4), st.text("abc", max_size=60).map(str.encode), CUTS)
def test_texts_are_found_wherever_a_body_is_cut(words, data, cuts):
    """Those that overlap each other or themselves, too; an echo must not slip through between two packets."""
    needles = Texts({word: b"<%d>" % len(word) for word in words})
    by_length = sorted(words, key=len, reverse=True)
    expected = re.sub(b"|".join(map(re.escape, by_length)), lambda hit: b"<%d>" % len(hit[0]), data)
    assert in_pieces(needles, data, cuts) == needles.replaced(data) == expected
    assert not any(word in expected for word in words)


UPSTREAM = BaseURL("https", b"api.example.com", 443, b"/v1/x")
FRAGMENTS = ["h", "ht", "https:", "https://api.example.com", ":443", ":4", "/v1/x", "/v1", "\\/v1\\/x", "/", "\\", '"']
FRAGMENTS += ["https:\\/\\/API.example.com", "x", ".", "?", "é", "HTTPS://", "https://api.example.com/v1/x"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join).map(str.encode), CUTS)
def test_urls_are_found_wherever_a_body_is_cut(data, cuts):
    """What follows decides whether it is one, so the cut after the last letter matters as well."""
    needles = UPSTREAM.becoming(b"https://app.example/idp/r")
    assert in_pieces(needles, data, cuts) == needles.replaced(data)


@given(st.text("htps:/", max_size=60).map(str.encode), CUTS)
def test_a_url_with_a_url_in_its_path_is_found_wherever_a_body_is_cut(data, cuts):
    """Its own end looks like its beginning."""
    needles = BaseURL("http", b"s", 80, b"/http://s").becoming(b"<>")
    assert in_pieces(needles, data, cuts) == needles.replaced(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://api.example.com/v1/x", "PUBLIC"),
        ("https://api.example.com/v1/x/users?page=2#top", "PUBLIC/users?page=2#top"),
        ("https://api.example.com:443/v1/x/users", "PUBLIC/users"),
        ("https://API.Example.com/v1/x/", "PUBLIC/"),
        ("https://api.example.com/v1/x{/owner}{?page}", "PUBLIC{/owner}{?page}"),
        ("<https://api.example.com/v1/x>; (https://api.example.com/v1/x),", "<PUBLIC>; (PUBLIC),"),
        (r"see\nhttps:\/\/api.example.com\/v1\/x\/users\"", r"see\nhttps:\/\/app.example\/idp\/r\/users\""),
        (r"https:\/\/api.example.com:443\/v1\/x", r"https:\/\/app.example\/idp\/r"),
        (r"https://api.example.com/v1/x\n", r"PUBLIC\n"),
    ],
)
def test_the_base_url_is_replaced_in_its_spellings(text, expected):
    """As servers write it into JSON, XML and prose, URI templates among them."""
    needles = UPSTREAM.becoming(b"https://app.example/idp/r")
    assert needles.replaced(text.encode()).decode() == expected.replace("PUBLIC", "https://app.example/idp/r")


@pytest.mark.parametrize(
    "text",
    [
        "https://api.example.com.evil.example/v1/x",
        "https://api.example.comx/v1/x",
        "https://api.example.com:8443/v1/x",
        "https://api.example.com:4433/v1/x",
        "https://api.example.com@evil.example/v1/x",
        "https://user@api.example.com/v1/x",
        "http://api.example.com/v1/x",
        "https://xapi.example.com/v1/x",
        "https://apixexample.com/v1/x",
        "https://api.example.com/v1/xy",
        "https://api.example.com/v1/x.json",
        "https://api.example.com/v1/x%2Fy",
        "https://api.example.com/v1/é",
        "https://api.example.com/V1/x",
        "https://api.example.com/v1",
        "https://api.example.com/",
        r"https:\//api.example.com/v1/x",
        r"https://api.example.com\/v1\/x",
        "https%3A%2F%2Fapi.example.com%2Fv1%2Fx",
        "//api.example.com/v1/x",
        "/v1/x",
    ],
)
def test_what_only_resembles_the_base_url_stays(text):
    """Another host, another scheme, half a segment, a parameter for somebody else."""
    assert UPSTREAM.becoming(b"/idp/r").replaced(text.encode()).decode() == text


def test_a_host_alone_ends_where_a_host_does():
    """Most APIs have no base path."""
    needles = BaseURL("https", b"api.example.com", 443, b"").becoming(b"/idp/r")
    for text in (b'"https://api.example.com"', b"https://api.example.com/x", b"https://api.example.com:443?q"):
        assert b"example" not in needles.replaced(text)
    for text in (b"https://api.example.com.evil", b"https://api.example.com:80", b"https://api.example.com-x"):
        assert needles.replaced(text) == text


def test_a_port_of_its_own_is_part_of_it():
    """Without it, or with more digits, it is another server."""
    needles = BaseURL("http", b"[::1]:8080", None, b"").becoming(b"/idp/r")
    data = b"http://[::1]:8080/x http://[::1]/x http://[::1]:80801/x"
    assert needles.replaced(data) == b"/idp/r/x http://[::1]/x http://[::1]:80801/x"


# URLs of the upstream's, on the wire.


def test_urls_in_a_body_lead_back_to_us_with_the_length_corrected(stack, upstream):
    """PyGithub checks the host of `url` in each answer, and follows it."""
    base = f"{upstream.url}/base"
    document = {"url": f"{base}/user", "other": f"{upstream.url}/elsewhere", "tpl": f"{base}/users{{/user}}"}
    upstream.answer = ok(json.dumps(document).encode())
    answer = stack.ask("GET", "/idp/led/user")
    ours = f"{stack.url}/idp/led"
    assert json.loads(answer.body) == {
        "url": f"{ours}/user",
        "other": f"{upstream.url}/elsewhere",
        "tpl": f"{ours}/users{{/user}}",
    }
    assert answer.all(b"content-length") == [b"%d" % len(answer.body)]


def test_a_client_that_pages_by_what_it_reads_stays_with_us(stack, upstream):
    """By `Link`, and by the body."""
    base = f"{upstream.url}/base"

    def page(request: RawMessage) -> bytes:
        if b"page=2" in request.target:
            return ok(b'{"items": [2], "next": null}')
        link = f'Link: <{base}/items?page=2>; rel="next"'
        return ok(json.dumps({"items": [1], "next": f"{base}/items?page=2"}).encode(), link)

    upstream.answer = page
    with stack.client() as client:
        first = client.get("/idp/led/items")
        assert first.links["next"]["url"] == first.json()["next"] == f"{stack.url}/idp/led/items?page=2"
        assert client.get(first.json()["next"]).json()["items"] == [2]
    assert upstream.targets() == [b"/base/items", b"/base/items?page=2"]


def test_without_a_usable_host_urls_are_path_absolute(stack, upstream):
    """What a caller writes into Host goes into no body, unless it is a host."""
    upstream.answer = ok(json.dumps(f"{upstream.url}/base/user").encode())
    request = stack.raw_request("GET", "/idp/led/user")
    answer = stack.raw(re.sub(rb"Host: .*?\r\n", b"Host: evil/?\r\n", request))
    assert answer.endswith(b'"/idp/led/user"')


def test_the_path_that_the_app_is_mounted_under_is_escaped(upstream):
    """It is known decoded, and might hold a quote."""
    upstream.answer = ok(json.dumps(f"{upstream.url}/base/user").encode())

    def wrap(middleware):
        @asynccontextmanager
        async def lifespan(app):
            yield
            await middleware.aclose()

        return Starlette(routes=[Mount('/a "b"', middleware)], lifespan=lifespan)

    with running(wrap=wrap, routes=lambda api, source: routes_to(upstream.url)) as stack, stack.client() as client:
        answer = client.get("/a%20%22b%22/idp/led/user")
        assert answer.json() == f"{stack.url}/a%20%22b%22/idp/led/user"
        assert client.get(answer.json()).status_code == 200


@pytest.mark.parametrize(
    ("kind", "looked_through"),
    [
        ("application/json", True),
        ("Application/JSON ; charset=utf-8", True),
        ("application/vnd.github+json", True),
        ("application/xml", True),
        ("application/atom+xml;type=feed", True),
        ("image/svg+xml", True),
        ("text/html", True),
        ("text/plain; charset=utf-8", True),
        ("", False),
        ("application/octet-stream", False),
        ("application/jsonx", False),
        ("image/png", False),
        ("application/x; note=text/plain", False),
    ],
)
def test_text_is_looked_through_and_anything_else_left_alone(upstream, shared_stack, kind, looked_through):
    """The same bytes in an image are no URL."""
    body = f"{upstream.url}/base/user".encode()
    upstream.answer = ok(body, 'ETag: "1"', "Content-MD5: x", "Accept-Ranges: bytes", kind=kind)
    answer = shared_stack.ask("GET", "/idp/led/user")
    assert (answer.body != body) == looked_through
    assert answer.all(b"etag") == [b'W/"1"' if looked_through else b'"1"']
    assert bool(answer.all(b"content-md5")) == bool(answer.all(b"accept-ranges")) == (not looked_through)


def test_what_is_no_text_stays_compressed(stack, upstream):
    """There is nothing to look for in it, so it is what the upstream says it is."""
    body = gzip.compress(b"pixels")
    upstream.answer = ok(body, "Content-Encoding: gzip", 'ETag: "1"', kind="image/x-portable-pixmap")
    answer = stack.ask("GET", "/idp/led/user")
    assert (answer.body, answer.all(b"content-encoding"), answer.all(b"etag")) == (body, [b"gzip"], [b'"1"'])


def test_what_was_true_of_the_upstreams_bytes_is_not_said_of_others(stack, upstream):
    """RFC 9110 section 8.8.1: no strong validator for what it does not identify; RFC 9530: no digest of other bytes."""
    fields = ["Digest: a", "Content-Digest: b", "Repr-Digest: c", "Content-MD5: d", "Accept-Ranges: bytes", "X-Kept: e"]
    upstream.answer = ok(b"{}", 'ETag: W/"weak"', *fields)
    answer = stack.ask("GET", "/idp/led/user")
    assert answer.all(b"etag") == [b'W/"weak"']
    names = {name for name, _ in answer.fields}
    assert not names & {b"digest", b"content-digest", b"repr-digest", b"content-md5", b"accept-ranges"}
    assert answer.all(b"x-kept") == [b"e"]


def test_head_says_what_get_would(stack, upstream):
    """Save the length, which only a body could tell; and the connection goes on."""
    upstream.answer = lambda request: ok(b"", "Content-Length: 50", 'ETag: "1"', length=False)
    with stack.connect() as client:
        for _ in range(2):
            client.send(stack.raw_request("HEAD", "/idp/led/user", close=False))
            answer = client.answer(bodiless=True)
            assert (answer.status, answer.all(b"etag")) == (200, [b'W/"1"'])
            assert not answer.all(b"content-length")
    upstream.answer = lambda request: ok(b"", "Content-Length: 50", kind="image/png", length=False)
    assert stack.ask("HEAD", "/idp/led/user").all(b"content-length") == [b"50"]
    assert stack.ask("HEAD", "/idp/scrub/user").all(b"content-length") == [b"50"]


def test_not_modified_names_the_copy_that_the_client_has(stack, upstream):
    """RFC 9111 section 4.3.4: it updates copies with the same tag, and theirs is weak."""
    upstream.answer = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nContent-Length: 5\r\n\r\n'
    answer = stack.ask("GET", "/idp/led/user", 'If-None-Match: W/"1"')
    assert (answer.status, answer.all(b"etag"), answer.body) == (304, [b'W/"1"'], b"")
    assert upstream.last.all(b"if-none-match") == [b'W/"1"']


@pytest.mark.parametrize("name", ["led", "scrub"])
def test_the_upstream_is_asked_for_the_whole_in_the_clear(stack, upstream, name):
    """What is compressed can't be looked through, and two ranges could hold half a token each."""
    fields = ["Accept-Encoding: gzip, br", "Range: bytes=0-9", 'If-Range: "x"']
    stack.ask("GET", f"/idp/{name}/user", *fields)
    assert upstream.last.all(b"accept-encoding") == [b"identity"]
    assert not upstream.last.all(b"range") + upstream.last.all(b"if-range")
    stack.ask("GET", "/idp/plain/user", *fields)
    assert upstream.last.all(b"accept-encoding") == [b"gzip, br"]
    assert upstream.last.all(b"range") == [b"bytes=0-9"]


def test_a_part_that_nobody_asked_for_is_left_as_it_is(stack, upstream):
    """Its place in the whole would shift."""
    body = f"{upstream.url}/base".encode()
    field = f"Content-Range: bytes 0-{len(body) - 1}/1000"
    upstream.answer = ok(body, field, 'ETag: "1"', status="206 Partial Content")
    answer = stack.ask("GET", "/idp/led/user")
    assert (answer.status, answer.body, answer.all(b"etag")) == (206, body, [b'"1"'])


def test_a_body_that_comes_byte_by_byte_is_the_same(upstream, shared_stack):
    """And without a length, whatever was announced."""
    text = f'{{"url":"{upstream.url}/base/user","last":"{upstream.url}/base'.encode()

    def trickles(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection.makefile("rb") as stream:
            read_message(stream)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body))
        # A body right behind its head is waited for.
        time.sleep(0.1)
        for byte in body:
            connection.sendall(bytes([byte]))

    with served(trickles) as (url, stack):
        body = text.replace(upstream.url.encode(), url.encode())
        answer = stack.ask("GET", "/idp/led/user")
        assert answer.body == body.replace(url.encode() + b"/base", f"{stack.url}/idp/led".encode())
        assert answer.all(b"transfer-encoding") == [b"chunked"]


@pytest.mark.parametrize("http", PARSERS)
def test_events_arrive_before_the_next_is_sent(http):
    """The end of an event is the beginning of no URL, so nothing waits for what comes after it."""
    proceed = threading.Semaphore(0)

    def events(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            connection.sendall(f"data: {url}/base/{number} {TOKEN}\n\n".encode())
            proceed.acquire(timeout=10)

    with served(events, http) as (url, stack), stack.client() as client:
        with client.stream("GET", "/idp/both/events") as answer:
            seen = b""
            for chunk in answer.iter_raw():
                seen += chunk
                if seen.endswith(b"\n\n"):
                    proceed.release()
        masked = "[redacted]".ljust(len(TOKEN) - 2, "*") + "=="
        assert seen.decode() == "".join(f"data: {stack.url}/idp/both/{number} {masked}\n\n" for number in range(3))


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("http", PARSERS)
def test_a_body_that_breaks_off_still_breaks_the_connection(http, framing):
    """And what was held back for what did not come is not made an end of."""

    def dies(connection: socket.socket) -> None:
        read_head(connection)
        part = f"whole {url}/bas".encode()
        if "chunked" in framing:
            part = b"ff\r\n" + part
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{framing}\r\n\r\n".encode() + part)

    with served(dies, http) as (url, stack):
        with stack.client() as client, pytest.raises(httpx.RemoteProtocolError):
            client.get("/idp/led/user")
        answer = stack.raw(stack.raw_request("GET", "/idp/led/user"))
        assert answer.endswith(b"6\r\nwhole \r\n")


# Compressed answers, though none was asked for.


def deflated(data: bytes) -> bytes:
    return zlib.compress(data)


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:9]) + gzip.compress(data[9:])


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("X-GZip", gzip.compress),
        ("gzip", two_members),
        ("deflate", deflated),
        ("identity", bytes),
        ("", bytes),
    ],
)
@pytest.mark.parametrize("by_bytes", [False, True])
def test_what_comes_compressed_all_the_same_is_unfolded_and_looked_through(stack, upstream, coding, compress, by_bytes):
    """Some APIs compress whatever they are asked for."""
    document = {"url": f"{upstream.url}/base/user", "token": TOKEN}
    body = compress(json.dumps(document).encode())
    fields = f"Content-Type: application/json\r\nContent-Encoding: {coding}\r\n"
    pieces = [bytes([byte]) for byte in body] if by_bytes else [body]
    upstream.answer = chunked(*pieces, fields=fields + 'ETag: "1"\r\n')
    answer = stack.ask("GET", "/idp/both/user")
    assert json.loads(answer.body)["url"] == f"{stack.url}/idp/both/user"
    assert "[redacted]" in json.loads(answer.body)["token"]
    assert not answer.all(b"content-encoding")
    assert answer.all(b"etag") == [b'W/"1"']


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"x" * 1000)[:-9], gzip.compress(b"x") + b"garbage", b"not gzip at all", gzip.compress(b"")[:5]],
    ids=["cut short", "garbage behind", "not gzip", "all but nothing"],
)
def test_what_can_not_be_unfolded_to_its_end_breaks_the_connection(stack, upstream, body):
    """A clean end would pass half a body off as whole."""
    upstream.answer = ok(body, "Content-Encoding: gzip")
    with stack.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/idp/led/user")


def test_no_body_needs_no_unfolding(stack, upstream):
    """HEAD, and answers of length zero, say how they would be coded."""
    upstream.answer = lambda request: ok(b"", "Content-Encoding: gzip", "Content-Length: 50", length=False)
    answer = stack.ask("HEAD", "/idp/scrub/user")
    assert not answer.all(b"content-length") + answer.all(b"content-encoding")
    upstream.answer = ok(b"", "Content-Encoding: gzip")
    assert stack.ask("GET", "/idp/scrub/user").body == b""
    upstream.answer = b"HTTP/1.1 204 No Content\r\nContent-Encoding: br\r\n\r\n"
    assert stack.ask("GET", "/idp/scrub/user").status == 204


def test_a_coding_that_is_unknown_here_passes_where_it_does_no_harm(stack, upstream):
    """URLs that stay are a nuisance; a token that passes is a leak, so there the answer is refused."""
    upstream.answer = ok(b"compressed", "Content-Encoding: br", 'ETag: "1"')
    answer = stack.ask("GET", "/idp/led/user")
    assert (answer.body, answer.all(b"content-encoding"), answer.all(b"etag")) == (b"compressed", [b"br"], [b'"1"'])
    for name in ("scrub", "both"):
        answer = stack.ask("GET", f"/idp/{name}/user")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert answer.all(b"proxy-status") == [b"idp_middleware; error=http_response_content_coding"]
    upstream.answer = ok(b"compressed", "Content-Encoding: gzip, gzip")
    assert stack.ask("GET", "/idp/scrub/user").status == 502


# The token.


def spellings(token: str) -> dict[str, bytes]:
    """How a token may come back."""
    return {
        "plain": token.encode(),
        "query": f"?access_token={quote(token, safe='')}&x=1".encode(),
        "lower": f"?access_token={re.sub('%..', lambda escape: escape[0].lower(), quote(token, safe=''))}".encode(),
        "slashes": json.dumps({"x": token}).replace("/", "\\/").encode(),
        "base64": base64.b64encode(token.encode()),
        "basic": base64.b64encode(f"x-access-token:{token}".encode()),
        "basic2": base64.b64encode(f"ab:{token}x".encode()),
        "base64url": base64.urlsafe_b64encode(f"~~~{token}~~".encode()),
        "tail": f"{token}".encode()[:-2],
    }


def cores(token: str) -> list[bytes]:
    """What must not be left of it, in any spelling: all but its edges."""
    core = token.rstrip("=").encode()
    middle = [base64.b64encode(bytes(before) + core)[4:-4] for before in range(3)]
    return [core, quote(core, safe="").encode().lower(), core.replace(b"/", b"\\/"), *middle]


@pytest.mark.parametrize("spelling", spellings(TOKEN))
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("200 OK", "application/octet-stream"),
        ("206 Partial Content", "image/png"),
        ("400 Bad Request", "application/json"),
        ("500 Oops", "text/html"),
        ("502 Worse", ""),
    ],
)
def test_no_echo_of_the_token_reaches_the_caller(shared_stack, upstream, spelling, status, kind):
    """Error pages and debug answers print what they were sent; some APIs put it into the URLs of next pages."""
    echo = spellings(TOKEN)[spelling]
    body = b"before " + echo + b" between " + echo
    upstream.answer = ok(body, 'ETag: "1"', "Content-MD5: x", "Accept-Ranges: bytes", kind=kind, status=status)
    answer = shared_stack.ask("GET", "/idp/scrub/user")
    assert not any(core in text for core in cores(TOKEN) for text in (answer.body, answer.body.lower()))
    assert answer.body.startswith(b"before ")
    assert answer.body.count(b"[redacted]") == 2
    # As long as it was, so that nothing else has to change.
    assert len(answer.body) == len(body)
    assert answer.all(b"content-length") == [b"%d" % len(body)]
    assert answer.all(b"etag") == [b'"1"']
    assert not answer.all(b"content-md5") + answer.all(b"accept-ranges")


def test_no_echo_of_the_token_reaches_the_caller_in_a_header_field(stack, upstream):
    """Redirects with the token in their query, debugging fields, cookies."""
    upstream.answer = ok(
        b"",
        f"Location: {upstream.url}/base/next?access_token={quote(TOKEN, safe='')}&page=2",
        f"X-Debug: Authorization=Bearer {TOKEN}",
        f"Set-Cookie: t={base64.b64encode(TOKEN.encode()).decode()}",
        "X-Other: kept",
        status="302 Found",
    )
    answer = stack.ask("GET", "/idp/scrub/user")
    assert not any(core in text for core in cores(TOKEN) for text in (answer.head, answer.head.lower()))
    assert answer.all(b"location")[0].startswith(b"/idp/scrub/next?access_token=[redacted]")
    assert answer.all(b"location")[0].endswith(b"&page=2")
    assert answer.all(b"x-debug")[0].startswith(b"Authorization=Bearer [redacted]*")
    assert answer.all(b"x-other") == [b"kept"]


def test_the_token_that_a_refused_one_was_renewed_to_is_masked_as_well(stack, upstream):
    """The answer is to the second request."""

    def refuses_the_first(request: RawMessage) -> bytes:
        sent = request.all(b"authorization")[0]
        return ok(sent) if b"renewed" in sent else ok(sent, status="401 Unauthorized")

    upstream.answer = refuses_the_first
    answer = stack.ask("GET", "/idp/scrub/user")
    assert (answer.status, len(upstream.requests)) == (200, 2)
    assert answer.body == b"Bearer " + b"[redacted]".ljust(len(TOKEN) + len("renewed_") - 2, b"*") + b"=="


def test_an_echo_that_comes_byte_by_byte_is_masked():
    """There is no packet that holds it."""
    body = b"before " + TOKEN.encode() + b" after " + TOKEN.encode()[:12]

    def trickles(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        time.sleep(0.1)
        for byte in body:
            connection.sendall(bytes([byte]))

    with served(trickles) as (_, stack):
        answer = stack.ask("GET", "/idp/scrub/user")
        assert answer.body == body.replace(TOKEN.encode()[:-2], b"[redacted]".ljust(len(TOKEN) - 2, b"*"))
        assert answer.all(b"content-length") == [b"%d" % len(body)]


def test_without_scrub_an_answer_is_nobodys_business(stack, upstream):
    """Bytes are passed on as they are, unless a route says otherwise."""
    body = f"{TOKEN} {upstream.url}/base".encode()
    upstream.answer = ok(body, 'ETag: "1"', "Accept-Ranges: bytes")
    answer = stack.ask("GET", "/idp/plain/user")
    assert (answer.body, answer.all(b"etag"), answer.all(b"accept-ranges")) == (body, [b'"1"'], [b"bytes"])


@pytest.mark.parametrize(
    ("value", "expected"), [("key", b"[redacted] key"), ("a==", b"[redacted] a=="), ("=", b"[redacte =")]
)
def test_a_token_as_short_as_a_word_is_masked_with_its_scheme_only(value, expected):
    """Else every "key" of a document would be one."""
    token = Token(value)
    assert token_texts(token).replaced(token.authorization + b" " + value.encode()) == expected


@given(st.text("ab/+=", min_size=8, max_size=40).filter(lambda text: len(text.rstrip("=")) >= 8), st.binary(), CUTS)
def test_any_token_is_found_in_any_bytes_however_they_are_cut(value, data, cuts):
    """Its own beginnings in front of it, too."""
    texts = token_texts(Token(value))
    body = data + value[:3].encode() + value.encode() + base64.b64encode(data + value.encode() + data)
    masked = in_pieces(texts, body, cuts)
    assert masked == texts.replaced(body)
    assert len(masked) == len(body)
    assert value.rstrip("=").encode() not in masked


HANDSHAKE = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
HANDSHAKE += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]


@pytest.mark.parametrize("status", ["101 Switching Protocols", "400 Bad Request"])
def test_the_answer_to_a_websockets_handshake_is_an_answer_like_others(upstream, status):
    """Refused, it has a body; accepted, it has header fields, and is not waited for to end."""

    def answer(request: RawMessage) -> bytes:
        key = request.all(b"sec-websocket-key")[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
        fields = [f"Sec-WebSocket-Accept: {accept}", "Upgrade: websocket", "Connection: Upgrade"]
        body = b"" if "101" in status else TOKEN.encode()
        return ok(
            body, *fields[: 3 if "101" in status else 0], f"Set-Cookie: t={TOKEN}", status=status, length=bool(body)
        )

    upstream.answer = answer
    routes = {"ws": replace(routes_to(upstream.url)["scrub"], websocket=True, rewrite_bodies=True)}
    with running(routes=lambda api, source: routes) as stack, stack.connect() as client:
        client.send(stack.raw_request("GET", "/idp/ws/user", *HANDSHAKE, close=False))
        seen = client.answer(bodiless="101" in status)
    assert seen.start.decode().startswith(f"HTTP/1.1 {status[:3]}")
    assert seen.all(b"set-cookie")[0].startswith(b"t=[redacted]**")
    assert TOKEN[:-2].encode() not in seen.head + seen.body


# Whatever the transport, however long.


def test_any_transport_will_do():
    """Behind the seam, whether a body is there whole is told in different ways."""

    def answer(request: httpx.Request) -> httpx.Response:
        text = f"https://up.example/base/user {TOKEN}".encode()
        return httpx.Response(200, content=text, headers={"content-type": "text/plain", "x-echo": TOKEN})

    with running(
        routes=lambda api, source: routes_to("https://up.example"), transport=httpx.MockTransport(answer)
    ) as stack:
        seen = stack.ask("GET", "/idp/both/user")
        head = stack.ask("HEAD", "/idp/both/user")
    assert seen.body.startswith(f"{stack.url}/idp/both/user [redacted]**".encode())
    assert seen.all(b"x-echo")[0].startswith(b"[redacted]")
    assert not head.all(b"content-length")


def resident() -> int:
    """Bytes of memory that this process, all parties in one, holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth_while_reading(stack, target: str, size: int) -> int:
    """By how much memory grows at most while a body of `size` bytes is read a little at a time."""
    received = 0
    most = start = resident()
    buffer = bytearray(64 * 1024)
    with socket.create_connection(("127.0.0.1", stack.gateway.port), 30) as sock:
        sock.sendall(stack.raw_request("GET", target))
        while count := sock.recv_into(buffer):
            received += count
            most = max(most, resident())
    assert received > size
    return most - start


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is in use")
@pytest.mark.parametrize("coding", ["", "gzip"])
def test_memory_does_not_grow_with_the_body(coding):
    """A hundred megabytes; also where a hundred kilobytes unfold to them."""
    size = 100_000_000
    block = b'{"url": "https://elsewhere.example/", "text": "%s"}\n' % (b"h" * 500)
    block *= 500
    folded = b""
    if coding:
        compressor = zlib.compressobj(9, wbits=31)
        parts = [compressor.compress(block) for _ in range(size // len(block) + 1)]
        folded = b"".join([*parts, compressor.flush()])

    def sends(connection: socket.socket) -> None:
        read_head(connection)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        with suppress(ConnectionError):
            if coding:
                connection.sendall(head + b"Content-Encoding: gzip\r\n\r\n" + folded)
                return
            connection.sendall(head + b"\r\n")
            for _ in range(size // len(block) + 1):
                connection.sendall(block)

    with served(sends) as (_, stack):
        growth_while_reading(stack, "/idp/both/warm-up", size)
        # All parties are in this process; the middleware's own share is a few chunks.
        assert growth_while_reading(stack, "/idp/both/large", size) < 10_000_000


def test_a_route_that_looks_through_bodies_sets_accept_encoding_itself():
    """Another one in `headers` would be a second field."""
    with pytest.raises(ConfigurationError, match="Accept-Encoding"):
        ProxyRoute("https://a.example", token_source=alices_token, scrub=True, headers={"accept-encoding": "gzip"})
