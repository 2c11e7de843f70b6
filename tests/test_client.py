"""The same way without the proxy: an httpx client for the app's own code, on real sockets."""

from __future__ import annotations

import asyncio
import gzip
import time
import traceback

import httpx
import pytest
from cryptography.fernet import Fernet

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, Timeout, Token, sources
from idp_middleware._inbound import REPLAY_LIMIT
from idp_middleware._signing import Signed
from idp_middleware.errors import (
    BadRequest,
    BodyTooLarge,
    ConfigurationError,
    IdentityAmbiguous,
    IdentityNotLinked,
    TokenSourceFailed,
    TokenSourceUnavailable,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from idp_middleware.stores import SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import Identity
from tests.stack import USERS, free_port, raw_upstream, read_head, recording_upstream, running

ALICE, BOB = Caller("auth0|alice"), Caller("auth0|bob")


@pytest.fixture
async def stack():
    with running() as stack:
        yield stack
        await stack.middleware.aclose()


@pytest.fixture
def upstream():
    with recording_upstream() as recorder:
        yield recorder


@pytest.fixture
async def client_of():
    """A client for a route of its own."""
    made = []

    def make(upstream, *, source="gho_static", caller=ALICE, transport=None, **options):
        source = sources.Static(source) if isinstance(source, str) else source
        route = ProxyRoute(upstream, token_source=source, **options)
        middleware = IdPMiddleware(routes={"api": route}, authenticator=nobody, transport=transport)
        made.append(middleware)
        return middleware.client("api", caller)

    yield make
    for middleware in made:
        await middleware.aclose()


async def nobody(conn):
    raise AssertionError("nobody has sent a request")


# The job


async def test_each_caller_is_oneself(stack):
    """Alice's client has alice's token, bob's has bob's, on the same connections; whoever holds it has none."""
    for name, caller in (("alice", ALICE), ("bob", BOB), ("alice", ALICE)):
        client = stack.middleware.client("github", caller)
        answer = await client.get("/user", params={"a": "1"})
        assert answer.json()["login"] == name
        assert stack.provider.last.bearer == USERS[name]
        assert "authorization" not in {**client.headers, **answer.request.headers}
        assert USERS[name] not in repr(vars(answer)) + repr(vars(client))


async def test_a_subject_is_enough_where_the_source_looks_users_up(stack):
    """A background job has no request, so no scopes either, whatever the route asks of callers."""
    assert stack.middleware.route("github").scopes
    assert (await stack.middleware.client("github", Caller("auth0|bob")).get("/user")).json()["login"] == "bob"


async def test_tokens_are_kept_for_all_clients(stack):
    """A client costs no look-up, and closing one takes nothing from the others."""
    for _ in range(3):
        async with stack.middleware.client("github", ALICE) as client:
            await asyncio.gather(*(client.get("/user") for _ in range(5)))
    assert stack.auth0.count("/api/v2/users/") == 1


async def test_an_account_can_be_named(stack):
    """As with the header IdP-Account."""
    stack.auth0.link("auth0|alice", Identity("github", "999", access_token=USERS["bob"]))
    with pytest.raises(IdentityAmbiguous):
        await stack.middleware.client("github", ALICE).get("/user")
    work = stack.middleware.client("github", Caller("auth0|alice", account="999"))
    assert (await work.get("/user")).json()["login"] == "bob"


async def test_a_route_that_is_none_is_a_mistake_in_the_app(stack):
    """Not a 404 for whoever happens to call."""
    with pytest.raises(ConfigurationError, match="githup"):
        stack.middleware.client("githup", ALICE)


async def test_pages_can_be_followed(stack):
    """Links are the upstream's own here, and lead where the client may go."""
    client = stack.middleware.client("github", ALICE)
    first = await client.get("/user/repos")
    assert first.links["next"]["url"].startswith(stack.api.url)
    second = await client.get(first.links["next"]["url"])
    assert [repository["id"] for repository in first.json() + second.json()] == [1, 2, 3, 4]


async def test_bodies_stream_both_ways(stack):
    """Neither an upload nor a download is gathered first."""
    client = stack.middleware.client("github", ALICE)

    async def upload():
        for _ in range(20):
            yield bytes(100_000)

    assert (await client.put("/upload", content=upload())).json()["size"] == 2_000_000
    async with client.stream("GET", "/chunked/2000000") as answer:
        assert sum([len(chunk) async for chunk in answer.aiter_bytes()]) == 2_000_000
    files = {"file": ("a.txt", b"x" * 1000)}
    assert (await client.post("/upload", files=files)).json()["size"] > 1000


async def test_what_is_compressed_is_not_for_who_reads_it(client_of, upstream):
    """It is httpx that asks for it, and undoes it."""
    body = gzip.compress(b"hello")
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert (await client_of(upstream.url).get("/")).text == "hello"


# Refusals


@pytest.mark.parametrize("size", [0, 10, REPLAY_LIMIT + 1, 300_000])
async def test_a_refused_token_is_renewed_once(stack, size):
    """What is in memory can be sent again, however much it is."""
    client = stack.middleware.client("github", ALICE)
    await client.get("/user")
    stack.provider.revoke(USERS["alice"])
    stack.auth0.link("auth0|alice", Identity("github", "101", access_token="gho_renewed"))
    stack.provider.accept("gho_renewed", login="alice")
    answer = await client.post("/upload", content=bytes(size))
    assert (answer.status_code, answer.json()["size"]) == (200, size)
    assert [request.bearer for request in stack.provider.requests[-2:]] == [USERS["alice"], "gho_renewed"]


async def test_a_refusal_that_stands_is_the_answer(stack):
    """The upstream has the last word, and is asked twice at most."""
    client = stack.middleware.client("github", ALICE)
    await client.get("/user")
    stack.provider.revoke(USERS["alice"])
    stack.auth0.link("auth0|alice", Identity("github", "101", access_token="gho_as_bad"))
    assert (await client.get("/user")).status_code == 401
    assert [request.bearer for request in stack.provider.requests[1:]] == [USERS["alice"], "gho_as_bad"]


class Renewing:
    """Another token each time one is refused."""

    def __init__(self):
        self.given = 0

    def cache_key(self, caller, route):
        return None

    async def token(self, caller, route, *, refused=None):
        self.given += 1
        return Token(f"token-{self.given}")


def refusing(*tokens):
    def answer(request):
        if request.all(b"authorization")[0].removeprefix(b"Bearer ").decode() in tokens:
            return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.body), request.body)

    return answer


async def pieces(*sizes):
    for size in sizes:
        yield b"x" * size


@pytest.mark.parametrize(
    ("sizes", "status"),
    [((5, 0, 5), 200), ((REPLAY_LIMIT,), 200), ((REPLAY_LIMIT, 1), 401), ((REPLAY_LIMIT + 1, 5), 401)],
)
async def test_a_stream_is_sent_again_as_far_as_the_proxy_would_keep_it(client_of, upstream, sizes, status):
    """Past that the refusal stands: what is gone can't be sent, and a part of it must not be."""
    upstream.answer = refusing("token-1")
    answer = await client_of(upstream.url, source=Renewing()).post("/", content=pieces(*sizes))
    assert answer.status_code == status
    assert {len(request.body) for request in upstream.requests} == {sum(sizes)}
    assert len(upstream.requests) == (2 if status == 200 else 1)


async def test_a_refusal_while_the_body_is_still_being_made_stands(client_of):
    """A generator that is stopped looks like one that has ended: half a body would pass for a whole one."""
    heads = []
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handler(connection):
        heads.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        loop.call_soon_threadsafe(refused.set)
        while connection.recv(65536):
            pass

    async def half():
        yield b"half of it"
        await refused.wait()
        await asyncio.sleep(10)
        yield b"the rest"

    with raw_upstream(handler) as url:
        answer = await client_of(url, source=Renewing()).post("/", content=half())
        assert answer.status_code == 401
        assert len(heads) == 1


async def test_a_body_that_fails_fails_the_request(client_of, upstream):
    """With the app's own exception, and without an end that the upstream could take for one."""

    async def failing():
        yield b"x" * 10
        raise LookupError("the app's own")

    with pytest.raises(LookupError, match="own"):
        await client_of(upstream.url).post("/", content=failing())
    assert upstream.requests == []


# Where the token goes


@pytest.mark.parametrize("follow", [False, True])
async def test_nothing_goes_to_another_host(client_of, upstream, follow):
    """Neither with the token nor without: what is meant for elsewhere has a client of its own."""
    client = client_of("http://127.0.0.1:9/", source=Renewing())
    for url in (upstream.url, f"{upstream.url}/x", "https://127.0.0.1:9/", "http://localhost:9/", "ftp://127.0.0.1/"):
        with pytest.raises(BadRequest):
            await client.get(url, follow_redirects=follow)
    assert (upstream.connections, upstream.requests) == (0, [])


async def test_a_redirect_does_not_lead_away(client_of, upstream):
    """Followed only if asked for, with the token only where it belongs."""
    with recording_upstream() as elsewhere:
        places = {b"/base/away": f"{elsewhere.url}/base/x", b"/base/out": "/x", b"/base/on": "/base/here"}
        upstream.answer = lambda request: (
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % places[request.target].encode()
            if request.target in places
            else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )
        client = client_of(f"{upstream.url}/base")
        assert (await client.get("/away")).headers["location"] == places[b"/base/away"]
        for path in ("/away", "/out"):
            with pytest.raises(BadRequest):
                await client.get(path, follow_redirects=True)
        assert (await client.get("/on", follow_redirects=True)).text == "ok"
        assert elsewhere.connections == 0
    assert [request.all(b"authorization") for request in upstream.requests] == [[b"Bearer gho_static"]] * 5
    assert upstream.targets()[-1] == b"/base/here"


@pytest.mark.parametrize(
    "path", ["/../x", "../x", "/a/../../x", "/%2e%2e/x", "/..%2fx", "/a\\..\\x", "/.%2e/x", "/%00"]
)
async def test_a_path_does_not_leave_the_base(client_of, upstream, path):
    """A name that the app puts into a path may be anything."""
    with pytest.raises(BadRequest):
        await client_of(f"{upstream.url}/base").get(path)
    assert upstream.requests == []


async def test_the_base_url_begins_every_target(client_of, upstream):
    """Its path, its query, and segments that only look like it."""
    client = client_of(f"{upstream.url}/base?version=1")
    for url in ("/a%2Fb", "a?x=%20y", f"{upstream.url}/base/c?y=2", f"{upstream.url}/base"):
        await client.get(url)
    assert upstream.targets() == [
        b"/base/a%2Fb?version=1",
        b"/base/a?version=1&x=%20y",
        b"/base/c?version=1&y=2",
        b"/base?version=1",
    ]
    with pytest.raises(BadRequest):
        await client.get(f"{upstream.url}/bases")


# What is sent


async def test_the_routes_header_fields_hold(client_of, upstream):
    """Defaults stand before httpx's own and behind the request's; fixed ones stand before all."""
    client = client_of(
        upstream.url,
        headers={"X-Tenant": "acme"},
        default_headers={"accept": "application/vnd.api+json", "user-agent": "our-app", "x-version": "1"},
    )
    await client.get("/", headers={"x-tenant": "evil", "x_tenant": "evil", "X-Version": "2"})
    sent = dict(upstream.last.fields)
    assert (sent[b"accept"], sent[b"user-agent"], sent[b"x-version"]) == (b"application/vnd.api+json", b"our-app", b"2")
    assert upstream.last.all(b"x-tenant") == [b"acme"]
    assert b"x_tenant" not in sent


async def test_the_token_is_the_only_credential(client_of, upstream):
    """Whatever the app gives httpx beside it; framing is ours, too."""
    client = client_of(upstream.url)
    with_user = upstream.url.replace("http://", "http://user:pw@")
    await client.get(with_user)
    await client.get("/", auth=("user", "pw"))
    await client.get("/", headers={"Authorization": "Bearer mine", "Host": "evil.example", "Connection": "close"})
    host = upstream.url.removeprefix("http://").encode()
    for request in upstream.requests:
        assert request.all(b"authorization") == [b"Bearer gho_static"]
        assert request.all(b"host") == [host]
        assert request.all(b"connection") == []


async def test_one_users_cookies_are_nobodys(client_of, upstream):
    """A client that is kept for longer must not become a session with the upstream."""
    upstream.answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\n\r\n"
    client = client_of(upstream.url)
    answers = [await client.get("/") for _ in range(2)]
    assert answers[0].headers["set-cookie"] == "session=1"
    assert upstream.last.all(b"cookie") == []


async def test_the_environment_has_no_say(client_of, upstream, monkeypatch):
    """A proxy named there would see the token."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert (await client_of(upstream.url).get("/")).text == "ok"


async def test_requests_that_need_signing_are_signed(client_of, upstream):
    """What presets know of an API holds here as well."""

    async def sign(token, request):
        return Signed(b"Signed " + request.target, request.target + b"?proof=1")

    await client_of(upstream.url, sign=sign).get("/x")
    assert (upstream.last.target, upstream.last.all(b"authorization")) == (b"/x?proof=1", [b"Signed /x"])


async def test_a_form_that_is_too_long_to_sign_is_refused(client_of, upstream):
    """As in the proxy; a form in memory is read for it and still sent."""

    async def sign(token, request):
        form = await request.form()
        return Signed(b"Signed %d" % len(form), request.target)

    client = client_of(upstream.url, sign=sign)
    await client.post("/", data={"a": "b"})
    assert (upstream.last.all(b"authorization"), upstream.last.body) == ([b"Signed 3"], b"a=b")
    with pytest.raises(BodyTooLarge):
        await client.post("/", data={"a": "b" * REPLAY_LIMIT})


async def test_the_transport_of_the_middleware_is_used(client_of):
    """A mock in the app's tests, HTTP/2 in production."""
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json={"ok": True})

    client = client_of("https://api.example.com/v1", transport=httpx.MockTransport(handler))
    assert (await client.post("/x", json={})).json() == {"ok": True}
    assert (str(seen[0].url), seen[0].headers["authorization"]) == ("https://api.example.com/v1/x", "Bearer gho_static")


# Failures


async def test_failures_before_a_request_are_those_that_callers_are_answered(stack):
    """One set of words for both."""
    with pytest.raises(IdentityNotLinked) as caught:
        await stack.middleware.client("github", Caller("auth0|nobody")).get("/user")
    assert caught.value.connection == "github"
    stack.auth0.fail("/api/v2/users/", status=503)
    with pytest.raises(TokenSourceUnavailable):
        await stack.middleware.client("github", BOB).get("/user")
    assert stack.provider.requests == []


@pytest.mark.parametrize("source", ["pass-through", "exchange"])
async def test_a_source_that_hands_the_callers_token_over_needs_one(client_of, upstream, source):
    """A job's caller has none: a mistake in the app, and no request."""
    kinds = {
        "pass-through": sources.PassThrough(),
        "exchange": sources.TokenExchange(token_url=upstream.url, client_id="me", client_secret="s3cret"),
    }
    with pytest.raises(TokenSourceFailed, match="credential"):
        await client_of(upstream.url, source=kinds[source]).get("/")
    assert upstream.requests == []
    if source == "pass-through":
        caller = Caller("alice", credential="of-alice")
        await client_of(upstream.url, source=kinds[source], caller=caller).get("/")
        assert upstream.last.all(b"authorization") == [b"Bearer of-alice"]


async def test_a_made_up_caller_says_whose_subject_it_is(client_of, upstream, tmp_path):
    """A store keeps the users of several issuers apart."""
    store = SQLiteTokenStore(tmp_path / "tokens.db", encryption_keys=[Fernet.generate_key()])
    source = sources.RefreshToken(
        store=store, token_url=upstream.url + "/token", client_id="me", client_secret="s3cret"
    )
    key = TokenKey(issuer="https://acme.example/", subject="alice", connection="google")
    await store.put(key, StoredToken(access_token="ya29.alice"))
    job = Caller("alice", claims={"iss": "https://acme.example/"})
    await client_of(upstream.url, source=source, connection="google", caller=job).get("/")
    assert upstream.last.all(b"authorization") == [b"Bearer ya29.alice"]
    with pytest.raises(IdentityNotLinked):
        await client_of(upstream.url, source=source, connection="google", caller=Caller("alice")).get("/")
    await store.aclose()


async def test_an_upstream_that_is_not_there(client_of):
    """Whatever httpx would call it."""
    with pytest.raises(UpstreamUnreachable):
        await client_of(f"http://127.0.0.1:{free_port()}").get("/")


async def test_the_routes_timeout_holds_unless_a_request_has_its_own(client_of):
    """In seconds; None waits for as long as it takes."""

    def silent(connection):
        read_head(connection)
        connection.recv(1)

    def slow(connection):
        read_head(connection)
        time.sleep(0.3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_upstream(silent) as url:
        with pytest.raises(UpstreamTimeout):
            await client_of(url, timeout=Timeout(read=0.05)).get("/")
        with pytest.raises(UpstreamTimeout):
            await client_of(url).get("/", timeout=0.05)
    with raw_upstream(slow) as url:
        assert (await client_of(url, timeout=Timeout(read=0.05)).get("/", timeout=None)).text == "ok"


async def test_a_body_that_breaks_off_is_never_taken_for_whole(client_of):
    """A failure like others: unlike the proxy's caller, the app has nothing half-answered."""

    def handler(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    with raw_upstream(handler) as url:
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await client_of(url).get("/")
        async with client_of(url).stream("GET", "/") as answer:
            parts = answer.aiter_raw()
            assert await anext(parts) == b"half"
            with pytest.raises(UpstreamUnreachable):
                await anext(parts)


async def test_a_reporter_of_errors_sees_no_token(client_of):
    """It takes down the variables of every frame; the app's own stay."""
    client = client_of(f"http://127.0.0.1:{free_port()}", source="gho_in_no_report")
    with pytest.raises(UpstreamUnreachable) as caught:
        await client.get("/", headers={"x": "y"})
    report = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "handle_async_request" in report
    assert "gho_in_no_report" not in report


async def test_a_cancelled_request_lets_go(client_of):
    """Whoever gives up leaves no connection behind."""
    closed = asyncio.Event()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handler(connection):
        read_head(connection)
        loop.call_soon_threadsafe(begun.set)
        connection.recv(1)
        loop.call_soon_threadsafe(closed.set)

    with raw_upstream(handler) as url:
        request = asyncio.create_task(client_of(url).get("/"))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.wait_for(closed.wait(), 10)
