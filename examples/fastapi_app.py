"""A FastAPI app whose front end calls GitHub as the signed-in user, without ever holding the user's GitHub token.

export AUTH0_URL=https://acme.eu.auth0.com AUTH0_CLIENT_ID=… AUTH0_CLIENT_SECRET=…
uvicorn examples.fastapi_app:app

fetch("/idp/github/user/repos", { headers: { Authorization: `Bearer ${accessToken}` } })
"""

import os

from fastapi import FastAPI

from idp_middleware import IdPMiddleware, JWTAuthenticator, providers, sources

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

app = FastAPI()
app.add_middleware(
    IdPMiddleware,
    authenticator=JWTAuthenticator(issuer=os.environ["AUTH0_URL"] + "/", audience="https://api.acme.example"),
    routes={"github": github},
)


@app.get("/")
async def home() -> dict[str, str]:
    return {"hello": "from the app itself"}
