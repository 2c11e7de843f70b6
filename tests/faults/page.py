"""The matrix as the page that it is in `docs/`.

Knows Markdown, and nothing of how a cell is tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.ground import PATIENCE, WITH_PROVIDERS
from tests.faults.matrix import PARTIES, Cell, Party, Tried, cells
from tests.faults.proxy import FAULTS

PAGE = Path(__file__).parents[2] / "docs" / "fault-matrix.md"

_MEANS: Mapping[str, str] = {
    "refuse": "nobody listens",
    "black hole": "whoever is there says nothing, and takes nothing",
    "delay": "a fifth of a second, less than any time-out",
    "cut": "the connection ends (FIN)",
    "reset": "the connection ends (RST)",
    "trickle": "a byte every 20 ms, from there on",
    "garbage": "64 bytes that mean nothing are pushed in",
    "stranger": "somebody who speaks another protocol (SMTP; HTTP in place of TLS or Redis) answers, and hangs up",
}

_HEAD = """\
# When something breaks

Who is behind the gateway may be down, slow, or not who they should be, and so may who is in front; the network may do
anything. Here is what a caller gets then: for each party, each fault, and each moment at which it can set in.

This page is written by `tests/faults/test_matrix.py`, which tries every cell on real sockets through a proxy that
breaks connections, and fails where one turns out otherwise than it stands here.

## How to read it

- **`502 upstream-unreachable`** and the like is an answer of ours, by its status and the name of its problem.
  **served** is the upstream's answer, whole. **broken off**: its head had been passed on, so the caller's connection is
  broken; a body that is not whole is never ended cleanly. **the upstream's 401** is passed on as it came.
- Behind that, how long it took: nothing for at once (a delay included), else **the time-out that ended it**. **slowly**
  is as fast as the bytes came.
- **✓** is true of every cell that was tried, or the test fails: the request came to an end; once the fault was over,
  the next request was served (after as long as `Retry-After` said, where it said so); no request, task or connection
  stayed behind; no secret was in what the caller got or in the log; and the answer was its own user's.
- **—** is a cell without sense, with the reason.

The time-outs here are shorter than anybody's: towards an upstream {connect:g} s to connect, {read:g} s to read,
{write:g} s to write (a route's `timeout`, by default 5, 60 and 60); towards an identity provider {idp_connect:g} s to
connect, {idp_read:g} s to read, {total:g} s in total (a source's `timeout`, by default 5, 10 and 25). The shared
cache's patience is a second.

| fault | what happens |
|---|---|
"""


def rendered(tried: Mapping[Cell, str]) -> str:
    """The whole page."""
    idp = WITH_PROVIDERS
    head = _HEAD.format(
        connect=PATIENCE.connect,
        read=PATIENCE.read,
        write=PATIENCE.write,
        idp_connect=idp.connect,
        idp_read=idp.read,
        total=idp.connect + idp.read + idp.write,
    )
    means = "\n".join(f"| {fault} | {_MEANS[fault]} |" for fault in FAULTS)
    return head + means + "\n" + "".join(_table(party, tried) for party in PARTIES)


def _table(party: Party, tried: Mapping[Cell, str]) -> str:
    columns = [party.columns.get(stage, stage) for stage in party.stages]
    lines = ["", f"## {party.name}", "", party.says, "", _row("fault", columns), _row("---", ["---"] * len(columns))]
    by_place = {(cell.fault, cell.column): cell for cell in cells() if cell.party is party}
    rows = (
        _row(f"**{fault}**", [written(by_place[fault, stage], tried) for stage in party.stages]) for fault in FAULTS
    )
    return "\n".join([*lines, *rows]) + "\n"


def written(cell: Cell, tried: Mapping[Cell, str]) -> str:
    """What stands in a cell."""
    return f"— {cell.senseless}" if cell.senseless else tried.get(cell, "")


def said(tried: Tried) -> str:
    """What a cell says that was tried."""
    answer = f"`{tried.answer}`" if tried.answer[0].isdigit() else tried.answer
    return ", ".join(filter(None, (answer, tried.time))) + (" ✓" if not tried.wrong else f" ✗ {'; '.join(tried.wrong)}")


def read(text: str) -> dict[tuple[str, str, str], str]:
    """The cells of a page: party, fault and column → what it says."""
    found: dict[tuple[str, str, str], str] = {}
    party, stages = "", {party.name: party.stages for party in PARTIES}
    for line in text.splitlines():
        if line.startswith("## "):
            party = line[3:]
        elif line.startswith("| **") and party in stages:
            fault, *said = (cell.strip() for cell in line.strip("|").split("|"))
            found.update(
                {(party, fault.strip("*"), stage): each for stage, each in zip(stages[party], said, strict=True)}
            )
    return found


def _row(first: str, rest: list[str]) -> str:
    return f"| {' | '.join([first, *rest])} |"
