"""Group E: disconnects, time-outs, an upstream that fails, and the connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time

import anyio
import httpx
import pytest
import trustme

from idp_middleware import ProxyRoute, Timeout, Token, errors
from tests.cases.conftest import app_behind, provider_token
from tests.stack import OK, eventually, free_port, raw_upstream, read_head, recording_upstream, running


@contextlib.contextmanager
def gateway(parser, url, *, source=provider_token, app=app_behind, wrap=lambda middleware: middleware, **options):
    """A stack of a test's own, with one route to `url`."""
    own = {name: options.pop(name) for name in ("transport", "uvicorn") if name in options}
    routes = {"up": ProxyRoute(url, token_source=source, **options)}
    with running(http=parser, routes=lambda api, _: routes, app=app, wrap=wrap, **own) as stack:
        yield stack


def until_closed(connection: socket.socket) -> float:
    """Wait until the peer closes; how long that took, in seconds."""
    start = time.monotonic()
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic() - start


@contextlib.contextmanager
def tls_upstream(tmp_path, authority: trustme.CA, *names: str, host: str = "127.0.0.1"):
    """The provider's API over TLS, with a certificate for `names`."""
    from idp_middleware.testing import ProviderAPI, serve

    certificate = authority.issue_cert(*names)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    provider = ProviderAPI()
    with serve(provider, host=host, ssl_certfile=str(chain), ssl_keyfile=str(key)) as server:
        yield provider, server


def test_an_upstream_that_nobody_runs_is_502_without_its_address(parser):
    """E01: where it should be is nobody's business."""
    port = free_port()
    with gateway(parser, f"http://127.0.0.1:{port}") as stack:
        answer = stack.ask("POST", "/idp/up/x", "Content-Length: 4", body=b"body")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert str(port).encode() not in answer.head + answer.body
        # RFC 9209 section 2.3 has a word for each; an operator can tell them apart without our log.
        assert b"idp_middleware; error=connection_refused" in answer.head


def test_an_upstream_whose_name_nobody_knows_is_502_without_its_name(parser):
    """E01: RFC 6761 section 6.4 keeps `invalid` from ever being one."""
    with gateway(parser, "https://nobody.invalid") as stack:
        answer = stack.ask("GET", "/idp/up/x")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert b"invalid" not in answer.head + answer.body
        assert b"error=dns_error" in answer.head


@pytest.mark.parametrize("fault", ["unknown authority", "another name"])
def test_an_upstream_that_cannot_prove_who_it_is_gets_no_token(parser, tmp_path, monkeypatch, fault):
    """E01: and the caller reads nothing of the certificate."""
    authority = trustme.CA()
    if fault == "another name":
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    name = "another.example" if fault == "another name" else "127.0.0.1"
    with tls_upstream(tmp_path, authority, name) as (provider, server), gateway(parser, server.url) as stack:
        answer = stack.ask("GET", "/idp/up/x")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert b"ertificate" not in answer.body
        assert b"error=tls_certificate_error" in answer.head
        assert provider.requests == []


def test_an_upstream_that_speaks_no_tls_gets_no_token(parser):
    """E01: there is no falling back."""
    received = []

    def plain(connection):
        received.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with raw_upstream(plain) as url, gateway(parser, url.replace("http:", "https:")) as stack:
        answer = stack.ask("GET", "/idp/up/x")
        assert answer.problem == "upstream-unreachable"
        assert b"error=tls_protocol_error" in answer.head
    assert b"provider-token" not in b"".join(received)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_upstream_over_tls_is_reached_by_its_address(parser, tmp_path, monkeypatch, host):
    """E23: an IPv6 address stands in brackets in Host, and bare in the certificate."""
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("there is no IPv6 on this machine")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with tls_upstream(tmp_path, authority, host, host=host) as (provider, server):
        with gateway(parser, f"{server.url}/echo") as stack:
            assert stack.ask("GET", "/idp/up/x").status == 200
        assert provider.last.header("host") == server.url.removeprefix("https://")
        assert provider.last.target == b"/echo/x"


@pytest.mark.parametrize("reused", [False, True])
def test_a_post_that_is_not_answered_is_not_sent_again(parser, reused):
    """E02: it may have been carried out (RFC 9110 section 9.2.2)."""
    with recording_upstream() as upstream, gateway(parser, upstream.url) as stack:
        if reused:
            assert stack.ask("GET", "/idp/up/x").status == 200
        upstream.reset()
        upstream.answer = b""
        answer = stack.ask("POST", "/idp/up/x", "Content-Length: 4", body=b"body")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert len(upstream.requests) == 1


def test_a_get_that_met_a_closing_connection_is_sent_once_more(parser):
    """E02: once, and only where the connection was an old one; else 502."""
    with recording_upstream() as upstream, gateway(parser, upstream.url) as stack:
        assert stack.ask("GET", "/idp/up/x").status == 200
        upstream.reset()
        first = itertools.count()
        upstream.answer = lambda request: OK if next(first) else b""
        assert stack.ask("GET", "/idp/up/x").status == 200
        assert len(upstream.requests) == 2
        upstream.reset()
        upstream.answer = b""
        assert stack.ask("GET", "/idp/up/x").problem == "upstream-unreachable"
        assert len(upstream.requests) <= 2


def test_an_idle_connection_that_the_upstream_closed_is_not_used(parser):
    """E04: not even for a POST, which could not be sent again."""
    heads = []

    def answers_and_closes(connection):
        heads.append(read_head(connection))
        connection.sendall(OK)

    with raw_upstream(answers_and_closes) as url, gateway(parser, url) as stack:
        for number in range(1, 4):
            assert stack.ask("POST", "/idp/up/x", "Content-Length: 0").status == 200
            assert len(heads) == number
            time.sleep(0.1)


def test_connections_are_used_again_unless_the_upstream_ends_them(parser):
    """E22: most of a request's cost would be the connection."""
    with recording_upstream() as upstream, gateway(parser, upstream.url) as stack:
        for _ in range(3):
            assert stack.ask("GET", "/idp/up/x").status == 200
        assert upstream.connections == 1
        upstream.answer = OK.replace(b"200 OK\r\n", b"200 OK\r\nConnection: close\r\n")
        for _ in range(3):
            assert stack.ask("GET", "/idp/up/x").status == 200
        assert upstream.connections == 3


def test_waiting_for_the_upstream_is_bounded_at_every_step(parser):
    """E05: connecting with its TLS, and the head of the answer: 504 within the time that was set."""
    for scheme, timeout in (("https", Timeout(connect=0.2)), ("http", Timeout(read=0.2))):
        with raw_upstream(until_closed) as url, gateway(parser, scheme + url[4:], timeout=timeout) as stack:
            start = time.monotonic()
            assert stack.ask("GET", "/idp/up/x").problem == "upstream-timeout"
            assert 0.15 < time.monotonic() - start < 4


def test_an_upstream_that_takes_no_more_of_an_upload_is_504(parser):
    """E05: the write time-out, with the answer while the caller still sends."""
    done = threading.Event()

    def stuck(connection):
        read_head(connection)
        done.wait(20)

    with raw_upstream(stuck) as url, gateway(parser, url, timeout=Timeout(write=0.3)) as stack:
        with stack.connect() as client:
            client.send(stack.raw_request("PUT", "/idp/up/x", "Content-Length: 50000000", close=False))
            client.socket.settimeout(0.2)
            with contextlib.suppress(OSError):
                client.socket.sendall(b"x" * 50_000_000)
            client.socket.settimeout(5)
            assert client.answer().problem == "upstream-timeout"
        done.set()


def test_no_free_connection_in_time_is_504(parser):
    """E05: and whoever holds the last one is served all the same."""
    entered, may_answer = threading.Event(), threading.Event()

    def one_at_a_time(request):
        entered.set()
        may_answer.wait(10)
        return OK

    with recording_upstream() as upstream:
        upstream.answer = one_at_a_time
        one = httpx.AsyncHTTPTransport(trust_env=False, limits=httpx.Limits(max_connections=1))
        with gateway(parser, upstream.url, transport=one, timeout=Timeout(pool=0.2)) as stack:
            with stack.connect() as first:
                first.send(stack.raw_request("GET", "/idp/up/x", close=False))
                assert entered.wait(5)
                assert stack.ask("GET", "/idp/up/x").problem == "upstream-timeout"
                may_answer.set()
                assert first.answer().status == 200
            assert stack.ask("GET", "/idp/up/x").status == 200


def test_a_stream_of_events_may_be_silent_for_longer_than_an_answer(parser):
    """E07: silence is what it mostly is; the caller's leaving ends it."""

    def events(connection):
        stream = b"/events" in read_head(connection)
        kind = b"text/event-stream; charset=utf-8" if stream else b"text/plain"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
        time.sleep(0.7)
        connection.sendall(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")

    with raw_upstream(events) as url, gateway(parser, url, timeout=Timeout(read=0.2)) as stack:
        assert stack.ask("GET", "/idp/up/events").body == b"data: 1\n\n"
        with pytest.raises(EOFError):
            stack.ask("GET", "/idp/up/other")


@pytest.mark.parametrize("stage", ["before the head", "within the body"])
def test_cancelling_a_request_from_outside_closes_its_upstream(parser, stage):
    """E12: a time-out around the app; the cancellation goes on to whoever asked for it."""
    outcome = []
    closed = threading.Event()

    def slow(connection):
        read_head(connection)
        if stage == "within the body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        if until_closed(connection) < 5:
            closed.set()

    def hurried(middleware):
        async def app(scope, receive, send):
            if scope["type"] != "http":
                return await middleware(scope, receive, send)
            try:
                async with asyncio.timeout(0.5):
                    await middleware(scope, receive, send)
            except TimeoutError:
                outcome.append("timed out")
                if stage == "within the body":
                    raise
                await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})

        return app

    with raw_upstream(slow) as url, gateway(parser, url, wrap=hurried) as stack:
        if stage == "within the body":
            with pytest.raises(EOFError):
                stack.ask("GET", "/idp/up/x")
        else:
            assert stack.ask("GET", "/idp/up/x").status == 503
        assert closed.wait(5)
        assert outcome == ["timed out"]


WORDS = "secret-host.internal"
ODD_ERRORS = [
    httpx.InvalidURL(WORDS),
    httpx.LocalProtocolError(WORDS),
    httpx.DecodingError(WORDS),
    httpx.StreamConsumed(),
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, WORDS),
    anyio.ClosedResourceError(),
    RuntimeError(WORDS),
    OSError(WORDS),
]


class Failing(httpx.AsyncBaseTransport):
    """Fails before the head, or within the body."""

    def __init__(self, error: Exception, *, late: bool) -> None:
        self.error, self.late = error, late

    async def handle_async_request(self, request):
        async def body():
            yield b"half"
            raise self.error

        if not self.late:
            raise self.error
        return httpx.Response(200, headers={"content-length": "10"}, content=body())


@pytest.mark.parametrize("error", ODD_ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_transport_raises_is_a_502_or_a_break(parser, error, caplog):
    """E13: never a 500 with a traceback, never its words, and never a clean end."""
    with gateway(parser, "http://127.0.0.1:9", transport=Failing(error, late=False)) as stack:
        answer = stack.ask("GET", "/idp/up/x")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
    late = gateway(parser, "http://127.0.0.1:9", transport=Failing(error, late=True))
    with late as stack, pytest.raises(EOFError):
        stack.ask("GET", "/idp/up/x")
    assert WORDS not in caplog.text


def counted_tokens():
    """A source that never gives the same token twice, and the number of times it was asked."""
    asked: list[str] = []

    async def source(caller, route, *, refused=None):
        asked.append(f"token-{len(asked)}")
        return Token(asked[-1])

    return source, asked


REFUSED = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("body", [b"", b"small"])
def test_a_refused_token_is_renewed_and_the_request_sent_once_more(parser, body):
    """E15: the provider withdrew the token we keep; the caller needs not know."""
    source, asked = counted_tokens()
    with recording_upstream() as upstream, gateway(parser, upstream.url, source=source) as stack:
        upstream.answer = lambda request: REFUSED if b"token-0" in request.head else OK
        framing = [f"Content-Length: {len(body)}"] if body else []
        assert stack.ask("POST", "/idp/up/x", *framing, body=body).status == 200
        assert [request.all(b"authorization") for request in upstream.requests] == [
            [b"Bearer token-0"],
            [b"Bearer token-1"],
        ]
        assert [request.body for request in upstream.requests] == [body, body]
        assert len(asked) == 2


def test_an_upstream_that_refuses_every_token_drains_nobody(parser):
    """E16: two requests up at most for one, and few questions to the identity provider for many."""
    source, asked = counted_tokens()
    with recording_upstream() as upstream, gateway(parser, upstream.url, source=source) as stack:
        upstream.answer = REFUSED
        for number in range(1, 11):
            answer = stack.ask("GET", "/idp/up/x")
            assert (answer.status, answer.body) == (401, b"no")
            assert answer.all(b"proxy-status") == [b"idp_middleware; received-status=401"]
            assert len(upstream.requests) <= 2 * number
        assert len(asked) <= 5


def test_a_request_too_large_to_keep_is_not_sent_again(parser):
    """E15: half a body would be worse than the refusal."""
    source, _ = counted_tokens()
    with recording_upstream() as upstream, gateway(parser, upstream.url, source=source) as stack:
        upstream.answer = REFUSED
        assert stack.ask("PUT", "/idp/up/x", "Content-Length: 200000", body=b"x" * 200_000).status == 401
        assert len(upstream.requests) == 1
        # The next one has the new token at once.
        upstream.answer = OK
        assert stack.ask("GET", "/idp/up/x").status == 200
        assert upstream.last.all(b"authorization") == [b"Bearer token-1"]


@pytest.mark.parametrize(
    ("error", "status", "problem"),
    [
        (errors.ReconnectRequired("withdrawn"), 403, "reconnect-required"),
        (errors.IdentityNotLinked("gone", connection="c"), 403, "identity-not-linked"),
        (errors.TokenSourceUnavailable("down"), 401, None),
        (errors.TokenSourceFailed("nonsense"), 401, None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_refusal_that_cannot_be_mended_is_told_as_what_it_is(parser, error, status, problem):
    """E15: whose account is gone has to connect again; an outage elsewhere leaves the upstream's own answer."""

    async def source(caller, route, *, refused=None):
        if refused is not None:
            raise error
        return Token("withdrawn")

    with recording_upstream() as upstream, gateway(parser, upstream.url, source=source) as stack:
        upstream.answer = REFUSED
        answer = stack.ask("GET", "/idp/up/x")
        assert (answer.status, answer.problem) == (status, problem)
        assert len(upstream.requests) == 1


def test_a_caller_that_leaves_while_a_token_is_renewed_leaves_nothing_open(parser):
    """E08, E15: neither the refusal that is held back meanwhile, nor its connection."""
    asked, closed = threading.Event(), threading.Event()

    async def source(caller, route, *, refused=None):
        if refused is not None:
            asked.set()
            await asyncio.sleep(5)
        return Token("withdrawn")

    def refuses(connection):
        read_head(connection)
        # Not whole, so that its connection is not yet free for others.
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 1000\r\n\r\nno")
        if until_closed(connection) < 3:
            closed.set()

    with raw_upstream(refuses) as url, gateway(parser, url, source=source) as stack:
        with stack.connect() as client:
            client.send(stack.raw_request("GET", "/idp/up/x", close=False))
            assert asked.wait(5)
        assert closed.wait(5)


def test_callers_that_leave_while_a_token_is_fetched_take_nothing_from_others(parser):
    """E08: they no longer wait, the one who stays is served, and the source was asked once."""
    asked, go_on = [], threading.Event()

    async def source(caller, route):
        asked.append(caller.subject)
        await asyncio.to_thread(go_on.wait, 10)
        return Token("token")

    with recording_upstream() as upstream, gateway(parser, upstream.url, source=source) as stack:
        request = stack.raw_request("GET", "/idp/up/x", close=False)
        with stack.connect() as first:
            first.send(request)
            eventually(lambda: asked)
        with stack.connect() as second:
            second.send(request)
            time.sleep(0.2)
            go_on.set()
            assert second.answer().status == 200
        assert (len(asked), len(upstream.requests)) == (1, 1)


def test_an_upstream_that_is_busy_says_so_to_the_caller(parser):
    """E17: one request, and its Retry-After is passed on; the caller knows best whether to try again."""
    with recording_upstream() as upstream, gateway(parser, upstream.url) as stack:
        upstream.answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"
        answer = stack.ask("GET", "/idp/up/x")
        assert (answer.status, answer.all(b"retry-after"), answer.body) == (503, [b"7"], b"busy")
        assert len(upstream.requests) == 1


def test_callers_that_send_slowly_hold_nobody_up(parser):
    """E19: they hold neither a connection to the upstream nor anybody else's turn."""
    with recording_upstream() as upstream, gateway(parser, upstream.url) as stack, contextlib.ExitStack() as slow:
        for _ in range(30):
            client = slow.enter_context(stack.connect())
            client.send(stack.raw_request("POST", "/idp/up/slow", "Content-Length: 100", body=b"x", close=False))
        start = time.monotonic()
        assert stack.ask("GET", "/idp/up/x").status == 200
        assert time.monotonic() - start < 4
        assert upstream.connections == 1
        assert upstream.targets() == [b"/x"]


def test_proxies_in_the_environment_are_not_asked(parser, monkeypatch):
    """E21: the token would go to whoever set the variable; a proxy has to be configured."""
    with recording_upstream() as proxy, recording_upstream() as upstream:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with gateway(parser, upstream.url) as stack:
            assert stack.ask("GET", "/idp/up/x").status == 200
        with running(http=parser) as stack:
            # Keys, the look-up at the identity provider, and the call: all of it.
            assert stack.ask("GET", "/idp/github/user").status == 200
        assert proxy.connections == 0


def slow_stream(connection):
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nfirst ")
    time.sleep(0.4)
    connection.sendall(b"second")


def test_a_stream_under_way_at_shutdown_finishes_where_it_may(parser):
    """E24: within the server's own grace."""
    patient = {"timeout_graceful_shutdown": 5}
    with raw_upstream(slow_stream) as url, gateway(parser, url, uvicorn=patient) as stack, stack.connect() as client:
        client.send(stack.raw_request("GET", "/idp/up/x", close=False))
        assert client.socket.recv(65536)
        stack.gateway.stop()
        assert client.rest().endswith(b"second")


def test_a_stream_that_outlasts_the_shutdown_is_broken_off_on_both_sides(parser):
    """E24: never ended as if it were whole, and nothing is left open."""
    closed = threading.Event()

    def endless(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        if until_closed(connection) < 5:
            closed.set()

    with raw_upstream(endless) as url, gateway(parser, url) as stack, stack.connect() as client:
        client.send(stack.raw_request("GET", "/idp/up/x", close=False))
        received = client.socket.recv(65536)
        start = time.monotonic()
        stack.gateway.stop()
        assert time.monotonic() - start < 5
        received += client.rest()
        assert not received.endswith(b"0\r\n\r\n")
        assert closed.wait(5)


async def raises(scope, receive, send):
    assert scope["type"] == "http"


async def raises_after_asking(scope, receive, send):
    assert (await receive())["type"] == "http.request"


async def says_nothing(scope, receive, send):
    return


@pytest.mark.parametrize("app", [raises, raises_after_asking, says_nothing, None])
def test_connections_are_closed_at_shutdown_though_the_app_has_no_lifespan(parser, app):
    """E24: the app behind need not know of it; `lifespan="on"` makes the server insist."""
    closed = threading.Event()

    def one(connection):
        read_head(connection)
        connection.sendall(OK)
        if until_closed(connection) < 3:
            closed.set()

    with raw_upstream(one) as url:
        with gateway(parser, url, app=app, uvicorn={"lifespan": "on"}) as stack:
            assert stack.ask("GET", "/idp/up/x").status == 200
        assert closed.is_set() or closed.wait(1)


def test_a_lifespan_that_fails_is_not_hidden(parser):
    """E24: an app that can't start must not serve."""

    async def fails(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="could not start"), gateway(parser, "http://127.0.0.1:9", app=fails):
        pass
