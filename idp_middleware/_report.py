"""How findings are shown: one line each with what to do below it, in colour where somebody sees it, or as JSON.

Knows nothing of how they came about. `VERSION` counts the shapes of the JSON: members may be added without a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Final, TextIO

from idp_middleware._check import FAILED, OK, WARNING, Finding
from idp_middleware.errors import ConfigurationError

VERSION: Final = 1

_COLOURS: Final = {OK: "32", WARNING: "33", FAILED: "1;31"}
_INDENT: Final = " " * 30


def in_colour(stream: TextIO) -> bool:
    """Whether colour would be seen, and is wanted (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def as_text(findings: Iterable[Finding], *, colour: bool = False) -> str:
    """One line for each; below a bad one, what to do."""
    lines = []
    for finding in findings:
        line = str(finding)
        if colour:
            line = f"\033[{_COLOURS[finding.status]}m{line[:6]}\033[0m{line[6:]}"
        lines.append(line)
        if finding.todo:
            lines.append(f"{_INDENT}to do: {finding.todo}")
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> str:
    """The same for machines; docs/commands.md has the members."""
    listed = [
        {
            "part": finding.part,
            "name": finding.name,
            "status": finding.status,
            "detail": finding.detail,
            "todo": finding.todo,
        }
        for finding in findings
    ]
    ok = all(finding["status"] != FAILED for finding in listed)
    return json.dumps({"version": VERSION, "ok": ok, "findings": listed}, indent=2)


def of_file(path: str, error: ConfigurationError) -> Finding:
    """A file that could not even be read."""
    return Finding("file", path, FAILED, str(error), "mend that line of the file, or set the variable it names")
