"""What a cache in Redis costs a request whose token is in process: `python -m benchmarks.shared_cache [--requests N]`.

Two middlewares in one process, one with a cache in a real Redis and one without, in front of the bundled upstream in a
process of its own. They take turns, a batch each; the figure is CPU of this process per request. Prints the medians,
and the difference of the pairs with its spread.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from cryptography.fernet import Fernet

from benchmarks.processes import Processes, free_port
from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute, Token, TokenCache
from idp_middleware.testing import Auth0, serve

AUDIENCE = "https://api.acme.example"


class Source:
    """A token source whose tokens are shared."""

    identity = ("benchmark",)

    async def token(self, *_: Any, refused: Token | None = None) -> Token:  # noqa: ARG002 (its callers name it)
        return Token("provider-token", time.time() + 3600)


def gateway(upstream: str, issuer: str, cache: TokenCache | None) -> IdPMiddleware:
    return IdPMiddleware(
        authenticator=JWTAuthenticator(issuer=issuer, audience=AUDIENCE),
        routes={"api": ProxyRoute(upstream, token_source=Source(), connection="api")},
        cache=cache,
    )


async def batch(app: IdPMiddleware, bearer: str, requests: int) -> float:
    """µs of CPU per request."""
    headers = [(b"host", b"gateway"), (b"authorization", f"Bearer {bearer}".encode()), (b"accept", b"*/*")]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        assert message.get("status", 200) == 200, message

    started = time.process_time_ns()
    for _ in range(requests):
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/idp/api/json",
            "raw_path": b"/idp/api/json",
            "query_string": b"",
            "headers": headers,
        }
        await app(scope, receive, send)
    return (time.process_time_ns() - started) / requests / 1000


async def measure(upstream: str, issuer: str, bearer: str, redis: str, *, requests: int, turns: int) -> None:
    cache = TokenCache.from_url(redis, encryption_keys=[Fernet.generate_key()])
    alone, sharing = gateway(upstream, issuer, None), gateway(upstream, issuer, cache)
    await batch(alone, bearer, requests)
    await batch(sharing, bearer, requests)
    pairs = []
    for turn in range(turns):
        # Each first as often as the other: whatever drifts, drifts for both.
        order = (alone, sharing) if turn % 2 else (sharing, alone)
        taken = {id(app): await batch(app, bearer, requests) for app in order}
        pairs.append((taken[id(alone)], taken[id(sharing)]))
    commands = {name: count for name, count in cache.statistics.items() if count}
    more = [100 * (shared / plain - 1) for plain, shared in pairs]
    low, _, high = quantiles(more, n=4)
    print(f"in process alone    {median(plain for plain, _ in pairs):7.1f} µs per request")
    print(f"with Redis behind   {median(shared for _, shared in pairs):7.1f} µs per request")
    print(f"difference          {median(more):+7.1f} % (half of the pairs within {low:+.1f} … {high:+.1f} %)")
    print(f"the cache did       {commands}, in {requests * (turns + 1)} requests")
    await alone.aclose()
    await sharing.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="of a batch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=40, help="batches of each (default: %(default)s)")
    arguments = parser.parse_args()
    redis = shutil.which("redis-server")
    if redis is None:
        sys.exit("needs redis-server")
    auth0 = Auth0()
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes, serve(auth0):
        ports = free_port(), free_port()
        upstream = [sys.executable, "-m", "benchmarks.upstream", str(ports[0])]
        server = [redis, "--port", str(ports[1]), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        for name, command, port in (("upstream", upstream, ports[0]), ("redis", server, ports[1])):
            processes.start(name, command, port=port).wait_ready()
        bearer = auth0.issue_token("auth0|alice", audience=AUDIENCE, expires_in=86400)
        urls = f"http://127.0.0.1:{ports[0]}", auth0.issuer, bearer, f"redis://127.0.0.1:{ports[1]}/0"
        asyncio.run(measure(*urls, requests=arguments.requests, turns=arguments.turns))


if __name__ == "__main__":
    main()
