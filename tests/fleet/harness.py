"""Auth0, a provider's API, a Redis, the gateway in four workers, and users whose every secret is a canary."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.fernet import Fernet

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.fleet.redis_server import RedisServer, running_redis
from tests.leaks.canaries import Canaries
from tests.stack import AUDIENCE

WORKERS = 4
AT_ONCE = 48
"""Requests under way."""

LOOK_UPS = "/api/v2/users/"

CONFIG = """
[authenticator]
type = "jwt"
issuer = "{issuer}"
audience = "{audience}"

[sources.auth0]
type = "auth0-management"
base_url = "{idp}"
client_id = "the-client"
client_secret = "${{CLIENT_SECRET}}"

[routes.github]
upstream = "{api}"
source = "auth0"
connection = "github"

[cache]
url = "{redis}"
encryption_keys = ["${{IDP_KEY}}"]
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; `status` is 0 where the connection broke."""

    user: str
    started: float
    ended: float
    status: int
    worker: int
    body: bytes

    @property
    def right(self) -> bool:
        """Whether the provider saw this user's token, and nobody else's."""
        return self.status == 200 and b'"login":"%s"' % self.user.encode() in self.body.replace(b": ", b":")


@dataclass
class World:
    """The parties, with the users and what each of them holds."""

    auth0: Auth0
    provider: ProviderAPI
    redis: RedisServer
    listener: socket.socket
    log: Path
    environment: dict[str, str] = field(repr=False)
    canaries: Canaries
    key: str
    idp_url: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    bearers: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    async def ask(self, user: str | None) -> Outcome:
        """One request, on a connection of its own: which worker takes it is the kernel's choice."""
        fields = f"authorization: bearer {self.bearers[user]}\r\n" if user else ""
        head = f"GET /idp/github/user HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{fields}\r\n".encode()
        started, answer = time.monotonic(), b""
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection(*self.listener.getsockname())
                try:
                    writer.write(head)
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            answer = b""
        start, _, body = answer.partition(b"\r\n\r\n")
        status = int(start.split(b" ", 2)[1]) if body or start.endswith(b"\r\n") or b"content-length: 0" in start else 0
        worker = next((int(line[10:]) for line in start.lower().split(b"\r\n") if line.startswith(b"x-worker: ")), 0)
        return Outcome(user or "", started, time.monotonic(), status, worker, body)

    async def ask_all(self, users: list[str]) -> list[Outcome]:
        """A request for each of these, so many at a time."""
        todo = iter(users)
        outcomes: list[Outcome] = []

        async def client() -> None:
            for user in todo:
                outcomes.append(await self.ask(user))  # noqa: PERF401 (all clients take from one)

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        self.outcomes += outcomes
        return outcomes

    @asynccontextmanager
    async def load(self) -> AsyncIterator[list[Outcome]]:
        """Requests of users at random, without a pause, while the block runs."""
        users, stop, outcomes = list(self.bearers), asyncio.Event(), list[Outcome]()

        async def client() -> None:
            while not stop.is_set():
                outcomes.append(await self.ask(random.choice(users)))

        clients = [asyncio.create_task(client()) for _ in range(AT_ONCE // 2)]
        try:
            yield outcomes
        finally:
            stop.set()
            await asyncio.gather(*clients)
            self.outcomes += outcomes

    def start_worker(self) -> subprocess.Popen[bytes]:
        """One more process that takes connections from the socket they share, as `uvicorn --workers` has it.

        Without its supervisor, which takes seconds to notice that one was killed.
        """
        fd = self.listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "tests.fleet.gateway:app", "--fd", str(fd), "--no-access-log"]
        with self.log.open("ab") as log:
            worker = subprocess.Popen(command, env=os.environ | self.environment, stdout=log, stderr=log, pass_fds=[fd])
        self.workers.append(worker)
        return worker

    async def ready(self) -> None:
        """Once every worker answers."""
        seen: set[int] = set()
        async with asyncio.timeout(60):
            while not seen >= {worker.pid for worker in self.workers}:
                seen |= {outcome.worker for outcome in await asyncio.gather(*(self.ask(None) for _ in range(8)))}


def _users(canaries: Canaries, auth0: Auth0, provider: ProviderAPI, many: int) -> dict[str, str]:
    bearers = {}
    for number in range(many):
        user = f"user{number}"
        subject = canaries.make(f"{user}'s subject", special="", size=24, prefix="auth0|")
        token = canaries.make(f"{user}'s token", special="", size=36, prefix="gho_")
        auth0.add_user(subject, [Identity("github", str(number), access_token=token)])
        provider.accept(token, login=user)
        bearers[user] = auth0.issue_token(subject, audience=AUDIENCE, expires_in=3600)
    return bearers


@contextmanager
def fleet(folder: Path, users: int, *redis_options: str) -> Iterator[World]:
    """All of it, until the block ends."""
    canaries, auth0, provider = Canaries(1), Auth0(), ProviderAPI()
    secret, key = canaries.make("the client's secret", special="", size=40), Fernet.generate_key().decode()
    canaries.add("the encryption key", key)
    auth0.add_client("the-client", secret)
    with ExitStack() as running:
        idp = running.enter_context(serve(auth0))
        api = running.enter_context(serve(provider))
        redis = running.enter_context(running_redis(folder, *redis_options))
        config = folder / "idp.toml"
        config.write_text(
            CONFIG.format(issuer=auth0.issuer, audience=AUDIENCE, idp=idp.url, api=api.url, redis=redis.url)
        )
        environment = {"IDP_CONFIG": str(config), "CLIENT_SECRET": secret, "IDP_KEY": key}
        listener = running.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        world = World(auth0, provider, redis, listener, folder / "gateway.log", environment, canaries, key, idp.url)
        world.bearers = _users(canaries, auth0, provider, users)
        try:
            for _ in range(WORKERS):
                world.start_worker()
            yield world
        finally:
            for worker in world.workers:
                worker.terminate()
            for worker in world.workers:
                worker.wait(40)
