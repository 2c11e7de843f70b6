"""What the project holds itself to, and whether this run met it. Knows nothing of how anything is measured or shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import Results

STOPS_WITHIN_MS = 100
GROWTH = 3_000_000


@dataclass(frozen=True, slots=True)
class Mark:
    """A figure and the most it may be; `value` is None where this run did not measure it."""

    text: str
    value: float | None
    bound: float
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value <= self.bound


def marks(results: Results) -> Iterator[Mark]:
    """All of them, measured or not."""

    def against(
        workload: str, ours: str, other: str, connections: int = 32, ours_at: int | None = None
    ) -> float | None:
        mine = results.cpu(workload, ours_at or connections, ours)
        theirs = results.cpu(workload, connections, other)
        return mine / theirs if mine is not None and theirs else None

    yield Mark("1 KB, 32 connections, the whole way, of the floor", against("get-1k", "ours", "floor"), 2.0)
    yield Mark("… on granian, of the uvicorn floor", against("get-1k", "ours-granian", "floor"), 1.7)
    yield Mark("… of @fastify/http-proxy", against("get-1k", "ours", "fastify"), 0.65)
    yield Mark("… of caddy", against("get-1k", "ours", "caddy"), 0.7)
    yield Mark("… of fastapi-proxy-lib", against("get-1k", "ours", "fastapi-proxy-lib"), 1 / 40)
    yield Mark("… at 256 connections, of that at 32", against("get-1k", "ours", "ours", ours_at=256), 1.15)
    yield Mark("64 KB, 32 connections, of @fastify/http-proxy", against("get-64k", "ours", "fastify"), 0.75)
    errors = [sum(cell.errors.values()) for (_, _, name), cell in results.small.items() if name == "ours"]
    yield Mark("errors in all of that", float(sum(errors)) if errors else None, 0, "")

    for direction, other, bound in (("down", "nginx", 1.25), ("up", "aiohttp", 1.0)):
        mine, theirs = results.transfer_cpu(direction, "ours"), results.transfer_cpu(direction, other)
        yield Mark(f"100 MB {direction}, of {other}", mine / theirs if mine and theirs else None, bound)
        growth = results.bulk[direction]["ours"].growth / 1e6 if mine else None
        yield Mark(f"100 MB {direction}, memory growth", growth, GROWTH / 1e6, "MB")

    leaver = results.bulk.get("leaver", {}).get("ours")
    stops = [math.inf if left.milliseconds is None else left.milliseconds for left in leaver.left] if leaver else []
    yield Mark("a client that leaves: until the upstream stops", max(stops, default=None), STOPS_WITHIN_MS, "ms")

    for piece in results.micro:
        if piece.group == "outside the prefix":
            yield Mark("a request outside the prefix: added", piece.microseconds, 1.0, "µs")
        if piece.group == "size" and piece.against:
            yield Mark(piece.label, piece.microseconds / piece.against, 1.1)
