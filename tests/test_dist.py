"""What is released: the wheel and the sdist, built, looked into, and tried as installed.

Here without an index: the environment is a new one with the wheel in it, and takes the libraries from the one that the
tests run in. `make dist` has all of it as users do: an isolated build, and the libraries that the wheel asks for.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

from idp_middleware import __version__

ROOT = Path(__file__).parent.parent
WITH_INDEX = os.environ.get("IDP_DIST") == "index"
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "VIRTUAL"))}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=OUTSIDE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, to: Path) -> Path:
    isolated = () if WITH_INDEX else ("--no-isolation",)
    run(sys.executable, "-m", "build", *isolated, f"--{kind}", "--outdir", to, source, cwd=to)
    (made,) = to.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def in_wheel(wheel: Path) -> Mapping[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def tracked(under: str = ".") -> set[str]:
    """What belongs to the project: a checkout knows, and an unpacked sdist has little else."""
    if (ROOT / ".git").exists():
        return set(run("git", "ls-files", under, cwd=ROOT).splitlines())
    files = (ROOT / under).rglob("*")
    return {str(file.relative_to(ROOT)) for file in files if file.is_file() and "__pycache__" not in file.parts}


def test_the_wheel_has_the_package_with_all_its_files_and_nothing_else(in_wheel: Mapping[str, bytes]) -> None:
    """Pages and icons too; tests and benchmarks would be importable by everybody who installs it."""
    ours = tracked("idp_middleware")
    assert len([name for name in ours if not name.endswith(".py")]) > 5
    assert ours - set(in_wheel) == set()
    pages = {name.removeprefix("docs/errors/") for name in tracked("docs/errors")}
    assert {f"idp_middleware/_pages/{name}" for name in pages} == {
        name for name in in_wheel if name.startswith("idp_middleware/_pages/")
    }
    others = {name.partition("/")[0] for name in in_wheel} - {"idp_middleware"}
    assert others == {f"idp_middleware-{__version__}.dist-info", "pytest_idp_middleware.py"}
    assert not [name for name in in_wheel if re.search(r"(^|/)(tests?|bench\w*|__pycache__|\.\w+)/", name)]


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """Byte for byte: who builds from source has what everybody has. And the tests come with it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"idp_middleware-{__version__}"
    (tmp_path / "again").mkdir()
    assert build("wheel", source, tmp_path / "again").read_bytes() == wheel.read_bytes()
    there = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
    if (ROOT / ".git").exists():
        assert tracked() - there == set()
        # What git ignores is nobody's business; what somebody is about to add is.
        about_to = set(run("git", "ls-files", "--others", "--exclude-standard", cwd=ROOT).splitlines())
        assert there - tracked() - about_to == {"PKG-INFO"}


def test_the_metadata_is_what_an_index_shows(in_wheel: Mapping[str, bytes]) -> None:
    """Version, licence, types, what it needs; and the extras that the documentation names."""
    metadata = Parser().parsestr(in_wheel[f"idp_middleware-{__version__}.dist-info/METADATA"].decode())
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "idp-middleware",
        __version__,
        "MIT",
    )
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) >= {
        "demo",
        "server",
        "redis",
        "sqlalchemy",
        "websocket",
        "oauth1",
    }
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert f"idp_middleware-{__version__}.dist-info/licenses/LICENSE" in in_wheel


def test_the_version_is_written_in_one_place() -> None:
    """Two would differ one day. The changelog has a section for what is to come, or for this one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    module = ast.parse((ROOT / "idp_middleware/_version.py").read_text())
    assert [node.value for node in ast.walk(module) if isinstance(node, ast.Constant)][-1] == __version__
    elsewhere = {name for name in tracked("idp_middleware") if __version__.encode() in (ROOT / name).read_bytes()}
    assert elsewhere == {"idp_middleware/_version.py"}
    newest, entries = re.findall(
        r"^## \[(.+?)\].*?\n(.*?)(?=^## |\Z)", (ROOT / "CHANGELOG.md").read_text(), re.M | re.S
    )[0]
    assert newest in ("Unreleased", __version__)
    assert "\n- " in entries


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are of an environment with the wheel, and with what its demo needs."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=WITH_INDEX)
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home)})
    python = Path(paths["scripts"], "python")
    pip = [python if WITH_INDEX else sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if WITH_INDEX:
        run(*pip, "install", "-q", f"{wheel}[demo]", cwd=home)
    else:
        # Files of its kind are not followed from there, so the sources that it may lead to are not found.
        Path(paths["purelib"], "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
        run(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    return Path(paths["scripts"])


def test_what_is_installed_is_whole(installed: Path, tmp_path: Path) -> None:
    """Every public name, the mark for type checkers, one version everywhere; away from the sources."""
    script = tmp_path / "installed.py"
    script.write_text((ROOT / "tests/installed.py").read_text())
    assert __version__ in run(installed / "python", script, __version__, cwd=tmp_path)
    assert run(installed / "idp-middleware", "--version", cwd=tmp_path) == f"idp-middleware {__version__}\n"


def test_what_is_installed_does_the_main_job(installed: Path, tmp_path: Path) -> None:
    """The demo: a call as a user, through everything."""
    told = run(installed / "idp-middleware", "demo", "--once", cwd=tmp_path)
    assert "200" in told
    assert str(ROOT) not in told


def test_what_is_installed_explains(installed: Path, tmp_path: Path) -> None:
    """The pages come with it: an error's pointer leads somewhere on any machine."""
    assert "WHO CAN MEND IT" in run(installed / "idp-middleware", "explain", "reconnect-required", cwd=tmp_path)
    assert "max_concurrent: an integer" in run(installed / "idp-middleware", "explain", "routes", cwd=tmp_path)
