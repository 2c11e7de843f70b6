"""Callers by their cookie session: who is logged in, and whether the app's own page asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import itsdangerous
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser, UnauthenticatedUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from idp_middleware import Caller, IdPMiddleware, SessionAuthenticator
from idp_middleware.errors import CallerForbidden, CallerUnauthenticated, ConfigurationError, NotMine
from tests.stack import Stack, running

KEY = "the key of the sessions"
OURS = {"x-csrf": "1"}
APP = "https://app.example"


def connection(session: Any = None, headers: dict[str, str] | None = None, **scope: Any) -> HTTPConnection:
    fields = {"host": "app.example", **OURS, **(headers or {})}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields.items() if value is not None]
    session = {"sub": "auth0|alice"} if session is None else session
    return HTTPConnection({"type": "http", "scheme": "https", "headers": raw, "session": session, **scope})


async def authenticate(conn: HTTPConnection, **options: Any) -> Caller:
    return await SessionAuthenticator(**options).authenticate(conn)


# --- who is logged in ------------------------------------------------------------------------------------------------


async def test_the_user_of_the_session_is_the_caller() -> None:
    """And nothing else of the session is: it holds what is the app's business, other tokens among it."""
    caller = await authenticate(connection({"sub": "auth0|alice", "scope": "read:github", "refresh_token": "r"}))
    assert (caller.subject, caller.scopes, caller.credential) == ("auth0|alice", {"read:github"}, None)
    assert set(caller.claims) == {"iss", "sub"}


@pytest.mark.parametrize(
    ("session", "options", "scopes"),
    [
        ({"user": {"sub": "alice", "scp": ["a"]}, "scope": "b"}, {"subject": "user.sub"}, {"a"}),
        ({"a": {"b": {"c": "alice", "roles": ["x"]}}}, {"subject": "a.b.c", "scope_claims": ["roles"]}, {"x"}),
        ({"user_id": "alice", "sub": "bob", "scope": "a"}, {"subject": "user_id", "scope_claims": []}, set()),
    ],
)
async def test_the_app_says_where_it_keeps_the_user(
    session: dict[str, Any], options: dict[str, Any], scopes: set[str]
) -> None:
    """Authlib's documentation has the whole userinfo under one key, others have the id alone."""
    caller = await authenticate(connection(session), **options)
    assert (caller.subject, caller.scopes) == ("alice", scopes)


@pytest.mark.parametrize(
    ("session", "subject"),
    [
        ({}, "sub"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"user": None}, "user.sub"),
        ({"user": "x"}, "user.sub"),
    ],
)
async def test_nobody_is_logged_in(session: dict[str, Any], subject: str) -> None:
    """401 with a challenge (RFC 9110 section 15.5.2) that asks for no token; another authenticator may know better."""
    with pytest.raises(NotMine) as caught:
        # Who isn't logged in is not told about the page either.
        await authenticate(connection(session, {"x-csrf": "", "origin": "https://evil.example"}), subject=subject)
    assert caught.value.headers() == [("www-authenticate", "Cookie")]


@pytest.mark.parametrize("subject", [7, True, ["alice"], {"sub": "alice"}])
async def test_a_subject_of_another_type_is_the_apps_mistake(subject: Any) -> None:
    """Only the app writes into the session, so it is told, and loudly."""
    with pytest.raises(ConfigurationError, match="sub is a"):
        await authenticate(connection({"sub": subject}))


@pytest.mark.parametrize("subject", [" ", "al\nice", "\ud800"])
async def test_an_unusable_subject_is_refused(subject: str) -> None:
    """As in a token."""
    with pytest.raises(CallerUnauthenticated) as caught:
        await authenticate(connection({"sub": subject}))
    assert not isinstance(caught.value, NotMine)


async def test_sessions_and_tokens_are_not_the_same_users() -> None:
    """The session's alice and a token's alice share nothing that is kept, unless it is said that they are one."""
    assert (await authenticate(connection())).issuer == "urn:idp-middleware:session"
    assert (
        await authenticate(connection(), issuer="https://acme.eu.auth0.com/")
    ).issuer == "https://acme.eu.auth0.com/"


async def test_without_a_session_middleware_it_says_what_to_do() -> None:
    """A mistake in the set-up, that must not look like nobody being logged in."""
    conn = HTTPConnection({"type": "http", "headers": []})
    with pytest.raises(ConfigurationError, match="SessionMiddleware has to run outside of IdPMiddleware"):
        await authenticate(conn)
    with pytest.raises(ConfigurationError, match="AuthenticationMiddleware has to run outside of IdPMiddleware"):
        await authenticate(conn, user=True)


# --- scope["user"] ---------------------------------------------------------------------------------------------------


class User(SimpleUser):
    @property
    def identity(self) -> str:
        return self.username


class Nameless(BaseUser):
    is_authenticated = True


class MethodUser:
    identity = "alice"

    def is_authenticated(self) -> bool:
        return False


async def test_the_user_of_the_authentication_middleware_is_the_caller() -> None:
    """Scopes are those of its credentials."""
    conn = connection({"sub": "bob"}, user=User("auth0|alice"), auth=AuthCredentials(["authenticated", "read:github"]))
    caller = await authenticate(conn, user=True)
    assert (caller.subject, caller.scopes) == ("auth0|alice", {"authenticated", "read:github"})
    assert (await authenticate(connection(user=User("alice")), user=True)).scopes == frozenset()


@pytest.mark.parametrize("user", [UnauthenticatedUser(), User(""), MethodUser()])
async def test_a_user_who_is_not_authenticated_is_nobody(user: Any) -> None:
    """A method of that name is no yes."""
    with pytest.raises(NotMine):
        await authenticate(connection(user=user), user=True)


async def test_a_user_without_an_identity_is_the_apps_mistake() -> None:
    """Starlette's base class raises there."""
    with pytest.raises(ConfigurationError, match="no identity"):
        await authenticate(connection(user=Nameless()), user=True)
    with pytest.raises(ConfigurationError, match="the user's identity is a int"):
        await authenticate(connection(user=User(7)), user=True)  # type: ignore[arg-type]


async def test_users_need_the_same_proof_as_sessions() -> None:
    """Behind the user there may be a cookie as well."""
    with pytest.raises(CallerForbidden):
        await authenticate(connection(headers={"x-csrf": "0"}, user=User("alice")), user=True)


# --- whose page asked ------------------------------------------------------------------------------------------------

OTHER = "https://other.example"


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({}, True),
        ({"x-csrf": None}, False),
        ({"x-csrf": ""}, False),
        ({"x-csrf": "0"}, False),
        ({"x-csrf": "1, 1"}, False),
        ({"x-csrf": None, "x-requested-with": "1"}, False),
        ({"x-csrf": None, "x_csrf": "1"}, False),
        ({"origin": APP}, True),
        ({"origin": APP, "sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"host": "APP.example", "origin": APP}, True),
        ({"host": "app.example:8443", "origin": APP + ":8443"}, True),
        ({"host": "[::1]:8000", "origin": "https://[::1]:8000"}, True),
        # All that comes with a proof that could be stolen or made by other means.
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://app.example"}, False),
        ({"origin": "https://app.example:8443"}, False),
        ({"origin": "https://app.example."}, False),
        ({"origin": "https://app.example.evil.example"}, False),
        ({"origin": "https://evil.example/https://app.example"}, False),
        ({"origin": "https://sub.app.example"}, False),
        ({"origin": "https://app.example https://evil.example"}, False),
        ({"origin": "HTTPS://evil.example"}, False),
        ({"host": "app.example@evil.example", "origin": "https://app.example@evil.example"}, False),
        ({"host": "", "origin": "https://"}, False),
        ({"host": None, "origin": ""}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": ""}, False),
        ({"sec-fetch-site": "Same-Origin"}, False),
        ({"origin": APP, "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_only_our_own_page_may_use_the_session(headers: dict[str, Any], fine: bool, method: str) -> None:
    """RFC 10017 section 6.1.3.3, of every request: a GET to a provider's API may well change something."""
    conn = connection(headers=headers, method=method)
    if fine:
        assert (await authenticate(conn)).subject == "auth0|alice"
    else:
        with pytest.raises(CallerForbidden) as caught:
            await authenticate(conn)
        # Nothing that a browser would take for a reason to log in again.
        assert caught.value.headers() == []


@pytest.mark.parametrize("name", [b"x-csrf", b"origin", b"sec-fetch-site"])
async def test_a_field_that_comes_twice_is_no_proof(name: bytes) -> None:
    """Two readers could pick different ones."""
    conn = connection(headers={"origin": APP, "sec-fetch-site": "same-origin"})
    (field,) = [field for field in conn.scope["headers"] if field[0] == name]
    for twin in (field, (name.upper(), field[1])):
        with pytest.raises(CallerForbidden):
            await authenticate(HTTPConnection({**conn.scope, "headers": [*conn.scope["headers"], twin]}))


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({"origin": OTHER, "sec-fetch-site": "cross-site"}, True),
        ({"origin": OTHER, "sec-fetch-site": "same-site"}, True),
        ({"origin": OTHER}, True),
        ({"origin": APP}, True),
        ({"origin": "https://port.example:8443"}, True),
        ({"origin": OTHER, "x-csrf": None}, False),
        ({"origin": "https://third.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
    ],
)
async def test_pages_of_other_origins_can_be_allowed(headers: dict[str, Any], fine: bool) -> None:
    """A front end on a host of its own; it needs the field nonetheless, and CORS to be allowed to send it."""
    allowed = ["https://OTHER.example:443", "https://port.example:8443"]
    conn = connection(headers=headers)
    if fine:
        await authenticate(conn, allowed_origins=allowed)
    else:
        with pytest.raises(CallerForbidden):
            await authenticate(conn, allowed_origins=allowed)


async def test_behind_a_proxy_that_ends_tls_our_own_origin_can_be_named() -> None:
    """The scope then says http, and an Origin with https is another one."""
    conn = connection(headers={"origin": APP}, scheme="http")
    with pytest.raises(CallerForbidden):
        await authenticate(conn)
    assert (await authenticate(conn, allowed_origins=[APP])).subject == "auth0|alice"


async def test_the_field_can_have_another_name() -> None:
    """Front ends often have one already."""
    headers = {"x-csrf": None, "x-requested-with": "1"}
    assert (await authenticate(connection(headers=headers), header="X-Requested-With")).subject == "auth0|alice"
    with pytest.raises(CallerForbidden):
        await authenticate(connection(), header="X-Requested-With")


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({"origin": APP}, True),
        ({"origin": APP, "x-csrf": None, "sec-fetch-site": "same-origin"}, True),
        ({}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": APP, "sec-fetch-site": "cross-site"}, False),
    ],
)
async def test_a_websocket_is_told_by_its_origin(headers: dict[str, Any], fine: bool) -> None:
    """RFC 6455 section 10.2: pages can't add fields, need no preflight, and can't leave the Origin out."""
    conn = connection(headers=headers, type="websocket", scheme="wss")
    if fine:
        assert (await authenticate(conn)).subject == "auth0|alice"
    else:
        with pytest.raises(CallerForbidden):
            await authenticate(conn)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("subject", {"subject": "sub", "user": True}),
        ("subject", {"subject": ""}),
        ("subject", {"subject": "user."}),
        ("issuer", {"issuer": ""}),
        ("header", {"header": ""}),
        # Browsers send these by themselves, or let any page send them.
        ("header", {"header": "Accept"}),
        ("header", {"header": "DNT"}),
        ("header", {"header": "Upgrade-Insecure-Requests"}),
        ("header", {"header": "X-CSRF\n"}),
        ("header", {"header": "X-"}),
        ("allowed_origins", {"allowed_origins": "https://app.example"}),
        ("allowed_origins", {"allowed_origins": ["*"]}),
        ("allowed_origins", {"allowed_origins": ["null"]}),
        ("allowed_origins", {"allowed_origins": ["app.example"]}),
        ("allowed_origins", {"allowed_origins": ["https://app.example/"]}),
        ("allowed_origins", {"allowed_origins": ["https://app.example?x"]}),
        ("allowed_origins", {"allowed_origins": ["https://*.app.example"]}),
        ("allowed_origins", {"allowed_origins": ["http://app.example"]}),
        ("scope_claims", {"scope_claims": "scope"}),
    ],
)
def test_a_mistake_is_found_where_it_is_written(key: str, options: dict[str, Any]) -> None:
    """Not when somebody has found the open door."""
    with pytest.raises(ConfigurationError) as caught:
        SessionAuthenticator(**options)
    assert caught.value.key == key


# --- the whole way, with Starlette's own middleware ------------------------------------------------------------------


def login(request: Request) -> JSONResponse:
    request.session.update(sub=f"auth0|{request.path_params['user']}", scope="read:github")
    return JSONResponse({})


class SessionBackend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        if "sub" not in conn.session:
            return None
        return AuthCredentials(["read:github"]), User(conn.session["sub"])


@contextmanager
def sessions(http: str = "httptools", *between: Middleware, **options: Any) -> Iterator[Stack]:
    """A server-rendered app with a log-in of its own, sessions outside of the middleware."""

    def around(middleware: IdPMiddleware) -> Any:
        wrapped: Any = middleware
        for layer in reversed(between):
            wrapped = layer.cls(wrapped, *layer.args, **layer.kwargs)
        return SessionMiddleware(wrapped, KEY, same_site="strict")

    app = Starlette(routes=[Route("/login/{user}", login, methods=["POST"])])
    authenticator = SessionAuthenticator(**options)
    with running(app=app, authenticator=authenticator, wrap=around, http=http) as stack:
        yield stack


@contextmanager
def logged_in(stack: Stack, user: str = "alice") -> Iterator[httpx.Client]:
    with stack.client(user=None) as client:
        assert client.post(f"/login/{user}").status_code == 200
        yield client


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_session_leads_to_the_users_own_provider_token(http: str) -> None:
    """Two users of one app, and no cookie past us."""
    with sessions(http) as stack:
        for user in ("alice", "bob"):
            with logged_in(stack, user) as client:
                answer = client.get("/idp/github/user", headers=OURS)
                assert (answer.status_code, answer.json()["login"]) == (200, user)
                assert "cookie" in answer.headers["vary"].lower()
                assert stack.provider.last.header("cookie") is None


def test_a_user_of_the_authentication_middleware_gets_through_as_well() -> None:
    """In this order: session, authentication, ours."""
    with (
        sessions("httptools", Middleware(AuthenticationMiddleware, backend=SessionBackend()), user=True) as stack,
        logged_in(stack) as client,
    ):
        assert client.get("/idp/github/user", headers=OURS).json()["login"] == "alice"
        client.cookies.clear()
        assert client.get("/idp/github/user", headers=OURS).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-csrf": "1", "origin": "https://evil.example"},
        {"x-csrf": "1", "origin": "null"},
        {"x-csrf": "1", "sec-fetch-site": "cross-site"},
        {"origin": "{own}", "sec-fetch-site": "same-origin"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_a_forged_request_reaches_nobody(shared: Stack, method: str, headers: dict[str, str]) -> None:
    """403 for every method: no token asked for, nothing sent."""
    with logged_in(shared) as client:
        before = shared.provider.count(), shared.auth0.count()
        headers = {name: value.replace("{own}", shared.url) for name, value in headers.items()}
        answer = client.request(method, "/idp/github/user", headers=headers)
        assert answer.status_code == 403
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
        if method != "HEAD":
            assert answer.json()["type"] == "urn:idp-middleware:problem:caller-forbidden"
        assert (shared.provider.count(), shared.auth0.count()) == before


def signed(data: object, key: str = KEY) -> str:
    return itsdangerous.TimestampSigner(key).sign(base64.b64encode(json.dumps(data).encode())).decode()


@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "session=",
        "session=null",
        "session=" + signed({"sub": "auth0|alice"}, "another key"),
        "session=" + signed({"sub": "auth0|alice"})[:-1],
        "session=" + "A" + signed({"sub": "auth0|alice"}),
        "session=" + "A" * 20_000,
        "session=" + base64.b64encode(b'{"sub": "auth0|alice"}').decode(),
        "other=" + signed({"sub": "auth0|alice"}),
        "session=ü",
        "session=" + signed({"sub": "auth0|alice"}) + "; session=forged",
    ],
    ids=[
        "empty",
        "no value",
        "null",
        "another's key",
        "cut short",
        "a letter more",
        "long",
        "unsigned",
        "another name",
        "beyond ASCII",
        "and one more",
    ],
)
def test_a_cookie_that_does_not_verify_is_no_session(shared: Stack, cookie: str) -> None:
    """Nobody is logged in then. The cookie stays the session middleware's to replace, at the next log-in."""
    before = shared.provider.count()
    answer = shared.raw(shared.raw_request("GET", "/idp/github/user", f"Cookie: {cookie}", "X-CSRF: 1", user=None))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Cookie\r\n" in answer
    assert shared.provider.count() == before


def test_the_caller_of_a_session_cannot_choose_whose_it_is(shared: Stack) -> None:
    """G20: nothing else that the client sends has a say."""
    with logged_in(shared) as client:
        headers = {**OURS, "x-user-id": "auth0|bob", "x-forwarded-user": "auth0|bob", "authorization": "Basic YTpi"}
        answer = client.get("/idp/github/user?sub=auth0|bob", headers=headers)
        assert answer.json()["login"] == "alice"


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    with sessions() as stack:
        yield stack


def test_a_missing_session_middleware_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    """500, nothing sent, and the log says what to do."""
    with running(authenticator=SessionAuthenticator()) as stack, stack.client(user=None) as client:
        assert client.get("/idp/github/user", headers=OURS).status_code == 500
        assert stack.provider.count() == 0
    assert "SessionMiddleware has to run outside of IdPMiddleware" in caplog.text
