"""What processes of their own say and leave behind: the command line, and workers that are killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from idp_middleware import _demo
from idp_middleware._cli import main
from idp_middleware._demo.app import CLIENT_SECRET
from idp_middleware._demo.stand_ins import PROVIDER_TOKENS
from idp_middleware.config import load_config
from idp_middleware.errors import ConfigurationError
from idp_middleware.stores import SQLiteTokenStore
from idp_middleware.testing import serve
from tests.fleet.redis_server import running_redis
from tests.leaks.authority import USERS, Authority, repeating, repeating_as_code, seeded
from tests.leaks.scenarios.parts import always, hang_up_after
from tests.leaks.set_ups import SET_UPS, connect
from tests.leaks.sinks import FILES, Sinks, Tap, files_under, report
from tests.leaks.world import World
from tests.stack import eventually, free_port, raw_upstream

FILE = """
access_log = true
audit_log = true
metrics = true

[authenticator]
type = "jwt"
issuer = "{idp}/"
audience = "https://api.acme.example"

[sources.tokens]
type = "refresh-token"
store = "tokens.db"
encryption_keys = ["${{ENCRYPTION_KEY}}"]
token_url = "{idp}/refresh"
client_id = "the-client"
client_secret = "${{CLIENT_SECRET}}"
reuse_is_fatal = false

[routes.github]
upstream = "{api}"
source = "tokens"
connection = "github"
headers = {{ X-Api-Key = "${{API_KEY}}" }}

[cache]
url = "redis://:${{REDIS_PASSWORD}}@127.0.0.1:{redis}/0"
encryption_keys = ["${{ENCRYPTION_KEY}}"]
"""

VARIABLES = {
    "ENCRYPTION_KEY": "encryption key",
    "CLIENT_SECRET": "client secret",
    "API_KEY": "API key of the route",
    "REDIS_PASSWORD": "password of the cache",
    "DATABASE_PASSWORD": "password of the database",
    "PRIVATE_KEY": "private key",
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with its parties running, all but the gateway; the secrets are in the environment."""
    folder = tmp_path / "app"
    folder.mkdir()
    monkeypatch.chdir(folder)
    canaries = seeded()
    for variable, name in VARIABLES.items():
        monkeypatch.setenv(variable, canaries[name])
    made = World(SET_UPS["refresh token"], folder, canaries, Sinks(), Authority(canaries), Tap())
    with ExitStack() as running:
        made.api_url = running.enter_context(raw_upstream(made.tap.serve))
        made.idp = running.enter_context(serve(made.authority))
        yield made


# The command line, in this process.


@dataclass(frozen=True)
class Mistake:
    """Text of a file's that is another one's."""

    old: str
    new: str


MISTAKES = {
    "no such type": Mistake('"refresh-token"', '"${CLIENT_SECRET}"'),
    "no such source": Mistake('source = "tokens"', 'source = "${CLIENT_SECRET}"'),
    "no such method": Mistake("connection =", 'methods = ["${CLIENT_SECRET}"]\nconnection ='),
    "no such path": Mistake("connection =", 'paths = ["${CLIENT_SECRET}"]\nconnection ='),
    "no such scheme": Mistake("audience =", 'schemes = ["${CLIENT_SECRET}"]\naudience ='),
    "no such algorithm": Mistake("audience =", 'algorithms = ["${CLIENT_SECRET}"]\naudience ='),
    "no such client_auth": Mistake("reuse_is", 'client_auth = "${CLIENT_SECRET}"\nreuse_is'),
    "no such folder": Mistake('store = "tokens.db"', 'store = "/nowhere/${CLIENT_SECRET}/x.db"'),
    "no such database": Mistake('store = "tokens.db"', 'store = "nosuch://me:${DATABASE_PASSWORD}@host/db"'),
    "no port": Mistake('store = "tokens.db"', 'store = "postgresql+asyncpg://me@host:${DATABASE_PASSWORD}/db"'),
    "no URL": Mistake('upstream = "', 'upstream = "${CLIENT_SECRET}'),
    "a user in a URL": Mistake('upstream = "http://', 'upstream = "http://me:${REDIS_PASSWORD}@'),
    "no header": Mistake("X-Api-Key =", '"${API_KEY}" = "x", X-Api-Key ='),
    "no value of a header": Mistake('"${API_KEY}"', '"${PRIVATE_KEY}"'),
    "no key": Mistake(
        'encryption_keys = ["${ENCRYPTION_KEY}"]\ntoken_url', 'encryption_keys = ["${API_KEY}"]\ntoken_url'
    ),
    "no private key": Mistake('client_secret = "${CLIENT_SECRET}"', 'private_key = "${API_KEY}"'),
    "a secret and a key": Mistake("reuse_is", 'private_key = "${PRIVATE_KEY}"\nreuse_is'),
    "a number": Mistake('client_secret = "${CLIENT_SECRET}"', "client_secret = 12345678"),
    "a table": Mistake("reuse_is", 'timeout = "${CLIENT_SECRET}"\nreuse_is'),
    "no Redis": Mistake('"redis://', '"${CLIENT_SECRET}://'),
    "no port of Redis": Mistake("@127.0.0.1:", "@127.0.0.1:${REDIS_PASSWORD}"),
    "not TOML": Mistake("[cache]", "[cache\n${CLIENT_SECRET}"),
    "twice": Mistake("[cache]", 'connection = "${CLIENT_SECRET}"\n[cache]'),
    "a key that there is not": Mistake("connection =", 'secret = "${CLIENT_SECRET}"\nconnection ='),
    "a variable that is not set": Mistake("${API_KEY}", "${CLIENT_SECRET}${NOWHERE}"),
}


def written(outside: World, mistake: Mistake | None = None, *, redis: int = 9) -> str:
    text = FILE.format(idp=outside.idp_url, api=outside.api_url, redis=redis)
    if mistake is not None:
        assert mistake.old in text
        text = text.replace(mistake.old, mistake.new, 1)
    (outside.folder / "idp.toml").write_text(text)
    return "idp.toml"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_told_without_what_the_environment_put_in(
    name: str, outside: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, and by the exception for who reads the file in an app, in front of an error reporter."""
    file = written(outside, MISTAKES[name])
    assert main(["check", file]) == 2
    outside.sinks.put("the output", "".join(capsys.readouterr()))
    with pytest.raises(ConfigurationError) as caught:
        load_config(file)
    outside.sinks.put("error reports", report(caught.value))
    assert outside.leaks() == set()


@pytest.mark.parametrize("trouble", ["none", "errors", "errors as code", "down"])
def test_a_check_tells_what_is_wrong_and_no_secret(
    trouble: str, outside: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an identity provider that repeats what it gets, and of a cache that is away."""
    outside.authority.echo = {"errors": repeating, "errors as code": repeating_as_code}.get(
        trouble, lambda request: None
    )
    text = f"""
        {FILE.format(idp=outside.idp_url, api=outside.api_url + "?key=${{API_KEY}}", redis=free_port())}
        [sources.auth0]
        type = "auth0-management"
        base_url = "{outside.idp_url}"
        client_id = "the-client"
        client_secret = "${{CLIENT_SECRET}}"
        [sources.own]
        type = "client-credentials"
        token_url = "{outside.idp_url}/client-credentials"
        client_id = "the-client"
        client_secret = "${{CLIENT_SECRET}}"
    """.replace("${{API_KEY}}", "${API_KEY}")
    (outside.folder / "idp.toml").write_text(text)
    if trouble == "down":
        assert outside.idp is not None
        outside.idp.stop()
    assert main(["check", "idp.toml"]) == 1
    said = "".join(capsys.readouterr())
    assert "source auth0" in said
    outside.sinks.put("the output", said)
    assert outside.leaks() == set()


def test_the_demo_shows_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints ends up on slides."""
    assert _demo.run(once=True) == 0
    said = capsys.readouterr().out
    assert "came back" in said
    canaries = seeded()
    for number, token in enumerate(PROVIDER_TOKENS):
        canaries.add(f"token {number}", token)
    canaries.add("secret", CLIENT_SECRET, telling=CLIENT_SECRET.removesuffix("-sample-app"))
    assert canaries.find(said) == set()
    assert not re.search(r"eyJ[\w-]{20,}\.[\w-]{20,}", said), "no JWT"


# Processes.


@contextmanager
def gateway(outside: World, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`idp-middleware serve`; what it says is put into the sinks at the end."""
    port = free_port()
    said = outside.folder.parent / "said.txt"
    command = [
        sys.executable,
        "-X",
        "dev",
        "-m",
        "idp_middleware",
        "serve",
        "idp.toml",
        "--port",
        str(port),
        *arguments,
    ]
    with said.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            outside.gateway = SimpleNamespace(port=port)  # type: ignore[assignment]
            eventually(lambda: _answers(outside), within=60)
            outside.sinks.put("the output", Path(f"/proc/{process.pid}/cmdline").read_bytes())
            yield process
        finally:
            kill(process)
    outside.sinks.put("the output", said.read_bytes())


def _answers(outside: World) -> bool:
    try:
        return outside.ask("GET", "/").status == 404
    except OSError:
        return False


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the kernel does when memory is short: without a word, workers first."""
    if process.poll() is None:
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (*map(int, workers), process.pid):
            os.kill(pid, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


@needs_proc
def test_a_killed_worker_leaves_no_secret_behind(outside: World, tmp_path: Path) -> None:
    """Not in the token store, its log of writes, the shared cache's dump and journal, or any other file."""
    asyncio.run(connect(outside, SQLiteTokenStore("tokens.db", encryption_keys=[outside.canaries["encryption key"]])))
    redis = tmp_path / "redis"
    redis.mkdir()
    # Uncompressed, so that there is something to be read.
    options = ("--requirepass", outside.canaries["password of the cache"], "--appendonly", "yes")
    with running_redis(redis, *options, "--rdbcompression", "no", "--save", "1 1") as server:
        written(outside, redis=server.port)
        with gateway(outside, "--workers", "2") as process:
            assert outside.ask().status == 200
            # One refresh is under way, and one answer; the store has claims and new tokens.
            outside.authority.stall("/refresh", 30.0)
            slow = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"
            outside.tap.answer = always(hang_up_after(slow, seconds=2.0))
            asking = [threading.Thread(target=outside.ask, kwargs={"user": user}) for user in USERS]
            for thread in asking:
                thread.start()
            eventually(lambda: outside.authority.count("/refresh") == 2 and len(outside.tap.heads) == 2, within=20)
            kill(process)
            for thread in asking:
                thread.join(20)
        eventually(lambda: (redis / "dump.rdb").exists(), within=20)
    outside.tap.closing.set()
    outside.collect()
    found = {name for name, _ in files_under(outside.folder)} | {name for name, _ in files_under(redis)}
    assert {"tokens.db", "tokens.db-wal", "dump.rdb"} <= found
    # That it is there, only not to be read.
    assert b"idp-middleware:token:" in b"".join(content for _, content in files_under(redis))
    for name, content in files_under(redis):
        outside.sinks.put(FILES, name.encode() + content)
    assert outside.leaks() == set()


@needs_proc
def test_a_gateway_says_no_secret_while_it_serves_fails_and_ends(outside: World) -> None:
    """With Python and asyncio in debug mode, an upstream that breaks off, and one that can't be reached."""
    asyncio.run(connect(outside, SQLiteTokenStore("tokens.db", encryption_keys=[outside.canaries["encryption key"]])))
    written(outside, redis=free_port())
    with gateway(outside) as process:
        assert outside.ask().status == 200
        assert outside.ask("PUT", user="bob", body=b"x" * 100_000).status == 200
        assert outside.ask(credentials=False).status == 401
        outside.tap.answer = always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"))
        assert outside.ask().status == 200
        outside.tap.answer = always(hang_up_after(b"nothing like HTTP"))
        assert outside.ask().status == 502
        assert b"idp_middleware_requests_total" in outside.ask(target="/idp/metrics", credentials=False).data
        outside.exchange(b"GET / HTTP/1.1\r\nAuthorization Bearer " + outside.token_of("alice") + b"\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    outside.collect()
    said = outside.sinks.put_in["the output"][-1][0]
    assert b"UpstreamAborted" in said, said.decode()
    assert said.count(b'"event": "refreshed"') + said.count(b'"event": "obtained"') == 2
    assert b'"problem": "upstream-unreachable"' in said
    assert outside.leaks() == set()
