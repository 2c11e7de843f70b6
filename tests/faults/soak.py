"""Hours of bad luck in minutes: `python -m tests.faults.soak --seconds 600`.

A gateway in a process of its own, with Redis; many users who read, stream, upload and leave at half of what it can do;
and all the while something breaks somewhere, is mended, and breaks elsewhere. Prints figures; exit status 1 where a
request was stuck, an answer was somebody else's, or memory or descriptors grow.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.fernet import Fernet

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.faults.caller import Heard, ask
from tests.faults.proxy import FAULTS, GARBLED, Fault, FaultProxy, Stage
from tests.fleet.redis_server import running_redis
from tests.stack import AUDIENCE, CLIENT, eventually, free_port

USERS = [f"user-{number}" for number in range(40)]
BODY = bytes(range(256)) * 1024
STRANGER = b"220 mail.example ESMTP ready\r\n"
STUCK = 40.0
"""Seconds; longer than all time-outs on a request's way together."""

CONFIG = """
[authenticator]
type = "jwt"
issuer = "{issuer}"
audience = "{audience}"
jwks_url = "http://127.0.0.1:{idp}/.well-known/jwks.json"

[sources.auth0]
type = "auth0-management"
base_url = "http://127.0.0.1:{idp}"
client_id = "${{AUTH0_CLIENT_ID}}"
client_secret = "${{AUTH0_CLIENT_SECRET}}"
management_audience = "{management}"
timeout = {{ connect = 1.0, read = 2.0, write = 2.0, pool = 2.0 }}

[routes.github]
upstream = "http://127.0.0.1:{api}"
source = "auth0"
connection = "github"
timeout = {{ connect = 1.0, read = 2.0, write = 2.0, pool = 2.0 }}

[cache]
url = "redis://127.0.0.1:{redis}/0"
encryption_keys = ["${{IDP_KEY}}"]
"""


@dataclass
class Figures:
    """What a soak has seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    capacity: float = 0.0
    slowest: float = 0.0
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds, MB resident, descriptors of the gateway."""
    at_rest: tuple[float, int] = (0.0, 0)
    """MB and descriptors once all is over."""

    def slope(self) -> float:
        """MB a minute, by least squares over the second half."""
        half = self.samples[len(self.samples) // 2 :]
        mean_t = sum(t for t, _, _ in half) / len(half)
        mean_m = sum(m for _, m, _ in half) / len(half)
        square = sum((t - mean_t) ** 2 for t, _, _ in half)
        return 60 * sum((t - mean_t) * (m - mean_m) for t, m, _ in half) / square if square else 0.0

    def __str__(self) -> str:
        memory = [m for _, m, _ in self.samples]
        files = [f for _, _, f in self.samples]
        return "\n".join(
            [
                f"requests         {sum(self.outcomes.values()):,} ({dict(self.outcomes.most_common())})",
                f"capacity         {self.capacity:,.0f} requests/s, of which half",
                f"faults           {sum(self.faults.values())} ({dict(self.faults.most_common())})",
                f"stuck or wrong   {len(self.wrong)} {self.wrong[:5] or ''}",
                f"slowest answer   {self.slowest:.1f} s",
                f"memory           {memory[0]:.1f} MB first, {max(memory):.1f} highest, {self.at_rest[0]:.1f} at rest; "
                f"{self.slope():+.2f} MB/minute over the second half",
                f"descriptors      {files[0]} first, {max(files)} highest, {self.at_rest[1]} at rest",
            ]
        )


class Soak:
    """One run against a gateway that is up."""

    def __init__(self, auth0: Auth0, api: ProviderAPI, port: int, pid: int, proxies: dict[str, FaultProxy]) -> None:
        self.figures = Figures()
        self._auth0, self._api, self._port, self._pid, self._proxies = auth0, api, port, pid, proxies
        self._tokens = {user: auth0.issue_token(f"auth0|{user}", audience=AUDIENCE, expires_in=86400) for user in USERS}
        self._given: dict[str, str] = {}
        self._random = random.Random(6)
        self._over = False
        for user in USERS:
            self._new_token(user)

    async def run(self, seconds: float) -> Figures:
        await self._measure_capacity()
        asking = [asyncio.create_task(self._ask_at(self.figures.capacity / 2 / 16)) for _ in range(16)]
        others = [asyncio.create_task(each) for each in (self._break(), self._watch(), self._renew())]
        await asyncio.sleep(seconds)
        self._over = True
        await asyncio.gather(*asking)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for proxy in self._proxies.values():
            proxy.mend()
        await self._come_to_rest()
        await asyncio.gather(*(self._back(user) for user in USERS))
        return self.figures

    async def _come_to_rest(self) -> None:
        """Longer than an idle connection is kept; or until there are no more of them than at first."""
        for _ in range(60):
            await asyncio.sleep(0.1)
            self.figures.at_rest = self._measured()
            if self.figures.at_rest[1] <= self.figures.samples[0][2]:
                return

    async def _back(self, user: str) -> None:
        """Every user is served again, if not at once: a token is renewed once in 20 s at most."""
        for _ in range(15):
            heard = await ask(self._port, self._tokens[user], "GET", "/idp/github/user", longest=STUCK)
            if self._outcome("user", user, heard) == "served":
                return
            await asyncio.sleep(2)
        self.figures.wrong.append(f"{user} is not served again: {heard.status} {heard.problem}")

    async def _measure_capacity(self) -> None:
        end, done = 0.0, 0

        async def closed_loop() -> None:
            nonlocal done
            while time.monotonic() < end:
                await self._one(self._kind(), self._random.choice(USERS), calm=True)
                done += 1

        for user in USERS:
            await self._one("user", user, calm=True)
        started = time.monotonic()
        end = started + 1
        await asyncio.gather(*(closed_loop() for _ in range(16)))
        self.figures.capacity = done / (time.monotonic() - started)

    async def _ask_at(self, rate: float) -> None:
        due = time.monotonic()
        while not self._over:
            # A pace, not a pause: what was slow is caught up with, within a second.
            due = max(due + self._random.expovariate(rate), time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._one(self._kind(), self._random.choice(USERS))

    def _kind(self) -> str:
        return self._random.choices(["user", "stream", "upload", "leave"], [70, 12, 10, 8])[0]

    async def _one(self, kind: str, user: str, *, calm: bool = False) -> None:
        method, target, body = "GET", "/user", b""
        if kind == "stream":
            target = "/chunked/262144"
        elif kind == "upload":
            method, target, body = "POST", "/upload", BODY
        elif kind == "leave":
            target = "/slow?chunks=50&delay=0.1"
        started = time.monotonic()
        longest = self._random.uniform(0.0, 0.3) if kind == "leave" else STUCK
        try:
            heard = await ask(self._port, self._tokens[user], method, f"/idp/github{target}", body, longest=longest)
        except TimeoutError:
            if kind != "leave":
                self.figures.wrong.append(f"{kind} was stuck")
            self.figures.outcomes["left" if kind == "leave" else "stuck"] += 1
            return
        self.figures.slowest = max(self.figures.slowest, time.monotonic() - started)
        outcome = self._outcome(kind, user, heard)
        self.figures.outcomes[outcome] += 1
        if outcome == "WRONG" or (calm and outcome not in ("served", "left")):
            self.figures.wrong.append(f"{kind} of {user}: {heard.status} {heard.problem or heard.body[:80]!r}")

    def _outcome(self, kind: str, user: str, heard: Heard) -> str:
        if heard.status == 0:
            return "no answer" if kind == "leave" else "WRONG"
        if heard.trickling:
            return "trickling"
        if heard.status == 200 and not heard.whole:
            return "broken off"
        if GARBLED[:16] in heard.body or STRANGER[:12] in heard.body:
            # Within an announced length, what an upstream sends is its answer.
            return "garbled"
        if heard.status == 200:
            with suppress(ValueError, KeyError):
                if self._right(kind, user, heard.body):
                    return "served"
            return "WRONG"
        if heard.problem is not None and heard.status in (502, 503, 504):
            return heard.problem
        # The upstream has refused the old token, and the new one could not be had.
        return "upstream's 401" if heard.status == 401 and heard.problem is None else "WRONG"

    def _right(self, kind: str, user: str, body: bytes) -> bool:
        if kind == "user":
            return bool(json.loads(body)["login"] == user)
        if kind == "upload":
            return bool(json.loads(body)["sha256"] == hashlib.sha256(BODY).hexdigest())
        return kind == "leave" or body == BODY

    async def _break(self) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.1, 0.6))
            party = self._random.choice(list(self._proxies))
            fault = Fault(
                self._random.choice(FAULTS),
                self._random.choice(list(Stage)),
                delay=0.1,
                words=STRANGER,
            )
            self.figures.faults[f"{party}: {fault.kind}"] += 1
            await self._proxies[party].break_with(fault)
            await asyncio.sleep(self._random.uniform(0.1, 0.8))
            self._proxies[party].mend()

    async def _renew(self) -> None:
        """Users' tokens are withdrawn, and there are new ones."""
        while True:
            await asyncio.sleep(1.5)
            user = self._random.choice(USERS)
            self._api.revoke(self._given[user])
            self._new_token(user)

    def _new_token(self, user: str) -> None:
        self._given[user] = token = f"gho_{user}_{self._random.randrange(10**12)}"
        self._auth0.add_user(f"auth0|{user}", [Identity("github", "101", access_token=token)])
        self._api.accept(token, login=user)

    async def _watch(self) -> None:
        started = time.monotonic()
        while True:
            self.figures.samples.append((time.monotonic() - started, *self._measured()))
            # Witnesses remember everything.
            self._auth0.clear()
            self._api.clear()
            await asyncio.sleep(1)

    def _measured(self) -> tuple[float, int]:
        status = Path(f"/proc/{self._pid}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert resident is not None
        return int(resident[1]) / 1024, len(os.listdir(f"/proc/{self._pid}/fd"))


@asynccontextmanager
async def _proxies(**ports: int) -> AsyncIterator[dict[str, FaultProxy]]:
    made = {name: FaultProxy(port, mark=b"\r\n" if name == "redis" else b"\r\n\r\n") for name, port in ports.items()}
    for proxy in made.values():
        await proxy.__aenter__()
    try:
        yield made
    finally:
        for proxy in made.values():
            await proxy.__aexit__()


async def soak(seconds: float, folder: Path) -> Figures:
    """All parties, the gateway and `seconds` of load."""
    auth0, api = Auth0(), ProviderAPI()
    auth0.add_client(*CLIENT)
    with ExitStack() as running:
        idp, upstream = (running.enter_context(serve(each)) for each in (auth0, api))
        redis = running.enter_context(running_redis(folder))
        async with _proxies(idp=idp.port, api=upstream.port, redis=redis.port) as proxies:
            config = CONFIG.format(
                issuer=auth0.issuer,
                audience=AUDIENCE,
                management=auth0.management_audience,
                **{name: proxy.port for name, proxy in proxies.items()},
            )
            (folder / "idp.toml").write_text(config)
            port = free_port()
            with (folder / "log").open("wb") as log:
                gateway = subprocess.Popen(  # noqa: ASYNC220 (it only starts here)
                    [sys.executable, "-m", "idp_middleware", "serve", "idp.toml", "--port", str(port)],
                    cwd=folder,
                    env={
                        **os.environ,
                        "AUTH0_CLIENT_ID": CLIENT[0],
                        "AUTH0_CLIENT_SECRET": CLIENT[1],
                        "IDP_KEY": Fernet.generate_key().decode(),
                    },
                    stdout=log,
                    stderr=log,
                )
            try:
                await asyncio.to_thread(eventually, lambda: _listens(port), within=30)
                return await Soak(auth0, api, port, gateway.pid, proxies).run(seconds)
            finally:
                gateway.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(gateway.wait, 40)
                gateway.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(soak(seconds, Path(folder)))
    print(figures)
    grown = figures.slope() > 1.0 and seconds >= 300
    return int(bool(figures.wrong) or grown or figures.at_rest[1] > figures.samples[0][2] + 10)


if __name__ == "__main__":
    sys.exit(main())
