"""What a run needs installed: a Python environment with the peers, the Node peers, and the programs that are there.

Sets up the first two itself, once, under `benchmarks/.setup` and `benchmarks/node/node_modules`. Programs (nginx,
caddy, wrk, node) are the machine's. Whatever can't be had is named with the reason, never dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.candidates import Candidate

HERE = Path(__file__).parent
ROOT = HERE.parent
SETUP = HERE / ".setup"
_NODE = HERE / "node"
_INSTALL_SECONDS = 600

_VERSION_COMMANDS = {
    "nginx": ["nginx", "-v"],
    "caddy": ["caddy", "version"],
    "node": ["node", "--version"],
    "wrk": ["wrk", "-v"],
}
_PYTHON_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class SetupFailed(Exception):
    """Nothing can be measured at all; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """`versions` by need (`python:httpx`), `missing` by candidate with the reason."""

    python: str
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def prepare(candidates: Sequence[Candidate]) -> Environment:
    """Install what is not there yet, and look up what is. Raises `SetupFailed`."""
    SETUP.mkdir(exist_ok=True)
    python = _python_environment()
    needs = sorted({need for candidate in candidates for need in candidate.needs} | {"program:wrk"})
    node_problem = _node_packages() if any(need.startswith("node:") for need in needs) else None
    versions = _versions(needs, python)
    missing = {}
    for candidate in candidates:
        absent = [need for need in candidate.needs if need not in versions]
        if absent:
            # The first is what the candidate is; the rest is what it runs on.
            kind, _, name = absent[0].partition(":")
            reason = f"no {name} on this machine" if kind == "program" else f"{name} could not be installed"
            missing[candidate.name] = f"{reason} ({node_problem})" if kind == "node" and node_problem else reason
    return Environment(python, versions, missing)


def _python_environment() -> str:
    python = SETUP / "venv" / "bin" / "python"
    requirements = HERE / "requirements.txt"
    stamp = SETUP / "venv" / "stamp"
    wanted = _digest(requirements, ROOT / "pyproject.toml", extra=sys.version)
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print("Setting up the Python peers …", file=sys.stderr)
    shutil.rmtree(SETUP / "venv", ignore_errors=True)
    if (problem := _run([sys.executable, "-m", "venv", str(SETUP / "venv")])) is not None:
        raise SetupFailed(f"no virtual environment: {problem}")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if (problem := _run([*pip, "-e", str(ROOT), "-r", str(requirements)])) is not None:
        # One that can't be installed must not take the others with it.
        lines = [line.strip() for line in requirements.read_text().splitlines()]
        pins = [line for line in lines if line and not line.startswith("#")]
        hosts = [pin for pin in pins if pin.startswith(("uvicorn=", "httptools=", "uvloop=", "h11="))]
        if _run([*pip, "-e", str(ROOT), *hosts]) is not None:
            raise SetupFailed(f"pip could not install uvicorn and idp-middleware: {problem}")
        for pin in pins:
            if pin not in hosts and (problem := _run([*pip, pin])) is not None:
                print(f"  {pin}: {problem}", file=sys.stderr)
        # Without the stamp the next run tries again.
        return str(python)
    stamp.write_text(wanted)
    return str(python)


def _node_packages() -> str | None:
    """What is wrong, if anything."""
    if not shutil.which("npm"):
        return "no npm on this machine"
    stamp = _NODE / "node_modules" / ".stamp"
    wanted = _digest(_NODE / "package.json", _NODE / "package-lock.json")
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    print("Setting up the Node peers …", file=sys.stderr)
    problem = _run(["npm", "ci", "--no-fund", "--no-audit", "--loglevel=error"], cwd=_NODE)
    if problem is None:
        stamp.write_text(wanted)
    return problem


def _versions(needs: Iterable[str], python: str) -> dict[str, str]:
    by_kind: dict[str, list[str]] = {"python": [], "node": [], "program": []}
    for need in needs:
        kind, _, name = need.partition(":")
        by_kind[kind].append(name)
    listed = subprocess.run(
        [python, "-c", _PYTHON_VERSIONS, *by_kind["python"]], capture_output=True, text=True, check=True, timeout=60
    )
    found = {f"python:{name}": version for name, version in json.loads(listed.stdout).items()}
    for name in by_kind["node"]:
        manifest = _NODE / "node_modules" / name / "package.json"
        if shutil.which("node") and manifest.exists():
            found[f"node:{name}"] = json.loads(manifest.read_text())["version"]
    for name in by_kind["program"]:
        if shutil.which(name):
            told = subprocess.run(_VERSION_COMMANDS[name], capture_output=True, text=True, timeout=30)
            number = re.search(r"\d+(?:\.\d+)+", told.stdout + told.stderr)
            found[f"program:{name}"] = number[0] if number else "unknown version"
    return found


def _run(command: Sequence[str], cwd: Path | None = None) -> str | None:
    """The last line of what went wrong, if something did."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return type(exc).__name__
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def _digest(*files: Path, extra: str = "") -> str:
    content = b"\0".join(file.read_bytes() for file in files)
    return hashlib.sha256(content + extra.encode()).hexdigest()


def machine() -> str:
    """This machine, in words that tell nobody whose it is."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = platform.release().split("-")[0]
    python = platform.python_version()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB, Linux {kernel}, Python {python}"
