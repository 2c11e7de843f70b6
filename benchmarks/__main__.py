"""The command line: put the parts together, in order, and stop everything at the end."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import environment, load, micro, report, tap, tenant, upstream, workloads
from benchmarks.candidates import CANDIDATES, Candidate
from benchmarks.processes import Processes, StartFailed, split_cores
from benchmarks.results import Results
from benchmarks.rounds import Bench

ROUNDS = 3
SECONDS = 2.0
QUICK_SECONDS = 1.0


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        results = _run(arguments)
    except (environment.SetupFailed, StartFailed) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbenchmarks: interrupted, nothing written", file=sys.stderr)
        return 130
    # A part of the run must not take the place of the published whole.
    partial = arguments.quick or arguments.only
    directory = environment.HERE / ".runs" if partial else environment.HERE
    directory.mkdir(exist_ok=True)
    for path in report.write(results, directory):
        print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)
    print(report.text(results))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a proxied request costs.")
    parser.add_argument("--quick", action="store_true", help="the main candidates and workloads, in a few minutes")
    parser.add_argument(
        "--only",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="NAME,…",
        help=f"only these candidates ({', '.join(one.name for one in CANDIDATES)}) "
        f"and workloads ({', '.join(workloads.NAMES)}); the floor is always measured",
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of load per turn (default {SECONDS:g}, quick {QUICK_SECONDS:g})"
    )
    arguments = parser.parse_args()
    known = {one.name for one in CANDIDATES} | set(workloads.NAMES)
    if unknown := set(arguments.only) - known:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if arguments.seconds is not None and not 0 < arguments.seconds <= 600:
        parser.error("--seconds must be more than 0 and at most 600")
    return arguments


def _chosen(arguments: argparse.Namespace) -> tuple[list[Candidate], list[str]]:
    named = [one for one in CANDIDATES if one.name in arguments.only]
    if named:
        candidates = [one for one in CANDIDATES if one in named or one.floor]
    else:
        candidates = [one for one in CANDIDATES if one.quick or not arguments.quick]
    names = [name for name in workloads.NAMES if name in arguments.only]
    return candidates, names or list(workloads.NAMES)


def _run(arguments: argparse.Namespace) -> Results:
    candidates, names = _chosen(arguments)
    setup = environment.prepare(candidates)
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    core = split_cores()
    results = Results(
        date=time.strftime("%Y-%m-%d"),
        machine=environment.machine(),
        pinned=core is not None,
        quick=arguments.quick,
        rounds=ROUNDS,
        seconds=seconds,
        candidates=candidates,
        versions=setup.versions,
        missing=dict(setup.missing),
        loader=load.name(),
    )
    directory = Path(tempfile.mkdtemp(prefix="idp-middleware-bench-"))
    # Servers that start as root hand their work to another user.
    directory.chmod(0o755)
    try:
        with Processes(directory) as processes:
            ready = [one for one in candidates if one.name not in setup.missing]
            told = tenant.start(processes, setup.python, directory)
            bench = Bench(
                processes=processes,
                directory=directory,
                python=setup.python,
                env=tenant.environment(told["issuer"]),
                caller={
                    "accept": "application/json",
                    "user-agent": "benchmark",
                    "authorization": f"Bearer {told['token']}",
                },
                core=core,
                rounds=ROUNDS,
                seconds=seconds,
                say=_say,
            )
            _measure(bench, processes, directory, ready, names, results, arguments.quick)
            results.failed = bench.failed
        if workloads.MICRO in names:
            _say("pieces, one by one")
            results.micro = micro.run(setup.python, core, quick=arguments.quick)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        _say("")
    return results


def _measure(
    bench: Bench,
    processes: Processes,
    directory: Path,
    candidates: list[Candidate],
    names: list[str],
    results: Results,
    quick: bool,
) -> None:
    api, results.upstream = upstream.start(processes, directory)
    long_bodies = tap.start(processes)
    for small in workloads.SMALL:
        if small.name in names:
            counts = small.quick if quick else workloads.CONNECTIONS
            for (count, candidate), cell in bench.small(small, candidates, counts, api.port).items():
                results.small[small.name, count, candidate] = cell
    for direction in ("down", "up"):
        if direction in names:
            results.bulk[direction] = bench.transfers(direction, candidates, long_bodies.port)
    if "slow-reader" in names:
        results.bulk["slow-reader"] = bench.slow_reader(candidates, long_bodies.port)
    if "leaver" in names:
        results.bulk["leaver"] = bench.leaver(candidates, long_bodies.port)


def _say(text: str) -> None:
    """One line that is always the latest, on a terminal; elsewhere too much to keep is left out."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text and ", round " not in text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
