"""A single-page app that shows the signed-in user's GitHub repositories, and holds no GitHub token.

npm ci --prefix examples/spa                       # one library for the login, no build step
export AUTH0_URL=https://acme.eu.auth0.com AUTH0_CLIENT_ID=… AUTH0_CLIENT_SECRET=… SPA_CLIENT_ID=…
uvicorn --app-dir examples/spa app:app

At Auth0, `SPA_CLIENT_ID` is an application of the type "Single Page" with http://localhost:8000/ as its callback and
logout URL; the other is a machine-to-machine application, as README says. What is under /idp is in `idp.toml`.
"""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from idp_middleware import IdPMiddleware, load_config

HERE = Path(__file__).parent

app = FastAPI()
app.add_middleware(IdPMiddleware, **load_config(HERE / "idp.toml"))


@app.get("/settings.json")
async def settings() -> dict[str, str]:
    return {
        "issuer": os.environ["AUTH0_URL"] + "/",
        "client_id": os.environ["SPA_CLIENT_ID"],
        "audience": "https://api.acme.example",
        "scope": "openid profile read:github",
    }


app.mount("/vendor", StaticFiles(directory=HERE / "node_modules/oauth4webapi/build"))
app.mount("/", StaticFiles(directory=HERE / "static", html=True))
