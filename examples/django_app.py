"""Django behind the middleware: any ASGI app can be wrapped. Here a whole project in one file; yours has its asgi.py.

export AUTH0_URL=https://acme.eu.auth0.com AUTH0_CLIENT_ID=… AUTH0_CLIENT_SECRET=… DJANGO_SECRET_KEY=…
pip install django; uvicorn examples.django_app:app

/idp/github/… goes to GitHub as the user; everything else is Django's, which finds who is calling in the scope.
"""

import os

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse, JsonResponse
from django.urls import path
from starlette.requests import HTTPConnection

from idp_middleware import IdPMiddleware, JWTAuthenticator, errors, providers, sources

settings.configure(
    SECRET_KEY=os.environ["DJANGO_SECRET_KEY"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
)
django.setup()


async def me(request: ASGIRequest) -> HttpResponse:
    try:
        caller = await app.authenticate(HTTPConnection(request.scope))
        answer = await app.client("github", caller).get("/user")
    except errors.IdPError as exc:
        return JsonResponse(errors.problem(exc), status=exc.status, headers=dict(exc.headers()))
    return JsonResponse({"subject": caller.subject, "github": answer.json()["login"]})


urlpatterns = [path("me", me)]

auth0 = sources.Auth0Management(
    base_url=os.environ["AUTH0_URL"],
    client_id=os.environ["AUTH0_CLIENT_ID"],
    client_secret=os.environ["AUTH0_CLIENT_SECRET"],
)
github = providers.github(
    token_source=auth0,
    connection="github",
    upstream=os.environ.get("GITHUB_API_URL", "https://api.github.com"),
)
app = IdPMiddleware(
    get_asgi_application(),
    authenticator=JWTAuthenticator(issuer=os.environ["AUTH0_URL"] + "/", audience="https://api.acme.example"),
    routes={"github": github},
)
