"""One process of an app: the middleware on a socket, over a store that it shares with others of its kind.

Run with a JSON object: `path`, `key`, `token_url`, `api`, and `die`, where it has to kill itself: "claimed", with the
refresh token not sent yet, or "answered", with the new one not stored yet. Prints its URL and serves until its standard
input ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence

from starlette.requests import HTTPConnection

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, sources
from idp_middleware.stores import Entry, SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import serve


class Deadly:
    """The store of a process that is killed at a certain moment."""

    def __init__(self, inner: SQLiteTokenStore, when: str) -> None:
        self.inner = inner
        self.when = when
        self.identity = inner.identity

    async def get(self, key: TokenKey) -> Sequence[Entry]:
        return await self.inner.get(key)

    async def put(self, key: TokenKey, token: StoredToken) -> None:
        await self.inner.put(key, token)

    async def delete(self, key: TokenKey, *, version: str | None = None) -> None:
        await self.inner.delete(key, version=version)

    async def compare_and_swap(self, entry: Entry) -> Entry | None:
        if self.when == "answered" and entry.claim is None:
            os.kill(os.getpid(), signal.SIGKILL)
        written = await self.inner.compare_and_swap(entry)
        if self.when == "claimed" and entry.claim is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return written


async def by_name(conn: HTTPConnection) -> Caller:
    """Whoever the request says it is."""
    return Caller(conn.headers["x-user"])


def main() -> None:
    told = json.loads(sys.argv[1])
    source = sources.RefreshToken(
        store=Deadly(SQLiteTokenStore(told["path"], encryption_keys=[told["key"]]), told["die"]),
        token_url=told["token_url"],
        client_id="client",
        client_secret="secret",
    )
    routes = {"api": ProxyRoute(told["api"], token_source=source, connection="github")}
    with serve(IdPMiddleware(routes=routes, authenticator=by_name)) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
