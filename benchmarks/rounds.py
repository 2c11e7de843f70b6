"""How a figure comes about: start everyone, warm up, go round and round, take medians.

Candidates take turns within each round (A B C A B C), so that a slow minute of the machine is everyone's. CPU is that
of the candidate's whole process tree over the requests it answered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import bulk, load
from benchmarks.candidates import PROVIDER_TOKEN, Candidate, Place
from benchmarks.measure import reset_peak, usage
from benchmarks.processes import Process, Processes, StartFailed, free_port
from benchmarks.workloads import BULK_BYTES, LEFT_BYTES, Small

WARM_UP_SECONDS = 1.0
# The loader connects anew each turn, and upstream connections have gone idle and been closed since a candidate's last.
OPENING_SECONDS = 0.8
# Below this many requests/s a round of the usual length would count little else than what it cut short.
SLOW = 200.0
SLOW_FACTOR = 3
SLOW_READER_SECONDS = 3.0

Say = Callable[[str], None]


@dataclass(slots=True)
class SmallCell:
    """One candidate under one workload and connection count; a list entry per round."""

    cpu_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    peak: int = 0
    growth: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def cpu(self) -> float | None:
        """Median µs per request; None where no request got through."""
        return median(self.cpu_us) if self.cpu_us else None


@dataclass(slots=True)
class BulkCell:
    """One candidate and one long body; what was not measured stays None or empty, and growth is the worst case."""

    cpu_ms: list[float] = field(default_factory=list)
    mb_per_second: list[float] = field(default_factory=list)
    growth: int = 0
    ahead: bulk.Ahead | None = None
    left: list[bulk.Left] = field(default_factory=list)
    left_quietly: list[bulk.Left] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def cpu(self) -> float | None:
        """Median CPU in ms; None where no transfer came through."""
        return median(self.cpu_ms) if self.cpu_ms else None


@dataclass(frozen=True, slots=True)
class Running:
    candidate: Candidate
    process: Process


class Bench:
    """Runs workloads.

    Args:
        processes: starts and stops the candidates.
        directory: for their configuration files.
        python: the interpreter that has the Python peers.
        env: for the candidates' processes.
        caller: header fields that every request carries.
        core: the proxies' own.
        rounds: how often each candidate has its turn.
        seconds: of load per turn.
        say: told what is going on.

    `failed` collects the candidates that did not start or did not relay, with the reason.
    """

    def __init__(
        self,
        *,
        processes: Processes,
        directory: Path,
        python: str,
        env: dict[str, str],
        caller: dict[str, str],
        core: int | None,
        rounds: int,
        seconds: float,
        say: Say,
    ) -> None:
        self._processes = processes
        self._directory = directory
        self._python = python
        self._env = env
        self._caller = caller
        self._core = core
        self._rounds = rounds
        self._seconds = seconds
        self._say = say
        self.failed: dict[str, str] = {}

    def small(
        self, workload: Small, candidates: Sequence[Candidate], connections: Sequence[int], upstream_port: int
    ) -> dict[tuple[int, str], SmallCell]:
        """Cells by connection count and candidate."""
        cells: dict[tuple[int, str], SmallCell] = {}
        with self._all(candidates, upstream_port) as everyone:
            slow = set()
            for one in everyone:
                with self._failing(one.candidate):
                    if self._warm_up(one, workload) < SLOW:
                        slow.add(one.candidate.name)
            for count in connections:
                self._say(f"{workload.label}, {count} at a time")
                for turn in range(self._rounds):
                    for one in everyone:
                        name = one.candidate.name
                        if name not in self.failed:
                            self._say(f"{workload.name}, {count} connections, round {turn + 1}: {name}")
                            seconds = self._seconds * (SLOW_FACTOR if name in slow else 1)
                            with self._failing(one.candidate):
                                cell = cells.setdefault((count, name), SmallCell())
                                self._turn(one, workload, count, seconds, cell)
        return cells

    def _warm_up(self, one: Running, workload: Small) -> float:
        """Requests/s seen meanwhile."""
        seen = load.run(self._request(one, workload), one.process.port, 32, WARM_UP_SECONDS)
        return seen.requests / seen.seconds

    def _turn(self, one: Running, workload: Small, connections: int, seconds: float, cell: SmallCell) -> None:
        pid = one.process.pid
        reset_peak(pid)
        idle = usage(pid).rss
        opened = []
        seen = load.run(
            self._request(one, workload),
            one.process.port,
            connections,
            seconds,
            opening=OPENING_SECONDS,
            opened=lambda: opened.append(usage(pid).cpu),
        )
        after = usage(pid)
        if not one.process.alive:
            raise StartFailed(f"ended by itself: {one.process.tail()}")
        if seen.requests:
            cell.cpu_us.append((after.cpu - opened[0]) / seen.requests * 1e6)
            cell.per_second.append(seen.requests / seen.seconds)
            cell.p50_ms.append(seen.p50)
            cell.p99_ms.append(seen.p99)
        else:
            cell.errors["no answer in time"] = cell.errors.get("no answer in time", 0) + 1
        cell.peak = max(cell.peak, after.peak)
        cell.growth = max(cell.growth, after.peak - idle)
        for kind, number in seen.errors.items():
            cell.errors[kind] = cell.errors.get(kind, 0) + number

    def _request(self, one: Running, workload: Small) -> load.Request:
        return load.Request(
            one.candidate.prefix + workload.path,
            workload.answer,
            workload.method,
            workload.body,
            tuple(self._caller.items()),
        )

    def transfers(self, direction: str, candidates: Sequence[Candidate], tap_port: int) -> dict[str, BulkCell]:
        """100 MB `down` or `up`, by candidate."""
        transfer = bulk.download if direction == "down" else bulk.upload

        def turn(one: Running, target: bulk.Target, cell: BulkCell) -> None:
            before = usage(one.process.pid)
            seconds = transfer(target, BULK_BYTES)
            cell.cpu_ms.append((usage(one.process.pid).cpu - before.cpu) * 1000)
            cell.mb_per_second.append(BULK_BYTES / bulk.MEGABYTE / seconds)

        return self._bulk(direction, candidates, tap_port, self._rounds, turn)

    def slow_reader(self, candidates: Sequence[Candidate], tap_port: int) -> dict[str, BulkCell]:
        def turn(_: Running, target: bulk.Target, cell: BulkCell) -> None:
            cell.ahead = bulk.slow_read(target, BULK_BYTES, SLOW_READER_SECONDS)

        return self._bulk("slow reader", candidates, tap_port, 1, turn)

    def leaver(self, candidates: Sequence[Candidate], tap_port: int) -> dict[str, BulkCell]:
        def turn(_: Running, target: bulk.Target, cell: BulkCell) -> None:
            cell.left.append(bulk.leave(target, LEFT_BYTES))
            cell.left_quietly.append(bulk.leave_quietly(target))

        return self._bulk("leaver", candidates, tap_port, self._rounds, turn)

    def _bulk(
        self,
        label: str,
        candidates: Sequence[Candidate],
        tap_port: int,
        rounds: int,
        turn: Callable[[Running, bulk.Target, BulkCell], None],
    ) -> dict[str, BulkCell]:
        cells: dict[str, BulkCell] = {}
        with self._all([one for one in candidates if not one.floor], tap_port) as everyone:
            idle = {}
            for one in everyone:
                # Buffers and pools that come with a first long body are no growth.
                target = self._target(one, tap_port)
                with contextlib.suppress(bulk.BulkError):
                    bulk.download(target, bulk.MEGABYTE)
                    bulk.upload(target, bulk.MEGABYTE)
                idle[one.candidate.name] = usage(one.process.pid).rss
                reset_peak(one.process.pid)
            self._say(label)
            for number in range(rounds):
                for one in everyone:
                    name = one.candidate.name
                    cell = cells.setdefault(name, BulkCell())
                    self._say(f"{label}, round {number + 1}: {name}")
                    try:
                        turn(one, self._target(one, tap_port), cell)
                    except bulk.BulkError as exc:
                        cell.errors.append(str(exc))
                    cell.growth = max(cell.growth, usage(one.process.pid).peak - idle[name])
        return cells

    def _target(self, one: Running, tap_port: int) -> bulk.Target:
        return bulk.Target(one.process.port, one.candidate.prefix, self._caller, tap_port)

    @contextlib.contextmanager
    def _all(self, candidates: Sequence[Candidate], upstream_port: int) -> Iterator[list[Running]]:
        """Everyone who starts and relays, running; all stopped at the end."""
        started = []
        try:
            for candidate in candidates:
                if candidate.name not in self.failed:
                    with self._failing(candidate):
                        started.append(Running(candidate, self._start(candidate, upstream_port)))
            ready = []
            for one in started:
                with self._failing(one.candidate):
                    one.process.wait_ready()
                    self._check(one)
                    ready.append(one)
            yield ready
        finally:
            for one in started:
                self._processes.stop(one.process)

    @contextlib.contextmanager
    def _failing(self, candidate: Candidate) -> Iterator[None]:
        try:
            yield
        except (StartFailed, bulk.BulkError, load.LoadFailed) as exc:
            # Programs name their files; a report must not.
            self.failed[candidate.name] = str(exc).replace(str(self._directory), "…")
            self._say(f"{candidate.name} failed: {exc}")

    def _start(self, candidate: Candidate, upstream_port: int) -> Process:
        directory = self._directory / candidate.name
        directory.mkdir(exist_ok=True)
        place = Place(free_port(), upstream_port, self._python, directory)
        env = {
            **self._env,
            "NODE_ENV": "production",
            # Caddy keeps state under the home directory; nothing of this run is to outlive it.
            "XDG_CONFIG_HOME": str(directory),
            "XDG_DATA_HOME": str(directory),
            # Clients that look at these would send loopback traffic to somebody's proxy.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "BENCH_PORT": str(place.port),
            "BENCH_UPSTREAM": f"http://127.0.0.1:{upstream_port}",
            "BENCH_PROVIDER_TOKEN": PROVIDER_TOKEN,
        }
        return self._processes.start(
            candidate.name,
            candidate.command(place),
            port=place.port,
            core=self._core,
            env=env,
            cwd=Path(__file__).parents[1],
        )

    def _check(self, one: Running) -> None:
        """Raises `BulkError` unless requests come through, with the right token. Fills caches and pools meanwhile."""
        if one.candidate.floor:
            return
        got = bulk.whoami(bulk.Target(one.process.port, one.candidate.prefix, self._caller, 0))
        wanted = f"Bearer {PROVIDER_TOKEN}" if one.candidate.injects else self._caller["authorization"]
        if got != wanted:
            raise bulk.BulkError("the upstream got a wrong Authorization field")
