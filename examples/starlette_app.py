"""A Starlette app with routes of its own and GitHub under /idp: for the browser, and for its own code as the user.

export AUTH0_URL=https://acme.eu.auth0.com AUTH0_CLIENT_ID=… AUTH0_CLIENT_SECRET=…
uvicorn examples.starlette_app:app

curl http://localhost:8000/repositories -H "Authorization: Bearer $TOKEN"
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from idp_middleware import IdPMiddleware, JWTAuthenticator, errors, providers, sources

auth0 = sources.Auth0Management(
    base_url=os.environ["AUTH0_URL"],
    client_id=os.environ["AUTH0_CLIENT_ID"],
    client_secret=os.environ["AUTH0_CLIENT_SECRET"],
)
github = providers.github(
    token_source=auth0,
    connection="github",
    scopes={"read:github"},
    upstream=os.environ.get("GITHUB_API_URL", "https://api.github.com"),
)
idp = IdPMiddleware(
    authenticator=JWTAuthenticator(issuer=os.environ["AUTH0_URL"] + "/", audience="https://api.acme.example"),
    routes={"github": github},
)


async def repositories(request: Request) -> Response:
    caller = await idp.authenticate(request)
    answer = await idp.client("github", caller).get("/user/repos")
    return JSONResponse({caller.subject: [repository["name"] for repository in answer.json()]})


async def refused(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.IdPError)
    return JSONResponse(errors.problem(exc), status_code=exc.status, headers=dict(exc.headers()))


app = Starlette(routes=[Route("/repositories", repositories)], exception_handlers={errors.IdPError: refused})
app.add_middleware(idp.around)
