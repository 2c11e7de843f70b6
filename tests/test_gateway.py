"""`idp-middleware serve idp.toml` in a process of its own: the file of the documentation, and its memory."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.stack import AUDIENCE, CLIENT, USERS, eventually, free_port

GIGABYTE = 1_000_000_000
CHUNK = bytes(65536)

CONFIG = """
prefix = "/idp"

[authenticator]
type = "jwt"
issuer = "{issuer}"
audience = "https://api.acme.example"

[sources.auth0]
type = "auth0-management"
base_url = "{idp}"
client_id = "${{AUTH0_CLIENT_ID}}"
client_secret = "${{AUTH0_CLIENT_SECRET}}"

[routes.github]
provider = "github"
upstream = "{api}"
source = "auth0"
connection = "github"
scopes = ["read:github"]
timeout = {{ connect = 5.0, read = 60.0, write = 60.0, pool = 5.0 }}
"""


@dataclass
class Gateway:
    auth0: Auth0
    provider: ProviderAPI
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, user: str) -> httpx.Client:
        token = self.auth0.issue_token(f"auth0|{user}", audience=AUDIENCE, scope="read:github")
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=60
        )

    def resident(self) -> int:
        """Bytes of memory that the process has in use."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@contextmanager
def served(tmp_path: Path, *, accept_all: bool = False):
    auth0, provider = Auth0(), ProviderAPI()
    auth0.add_client(*CLIENT)
    for number, (user, token) in enumerate(USERS.items()):
        auth0.add_user(f"auth0|{user}", [Identity("github", str(number), access_token=token)])
        if not accept_all:
            provider.accept(token, login=user)
    with serve(auth0) as idp, serve(provider) as api:
        (tmp_path / "idp.toml").write_text(CONFIG.format(issuer=auth0.issuer, idp=idp.url, api=api.url))
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "idp_middleware", "serve", "idp.toml", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "AUTH0_CLIENT_ID": CLIENT[0], "AUTH0_CLIENT_SECRET": CLIENT[1]},
            stderr=subprocess.PIPE,
        )
        try:
            eventually(lambda: answers(port), within=20)
            yield Gateway(auth0, provider, port, process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=15)
        assert b"Traceback" not in errors, errors.decode()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 404
    except httpx.TransportError:
        return False


@pytest.fixture
def gateway(tmp_path):
    with served(tmp_path) as gateway:
        yield gateway


def test_the_documented_file_serves_every_method_for_two_users(gateway):
    """The provider sees exactly the right user's token, and nothing of the caller's."""
    for user in ("alice", "bob"):
        with gateway.client(user) as client:
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
                answer = client.request(method, "/idp/github/echo/x", headers={"cookie": "session=s"})
                assert answer.status_code == 200
                seen = gateway.provider.last
                assert (seen.method, seen.target, seen.bearer) == (method, b"/echo/x", USERS[user])
                assert seen.header("cookie") is None
    assert gateway.auth0.count("/oauth/token") == 1
    assert set(gateway.provider.tokens_seen()) == set(USERS.values())


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")


@needs_proc
def test_a_gigabyte_down_is_streamed_not_kept(gateway):
    """Memory grows by less than 16 MB, whatever passes through."""
    with gateway.client("alice") as client:
        client.get("/idp/github/bytes/1000000")
        before, peak, received = gateway.resident(), 0, 0
        with client.stream("GET", f"/idp/github/bytes/{GIGABYTE}") as answer:
            for number, chunk in enumerate(answer.iter_raw()):
                received += len(chunk)
                if number % 500 == 0:
                    peak = max(peak, gateway.resident())
    assert received == GIGABYTE
    assert peak - before < 16_000_000


@needs_proc
def test_a_gigabyte_up_is_streamed_not_kept(gateway):
    """The same in the other direction; 64 KiB are kept in case the token is refused, and no more."""
    peak = 0

    def body():
        nonlocal peak
        for number in range(GIGABYTE // len(CHUNK)):
            if number % 500 == 0:
                peak = max(peak, gateway.resident())
            yield CHUNK

    with gateway.client("alice") as client:
        client.put("/idp/github/upload", content=CHUNK * 16)
        before = gateway.resident()
        answer = client.put("/idp/github/upload", content=body())
    assert answer.json()["size"] == GIGABYTE // len(CHUNK) * len(CHUNK)
    assert peak - before < 16_000_000


@needs_proc
def test_a_slow_reader_slows_the_upstream_instead_of_filling_memory(gateway):
    """Back-pressure: what the caller does not take is not fetched."""
    with gateway.client("alice") as client:
        client.get("/idp/github/bytes/1000000")
        token = client.headers["authorization"]
        before = gateway.resident()
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.sendall(
                f"GET /idp/github/bytes/200000000 HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            time.sleep(1.5)
            assert gateway.resident() - before < 16_000_000
            received = 0
            while chunk := sock.recv(1 << 20):
                received += len(chunk)
            assert received > 200_000_000
