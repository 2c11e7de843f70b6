"""The identity provider for ours: an Auth0 stand-in in a process of its own, with one user.

Run as a program: writes what the middleware and its caller need as one JSON file, then serves until it is stopped.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.candidates import PROVIDER_TOKEN
from benchmarks.processes import Processes, StartFailed, free_port

AUDIENCE = "https://api.acme.example"
CLIENT = ("benchmark", "client-secret-of-the-benchmark")
CONNECTION = "github"
SUBJECT = "auth0|alice"
TOKEN_SECONDS = 6 * 3600
_WRITE_SECONDS = 10.0


def start(processes: Processes, python: str, directory: Path) -> dict[str, str]:
    """Start it; `issuer` and the caller's `token`. Raises `StartFailed`."""
    port, file = free_port(), directory / "tenant.json"
    command = [python, "-m", "benchmarks.tenant", str(port), str(file)]
    process = processes.start("tenant", command, port=port, cwd=Path(__file__).parents[1])
    process.wait_ready()
    deadline = time.monotonic() + _WRITE_SECONDS
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()).endswith("\n"):
            told: dict[str, str] = json.loads(text)
            return told
        time.sleep(0.05)
    raise StartFailed(f"the tenant told nothing: {process.tail()}")


def environment(issuer: str) -> dict[str, str]:
    """What `idp.toml` asks of the environment, but for the upstream."""
    client_id, client_secret = CLIENT
    return {
        "BENCH_ISSUER": issuer,
        "BENCH_AUDIENCE": AUDIENCE,
        "BENCH_CLIENT_ID": client_id,
        "BENCH_CLIENT_SECRET": client_secret,
        "BENCH_CONNECTION": CONNECTION,
    }


def main(port: int, file: Path) -> None:
    from idp_middleware.testing import Auth0, Identity, serve

    auth0 = Auth0()
    auth0.add_client(*CLIENT)
    auth0.add_user(SUBJECT, [Identity(CONNECTION, "101", access_token=PROVIDER_TOKEN)])
    with serve(auth0, port=port):
        token = auth0.issue_token(
            SUBJECT,
            audience=[AUDIENCE, f"{auth0.issuer}userinfo"],
            scope="openid profile email read:github",
            expires_in=TOKEN_SECONDS,
            permissions=["read:github"],
        )
        file.write_text(json.dumps({"issuer": auth0.issuer, "token": token}) + "\n")
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
