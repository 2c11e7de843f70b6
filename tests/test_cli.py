"""The command line: what it says, and the status it ends with."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from aiocache import SimpleMemoryCache

from idp_middleware import TokenCache, __version__
from idp_middleware._check import check
from idp_middleware._cli import main
from idp_middleware.config import read_config
from tests.filed import SECRET, Parties, parties
from tests.stack import AUDIENCE, USERS


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.delenv("IDP_CONFIG", raising=False)


@pytest.fixture
def set_up() -> Iterator[Parties]:
    """A configuration file, `idp.toml`, with the parties it names running."""
    with parties() as set_up:
        Path("idp.toml").write_text(set_up.file('provider = "github"\nscopes = ["read:github"]\n'))
        yield set_up


@pytest.fixture
def file(set_up: Parties) -> Path:
    return Path("idp.toml")


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway in a process of its own, and its URL; it has to end by Ctrl-C without a word of complaint."""
    command = [sys.executable, "-m", "idp_middleware", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            pytest.fail("".join(said))
        listening(found[1])
        try:
            yield process, found[1]
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[1]
    assert "Traceback" not in rest
    assert process.returncode == 0


def listening(url: str) -> None:
    """Wait for it: with workers, the address is announced before they accept."""
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_proxies_for_each_user_with_the_right_token(file: Path, set_up: Parties, workers: str) -> None:
    """The main job from a file, in one process and in several."""
    with (
        running("serve", str(file), "--port", "0", "--workers", workers) as (_, url),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        for user, provider_token in USERS.items():
            token = set_up.auth0.issue_token(f"auth0|{user}", audience=AUDIENCE, scope="read:github")
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
                answer = client.request(
                    method, "/idp/github/echo/x?y=1", headers={"authorization": f"Bearer {token}", "cookie": "a=b"}
                )
                assert answer.status_code == 200
                assert "server" not in answer.headers
                assert (set_up.api.last.method, set_up.api.last.target) == (method, b"/echo/x?y=1")
                assert set_up.api.last.header("authorization") == f"Bearer {provider_token}"
                assert set_up.api.last.header("cookie") is None
        assert client.get("/idp/github/user").status_code == 401
        assert client.get("/elsewhere").status_code == 404


@pytest.mark.parametrize(
    "arguments", [["serve", "idp.toml"], ["serve", "idp.toml", "--workers", "2"], ["check", "idp.toml"]]
)
def test_a_bad_configuration_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Also with workers: said once by the parent, not once by each of them."""
    Path("idp.toml").write_text("prefx = '/x'")
    assert main(arguments) == 2
    assert capsys.readouterr() == (
        "",
        "idp-middleware: idp.toml: prefx: there is no such key; did you mean 'prefix'?"
        " (idp-middleware explain configuration)\n",
    )


def test_a_taken_port_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in (["serve", str(file)], ["demo"]):
            assert main([*command, "--port", str(port)]) == 1
            said = capsys.readouterr()
            assert said == ("", f"idp-middleware: cannot listen on 127.0.0.1:{port}: address already in use\n")


def test_a_host_that_is_not_ours_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that does not resolve and an address of another machine fail in different calls."""
    for host in ("no.such.host.invalid", "192.0.2.1", "2001:db8::1"):
        assert main(["serve", str(file), "--host", host]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(rf"idp-middleware: cannot listen on {host}:8000: .+\n", err)


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["serve", "idp.toml"], "uvicorn", "server"),
        (["demo", "--once"], "uvicorn", "demo"),
        (["demo", "--once"], "fastapi", "demo"),
    ],
)
def test_a_missing_extra_is_named(
    command: list[str],
    module: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The core works without a server; who needs one is told what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    assert main(command) == 1
    assert capsys.readouterr().err == f"idp-middleware: this needs {module}: pip install 'idp-middleware[{extra}]'\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve"], "the following arguments are required: config"),
        (["serve", "idp.toml", "--port", "65536"], "'65536' is not a port (0 to 65535)"),
        (["serve", "idp.toml", "--port", "http"], "'http' is not a port (0 to 65535)"),
        (["serve", "idp.toml", "--workers", "0"], "'0' is not a number of processes (1 or more)"),
        (["serve", "idp.toml", "--workers", "-1"], "'-1' is not a number of processes (1 or more)"),
    ],
)
def test_wrong_arguments_are_status_2(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same status as for a wrong file: nothing was tried."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(complaint)


def test_who_names_no_command_is_shown_them(capsys: pytest.CaptureFixture[str]) -> None:
    """It is what a newcomer types first."""
    assert main([]) == 2
    assert "write a commented configuration file" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    """For who has no scripts on the path."""
    command = [sys.executable, "-m", "idp_middleware", "--version"]
    assert subprocess.check_output(command, text=True) == f"idp-middleware {__version__}\n"


def test_a_reader_that_leaves_is_no_crash() -> None:
    """`idp-middleware demo | head -1`"""
    command = [sys.executable, "-m", "idp_middleware", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_check_reaches_all_that_the_file_names(file: Path, set_up: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each; what costs nothing to try is tried before the first user does."""
    more = """
        [sources.machine]
        type = "client-credentials"
        token_url = "{idp}oauth/token"
        client_id = "gateway"
        client_secret = "${{SECRET}}"
        audience = "{idp}api/v2/"
        [sources.same]
        type = "pass-through"
        [routes.machine]
        upstream = "http://127.0.0.1:{port}/status/503"
        source = "machine"
    """
    api = re.search(r'upstream = "http://127.0.0.1:(\d+)"', file.read_text())
    assert api
    file.write_text(file.read_text() + more.format(idp=set_up.auth0.issuer, port=api[1]))
    assert main(["check", str(file)]) == 0
    out = capsys.readouterr().out
    issuer, *others = out.splitlines()
    assert re.fullmatch(rf"ok    authenticator           {set_up.auth0.issuer} has keys: [1-9] for RS256", issuer)
    idp = set_up.auth0.issuer.rstrip("/")
    assert others == [
        f"ok    source auth0            {idp} gives a management token for read:user_idp_tokens and read:users",
        f"ok    source machine          {idp}/oauth/token gives the client gateway a token",
        "ok    source same             nothing to reach",
        f"ok    route github            http://127.0.0.1:{api[1]} answers (401)",
        f"ok    route machine           http://127.0.0.1:{api[1]}/status/503 answers (401)",
    ]
    assert SECRET not in out
    # Nobody's token goes anywhere, and nothing is changed at the provider.
    assert {(request.method, request.bearer) for request in set_up.api.requests} == {("HEAD", None)}


def test_check_tries_the_shared_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead cache slows everything down without an error; here is where it shows."""
    monkeypatch.setenv("IDP_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
    file.write_text(file.read_text() + f'[cache]\nurl = "{url}"\nencryption_keys = ["${{IDP_KEY}}"]\n')
    config = read_config(file)
    assert str(asyncio.run(check(config))[-1]) == (
        "FAIL  cache                   the shared cache: nothing listens there (connection refused)"
    )
    config = replace(config, cache=TokenCache(SimpleMemoryCache()))
    assert str(asyncio.run(check(config))[-1]) == "ok    cache                   gives back what was put in"
