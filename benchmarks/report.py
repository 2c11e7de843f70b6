"""What a run found, as tables for people: on standard output and in `results.md`.

Only arranges figures; how they came about is `rounds`' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks import chart
from benchmarks.bulk import Left
from benchmarks.candidates import Candidate
from benchmarks.marks import marks
from benchmarks.results import Results
from benchmarks.rounds import SLOW_READER_SECONDS, BulkCell, SmallCell
from benchmarks.workloads import BULK, CONNECTIONS, SMALL

CHART_WORKLOAD = ("get-1k", 32)

Cell = TypeVar("Cell", SmallCell, BulkCell)

_HOW = """\
CPU per request (user and system time of the candidate's whole process tree, over the requests it answered) is the
figure to compare: it holds still where requests per second depend on what else the machine does. The load is a closed
loop, so latencies compare candidates but predict nothing. Memory is the tree's resident set: the highest, and how far
that was above where the cell began. Requests and CPU are counted once connections have been open for a while, on both
sides of a proxy; latencies and errors are those of the whole time. Every answer's status and length are checked; errors
are shown, not dropped. Every request carries the same header fields, a real JWT among them, and every candidate was
first seen to bring the provider's token upstream, except where noted."""


def write(results: Results, directory: Path) -> list[Path]:
    """Write `results.md`, and `chart.svg` where there is something to draw; the files written."""
    files = [directory / "results.md"]
    files[0].write_text(text(results), encoding="utf-8")
    bars = [
        chart.Bar(one.label, cpu, ours=one.name.startswith("ours"), floor=one.floor)
        for one in results.candidates
        if (cpu := results.cpu(*CHART_WORKLOAD, one.name)) is not None
    ]
    if bars:
        files.append(directory / "chart.svg")
        files[1].write_text(chart.svg(bars, f"{results.machine}, {results.date}"), encoding="utf-8")
    return files


def text(results: Results) -> str:
    """The whole report in Markdown that also reads well on a terminal."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    yield "# What a proxied request costs"
    yield ""
    yield f"{results.date}, {results.machine}. {_where(results)}"
    yield f"{results.rounds} rounds of {results.seconds:g} s per figure, candidates taking turns; medians."
    if results.quick:
        yield "**A quick run**: fewer candidates, workloads and seconds than a whole one."
    yield ""
    yield _HOW
    yield from _marks(results)
    for small in SMALL:
        for count in CONNECTIONS:
            cells = {name: cell for (load, n, name), cell in results.small.items() if (load, n) == (small.name, count)}
            if cells:
                yield from _small(results, f"{small.label}, {count} connection{'s'[: count > 1]}", cells)
    for workload, label in BULK.items():
        if workload in results.bulk:
            yield from _bulk(results, workload, label, results.bulk[workload])
    yield from _pieces(results)
    yield from _who(results)


def _where(results: Results) -> str:
    cores = "each proxy on one core, upstream and load on another" if results.pinned else "all on one core"
    return f"Upstream: {results.upstream}; load: {results.loader}; {cores}; all on loopback."


def _small(results: Results, title: str, cells: dict[str, SmallCell]) -> Iterator[str]:
    floor = next((cells[one.name].cpu for one in results.candidates if one.floor and one.name in cells), None)

    def row(cell: SmallCell) -> list[str]:
        cpu = cell.cpu
        if cpu is None:
            return ["–"] * 5 + [_mb(cell.peak), _mb(cell.growth), _errors(cell.errors)]
        return [
            _number(cpu),
            _number(cpu / floor) if floor else "–",
            f"{median(cell.per_second):,.0f}",
            _number(median(cell.p50_ms)),
            _number(median(cell.p99_ms)),
            _mb(cell.peak),
            _mb(cell.growth),
            _errors(cell.errors),
        ]

    heads = ["CPU µs/request", "of the floor", "requests/s", "p50 ms", "p99 ms", "peak MB", "growth MB", "errors"]
    yield from _section(results, title, heads, cells, row, lambda cell: cell.cpu)


def _bulk(results: Results, workload: str, label: str, cells: dict[str, BulkCell]) -> Iterator[str]:
    if workload == "slow-reader":
        heads = ["MB taken ahead of the reader", "of it in the proxy's own memory", "growth MB", "errors"]

        def row(cell: BulkCell) -> list[str]:
            held = ["–", "–"] if cell.ahead is None else [_mb(cell.ahead.taken), _mb(cell.ahead.held)]
            return [*held, _mb(cell.growth), _errors(cell.errors)]

        def rank(cell: BulkCell) -> float | None:
            return cell.ahead.held if cell.ahead else None

        label += f", for {SLOW_READER_SECONDS:g} s"
    elif workload == "leaver":
        heads = ["streaming: ms until the upstream stops", "MB pulled meanwhile", "silent: ms until it stops", "errors"]

        def row(cell: BulkCell) -> list[str]:
            pulled = max((left.pulled for left in cell.left), default=None)
            return [
                _stopped(cell.left),
                "–" if pulled is None else _mb(pulled),
                _stopped(cell.left_quietly),
                _errors(cell.errors),
            ]

        def rank(cell: BulkCell) -> float | None:
            return max((left.pulled for left in cell.left), default=None)

        label += ", in the middle of 1 GB and during a silent event stream (the worst of the rounds)"
    else:
        heads = ["CPU ms/100 MB", "MB/s", "growth MB", "errors"]

        def row(cell: BulkCell) -> list[str]:
            if cell.cpu is None:
                return ["–", "–", _mb(cell.growth), _errors(cell.errors)]
            return [_number(cell.cpu), f"{median(cell.mb_per_second):,.0f}", _mb(cell.growth), _errors(cell.errors)]

        def rank(cell: BulkCell) -> float | None:
            return cell.cpu

    yield from _section(results, label, heads, cells, row, rank)


def _section(
    results: Results,
    title: str,
    heads: list[str],
    cells: dict[str, Cell],
    row: Callable[[Cell], list[str]],
    rank: Callable[[Cell], float | None],
) -> Iterator[str]:
    """A table with the cheapest first, and at its end all who gave no figure, with the reason."""

    def place(one: Candidate) -> float:
        value = rank(cells[one.name])
        return math.inf if value is None else value

    def figures(one: Candidate) -> list[str]:
        return [_name(one), *row(cells[one.name])]

    ranked = sorted((one for one in results.candidates if one.name in cells), key=place)
    rows = [figures(candidate) for candidate in ranked]
    for other in results.candidates:
        if other.name in results.missing:
            rows.append([_name(other), "not installed", *[""] * (len(heads) - 1)])
        elif other.name not in cells and other.name in results.failed:
            rows.append([_name(other), "failed", *[""] * (len(heads) - 1)])
    yield ""
    yield f"## {title}"
    yield ""
    yield from _table(["", *heads], rows)


def _marks(results: Results) -> Iterator[str]:
    rows = []
    for mark in marks(results):
        verdict = {None: "not measured", True: "met", False: "**missed**"}[mark.met]
        value = "–" if mark.value is None else _number(mark.value)
        if mark.value is not None and math.isfinite(mark.value):
            value = f"{value} {mark.unit}".strip()
        rows.append([mark.text, value, f"≤ {_number(mark.bound)} {mark.unit}".strip(), verdict])
    yield ""
    yield "## What the project holds itself to"
    yield ""
    yield from _table(["", "here", "at most", ""], rows)


def _pieces(results: Results) -> Iterator[str]:
    if not results.micro:
        return
    rows = []
    for piece in results.micro:
        plain = (
            ""
            if piece.against is None
            else f"{_number(piece.against)} (× {_number(piece.microseconds / piece.against)})"
        )
        rows.append([piece.group, piece.label, _number(piece.microseconds), plain])
    yield ""
    yield "## The pieces of idp_middleware, in process"
    yield ""
    yield from _table(["", "", "CPU µs", "against"], rows, words=2)


def _who(results: Results) -> Iterator[str]:
    yield ""
    yield "## Who was measured"
    yield ""
    rows = []
    for one in results.candidates:
        versions = [f"{_short(need)} {results.versions[need]}" for need in one.needs if need in results.versions]
        told = [one.note]
        if one.name in results.missing:
            told.insert(0, f"not installed: {results.missing[one.name]}")
        if one.name in results.failed:
            told.insert(0, f"failed: {results.failed[one.name]}")
        if not one.injects and not one.floor:
            told.append("brings the caller's token upstream")
        rows.append([_name(one), ", ".join(versions), "; ".join(part for part in told if part)])
    yield from _table(["", "versions", ""], rows, words=3)


def _name(one: Candidate) -> str:
    return f"**{one.label}**" if one.name.startswith("ours") else one.label


def _short(need: str) -> str:
    return need.partition(":")[2]


def _stopped(left: Iterable[Left]) -> str:
    times = [one.milliseconds for one in left]
    if not times:
        return "–"
    return "never" if None in times else _number(max(time for time in times if time is not None))


def _errors(errors: dict[str, int] | list[str]) -> str:
    if isinstance(errors, dict):
        return ", ".join(f"{count} {kind}" for kind, count in errors.items()) or "0"
    return f"{len(errors)}: {errors[0]}" if errors else "0"


def _mb(size: float) -> str:
    return f"{max(0.0, size) / 1e6:,.1f}"


def _number(value: float) -> str:
    """Three figures, as people write them."""
    if value == math.inf:
        return "never"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.095 else f"{value:.3f}"


def _table(heads: list[str], rows: list[list[str]], *, words: int = 1) -> Iterator[str]:
    """Markdown with its columns in line: as many of `words` to the left, then figures to the right."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(2, *(len(row[column]) for row in [heads, *rows])) for column in range(len(heads))]
    right = [column >= words for column in range(len(heads))]

    def line(cells: list[str]) -> str:
        aligned = zip(cells, widths, right, strict=True)
        return f"| {' | '.join(cell.rjust(width) if last else cell.ljust(width) for cell, width, last in aligned)} |"

    yield line(heads)
    yield line(["-" * (width - last) + ":" * last for width, last in zip(widths, right, strict=True)])
    for row in rows:
        yield line(row)
