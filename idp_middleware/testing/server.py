"""Runs an ASGI app on a real uvicorn in a background thread, for tests that need a socket.

Knows uvicorn, which is an extra and imported only when a server is started.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn

_START_TIMEOUT = 30.0
_GRACE = 0.2
"""Seconds that requests under way get at `stop` before their connections are cut."""


class RunningServer:
    """A server that accepts connections until `stop`."""

    def __init__(self, app: Any, host: str, port: int, options: dict[str, Any]) -> None:
        try:
            import uvicorn
        except ImportError as exc:
            raise ImportError("serve() needs uvicorn: pip install 'idp-middleware[server]'") from exc
        config = uvicorn.Config(app, **_LEAN | options)
        self._socket = _listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        scheme = "https" if config.is_ssl else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"
        if getattr(app, "issuer", None) == "":
            app.issuer = self.url + "/"
        self._server = _server_class()(config)
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"serve:{self.port}", daemon=True)
        self._thread.start()
        if not self._server.ready.wait(_START_TIMEOUT) or not self._server.accepting:
            self.stop()
            raise RuntimeError(f"the app did not start on {self.url}; its lifespan failed or hangs") from self._ended

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as exc:  # SystemExit, where the app's lifespan refuses to start
            self._ended = exc
        finally:
            self._socket.close()
            self._server.ready.set()

    def stop(self) -> None:
        """Stop accepting, cut what is still open, and wait for the thread. May be called again."""
        self._server.leave()
        self._thread.join(10.0)

    def __repr__(self) -> str:
        return f"<RunningServer {self.url}>"


_LEAN: dict[str, Any] = {
    "access_log": False,
    "log_level": "warning",
    # uvicorn would configure logging for the whole process, with handlers on streams that pytest replaces.
    "log_config": None,
    # The scope is to say what came over the wire, whatever X-Forwarded-For claims.
    "proxy_headers": False,
    "timeout_graceful_shutdown": 1,
}


@contextmanager
def serve(app: Any, *, host: str = "127.0.0.1", port: int = 0, **uvicorn_options: Any) -> Iterator[RunningServer]:
    """Serve an ASGI app on a real socket while the block runs.

    Port 0 takes a free one. An app with an `issuer` that is still empty, as `Auth0` has, gets the server's URL as its
    issuer. `uvicorn_options` are those of `uvicorn.Config`.

    Yields what has `url` (without a slash at the end), `port` and `stop()`.

    Raises:
        ImportError: uvicorn, the extra `idp-middleware[server]`, is not installed.
        OSError: the port is taken or the host is not this machine's.
        RuntimeError: the app's lifespan failed to start.
    """
    server = RunningServer(app, host, port, uvicorn_options)
    try:
        yield server
    finally:
        server.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on what it accepts; otherwise small writes wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as exc:
        listener.close()
        raise OSError(exc.errno, f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener


def _server_class() -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's server, told to leave by an event instead of a flag it looks at ten times a second."""

        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self.ready = threading.Event()
            self.accepting = False
            self._loop: asyncio.AbstractEventLoop | None = None
            self._leaving: asyncio.Event | None = None

        async def main_loop(self) -> None:
            self._loop, self._leaving = asyncio.get_running_loop(), asyncio.Event()
            self.accepting = True
            self.ready.set()
            counter = 0
            while not await self.on_tick(counter):
                counter += 1
                try:
                    await asyncio.wait_for(self._leaving.wait(), 0.1)
                except TimeoutError:
                    continue

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            cut = asyncio.get_running_loop().call_later(_GRACE, self._cut)
            try:
                await super().shutdown(sockets)
            finally:
                cut.cancel()

        def _cut(self) -> None:
            for connection in list(self.server_state.connections):
                connection.transport.abort()

        def leave(self) -> None:
            self.should_exit = True
            if self._loop is not None and self._leaving is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._leaving.set)

    return Server
