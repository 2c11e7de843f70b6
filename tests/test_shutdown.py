"""What becomes of what is under way when the server is told to end: `idp-middleware serve` and SIGTERM, for real."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

from idp_middleware.stores import SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import Auth0, ProviderAPI, serve
from idp_middleware.testing.refresh import RotatingTokens
from tests.stack import AUDIENCE, RawClient, eventually, free_port

KEY = Fernet.generate_key().decode()

CONFIG = """
[authenticator]
type = "jwt"
issuer = "{issuer}"
audience = "https://api.acme.example"

[sources.refresh]
type = "refresh-token"
store = "{store}"
encryption_keys = ["${{IDP_KEY}}"]
token_url = "{rotating}/token"
client_id = "client"
client_secret = "${{CLIENT_SECRET}}"

[routes.api]
upstream = "{api}"
source = "refresh"
connection = "github"

[routes.ws]
upstream = "{ws}"
source = "refresh"
connection = "github"
websocket = true
"""


@dataclass
class Gateway:
    auth0: Auth0
    provider: ProviderAPI
    rotating: RotatingTokens
    store: str
    port: int
    process: subprocess.Popen[bytes]
    errors: str = ""

    @property
    def bearer(self) -> dict[str, str]:
        token = self.auth0.issue_token("auth0|alice", audience=AUDIENCE)
        return {"authorization": f"Bearer {token}"}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=self.bearer, trust_env=False, timeout=30)

    def request(self, target: str) -> bytes:
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.bearer.items())
        return f"GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self, within: float) -> int:
        _, errors = self.process.communicate(timeout=within)
        self.errors = errors.decode()
        return self.process.returncode

    def key(self) -> TokenKey:
        return TokenKey(issuer=self.auth0.issuer, subject="auth0|alice", connection="github")

    def in_store(self, work: Any) -> Any:
        async def run() -> Any:
            store = SQLiteTokenStore(self.store, encryption_keys=[KEY])
            try:
                return await work(store)
            finally:
                await store.aclose()

        return asyncio.run(run())

    def log_in(self, *, expires_in: float = 3600.0) -> StoredToken:
        got = self.rotating.log_in()
        token = StoredToken(
            access_token=got["access_token"],
            refresh_token=got["refresh_token"],
            expires_at=time.time() + expires_in,
        )
        self.in_store(lambda store: store.put(self.key(), token))
        return token


@contextmanager
def served(tmp_path, *options, ws="http://127.0.0.1:9", answer_after=0.0):
    auth0, provider = Auth0(), ProviderAPI()
    rotating = RotatingTokens(client_secret="provider-secret", answer_after=answer_after)
    with serve(auth0) as idp, serve(provider) as api, serve(rotating) as refresh:
        store = str(tmp_path / "tokens.db")
        urls = {"issuer": auth0.issuer, "idp": idp.url, "api": api.url, "rotating": refresh.url, "ws": ws}
        (tmp_path / "idp.toml").write_text(CONFIG.format(store=store, **urls))
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "idp_middleware", "serve", "idp.toml", "--port", str(port), *options],
            cwd=tmp_path,
            env={**os.environ, "IDP_KEY": KEY, "CLIENT_SECRET": "provider-secret"},
            stderr=subprocess.PIPE,
        )
        try:
            eventually(lambda: ready(port), within=30)
            yield Gateway(auth0, provider, rotating, store, port, process)
        finally:
            process.kill()
            process.communicate()


def ready(port):
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/idp/ready", trust_env=False).status_code == 200
    return False


def refuses(gateway):
    try:
        RawClient(gateway.port).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stream_under_way_ends_whole_and_nothing_new_is_taken(tmp_path, workers):
    """A rolling deploy breaks no download."""
    with served(tmp_path, "--workers", workers) as gateway:
        gateway.log_in()
        with gateway.client() as client, client.stream("GET", "/idp/api/slow?chunks=10&delay=0.2") as answer:
            chunks = answer.iter_raw()
            first = next(chunks)
            gateway.terminate()
            eventually(lambda: refuses(gateway))
            whole = first + b"".join(chunks)
        assert gateway.ended(within=10) in (0, -signal.SIGTERM)
        plain = gateway.provider.last
    assert plain.target == b"/slow?chunks=10&delay=0.2"
    assert len(whole) == 10 * len(first)
    assert "Traceback" not in gateway.errors


def test_a_request_on_a_connection_that_was_kept_is_served_whole_or_not_at_all(tmp_path):
    """A client that reuses a connection may be just a moment too late; it can tell, and try elsewhere."""
    with served(tmp_path) as gateway:
        gateway.log_in()
        idle, busy = RawClient(gateway.port), RawClient(gateway.port)
        with idle, busy:
            for client in (idle, busy):
                client.send(gateway.request("/idp/api/user"))
                assert client.answer().status == 200
            busy.send(gateway.request("/idp/api/slow?chunks=5&delay=0.2"))
            eventually(lambda: gateway.provider.count("/slow"))
            seen = len(gateway.provider.requests)
            gateway.terminate()
            eventually(lambda: refuses(gateway))
            # An answer that is whole, and says that there will be none after it; or none at all.
            with suppress(OSError):
                idle.send(gateway.request("/idp/api/user"))
            assert idle.rest() == b""
            answer = busy.answer()
            assert (answer.status, answer.all(b"transfer-encoding")) == (200, [b"chunked"])
            with suppress(OSError):
                busy.send(gateway.request("/idp/api/user"))
            assert busy.rest() == b""
        assert gateway.ended(within=10) in (0, -signal.SIGTERM)
        assert len(gateway.provider.requests) == seen


def test_an_endless_stream_is_cut_when_the_grace_is_over(tmp_path):
    """And not ended: a client must not take what it has for all there was."""
    with served(tmp_path, "--grace", "1") as gateway:
        gateway.log_in()
        with RawClient(gateway.port, 20) as client:
            client.send(gateway.request("/idp/api/events?chunks=100000&delay=0.05"))
            eventually(lambda: gateway.provider.count("/events"))
            started = time.monotonic()
            gateway.terminate()
            with pytest.raises((EOFError, ConnectionResetError)):
                client.answer()
            took = time.monotonic() - started
            assert 0.8 < took < 10
        assert gateway.ended(within=10) in (0, -signal.SIGTERM)


def test_websockets_are_told_that_the_server_goes(tmp_path):
    """1001 or 1012 (RFC 6455 section 7.4.1 and its registry): clients come back to another process, at once."""

    def echo(connection):
        for message in connection:
            connection.send(message)

    with serve_websockets(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with served(tmp_path, ws=f"http://127.0.0.1:{port}") as gateway:
            gateway.log_in()
            url = f"ws://127.0.0.1:{gateway.port}/idp/ws/"
            with connect(url, additional_headers=gateway.bearer, proxy=None) as client:
                client.send("hello")
                assert client.recv(timeout=5) == "hello"
                gateway.terminate()
                with pytest.raises(ConnectionClosed) as caught:
                    client.recv(timeout=10)
            assert caught.value.rcvd.code in (1001, 1012)
            assert gateway.ended(within=10) in (0, -signal.SIGTERM)
        server.shutdown()


def test_a_refresh_under_way_is_stored(tmp_path):
    """Though its caller has left: the old refresh token is spent, and the new one would be lost with the process."""
    with served(tmp_path, answer_after=1.0) as gateway:
        old = gateway.log_in(expires_in=-1)
        with RawClient(gateway.port) as client:
            client.send(gateway.request("/idp/api/user"))
            eventually(lambda: gateway.rotating.count("/token"))
        gateway.terminate()
        assert gateway.ended(within=15) in (0, -signal.SIGTERM)
        (entry,) = gateway.in_store(lambda store: store.get(gateway.key()))
        assert entry.token.refresh_token != old.refresh_token
        assert gateway.rotating.valid(entry.token.refresh_token)
        assert (entry.claim, entry.withdrawn, gateway.rotating.refreshes) == (None, False, 1)


@pytest.mark.parametrize("value", ["-1", "1.5", "soon", ""])
def test_a_grace_that_is_no_number_of_seconds_is_refused(value):
    """With the other mistakes in arguments, before anything starts."""
    command = [sys.executable, "-m", "idp_middleware", "serve", "idp.toml", f"--grace={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert re.search("--grace: .* is not a number of seconds", done.stderr)
