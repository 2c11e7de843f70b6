"""How a cell is tried: somebody behind the gateway breaks, and a caller asks.

Knows the order of things; nothing of bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from redis.asyncio import Redis

from idp_middleware.testing.provider import BLOCK
from tests.faults import callers
from tests.faults.caller import Heard, ask
from tests.faults.ground import PATIENCE, Ground
from tests.faults.matrix import AGAIN, CACHE, CALLER, KEYS, RENEWAL, TLS, UPSTREAM, WRITE, Cell, Party, Tried
from tests.faults.proxy import Fault, FaultProxy, Stage

KEPT = (Stage.IDLE.value, AGAIN)
SMALL, LARGE = BLOCK[:64], BLOCK[:20480]
UPLOAD = bytes(8 * 1024 * 1024)
ASKING = 0.3
"""Seconds of an identity provider that takes its time."""


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
            attempt = callers.try_cell if cell.party is CALLER else try_cell
            return cell, await attempt(cell, ground, first + number)

    return dict(await asyncio.gather(*(one(*numbered) for numbered in enumerate(chosen))))
