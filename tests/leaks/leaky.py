"""Builds that leak, each in one way: what the harness has to find if it is to be believed.

All of it is wrapped around the middleware or takes the place of one of its parts; nothing of it is in the package.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from opentelemetry import trace
from prometheus_client import Counter

from idp_middleware import IdPMiddleware, Token, TokenCache
from idp_middleware._middleware import problem_response
from idp_middleware._shared_values import SharedValues
from idp_middleware.stores import SQLiteTokenStore
from tests.leaks.scenarios.calls import BIG
from tests.leaks.scenarios.parts import reply, with_route
from tests.leaks.set_ups import SET_UPS
from tests.leaks.sinks import FILES, METRICS, RECORDS, TRACES
from tests.leaks.world import World, world

logger = logging.getLogger("leaky")

TOKEN = "alice's provider token"
CALLER = "alice's token"
COOKIE = "alice's session cookie"
WHOSE = "alice's id"
"""A JWT has it inside."""


@dataclass(frozen=True)
class Planted:
    """A leak: what shows it, and every place where it has to be found. `options` are `world`'s."""

    places: frozenset[tuple[str, str]]
    """Canary and sink."""
    options: Mapping[str, Any] = field(default_factory=dict)
    set_up: str = "management"
    run: Callable[[World], Any] = lambda world: world.ask("GET", "/idp/github/user")


def found(
    leak: Planted, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> set[tuple[str, str]]:
    """Canary and sink, for all that a leak has come out by."""
    monkeypatch.chdir(folder)
    with world(SET_UPS[leak.set_up], folder, **leak.options) as made:
        leak.run(made)
        # A task that failed is told of when it is let go of.
        gc.collect()
    made.sinks.put("the output", "".join(capfd.readouterr()))
    return {(each.canary, each.sink) for each in made.leaks()}


LEAKS: dict[str, Planted] = {}


def planted(name: str, *places: tuple[str, str], set_up: str = "management", run: Any = None, **options: Any) -> None:
    more = {} if run is None else {"run": run}
    LEAKS[name] = Planted(frozenset(places), MappingProxyType(options), set_up, **more)


# Through the answer.


def answering(change: Callable[[World, dict[str, Any]], list[dict[str, Any]]]) -> Any:
    """The app with its messages to the caller changed."""

    def wrap(world: World, app: Any) -> Any:
        async def wrapper(scope: Any, receive: Any, send: Any) -> None:
            async def sending(message: Any) -> None:
                for each in change(world, message) if scope["type"] == "http" else [message]:
                    await send(each)

            await app(scope, receive, sending)

        return wrapper

    return wrap


def with_field(spell: Callable[[str], str]) -> Any:
    def change(world: World, message: dict[str, Any]) -> list[dict[str, Any]]:
        if message["type"] == "http.response.start":
            value = spell(world.canaries[TOKEN]).encode()
            message = {**message, "headers": [*message["headers"], (b"x-debug", value)]}
        return [message]

    return answering(change)


def in_two_chunks(world: World, message: dict[str, Any]) -> list[dict[str, Any]]:
    """The body is a page of more bytes than one write, and cuts the token in two."""
    if message["type"] == "http.response.start":
        return [{**message, "headers": [(b"transfer-encoding", b"chunked")]}]
    token = world.canaries[TOKEN].encode()
    parts = (b"x" * 70_000 + token[:20], token[20:], b"")
    return [{"type": message["type"], "body": part, "more_body": bool(part)} for part in parts]


planted("the token in a field of the answer", (TOKEN, "the caller"), wrap=with_field(str))
planted(
    "the token in a field, in base64 behind something else",
    (TOKEN, "the caller"),
    wrap=with_field(lambda token: base64.b64encode(f"token={token}".encode()).decode()),
)
planted(
    "the token in a field, in base64url",
    (TOKEN, "the caller"),
    wrap=with_field(lambda token: base64.urlsafe_b64encode(token.encode()).decode()),
)
planted("a digest's worth of the token", (TOKEN, "the caller"), wrap=with_field(lambda token: token[4:24]))
planted("the token cut in two by chunks", (TOKEN, "the caller"), wrap=answering(in_two_chunks))
planted(
    "the upstream's echo, on a route that does not scrub",
    (TOKEN, "the caller"),
    ("API key of the route", "the caller"),
    run=lambda world: (
        setattr(world.tap, "answer", lambda head: reply("200 OK", body=head)),
        world.ask("GET", "/idp/github/user"),
    ),
)


def telling_handler(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    """An error page with the request in it, as debug pages have."""

    def on_error(conn: Any, error: Any) -> Any:
        response = problem_response(conn, error)
        response.headers["x-request"] = quote(conn.headers["authorization"])
        return response

    return arguments | {"on_error": on_error}


planted(
    "the caller's token in an error's answer",
    (CALLER, "the caller"),
    (WHOSE, "the caller"),
    change=telling_handler,
    run=lambda world: world.ask("GET", "/idp/nowhere"),
)


# Through logs and output.


class Watched:
    """A token source with somebody in between."""

    def __init__(self, inner: Any, given: Callable[[Token], Token]) -> None:
        self._inner = inner
        self._given = given

    async def token(self, caller: Any, route: Any, *, refused: Any = None) -> Token:
        return self._given(await self._inner.token(caller, route, refused=refused))

    async def aclose(self) -> None:
        await self._inner.aclose()


def watched(given: Callable[[World, Token], Token]) -> Any:
    def change(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
        source = Watched(arguments["routes"]["github"].source, lambda token: given(world, token))
        return with_route(world, arguments, token_source=source)

    return change


def on_the_way(tell: Callable[[World, str], Any]) -> Any:
    """A token source that tells of what it gives."""

    def given(world: World, token: Token) -> Token:
        tell(world, token.value)
        return token

    return watched(given)


def task_that_fails(world: World, token: str) -> None:
    async def fails() -> None:
        raise LookupError(token)

    asyncio.get_running_loop().create_task(fails())


planted("the token in the log", (TOKEN, "the log"), change=on_the_way(lambda world, token: logger.debug(token)))
planted(
    "the token in the log, in hexadecimal",
    (TOKEN, "the log"),
    change=on_the_way(lambda world, token: logger.info("token: %s", token.encode().hex())),
)
planted(
    "the token in the log, over lines",
    (TOKEN, "the log"),
    change=on_the_way(lambda world, token: logger.info("\n".join(textwrap.wrap(token, 9, break_on_hyphens=False)))),
)
planted(
    "the token in the log, over records",
    (TOKEN, "the log"),
    change=on_the_way(lambda world, token: [logger.info(part) for part in textwrap.wrap(token, 7)]),
)
planted(
    "the token beside a log's words, for who ships its arguments",
    (TOKEN, "the log"),
    change=on_the_way(lambda world, token: logger.info("got a token for %(user)s", {"user": 1, "token": token})),
)
planted(
    "the token in what a log's exception says",
    (TOKEN, "the log"),
    (TOKEN, "error reports"),
    change=on_the_way(lambda world, token: logger.info("oh", exc_info=LookupError(json.dumps({"token": token})))),
)
planted("the token printed", (TOKEN, "the output"), change=on_the_way(lambda world, token: print(token)))
planted(
    "the token printed where errors go",
    (TOKEN, "the output"),
    change=on_the_way(lambda world, token: print(repr(token.encode()), file=sys.stderr)),
)
planted(
    "the token in the exception of a task that nobody waits for",
    (TOKEN, "the log"),
    (TOKEN, "error reports"),
    change=on_the_way(task_that_fails),
)


# Through errors.


def failing(fail: Callable[[World], None]) -> Any:
    def wrap(world: World, app: Any) -> Any:
        async def wrapper(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                fail(world)
            await app(scope, receive, send)

        return wrapper

    return wrap


def in_words(world: World) -> None:
    raise RuntimeError(f"the upstream refused {world.canaries[TOKEN]}")


def in_a_variable(world: World) -> None:
    headers = {"authorization": world.canaries[TOKEN]}
    raise RuntimeError(f"the upstream refused {len(headers)} fields")


def behind_it(world: World) -> None:
    try:
        raise LookupError(world.canaries["client secret"])
    except LookupError:
        raise RuntimeError("the upstream refused") from None


class RememberingLocals(IdPMiddleware):
    """As it was: with the head of the request in the frames that an error comes through."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send, self._routes.under_prefix(scope) or b"")
        else:
            await super().__call__(scope, receive, send)


def unreadable(world: World, app: Any) -> Any:
    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        async def fails() -> Any:
            raise RuntimeError("the server has had enough")

        await app(scope, fails if scope["type"] == "http" else receive, send)

    return wrapper


planted("the token in what an exception says", (TOKEN, "the log"), (TOKEN, "error reports"), wrap=failing(in_words))
planted("the token in a variable on an exception's way", (TOKEN, "error reports"), wrap=failing(in_a_variable))
planted("a secret in an exception out of sight", ("client secret", "error reports"), wrap=failing(behind_it))


def put_until_reported(world: World) -> None:
    """On a slow machine, whoever watches for the caller's leaving may be the one that is told of the failure."""
    for _ in range(20):
        world.ask("PUT", "/idp/github/user", body=BIG[:1000])
        if world.sinks.put_in["error reports"]:
            return


planted(
    "variables that nobody has emptied",
    (TOKEN, "error reports"),
    ("API key of the route", "error reports"),
    middleware=RememberingLocals,
    wrap=unreadable,
    run=put_until_reported,
)


# To the upstream.


def asking(change: Callable[[World, dict[str, Any]], dict[str, Any]]) -> Any:
    """The middleware within something that changes the request: as if it let more through."""

    def wrap(world: World, app: Any) -> Any:
        async def wrapper(scope: Any, receive: Any, send: Any) -> None:
            await app(change(world, scope) if scope["type"] == "http" else scope, receive, send)

        return wrapper

    return wrap


def cookie_by_another_name(world: World, scope: dict[str, Any]) -> dict[str, Any]:
    (cookie,) = (value for name, value in scope["headers"] if name == b"cookie")
    return {**scope, "headers": [*scope["headers"], (b"x-cookie", cookie)]}


def token_in_the_query(world: World, scope: dict[str, Any]) -> dict[str, Any]:
    (token,) = (value for name, value in scope["headers"] if name == b"authorization")
    return {**scope, "query_string": b"token=" + quote(token).encode()}


class Doubling(httpx.AsyncHTTPTransport):
    """Sends what is in `Authorization` in another field as well."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["x-authorization"] = base64.b64encode(request.headers["authorization"].encode()).decode()
        return await super().handle_async_request(request)


def the_first(world: World, token: Token) -> Token:
    """What a cache gives that has forgotten whose token it keeps."""
    return Token(world.canaries[TOKEN])


planted("the caller's cookie to the upstream", (COOKIE, "the upstream"), wrap=asking(cookie_by_another_name))
planted(
    "the caller's token in the upstream's query",
    (CALLER, "the upstream"),
    (WHOSE, "the upstream"),
    wrap=asking(token_in_the_query),
    uvicorn={"access_log": False},
)
planted(
    "the token in a second field to the upstream",
    (TOKEN, "the upstream"),
    change=lambda world, arguments: arguments | {"transport": Doubling(trust_env=False)},
)
planted(
    "one user's token for another's request",
    (TOKEN, "the upstream"),
    change=watched(the_first),
    run=lambda world: [world.ask("GET", "/idp/github/user", user=user) for user in ("alice", "bob")],
)


# To the identity provider.


def reporting_to_the_idp(world: World, token: str) -> None:
    httpx.get(f"{world.idp_url}/userinfo", headers={"authorization": f"Bearer {token}"}, trust_env=False)


def secret_to_the_api(world: World, token: str) -> None:
    parameters = {"client_secret": world.canaries["client secret"]}
    httpx.get(f"{world.idp_url}/api/v2/stats", params=parameters, trust_env=False)


planted(
    "the provider's token to the identity provider",
    (TOKEN, "the identity provider"),
    change=on_the_way(reporting_to_the_idp),
)
planted(
    "the client's secret to another endpoint than the token endpoint",
    ("client secret", "the identity provider"),
    ("client secret", "the log"),  # httpx's client logs URLs
    change=on_the_way(secret_to_the_api),
)


# To the app behind, and to files.


def in_the_scope(world: World, scope: dict[str, Any]) -> dict[str, Any]:
    return {**scope, "path": "/other", "raw_path": b"/other", "state": {"token": world.canaries[TOKEN]}}


class InTheClear(TokenCache):
    """Writes what it keeps as it is."""

    __slots__ = ()

    def _keep_in(self, *args: Any) -> None:
        super()._keep_in(*args)
        self._tokens.__class__ = Unsealed


class Unsealed(SharedValues[Token]):
    __slots__ = ()

    def _sealed(self, name: str, asked: Any) -> str:
        return json.dumps({"name": name, "value": asked[0].value})


class PlainVault:
    """Writes down entries as they are."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def seal(self, entry: Any) -> str:
        sealed: str = self._inner.seal(entry)
        return f"{sealed} {entry.token.access_token} {entry.token.refresh_token}"

    def open(self, key: Any, sealed: str, version: str) -> Any:
        return self._inner.open(key, sealed.partition(" ")[0], version)


def plain_store(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    store = arguments["routes"]["github"].source._store
    assert isinstance(store, SQLiteTokenStore)
    store._vault = PlainVault(store._vault)  # type: ignore[assignment]
    return arguments


planted(
    "the token in the scope of the app behind",
    (TOKEN, "the app behind"),
    (TOKEN, "the caller"),  # to whom this one tells all that it is told
    wrap=asking(in_the_scope),
)
planted(
    "the shared cache in the clear",
    (TOKEN, FILES),
    ("management token", FILES),
    change=lambda world, arguments: (
        arguments | {"cache": InTheClear(world.shared, encryption_keys=[world.canaries["encryption key"]])}
    ),
)
planted(
    "the token store in the clear",
    ("alice's second provider token", FILES),
    ("alice's second refresh token", FILES),
    set_up="refresh token",
    change=plain_store,
)
planted(
    "the token in a file for debugging",
    (TOKEN, FILES),
    change=on_the_way(lambda world, token: (world.folder / "core.1").write_bytes(b"\0ELF" + token.encode())),
)
planted(
    "the caller's token in a file's name",
    (CALLER, FILES),
    change=on_the_way(
        lambda world, token: (world.folder / world.canaries[CALLER].rpartition(".")[2][:200]).write_text("")
    ),
)


# Through what is there to be seen.


def named_after_its_token(world: World, token: Token) -> Token:
    assert world.middleware is not None
    world.middleware.route("github").source.name = token.value  # type: ignore[attr-defined]
    return token


def label(world: World, token: str) -> None:
    Counter("debug", "A token as a label.", ["token"], registry=world.watching.metrics.registry).labels(token).inc()


planted("the token in a metric's label", (TOKEN, METRICS), change=on_the_way(label))
planted(
    "the token in a span's attribute",
    (TOKEN, TRACES),
    change=on_the_way(lambda world, token: trace.get_current_span().set_attribute("debug", token)),
)
planted(
    "the token in what observers are told",
    (TOKEN, RECORDS),
    (TOKEN, METRICS),
    (TOKEN, TRACES),
    (TOKEN, "the log"),
    change=watched(named_after_its_token),
)
planted(
    "who it is in a line of the access log",
    (WHOSE, "the log"),
    change=lambda world, arguments: (
        arguments
        | {
            "observers": [
                lambda record: logging.getLogger("idp_middleware.access").info(
                    "%s", world.authority.subject("alice"), extra={"idp": {"caller": world.authority.subject("alice")}}
                )
            ]
        }
    ),
)
