"""Runs the shell of a page: all its blocks, as one script of a real bash that ends where a command fails.

What a page's reader has is there: `idp.toml` and `app.py` as the blocks above have them, the variables, a caller's
`$TOKEN`; and the commands of an environment that has what `pip install` brought, which installs the wheel of this very
source. The tenant and the API are those of `at_home`, and the port is a free one. Commands go to bash as they are,
save that

- a server runs in the background, and has to answer before the next line is run; another one, or the end of the block,
  ends it as Ctrl-C would;
- `curl` fails where the answer is an error;
- what starts with `make` is run in a copy of the project, with the environment of the tests; `MAKE_ONLY_TOLD` has those
  targets that are only looked up.

Knows shell, not pages: what a page's blocks are is told by `pages`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.at_home import AUDIENCE, Home
from tests.pages import ROOT, Block, blocks, configuration, environment
from tests.stack import free_port

MAKE_ONLY_TOLD = {
    "test": "is what runs this",
    "check": "CI runs it beside this, and it takes minutes",
    "dist": "runs test_dist.py with the package index",
    "fuzz": "takes hours; tests/fuzz runs some of it",
    "bench": "takes minutes, and needs a machine of its own; test_benchmarks.py runs some of it",
}
_SERVER = re.compile(r"(\w+=\S+ +)*(uvicorn|idp-middleware serve|(make|idp-middleware) demo(?!.*--once))\b")
_PRELUDE = """
set -emu
export PATH={path}
server=
stop() {{
  if [ -n "$server" ]; then
    kill -INT -- "-$server"
    wait "$server" || [ $? -eq 130 ]
    server=
  fi
}}
trap '[ -z "$server" ] || kill -KILL -- "-$server"' EXIT
serving() {{
  stop
  "$@" &
  server=$!
  until command curl -s -o /dev/null http://127.0.0.1:{port}/; do
    kill -0 "$server" || exit 1
    sleep 0.1
  done
}}
curl() {{ command curl -sS --fail-with-body "$@" && echo; }}
"""
_MOVING = """
import sys
from pathlib import Path
file = Path(sys.argv[1])
text = file.read_text()
for place in places.items():
    text = text.replace(*place)
file.write_text(text)
"""


@dataclass(frozen=True)
class Environment:
    """A new one, in which pip installs the project's wheel, and finds everything else in that of the tests."""

    directory: Path
    wheels: Path

    @property
    def commands(self) -> Path:
        return Path(self._paths["scripts"])

    @property
    def _paths(self) -> Mapping[str, str]:
        base = str(self.directory)
        return sysconfig.get_paths("venv", {"base": base, "platbase": base})

    def create(self) -> Environment:
        venv.create(self.directory)
        libraries = self.directory / "libraries"
        libraries.mkdir()
        for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not re.match(r"_*(editable_impl_)?(pytest_)?idp_middleware", path.name):
                (libraries / path.name).symlink_to(path)
        Path(self._paths["purelib"], "libraries.pth").write_text(str(libraries))
        python = self.commands / "python"
        _program(self.commands / "pip", f"#!/bin/sh\nexec '{sys.executable}' -m pip --python '{python}' \"$@\"\n")
        _program(self.commands / "uvicorn", f"#!/bin/sh\nexec '{python}' -m uvicorn \"$@\"\n")
        return self

    def install(self) -> Environment:
        """What `pip install idp-middleware` does."""
        pip = [self.commands / "pip", "install", "-q", "idp-middleware"]
        subprocess.run(pip, env={**os.environ, **self.variables}, check=True, timeout=120)
        return self

    @property
    def variables(self) -> dict[str, str]:
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def wheel(directory: Path) -> Path:
    """A directory with the wheel of this source."""
    build = [sys.executable, "-m", "build", "-q", "--no-isolation", "--wheel", "--outdir", directory, ROOT]
    subprocess.run(build, check=True, timeout=120, capture_output=True)
    return directory


def copy_of_the_project(directory: Path) -> Path:
    """What belongs to it, as it is now."""
    listed = ["."]
    if (ROOT / ".git").exists():
        git = ["git", "ls-files", "-co", "--exclude-standard"]
        listed = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in listed:
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, dirs_exist_ok=True)
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, place)
    return directory


def commands(block: Block) -> Iterator[str]:
    """Its lines, long ones as one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s+)#.*", "", line).strip():
            yield command


def script(page: str, home: Home, project: Path, port: int) -> str:
    """The page's shell, with the files that stand above it written where it runs."""
    lines: list[str] = []
    shown = [block for block in blocks() if block.page == page]
    example = blocks("toml")[0].text
    above: dict[str, str] = {}
    if not any(block.language == "toml" or "idp-middleware init" in block.text for block in shown):
        above["idp.toml"] = example
    for block in shown:
        if block.language == "toml":
            alone = not re.search(r"^\[+(authenticator|sources|routes)\b", block.text, re.M)
            above["idp.toml"] = configuration(block.text + example if alone else block.text)
        elif block.language == "python" and re.search(r"^app = ", block.text, re.M):
            above["app.py"] = block.text
        elif block.language == "sh":
            makes = block.text.startswith("make ")
            lines.append(f"cd {project}; export PYTHONPATH={project}" if makes else "cd ~; unset PYTHONPATH")
            for name, text in above.items():
                lines.append(f"cat >~/{name} <<'END-OF-FILE'\n{home.at_home(text)}\nEND-OF-FILE")
                lines += [f"export {key}='{value}'" for key, value in environment(text).items()]
            above.clear()
            lines += [_as_run(command.replace("8000", str(port)), port) for command in commands(block)]
            lines.append("stop")
    return "\n".join(lines)


def _as_run(command: str, port: int) -> str:
    shown = f"echo {_quoted('$ ' + command)}\n"
    if command.startswith("make ") and (command.split()[1]) in MAKE_ONLY_TOLD:
        return f"{shown}make -n {command.removeprefix('make ')} >/dev/null"
    if command.startswith("idp-middleware init "):
        return f"{shown}{command}\nat-home idp.toml"
    if _SERVER.match(command):
        option = f"--port {port}"
        if "demo" in command and "make" in command:
            command += f' DEMO="{option}"'
        elif "--port" not in command:
            command += f" {option}"
        return f"{shown}serving env {command}"
    return shown + command


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def run(page: str, home: Home, where: Path, environment: Environment, project: Path) -> str:
    """What the page's shell says. Fails where a command does."""
    port = free_port()
    tools = where / "tools"
    there = where / "home"
    for directory in (tools, there):
        directory.mkdir()
    (there / "token.txt").write_text(home.token())
    _program(tools / "at-home", f"#!{sys.executable}\nplaces = {home.places!r}\n{_MOVING}")
    made = sys.prefix
    stamps = f"-o '{made}/.dev' -o '{made}/.demo'"
    _program(tools / "make", f"#!/bin/sh\nexec '{shutil.which('make')}' VENV='{made}' {stamps} \"$@\"\n")
    prelude = _PRELUDE.format(path=f"{tools}:{environment.commands}:$PATH", port=port)
    done = subprocess.run(
        ["bash", "-c", prelude + script(page, home, project, port)],
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE", "VIRTUAL"))},
            **environment.variables,
            "HOME": str(there),
            "NO_PROXY": "*",
            "AUTH0_CLIENT_ID": "the-auth0-client-id",
            "AUTH0_CLIENT_SECRET": "the-auth0-client-secret",
            "IDP_AUDIENCE": AUDIENCE,
            "TOKEN": home.token(),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{page}: status {done.returncode}\n{done.stdout}"
    return done.stdout
