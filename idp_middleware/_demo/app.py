"""The demo's app: what `examples/fastapi_app.py` shows, with a page to click in, against the stand-ins on loopback.

Serves `static/`, and tells the page what it must know: where to log in, and what the stand-ins were asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

from idp_middleware import IdPMiddleware, JWTAuthenticator, providers
from idp_middleware._demo.stand_ins import AUDIENCE, CLIENT_ID, CLIENT_SECRET, PAGE_ID, SCOPE, Witness
from idp_middleware.fastapi import CurrentCaller
from idp_middleware.sources import Auth0Management, Auth0TokenVault

_STATIC = Path(__file__).parent / "static"


def sample_app(*, idp_url: str, api_url: str, witness: Witness) -> FastAPI:
    """The app with the middleware in front."""
    app = FastAPI(title="Sample app")
    profiles = Auth0Management(base_url=idp_url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    vault = Auth0TokenVault(base_url=idp_url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    # A stand-in's /echo sends back all that it received, as some APIs do: `scrub` masks the token on its way out.
    idp = IdPMiddleware(
        authenticator=JWTAuthenticator(issuer=f"{idp_url}/", audience=AUDIENCE),
        routes={
            "github": providers.github(
                token_source=profiles, connection="github", scopes={SCOPE}, upstream=api_url, scrub=True
            ),
            "gitlab": providers.gitlab(token_source=vault, connection="gitlab", upstream=api_url, scrub=True),
            "bitbucket": providers.bitbucket(
                token_source=profiles, connection="bitbucket", upstream=api_url, scrub=True
            ),
        },
    )
    app.add_middleware(idp.around)

    @app.get("/settings.json")
    async def settings() -> dict[str, str]:
        scope = f"openid profile {SCOPE}"
        return {"issuer": f"{idp_url}/", "client_id": PAGE_ID, "audience": AUDIENCE, "scope": scope}

    @app.get("/seen")
    async def seen(caller: CurrentCaller, after: int = 0) -> dict[str, Any]:  # noqa: ARG001 (has to be one)
        return witness.seen(after)

    app.mount("/", _Page(idp_url))
    return app


class _Page(StaticFiles):
    """The page's files. They may load and call nothing but this app, and the identity provider to log in."""

    def __init__(self, idp_url: str) -> None:
        super().__init__(directory=_STATIC, html=True)
        self._fields = {
            "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            f"connect-src 'self' {idp_url}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'",
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(self._fields)
        return response
