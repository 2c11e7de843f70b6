"""The harness, turned against builds that leak: it finds what they do, and where."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.leaks.leaky import LEAKS
from tests.leaks.set_ups import SET_UPS
from tests.leaks.world import world


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found_where_it_is_and_nowhere_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A harness that can't fail proves nothing; one that points elsewhere helps nobody."""
    leak = LEAKS[name]
    monkeypatch.chdir(tmp_path)
    with world(SET_UPS[leak.set_up], tmp_path, **leak.options) as made:
        leak.run(made)
        # A task that failed is told of when it is let go of.
        gc.collect()
    made.sinks.put("the output", "".join(capfd.readouterr()))
    assert {(found.canary, found.sink) for found in made.leaks()} == leak.places
