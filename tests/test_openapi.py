"""Proxied routes in a FastAPI app's OpenAPI document: valid, and good enough for a client that goes by it alone."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate

from idp_middleware import AnyOf, Caller, IdPMiddleware, JWTAuthenticator, ProxyRoute, SessionAuthenticator, sources
from idp_middleware.fastapi import describe_routes
from idp_middleware.testing import World, serve

ISSUER, AUDIENCE = "https://acme.eu.auth0.com/", "https://api.acme.example"


def described(
    routes: dict[str, ProxyRoute], authenticator: Any = None, *, prefix: str = "/idp", transport: Any = None
) -> FastAPI:
    """An app with an operation of its own, and the routes."""
    if authenticator is None:
        authenticator = JWTAuthenticator(issuer=ISSUER, audience=AUDIENCE, transport=transport)
    idp = IdPMiddleware(authenticator=authenticator, routes=routes, prefix=prefix, transport=transport)
    app = FastAPI()

    @app.get("/own")
    async def own() -> str:
        return "own"

    app.add_middleware(idp.around)
    describe_routes(app, idp)
    return app


def route(**options: Any) -> ProxyRoute:
    return ProxyRoute("https://api.example/v1?key=secret", token_source=sources.PassThrough(), **options)


def operations(document: dict[str, Any]) -> list[str]:
    return [
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    ]


def test_a_route_is_described_as_far_as_it_says_what_it_allows() -> None:
    """Besides the app's own; the document is made once, and valid."""
    app = described({"github": route(methods=["GET", "POST", "HEAD"], paths=["/user", "/repos/*/*/issues", "/x-*"])})
    document = app.openapi()
    validate(document)
    assert operations(document) == [
        "GET /own",
        "GET /idp/github/user",
        "POST /idp/github/user",
        "GET /idp/github/repos/{segment1}/{segment2}/issues",
        "POST /idp/github/repos/{segment1}/{segment2}/issues",
        "GET /idp/github/x-{segment1}",
        "POST /idp/github/x-{segment1}",
    ]
    assert app.openapi() is document
    # Where the upstream is: the document is for everybody, and the upstream may be an internal one.
    assert "secret" not in str(document)
    assert "api.example" not in str(document)


@pytest.mark.parametrize("paths", [None, ["/**"], ["/a/**/b/**", "/a/**/b/**"]])
def test_any_path_is_one_for_each_number_of_segments(paths: list[str] | None) -> None:
    """A client encodes a slash within a variable, so one variable would not do."""
    document = described({"api-1": route(methods=["GET"], paths=paths)}, prefix="/x").openapi()
    validate(document)
    _, *found = operations(document)
    if paths is None or len(paths) == 1:
        assert found == [
            "GET /x/api-1",
            "GET /x/api-1/{segment1}",
            "GET /x/api-1/{segment1}/{segment2}",
            "GET /x/api-1/{segment1}/{segment2}/{segment3}",
            "GET /x/api-1/{segment1}/{segment2}/{segment3}/{segment4}",
        ]
    else:
        assert found[:2] == ["GET /x/api-1/a/b/{segment1}", "GET /x/api-1/a/{segment1}/b/{segment2}"]


def test_a_route_for_none_of_the_usual_methods_is_left_out() -> None:
    """OPTIONS and such are nothing to click on."""
    assert operations(described({"github": route(methods=["HEAD", "OPTIONS"])}).openapi()) == ["GET /own"]


async def somebody(conn: Any) -> Caller:
    return Caller("somebody")


@pytest.mark.parametrize(
    ("authenticator", "schemes"),
    [
        (None, {"idp": ("http", "bearer")}),
        (somebody, {"idp": ("http", "bearer")}),
        (SessionAuthenticator(header="X-Own"), {"idp_session": ("apiKey", "x-own")}),
        (AnyOf(somebody, SessionAuthenticator()), {"idp": ("http", "bearer"), "idp_session": ("apiKey", "x-csrf")}),
    ],
)
def test_the_security_scheme_is_the_authenticators(authenticator: Any, schemes: dict[str, tuple[str, str]]) -> None:
    """Any one of several will do."""
    document = described({"github": route(methods=["GET"], scopes={"read"})}, authenticator).openapi()
    validate(document)
    declared = document["components"]["securitySchemes"]
    assert {name: (each["type"], each.get("scheme") or each["name"]) for name, each in declared.items()} == schemes
    security = document["paths"]["/idp/github"]["get"]["security"]
    assert security == [{name: ["read"]} for name in schemes]


class Client:
    """Calls operations as Swagger UI does: by the document and nothing else."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._document = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
        self._token = token

    def call(self, operation_id: str, *, json: Any = None, **parameters: str) -> httpx.Response:
        for path, item in self._document["paths"].items():
            for method, operation in item.items():
                if method != "parameters" and operation["operationId"] == operation_id:
                    names = [each["name"] for each in item["parameters"] if each["in"] == "path"]
                    assert set(names) == set(parameters)
                    url = path.format(**{name: quote(value, safe="") for name, value in parameters.items()})
                    headers = {}
                    for name in operation["security"][0]:
                        assert self._document["components"]["securitySchemes"][name]["scheme"] == "bearer"
                        headers["authorization"] = f"Bearer {self._token}"
                    assert (json is not None) <= ("requestBody" in operation)
                    return httpx.request(method, self._url + url, headers=headers, json=json, trust_env=False)
        raise AssertionError(f"the document has no operation {operation_id}")


def test_a_client_that_goes_by_the_document_gets_through() -> None:
    """On a real socket, to the very paths at the API."""
    world = World()
    world.link("alice", "github")
    vault = sources.Auth0TokenVault(
        domain="acme.eu.auth0.com",
        client_id=world.client_id,
        client_secret=world.client_secret,
        transport=world.transport,
    )
    github = ProxyRoute("https://api.github.com", token_source=vault, connection="github", paths=["/user", "/echo/**"])
    with serve(described({"github": github}, transport=world.transport)) as server:
        client = Client(server.url, world.token("alice"))
        assert client.call("github_get_0").json()["login"] == "alice"
        world.assert_called_as("alice", "github", method="GET", path="/user")
        assert client.call("github_post_3", segment1="a", segment2="b c", json={"x": 1}).status_code == 200
        assert world.assert_called_as("alice", "github", method="POST", path="/echo/a/b%20c").json() == {"x": 1}
        assert Client(server.url, "forged").call("github_get_0").status_code == 401
