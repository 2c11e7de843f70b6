"""`idp_middleware.asgi:app`: the gateway for a server of one's own choice."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from idp_middleware import IdPMiddleware

FILE = """
[authenticator]
type = "jwt"
issuer = "https://acme.eu.auth0.com/"
audience = "https://api.acme.example"
[sources.caller]
type = "pass-through"
[routes.intranet]
upstream = "https://intranet.acme.example"
source = "caller"
"""
WRONG = FILE.replace("intranet]", "intranet]\nmethod = ['GET']")
LINE = (
    "idp-middleware: {}: [routes.intranet]: method: there is no such key; did you mean 'methods'?"
    " (idp-middleware explain routes)\n"
)


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IDP_CONFIG", raising=False)


@pytest.mark.parametrize("name", ["idp.toml", "other.toml"])
def test_the_file_is_idp_toml_or_the_one_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is what every example is called."""
    Path(name).write_text(FILE)
    if name != "idp.toml":
        monkeypatch.setenv("IDP_CONFIG", name)
    assert isinstance(runpy.run_module("idp_middleware.asgi")["app"], IdPMiddleware)


def test_a_bad_file_ends_the_process_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception would reach the server, which would show a traceback."""
    Path("idp.toml").write_text(WRONG)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("idp_middleware.asgi")
    assert caught.value.code == 2
    assert capsys.readouterr().err == LINE.format("idp.toml")


@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn_ends_at_once_and_clean(workers: int) -> None:
    """With workers, uvicorn would start those that ended with another status again and again, for ever."""
    Path("wrong.toml").write_text(WRONG)
    command = [sys.executable, "-m", "uvicorn", "idp_middleware.asgi:app", "--port", "0", "--workers", str(workers)]
    done = subprocess.run(
        command, env={**os.environ, "IDP_CONFIG": "wrong.toml"}, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    if workers == 1:
        assert (done.returncode, done.stderr) == (2, LINE.format("wrong.toml"))
    else:
        assert 1 <= done.stderr.count(LINE.format("wrong.toml")) <= workers
        assert "failed to start, stopping the parent process" in done.stderr
