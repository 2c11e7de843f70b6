"""What happens to requests: every answer, error, time-out and crash, each under a name.

`OUTCOMES` are for any set-up of the gateway; `SCENARIOS` are all of those, and what is peculiar to one.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from idp_middleware import TokenCache
from idp_middleware.testing._double import Answer as IdPAnswer
from tests.leaks.authority import repeating, repeating_as_code
from tests.leaks.set_ups import SET_UPS
from tests.leaks.world import World
from tests.stack import free_port

Run = Callable[[World], None]

BIG = b"x" * 300_000


@dataclass(frozen=True)
class Scenario:
    """Something that happens in a set-up; `options` are `world`'s."""

    name: str
    run: Run
    set_up: str = "management"
    options: Mapping[str, Any] = field(default_factory=dict)


def expect(world: World, status: int | tuple[int, ...], *args: Any, **options: Any) -> bytes:
    """A request and the status it gets: else the scenario is not the one it is called."""
    answer = world.ask(*args, **options)
    assert answer.status in ((status,) if isinstance(status, int) else status), answer
    return answer.data


# What the upstream does.


def reply(status: str, *lines: str, body: bytes = b"{}") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode() + body


def hang_up(connection: socket.socket, stream: Any) -> None:
    """No answer."""


def hang_up_after(said: bytes, *, seconds: float = 0.0) -> Callable[..., Any]:
    """The end of the connection within an answer, or a long silence there."""

    def serve(connection: socket.socket, stream: Any) -> None:
        connection.sendall(said)
        time.sleep(seconds)

    return serve


def always(what: Any) -> Callable[[bytes], Any]:
    return lambda head: what


def by_token(world: World, refused: set[bytes]) -> Callable[[bytes], bytes]:
    """A 401 for tokens that are withdrawn."""
    return lambda head: (
        reply("401 Unauthorized", "WWW-Authenticate: Bearer")
        if any(token in head for token in refused)
        else reply("200 OK")
    )


# For every set-up.


def goes_through(world: World) -> None:
    for user in ("alice", "bob", "alice"):
        expect(world, 200, user=user)
        expect(world, 200, "POST", user=user, body=b"some content")


def refused_and_renewed(world: World) -> None:
    """By the upstream, which then takes the new one where there is one."""
    expect(world, 200)
    refused = {world.token_of("alice")}
    world.tap.answer = by_token(world, refused)
    world.authority.renew("alice")
    expect(world, (200, 401), "POST", body=b"once and again")


def refused_for_good(world: World) -> None:
    world.tap.answer = reply("401 Unauthorized", "WWW-Authenticate: Bearer")
    expect(world, 401)


def upstream_breaks_off(world: World) -> None:
    world.tap.answer = always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"))
    expect(world, 200)


def idp_repeats_our_request(world: World) -> None:
    """In its error: some servers do, and so do frameworks in debug mode."""
    world.authority.echo = repeating
    expect_error(world)


def idp_repeats_our_request_as_code(world: World) -> None:
    world.authority.echo = repeating_as_code
    expect_error(world)


def idp_fails(world: World) -> None:
    """With a page that repeats our request."""

    def page(request: Any) -> IdPAnswer | None:
        answer = repeating(request)
        return None if answer is None else IdPAnswer(500, f"<pre>{answer.body}</pre>")

    world.authority.echo = page
    expect_error(world)


def idp_answers_nonsense(world: World) -> None:
    """A success that repeats our request where the token should be."""

    def page(request: Any) -> IdPAnswer | None:
        answer = repeating(request)
        if answer is None or not isinstance(answer.body, dict):
            return None
        said = answer.body["message"]
        return IdPAnswer(200, {"access_token": [said], "active": said, "token_type": said, "identities": said})

    world.authority.echo = page
    expect_error(world)


def idp_hangs_up(world: World) -> None:
    for path in WITH_SECRETS:
        world.authority.drop(path)
    expect_error(world)


def idp_is_slow(world: World) -> None:
    for path in WITH_SECRETS:
        if path != "/introspect":
            world.authority.stall(path, 3.0)
    expect_error(world)


WITH_SECRETS = (
    "/oauth/token", "/api/v2", "/introspect", "/exchange", "/acme", "/realms", "/client-credentials", "/refresh",
)  # fmt: skip


def expect_error(world: World) -> None:
    """An answer of ours, unless the set-up never asks."""
    answer = world.ask()
    if world.set_up.name not in ("static", "pass through"):
        assert answer.status in (401, 403, 502, 503, 504), answer


OUTCOMES: Mapping[str, Run] = {
    "goes through": goes_through,
    "is refused and renewed": refused_and_renewed,
    "is refused for good": refused_for_good,
    "breaks off": upstream_breaks_off,
    "meets an identity provider that repeats our request": idp_repeats_our_request,
    "meets an identity provider that repeats our request as the code of an error": idp_repeats_our_request_as_code,
    "meets an identity provider that fails": idp_fails,
    "meets an identity provider that answers nonsense": idp_answers_nonsense,
    "meets an identity provider that hangs up": idp_hangs_up,
    "meets an identity provider that is slow": idp_is_slow,
}
IMPATIENT = {idp_is_slow: {"patience": 0.2}}


# Answers of ours.


def refusals(world: World) -> None:
    """Whatever is wrong with a caller's request."""
    token = world.authority.callers_token("alice")
    bearer = f"Authorization: Bearer {token}"
    bad: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = [
        (401, ("GET", "/idp/github/user"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"{bearer}x"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", bearer, bearer), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"Authorization: Basic {token}"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"Authorization: {token}"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"{bearer}{'x' * 20_000}"), {"credentials": False}),
        (401, ("POST", "/idp/github/user"), {"credentials": False, "body": f"access_token={token}".encode()}),
        (404, ("GET", "/idp/nothing/user"), {}),
        (405, ("TRACE", "/idp/github/user"), {}),
        (400, ("GET", "/idp/github/../user"), {}),
        (400, ("GET", "/idp/github/user", "Host: another.example"), {}),
        (400, ("GET", "/idp/github/user", "IdP-Account: \x7f"), {}),
        (413, ("POST", "/idp/github/user"), {"body": b"x" * 1_000_001}),
        (403, ("GET", "/idp/github/user", "IdP-Account: 999"), {}),
    ]
    for status, args, options in bad:
        expect(world, status, *args, **options)


def tokens_in_urls(world: World) -> None:
    """They are no credentials here. What a server's access log makes of URLs is its own affair."""
    token = world.authority.callers_token("alice")
    expect(world, 401, "GET", f"/idp/github/user?access_token={token}", credentials=False)
    expect(world, 404, "GET", f"/idp/{token}")
    expect(world, 400, "GET", f"/idp/github/../{token}")


def forged_and_expired(world: World) -> None:
    for options in (
        {"expires_in": -3600},
        {"audience": "https://another.example"},
        {"iss": "https://another.example/"},
        {"algorithm": "none"},
        {"scope": "other"},
        {"sub": None},
        {"headers": {"kid": "unknown"}},
    ):
        token = world.authority.callers_token("alice", **options)
        expect(world, (401, 403), "GET", "/idp/github/user", f"Authorization: Bearer {token}", credentials=False)


def accounts(world: World) -> None:
    """One of several, none, and an unknown user."""
    from idp_middleware.testing import Identity

    subject = world.authority.subject("alice")
    world.authority.link(
        subject, Identity("github", "999", access_token=world.canaries.of("alice", "second provider token"))
    )
    expect(world, 409)
    expect(world, 200, "GET", "/idp/github/user", "IdP-Account: 999")
    expect(world, 403, "GET", "/idp/github/user", "IdP-Account: 5")
    world.authority.unlink(subject, "github")
    expect(world, (200, 403), user="bob")
    world.authority.remove_user(subject)
    expect(world, 403, "GET", "/idp/github/user", "IdP-Account: 7")


def odd_methods(world: World) -> None:
    expect(world, 200, "HEAD")
    expect(world, 200, "OPTIONS")
    expect(world, 204, "OPTIONS", "/idp/github/user", "Max-Forwards: 0")
    expect(world, 200, "DELETE", body=b"x")


def headers_that_try(world: World) -> None:
    """To bring the caller's secrets along by another name, or to choose where things go."""
    token, cookie = world.authority.callers_token("alice"), world.canaries.of("alice", "session cookie")
    for name in CARRIERS:
        expect(world, 200, "GET", "/idp/github/user", f"{name}: {token}")
        expect(world, 200, "GET", "/idp/github/user", f"{name}: a=b; session={cookie}")
    expect(world, 200, "GET", "/idp/github/user", "Connection: X-Token", f"X-Token: {token}")
    expect(world, 200, "GET", "/idp/github/user", f"Referer: https://app.example/?token={token}")
    expect(world, 200, "GET", "/idp/github/user", "X-Upstream: https://evil.example", "X-User-Id: bob")


CARRIERS = (
    "Cookie", "Cookie2", "DPoP", "Proxy-Authorization", "X-Forwarded-Access-Token", "X-Forwarded-User",
    "X-Auth-Request-Access-Token", "X-Amzn-Oidc-Accesstoken", "X-Amzn-Oidc-Data", "X-Goog-Iap-Jwt-Assertion",
    "Cf-Access-Jwt-Assertion", "X-Ms-Token-Aad-Access-Token", "X-Ms-Token-Aad-Id-Token", "X-Ms-Client-Principal",
    "X_Amzn_Oidc_Data", "X-Pomerium-Jwt-Assertion", "X-Vercel-Oidc-Token",
)  # fmt: skip
"""Fields in which proxies in front of an app hand on the caller's token or session."""


# The upstream's doings.


def answers_of_the_upstream(world: World) -> None:
    for answer, status in (
        (reply("500 Internal Server Error", body=b"<h1>Oops</h1>"), 500),
        (reply("404 Not Found"), 404),
        (reply("403 Forbidden"), 403),
        (reply("429 Too Many Requests", "Retry-After: 1"), 429),
        (reply("302 Found", f"Location: {world.api_url}/elsewhere", "Set-Cookie: a=b"), 302),
        (reply("302 Found", "Location: https://evil.example/"), 302),
        (reply("407 Proxy Authentication Required", "Proxy-Authenticate: Basic"), 502),
        (reply("421 Misdirected Request"), 502),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200),
    ):
        world.tap.answer = answer
        expect(world, status)


def uploads(world: World) -> None:
    expect(world, 200, "PUT", body=BIG)
    chunked = world.request("POST", "/idp/github/user", "Transfer-Encoding: chunked")
    assert world.exchange(chunked + b"5\r\nabcde\r\n0\r\n\r\n").status == 200
    world.tap.answer = reply("413 Content Too Large", "Connection: close")
    expect(world, (413, 502), "PUT", body=BIG)


def broken_answers(world: World) -> None:
    """Bytes that are no answer; those of the request among them, as a broken server may send them back."""

    def mirrored(start: bytes) -> Callable[[bytes], Any]:
        return lambda head: hang_up_after(start + head)

    for answer in (
        always(hang_up),
        always(hang_up_after(b"HTTP/1.1 200 OK\r\nX-Half: a fie")),
        always(hang_up_after(b"SSH-2.0-OpenSSH\r\n")),
        always(hang_up_after(b"HTTP/1.1 999 What\r\n\r\n")),
        always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")),
        mirrored(b""),
        mirrored(b"HTTP/1.1 200 OK\r\nX:\0 "),
        mirrored(b"HTTP/1.1 abc "),
        mirrored(b"HTTP/1.1 200 OK\r\n "),
    ):
        world.tap.answer = answer
        expect(world, 502)
    world.tap.answer = lambda head: hang_up_after(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + head.partition(b"\r\n")[2]
    )
    expect(world, (200, 502))


def slow_answers(world: World) -> None:
    world.tap.answer = always(hang_up_after(b"", seconds=0.8))
    expect(world, 504)
    world.tap.answer = always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun", seconds=0.8))
    expect(world, 200)


def echoes_where_it_is_asked_to_scrub(world: World) -> None:
    """An upstream that puts the token it got into its answer, in its head and its body."""

    def echo(head: bytes) -> bytes:
        sent = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"authorization:"))
        token = sent.partition(b"Bearer ")[2]
        body = b'{"next": "https://api.example/?access_token=' + token + b'"}'
        return reply("200 OK", "X-Echo: " + token.decode(), "Content-Type: application/json", body=body)

    world.tap.answer = echo
    expect(world, 200)
    expect(world, 200, user="bob")
    half = len(world.token_of("alice")) // 2

    def in_chunks(head: bytes) -> bytes:
        body = echo(head).partition(b"\r\n\r\n")[2]
        at = body.index(b"gho_") + half
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:]))
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    world.tap.answer = in_chunks
    expect(world, 200)


def scrubbing(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return with_route(world, arguments, scrub=True)


def with_route(world: World, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
    from dataclasses import replace

    return arguments | {"routes": {"github": replace(arguments["routes"]["github"], **options)}}


# Callers and servers that leave.


def callers_leave(world: World) -> None:
    slow = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
    world.tap.answer = always(hang_up_after(slow, seconds=0.3))
    world.exchange(world.request(), stop_after=500)
    world.tap.answer = always(hang_up_after(b"", seconds=0.3))
    world.exchange(world.request(), stop_after=0)
    head = world.request("PUT", "/idp/github/user", "Content-Length: 500000")
    world.exchange(head + b"x" * 100_000, stop_after=0)
    time.sleep(0.2)


def gateway_is_stopped(world: World) -> None:
    """While a request waits for the upstream, another for the identity provider, and one streams."""
    import threading

    world.tap.answer = always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun", seconds=0.4))
    world.authority.stall(f"/api/v2/users/{world.authority.subject('bob')}", 2.0)
    threads = [threading.Thread(target=world.ask, kwargs={"user": user}) for user in ("alice", "bob")]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert world.gateway is not None
    world.gateway.stop()
    for thread in threads:
        thread.join(10)


def unreachable(world: World) -> None:
    expect(world, 502)


def at_a_closed_port(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return with_route(world, arguments, upstream=f"http://127.0.0.1:{free_port()}")


def with_httpx(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"transport": httpx.AsyncHTTPTransport(trust_env=False)}


# Other parts of an app.


def the_app_behind_is_asked(world: World) -> None:
    """It tells the caller all that it is told: of ours there is nothing in it."""
    expect(world, 200)
    expect(world, 299, "GET", "/other")
    expect(world, 299, "GET", "/", credentials=False)


def websockets(world: World) -> None:
    """The token in a field, or as a subprotocol; refused and relayed."""
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")

    def handshake(*lines: str, **options: Any) -> bytes:
        request = world.request("GET", "/idp/github/ws", *upgrade, *lines, **options)
        return request.replace(b"Connection: close", b"Connection: Upgrade")

    def accept(connection: socket.socket, stream: Any) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    world.tap.answer = always(accept)
    world.exchange(handshake())
    world.exchange(handshake(credentials=False))
    world.exchange(handshake(f"Sec-WebSocket-Protocol: idp.bearer.{spelled(world)}, chat", credentials=False))
    world.exchange(handshake(f"Sec-WebSocket-Protocol: idp.bearer.{spelled(world)}, chat"))


def spelled(world: World) -> str:
    import base64

    return base64.urlsafe_b64encode(world.authority.callers_token("alice").encode()).decode().rstrip("=")


def with_websockets(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return with_route(world, arguments, websocket=True, websocket_bearer=True)


def keys_cannot_be_had(world: World) -> None:
    world.authority.fail("/.well-known/jwks.json")
    expect(world, 503)


def keys_are_poisoned(world: World) -> None:
    world.authority.respond("/.well-known/openid-configuration", body={"issuer": "https://evil.example/"})
    expect(world, 503)


def provider_tokens_that_are_none(world: World) -> None:
    """What the identity provider hands out can't stand in a header."""
    token = world.canaries.of("alice", "provider token")
    world.authority.respond(
        "/api/v2", body={"identities": [{"connection": "github", "user_id": "1", "access_token": f"{token}\r\nX: y"}]}
    )
    expect(world, 502)


def management_token_withdrawn(world: World) -> None:
    expect(world, 200)
    world.authority.revoke_management_tokens()
    expect(world, 200, user="bob")


# Code that others write, and that says too much.


def code_of_others(world: World) -> None:
    expect(world, (500, 502))
    expect(world, (500, 502), "POST", body=b"content")


def raising_source(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    """Somebody's token source, in whose mistake is a token."""

    async def source(caller: Any, route: Any) -> Any:
        raise LookupError(f"no refresh token {world.canaries.of('alice', 'refresh token')} for {caller!r}")

    return with_route(world, arguments, token_source=source)


def source_of_something_else(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    async def source(caller: Any, route: Any) -> Any:
        return world.canaries.of("alice", "provider token")

    return with_route(world, arguments, token_source=source)


class Telling(httpx.AsyncBaseTransport):
    """A transport of somebody's own, which says all that it knows when something is wrong."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        raise RuntimeError(f"cannot send {request.headers.raw} {content!r}")


def upstream_transport_that_tells(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"transport": Telling()}


def idp_transport_that_tells(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    from idp_middleware import sources
    from tests.leaks.set_ups import client

    source = sources.Auth0Management(base_url=world.idp_url, transport=Telling(), **client(world))
    return with_route(world, arguments, token_source=source)


def wrapped(receiving: bool = False, sending: bool = False) -> Callable[[World, Any], Any]:
    """The app within something that fails when it is read from, or written to."""

    def wrap(world: World, app: Any) -> Any:
        async def failing(*_: Any) -> Any:
            raise RuntimeError("the server has had enough")

        async def wrapper(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            await app(scope, failing if receiving else receive, failing if sending else send)

        return wrapper

    return wrap


def the_server_fails(world: World) -> None:
    world.ask()
    world.ask("POST", body=b"content")
    world.ask("PUT", body=BIG)


def raising_authenticator(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    async def authenticate(conn: Any) -> Any:
        raise LookupError("no such user")

    return arguments | {"authenticator": authenticate}


def raising_error_handler(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    def on_error(conn: Any, error: Any) -> Any:
        raise LookupError("no template for it")

    return arguments | {"on_error": on_error}


def errors_meet_it(world: World) -> None:
    """Ours and the upstream's, in a gateway whose error handler fails."""
    world.tap.answer = always(hang_up)
    world.ask()
    world.ask(credentials=False)
    world.authority.echo = repeating
    world.ask(user="bob")


# Caches, clocks and debug modes.


def cache_is_away(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    """A Redis that is not there, with a password in its URL."""
    url = f"redis://user:{world.canaries['password of the cache']}@127.0.0.1:{free_port()}/0"
    return arguments | {"cache": TokenCache.from_url(url, encryption_keys=[world.canaries["encryption key"]])}


def database_is_away(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    from idp_middleware import sources
    from tests.leaks.set_ups import client

    url = f"postgresql+asyncpg://user:{world.canaries['password of the database']}@127.0.0.1:{free_port()}/tokens"
    source = sources.RefreshToken(
        store=url,
        encryption_keys=[world.canaries["encryption key"]],
        token_url=f"{world.idp_url}/refresh",
        **client(world),
    )
    return with_route(world, arguments, token_source=source)


def stored_elsewhere(world: World) -> None:
    expect(world, 503)


def store_is_broken(world: World) -> None:
    (world.folder / "tokens.db").write_bytes(b"no database, but a file all the same")
    expect(world, 503)


def refresh_withdrawn(world: World) -> None:
    """The provider says so, and repeats the token that it does not take."""

    def withdrawn(request: Any) -> IdPAnswer | None:
        answer = repeating(request)
        if answer is None or not isinstance(answer.body, dict):
            return None
        return IdPAnswer(400, {**answer.body, "error": "invalid_grant"})

    world.authority.echo = withdrawn
    expect(world, 403)
    expect(world, 403)


def slow_callbacks(world: World, app: Any) -> Any:
    """asyncio's debug mode, in which every callback is slow: it writes each of them down, arguments and all."""

    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0
        await app(scope, receive, send)

    return wrapper


def debugged(world: World) -> None:
    goes_through(world)
    refused_and_renewed(world)
    uploads(world)
    world.tap.answer = always(hang_up)
    expect(world, 502)
    assert world.log is not None
    assert any("Executing" in record.getMessage() for record in world.log.records)


def _special(name: str, run: Run, set_up: str = "management", **options: Any) -> Scenario:
    return Scenario(name, run, set_up, options)


SCENARIOS = (
    *(
        Scenario(f"{set_up}: {name}", run, set_up, IMPATIENT.get(run, {}))
        for set_up in SET_UPS
        for name, run in OUTCOMES.items()
    ),
    _special("a caller's request is refused", refusals),
    _special("a token in a URL", tokens_in_urls, uvicorn={"access_log": False}),
    _special(
        "a caller's token is forged or expired",
        forged_and_expired,
        change=lambda world, arguments: with_route(world, arguments, scopes={"read:github"}),
    ),
    _special("several accounts, none, an unknown user", accounts),
    _special("methods of all kinds", odd_methods),
    _special("credentials in fields of other names", headers_that_try),
    _special("every answer of the upstream", answers_of_the_upstream),
    _special("uploads", uploads),
    _special("answers that are none", broken_answers),
    _special("answers that are late", slow_answers, patience=0.3),
    _special("answers that repeat the token", echoes_where_it_is_asked_to_scrub, change=scrubbing),
    _special("callers leave", callers_leave),
    _special("the gateway is stopped", gateway_is_stopped),
    _special("the upstream is away", unreachable, change=at_a_closed_port),
    _special("httpx: goes through", goes_through, change=with_httpx),
    _special("httpx: is refused and renewed", refused_and_renewed, change=with_httpx),
    _special("httpx: every answer", answers_of_the_upstream, change=with_httpx),
    _special("httpx: breaks off", upstream_breaks_off, change=with_httpx),
    _special("httpx: late", slow_answers, change=with_httpx, patience=0.3),
    _special(
        "httpx: the upstream is away", unreachable, change=lambda w, a: with_httpx(w, at_a_closed_port(w, a))
    ),
    _special("the app behind", the_app_behind_is_asked),
    _special("WebSockets refused", websockets, uvicorn={"ws": "wsproto"}),
    _special("WebSockets relayed", websockets, change=with_websockets, uvicorn={"ws": "wsproto"}),
    _special("the issuer's keys are away", keys_cannot_be_had),
    _special("the issuer's keys are another's", keys_are_poisoned),
    _special("provider tokens that are none", provider_tokens_that_are_none),
    _special("the management token is withdrawn", management_token_withdrawn),
    _special("a token source that tells", code_of_others, change=raising_source),
    _special("a token source that gives something else", code_of_others, change=source_of_something_else),
    _special("a transport that tells, to the upstream", code_of_others, change=upstream_transport_that_tells),
    _special("a transport that tells, to the identity provider", code_of_others, change=idp_transport_that_tells),
    _special("an authenticator that fails", code_of_others, change=raising_authenticator),
    _special("an error handler that fails", errors_meet_it, change=raising_error_handler),
    _special("a server that fails to read", the_server_fails, wrap=wrapped(receiving=True)),
    _special("a server that fails to write", the_server_fails, wrap=wrapped(sending=True)),
    _special("the shared cache is away", goes_through, change=cache_is_away),
    _special("the database is away", stored_elsewhere, "refresh token", change=database_is_away),
    _special("the store is broken", store_is_broken, "refresh token"),
    _special("the refresh token is withdrawn", refresh_withdrawn, "refresh token"),
    _special("asyncio in debug mode", debugged, wrap=slow_callbacks, uvicorn={"loop": "asyncio"}),
    _special("uvloop in debug mode", debugged, wrap=slow_callbacks, uvicorn={"loop": "uvloop"}),
    _special("uvicorn's trace: goes through", goes_through, level=5),
    _special("uvicorn's trace: is refused and renewed", refused_and_renewed, level=5),
)  # fmt: skip
