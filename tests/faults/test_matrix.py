"""Whatever breaks, wherever: a caller is answered in time or broken off, and nothing is left behind.

With `FAULT_MATRIX=write` (`make fault-matrix`) the page is written anew, for its difference to be read.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.faults.attempts import try_all
from tests.faults.ground import ground
from tests.faults.matrix import Cell, cells
from tests.faults.page import PAGE, read, rendered, said, written
from tests.stack import eventually

SENSIBLE = [cell for cell in cells() if not cell.senseless]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Matrix:
    """All that was tried, once for all tests here."""

    def __init__(self, folder: Path) -> None:
        # What is opened once and kept, as certificates and log files are, is open by then.
        with ground(folder):
            pass
        files = open_files()
        with ground(folder) as parties:
            self.parties = parties
            self.tried = asyncio.run(try_all(parties, SENSIBLE))
            again = self._otherwise()
            for number, cell in enumerate(again):
                # A busy machine is slow, and then a time is called by another name: once more, with nothing beside it.
                self.tried |= asyncio.run(try_all(parties, [cell], first=1000 + number))
            self.log = "\n".join(parties.log)
        self.files_left = eventually(lambda: open_files() <= files or None) and open_files() - files

    def _otherwise(self) -> list[Cell]:
        page = read(PAGE.read_text()) if PAGE.exists() else {}
        return [cell for cell in SENSIBLE if page.get(_place(cell)) != said(self.tried[cell])][:40]


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.party.name, cell.fault, cell.column


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"))


def test_each_fault_at_each_stage_gives_what_the_page_says(matrix: Matrix) -> None:
    """The page is a promise; a cell that changed is either a bug or a decision."""
    answers = {cell: said(tried) for cell, tried in matrix.tried.items()}
    if os.environ.get("FAULT_MATRIX") == "write":
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(rendered(answers))
    page = read(PAGE.read_text())
    differ = {
        _place(cell): (page.get(_place(cell)), answers[cell])
        for cell in SENSIBLE
        if page.get(_place(cell)) != answers[cell]
    }
    assert not differ, "the page says the first, it was the second (make fault-matrix writes the page)"
    assert PAGE.read_text() == rendered(answers)


def test_no_cell_is_empty() -> None:
    """Each says what happens, or why nothing can."""
    page = read(PAGE.read_text())
    assert set(page) == {_place(cell) for cell in cells()}
    assert all(page.values())
    assert all(page[_place(cell)] == written(cell, {}) for cell in cells() if cell.senseless)


def test_nothing_is_left_behind(matrix: Matrix) -> None:
    """No cell may hang, or leave a request, a task, a connection or a poisoned pool; together they leave no file."""
    assert {_place(cell): tried.wrong for cell, tried in matrix.tried.items() if tried.wrong} == {}
    assert matrix.files_left == 0


def test_no_token_is_anybody_elses(matrix: Matrix) -> None:
    """Each request says whom it is for, and went out with that user's token or not at all."""
    sent = [(request.bearer or "", request.query) for request in matrix.parties.provider.requests]
    assert len(sent) > len(SENSIBLE)
    assert [query for token, query in sent if query != f"for={matrix.parties.owners[token]}"] == []


def test_no_secret_comes_out(matrix: Matrix) -> None:
    """Not to a caller, not into the log at DEBUG, whatever broke where."""
    canaries = matrix.parties.canaries
    heard = b"\n".join(heard.raw for tried in matrix.tried.values() for heard in tried.heard)
    assert matrix.log
    assert canaries.find(heard) == set()
    assert canaries.find(matrix.log) == set()
