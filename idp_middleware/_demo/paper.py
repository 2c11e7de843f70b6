"""How the demo's output looks: labels in a column, colour where somebody would see it. Knows nothing of the demo."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from typing import TextIO

_LABEL = 18
_WIDTH = 100


class Paper:
    """Writes to a stream; with colour only on a terminal, and never against https://no-color.org."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def line(self, text: str = "") -> None:
        # Flushed, so that what is read through a pipe comes while it happens.
        try:
            print(text, file=self._stream, flush=True)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            print(text.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)

    def title(self, text: str) -> None:
        self.line(self._styled("1", text))

    def entry(self, label: str, lines: Iterable[str]) -> None:
        """Lines beside one label."""
        self._column(f"  {label:<{_LABEL}}", "2", lines)

    def verdicts(self, verdicts: Iterable[tuple[str, bool]]) -> None:
        """What went well, together, and each thing that did not."""
        verdicts = list(verdicts)
        if good := [text for text, ok in verdicts if ok]:
            self._column(f"  {'ok':<{_LABEL}}", "32", ["; ".join(good)])
        for text, ok in verdicts:
            if not ok:
                self._column(f"  {'WRONG':<{_LABEL}}", "1;31", [f"not true: {text}"])

    def _column(self, label: str, code: str, lines: Iterable[str]) -> None:
        # Long lines are broken, so that the column stays one.
        for text in lines:
            for part in textwrap.wrap(text, _WIDTH - len(label), break_on_hyphens=False):
                self.line(self._styled(code, label) + part)
                label = " " * len(label)

    def _styled(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text
