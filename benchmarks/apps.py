"""The ASGI apps behind the Python candidates, each a factory that imports what it needs.

Runs inside the candidates' own processes. `BENCH_UPSTREAM` is the upstream's base URL.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

UPSTREAM = os.environ.get("BENCH_UPSTREAM", "")
INJECTED = (b"authorization", b"Bearer " + os.environ.get("BENCH_PROVIDER_TOKEN", "").encode())

# RFC 9110 section 7.6.1, and what the new hop sets itself.
_REQUEST_ONLY_HERE = frozenset(
    (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host", b"authorization")
)
_RESPONSE_ONLY_HERE = frozenset((b"connection", b"keep-alive", b"trailer", b"transfer-encoding", b"upgrade"))


def floor() -> App:
    """Answers by itself what the upstream would answer: no proxy on this server can cost less."""
    from benchmarks.upstream import ANSWERS, END_TO_END_HEADERS

    answers = {
        path: (
            [*END_TO_END_HEADERS, (b"content-length", str(len(body)).encode())],
            body,
        )
        for path, body in ANSWERS.items()
    }

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers, body = answers[scope["path"]]
        if scope["method"] == "POST":
            while (await receive()).get("more_body", False):
                pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def _url(scope: Message) -> str:
    target: bytes = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    return UPSTREAM + target.decode("latin-1")


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        if message["body"]:
            yield message["body"]
        if not message.get("more_body", False):
            return


def naive_httpx() -> App:
    """What most people write: one client, `stream`, raw chunks back."""
    import httpx

    client: httpx.AsyncClient | None = None

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal client
        if scope["type"] != "http":
            return
        if client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            client = httpx.AsyncClient(limits=limits, timeout=60)
        headers = [(name, value) for name, value in scope["headers"] if name not in _REQUEST_ONLY_HERE]
        content = _body(receive) if _has_body(scope["headers"]) else None
        async with client.stream(
            scope["method"], _url(scope), headers=[*headers, INJECTED], content=content
        ) as response:
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": [
                        (name.lower(), value)
                        for name, value in response.headers.raw
                        if name.lower() not in _RESPONSE_ONLY_HERE
                    ],
                }
            )
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def aiohttp_client() -> App:
    """The same on aiohttp's client, which is the fastest general one in Python."""
    import aiohttp
    import yarl

    session: aiohttp.ClientSession | None = None

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_read=60),
            )
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in (*scope["headers"], INJECTED)
            if name not in _REQUEST_ONLY_HERE or (name, value) == INJECTED
        ]
        data = _body(receive) if _has_body(scope["headers"]) else None
        url = yarl.URL(_url(scope), encoded=True)
        async with session.request(scope["method"], url, headers=headers, data=data, allow_redirects=False) as response:
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status,
                    "headers": [
                        (name.lower(), value)
                        for name, value in response.raw_headers
                        if name.lower() not in _RESPONSE_ONLY_HERE
                    ],
                }
            )
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def fastapi_proxy_lib() -> Any:
    """As its quick start shows, with a client of one's own (its "Advanced" page) for the limit and the token."""
    import httpx
    from fastapi_proxy_lib.fastapi.app import reverse_http_app

    def inject(request: httpx.Request) -> httpx.Request:
        request.headers["authorization"] = INJECTED[1].decode()
        return request

    client = httpx.AsyncClient(
        auth=inject, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=60
    )
    return reverse_http_app(client, base_url=UPSTREAM + "/")


def asgiproxy() -> Any:
    """As its `__main__` (which its README gives as the reference) builds it."""
    from asgiproxy.config import BaseURLProxyConfigMixin, ProxyConfig
    from asgiproxy.context import ProxyContext
    from asgiproxy.simple_proxy import make_simple_proxy_app

    from benchmarks.candidates import MOST_CONNECTIONS

    class Config(BaseURLProxyConfigMixin, ProxyConfig):  # type: ignore[misc]
        upstream_base_url = UPSTREAM
        rewrite_host_header = UPSTREAM.partition("//")[2]

        def process_client_headers(self, *, scope: Message, headers: Any) -> Any:
            headers = super().process_client_headers(scope=scope, headers=headers)
            headers["authorization"] = INJECTED[1].decode()
            return headers

    return make_simple_proxy_app(ProxyContext(Config(), max_concurrency=MOST_CONNECTIONS))


def asgi_proxy_lib() -> Any:
    """As its README shows; it has no other options."""
    from asgi_proxy import asgi_proxy

    return asgi_proxy(UPSTREAM, timeout=60)


def ours() -> Any:
    """The whole way: the caller's RS256 JWT verified, the user's token from the cache, the injection, the relay."""
    from idp_middleware import IdPMiddleware, load_config

    return IdPMiddleware(**load_config(Path(__file__).with_name("idp.toml")))


def ours_relay() -> Any:
    """What the peers do: nobody authenticated, one token for all."""
    from starlette.requests import HTTPConnection

    from idp_middleware import Caller, IdPMiddleware, ProxyRoute, sources

    anybody = Caller("anybody")

    async def authenticate(_: HTTPConnection) -> Caller:
        return anybody

    source = sources.Static(os.environ["BENCH_PROVIDER_TOKEN"])
    return IdPMiddleware(authenticator=authenticate, routes={"api": ProxyRoute(UPSTREAM, token_source=source)})
