"""Runs an ASGI app on a real uvicorn in a background thread, for tests that need a socket.

Knows sockets and threads; what it must know of uvicorn is in `_uvicorn`, imported only when a server starts.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_START = 30.0
_STOP = 10.0
"""Seconds after which a server that does not start or stop is an error."""

_LEAN: dict[str, Any] = {
    "access_log": False,
    "log_level": "warning",
    # uvicorn would configure logging for the whole process, with handlers on streams that pytest replaces.
    "log_config": None,
    # The scope is to say what came over the wire, whatever X-Forwarded-For claims.
    "proxy_headers": False,
}


class RunningServer:
    """A server that accepts connections until `stop`; `serve` makes them."""

    def __init__(self, app: Any, host: str, port: int, options: dict[str, Any]) -> None:
        try:
            from idp_middleware.testing import _uvicorn
        except ImportError as exc:
            raise ImportError("serve() needs uvicorn: install idp-middleware[server]") from exc
        self._server = _uvicorn.Server(app, _LEAN | options)
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        scheme = "https" if self._server.config.is_ssl else "http"
        self.url: str = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"
        if getattr(app, "issuer", None) == "":
            app.issuer = self.url + "/"
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"serve {self.url}", daemon=True)
        self._thread.start()
        started = self._server.ready.wait(_START)
        if not self._server.accepting:
            self._server.leave()
            self._thread.join(_STOP)
            what = "could not start, see the log" if started else f"did not start within {_START:g} s"
            raise RuntimeError(f"the app for {self.url} {what}") from self._failure

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as exc:  # SystemExit, where the app's lifespan refuses to start
            self._failure = exc
        finally:
            self._socket.close()
            self._server.ready.set()

    def stop(self) -> None:
        """Stop accepting, cut what is still open, and wait until all of it is gone. May be called again.

        Raises `RuntimeError` where the app blocks its thread and can't be stopped.
        """
        self._server.leave()
        self._thread.join(_STOP)
        if self._thread.is_alive():
            raise RuntimeError(f"the app on {self.url} did not stop within {_STOP:g} s")

    def __repr__(self) -> str:
        return f"<RunningServer {self.url}>"


@contextmanager
def serve(app: Any, *, host: str = "127.0.0.1", port: int = 0, **uvicorn_options: Any) -> Iterator[RunningServer]:
    """Serve an ASGI app on a real socket while the block runs.

    Port 0 takes a free one. An app with an `issuer` that is still empty, as `Auth0` has, gets the server's URL as its
    issuer. `uvicorn_options` are those of `uvicorn.Config`; with `timeout_graceful_shutdown`, requests under way get
    so many seconds at the end instead of a fifth of one.

    Yields what has `url` (without a slash at the end), `port` and `stop()`.

    Raises:
        ImportError: uvicorn, the extra `idp-middleware[server]`, is not installed.
        OSError: the port is taken, or the host is not this machine's.
        RuntimeError: the app's lifespan failed.
    """
    server = RunningServer(app, host, port, uvicorn_options)
    try:
        yield server
    finally:
        server.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named, and small writes wait 40 ms without it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # pragma: no branch
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Two sockets may bind to one port; listening here makes a taken one the caller's error, not the thread's.
        listener.listen()
    except OSError as exc:
        listener.close()
        raise OSError(exc.errno, f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener
