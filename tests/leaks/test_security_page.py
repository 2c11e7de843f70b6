"""SECURITY.md ties each claim to a test: the test has to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.leaks.canaries import ENCODINGS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_what_a_claim_is_tied_to_exists(file: str, function: str) -> None:
    """A test that was renamed leaves a claim without anything behind it."""
    text = (TESTS / file).read_text()
    assert not function or re.search(rf"^ *(?:async )?def {function}\(", text, re.MULTILINE)


def test_every_rule_is_tied_to_something() -> None:
    """A rule that nothing keeps is a wish."""
    rules = PAGE.partition("| rule |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rules) > 15
    assert [rule for rule in rules if not re.search(r"`(?:\w+/)?test_\w+\.py", rule)] == []


def test_the_number_of_encodings_is_the_number_of_encodings() -> None:
    """The only one on the page."""
    assert re.findall(r"in (\d+) encodings", PAGE) == [str(len(ENCODINGS))]
