"""uvicorn's server, made to start and stop at a word from another thread.

The one module here that imports uvicorn, which is an extra.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sized
from contextlib import suppress
from typing import Any

import uvicorn

_GRACE = 0.2
"""Seconds that requests under way get at the end, before their connections are cut."""


class Server(uvicorn.Server):
    """Tells by `ready` when it accepts or has given up, and leaves at once when told to.

    uvicorn alone looks at a flag ten times a second and then sleeps for a tenth; too long for a fixture.
    """

    def __init__(self, app: Any, options: dict[str, Any]) -> None:
        super().__init__(uvicorn.Config(app, **options))
        self.ready = threading.Event()
        self.accepting = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        self.accepting = True
        self.ready.set()
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), 0.1)

    def leave(self) -> None:
        """Stop serving, or starting; from any thread, at any time."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has left
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._leaving.set()
        if not self.accepting and self._main is not None:
            self._main.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        grace = self.config.timeout_graceful_shutdown
        await _emptied(state.connections, _GRACE if grace is None else grace)
        for connection in list(state.connections):
            connection.transport.abort()
        # An app that listens notices that its client is gone; one that doesn't has to be cancelled.
        await _emptied(state.tasks, _GRACE)
        for task in list(state.tasks):
            task.cancel()
        await _emptied(state.tasks, _GRACE)
        await self.lifespan.shutdown()


async def _emptied(things: Sized, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while things and loop.time() < end:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.002)
