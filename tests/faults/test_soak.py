"""Load and bad luck together, for a short while; `make soak` is the long one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.faults.soak import soak


def test_bad_luck_under_load_harms_nobody_for_long(tmp_path: Path) -> None:
    """No answer is anybody else's, none is lost, and what was taken is given back."""
    figures = asyncio.run(soak(30, tmp_path))
    print(figures)
    assert figures.wrong == []
    assert figures.outcomes["served"] > 600
    assert sum(figures.faults.values()) > 15
    assert figures.at_rest[1] <= figures.samples[0][2] + 10
    # What a process takes in its first seconds; a leak shows in ten minutes, a flood here.
    assert figures.at_rest[0] <= figures.samples[0][1] + 40
