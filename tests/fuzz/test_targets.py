"""The fuzzer's targets, without the fuzzer: they run, and they would notice."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import targets
from tests.fuzz.targets import TARGETS, Target


def mutations(target: Target, number: int) -> list[bytes]:
    """Seeds with a piece of them replaced by a word of the target's, or by chance."""
    chance = random.Random(7)
    made = []
    for _ in range(number):
        seed = chance.choice(target.seeds)
        start, end = sorted((chance.randint(0, len(seed)), chance.randint(0, len(seed))))
        end = min(end, start + chance.randint(0, 12))
        made.append(
            seed[:start] + (chance.choice(target.words) if chance.random() < 0.7 else chance.randbytes(3)) + seed[end:]
        )
    return made


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_must_hold_holds_for_seeds_and_their_neighbours(target: Target) -> None:
    """A short walk from each; `make fuzz` goes further."""
    for data in (*target.seeds, *mutations(target, 300)):
        target.run(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_seed_gets_all_the_way(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose every input is refused early would find nothing."""
    if target.name == "target":
        with pytest.raises(AssertionError):
            monkeypatch.setattr(targets, "BASE", b"/another")
            target.run(target.seeds[0])
        return
    callers = []
    judge = targets.caller_of

    def kept(*arguments: object) -> object:
        callers.append(judge(*arguments))
        return callers[-1]

    monkeypatch.setattr(targets, "caller_of", kept)
    target.run(target.seeds[0])
    assert callers[0] is not None
