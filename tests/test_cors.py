"""Pages of other origins, by Starlette's CORSMiddleware: it runs outside of ours, so it is the one added later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection

from idp_middleware import Caller, IdPMiddleware, SessionAuthenticator
from idp_middleware.errors import NotMine
from idp_middleware.testing import ProviderAPI
from tests.stack import Stack, running
from tests.test_session import OURS, signed

APP = "https://app.example"
PREFLIGHT = {
    "origin": APP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


class Witness:
    """Lets everybody in who sends anything, and counts who came as far as this."""

    asked = 0

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        self.asked += 1
        if "authorization" not in conn.headers:
            raise NotMine("nothing sent", error=None)
        return Caller("auth0|alice", frozenset({"read:github"}))


def cors(app: Any, **options: Any) -> CORSMiddleware:
    options = {
        "allow_origins": [APP],
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["Authorization", "IdP-Account"],
        # Without these, a page sees neither why it was refused nor how to go on.
        "expose_headers": ["WWW-Authenticate", "Proxy-Status", "Retry-After", "Link"],
        **options,
    }
    return CORSMiddleware(app, **options)


@pytest.fixture(scope="module", params=["h11", "httptools"])
def parts(request: pytest.FixtureRequest) -> Iterator[tuple[Stack, Witness]]:
    witness = Witness()
    with running(authenticator=witness, wrap=cors, http=request.param) as stack:
        yield stack, witness


def counts(stack: Stack, witness: Witness) -> tuple[int, int, int]:
    return witness.asked, stack.auth0.count(), stack.provider.count()


def test_a_preflight_is_answered_before_anybody_is_asked(parts: tuple[Stack, Witness]) -> None:
    """It carries no credentials (Fetch, section CORS-preflight fetch), so it could only be refused here."""
    stack, witness = parts
    before = counts(stack, witness)
    with stack.client(user=None) as client:
        answer = client.options("/idp/github/user/repos", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert counts(stack, witness) == before


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://app.example.evil.example", ""])
def test_a_preflight_of_another_origin_gets_no_permission(parts: tuple[Stack, Witness], origin: str) -> None:
    """The page's browser then does not send the request at all."""
    stack, witness = parts
    before = counts(stack, witness)
    with stack.client(user=None) as client:
        answer = client.options("/idp/github/user", headers={**PREFLIGHT, "origin": origin})
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    assert counts(stack, witness) == before


def test_the_page_may_read_what_it_asked_for(parts: tuple[Stack, Witness]) -> None:
    """And a cache in between may not mix up the pages of two origins."""
    stack, _ = parts
    with stack.client() as client:
        answer = client.get("/idp/github/user", headers={"origin": APP})
    assert (answer.status_code, answer.json()["login"]) == (200, "alice")
    assert answer.headers["access-control-allow-origin"] == APP
    assert "origin" in answer.headers["vary"].lower()
    assert stack.provider.last.header("origin") is None


@pytest.mark.parametrize(
    ("method", "path", "user", "status"),
    [
        ("GET", "/idp/github/user", None, 401),
        ("GET", "/idp/nowhere", "alice", 404),
        ("TRACE", "/idp/github/", "alice", 405),
    ],
)
def test_our_own_refusals_can_be_read_too(
    parts: tuple[Stack, Witness], method: str, path: str, user: str | None, status: int
) -> None:
    """Without the permission, a page sees a network error and can't tell that it has to log in."""
    stack, _ = parts
    with stack.client(user) as client:
        answer = client.request(method, path, headers={"origin": APP})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == APP
    assert "WWW-Authenticate" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_page_of_another_origin_may_read_nothing(parts: tuple[Stack, Witness], origin: str) -> None:
    """H13: nothing of ours reflects an Origin."""
    stack, _ = parts
    with stack.client() as client:
        answer = client.get("/idp/github/user", headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_an_options_request_that_is_no_preflight_needs_a_caller(parts: tuple[Stack, Witness]) -> None:
    """Providers' APIs answer OPTIONS as well; that goes the way of any other request."""
    stack, witness = parts
    asked = witness.asked
    with stack.client() as client:
        assert client.options("/idp/github/echo/x").json()["method"] == "OPTIONS"
        del client.headers["authorization"]
        assert client.options("/idp/github/echo/x", headers={"origin": APP}).status_code == 401
    assert witness.asked == asked + 2


def test_the_upstreams_own_permissions_are_not_ours() -> None:
    """They would let pages read users' data that we never allowed to."""
    provider = ProviderAPI()
    fields = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true", "X-Kept": "1"}
    provider.respond("/user", headers=fields, body={})
    with running(authenticator=Witness(), wrap=cors, provider=provider) as stack, stack.client() as client:
        foreign = client.get("/idp/github/user", headers={"origin": "https://evil.example"})
        ours = client.get("/idp/github/user", headers={"origin": APP})
    assert foreign.headers["x-kept"] == "1"
    assert [name for name in foreign.headers if name.startswith("access-control-allow-")] == []
    assert ours.headers.get_list("access-control-allow-origin") == [APP]
    assert "access-control-allow-credentials" not in ours.headers


def test_added_later_means_outside() -> None:
    """The order as it is written in an app: ours first, CORS after it."""
    witness = Witness()

    def app(*, cors_last: bool) -> Any:
        def around(ours: IdPMiddleware) -> Any:
            starlette = Starlette()
            layers: list[tuple[Any, dict[str, Any]]] = [
                (_Given, {"given": ours}),
                (
                    CORSMiddleware,
                    {"allow_origins": [APP], "allow_methods": ["POST"], "allow_headers": ["Authorization"]},
                ),
            ]
            for layer, options in layers if cors_last else reversed(layers):
                starlette.add_middleware(layer, **options)
            return starlette

        return around

    with running(authenticator=witness, wrap=app(cors_last=True)) as stack, stack.client(user=None) as client:
        assert client.options("/idp/github/user", headers=PREFLIGHT).status_code == 200
        assert witness.asked == 0

    # The other way round it never sees what is ours: safe, but of no use.
    with running(authenticator=witness, wrap=app(cors_last=False)) as stack, stack.client(user=None) as client:
        answer = client.options("/idp/github/user", headers=PREFLIGHT)
        assert answer.status_code == 401
        assert "access-control-allow-origin" not in answer.headers


class _Given:
    """What `add_middleware(IdPMiddleware, …)` would make, made by the stack."""

    def __init__(self, app: Any, given: IdPMiddleware) -> None:
        given.app = app
        self.given = given

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.given(scope, receive, send)


def test_without_cors_a_preflight_is_refused() -> None:
    """F27: nobody is asked for a token, and no page of another origin gets any further."""
    witness = Witness()
    with running(authenticator=witness) as stack, stack.client(user=None) as client:
        answer = client.options("/idp/github/user", headers=PREFLIGHT)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "access-control-allow-origin" not in answer.headers
        assert (stack.auth0.count(), stack.provider.count()) == (0, 0)


def test_a_session_can_be_used_by_an_allowed_page_only() -> None:
    """Three things have to allow it: CORS with credentials, the field, and the session's own list of origins."""

    def around(ours: IdPMiddleware) -> Any:
        options = {
            "allow_origins": [APP, "https://half.example"],
            "allow_headers": ["X-CSRF"],
            "allow_credentials": True,
        }
        return CORSMiddleware(SessionMiddleware(ours, "key"), **options)

    cookie = "session=" + signed({"sub": "auth0|alice", "scope": "read:github"}, "key")

    def call(client: httpx.Client, origin: str, **headers: str) -> httpx.Response:
        fields = {"cookie": cookie, "origin": origin, "sec-fetch-site": "cross-site", **headers}
        return client.get("/idp/github/user", headers=fields)

    authenticator = SessionAuthenticator(allowed_origins=[APP])
    with running(authenticator=authenticator, wrap=around) as stack, stack.client(user=None) as client:
        answer = call(client, APP, **OURS)
        assert (answer.status_code, answer.json()["login"]) == (200, "alice")
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert call(client, APP).status_code == 403
        assert call(client, "https://half.example", **OURS).status_code == 403
        assert call(client, "https://evil.example", **OURS).status_code == 403
        assert stack.provider.count() == 1
