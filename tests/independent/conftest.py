"""Starts the servers of this directory. Where they can't run, tests are skipped with the reason; on CI they fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idp_middleware.testing import signing_key
from tests.stack import USERS as PROVIDER_TOKENS
from tests.stack import free_port

HERE = Path(__file__).parent
AWKWARD = "s3cr&t+ /=%:~"
USERS = {
    f"auth0|{user}": [{"connection": "github", "user_id": user, "access_token": f"gho_{user}"}]
    for user in ("alice", "bob")
}
CLIENTS = [
    {"client_id": "post", "client_secret": AWKWARD, "token_endpoint_auth_method": "client_secret_post"},
    {"client_id": "basic:1", "client_secret": AWKWARD, "token_endpoint_auth_method": "client_secret_basic"},
    *(
        {
            "client_id": f"key-{algorithm}",
            "jwks": {"keys": [signing_key(algorithm, 21).jwk]},
            "token_endpoint_auth_method": "private_key_jwt",
            "token_endpoint_auth_signing_alg": algorithm,
        }
        for algorithm in ("RS256", "ES256", "EdDSA")
    ),
]


def unable(reason: str) -> Any:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node() -> str:
    """The command that runs JavaScript, with what this directory needs installed."""
    command = shutil.which("node")
    if command is None:
        unable("Node.js is not installed (20 or newer)")
    if not (HERE / "node_modules").is_dir():
        unable("what package.json names is not installed: npm ci --prefix tests/independent")
    return str(command)


@contextmanager
def started(node: str, script: str, variable: str, settings: Any) -> Iterator[Any]:
    """A server of this directory: what it tells of itself once it listens."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [node, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, variable: json.dumps(settings)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise RuntimeError(f"the server did not start:\n{log.read()}")
            yield SimpleNamespace(**json.loads(line))
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def authorization_server(node: str) -> Iterator[Any]:
    """An oidc-provider: `url`, and `tokens` of users."""
    with started(node, "authorization_server.mjs", "OIDC_SETTINGS", {"clients": CLIENTS, "users": USERS}) as server:
        yield server


@pytest.fixture(scope="session")
def github(node: str) -> Iterator[Any]:
    """A GitHub that knows alice and bob, by the tokens of `tests.stack`: `url`."""
    seed = {
        "tokens": {token: {"login": user, "scopes": ["repo", "user"]} for user, token in PROVIDER_TOKENS.items()},
        "github": {"users": [{"login": user, "email": f"{user}@example.com"} for user in PROVIDER_TOKENS]},
    }
    with started(node, "github.mjs", "SETTINGS", {"port": free_port(), "seed": seed}) as server:
        yield server
