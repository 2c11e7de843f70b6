"""Docstrings as Markdown: their prose, and the arguments that they describe."""

from __future__ import annotations

import inspect
import re


class Described:
    """A docstring in its parts."""

    def __init__(self, thing: object) -> None:
        text = inspect.getdoc(thing) or ""
        self.prose, _, rest = re.sub(r"\n\s*Raises:\n.*?(?=\n\S|\Z)", "", text, flags=re.S).partition("\nArgs:\n")
        self.prose = self.prose.strip()
        self.arguments = {
            name: " ".join(meaning.split())
            for name, meaning in re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", rest, re.M | re.S)
        }

    @property
    def first(self) -> str:
        """The first paragraph."""
        return " ".join(self.prose.partition("\n\n")[0].split())


def linked(text: str) -> str:
    """With plain URLs as links, short ones."""
    return re.sub(r"(?<![<(`])https://[^\s,`)]+[^\s,.;`)]", lambda url: f"<{url[0]}>", text)
