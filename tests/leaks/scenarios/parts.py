"""What scenarios are made of: a caller who knows what should come back, and what an upstream may do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.leaks.world import World


def expect(world: World, status: int | tuple[int, ...], *args: Any, **options: Any) -> bytes:
    """A request and the status it gets: else the scenario is not the one it is called."""
    answer = world.ask(*args, **options)
    assert answer.status in ((status,) if isinstance(status, int) else status), answer
    return answer.data


def with_route(world: World, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:

    return arguments | {"routes": {"github": replace(arguments["routes"]["github"], **options)}}


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
