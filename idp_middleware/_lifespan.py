"""The lifespan of an app that may have none, with something of our own to close at its end.

Knows the ASGI lifespan protocol and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("idp_middleware")


async def lifespan(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, close: Callable[[], Awaitable[None]]
) -> None:
    """Lead `app` through its lifespan, or the server through one in its place; `close` before the shutdown is over."""
    received = answered = False

    async def receiving() -> Message:
        nonlocal received
        received = True
        return await receive()

    async def sending(message: Message) -> None:
        nonlocal answered
        answered = True
        if message["type"].startswith("lifespan.shutdown."):
            await close()
        await send(message)

    try:
        await app(scope, receiving, sending)
    except Exception as exc:
        # Raising is how an app says that it has none; to one that has, a bad start is a message.
        if answered:
            raise
        logger.info("the app behind has no lifespan (%s)", type(exc).__name__)
    if not answered:
        if not received:
            await receive()
        await sending({"type": "lifespan.startup.complete"})
        await receive()
        await sending({"type": "lifespan.shutdown.complete"})
