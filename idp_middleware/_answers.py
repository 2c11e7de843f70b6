"""The answers that are our own: problem documents, and what stands in for an upstream or an app that isn't there.

Knows errors and ASGI; nothing of how a request came to fail.
"""

from __future__ import annotations

import asyncio

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from idp_middleware._routes import ProxyRoute
from idp_middleware.errors import IdPError, problem


def problem_response(conn: HTTPConnection, error: IdPError) -> Response:  # noqa: ARG001
    """The answer for `error`: a problem document (RFC 9457) that can be told from the upstream's own by `Proxy-Status`
    (RFC 9209), never stored, and without anything secret or internal.
    """
    return JSONResponse(
        problem(error),
        status_code=error.status,
        headers={
            "cache-control": "no-store",
            "proxy-status": f"idp_middleware; error={error.proxy_error}",
            **dict(error.headers()),
        },
        media_type="application/problem+json",
    )


def answers(scope: Scope, send: Send) -> Send:
    """The `send` for an answer to a WebSocket's handshake.

    A server without the extension for it is told to close, and answers 403.
    """
    able = "websocket.http.response" in (scope.get("extensions") or ())

    async def answer(message: Message) -> None:
        kind: str = message["type"].removeprefix("websocket.")
        if able:
            await send({**message, "type": f"websocket.{kind}"})
        elif kind == "http.response.start":
            await send({"type": "websocket.close", "code": 1008})
        if able and kind == "http.response.body" and not message.get("more_body", False):
            # uvicorn logs as an error who returns before it has closed (https://github.com/Kludex/uvicorn/pull/3138).
            await asyncio.sleep(0)

    return answer


async def nothing_behind(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands in for the app where there is none."""
    if scope["type"] == "http":
        await PlainTextResponse("Not Found", status_code=404)(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})


class LastHop:
    """An answer in the upstream's stead to an OPTIONS that may go no further (RFC 9110 section 7.6.2)."""

    status = 204
    complete = True

    def __init__(self, route: ProxyRoute) -> None:
        self.headers = [(b"allow", ", ".join(sorted(route.methods)).encode()), (b"proxy-status", b"idp_middleware")]

    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        """Nothing is held."""
