"""`DELETE /idp/{route}/token` and `IdPMiddleware.revoke`: the caller's own token is taken back, everywhere it is."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import parse_qsl

import httpx
import pytest
from aiocache import SimpleMemoryCache
from cryptography.fernet import Fernet
from starlette.middleware.sessions import SessionMiddleware

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, SessionAuthenticator, Token, TokenCache, errors, sources
from idp_middleware.observers import AuditLog
from idp_middleware.stores import Claim, SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import Identity, serve, signing_key
from idp_middleware.testing.refresh import RotatingTokens
from tests.stack import CLIENT, USERS, eventually, one_route, running

KEYS = [Fernet.generate_key().decode()]
PATH = "/idp/github/token"


@contextmanager
def with_store(tmp_path, *, provider=None, routes=None, **options):
    """A stack whose users' tokens are in a store, from a provider that takes them back."""
    provider = RotatingTokens() if provider is None else provider
    with serve(provider) as server:
        path = str(tmp_path / "tokens.db")
        source = sources.RefreshToken(
            store=path,
            encryption_keys=KEYS,
            token_url=f"{server.url}/token",
            revocation_url=f"{server.url}{options.pop('revocation', '/revoke')}",
            client_id="client",
            client_secret="secret",
            connect_url="https://app.example/connect",
        )

        def from_store(api, _):
            return routes(api, source) if routes else one_route(api, source)

        with running(routes=from_store, **options) as stack:
            stack.rotating, stack.path = provider, path
            yield stack


def in_store(stack, work):
    """Something done with the store, as the app's own process would do it."""

    async def run():
        store = SQLiteTokenStore(stack.path, encryption_keys=KEYS)
        try:
            return await work(store)
        finally:
            await store.aclose()

    return asyncio.run(run())


def key(stack, user="alice", account=None):
    return TokenKey(issuer=stack.auth0.issuer, subject=f"auth0|{user}", connection="github", account=account)


def log_in(stack, user="alice", account=None):
    """What the app stores once a user has connected an account."""
    got = stack.rotating.log_in()
    stack.provider.accept(got["access_token"], login=user)
    token = StoredToken(
        access_token=got["access_token"], refresh_token=got["refresh_token"], expires_at=time.time() + 3600
    )
    in_store(stack, lambda store: store.put(key(stack, user, account), token))
    return token


def entries(stack, user="alice"):
    return in_store(stack, lambda store: store.get(key(stack, user)))


def form(request):
    return dict(parse_qsl(request.body.decode()))


def name(answer):
    return answer.json()["type"].rpartition(":")[2]


def test_it_is_gone_here_in_the_store_and_at_the_provider(tmp_path):
    """All three; and nobody else's is."""
    with with_store(tmp_path) as stack, stack.client() as client:
        mine, bobs = log_in(stack), log_in(stack, "bob")
        assert client.get("/idp/github/user").status_code == 200
        answer = client.delete(PATH)
        assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")
        gone = client.get("/idp/github/user")
        assert (gone.status_code, name(gone)) == (403, "identity-not-linked")
        assert gone.json()["connect_url"] == "https://app.example/connect"
        assert entries(stack) == []
        assert not stack.rotating.valid(mine.access_token)
        assert not stack.rotating.valid(mine.refresh_token)
        assert stack.rotating.valid(bobs.access_token)
        with stack.client("bob") as client:
            assert client.get("/idp/github/user").json()["login"] == "bob"


def test_doing_it_twice_is_doing_it_once(tmp_path):
    """RFC 9110 section 9.2.2; and who has nothing linked has nothing to revoke."""
    with with_store(tmp_path) as stack, stack.client() as client:
        log_in(stack)
        assert [client.delete(PATH).status_code for _ in range(2)] == [204, 204]
        assert stack.rotating.count("/revoke") == 2


def test_after_it_a_new_login_is_as_if_nothing_had_been(tmp_path):
    """Not even the few seconds for which "not linked" is kept."""
    with with_store(tmp_path) as stack, stack.client() as client:
        log_in(stack)
        client.get("/idp/github/user")
        client.delete(PATH)
        log_in(stack)
        assert client.get("/idp/github/user").json()["login"] == "alice"


def test_the_provider_is_told_as_rfc_7009_says(tmp_path):
    """The refresh token first; each with its hint and our credentials."""
    with with_store(tmp_path) as stack, stack.client() as client:
        token = log_in(stack)
        client.delete(PATH)
        first, second = (form(request) for request in stack.rotating.requests)
    ours = {"client_id": "client", "client_secret": "secret"}
    assert first == {"token": token.refresh_token, "token_type_hint": "refresh_token", **ours}
    assert second == {"token": token.access_token, "token_type_hint": "access_token", **ours}


def test_of_several_accounts_one_has_to_be_named(tmp_path):
    """To revoke whichever comes first would be to revoke the wrong one half of the time."""
    with with_store(tmp_path) as stack, stack.client() as client:
        work, home = log_in(stack, account="1"), log_in(stack, account="2")
        for account in ("1", "2"):
            client.get("/idp/github/user", headers={"idp-account": account})
        answer = client.delete(PATH)
        assert (answer.status_code, answer.json()["accounts"]) == (409, ["1", "2"])
        assert client.delete(PATH, headers={"idp-account": "2"}).status_code == 204
        assert stack.rotating.valid(work.access_token)
        assert not stack.rotating.valid(home.access_token)
        assert client.get("/idp/github/user", headers={"idp-account": "2"}).status_code == 403
        assert client.get("/idp/github/user").json()["login"] == "alice"


@pytest.mark.parametrize(
    ("status", "told", "problem"),
    [
        (503, "<html>", (503, "token-source-unavailable")),
        (400, {"error": "invalid_client"}, (502, "token-source-failed")),
    ],
)
def test_where_the_provider_does_not_take_it_back_nobody_gets_it_any_more(tmp_path, status, told, problem):
    """The caller is told, and can try again: only the entry knows what there is to be revoked."""
    with with_store(tmp_path) as stack, stack.client() as client:
        token = log_in(stack)
        assert client.get("/idp/github/user").status_code == 200
        stack.rotating.respond("/revoke", status=status, body=told)
        answer = client.delete(PATH)
        assert (answer.status_code, name(answer)) == problem
        assert name(client.get("/idp/github/user")) == "reconnect-required"
        assert stack.rotating.valid(token.refresh_token)
        stack.rotating.reset_faults()
        assert client.delete(PATH).status_code == 204
        assert not stack.rotating.valid(token.refresh_token)
        assert entries(stack) == []


@pytest.mark.parametrize(
    ("status", "told"), [(400, {"error": "invalid_token"}), (400, {"error": "unsupported_token_type"}), (204, "")]
)
def test_a_provider_that_knows_the_token_no_more_is_no_failure(tmp_path, status, told):
    """Google says invalid_token of one that is not good any more; some can't revoke access tokens at all."""
    with with_store(tmp_path) as stack, stack.client() as client:
        log_in(stack)
        stack.rotating.respond("/revoke", status=status, body=told)
        assert client.delete(PATH).status_code == 204
        assert entries(stack) == []


def test_githubs_own_endpoint_is_asked_as_github_wants_it(tmp_path):
    """It has no RFC 7009: DELETE, with the app's name and secret in Basic and the access token in JSON."""
    with with_store(tmp_path, revocation="/applications/client/grant") as stack, stack.client() as client:
        token = log_in(stack)
        for status, answered in ((204, 204), (404, 204), (422, 204), (401, 502), (500, 503)):
            log_in(stack) if status != 204 else None
            stack.rotating.reset_faults()
            stack.rotating.respond("/applications/client/grant", status=status, body="")
            assert client.delete(PATH).status_code == answered
        asked = stack.rotating.requests[0]
    assert (asked.method, asked.target) == ("DELETE", b"/applications/client/grant")
    assert asked.header("authorization") == "Basic Y2xpZW50OnNlY3JldA=="
    assert asked.json() == {"access_token": token.access_token}


def test_a_refresh_under_way_is_waited_for(tmp_path):
    """What it brings would outlive the revocation."""
    with with_store(tmp_path, provider=RotatingTokens(answer_after=0.5)) as stack, stack.client() as client:
        got = stack.rotating.log_in()
        token = StoredToken(access_token=got["access_token"], refresh_token=got["refresh_token"], expires_at=1.0)
        in_store(stack, lambda store: store.put(key(stack), token))

        async def both():
            async with httpx.AsyncClient(base_url=stack.url, headers=stack.bearer(), trust_env=False) as other:
                call = asyncio.create_task(other.get("/idp/github/user"))
                await asyncio.to_thread(eventually, lambda: stack.rotating.count("/token"))
                return await other.delete(PATH), await call

        deleted, _ = asyncio.run(both())
        assert deleted.status_code == 204
        assert entries(stack) == []
        assert not any(stack.rotating.valid(login.refresh_tokens[-1]) for login in stack.rotating._logins)
        assert name(client.get("/idp/github/user")) == "identity-not-linked"


def test_a_refresh_that_takes_too_long_is_left_alone(tmp_path, monkeypatch):
    """Another process has the refresh token; the caller may try again when that is over."""
    monkeypatch.setattr("idp_middleware.sources._revocation.PATIENCE_WITH_OTHERS", 0.2)
    with with_store(tmp_path) as stack, stack.client() as client:
        token = log_in(stack)

        async def claim(store):
            (entry,) = await store.get(key(stack))
            return await store.compare_and_swap(replace(entry, claim=Claim(owner="x", at=time.time(), lasts=60)))

        assert in_store(stack, claim) is not None
        answer = client.delete(PATH)
        assert (answer.status_code, name(answer)) == (503, "token-source-unavailable")
        assert int(answer.headers["retry-after"]) > 30
        assert stack.rotating.valid(token.refresh_token)


def test_two_at_a_time_are_as_good_as_one(tmp_path):
    """A double click; the second waits for the first, and finds nothing left to do."""
    with with_store(tmp_path) as stack:
        log_in(stack)
        stack.rotating.stall("/revoke", 0.2)

        async def both():
            async with httpx.AsyncClient(base_url=stack.url, headers=stack.bearer(), trust_env=False) as client:
                return await asyncio.gather(*(client.delete(PATH) for _ in range(2)))

        assert [answer.status_code for answer in asyncio.run(both())] == [204, 204]
        assert (entries(stack), stack.rotating.count("/revoke")) == ([], 2)


def test_a_caller_who_leaves_leaves_nothing_half_done(tmp_path):
    """It goes on to its end."""
    with with_store(tmp_path) as stack:
        token = log_in(stack)
        stack.rotating.stall("/revoke", 0.4)
        with stack.connect() as client:
            client.send(stack.raw_request("DELETE", PATH, close=False))
            eventually(lambda: stack.rotating.count("/revoke"))
        eventually(lambda: entries(stack) == [])
        assert not stack.rotating.valid(token.refresh_token)


def test_a_login_during_it_stays(tmp_path):
    """What came after the caller asked is not what they meant."""
    with with_store(tmp_path) as stack, stack.client() as client:
        log_in(stack)
        stack.rotating.stall("/revoke", 0.3)

        async def both():
            deleting = asyncio.create_task(asyncio.to_thread(client.delete, PATH))
            await asyncio.to_thread(eventually, lambda: stack.rotating.count("/revoke"))
            new = await asyncio.to_thread(log_in, stack)
            return (await deleting).status_code, new

        status, new = asyncio.run(both())
        assert status == 204
        assert [entry.token.access_token for entry in entries(stack)] == [new.access_token]
        assert client.get("/idp/github/user").status_code == 200


def test_without_a_revocation_url_it_is_deleted_all_the_same(tmp_path):
    """The app knows no better; the provider's settings page does."""

    def routes(api, source):
        source._revocation = None
        return one_route(api, source)

    with with_store(tmp_path, routes=routes) as stack, stack.client() as client:
        log_in(stack)
        assert client.delete(PATH).status_code == 204
        assert (entries(stack), stack.rotating.requests) == ([], [])


# Who may


def test_only_the_caller_may_and_only_with_the_routes_scopes(tmp_path):
    """By the same authenticator and the same checks as a call; nothing is asked of anybody before."""
    with with_store(tmp_path) as stack:
        log_in(stack)
        with stack.client(None) as client:
            assert client.delete(PATH).status_code == 401
            answer = client.delete(PATH, headers=stack.bearer(scope="other"))
            assert (answer.status_code, name(answer)) == (403, "caller-forbidden")
        with stack.client("bob") as client:
            assert client.delete(PATH).status_code == 204
        assert len(entries(stack)) == 1
        assert stack.rotating.requests == []


def test_the_routes_own_function_has_its_say_and_its_methods_have_none(tmp_path):
    """`methods` and `paths` are about the upstream; a route for reading has a token too."""
    answers = [False, True]

    async def authorize(caller, conn):
        return answers.pop(0)

    def routes(api, source):
        options = {"methods": ["GET"], "paths": ["/user"], "authorize": authorize}
        return {"github": ProxyRoute(api, token_source=source, connection="github", **options)}

    with with_store(tmp_path, routes=routes) as stack, stack.client() as client:
        log_in(stack)
        assert [client.delete(PATH).status_code for _ in range(2)] == [403, 204]


def test_a_session_needs_the_proof_that_the_apps_own_page_asked():
    """A page of somebody else's must not disconnect a user."""
    revoked = []

    class Source:
        async def token(self, caller, route, *, refused=None):
            return Token("provider-token")

        async def revoke(self, caller, route):
            revoked.append(caller.subject)

    def wrap(middleware):
        async def logged_in(scope, receive, send):
            if scope["type"] == "http":
                scope["session"]["sub"] = "auth0|alice"
            await middleware(scope, receive, send)

        return SessionMiddleware(logged_in, secret_key="k")

    def routes(api, _):
        return {"github": ProxyRoute(api, token_source=Source())}

    with running(routes=routes, authenticator=SessionAuthenticator(), wrap=wrap) as stack, stack.client(None) as client:
        assert client.delete(PATH).status_code == 403
        assert client.delete(PATH, headers={"x-csrf": "1", "origin": "https://evil.example"}).status_code == 403
        assert revoked == []
        assert client.delete(PATH, headers={"x-csrf": "1"}).status_code == 204
        assert revoked == ["auth0|alice"]


def test_the_apps_own_token_is_no_callers_to_revoke():
    """One user would take it from all the others."""
    made = []

    class Source:
        def cache_key(self, caller, route):
            return ()

        async def token(self, caller, route, *, refused=None):
            made.append(caller.subject)
            return Token("the-apps-own")

        async def revoke(self, caller, route):
            raise AssertionError("not asked")

    with running(routes=lambda api, _: {"github": ProxyRoute(api, token_source=Source())}) as stack:
        stack.provider.accept("the-apps-own", login="app")
        for user in USERS:
            with stack.client(user) as client:
                client.get("/idp/github/user")
                assert name(client.delete(PATH)) == "caller-forbidden"
        assert len(made) == 1


# What is kept


def test_what_is_kept_is_forgotten_for_all_of_the_callers_tokens():
    """Under whatever scopes and account it was kept; and not for other users, nor on other routes."""
    given = []

    async def source(caller, route):
        given.append((route.name, caller.subject, caller.account))
        return Token("provider-token")

    def routes(api, _):
        return {name: ProxyRoute(api, token_source=source) for name in ("github", "other")}

    with running(routes=routes) as stack, stack.client(None) as client:
        stack.provider.accept("provider-token", login="alice")

        def call_all():
            given.clear()
            for user, route, scope, account in (
                ("alice", "github", "a", None),
                ("alice", "github", "a b", None),
                ("alice", "github", "a", "7"),
                ("alice", "other", "a", None),
                ("bob", "github", "a", None),
            ):
                headers = stack.bearer(user, scope=scope) | ({"idp-account": account} if account else {})
                client.get(f"/idp/{route}/user", headers=headers)
            return len(given)

        assert (call_all(), call_all()) == (5, 0)
        assert client.delete(PATH, headers=stack.bearer(scope="c")).status_code == 204
        assert call_all() == 3
        assert {(name, subject) for name, subject, _ in given} == {("github", "auth0|alice")}


def test_what_auth0_keeps_is_asked_for_again():
    """There is nothing to revoke there; but the next call asks, and so learns of what has changed."""
    with running(cache=TokenCache(SimpleMemoryCache())) as stack, stack.client() as client:
        assert client.get("/idp/github/user").status_code == 200
        stack.auth0.unlink("auth0|alice", "github")
        assert client.get("/idp/github/user").status_code == 200
        assert client.delete(PATH).status_code == 204
        assert client.get("/idp/github/user").status_code == 403


def test_auth0s_refresh_token_is_revoked_at_the_provider():
    """Where the configuration says how it is refreshed, and revoked."""
    provider = RotatingTokens(rotates=False)
    got = provider.log_in()
    with serve(provider) as server:

        def routes(api, source):
            refresh = sources.ProviderRefresh(
                connection="google-oauth2",
                token_url=f"{server.url}/token",
                revocation_url=f"{server.url}/revoke",
                client_id="client",
                client_secret="secret",
            )
            idp = source._base_url
            source = sources.Auth0Management(
                base_url=idp, client_id=CLIENT[0], client_secret=CLIENT[1], refresh=[refresh]
            )
            return {
                "google": ProxyRoute(api, token_source=source, connection="google-oauth2"),
                "github": ProxyRoute(api, token_source=source, connection="github"),
            }

        with running(routes=routes) as stack, stack.client() as client:
            look_ups = stack.auth0.count("/api/v2/users")
            assert client.delete(PATH).status_code == 204
            assert client.delete("/idp/google/token").status_code == 204
            assert provider.requests == []
            assert stack.auth0.count("/api/v2/users") == look_ups + 1
            stack.auth0.link(
                "auth0|alice",
                Identity("google-oauth2", "9", access_token="ya29.x", refresh_token=got["refresh_token"]),
            )
            stack.auth0.link("auth0|bob", Identity("google-oauth2", "10", access_token="ya29.y"))
            assert client.delete("/idp/google/token", headers=stack.bearer("bob")).status_code == 204
            assert provider.valid(got["refresh_token"])
            assert client.delete("/idp/google/token").status_code == 204
            assert not provider.valid(got["refresh_token"])
            assert name(client.get("/idp/google/user", headers={"idp-account": "9"})) != "identity-not-linked"


def test_an_upstreams_own_path_is_reached_by_any_other_method_or_spelling():
    """Only exactly `DELETE /idp/{route}/token` is ours."""
    with running() as stack, stack.client() as client:
        for method, path in (
            ("GET", "/token"), ("POST", "/token"), ("OPTIONS", "/token"),
            ("DELETE", "/%74oken"), ("DELETE", "/token/"), ("DELETE", "/token/x"), ("DELETE", "/tokens"),
        ):  # fmt: skip
            client.request(method, f"/idp/github{path}")
            assert (stack.provider.last.method, stack.provider.last.target) == (method, path.encode())
        seen = len(stack.provider.requests)
        assert client.delete(f"{PATH}?x=1").status_code == 204
        assert len(stack.provider.requests) == seen


# From the app's own code


async def test_the_apps_own_code_revokes_as_a_caller_does():
    """Such as when an account is closed; errors are raised."""
    revoked = []

    class Source:
        def __init__(self, error=None):
            self.error = error

        async def token(self, caller, route, *, refused=None):
            return Token("provider-token")

        async def revoke(self, caller, route):
            revoked.append((route.name, caller))
            if self.error is not None:
                raise self.error

    async def authenticate(conn):
        return Caller("alice")

    idp = IdPMiddleware(
        routes={
            "fine": ProxyRoute("https://api.example.com", token_source=Source()),
            "away": ProxyRoute("https://api.example.com", token_source=Source(errors.TokenSourceUnavailable("away"))),
            "mistaken": ProxyRoute("https://api.example.com", token_source=Source(LookupError("s3cret"))),
        },
        authenticator=authenticate,
    )
    alice = Caller("alice")
    await idp.revoke("fine", alice)
    assert revoked == [("fine", alice)]
    with pytest.raises(errors.TokenSourceUnavailable):
        await idp.revoke("away", alice)
    with pytest.raises(errors.TokenSourceFailed) as caught:
        await idp.revoke("mistaken", alice)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(errors.ConfigurationError):
        await idp.revoke("none", alice)
    await idp.aclose()


async def test_a_source_takes_back_so_many_at_a_time(monkeypatch):
    """One that hangs must neither gather all there are nor keep anybody from their token."""
    monkeypatch.setattr("idp_middleware._circuit.PATIENCE", 0.1)
    may = asyncio.Event()

    class Source:
        identity = ("mine",)

        async def token(self, caller, route, *, refused=None):
            return Token("provider-token")

        async def revoke(self, caller, route):
            await may.wait()

    async def authenticate(conn):
        return Caller("alice")

    async def user(request):
        return httpx.Response(200)

    source = Source()
    idp = IdPMiddleware(
        # Two routes, which are one source's.
        routes={name: ProxyRoute("https://api.example.com", token_source=source) for name in ("one", "two")},
        authenticator=authenticate,
        transport=httpx.MockTransport(user),
    )
    crowd = [idp.revoke(("one", "two")[n % 2], Caller(f"user-{n}")) for n in range(130)]
    under_way = asyncio.gather(*crowd, return_exceptions=True)
    await asyncio.sleep(0.5)
    assert (await idp.client("one", Caller("alice")).get("/user")).status_code == 200
    may.set()
    assert Counter(map(type, await under_way)) == {type(None): 100, errors.TokenSourceBusy: 30}
    await idp.aclose()


async def test_closing_waits_for_what_is_being_revoked():
    """Nothing is lost at a shutdown."""
    done = []

    class Source:
        async def token(self, caller, route, *, refused=None):
            return Token("provider-token")

        async def revoke(self, caller, route):
            await asyncio.sleep(0.1)
            done.append(caller.subject)

    async def authenticate(conn):
        return Caller("alice")

    idp = IdPMiddleware(
        routes={"x": ProxyRoute("https://api.example.com", token_source=Source())}, authenticator=authenticate
    )
    waiting = asyncio.create_task(idp.revoke("x", Caller("alice")))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await idp.aclose()
    assert done == ["alice"]


def test_the_audit_log_has_it(tmp_path, caplog):
    """Who, for which route, when; no token and no name."""
    with caplog.at_level(logging.INFO, "idp_middleware.audit"), with_store(tmp_path, observers=[AuditLog()]) as stack:
        log_in(stack)
        with stack.client() as client:
            client.get("/idp/github/user")
            stack.rotating.respond("/revoke", status=503, body="")
            client.delete(PATH)
            stack.rotating.reset_faults()
            client.delete(PATH)
    events = [json.loads(record.getMessage())["event"] for record in caplog.records if record.name.endswith("audit")]
    assert events == ["obtained", "failed", "forgotten", "revoked", "forgotten"]


def test_a_wrong_revocation_url_is_named_at_once(tmp_path):
    """Not when a user first needs it."""
    options = {
        "store": str(tmp_path / "t"),
        "encryption_keys": KEYS,
        "token_url": "https://a.example/t",
        "client_id": "c",
    }
    with pytest.raises(errors.ConfigurationError, match="revocation_url: must be https"):
        sources.RefreshToken(**options, client_secret="s", revocation_url="http://a.example/revoke")
    with pytest.raises(errors.ConfigurationError, match="revocation_url: is GitHub's"):
        sources.RefreshToken(
            **options,
            private_key=signing_key().private_pem,
            revocation_url="https://api.github.com/applications/c/grant",
        )
    with pytest.raises(errors.ConfigurationError, match="refresh: revocation_url must be"):
        refresh = sources.ProviderRefresh(
            connection="x", token_url="https://a.example", client_id="c", client_secret="s", revocation_url="/revoke"
        )
        sources.Auth0Management(domain="a.example", client_id="c", client_secret="s", refresh=[refresh])
