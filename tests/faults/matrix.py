"""Each party × each fault × each stage: what the caller gets, after how long, and what is left behind.

Knows which cells there are and how one is tried; what they ought to give is in `docs/fault-matrix.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from redis.asyncio import Redis

from idp_middleware.testing.provider import BLOCK
from tests.faults.caller import Heard, ask
from tests.faults.ground import PATIENCE, Ground
from tests.faults.proxy import FAULTS, Fault, FaultProxy, Stage

AGAIN = "as it is used again"
STAGES: dict[str, Stage] = {**{stage.value: stage for stage in Stage}, AGAIN: Stage.REQUEST}
"""The columns. The last is a request that goes out on a kept connection in the moment that this breaks."""

KEPT = (Stage.IDLE.value, AGAIN)
SMALL, LARGE = BLOCK[:64], BLOCK[:20480]
UPLOAD = bytes(8 * 1024 * 1024)
ASKING = 0.3
"""Seconds of an identity provider that takes its time."""

Times = tuple[tuple[float, str], ...]
"""Upper bounds in seconds, and what a time below is called."""

UPSTREAM_TIMES: Times = ((0.45, ""), (0.97, "connect time-out"), (1.5, "read time-out"), (2.8, "write time-out"))
PROVIDER_TIMES: Times = ((0.45, ""), (0.97, "connect time-out"), (1.95, "read time-out"), (3.5, "total time-out"))
CACHE_TIMES: Times = ((0.9, ""), (1.9, "patience"))


@dataclass(frozen=True, eq=False)
class Party:
    """A table of the page: whose connections break, `way` by the name that `Ground.settle` has for it."""

    name: str
    way: str
    times: Times
    stranger: bytes
    says: str
    columns: dict[str, str] = field(default_factory=dict)
    """What a stage is called here, where that is something else."""
    mark: bytes = b"\r\n\r\n"
    inside: int = 10


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SMTP = b"220 mail.example ESMTP ready\r\n"

UPSTREAM = Party(
    "The upstream",
    "api",
    UPSTREAM_TIMES,
    SMTP,
    "`GET` of a chunked body; for a fault in the request, `POST` of 8 MiB that breaks after 100,000 bytes.",
)
TLS = Party(
    "The upstream, over TLS",
    "tls",
    UPSTREAM_TIMES,
    HTTP,
    "The same at the level of records.",
    {
        Stage.REQUEST.value: "in our hello",
        Stage.ANSWER.value: "before its hello",
        Stage.HEAD.value: "in its hello",
        Stage.BODY.value: "in its answer's body",
    },
    mark=b"",
    inside=100,
)
KEYS = Party(
    "The identity provider: the keys that callers are verified with",
    "keys",
    PROVIDER_TIMES,
    SMTP,
    "Discovery and the key set, of which nothing is known yet; on a kept connection, the provider has begun to sign "
    "with a new key. Callers with a known key never wait for any of it.",
)
TOKENS = Party(
    "The identity provider: the user's token",
    "tokens",
    PROVIDER_TIMES,
    SMTP,
    "The management token and the user's profile; no token of the user is kept. One that is serves without asking.",
)
RENEWAL = Party(
    "The identity provider: another token after a refusal",
    "tokens",
    PROVIDER_TIMES,
    SMTP,
    "The upstream answers 401 to the token that is kept; the provider has a new one. Where that can't be had, the 401 "
    "stands.",
)
CACHE = Party(
    "The shared cache",
    "redis",
    CACHE_TIMES,
    HTTP,
    "Redis holds the user's token, this process does not; Redis failing, the identity provider is asked.",
    {
        Stage.REQUEST.value: "in the command",
        Stage.ANSWER.value: "before the reply",
        Stage.HEAD.value: "in its first line",
        Stage.BODY.value: "in its value",
    },
    mark=b"\r\n",
    inside=1,
)
WRITE = Party(
    "The shared cache, as it is written to",
    "redis",
    CACHE_TIMES,
    HTTP,
    "Neither Redis nor this process holds the user's token. What the identity provider gives is kept in Redis for "
    "other processes, and here it breaks between the one and the other. *and kept*: they find it there; else they ask "
    "for themselves.",
    CACHE.columns,
    mark=b"\r\n",
    inside=1,
)
PARTIES = (UPSTREAM, TLS, KEYS, TOKENS, RENEWAL, CACHE, WRITE)


@dataclass(frozen=True)
class Cell:
    """One of the matrix."""

    party: Party
    fault: str
    column: str

    @property
    def stage(self) -> Stage:
        return STAGES[self.column]

    @property
    def senseless(self) -> str:
        """Why there is nothing to try, if there isn't."""
        if self.fault == "refuse" and self.column not in (Stage.CONNECT.value, Stage.IDLE.value):
            return "only what is not open yet can be refused: see *cut*"
        if self.fault == "stranger" and self.stage in (Stage.HEAD, Stage.BODY):
            return "it has begun to answer: see *garbage*"
        if self.fault in ("delay", "trickle") and self.stage is Stage.IDLE:
            return "nothing moves"
        if self.party is WRITE and self.stage is Stage.BODY:
            return "there is none in the reply"
        return ""


def cells() -> Iterator[Cell]:
    """All of them, also those without sense."""
    for party, fault, column in product(PARTIES, FAULTS, STAGES):
        yield Cell(party, fault, column)


@dataclass(frozen=True)
class Tried:
    """What came of a cell; `wrong` is what must not be, whatever the page says."""

    answer: str
    time: str
    wrong: tuple[str, ...] = ()
    heard: tuple[Heard, ...] = ()

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.answer, self.time)))


async def try_cell(cell: Cell, ground: Ground, number: int) -> Tried:
    """Break it, ask, mend it, ask again, close; `number` is no other cell's."""
    party = cell.party
    inside = 5000 if party is TLS and cell.stage is Stage.BODY else party.inside
    async with FaultProxy(_port_of(party, ground), mark=party.mark, inside=inside) as proxy:
        attempt = _Attempt(cell, ground, number, proxy)
        try:
            return await attempt.run()
        except TimeoutError:
            return Tried("STUCK", "", ("a request got no answer and no end",))


def _port_of(party: Party, ground: Ground) -> int:
    ports = {"api": ground.api_port, "tls": ground.tls_port, "redis": ground.redis_port}
    return ports.get(party.way, ground.idp_port)


class _Attempt:
    def __init__(self, cell: Cell, ground: Ground, number: int, proxy: FaultProxy) -> None:
        self.cell = cell
        self.ground = ground
        self.number = number
        # None is what another begins with.
        self.name = f"cell{number:04}"
        self.proxy = proxy
        self.heard: list[Heard] = []
        self.wrong: list[str] = []

    async def run(self) -> Tried:
        cell, ground = self.cell, self.ground
        database = {"database": self.number} if cell.party is WRITE else {}
        token, refused = ground.settle(self.name, **{cell.party.way: self.proxy.port}, **database)
        if cell.party is CACHE:
            # Another worker, who has what this one looks for.
            another = f"{self.name}-another"
            ground.settle(another, redis=ground.redis_port, user=self.name)
            self._served(await self._ask(token, at=another), "another worker")
            await self._close(another)
        first, token = token, await self._warm_up(token, refused)
        asked = self._look_ups()
        if cell.party is WRITE:
            heard, answer = await self._while_it_asks(token)
            return await self._mended(token, heard, answer)
        await self.proxy.break_with(self._fault())
        if cell.stage is Stage.IDLE:
            # Long enough for the gateway to have noticed.
            await asyncio.sleep(0.05)
        method, target, body = "GET", "/chunked/64", b""
        if cell.party is TLS and cell.stage is Stage.BODY:
            target = "/chunked/20480"
        if cell.party is UPSTREAM and cell.column == Stage.REQUEST.value:
            method, target, body = "POST", "/upload", UPLOAD
        heard = await self._ask(token, method, target, body)
        answer = self._answer(heard)
        if cell.party is CACHE and heard.status == 200:
            answer += " from the cache" if self._look_ups() == asked else ""
        # A new key may be asked for again only after a while; whoever has a known one must not feel it.
        return await self._mended(first if cell.party is KEYS and heard.status == 503 else token, heard, answer)

    async def _mended(self, token: str, heard: Heard, answer: str) -> Tried:
        self.proxy.mend()
        await self._recovered(token)
        await self._close(self.name)
        return Tried(answer, self._time(heard), tuple(self.wrong), tuple(self.heard))

    async def _while_it_asks(self, token: str) -> tuple[Heard, str]:
        """Break what it will write to while it asks the identity provider for what to write."""
        kept, asked = await self._kept(), self._look_ups()
        self.ground.auth0.stall(f"/api/v2/users/auth0|{self.name}", ASKING, times=1)
        asking = asyncio.create_task(self._ask(token))
        await self._until(lambda: self._look_ups() > asked, lambda: "the identity provider was not asked")
        if self.cell.stage is Stage.CONNECT:
            await self.proxy.break_with(Fault("reset", Stage.IDLE))
        await self.proxy.break_with(self._fault())
        heard = await asking
        answer = self._answer(heard)
        return heard, answer + (" and kept" if await self._kept() > kept else "")

    async def _kept(self) -> int:
        """How many tokens Redis holds."""
        async with Redis.from_url(self.ground.redis_url(self.ground.redis_port, self.number)) as redis:
            return len([name async for name in redis.scan_iter("idp-middleware:token:*}")])

    async def _warm_up(self, token: str, refused: str) -> str:
        """Bring about what there is before something breaks; returns the token of the caller who will meet it."""
        cell, ground = self.cell, self.ground
        if cell.party is RENEWAL or cell.party.way in ("api", "tls"):
            # All that comes before is known by then.
            self._served(await self._ask(token), "the first request")
            if cell.party is RENEWAL:
                ground.provider.revoke(refused)
                ground.link_anew(self.name, self.proxy.port)
            if cell.stage is Stage.CONNECT or (cell.party is not RENEWAL and cell.column not in KEPT):
                await self.proxy.break_with(Fault("cut", Stage.IDLE))
                await asyncio.sleep(0.05)
        elif cell.party is KEYS:
            if cell.column in KEPT:
                self._served(await self._ask(token), "the first request")
                return ground.signed_anew(self.name, self.proxy.port)
        elif cell.column in KEPT or cell.party is WRITE or (cell.party is CACHE and cell.stage is not Stage.CONNECT):
            # Somebody else, for what is known of this one would be served without asking.
            other = ground.user(f"{self.name}-other", **{cell.party.way: self.proxy.port})
            self._served(await self._ask(other), "the first request")
        return token

    def _fault(self) -> Fault:
        cell = self.cell
        fault = Fault(cell.fault, cell.stage)
        if cell.fault == "stranger":
            fault = replace(fault, words=cell.party.stranger)
        if cell.column == AGAIN:
            fault = replace(fault, only_kept=True)
        elif cell.party is UPSTREAM and cell.stage is Stage.REQUEST:
            fault = replace(fault, after=100_000)
        return fault

    async def _ask(
        self, token: str, method: str = "GET", target: str = "/chunked/64", body: bytes = b"", *, at: str = ""
    ) -> Heard:
        # Whom it is for, so that it shows whose token it was sent with.
        target = f"/{at or self.name}/idp/github{target}?for={self.ground.callers.get(token)}"
        heard = await ask(self.ground.port, token, method, target, body)
        self.heard.append(heard)
        return heard

    def _answer(self, heard: Heard) -> str:
        if heard.status == 0:
            return "NO ANSWER"
        if heard.problem:
            return f"{heard.status} {heard.problem}"
        if not heard.whole:
            return "broken off"
        if heard.status == 200:
            return "served" if self._right(heard) else "WRONG"
        return f"the upstream's {heard.status}"

    def _right(self, heard: Heard) -> bool:
        return heard.body in (SMALL, LARGE) or b'"size": 8388608' in heard.body

    def _time(self, heard: Heard) -> str:
        if heard.status == 200 and heard.whole and self.cell.party.way != "redis":
            return "" if heard.seconds < PATIENCE.read else "slowly"
        for bound, called in self.cell.party.times:
            if heard.seconds < bound:
                return called
        return "slowly"

    def _served(self, heard: Heard, what: str) -> None:
        if self._answer(heard) != "served":
            self.wrong.append(f"{what}: {self._answer(heard)}")

    async def _recovered(self, token: str) -> None:
        """Without the fault, and after as long as we were told to wait, it has to work."""
        for _ in range(3):
            heard = await self._ask(token)
            if heard.status != 503:
                break
            await asyncio.sleep(int(heard.headers["retry-after"]))
        self._served(heard, "after mending")

    def _look_ups(self) -> int:
        return self.ground.auth0.count(f"/api/v2/users/auth0|{self.name}")

    async def _close(self, name: str) -> None:
        """Nothing may be left of a cell: no request, no task, no connection."""
        await self._until(lambda: not self.ground.cells.left(name), lambda: f"left: {self.ground.cells.left(name)}")
        await ask(self.ground.port, "", "POST", f"/{name}/close")
        if name == self.name:
            await self._until(lambda: not self.proxy.open, lambda: f"{self.proxy.open} connections left open")

    async def _until(self, condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
        for _ in range(300):
            if condition():
                return
            await asyncio.sleep(0.01)
        self.wrong.append(complaint())


async def try_all(ground: Ground, chosen: list[Cell], *, at_once: int = 24, first: int = 0) -> dict[Cell, Tried]:
    """Try cells beside each other."""
    places = asyncio.Semaphore(at_once)

    async def one(number: int, cell: Cell) -> tuple[Cell, Tried]:
        async with places:
            return cell, await try_cell(cell, ground, first + number)

    return dict(await asyncio.gather(*(one(*numbered) for numbered in enumerate(chosen))))
