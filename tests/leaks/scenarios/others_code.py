"""What code of other people does around the middleware and within it; caches that are away, and debug modes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from idp_middleware import TokenCache, sources
from idp_middleware.testing._double import Answer as IdPAnswer
from tests.leaks.authority import repeating
from tests.leaks.scenarios.calls import BIG
from tests.leaks.scenarios.outcomes import goes_through, refused_and_renewed
from tests.leaks.scenarios.parts import always, expect, hang_up, with_route
from tests.leaks.scenarios.upstreams import uploads
from tests.leaks.set_ups import client
from tests.leaks.world import World
from tests.stack import free_port


def code_of_others(world: World) -> None:
    expect(world, (500, 502))
    expect(world, (500, 502), "POST", body=b"content")


def raising_source(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    """Somebody's token source, in whose mistake is a token."""

    async def source(caller: Any, route: Any) -> Any:
        raise LookupError(f"no refresh token {world.canaries.of('alice', 'refresh token')} for {caller!r}")

    return with_route(world, arguments, token_source=source)


def source_of_something_else(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    async def source(caller: Any, route: Any) -> Any:
        return world.canaries.of("alice", "provider token")

    return with_route(world, arguments, token_source=source)


class Telling(httpx.AsyncBaseTransport):
    """A transport of somebody's own, which says all that it knows when something is wrong."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        raise RuntimeError(f"cannot send {request.headers.raw} {content!r}")


def upstream_transport_that_tells(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"transport": Telling()}


def idp_transport_that_tells(world: World, arguments: dict[str, Any]) -> dict[str, Any]:

    source = sources.Auth0Management(base_url=world.idp_url, transport=Telling(), **client(world))
    return with_route(world, arguments, token_source=source)


def wrapped(receiving: bool = False, sending: bool = False) -> Callable[[World, Any], Any]:
    """The app within something that fails when it is read from, or written to."""

    def wrap(world: World, app: Any) -> Any:
        async def failing(*_: Any) -> Any:
            raise RuntimeError("the server has had enough")

        async def wrapper(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            await app(scope, failing if receiving else receive, failing if sending else send)

        return wrapper

    return wrap


def the_server_fails(world: World) -> None:
    world.ask()
    world.ask("POST", body=b"content")
    world.ask("PUT", body=BIG)


def raising_authenticator(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    async def authenticate(conn: Any) -> Any:
        raise LookupError("no such user")

    return arguments | {"authenticator": authenticate}


def raising_error_handler(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    def on_error(conn: Any, error: Any) -> Any:
        raise LookupError("no template for it")

    return arguments | {"on_error": on_error}


def errors_meet_it(world: World) -> None:
    """Ours and the upstream's, in a gateway whose error handler fails."""
    world.tap.answer = always(hang_up)
    world.ask()
    world.ask(credentials=False)
    world.authority.echo = repeating
    world.ask(user="bob")


def cache_is_away(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    """A Redis that is not there, with a password in its URL."""
    url = f"redis://user:{world.canaries['password of the cache']}@127.0.0.1:{free_port()}/0"
    return arguments | {"cache": TokenCache.from_url(url, encryption_keys=[world.canaries["encryption key"]])}


def database_is_away(world: World, arguments: dict[str, Any]) -> dict[str, Any]:

    url = f"postgresql+asyncpg://user:{world.canaries['password of the database']}@127.0.0.1:{free_port()}/tokens"
    source = sources.RefreshToken(
        store=url,
        encryption_keys=[world.canaries["encryption key"]],
        token_url=f"{world.idp_url}/refresh",
        **client(world),
    )
    return with_route(world, arguments, token_source=source)


def stored_elsewhere(world: World) -> None:
    expect(world, 503)


def store_is_broken(world: World) -> None:
    (world.folder / "tokens.db").write_bytes(b"no database, but a file all the same")
    expect(world, 503)


def refresh_withdrawn(world: World) -> None:
    """The provider says so, and repeats the token that it does not take."""

    def withdrawn(request: Any) -> IdPAnswer | None:
        answer = repeating(request)
        if answer is None or not isinstance(answer.body, dict):
            return None
        return IdPAnswer(400, {**answer.body, "error": "invalid_grant"})

    world.authority.echo = withdrawn
    expect(world, 403)
    expect(world, 403)


def slow_callbacks(world: World, app: Any) -> Any:
    """asyncio's debug mode, in which every callback is slow: it writes each of them down, arguments and all."""

    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0
        await app(scope, receive, send)

    return wrapper


def debugged(world: World) -> None:
    goes_through(world)
    refused_and_renewed(world)
    uploads(world)
    world.tap.answer = always(hang_up)
    expect(world, 502)
    assert world.log is not None
    assert any("Executing" in record.getMessage() for record in world.log.records)
