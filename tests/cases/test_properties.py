"""B35: whatever a caller sends, it stays on its route, is sent once, and the token is in its one field only.

The number of examples for each parser is EXAMPLES in the environment, a few hundred without.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idp_middleware import ProxyRoute
from tests.cases.conftest import provider_token
from tests.stack import recording_upstream

EXAMPLES = int(os.environ.get("EXAMPLES", "200"))
TOKEN = b"provider-token-of-alice"
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD")


@pytest.fixture(scope="module")
def elsewhere():
    """Where every example tries to lead us; nobody may come."""
    with recording_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def routes(recorder):
    return {
        "up": ProxyRoute(f"{recorder.url}/base", token_source=provider_token),
        "lax": ProxyRoute(f"{recorder.url}/base", token_source=provider_token, forwarded=True, cookies=["a"]),
    }


visible = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
latin = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")
PIECES = [
    "/", "//", "/..", "/.", "..", ".", "/../../admin", "\\", "%2e", "%2E%2e", "%252e%252e", "%2f", "%5c", "%00",
    "%0d%0a", ";", "..;", "%c0%ae", "@", ":80@", "@{host}", "//{host}/", "http://{host}/", "?", "#", "%", "%zz",
    "%e9", "[", "|", "é", "/idp/up/", "x", "~", "*", "&", "=", "+", "base", "/base", "a b",
]  # fmt: skip
SAFE = [piece for piece in PIECES if piece not in ("/..", "/.", "..", ".", "\\", "#", "é", "a b")]
pieces = st.one_of(st.sampled_from(PIECES), *[st.sampled_from(SAFE), st.text(visible, max_size=6)] * 3)
targets = st.lists(pieces, max_size=8).map("".join)
NAMES = [
    "Host", "X-Forwarded-For", "X-Forwarded-Host", "X_Forwarded_Host", "Forwarded", "X-Original-URL",
    "X-Rewrite-URL", "X-HTTP-Method-Override", "Authorization", "authorization_", "Proxy-Authorization", "Cookie",
    "Via", "Max-Forwards", "Connection", "Trailer", "TE", "Keep-Alive", "Accept", "Range", "Referer", "Origin",
    "IdP-Account", "X-A", "x-a", "User-Agent", "Upgrade", "Content-Type", "Content-Encoding",
]  # fmt: skip
VALUES = [
    "{host}", "http://{host}/", "authorization", "keep-alive", "for={host}", "0", "1", "DELETE", "trailers",
    "*/*", "101", "host, via, x-a", "a=1; b=2", "Bearer x", "1.1 idp_middleware", "",
]  # fmt: skip
names = st.one_of(st.sampled_from(NAMES), st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True))
values = st.one_of(st.sampled_from(VALUES), st.text(latin, max_size=12).map(str.strip))
NOT_HERE = {"content-length", "transfer-encoding", "expect", "sec-websocket-key"}
"""What decides where a request ends: test_framing has those."""
fields = st.lists(st.tuples(names, values).filter(lambda pair: pair[0].lower() not in NOT_HERE), max_size=6)
bodies = st.one_of(st.none(), st.binary(max_size=20))


class Caller:
    """One connection after the other, as long as each lasts."""

    def __init__(self, stack) -> None:
        self.stack = stack
        self.client = None

    def ask(self, request: bytes, *, bodiless: bool):
        for fresh in (False, True):
            if self.client is None or fresh:
                self.close()
                self.client = self.stack.connect()
            try:
                self.client.send(request)
                answer = self.client.answer(bodiless=bodiless)
            except (EOFError, ConnectionError):
                # The last answer was the last one on its connection; nothing of this request was read.
                if fresh:
                    raise
                continue
            if b"close" in b",".join(answer.all(b"connection")).lower():
                self.close()
            return answer
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None


@pytest.fixture
def caller(stack):
    caller = Caller(stack)
    yield caller
    caller.close()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(METHODS),
    route=st.sampled_from(["/idp/up", "/idp/lax"]),
    slash=st.sampled_from(["/", "/", "/", ""]),
    target=targets,
    sent=fields,
    body=bodies,
    chunked=st.booleans(),
)
def test_whatever_is_sent_stays_on_its_route_and_is_sent_once(
    stack, upstream, caller, elsewhere, parser, method, route, slash, target, sent, body, chunked
):
    """B35: one origin, never off its base path; one request for one or none; the bytes after the prefix; one token."""
    del upstream.requests[:]
    host = elsewhere.url.removeprefix("http://")
    own = upstream.url.removeprefix("http://").encode()
    path = (route + slash + target.replace("{host}", host)).encode("latin-1")
    pairs = [(name.encode(), value.replace("{host}", host).encode("latin-1")) for name, value in sent]
    token = SHARED.setdefault(stack.url, stack.token().encode())
    lines = [b"%b %b HTTP/1.1" % (method.encode(), path), b"Host: app.example", b"Authorization: Bearer " + token]
    lines += [b"%b: %b" % pair for pair in pairs]
    framed = b""
    if body is not None:
        lines.append(b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body))
        framed = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" if chunked else body
    answer = caller.ask(b"\r\n".join([*lines, b"", framed]), bodiless=method == "HEAD")

    assert elsewhere.connections == 0
    assert TOKEN not in answer.head + answer.body
    assert answer.status in (200, 204, 400, 401, 403, 404, 405, 418, 502)
    assert len(upstream.requests) == (answer.status == 200)
    if answer.status != 200:
        # 204: Max-Forwards; 502: a caller that pretends to be a loop; 403: an account that is not linked.
        return
    seen = upstream.last
    rest = path[len(route) :].partition(b"#")[0] if parser == "httptools" else path[len(route) :]
    assert rest[:1] in (b"", b"/", b"?")
    # ASGI does not tell an empty query from none.
    rest = rest[:-1] if rest.endswith(b"?") and rest.count(b"?") == 1 else rest
    assert seen.start == b"%b /base%b HTTP/1.1" % (method.encode(), rest)
    assert seen.all(b"host") == [own]
    assert seen.all(b"authorization") == [b"Bearer " + TOKEN]
    assert (seen.head + seen.framed).count(TOKEN) == 1
    assert token not in seen.head + seen.framed
    assert seen.body == (body or b"")
    ours = {b"host", b"via", b"authorization", b"content-length", b"transfer-encoding", b"max-forwards", b"cookie"}
    came = iter([(name.lower(), value.strip(b" \t")) for name, value in pairs])
    for field in seen.fields:
        if field[0] not in ours and not field[0].startswith(b"x-forwarded-"):
            # In the order they came, unchanged, none of them made up.
            assert field in came


SHARED: dict[str, bytes] = {}
"""A token for each gateway: making one costs more than a request."""
