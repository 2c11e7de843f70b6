"""The help of every command, as it is: a change is seen, and meant. `python -m tests.test_cli_help` writes it anew."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from idp_middleware._cli import _parser

SNAPSHOT = Path(__file__).parent / "snapshots" / "help.txt"
PAGE = Path(__file__).parent.parent / "docs" / "commands.md"


def commands() -> list[str]:
    (action,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return list(action.choices)


def help_of_all() -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    texts = []
    for command in ([], *([name] for name in commands())):
        arguments = [*command, "--help"]
        done = subprocess.run(
            [sys.executable, "-m", "idp_middleware", *arguments], capture_output=True, text=True, env=environment
        )
        texts.append(f"$ idp-middleware {' '.join(arguments)}\n{done.stdout}")
    text = "\n".join(texts)
    # Pythons differ in how they break the usage line, and in nothing else that is looked at.
    return re.sub(r"usage: .*?\n\n", lambda usage: " ".join(usage[0].split()) + "\n\n", text, flags=re.S)


def test_the_help_is_what_it_was() -> None:
    """What people type; and it has to be on the page of commands."""
    assert help_of_all() == SNAPSHOT.read_text(), "if that is meant: python -m tests.test_cli_help"


def test_the_page_of_commands_names_every_command_and_option() -> None:
    """So that neither can be forgotten."""
    page, text = PAGE.read_text(), SNAPSHOT.read_text()
    for name in commands():
        assert f"idp-middleware {name}" in page
    for option in set(re.findall(r"^  (--[a-z-]+)", text, re.M)):
        assert option in page, option


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(help_of_all())
