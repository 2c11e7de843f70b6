"""Dependencies for FastAPI: who is calling, and a provider's API as the caller.

    from idp_middleware.fastapi import CurrentCaller, idp_client

    GitHub = Annotated[httpx.AsyncClient, Depends(idp_client("github"))]

    @app.get("/starred")
    async def starred(github: GitHub) -> list[str]:
        answer = await github.get("/user/starred")
        return [repository["full_name"] for repository in answer.json()]

They find the `IdPMiddleware` in front of the app by themselves. What fails becomes an `HTTPException` with the status
and header fields that the middleware would answer with, and the problem document as its `detail`. In tests they are
replaced like any dependency: `app.dependency_overrides[idp_client("github")] = …`.

Needs FastAPI, which nothing else here does.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Annotated, Any, TypeAlias

import httpx
from fastapi import Depends, FastAPI, HTTPException
from starlette.requests import HTTPConnection

from idp_middleware._middleware import SCOPE_KEY, IdPMiddleware
from idp_middleware._openapi import describe
from idp_middleware._rules import ask
from idp_middleware._traces import forget_details
from idp_middleware._types import Caller
from idp_middleware.errors import ConfigurationError, IdPError, problem

__all__ = ["CurrentCaller", "current_caller", "describe_routes", "idp_client"]

logger: logging.Logger = logging.getLogger("idp_middleware")


async def current_caller(conn: HTTPConnection) -> Caller:
    """Who sent this request, as the middleware's authenticator has it.

    Raises `HTTPException`: 401 with its challenge, or what else the authenticator says.
    """
    try:
        return await _middleware(conn).authenticate(conn)
    except IdPError as exc:
        raise _answer(exc) from exc


CurrentCaller: TypeAlias = Annotated[Caller, Depends(current_caller)]


@cache
def idp_client(route: str) -> Callable[..., AsyncIterator[httpx.AsyncClient]]:
    """A dependency: `IdPMiddleware.client` for a route and the current caller.

    A caller who may not use the route at all, for its `scopes` or its `authorize`, is refused with 403. Its `methods`,
    `paths` and `rules` are about what callers send themselves.

    An error that a request of the client raises, and that is not caught, becomes the answer.
    """

    async def client(conn: HTTPConnection, caller: CurrentCaller) -> AsyncIterator[httpx.AsyncClient]:
        try:
            middleware = _middleware(conn)
            known = middleware.route(route)
            known.check_scopes(caller.scopes)
            if known.authorize is not None:
                await ask(known.authorize, caller, conn)
            yield middleware.client(route, caller)
        except IdPError as exc:
            raise _answer(exc) from exc

    return client


def describe_routes(app: FastAPI, idp: IdPMiddleware) -> None:
    """Put the proxied routes into the app's OpenAPI document, so that Swagger UI and generated clients can call them.

        idp = IdPMiddleware(authenticator=…, routes={"github": …})
        app.add_middleware(idp.around)
        describe_routes(app, idp)

    Which operations there are follows from each route's `methods` and `paths`; the more these say, the better the
    document. A route without `paths` has a path for each number of segments up to four, since clients encode a slash
    within one. The security scheme is the authenticator's: a bearer token, or the field that a session asks for.
    """
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            # FastAPI keeps what it made.
            describe(original(), idp._routes, idp._routes.prefix, idp._authenticator)
        return original()

    app.openapi = openapi  # type: ignore[method-assign]


def _middleware(conn: HTTPConnection) -> IdPMiddleware:
    middleware = conn.scope.get(SCOPE_KEY)
    if not isinstance(middleware, IdPMiddleware):
        raise ConfigurationError("IdPMiddleware is not in front of this app: app.add_middleware(IdPMiddleware, …)")
    return middleware


def _answer(error: IdPError) -> HTTPException:
    # As the middleware does: an HTTPException leaves no trace of what is for the operator only.
    logger.log(logging.WARNING if error.status >= 500 else logging.DEBUG, "%s: %s", error.name, error)
    forget_details(error)
    headers = {"cache-control": "no-store", **dict(error.headers())}
    return HTTPException(error.status, detail=problem(error), headers=headers)
