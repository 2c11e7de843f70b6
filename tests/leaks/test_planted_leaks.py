"""The harness, turned against builds that leak: it finds what they do, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.leaks.leaky import LEAKS, found


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found_where_it_is_and_nowhere_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A harness that can't fail proves nothing; one that points elsewhere helps nobody."""
    assert found(LEAKS[name], tmp_path, monkeypatch, capfd) == LEAKS[name].places
