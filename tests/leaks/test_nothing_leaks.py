"""In whatever happens, no secret is where it does not belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.leaks.canaries import ENCODINGS
from tests.leaks.scenarios.table import SCENARIOS, Scenario
from tests.leaks.set_ups import SET_UPS
from tests.leaks.sinks import SINKS
from tests.leaks.world import Leak, world


def happened(
    scenario: Scenario, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> set[Leak]:
    monkeypatch.chdir(folder)
    with world(SET_UPS[scenario.set_up], folder, **scenario.options) as made:
        scenario.run(made)
    made.sinks.put("the output", "".join(capfd.readouterr()))
    return made.leaks()


@pytest.mark.parametrize("scenario", [pytest.param(each, id=each.name) for each in SCENARIOS])
def test_no_secret_leaves_on_the_wrong_side(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Looked for in all that the caller, the upstream and the identity provider got, in logs, output and files."""
    assert happened(scenario, tmp_path, monkeypatch, capfd) == set()


def test_how_much_that_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Each name once, and the number for whoever asks."""
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    looked = len(SCENARIOS) * len(SINKS) * len(ENCODINGS)
    with capsys.disabled():
        print(f"\n{len(SCENARIOS)} scenarios × {len(SINKS)} sinks × {len(ENCODINGS)} encodings = {looked:,} looks")
