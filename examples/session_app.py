"""A backend for a frontend: users log in with a cookie session, and the page calls GitHub with no token at all.

export AUTH0_URL=https://acme.eu.auth0.com AUTH0_CLIENT_ID=… AUTH0_CLIENT_SECRET=… SESSION_SECRET=…
pip install itsdangerous; uvicorn examples.session_app:app

fetch("/idp/github/user", { headers: { "X-CSRF": "1" } })       // the session's cookie goes along by itself
"""

import base64
import hashlib
import os
import secrets
from urllib.parse import urlencode

import httpx
import jwt
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from idp_middleware import IdPMiddleware, SessionAuthenticator, providers, sources

AUTH0, CLIENT, SECRET = (os.environ[f"AUTH0_{name}"] for name in ("URL", "CLIENT_ID", "CLIENT_SECRET"))


async def login(request: Request) -> Response:
    request.session["login"] = {"state": secrets.token_urlsafe(), "verifier": secrets.token_urlsafe(48)}
    digest = hashlib.sha256(request.session["login"]["verifier"].encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    asked = {"response_type": "code", "client_id": CLIENT, "redirect_uri": str(request.url_for("callback"))}
    pkce = {"code_challenge": challenge, "code_challenge_method": "S256", "state": request.session["login"]["state"]}
    return RedirectResponse(f"{AUTH0}/authorize?{urlencode({**asked, **pkce, 'scope': 'openid'})}")


async def callback(request: Request) -> Response:
    began = request.session.pop("login", {"state": ""})
    if not secrets.compare_digest(request.query_params.get("state", ""), began["state"]) or not began["state"]:
        return PlainTextResponse("this login was not begun here", 400)
    form = {"grant_type": "authorization_code", "client_id": CLIENT, "client_secret": SECRET}
    form |= {"redirect_uri": str(request.url_for("callback")), "code_verifier": began["verifier"]}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{AUTH0}/oauth/token", data={**form, "code": request.query_params.get("code", "")})
    # Straight from the tenant over TLS, so its signature need not be looked at (OpenID Connect Core 3.1.3.7).
    checks = {"verify_signature": False, "verify_aud": True, "verify_exp": True, "verify_iss": True}
    told = answer.raise_for_status().json()["id_token"]
    request.session["sub"] = jwt.decode(told, options=checks, audience=CLIENT, issuer=f"{AUTH0}/")["sub"]
    return RedirectResponse("/")


auth0 = sources.Auth0Management(base_url=AUTH0, client_id=CLIENT, client_secret=SECRET)
upstream = os.environ.get("GITHUB_API_URL", "https://api.github.com")
github = providers.github(token_source=auth0, connection="github", upstream=upstream)
app = Starlette(routes=[Route("/login", login), Route("/callback", callback)])
app.add_middleware(IdPMiddleware, authenticator=SessionAuthenticator(), routes={"github": github})
# On a real host: https_only=True.
app.add_middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"], same_site="lax", https_only=False)
