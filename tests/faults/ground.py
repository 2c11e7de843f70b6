"""Everybody around the gateway, once for all cells of the matrix; and one gateway that serves all cells.

Each has a middleware of its own, under a path of its own, so that no cell's pools, caches and circuits are another's.
Knows how the parties are set up, and nothing of what goes wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.fernet import Fernet

from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute, Timeout, TokenCache, sources
from idp_middleware._idp_http import IdPClient
from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.fleet.redis_server import running_redis
from tests.leaks.canaries import Canaries
from tests.stack import AUDIENCE

CLIENT_ID = "the-client"

PATIENCE = Timeout(connect=0.5, read=1.0, write=1.6, pool=0.5)
"""With an upstream, in seconds; far enough from each other that it can be told which of them ended a wait."""

WITH_PROVIDERS = Timeout(connect=0.5, read=1.0, write=1.0, pool=2.0)
"""With an identity provider: no exchange takes longer than the sum of the first three."""

_cell: ContextVar[str] = ContextVar("cell", default="")


class Cells:
    """The gateway's app: the middlewares of all cells, `/{cell}/idp/…`; and what each of them has under way."""

    def __init__(self) -> None:
        self.middlewares: dict[str, IdPMiddleware] = {}
        self.under_way: Counter[str] = Counter()
        self.tasks: dict[str, set[asyncio.Task[Any]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            asyncio.get_running_loop().set_task_factory(self._task)
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        _, name, what, *_ = scope["path"].split("/")
        if what == "close":
            await self.middlewares[name].aclose()
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            return
        _cell.set(name)
        self.under_way[name] += 1
        try:
            await self.middlewares[name](scope, receive, send)
        finally:
            self.under_way[name] -= 1

    def left(self, name: str) -> list[str]:
        """What a cell has not brought to an end."""
        tasks = [repr(task) for task in self.tasks.get(name, ()) if not task.done()]
        return tasks + ["a request"] * self.under_way[name]

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        # A task inherits the context of who started it, so all that a request sets off is its cell's.
        self.tasks.setdefault(_cell.get(), set()).add(task)
        task.add_done_callback(self.tasks[_cell.get()].discard)
        return task


class ByPort:
    """One server for the identity providers of all cells: which is meant, the port in `Host` says."""

    def __init__(self, of_all: Auth0) -> None:
        self.tenants: dict[int, Auth0] = {}
        self._of_all = of_all

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        tenant = self._of_all
        if scope["type"] == "http":
            host = dict(scope["headers"])[b"host"].decode()
            tenant = self.tenants.get(int(host.rpartition(":")[2]), tenant)
        await tenant(scope, receive, send)


@dataclass
class Ground:
    """See the module. The ports are those of the parties themselves, with no proxy before them."""

    canaries: Canaries
    cells: Cells
    auth0: Auth0
    tenants: ByPort
    provider: ProviderAPI
    idp_port: int
    api_port: int
    tls_port: int
    redis_port: int
    port: int
    log: list[str]
    callers: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """Whose each token is: a caller's, and a provider's."""

    def tenant(self, port: int) -> Auth0:
        """The identity provider, as one who comes through this port sees it."""
        if port == self.idp_port:
            return self.auth0
        tenant = self.tenants.tenants.get(port)
        if tenant is None:
            tenant = self.tenants.tenants[port] = Auth0(f"http://127.0.0.1:{port}")
            tenant.add_client(CLIENT_ID, self.canaries["client secret"])
        return tenant

    def user(self, name: str, *, keys: int = 0, tokens: int = 0, **_: int) -> str:
        """A user who is known nowhere else; returns a caller's token. The ports are as in `settle`."""
        token = self.canaries.make(f"provider token of {name}", special="-._~+/", prefix="gho_")
        self.tenant(tokens or self.idp_port).add_user(f"auth0|{name}", [Identity("github", "101", access_token=token)])
        self.provider.accept(token, login=name)
        self.owners[token] = name
        return self._callers_token(name, keys or self.idp_port)

    def link_anew(self, name: str, port: int) -> None:
        """The user's account has a new token."""
        self.user(name, tokens=port)

    def signed_anew(self, name: str, port: int) -> str:
        """A caller's token, signed with a key that the identity provider has just begun to use."""
        self.tenant(port).rotate_keys(keep_old=True)
        return self._callers_token(name, port)

    def _callers_token(self, name: str, port: int) -> str:
        token = self.tenant(port).issue_token(f"auth0|{name}", audience=AUDIENCE)
        self.callers[token] = name
        return token

    def settle(
        self,
        name: str,
        *,
        keys: int = 0,
        tokens: int = 0,
        api: int = 0,
        tls: int = 0,
        redis: int = 0,
        database: int = 0,
        user: str = "",
    ) -> tuple[str, str]:
        """A middleware for a cell, and its user unless there is one; returns a caller's and the provider's token.

        The ports are those of proxies on the way to a party; 0 stands for the party's own. Without `redis` there is no
        shared cache, which is in the `database` of that number.
        """
        issuer, tenant = self.tenant(keys or self.idp_port), self.tenant(tokens or self.idp_port)
        token = "" if user else self.user(name, keys=keys, tokens=tokens)
        source = sources.Auth0Management(
            base_url=tenant.issuer.rstrip("/"),
            client_id=CLIENT_ID,
            client_secret=self.canaries["client secret"],
            timeout=WITH_PROVIDERS,
        )
        cache = None
        if redis:
            cache = TokenCache.from_url(
                self.redis_url(redis, database), encryption_keys=[self.canaries["encryption key"]]
            )
        upstream = f"https://127.0.0.1:{tls}" if tls else f"http://127.0.0.1:{api or self.api_port}"
        self.cells.middlewares[name] = IdPMiddleware(
            routes={"github": ProxyRoute(upstream, token_source=source, connection="github", timeout=PATIENCE)},
            authenticator=JWTAuthenticator(issuer=issuer.issuer, audience=AUDIENCE),
            cache=cache,
            prefix=f"/{name}/idp",
        )
        return token, self.canaries[f"provider token of {user or name}"]

    def redis_url(self, port: int, database: int) -> str:
        return f"redis://:{self.canaries['password of Redis']}@127.0.0.1:{port}/{database}"


class _Log(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(level=1)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        # What the stand-ins log is theirs.
        if record.threadName not in _strangers:
            self._lines.append(self.format(record))


_strangers: set[str] = set()


@contextmanager
def _logged() -> Iterator[list[str]]:
    lines: list[str] = []
    handler, root = _Log(lines), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """All of it, running."""
    canaries, cells, auth0, provider = Canaries(6), Cells(), Auth0(), ProviderAPI()
    auth0.add_client(CLIENT_ID, canaries.make("client secret", special="-._~"))
    canaries.add("encryption key", Fernet.generate_key().decode())
    password = canaries.make("password of Redis", special="")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: folder / f"{name}.pem" for name in ("ca", "chain", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    certificate.cert_chain_pems[0].write_to_path(files["chain"])
    certificate.private_key_pem.write_to_path(files["key"])
    with ExitStack() as running, pytest.MonkeyPatch.context() as patched:
        patched.setenv("SSL_CERT_FILE", str(files["ca"]))
        # An authenticator's waits can't be chosen; a source's are given.
        patched.setitem(IdPClient.__init__.__kwdefaults__, "timeout", WITH_PROVIDERS)
        tenants = ByPort(auth0)
        idp = running.enter_context(serve(tenants))
        auth0.issuer = idp.url
        api = running.enter_context(serve(provider))
        tls = running.enter_context(serve(provider, ssl_certfile=str(files["chain"]), ssl_keyfile=str(files["key"])))
        redis = running.enter_context(running_redis(folder, "--requirepass", password, "--databases", "2000"))
        _strangers.update(f"serve {server.url}" for server in (idp, api, tls))
        lines = running.enter_context(_logged())
        gateway = running.enter_context(serve(cells, log_level=None))
        yield Ground(
            canaries, cells, auth0, tenants, provider, idp.port, api.port, tls.port, redis.port, gateway.port, lines
        )
        _strangers.clear()
