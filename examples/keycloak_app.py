"""A FastAPI app whose users log in at Keycloak with GitHub: it keeps the token, and gives it for the caller's own.

In Keycloak: "Store tokens" on for the identity provider `github`, and for users the role `read-token` of the client
`broker` (the identity provider's "Stored tokens readable" gives it to new users). The audience is the API's client.

export KEYCLOAK_REALM=https://sso.acme.example/realms/acme
uvicorn examples.keycloak_app:app
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from idp_middleware import IdPMiddleware, JWTAuthenticator, providers, sources
from idp_middleware.fastapi import CurrentCaller, idp_client

realm = os.environ["KEYCLOAK_REALM"]
github = providers.github(
    token_source=sources.KeycloakBroker(realm_url=realm),
    connection="github",
    upstream=os.environ.get("GITHUB_API_URL", "https://api.github.com"),
)

app = FastAPI()
app.add_middleware(
    IdPMiddleware,
    authenticator=JWTAuthenticator(issuer=realm, audience="acme-api"),
    routes={"github": github},
)
GitHub = Annotated[httpx.AsyncClient, Depends(idp_client("github"))]


@app.get("/starred")
async def starred(caller: CurrentCaller, github: GitHub) -> dict[str, list[str]]:
    answer = await github.get("/user/repos")
    return {caller.subject: [repository["name"] for repository in answer.raise_for_status().json()]}
