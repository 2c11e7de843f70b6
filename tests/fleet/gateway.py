"""The gateway as uvicorn's workers run it, with a header that says which of them answered."""

from __future__ import annotations

import os
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from idp_middleware import IdPMiddleware, load_config

WORKER = b"x-worker"

_gateway: Any = IdPMiddleware(**load_config(os.environ["IDP_CONFIG"]))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (WORKER, b"%d" % os.getpid())]
        await send(message)

    await _gateway(scope, receive, told if scope["type"] == "http" else send)
