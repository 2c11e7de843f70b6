"""FastAPI handlers that know who is calling, and call a provider's API as the caller; on real sockets."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from idp_middleware import Caller, IdPMiddleware, JWTAuthenticator, ProxyRoute, sources
from idp_middleware.errors import IdentityNotLinked
from idp_middleware.fastapi import CurrentCaller, current_caller, idp_client
from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.stack import AUDIENCE, CLIENT, USERS, eventually, free_port

GitHub = Annotated[httpx.AsyncClient, Depends(idp_client("github"))]
PREMIUM: set[str] = {"auth0|alice", "auth0|bob"}


def an_app() -> FastAPI:
    app = FastAPI()
    app.state.later = []

    @app.get("/me")
    async def me(caller: CurrentCaller) -> dict[str, Any]:
        return {"subject": caller.subject, "account": caller.account}

    @app.get("/login")
    async def login(github: GitHub) -> str:
        return (await github.get("/user")).json()["login"]

    @app.get("/kind")
    async def kind(github: GitHub) -> str:
        try:
            return (await github.get("/user")).json()["login"]
        except IdentityNotLinked:
            return "nobody yet"

    @app.get("/both")
    async def both(
        github: GitHub, dead: Annotated[httpx.AsyncClient, Depends(idp_client("dead"))], caller: CurrentCaller
    ) -> str:
        return (await dead.get("/user")).text

    @app.get("/premium")
    async def premium(api: Annotated[httpx.AsyncClient, Depends(idp_client("premium"))]) -> str:
        return (await api.get("/user")).json()["login"]

    @app.post("/later")
    async def later(github: GitHub, tasks: BackgroundTasks) -> None:
        async def work() -> None:
            app.state.later.append((await github.get("/user")).json()["login"])

        tasks.add_task(work)

    @app.get("/typo")
    async def typo(api: Annotated[httpx.AsyncClient, Depends(idp_client("githup"))]) -> None:
        raise AssertionError("never")

    @app.websocket("/ws")
    async def ws(websocket: WebSocket, caller: CurrentCaller) -> None:
        await websocket.accept()

    return app


class World:
    """Auth0, a provider, and what the middleware is made of."""

    def __init__(self, idp: str, api: str, auth0: Auth0, provider: ProviderAPI) -> None:
        self.auth0, self.provider, self.asked = auth0, provider, 0
        source = sources.Auth0Management(base_url=idp, client_id=CLIENT[0], client_secret=CLIENT[1])
        world = self

        class Counting(JWTAuthenticator):
            async def authenticate(self, conn: Any) -> Caller:
                world.asked += 1
                return await super().authenticate(conn)

        async def premium(caller: Caller, conn: Any) -> bool:
            return caller.subject in PREMIUM and conn.url.path == "/premium"

        github = ProxyRoute(api, token_source=source, connection="github", scopes={"read:github"})
        self.options: dict[str, Any] = {
            "authenticator": Counting(issuer=auth0.issuer, audience=AUDIENCE),
            "routes": {
                "github": github,
                "dead": ProxyRoute(f"http://127.0.0.1:{free_port()}", token_source=sources.Static("gho_dead")),
                "premium": ProxyRoute(api, token_source=source, connection="github", authorize=premium),
            },
        }

    def client(self, url: str, user: str = "alice", scope: str = "read:github") -> httpx.Client:
        token = self.auth0.issue_token(f"auth0|{user}", audience=AUDIENCE, scope=scope)
        return httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=30)


@pytest.fixture
def world():
    auth0, provider = Auth0(), ProviderAPI()
    auth0.add_client(*CLIENT)
    for number, (user, token) in enumerate(USERS.items(), start=101):
        auth0.add_user(f"auth0|{user}", [Identity("github", str(number), access_token=token)])
        provider.accept(token, login=user)
    auth0.add_user("auth0|carol", [])
    with serve(auth0) as idp, serve(provider) as api:
        yield World(idp.url, api.url, auth0, provider)


@pytest.fixture
def app(world):
    app = an_app()
    app.add_middleware(IdPMiddleware, **world.options)
    return app


@pytest.fixture
def url(app):
    with serve(app) as server:
        yield server.url


def test_a_handler_calls_the_api_as_whoever_called_it(world, url):
    """The job, with the one line that everybody has: `app.add_middleware(IdPMiddleware, …)`."""
    for user in ("alice", "bob", "alice"):
        with world.client(url, user) as client:
            assert client.get("/login").json() == user
            assert client.get("/me").json() == {"subject": f"auth0|{user}", "account": None}
    assert world.provider.tokens_seen() == list(USERS.values())


def test_handlers_and_the_proxy_share_what_is_kept(world, url):
    """One look-up for both."""
    with world.client(url) as client:
        assert client.get("/idp/github/user").json()["login"] == client.get("/login").json() == "alice"
    assert world.auth0.count("/api/v2/users/") == 1


@pytest.mark.parametrize("path", ["/me", "/login", "/both"])
def test_who_does_not_say_who_he_is_is_asked_to(world, url, path):
    """As under the prefix: a challenge, and an error in it only where a token came."""
    answer = httpx.get(url + path, trust_env=False)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["detail"]["type"] == "urn:idp-middleware:problem:caller-unauthenticated"
    answer = httpx.get(url + path, headers={"authorization": "Bearer x.y.z"}, trust_env=False)
    assert (answer.status_code, 'error="invalid_token"' in answer.headers["www-authenticate"]) == (401, True)
    assert world.provider.requests == []


def test_a_caller_without_the_routes_scopes_gets_no_client(world, url):
    """A token that was narrowed on purpose must not be widened by a handler; who is calling it still tells."""
    with world.client(url, scope="read:other") as client:
        answer = client.get("/login")
        assert answer.status_code == 403
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read:github"'
        assert client.get("/me").status_code == 200
    assert world.provider.requests == []


def test_the_routes_own_function_has_the_last_word(world, url, monkeypatch):
    """It sees the request that the handler got."""
    with world.client(url) as client:
        assert client.get("/premium").json() == "alice"
        monkeypatch.setattr("tests.test_fastapi.PREMIUM", set())
        assert client.get("/premium").status_code == 403


def test_what_a_client_raises_becomes_the_answer(world, url, caplog):
    """So that the front end knows one set of problems; the operator's log has the reason."""
    with world.client(url, "carol") as client:
        answer = client.get("/login")
        assert answer.status_code == 403
        assert answer.json()["detail"] == {
            "type": "urn:idp-middleware:problem:identity-not-linked",
            "title": "The user has not linked an account for this connection.",
            "status": 403,
            "connection": "github",
        }
        assert client.get("/kind").json() == "nobody yet"
    world.auth0.rate_limit("/api/v2/users/", retry_after=60)
    with world.client(url) as client, caplog.at_level(logging.WARNING, "idp_middleware"):
        answer = client.get("/login")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
        assert client.get("/both").status_code == 502
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "token-source-unavailable",
        "upstream-unreachable",
    ]


def test_a_request_is_authenticated_once(world, url):
    """However many clients a handler has."""
    with world.client(url) as client:
        client.get("/both")
    assert world.asked == 1


def test_an_account_can_be_named(world, url):
    """With the same header field as under the prefix."""
    world.auth0.link("auth0|alice", Identity("github", "999", access_token=USERS["bob"]))
    with world.client(url) as client:
        assert client.get("/login").json()["detail"]["accounts"] == ["101", "999"]
        assert client.get("/login", headers={"IdP-Account": "999"}).json() == "bob"
        assert client.get("/me", headers={"IdP-Account": "999"}).json()["account"] == "999"
        assert client.get("/me", headers={"IdP-Account": ""}).status_code == 400


def test_a_client_serves_background_tasks_too(world, url, app):
    """They run when the answer is out."""
    with world.client(url) as client:
        assert client.post("/later").status_code == 200
    eventually(lambda: app.state.later == ["alice"])


def test_a_websocket_is_refused_like_a_request(url):
    """Before it is accepted."""
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = httpx.get(f"{url}/ws", headers=upgrade, trust_env=False)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_tests_can_replace_both(app):
    """As any dependency: the same name is the same dependency."""

    class Fake:
        async def get(self, path: str) -> httpx.Response:
            return httpx.Response(200, json={"login": "fake"})

    app.dependency_overrides[idp_client("github")] = Fake
    app.dependency_overrides[current_caller] = lambda: Caller("someone")
    with serve(app) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/login").json() == "fake"
        assert client.get("/me").json()["subject"] == "someone"


def test_the_schema_says_nothing_of_it(url):
    """Neither a client nor a caller is a parameter."""
    paths = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
    assert all("parameters" not in operation for path in paths.values() for operation in path.values())


def test_mistakes_in_the_set_up_are_told_to_the_operator(world, app, caplog):
    """A 500: nobody who calls can do anything about them."""
    with serve(app) as server, world.client(server.url) as client:
        assert client.get("/typo").status_code == 500
    with serve(an_app()) as server, world.client(server.url) as client:
        assert client.get("/me").status_code == 500
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert ["githup" in told[0], "add_middleware(IdPMiddleware" in told[1]] == [True, True]


def test_an_app_inside_another_finds_it_too(world):
    """Mounted, and with the middleware wrapped around the whole."""
    outer = FastAPI()
    outer.mount("/inner", an_app())
    with serve(IdPMiddleware(outer, **world.options)) as server, world.client(server.url) as client:
        assert client.get("/inner/login").json() == "alice"
        assert client.get("/idp/github/user").json()["login"] == "alice"


def test_a_middleware_that_is_made_first_serves_jobs_as_well(world):
    """What the app's start and its jobs ask for, callers find kept, and the other way round."""
    idp = IdPMiddleware(**world.options)
    found = []

    @asynccontextmanager
    async def lifespan(app):
        found.append((await idp.client("github", Caller("auth0|bob")).get("/user")).json()["login"])
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/job")
    async def job() -> str:
        caller = Caller("auth0|alice", claims={"iss": world.auth0.issuer})
        answer = await asyncio.create_task(idp.client("github", caller).get("/user"))
        return answer.json()["login"]

    app.add_middleware(idp.around)
    with serve(app) as server, world.client(server.url) as client:
        assert client.get("/idp/github/user").json()["login"] == "alice"
        assert httpx.get(f"{server.url}/job", trust_env=False).json() == "alice"
        assert httpx.get(f"{server.url}/none", trust_env=False).json() == {"detail": "Not Found"}
    assert found == ["bob"]
    assert world.auth0.count("/api/v2/users/") == 2


def test_a_starlette_handler_does_without_fastapi(world):
    """The same two calls, by hand."""
    idp = IdPMiddleware(**world.options)

    async def login(request: Any) -> JSONResponse:
        caller = await idp.authenticate(request)
        return JSONResponse((await idp.client("github", caller).get("/user")).json()["login"])

    app = Starlette(routes=[Route("/login", login)])
    app.add_middleware(idp.around)
    with serve(app) as server, world.client(server.url) as client:
        assert client.get("/login").json() == "alice"


def test_nothing_else_needs_fastapi():
    """It is the app's, not ours."""
    code = "import sys, idp_middleware, idp_middleware._cli; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
