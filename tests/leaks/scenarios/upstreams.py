"""What upstreams answer, and where in an app they are asked from: not only through the proxy."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from idp_middleware.fastapi import idp_client
from tests.leaks.authority import repeating
from tests.leaks.scenarios.calls import BIG
from tests.leaks.scenarios.parts import always, expect, hang_up, hang_up_after, reply, with_route
from tests.leaks.sinks import report
from tests.leaks.world import IN_REPORTS, World
from tests.stack import free_port


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


def the_app_behind_is_asked(world: World) -> None:
    """It tells the caller all that it is told: of ours there is nothing in it."""
    expect(world, 200)
    expect(world, 299, "GET", "/other")
    expect(world, 299, "GET", "/", credentials=False)


def the_app_asks_itself(world: World) -> None:
    """The upstream, as the caller, with a client that the middleware makes; whatever comes of it."""
    for answer in (
        reply("200 OK"),
        reply("401 Unauthorized"),
        always(hang_up),
        always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")),
        always(hang_up_after(b"nothing like HTTP")),
    ):
        world.tap.answer = answer
        expect(world, 299, "GET", "/own")
    world.authority.echo = repeating
    expect(world, 299, "GET", "/own", user="bob")


def fastapi_answers(world: World) -> None:
    expect(world, 200, "GET", "/mine")
    expect(world, 401, "GET", "/mine", credentials=False)
    world.tap.answer = always(hang_up)
    expect(world, 502, "GET", "/mine")
    world.authority.echo = repeating
    expect(world, 502, "GET", "/mine", user="bob")


def in_fastapi(world: World, app: Any) -> Any:
    """An app with the dependencies for it, that reports the errors that it answers."""

    behind, given = FastAPI(), Depends(idp_client("github"))

    async def mine(request: Request, github: Any = given) -> Any:
        answer = await github.get("/user", headers={"x-for": request.headers["x-for"]})
        return {"headers": repr(answer.request.headers.raw), "client": repr(vars(github))}

    async def reported(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        world.sinks.put("error reports", report(error), belongs=IN_REPORTS)
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)

    behind.get("/mine")(mine)
    behind.add_exception_handler(HTTPException, reported)
    assert world.middleware is not None
    world.middleware.app = behind
    return app


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

    return base64.urlsafe_b64encode(world.authority.callers_token("alice").encode()).decode().rstrip("=")


def with_websockets(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return with_route(world, arguments, websocket=True, websocket_bearer=True)


def with_httpx(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"transport": httpx.AsyncHTTPTransport(trust_env=False)}


def at_a_closed_port(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return with_route(world, arguments, upstream=f"http://127.0.0.1:{free_port()}")


def unreachable(world: World) -> None:
    expect(world, 502)
