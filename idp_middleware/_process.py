"""What a process that is ours alone sets for itself; a library in somebody's app leaves this to the app."""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 20_000
"""Objects made and not yet dropped before Python looks for cycles among them; its own 700 are what a dozen requests
under way hold, so that at 256 connections it would look all the time (a seventh of all CPU) and find nothing."""


def settle() -> None:
    """Have Python look for cycles as seldom as suits many requests under way; what has none is freed at once anyway."""
    _, *older = gc.get_threshold()
    gc.set_threshold(YOUNG, *older)
