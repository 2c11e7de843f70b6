"""The benchmark's own parts, as far as a machine without any peer runs them. Nothing here looks at the clock."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

# Not a part of the installed package.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import bulk, load, report, tap, upstream
from benchmarks.bulk import Left
from benchmarks.candidates import CANDIDATES
from benchmarks.marks import marks
from benchmarks.measure import usage
from benchmarks.micro import Piece
from benchmarks.processes import Processes
from benchmarks.results import Results
from benchmarks.rounds import BulkCell, SmallCell


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither wrk nor nginx, so that what is bundled has to do."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("bare_machine")
def test_the_bundled_loader_counts_answers_and_notices_bad_ones(tmp_path: Path) -> None:
    """A loader that takes a wrong or a short answer for a good one would make broken proxies look fast."""
    with Processes(tmp_path) as processes:
        server, name = upstream.start(processes, tmp_path)
        assert name.startswith("bundled")
        assert usage(server.pid).rss > 0
        good = load.run(load.Request("/json", 1024), server.port, 2, 0.5)
        post = load.run(load.Request("/post", 1024, "POST", 1024), server.port, 2, 0.5)
        short = load.run(load.Request("/json", 2048), server.port, 1, 0.1)
        opened = []
        absent = load.run(
            load.Request("/absent", 0),
            server.port,
            1,
            0.2,
            opening=0.4,
            opened=lambda: opened.append(usage(server.pid)),
        )
    assert good.requests > 0
    assert post.requests > 0
    assert good.errors == post.errors == {}
    assert 0 < good.p50 <= good.p99
    assert short.errors["short"] > 0
    # What was sent while connections were opened is seen, but not counted.
    assert absent.errors["status"] > absent.requests > 0
    assert len(opened) == 1


def test_processes_are_gone_after_an_error(tmp_path: Path) -> None:
    """An interrupted run must not leave servers behind."""
    with contextlib.suppress(KeyboardInterrupt), Processes(tmp_path) as processes:
        server = tap.start(processes)
        assert server.alive
        raise KeyboardInterrupt
    assert not server.alive


def test_the_tap_tells_whole_bodies_from_broken_ones(tmp_path: Path) -> None:
    """The witness of long bodies has to be right before a proxy is put in front of it."""
    with Processes(tmp_path) as processes:
        port = tap.start(processes).port
        target = bulk.Target(port, "", {"authorization": "Bearer x"}, port)
        assert bulk.whoami(target) == "Bearer x"
        bulk.download(target, 1_000_000)
        bulk.upload(target, 1_000_000)
        left = bulk.leave(target, 200_000_000)
        assert left.milliseconds is not None
        assert left.pulled < 199_000_000
        assert bulk.leave_quietly(target).milliseconds is not None
        assert bulk.slow_read(target, 100_000_000, 0.2).held < 1_000_000


def _results() -> Results:
    cell = SmallCell([52.0, 50.0, 51.0], [19000.0] * 3, [1.6] * 3, [3.1] * 3, 60_000_000, 100_000)
    slow = SmallCell([3100.0], [320.0], [90.0], [425.0], errors={"timeout": 3})
    floor = SmallCell([33.0] * 3, [29000.0] * 3, [1.0] * 3, [2.7] * 3)
    return Results(
        date="2026-01-31",
        machine="a machine",
        pinned=True,
        quick=False,
        rounds=3,
        seconds=2.0,
        loader="wrk",
        upstream="nginx",
        candidates=CANDIDATES,
        versions={"python:uvicorn": "0.54.0"},
        missing={"caddy": "no caddy on this machine"},
        failed={"asgiproxy": "ended with status 1"},
        small={
            ("get-1k", 32, "floor"): floor,
            ("get-1k", 32, "ours"): cell,
            ("get-1k", 32, "fastapi-proxy-lib"): slow,
            ("get-1k", 32, "httpx"): SmallCell(errors={"no answer in time": 1}),
        },
        bulk={
            "down": {"ours": BulkCell([110.0], [970.0], 1_100_000), "nginx": BulkCell([120.0], [839.0])},
            "slow-reader": {
                "ours": BulkCell(ahead=bulk.Ahead(4_000_000, 100_000)),
                "httpx": BulkCell(errors=["timeout"]),
            },
            "leaver": {"ours": BulkCell(left=[Left(12.5, 70_000)], left_quietly=[Left(None, 0)])},
        },
        micro=[Piece("size", "many routes", 51.0, 50.0)],
    )


def test_the_report_names_everybody_and_every_error(tmp_path: Path) -> None:
    """Whoever could not be measured is said so; dropping a row would be a claim about it."""
    written = report.write(_results(), tmp_path)
    text = (tmp_path / "results.md").read_text("utf-8")
    rows = {
        line.split("|")[1].strip(" *"): line
        for line in text.partition("## GET")[2].partition("##")[0].splitlines()
        if "|" in line
    }
    assert "51.0" in rows["idp_middleware, the whole way (idp-middleware serve)"]
    assert "1.55" in rows["idp_middleware, the whole way (idp-middleware serve)"]
    assert "3 timeout" in rows["fastapi-proxy-lib"]
    assert "no answer in time" in rows["httpx.AsyncClient.stream in a raw ASGI app"]
    assert "not installed" in rows["caddy reverse_proxy"]
    assert "failed" in rows["asgiproxy"]
    assert "no caddy on this machine" in text
    assert "never" in text
    assert all(one.label in text for one in CANDIDATES)
    assert [path.name for path in written] == ["results.md", "chart.svg"]


def test_the_chart_is_well_formed_and_marks_the_floor(tmp_path: Path) -> None:
    """README shows it, and a browser shows a broken SVG as nothing."""
    report.write(_results(), tmp_path)
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "51 µs · 1.5 ×" in texts
    assert any("the floor" in text for text in texts)
    assert root.find(".//*[@class='floor-line']") is not None


def test_a_mark_that_was_not_measured_is_neither_met_nor_missed() -> None:
    """A partial run must not pass what it never looked at."""
    verdicts = {mark.text: mark.met for mark in marks(_results())}
    assert verdicts["1 KB, 32 connections, the whole way, of the floor"] is True
    assert verdicts["… of caddy"] is None
    assert verdicts["… of fastapi-proxy-lib"] is True
    assert verdicts["many routes"] is True
