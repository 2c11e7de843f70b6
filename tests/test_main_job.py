"""The main job, on real sockets: verify the caller, get that user's token, forward with it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections import Counter

import httpx
import pytest

from idp_middleware import Caller, IdPMiddleware, JWTAuthenticator, ProxyRoute, Rule, Token, sources
from idp_middleware.testing import Identity, serve, signing_key
from tests.stack import AUDIENCE, CLIENT, PARSERS, USERS, free_port, one_route, running

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


@pytest.fixture(params=PARSERS)
def stack(request):
    with running(http=request.param) as stack:
        yield stack


def everything_the_provider_saw(stack) -> str:
    return "\n".join(f"{r.method} {r.target!r} {r.headers!r} {r.body!r}" for r in stack.provider.requests)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_reaches_the_provider_with_the_right_users_token(stack, method):
    """The job: alice's calls carry alice's token, bob's carry bob's, on the same connections."""
    for user in ("alice", "bob", "alice"):
        body = {"json": {"name": user}} if method in ("POST", "PUT", "PATCH") else {}
        with stack.client(user) as client:
            answer = client.request(method, "/idp/github/echo/x%2Fy?a=1&a=2", **body)
        assert answer.status_code == 200
        seen = stack.provider.last
        assert (seen.method, seen.target, seen.bearer) == (method, b"/echo/x%2Fy?a=1&a=2", USERS[user])
        if body:
            assert json.loads(seen.body) == {"name": user}
        elif method != "OPTIONS":
            assert seen.header("content-length") is None


def test_nothing_of_the_callers_or_of_ours_reaches_the_provider(stack):
    """The caller's token, cookies and the management token stay on this side."""
    with stack.client() as client:
        client.post(
            "/idp/github/echo/x",
            content=b"body",
            headers={"cookie": "session=s3ss10n", "proxy-authorization": "Basic cHJveHk6cHc=", "idp-account": "101"},
        )
    issued = [r.header("authorization").split()[-1] for r in stack.auth0.requests if r.header("authorization")]
    assert issued, "the management token was used"
    saw = everything_the_provider_saw(stack)
    for secret in (stack.token(), "s3ss10n", "cHJveHk6cHc=", CLIENT[1], *issued):
        assert secret not in saw
    assert stack.provider.last.header("idp-account") is None


def test_the_provider_token_reaches_nobody_but_the_provider(stack, caplog):
    """Not the caller, not the log at its most talkative."""
    caplog.set_level(logging.DEBUG)
    with stack.client() as client:
        answers = [
            client.get(path) for path in ("/idp/github/user", "/idp/github/user/repos", "/idp/github/status/500")
        ]
    said = "".join(f"{a.headers} {a.text}" for a in answers) + caplog.text
    assert USERS["alice"] not in said
    assert USERS["alice"] in everything_the_provider_saw(stack)


def test_a_cold_cache_asks_once_per_user_however_many_call():
    """1,000 requests of 50 users at once: one management token, one look-up a user, no token crossed."""
    with running() as stack:
        users = [f"user{i}" for i in range(50)]
        for number, user in enumerate(users):
            stack.auth0.add_user(f"auth0|{user}", [Identity("github", str(number), access_token=f"gho_{user}_token")])
            stack.provider.accept(f"gho_{user}_token", login=user)

        async def call(user, token):
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
            writer.write(
                f"GET /idp/github/user HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Authorization: Bearer {token}\r\n\r\n".encode()
            )
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            return user, int(head.split()[1]), json.loads(body).get("login")

        async def storm():
            tokens = {user: stack.token(user) for user in users}
            return await asyncio.gather(*(call(user, tokens[user]) for user in users * 20))

        results = asyncio.run(storm())
        assert Counter(results) == {(user, 200, user): 20 for user in users}
        assert stack.auth0.count("/oauth/token") == 1
        looked_up = Counter(r.target.partition(b"?")[0] for r in stack.auth0.requests if b"/users/" in r.target)
        assert looked_up == {f"/api/v2/users/auth0%7C{user}".encode(): 1 for user in users}


def forgeries(stack) -> dict[str, str | None]:
    token = stack.token()
    head, body, _ = token.split(".")
    pem = signing_key("RS256").public_pem
    return {
        "none at all": None,
        "expired": stack.token(expires_in=-3600),
        "foreign issuer": stack.token(iss="https://evil.example/"),
        "wrong audience": stack.token(audience="https://another.example"),
        "alg none": stack.token(algorithm="none"),
        "HS256 with the public key": stack.token(algorithm="HS256", key=pem.decode()),
        "signature cut": f"{head}.{body}.",
        "signature of another": f"{head}.{body}.{stack.token('bob').split('.')[2]}",
        "no subject": stack.token(sub=None),
        "no expiry": stack.token(exp=None),
        "garbage": "garbage",
    }


def test_a_caller_who_cannot_be_verified_gets_401_and_nothing_goes_anywhere(stack):
    """Neither the provider nor Auth0's token endpoints hear of it."""
    for what, token in forgeries(stack).items():
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        with stack.client(None) as client:
            answer = client.get("/idp/github/user", headers=headers)
        assert answer.status_code == 401, what
        challenge = answer.headers["www-authenticate"]
        # RFC 6750 section 3.1: no error code where no token was sent.
        assert challenge == "Bearer" if token is None else 'error="invalid_token"' in challenge, what
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["proxy-status"] == "idp_middleware; error=http_request_denied"
        assert answer.json()["type"] == "urn:idp-middleware:problem:caller-unauthenticated"
    assert stack.provider.requests == []
    assert stack.auth0.count("/oauth/token") == stack.auth0.count("/api/v2") == 0


def test_white_space_behind_the_token_is_no_part_of_it(stack):
    """RFC 9112 section 5.1; one of the parsers leaves it there."""
    answer = stack.raw(
        stack.raw_request("GET", "/idp/github/user", f"Authorization: Bearer {stack.token()} ", user=None)
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["proxy-status"].startswith("idp_middleware; error=")
    document = answer.json()
    assert document["status"] == answer.status_code
    return answer.status_code, document["type"].removeprefix("urn:idp-middleware:problem:")


def test_a_missing_scope_is_named(stack):
    """RFC 6750 section 3.1: insufficient_scope, and which."""
    with stack.client(None) as client:
        answer = client.get("/idp/github/user", headers=stack.bearer(scope="other"))
    assert problem(answer) == (403, "caller-forbidden")
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read:github"'
    assert stack.provider.requests == []


def test_an_unlinked_account_is_told_apart_from_a_failure(stack):
    """The app can offer to link it."""
    stack.auth0.unlink("auth0|alice", "github")
    with stack.client() as client:
        answer = client.get("/idp/github/user")
    assert problem(answer) == (403, "identity-not-linked")
    assert answer.json()["connection"] == "github"
    assert stack.provider.requests == []


def test_a_user_whom_the_identity_provider_does_not_know_has_nothing_linked(stack):
    """A valid token may outlive its user."""
    with stack.client(None) as client:
        answer = client.get("/idp/github/user", headers=stack.bearer("nobody"))
    assert problem(answer) == (403, "identity-not-linked")


def test_one_of_several_accounts_is_named_by_the_caller(stack):
    """Account linking gives a user two identities of one connection; taking the first would be a guess."""
    stack.auth0.link("auth0|alice", Identity("github", "999", access_token="gho_alice_second"))
    stack.provider.accept("gho_alice_second", login="alice-at-work")
    with stack.client() as client:
        ambiguous = client.get("/idp/github/user")
        assert problem(ambiguous) == (409, "identity-ambiguous")
        assert sorted(ambiguous.json()["accounts"]) == ["101", "999"]
        for account, login in (("101", "alice"), ("999", "alice-at-work"), ("101", "alice")):
            assert client.get("/idp/github/user", headers={"idp-account": account}).json()["login"] == login
        assert problem(client.get("/idp/github/user", headers={"idp-account": "555"})) == (403, "identity-not-linked")


def test_what_is_on_no_route_is_404_and_a_wrong_method_405(stack):
    """Both by us, for a verified caller or not."""
    with stack.client() as client:
        assert problem(client.get("/idp/unknown/user")) == (404, "route-not-found")
        assert problem(client.get("/idp//github")) == (404, "route-not-found")
        answer = client.request("TRACE", "/idp/github/user")
        assert problem(answer) == (405, "method-not-allowed")
        assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert stack.provider.requests == []


def test_an_unsafe_path_is_refused_before_anybody_is_asked(stack):
    """Sent raw, since a client library would tidy the attack away."""
    for target in ("/idp/github/../admin", "/idp/github/%2e%2e/admin", "/idp/github/a%5cb", "/idp/github/a%00"):
        answer = stack.raw(stack.raw_request("GET", target))
        assert answer.startswith(b"HTTP/1.1 400 "), target
        assert b"urn:idp-middleware:problem:bad-request" in answer
    assert stack.provider.requests == []


@pytest.mark.parametrize(
    ("fault", "status", "name"),
    [
        (lambda auth0: auth0.fail("/oauth/token", status=500), 503, "token-source-unavailable"),
        (lambda auth0: auth0.fail("/api/v2/", status=500), 503, "token-source-unavailable"),
        (
            lambda auth0: auth0.fail("/oauth/token", status=401, body={"error": "access_denied"}),
            502,
            "token-source-failed",
        ),
        (lambda auth0: auth0.fail("/api/v2/", status=200, body="<html>"), 502, "token-source-failed"),
        (lambda auth0: auth0.drop("/api/v2/"), 503, "token-source-unavailable"),
        (lambda auth0: auth0.rate_limit("/api/v2/", retry_after=30, times=None), 503, "token-source-unavailable"),
        (lambda auth0: auth0.rate_limit("/api/v2/", reset_in=30, times=None), 503, "token-source-unavailable"),
    ],
)
def test_a_failing_identity_provider_is_told_apart_from_a_failing_request(fault, status, name):
    """The sample answered 400 to all of these; the caller did nothing wrong."""
    with running() as stack, stack.client() as client:
        fault(stack.auth0)
        answer = client.get("/idp/github/user")
        assert problem(answer) == (status, name)
        if status == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 35
        stack.auth0.reset_faults()
        assert stack.provider.requests == []


def test_a_failure_is_not_kept():
    """The next request asks again."""
    with running() as stack, stack.client() as client:
        stack.auth0.fail("/api/v2/", status=500, times=1)
        assert client.get("/idp/github/user").status_code == 503
        assert client.get("/idp/github/user").status_code == 200


def test_a_refused_token_is_renewed_once_and_the_request_sent_again():
    """The provider withdrew the token that we keep; Auth0 has a newer one."""
    with running() as stack, stack.client() as client:
        assert client.get("/idp/github/user").json()["login"] == "alice"
        stack.provider.revoke(USERS["alice"])
        stack.provider.accept("gho_alice_new", login="alice")
        stack.auth0.link("auth0|alice", Identity("github", "101", access_token="gho_alice_new"))
        stack.provider.clear()
        answer = client.put("/idp/github/echo/x", content=b"once and again")
        assert answer.status_code == 200
        assert [r.bearer for r in stack.provider.requests] == [USERS["alice"], "gho_alice_new"]
        assert [r.body for r in stack.provider.requests] == [b"once and again"] * 2


def test_a_refusal_that_stands_passes_through_and_says_whose_it_is():
    """No loop, and the caller can tell the provider's 401 from ours."""
    with running() as stack, stack.client() as client:
        stack.provider.revoke(USERS["alice"])
        answer = client.get("/idp/github/user")
        assert answer.status_code == 401
        assert answer.headers["proxy-status"] == "idp_middleware; received-status=401"
        assert "problem" not in answer.headers["content-type"]
        assert len(stack.provider.requests) == 1, "Auth0 had no other token, so a second try was pointless"


def test_an_unreachable_upstream_is_502_without_its_address():
    """Where the upstream is, is nobody's business."""
    with running() as stack, stack.client() as client:
        stack.api.stop()
        answer = client.get("/idp/github/user")
        assert problem(answer) == (502, "upstream-unreachable")
        assert str(stack.api.port) not in answer.text + str(answer.headers)


def test_links_and_redirects_lead_back_under_the_prefix(stack):
    """Else a client would follow them to the provider with its own token in hand."""
    with stack.client() as client:
        page = client.get("/idp/github/user/repos")
        assert page.links["next"]["url"].startswith(f"{stack.url}/idp/github/user/repos?")
        assert client.get(page.links["next"]["url"]).status_code == 200
        redirect = client.get("/idp/github/redirect", params={"to": f"{stack.api.url}/user"})
        assert redirect.status_code == 302
        assert redirect.headers["location"] == "/idp/github/user"
        elsewhere = client.get("/idp/github/redirect", params={"to": "https://evil.example/"})
        assert elsewhere.headers["location"] == "https://evil.example/"


def test_cookies_of_the_provider_stay_there(stack):
    """They would be set for the app's origin; and no jar hands one user's to the next."""
    with stack.client() as client:
        assert "set-cookie" not in client.get("/idp/github/set-cookie").headers
    with stack.client("bob") as client:
        client.get("/idp/github/user")
    assert stack.provider.last.header("cookie") is None


def test_the_app_behind_keeps_everything_else():
    """Scopes outside the prefix pass untouched, with their credentials."""
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            seen.append(scope)
            await send({"type": "http.response.start", "status": 299, "headers": [(b"x-app", b"1")]})
            await send({"type": "http.response.body", "body": b"the app"})

    with running(app=app) as stack, stack.client() as client:
        for path in ("/", "/idpx", "/IDP/github/user", "/%69dp/github/user", "/x/idp/github"):
            assert client.get(path).status_code == 299
            assert dict(seen[-1]["headers"])[b"authorization"].startswith(b"Bearer ")
        assert stack.provider.requests == []


def test_without_an_app_behind_everything_else_is_404():
    """The gateway on its own."""
    with running() as stack, stack.client() as client:
        assert client.get("/").status_code == 404


def test_a_websocket_under_the_prefix_is_refused(stack):
    """It must not fall through to the app past every check."""
    answer = stack.raw(
        stack.raw_request(
            "GET",
            "/idp/github/ws",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            close=False,
        )
    )
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert stack.provider.requests == []


def test_a_plain_function_may_be_the_source_and_the_authenticator():
    """One method is not worth a class."""

    async def source(caller, route):
        return Token(f"token-of-{caller.subject}")

    async def authenticator(conn):
        return Caller(conn.headers["x-user"])

    routes = lambda api, _: {"r": ProxyRoute(api, token_source=source)}  # noqa: E731
    with running(routes=routes, authenticator=authenticator) as stack, stack.client(None) as client:
        stack.provider.accept("token-of-carol", login="carol")
        assert client.get("/idp/r/user", headers={"x-user": "carol"}).json()["login"] == "carol"


def test_a_source_that_fails_in_its_own_words_is_502_and_its_words_stay_inside(caplog):
    """They may hold the secret it was using."""

    async def source(caller, route):
        raise RuntimeError("s3cr3t in the message")

    routes = lambda api, _: {"r": ProxyRoute(api, token_source=source)}  # noqa: E731
    with running(routes=routes) as stack, stack.client() as client:
        answer = client.get("/idp/r/user")
        assert problem(answer) == (502, "token-source-failed")
        assert "s3cr3t" not in answer.text + caplog.text
        assert "RuntimeError" in caplog.text


def test_headers_of_a_route_are_set_whatever_the_caller_sent():
    """Defaults only where the caller sent none."""

    def routes(api, source):
        fixed, default = {"X-Api-Version": "2022-11-28"}, {"User-Agent": "acme"}
        return {"r": ProxyRoute(api, token_source=sources.Static("t"), headers=fixed, default_headers=default)}

    with running(routes=routes) as stack, stack.client() as client:
        stack.provider.accept("t")
        client.get("/idp/r/echo/x", headers={"x-api-version": "evil", "user-agent": "mine"})
        assert stack.provider.last.header("x-api-version") == "2022-11-28"
        assert stack.provider.last.header("user-agent") == "mine"
        raw = stack.raw_request("GET", "/idp/r/echo/x")
        stack.raw(raw)
        assert stack.provider.last.header("user-agent") == "acme"


def test_rules_and_a_function_of_the_apps_own_have_a_say_after_the_scopes():
    """One rule must allow, none may deny, and only True is yes."""

    async def not_bob(caller, conn):
        return caller.subject != "auth0|bob" and "x-blocked" not in conn.headers

    def routes(api, source):
        rules = [
            Rule(methods=["GET"]),
            Rule(methods=["PUT"], scopes=["write:github"]),
            Rule(paths=["/echo/secret/**"], deny=True),
        ]
        return {"r": ProxyRoute(api, token_source=source, connection="github", rules=rules, authorize=not_bob)}

    with running(routes=routes) as stack, stack.client() as client:
        assert client.get("/idp/r/user").status_code == 200
        assert problem(client.put("/idp/r/echo/x")) == (403, "caller-forbidden")
        allowed = client.put("/idp/r/echo/x", headers=stack.bearer(scope="write:github"))
        assert allowed.status_code == 200
        stack.provider.clear()
        for target in ("/idp/r/echo/secret/x", "/idp/r/echo/SECRET/x", "/idp/r/echo%2Fsecret/x"):
            assert problem(client.get(target)) == (403, "caller-forbidden")
        assert problem(client.get("/idp/r/user", headers={"x-blocked": "1"})) == (403, "caller-forbidden")
        assert problem(client.get("/idp/r/user", headers=stack.bearer("bob"))) == (403, "caller-forbidden")
        assert stack.provider.requests == []


def test_a_route_that_leads_back_to_us_ends():
    """RFC 9110 section 7.6: a proxy must not forward to itself without end."""
    port = free_port()
    with running() as stack:
        loop = IdPMiddleware(
            routes={"me": ProxyRoute(f"http://127.0.0.1:{port}/idp/me", token_source=sources.PassThrough())},
            authenticator=JWTAuthenticator(issuer=stack.auth0.issuer, audience=AUDIENCE),
        )
        with serve(loop, port=port) as gateway:
            answer = httpx.get(f"{gateway.url}/idp/me/x", headers=stack.bearer(), trust_env=False)
        assert answer.status_code == 502


def test_on_error_makes_the_answer():
    """An app with its own error format."""
    from starlette.responses import JSONResponse

    def on_error(conn, error):
        return JSONResponse({"oops": error.name}, status_code=error.status)

    with running(on_error=on_error) as stack, stack.client(None) as client:
        answer = client.get("/idp/github/user")
        assert (answer.status_code, answer.json()) == (401, {"oops": "caller-unauthenticated"})


def test_it_works_mounted_and_under_a_root_path():
    """The prefix is relative to where the app is; links lead to where the caller sees it."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    def mounted(middleware, path="/svc"):
        @contextlib.asynccontextmanager
        async def lifespan(app):
            # Starlette tells mounted apps nothing of the lifespan.
            yield
            await middleware.aclose()

        return Starlette(routes=[Mount(path, app=middleware)], lifespan=lifespan)

    with running(wrap=mounted) as stack, stack.client() as client:
        assert client.get("/svc/idp/github/user").json()["login"] == "alice"
        next_page = client.get("/svc/idp/github/user/repos").links["next"]["url"]
        assert next_page.startswith(f"{stack.url}/svc/idp/github/user/repos")
        redirect = client.get("/svc/idp/github/redirect", params={"to": f"{stack.api.url}/user"})
        assert redirect.headers["location"] == "/svc/idp/github/user"
    with running(wrap=functools.partial(mounted, path="/café 1")) as stack, stack.client() as client:
        redirect = client.get("/caf%C3%A9%201/idp/github/redirect", params={"to": f"{stack.api.url}/user"})
        assert redirect.headers["location"] == "/caf%C3%A9%201/idp/github/user"
    with running(uvicorn={"root_path": "/svc"}) as stack, stack.client() as client:
        assert client.get("/idp/github/user").json()["login"] == "alice"


def test_it_works_with_add_middleware_of_fastapi_and_closes_with_its_lifespan():
    """The way most people install it."""
    from fastapi import FastAPI

    with running() as stack:
        app = FastAPI()
        app.add_middleware(
            IdPMiddleware,
            authenticator=JWTAuthenticator(issuer=stack.auth0.issuer, audience=AUDIENCE),
            routes=one_route(
                stack.api.url,
                sources.Auth0Management(base_url=stack.idp.url, client_id=CLIENT[0], client_secret=CLIENT[1]),
            ),
        )

        @app.get("/hello")
        async def hello() -> dict[str, str]:
            return {"hello": "world"}

        with serve(app) as server:
            get = lambda path: httpx.get(server.url + path, headers=stack.bearer(), trust_env=False)  # noqa: E731
            assert get("/hello").json() == {"hello": "world"}
            assert get("/idp/github/user").json()["login"] == "alice"


def test_a_mistake_is_told_when_the_middleware_is_made():
    """Not at the first request."""
    from idp_middleware.errors import ConfigurationError

    with pytest.raises(ConfigurationError) as caught:
        IdPMiddleware(routes={}, authenticator="jwt")  # type: ignore[arg-type]
    assert caught.value.key == "authenticator"
