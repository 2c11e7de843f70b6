"""An MCP server whose tools call GitHub as the user whom the agent works for; neither agent nor model sees that token.

The agent logs its user in at Auth0, as the MCP specification has it, and sends that token. pip install mcp

export AUTH0_URL=https://acme.eu.auth0.com AUTH0_CLIENT_ID=… AUTH0_CLIENT_SECRET=… MCP_URL=http://127.0.0.1:8000/mcp
uvicorn examples.mcp_server:app
"""

import os
from typing import Any

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer
from starlette.requests import HTTPConnection

from idp_middleware import IdPMiddleware, JWTAuthenticator, errors, providers, sources

AUTH0, MCP = os.environ["AUTH0_URL"], os.environ["MCP_URL"]

auth0 = sources.Auth0Management(
    base_url=AUTH0, client_id=os.environ["AUTH0_CLIENT_ID"], client_secret=os.environ["AUTH0_CLIENT_SECRET"]
)
upstream = os.environ.get("GITHUB_API_URL", "https://api.github.com")
# An MCP server is the audience of its tokens (RFC 8707).
authenticator = JWTAuthenticator(issuer=f"{AUTH0}/", audience=MCP)
idp = IdPMiddleware(
    authenticator=authenticator,
    routes={"github": providers.github(token_source=auth0, connection="github", upstream=upstream)},
)


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        scope = {"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]}
        try:
            caller = await authenticator.authenticate(HTTPConnection(scope))
        except errors.CallerUnauthenticated:
            return None
        return AccessToken(token=token, client_id=str(caller.claims.get("azp")), scopes=[], subject=caller.subject)


# The authenticator looks at the token's resource itself.
settings = AuthSettings(issuer_url=f"{AUTH0}/", resource_server_url=MCP, validate_token_resource=False)
server = MCPServer("GitHub as you", token_verifier=Verifier(), auth=settings)


@server.tool()
async def my_repositories(context: Context) -> list[str]:
    """The names of the user's repositories on GitHub."""
    request: Any = context.request_context.request
    caller = await idp.authenticate(request)
    try:
        answer = await idp.client("github", caller).get("/user/repos")
    except errors.IdentityNotLinked:
        return ["The user has not connected GitHub yet: ask them to."]
    return [repository["name"] for repository in answer.raise_for_status().json()]


app = idp.around(server.streamable_http_app())
