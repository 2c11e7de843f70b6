"""Auth0's user look-up, against a tenant as strict as Auth0 is.

The recipe that this source replaces is published with a sample. Each fault of that sample has a test here that says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import time_machine

from idp_middleware import Caller, ProxyRoute, Timeout, Token
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    ConfigurationError,
    IdentityAmbiguous,
    IdentityNotLinked,
    IdPError,
    TokenSourceBusy,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.sources import Auth0Management
from idp_middleware.testing import Auth0, Identity

TENANT = "https://acme.eu.auth0.com"
ALICE = Caller("auth0|alice")
GITHUB = Identity("github", "1001", access_token="gho_alice")


class Tenant:
    """An Auth0 in this process, and the source under test in front of it."""

    def __init__(self, **options: Any) -> None:
        self.auth0 = Auth0(TENANT)
        self.auth0.add_client("me", "s3cret")
        self.auth0.add_user("auth0|alice", [Identity("Username-Password-Authentication", "alice"), GITHUB])
        self.auth0.add_user("auth0|bob", [Identity("github", "1002", access_token="gho_bob")])
        self.source = self.another(**options)
        self.route = ProxyRoute("https://api.github.com", token_source=self.source, connection="github")

    def another(self, **options: Any) -> Auth0Management:
        given = {"domain": "acme.eu.auth0.com", "client_id": "me", "client_secret": "s3cret", **options}
        return Auth0Management(**{"transport": httpx.ASGITransport(app=self.auth0), **given})

    async def token(self, caller: Caller = ALICE, connection: str = "github") -> Token:
        route = self.route
        if connection != "github":
            route = ProxyRoute("https://api.example.com", token_source=self.source, connection=connection)
        return await self.source.token(caller, route)

    @property
    def grants(self) -> int:
        return self.auth0.count("/oauth/token")

    @property
    def look_ups(self) -> int:
        return self.auth0.count("/api/v2/users/")


@pytest.fixture
async def tenant() -> AsyncIterator[Tenant]:
    tenant = Tenant()
    yield tenant
    await tenant.source.aclose()


# The flow


async def test_the_users_own_token_is_found(tenant: Tenant) -> None:
    """The main job, step 2 to 4; its expiry can't be known."""
    assert await tenant.token() == Token("gho_alice", None, account="1001")
    assert await tenant.token(Caller("auth0|bob")) == Token("gho_bob", None, account="1002")


async def test_the_grant_is_as_auth0_documents_it(tenant: Tenant) -> None:
    """JSON, with the Management API as the audience."""
    await tenant.token()
    request = tenant.auth0.requests[0]
    assert (request.method, request.path) == ("POST", "/oauth/token")
    assert request.json() == {
        "grant_type": "client_credentials",
        "client_id": "me",
        "client_secret": "s3cret",
        "audience": f"{TENANT}/api/v2/",
    }


async def test_only_identities_are_asked_for(tenant: Tenant) -> None:
    """The rest of the profile is none of our business."""
    await tenant.token()
    assert tenant.auth0.last.target == b"/api/v2/users/auth0%7Calice?fields=identities&include_fields=true"


async def test_a_thousand_requests_of_fifty_users_cost_one_grant_and_fifty_look_ups(tenant: Tenant) -> None:
    """On a cold engine, and nobody gets anybody else's token."""
    for n in range(50):
        tenant.auth0.add_user(f"auth0|{n}", [Identity("github", str(n), access_token=f"gho_{n}")])
    engine = TokenEngine()
    callers = [Caller(f"auth0|{n % 50}") for n in range(1000)]
    tokens = await asyncio.gather(*(engine.token(caller, tenant.route) for caller in callers))
    assert [token.value for token in tokens] == [f"gho_{n % 50}" for n in range(1000)]
    assert tenant.grants == 1
    look_ups = Counter(request.path for request in tenant.auth0.requests if request.method == "GET")
    assert look_ups == {f"/api/v2/users/auth0|{n}": 1 for n in range(50)}
    await engine.aclose()


# The faults of the published sample


async def test_sample_fault_an_expired_management_token_is_not_used_again(tenant: Tenant) -> None:
    """The sample's test for expiry is inverted, and compares seconds with milliseconds: it keeps a token for ever."""
    tenant.auth0.management_token_lifetime = 3600
    with time_machine.travel(time.time(), tick=True) as clock:
        await tenant.token()
        clock.shift(3500)
        await tenant.token()
        assert tenant.grants == 1
        clock.shift(200)
        await tenant.token()
    assert tenant.grants == 2
    assert tenant.look_ups == 3


async def test_sample_fault_a_valid_management_token_is_not_thrown_away(tenant: Tenant) -> None:
    """The other half of the inverted test. Auth0 counts these grants against a monthly quota."""
    for _ in range(5):
        await tenant.token()
    assert tenant.grants == 1


async def test_sample_fault_nothing_but_the_verified_subject_says_who_is_looked_up(tenant: Tenant) -> None:
    """The sample takes the user's id from the URL, so that anybody gets anybody's token."""
    nosy = Caller("auth0|alice", claims={"sub": "auth0|bob", "user_id": "auth0|bob"}, account="auth0|bob")
    with pytest.raises(IdentityNotLinked):
        await tenant.token(nosy)
    assert [request.path for request in tenant.auth0.requests[1:]] == ["/api/v2/users/auth0|alice"]


async def test_sample_fault_not_simply_the_first_identity(tenant: Tenant) -> None:
    """The sample takes identities[0]; account linking gives several, and the first is seldom the one that is meant."""
    tenant.auth0.link("auth0|alice", Identity("google-oauth2", "2001", access_token="ya29.alice"))
    assert (await tenant.token(connection="google-oauth2")).value == "ya29.alice"
    assert (await tenant.token()).value == "gho_alice"


async def test_sample_fault_failures_are_told_apart(tenant: Tenant) -> None:
    """The sample answers 400 to whatever goes wrong."""
    answers = {}
    for status in (400, 401, 403, 404, 429, 500, 503):
        tenant.auth0.reset_faults()
        tenant.auth0.fail("/api/v2/users/", status=status, headers={"retry-after": "60"} if status == 429 else {})
        with pytest.raises(IdPError) as caught:
            await tenant.another().token(ALICE, tenant.route)
        answers[status] = caught.value.name
    assert answers == {
        400: "token-source-failed",
        401: "token-source-failed",
        403: "token-source-failed",
        404: "identity-not-linked",
        429: "token-source-unavailable",
        500: "token-source-unavailable",
        503: "token-source-unavailable",
    }


@pytest.mark.parametrize("scopes", [["read:users"], ["read:users", "read:user_idp_tokens"]])
async def test_sample_fault_an_identity_without_a_token_is_explained(tenant: Tenant, scopes: list[str]) -> None:
    """The sample knows nothing of the scope that Auth0 wants by now, nor of Token Vault; both leave the token out."""
    tenant.auth0.add_client("me", "s3cret", scopes=scopes)
    if "read:user_idp_tokens" in scopes:
        tenant.auth0.link("auth0|alice", Identity("github", "1001"))
    with pytest.raises(TokenSourceFailed, match=r"(?s)read:user_idp_tokens.*Token Vault"):
        await tenant.token()


@pytest.mark.parametrize(
    ("subject", "path"),
    [
        ("google-oauth2|1", b"/api/v2/users/google-oauth2%7C1"),
        ("saml|ad/alice?x=1#y", b"/api/v2/users/saml%7Cad%2Falice%3Fx%3D1%23y"),
        ("oidc|c|../../clients", b"/api/v2/users/oidc%7Cc%7C..%2F..%2Fclients"),
        ("ad|50% é", b"/api/v2/users/ad%7C50%25%20%C3%A9"),
        ("ad|a%2Fb", b"/api/v2/users/ad%7Ca%252Fb"),
    ],
)
async def test_sample_fault_the_user_id_is_one_segment_of_the_path(tenant: Tenant, subject: str, path: bytes) -> None:
    """The sample puts it into the URL as it is."""
    with pytest.raises(IdPError):
        await tenant.token(Caller(subject))
    assert tenant.auth0.last.target.partition(b"?")[0] == path


@pytest.mark.parametrize("subject", ["", ".", "..", "auth0|\ud800"])
async def test_a_subject_that_can_be_no_segment_is_not_looked_up(tenant: Tenant, subject: str) -> None:
    """`..` names another resource however it is encoded; a lone surrogate has no encoding."""
    with pytest.raises(IdentityNotLinked) as caught:
        await tenant.token(Caller(subject))
    assert caught.value.connection == "github"
    assert tenant.look_ups == 0


# Which identity


async def test_several_accounts_of_one_connection_need_to_be_named(tenant: Tenant) -> None:
    """The answer lists their ids, so that the app can ask the user."""
    tenant.auth0.link("auth0|alice", Identity("github", "1009", access_token="gho_work"))
    with pytest.raises(IdentityAmbiguous) as caught:
        await tenant.token()
    assert caught.value.members() == {"accounts": ["1001", "1009"], "connection": "github"}
    assert (await tenant.token(Caller("auth0|alice", account="1009"))).value == "gho_work"
    assert (await tenant.token(Caller("auth0|alice", account="1001"))).value == "gho_alice"


@pytest.mark.parametrize("account", ["9", "", "alice", "github|1001"])
async def test_a_named_account_that_is_not_there_is_not_replaced_by_another(tenant: Tenant, account: str) -> None:
    """Not even by the only one: the request was about a different account."""
    with pytest.raises(IdentityNotLinked):
        await tenant.token(Caller("auth0|alice", account=account))


@pytest.mark.parametrize("subject", ["auth0|alice", "auth0|nobody", "me@clients"])
async def test_no_identity_and_no_such_user_are_not_linked(tenant: Tenant, subject: str) -> None:
    """A machine's own token has a subject that is no user id; Auth0 answers 400 to it."""
    tenant.auth0.unlink("auth0|alice", "github")
    with pytest.raises(IdentityNotLinked) as caught:
        await tenant.token(Caller(subject))
    assert caught.value.members() == {"connection": "github"}


def answering(body: Any, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth/token":
            return httpx.Response(200, json={"access_token": "mgmt", "token_type": "Bearer", "expires_in": 86400})
        return httpx.Response(status, content=body if isinstance(body, (str, bytes)) else json.dumps(body))

    return answer


async def ask(answer: Callable[[httpx.Request], httpx.Response], **fields: Any) -> Token:
    source = Tenant().another(transport=httpx.MockTransport(answer))
    route = ProxyRoute("https://api.github.com", token_source=source, connection="github")
    try:
        return await source.token(Caller("auth0|alice", **fields), route)
    finally:
        await source.aclose()


async def test_ids_may_be_numbers() -> None:
    """Auth0 hands GitHub's on as GitHub has them."""
    identities = [{"connection": "github", "user_id": n, "access_token": f"gho_{n}"} for n in (1, 2)]
    assert (await ask(answering({"identities": identities}), account="2")).value == "gho_2"
    with pytest.raises(IdentityAmbiguous) as caught:
        await ask(answering({"identities": identities}))
    assert caught.value.accounts == ("1", "2")


async def test_ids_that_are_nonsense_name_nothing() -> None:
    """True is a number to Python."""
    identities = [{"connection": "github", "user_id": what, "access_token": "x"} for what in (None, True, [], {}, "7")]
    with pytest.raises(IdentityAmbiguous) as caught:
        await ask(answering({"identities": identities}))
    assert caught.value.accounts == ("7",)
    assert (await ask(answering({"identities": identities[:1]}))).value == "x"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        [],
        {},
        {"identities": None},
        {"identities": {}},
        {"identities": ["github"]},
        {"identities": [None]},
        *(
            {"identities": [{"connection": "github", "user_id": "1", "access_token": value}]}
            for value in ("", 7, ["x"], {}, True, "two words", "x\r\ny: z", "é", None)
        ),
    ],
    ids=repr,
)
async def test_nonsense_is_a_failed_source(body: Any) -> None:
    """What is no token must not become a header."""
    with pytest.raises(TokenSourceFailed):
        await ask(answering(body))


async def test_a_404_of_something_else_is_not_an_unknown_user() -> None:
    """A wrong base_url would otherwise tell every user to link an account."""
    with pytest.raises(TokenSourceFailed, match="404"):
        await ask(answering("<h1>Not Found</h1>", 404))
    with pytest.raises(TokenSourceFailed, match="404"):
        await ask(answering({"message": "no route"}, 404))


async def test_an_error_code_with_more_than_a_code_in_it_is_not_logged() -> None:
    """What goes to the log is a word of Auth0's, not whatever came."""
    with pytest.raises(TokenSourceFailed) as caught:
        await ask(answering({"statusCode": 418, "errorCode": "x\nforged log line"}, 418))
    assert "forged" not in str(caught.value)


# Refusals


async def test_a_withdrawn_management_token_is_replaced_once(tenant: Tenant) -> None:
    """The operator rotated the secret: one fresh token, one more try."""
    await tenant.token()
    tenant.auth0.revoke_management_tokens()
    assert (await tenant.token()).value == "gho_alice"
    assert (tenant.grants, tenant.look_ups) == (2, 3)


async def test_many_look_ups_share_the_fresh_management_token(tenant: Tenant) -> None:
    """All of them are refused at the same moment."""
    await tenant.token()
    tenant.auth0.revoke_management_tokens()
    await asyncio.gather(*(tenant.token(Caller(f"auth0|{who}")) for who in ("alice", "bob") * 10))
    assert tenant.grants == 2


async def test_a_refusal_that_stands_ends_after_two_look_ups(tenant: Tenant) -> None:
    """And tells the operator what to look at."""
    tenant.auth0.fail("/api/v2/users/", status=401)
    with pytest.raises(TokenSourceFailed, match="management_audience"):
        await tenant.token()
    assert (tenant.grants, tenant.look_ups) == (2, 2)


async def test_a_missing_scope_is_told_to_the_operator(tenant: Tenant) -> None:
    """403 insufficient_scope."""
    tenant.auth0.add_client("me", "s3cret", scopes=["read:clients"])
    with pytest.raises(TokenSourceFailed, match=r"insufficient_scope.*read:users and read:user_idp_tokens"):
        await tenant.token()


async def test_a_client_that_is_refused_is_told_to_the_operator(tenant: Tenant) -> None:
    """The commonest mistake of a first set-up: the application has no grant for the Management API."""
    tenant.auth0.add_client("me", "s3cret", scopes=[])
    with pytest.raises(TokenSourceFailed, match='create a "client-grant"'):
        await tenant.token()
    with pytest.raises(TokenSourceFailed, match="access_denied"):
        await tenant.another(client_secret="wrong").token(ALICE, tenant.route)
    with pytest.raises(TokenSourceFailed, match="Service not enabled"):
        await tenant.another(management_audience="https://elsewhere/").token(ALICE, tenant.route)


@pytest.mark.parametrize("where", ["/oauth/token", "/api/v2/users/"])
async def test_an_outage_passes(tenant: Tenant, where: str) -> None:
    """Nothing of it is remembered."""
    tenant.auth0.fail(where, status=503, times=1)
    with pytest.raises(TokenSourceUnavailable):
        await tenant.token()
    assert (await tenant.token()).value == "gho_alice"


@pytest.mark.parametrize("where", ["/oauth/token", "/api/v2/users/"])
async def test_a_stalling_tenant_is_waited_for_a_bounded_time(where: str) -> None:
    """A caller waits behind it."""
    tenant = Tenant(timeout=Timeout(connect=0.05, read=0.05, write=0.05))
    tenant.auth0.stall(where, 3600)
    with pytest.raises(TokenSourceTimeout):
        await tenant.token()
    await tenant.source.aclose()


# Rate limits


async def test_a_short_rate_limit_is_waited_out(tenant: Tenant) -> None:
    """The caller notices a delay, not an error; nothing is asked of the tenant meanwhile."""
    tenant.auth0.rate_limit("/api/v2/users/", retry_after=1)
    started = time.monotonic()
    tokens = await asyncio.gather(*(tenant.token(Caller(f"auth0|{who}")) for who in ("alice", "bob")))
    assert [token.value for token in tokens] == ["gho_alice", "gho_bob"]
    assert time.monotonic() - started >= 1
    limited, *others = (request.time for request in tenant.auth0.requests if request.method == "GET")
    assert [after - limited >= 0.95 or after - limited < 0.1 for after in others] == [True] * len(others)


@pytest.mark.parametrize("limit", [{"retry_after": 30}, {"reset_in": 30.0}, {"retry_after": 30, "reset_in": 99.0}])
async def test_a_long_rate_limit_is_told_and_kept(tenant: Tenant, limit: dict[str, Any]) -> None:
    """Retry-After, or else Auth0's own field: not one more request to that tenant before then, of anybody."""
    tenant.auth0.rate_limit("/api/v2/users/", **limit, times=None)
    for who in ("alice", "bob", "alice"):
        with pytest.raises(TokenSourceUnavailable) as caught:
            await tenant.token(Caller(f"auth0|{who}"))
        assert caught.value.retry_after == pytest.approx(30, abs=3)
    assert tenant.look_ups == 1


async def test_a_rate_limit_of_the_grant_holds_for_the_look_ups_too(tenant: Tenant) -> None:
    """It is the tenant that has had enough of us."""
    tenant.auth0.rate_limit("/oauth/token", retry_after=60)
    for _ in range(3):
        with pytest.raises(TokenSourceUnavailable):
            await tenant.token()
    assert len(tenant.auth0.requests) == 1


async def test_a_rate_limit_that_says_now_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try is put off twice as long as the one before."""
    monkeypatch.setattr("idp_middleware.sources._patient.MAX_WAIT", 1.0)
    tenant = Tenant()
    tenant.auth0.rate_limit("/oauth/token", retry_after=0, times=None)
    with pytest.raises(TokenSourceUnavailable):
        await tenant.token()
    assert 2 <= len(tenant.auth0.requests) <= 3
    await tenant.source.aclose()


async def test_a_rate_limit_until_the_end_of_time_is_not_believed(tenant: Tenant) -> None:
    """One wrong answer must not take the source out of service for good."""
    tenant.auth0.rate_limit("/oauth/token", retry_after=999_999_999)
    with pytest.raises(TokenSourceUnavailable) as caught:
        await tenant.token()
    assert caught.value.retry_after is not None
    assert caught.value.retry_after <= 3600


async def test_few_requests_go_to_the_tenant_at_a_time() -> None:
    """A cold start with many users would otherwise run straight into the rate limit."""
    at_once, most = 0, 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        return answering({"identities": [{"connection": "github", "access_token": "x"}]})(request)

    tenant = Tenant(transport=httpx.MockTransport(answer))
    await asyncio.gather(*(tenant.token(Caller(f"auth0|{n}")) for n in range(60)))
    assert most == 10
    await tenant.source.aclose()


async def test_the_wait_for_a_turn_is_bounded() -> None:
    """A tenant that hangs must not gather a queue that outlives it."""
    tenant = Tenant(timeout=Timeout(pool=0.05))
    await tenant.token()
    tenant.auth0.stall("/api/v2/users/", 0.4)
    outcomes = await asyncio.gather(
        *(tenant.token(Caller(who)) for who in ["auth0|alice"] * 15), return_exceptions=True
    )
    assert Counter(type(outcome) for outcome in outcomes) == {Token: 10, TokenSourceBusy: 5}
    await tenant.source.aclose()


def test_a_source_works_on_one_loop_after_another() -> None:
    """Test clients start a loop for each request."""
    tenant = Tenant()

    async def many() -> None:
        await asyncio.gather(*(tenant.token() for _ in range(30)))

    for _ in range(3):
        asyncio.run(many())
    assert tenant.look_ups == 90


# Secrets and set-up


async def test_no_secret_reaches_a_log(tenant: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    """At any level, failures included."""
    caplog.set_level(logging.DEBUG)
    await tenant.token()
    tenant.auth0.fail("/oauth/token", status=403, body={"error": "access_denied", "error_description": "s3cret"})
    tenant.auth0.revoke_management_tokens()
    with pytest.raises(TokenSourceFailed) as caught:
        await tenant.token()
    log = f"{caplog.text}{caught.value!r}"
    management = tenant.auth0.last.bearer or "s3cret"
    assert [secret for secret in ("s3cret", "gho_alice", management) if secret in log] == []


def test_nothing_shows_the_secret() -> None:
    """Whatever a debugger, a log line or pytest prints of it."""
    source = Tenant().source
    assert repr(source) == "Auth0Management(base_url='https://acme.eu.auth0.com', client_id='me')"
    assert "s3cret" not in str(source.identity)
    with pytest.raises(TypeError):
        source.__reduce_ex__(4)


def test_configuration_decides_whether_two_sources_share() -> None:
    """The domain and its URL are one tenant; another client may see other tokens."""
    tenant = Tenant()
    same = [tenant.another(), tenant.another(domain="ACME.eu.auth0.com"), tenant.another(client_secret="rotated")]
    same.append(tenant.another(domain=None, base_url=f"{TENANT}/"))
    others = [tenant.another(client_id="you"), tenant.another(domain="b.auth0.com")]
    others.append(tenant.another(management_audience="x"))
    assert len({source.identity for source in same}) == 1
    assert len({source.identity for source in [*same, *others]}) == 4


def test_a_caller_shares_with_itself_whatever_its_own_scopes() -> None:
    """The answer is the same for a user's every client."""
    tenant = Tenant()
    key = tenant.source.cache_key
    assert key(ALICE, tenant.route) == key(Caller("auth0|alice", frozenset({"admin"})), tenant.route)
    different = [
        ALICE,
        Caller("auth0|bob"),
        Caller("auth0|alice", account="1"),
        Caller("auth0|alice", claims={"iss": "x"}),
    ]
    assert len({key(caller, tenant.route) for caller in different}) == 4


def test_a_route_must_say_which_connection() -> None:
    """There is no sensible default among a user's accounts."""
    with pytest.raises(ConfigurationError) as caught:
        ProxyRoute("https://api.github.com", token_source=Tenant().source)
    assert caught.value.key == "connection"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"domain": None}, "domain"),
        ({"base_url": TENANT}, "base_url"),
        ({"domain": "https://acme.eu.auth0.com"}, "domain"),
        ({"domain": "acme.eu.auth0.com/"}, "domain"),
        ({"domain": "user@acme.eu.auth0.com"}, "domain"),
        ({"domain": ""}, "domain"),
        ({"domain": None, "base_url": "acme.eu.auth0.com"}, "base_url"),
        ({"domain": None, "base_url": "http://acme.eu.auth0.com"}, "base_url"),
        ({"domain": None, "base_url": f"{TENANT}?x=1"}, "base_url"),
        ({"client_id": ""}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
        ({"timeout": Timeout(read=0)}, "timeout"),
    ],
)
def test_mistakes_are_told_where_they_are_made(options: dict[str, Any], key: str) -> None:
    """Long before the first request."""
    with pytest.raises(ConfigurationError) as caught:
        Tenant(**options)
    assert caught.value.key == key


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:9100", "http://localhost:9100/", "http://idp.internal/auth0/"])
def test_a_base_url_may_be_local_or_on_a_path(base_url: str) -> None:
    """For tests and private clouds; the audience follows it."""
    source = Tenant().another(domain=None, base_url=base_url, allow_insecure="internal" in base_url)
    assert source.identity[1] == base_url.rstrip("/")
    assert source.identity[3] == base_url.rstrip("/") + "/api/v2/"
