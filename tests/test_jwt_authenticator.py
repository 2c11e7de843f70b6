"""Who is let in, as whom, and what is remembered of it. Forgeries have a file of their own."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import time_machine
from starlette.requests import HTTPConnection

from idp_middleware import Caller, JWTAuthenticator, _jwt
from idp_middleware.errors import CallerUnauthenticated, ConfigurationError, TokenSourceUnavailable
from idp_middleware.testing import Auth0, signing_key

ISSUER = "https://acme.eu.auth0.com/"
API = "https://api.acme.example"


@pytest.fixture
def auth0() -> Auth0:
    return Auth0(ISSUER)


@pytest.fixture
async def authenticator(auth0: Auth0) -> AsyncIterator[JWTAuthenticator]:
    authenticator = authenticator_for(auth0)
    yield authenticator
    await authenticator.aclose()


def authenticator_for(auth0: Auth0, **options: Any) -> JWTAuthenticator:
    options = {"issuer": ISSUER, "audience": API, "transport": httpx.ASGITransport(app=auth0), **options}
    return JWTAuthenticator(**options)


def request(*authorization: bytes | str, headers: tuple[tuple[bytes, bytes], ...] = (), **scope: Any) -> HTTPConnection:
    values = [value.encode() if isinstance(value, str) else value for value in authorization]
    fields = [(b"host", b"app.example"), *headers, *((b"authorization", value) for value in values)]
    return HTTPConnection({"type": "http", "headers": fields, **scope})


def bearer(token: str) -> HTTPConnection:
    return request(f"Bearer {token}")


async def test_a_valid_token_becomes_its_caller(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """The subject decides whose token is injected, the scopes what may be done, the credential what is exchanged."""
    token = auth0.issue_token("auth0|alice", audience=API, scope="read:github write:github", org_id="org_1")

    caller = await authenticator.authenticate(bearer(token))

    assert (caller.subject, caller.issuer) == ("auth0|alice", ISSUER)
    assert caller.scopes == {"read:github", "write:github"}
    assert caller.claims["org_id"] == "org_1"
    assert caller.credential == token
    assert caller.account is None


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "EdDSA"])
async def test_each_allowed_algorithm_verifies(auth0: Auth0, algorithm: str) -> None:
    """An algorithm that may be configured has to work; the double publishes the key when it first signs."""
    token = auth0.issue_token("auth0|alice", audience=API, algorithm=algorithm)

    caller = await authenticator_for(auth0, algorithms=[algorithm, "RS256"]).authenticate(bearer(token))

    assert caller.subject == "auth0|alice"


# --- the Authorization field -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_case_insensitive(auth0: Auth0, authenticator: JWTAuthenticator, scheme: str) -> None:
    """RFC 9110 section 11.1; Octokit sends `bearer`."""
    token = auth0.issue_token("auth0|alice", audience=API)
    assert (await authenticator.authenticate(request(f"{scheme} {token}"))).subject == "auth0|alice"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", None),
        ("Basic YWxpY2U6cHc=", None),
        ("DPoP {token}", None),
        ("token {token}", None),
        ("{token}", None),
        ("Bearer\t{token}", None),
        (" Bearer {token}", None),
        ("Bearer:{token}", None),
        ("Bearer", "invalid_token"),
        ("Bearer ", "invalid_token"),
        ("Bearer  {token}", "invalid_token"),
        ("Bearer \t{token}", "invalid_token"),
        ("Bearer {token} {token}", "invalid_token"),
        ("Bearer {token}, Bearer {token}", "invalid_token"),
        ("Bearer {token},Basic x", "invalid_token"),
        ('Bearer "{token}"', "invalid_token"),
        ("Bearer Bearer {token}", "invalid_token"),
        ("Bearer {token}\0", "invalid_token"),
        ("Bearer {token}\r\nX: y", "invalid_token"),
        ("Bearer ü{token}", "invalid_token"),
        ("Bearer {token}" + "A" * 16384, "invalid_token"),
        ("Bearer " + "A" * 5_000_000, "invalid_token"),
    ],
)
async def test_only_a_well_formed_authorization_field_counts(
    auth0: Auth0, authenticator: JWTAuthenticator, value: str, error: str | None
) -> None:
    """Two readers could split it differently (GHSA-gv94-wp4h-vv8p); that the token itself is known changes nothing."""
    token = auth0.issue_token("auth0|alice", audience=API)
    await authenticator.authenticate(bearer(token))

    with pytest.raises(CallerUnauthenticated) as refused:
        await authenticator.authenticate(request(value.replace("{token}", token)))
    assert refused.value.error == error


async def test_no_token_is_no_error(authenticator: JWTAuthenticator) -> None:
    """RFC 6750 section 3.1: who sent nothing is told how, not what was wrong."""
    with pytest.raises(CallerUnauthenticated) as refused:
        await authenticator.authenticate(request())
    assert refused.value.headers() == [("www-authenticate", "Bearer")]


async def test_several_authorization_fields_are_refused(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """Another party on the way might take the other one, whatever the case of the name."""
    token = auth0.issue_token("auth0|alice", audience=API)
    await authenticator.authenticate(bearer(token))
    for conn in (
        request(f"Bearer {token}", f"Bearer {token}"),
        request(f"Bearer {token}", "Basic x"),
        request(f"Bearer {token}", headers=((b"Authorization", b"Basic x"),)),
    ):
        with pytest.raises(CallerUnauthenticated) as refused:
            await authenticator.authenticate(conn)
        assert refused.value.error == "invalid_request"


async def test_the_name_may_come_in_any_case(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """ASGI servers should lower-case names, but need not."""
    token = auth0.issue_token("auth0|alice", audience=API)
    conn = request(headers=((b"Authorization", b"Bearer " + token.encode()),))
    assert (await authenticator.authenticate(conn)).subject == "auth0|alice"


async def test_a_token_elsewhere_is_no_credential(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """RFC 6750 sections 2.2 and 2.3 are never supported: query strings end up in logs."""
    token = auth0.issue_token("auth0|alice", audience=API)
    conn = request(
        headers=((b"cookie", f"access_token={token}".encode()), (b"proxy-authorization", f"Bearer {token}".encode())),
        query_string=f"access_token={token}".encode(),
        path="/idp/github/user",
    )
    with pytest.raises(CallerUnauthenticated) as refused:
        await authenticator.authenticate(conn)
    assert refused.value.error is None


async def test_githubs_scheme_works_where_configured(auth0: Auth0) -> None:
    """PyGithub sends `Authorization: token …`."""
    authenticator = authenticator_for(auth0, schemes=("Bearer", "token"))
    token = auth0.issue_token("auth0|alice", audience=API)
    for scheme in ("token", "Token", "bearer"):
        assert (await authenticator.authenticate(request(f"{scheme} {token}"))).subject == "auth0|alice"


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"scope": "a b"}, {"a", "b"}),
        ({"scp": "a b"}, {"a", "b"}),
        ({"scp": ["a", "b:c"]}, {"a", "b:c"}),
        ({"scope": "a", "scp": ["b"], "permissions": ["c", "a"]}, {"a", "b", "c"}),
        ({"scope": "  a   b "}, {"a", "b"}),
        ({"scope": ["a", "b c"]}, {"a"}),
        ({"scope": "a\tb c"}, {"c"}),
        ({"scope": 'a"b c\\d é e'}, {"e"}),
        ({"scope": ""}, set()),
        ({"scope": {"a": 1}, "scp": 7, "permissions": [["x"], None, {"rsname": "y"}, "z"]}, {"z"}),
        ({"scope": True}, set()),
        ({"scopes": "a", "roles": ["b"]}, set()),
    ],
)
async def test_scopes_are_the_union_of_the_claims(
    auth0: Auth0, authenticator: JWTAuthenticator, claims: dict[str, Any], expected: set[str]
) -> None:
    """Auth0, Okta and Entra each put them elsewhere; what is no scope (RFC 6749 section 3.3) grants nothing."""
    token = auth0.issue_token("auth0|alice", audience=API, **claims)
    assert (await authenticator.authenticate(bearer(token))).scopes == expected


async def test_scope_claims_can_be_chosen(auth0: Auth0) -> None:
    """A claim that the issuer fills by other rules must not grant scopes."""
    token = auth0.issue_token("auth0|alice", audience=API, scope="a", roles=["b"])
    chosen = authenticator_for(auth0, scope_claims=["roles"])
    none = authenticator_for(auth0, scope_claims=[])
    assert (await chosen.authenticate(bearer(token))).scopes == {"b"}
    assert (await none.authenticate(bearer(token))).scopes == frozenset()


@pytest.mark.parametrize(
    ("ours", "theirs", "accepted"),
    [
        (API, API, True),
        (API, [API], True),
        (API, ["https://other.example", API, ISSUER + "userinfo"], True),
        ([API, "api-2"], "api-2", True),
        ({API, "api-2"}, ["x", "api-2"], True),
        ([API, "api-2"], "api-3", False),
    ],
)
async def test_one_of_our_audiences_must_be_meant(auth0: Auth0, ours: Any, theirs: Any, accepted: bool) -> None:
    """RFC 8725 section 3.9: a token for another API of the same issuer is not for us."""
    authenticator = authenticator_for(auth0, audience=ours)
    token = auth0.issue_token("auth0|alice", audience=theirs)
    if accepted:
        assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"
    else:
        with pytest.raises(CallerUnauthenticated):
            await authenticator.authenticate(bearer(token))


@pytest.mark.parametrize(
    ("claim", "offset", "accepted"),
    [
        ("exp", 1.5, True),
        ("exp", -5, True),
        ("exp", -9, True),
        ("exp", -10.5, False),
        ("exp", -30, False),
        ("nbf", 5, True),
        ("nbf", 30, False),
        ("nbf", -30, True),
        ("iat", 5, True),
        ("iat", 30, False),
        ("iat", -86400, True),
    ],
)
async def test_clocks_may_differ_by_the_leeway(
    auth0: Auth0, authenticator: JWTAuthenticator, claim: str, offset: float, accepted: bool
) -> None:
    """Ten seconds unless told; fractions are numbers of seconds too (RFC 7519 section 2)."""
    with time_machine.travel(1_800_000_000, tick=False):
        claims = {claim: 1_800_000_000 + offset}
        token = auth0.issue_token("auth0|alice", audience=API, **claims)
        if accepted:
            assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"
        else:
            with pytest.raises(CallerUnauthenticated):
                await authenticator.authenticate(bearer(token))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/JWT", None])
async def test_types_of_access_tokens_are_accepted(auth0: Auth0, authenticator: JWTAuthenticator, typ: str) -> None:
    """RFC 9068 section 2.1, and the many that came before it."""
    token = auth0.issue_token("auth0|alice", audience=API, headers={"typ": typ})
    assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"


@pytest.mark.parametrize(
    ("typ", "accepted"), [("at+jwt", True), ("Application/AT+JWT", True), ("JWT", False), (None, False)]
)
async def test_the_type_can_be_insisted_on(auth0: Auth0, typ: str | None, accepted: bool) -> None:
    """RFC 8725 section 3.11: explicit typing tells an ID token from an access token for good."""
    token = auth0.issue_token("auth0|alice", audience=API, headers={"typ": typ})
    for spelling in ("at+jwt", "application/AT+JWT"):
        authenticator = authenticator_for(auth0, types=[spelling])
        if accepted:
            assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"
        else:
            with pytest.raises(CallerUnauthenticated):
                await authenticator.authenticate(bearer(token))


@pytest.mark.parametrize("subject", ["auth0|alice", "alice bob", "ålice@example.com", "a" * 2000, "x\\y%7Cz"])
async def test_subjects_come_through_as_they_are(auth0: Auth0, authenticator: JWTAuthenticator, subject: str) -> None:
    """Whoever looks the user up needs the exact string."""
    token = auth0.issue_token(subject, audience=API)
    assert (await authenticator.authenticate(bearer(token))).subject == subject


async def test_a_key_that_the_token_brings_is_not_looked_at(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """RFC 8725 section 3.10; the issuer's own signature is good whatever else the header says."""
    stranger = signing_key("RS256", 99)
    headers = {
        "jwk": stranger.jwk,
        "jku": "https://evil.example/jwks.json",
        "x5u": "https://evil.example/",
        "x5c": ["x"],
    }
    token = auth0.issue_token("auth0|alice", audience=API, headers=headers)
    assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"
    assert {r.path for r in auth0.requests} == {"/.well-known/openid-configuration", "/.well-known/jwks.json"}


# --- several issuers -------------------------------------------------------------------------------------------------


async def test_a_foreign_token_is_refused_without_asking_for_keys(
    auth0: Auth0, authenticator: JWTAuthenticator
) -> None:
    """So that several authenticators can be asked in turn, and an outage of one issuer stays its own."""
    auth0.fail("/")
    foreign = Auth0("https://other.example/").issue_token("auth0|alice", audience=API)
    with pytest.raises(CallerUnauthenticated):
        await authenticator.authenticate(bearer(foreign))
    assert auth0.requests == []

    with pytest.raises(TokenSourceUnavailable):
        await authenticator.authenticate(bearer(auth0.issue_token("auth0|alice", audience=API)))


# --- what is remembered ----------------------------------------------------------------------------------------------


async def test_a_verified_token_gives_the_same_caller_again(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """A signature costs more than all the rest of a request."""
    token = auth0.issue_token("auth0|alice", audience=API)
    first = await authenticator.authenticate(bearer(token))
    assert await authenticator.authenticate(bearer(token)) is first
    other = await authenticator.authenticate(bearer(auth0.issue_token("auth0|bob", audience=API)))
    assert (first.subject, other.subject) == ("auth0|alice", "auth0|bob")


async def test_a_remembered_token_ends_when_it_expires(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """The leeway is the only grace, remembered or not."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        token = auth0.issue_token("auth0|alice", audience=API, expires_in=60)
        await authenticator.authenticate(bearer(token))
        clock.shift(69.9)
        await authenticator.authenticate(bearer(token))
        clock.shift(0.1)
        for _ in range(2):
            with pytest.raises(CallerUnauthenticated):
                await authenticator.authenticate(bearer(token))


async def test_a_refusal_is_not_remembered(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """A token that comes a little early is good a little later."""
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        token = auth0.issue_token("auth0|alice", audience=API, nbf=1_800_000_060)
        with pytest.raises(CallerUnauthenticated):
            await authenticator.authenticate(bearer(token))
        clock.shift(60)
        assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"


async def test_memory_is_bounded_and_keeps_who_is_active(
    auth0: Auth0, authenticator: JWTAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand users come and go; the ones that call all the time are not verified again for it."""
    monkeypatch.setattr(_jwt, "MAX_VERIFIED", 3)
    tokens = [auth0.issue_token(f"auth0|{n}", audience=API) for n in range(5)]
    active = await authenticator.authenticate(bearer(tokens[0]))
    idle = await authenticator.authenticate(bearer(tokens[1]))
    for token in tokens[2:]:
        await authenticator.authenticate(bearer(token))
        assert await authenticator.authenticate(bearer(tokens[0])) is active
    assert await authenticator.authenticate(bearer(tokens[1])) is not idle


async def test_claims_are_read_only(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """All requests with a token share them."""
    caller = await authenticator.authenticate(bearer(auth0.issue_token("auth0|alice", audience=API)))
    with pytest.raises(TypeError):
        caller.claims["sub"] = "auth0|bob"  # type: ignore[index]


async def test_a_websocket_is_authenticated_alike(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """The scope of a handshake has the same fields."""
    token = auth0.issue_token("auth0|alice", audience=API)
    conn = HTTPConnection({"type": "websocket", "headers": [(b"authorization", f"Bearer {token}".encode())]})
    assert (await authenticator.authenticate(conn)).subject == "auth0|alice"


# --- what shows ------------------------------------------------------------------------------------------------------


async def test_nothing_shows_a_token(auth0: Auth0, authenticator: JWTAuthenticator) -> None:
    """Reprs end up in logs and tracebacks."""
    token = auth0.issue_token("auth0|alice", audience=API, email="alice@example.com")
    caller = await authenticator.authenticate(bearer(token))

    assert repr(authenticator) == f"JWTAuthenticator(issuer='{ISSUER}', audience=['{API}'])"
    for text in (repr(caller), repr(vars(authenticator))):
        assert token not in text
        assert token.rpartition(".")[2] not in text
        assert "alice@example.com" not in text
    assert copy.copy(caller) is caller
    with pytest.raises(TypeError):
        pickle.dumps(caller)


async def test_a_refusal_repeats_nothing_of_the_token(
    auth0: Auth0, authenticator: JWTAuthenticator, caplog: pytest.LogCaptureFixture
) -> None:
    """Key ids and claims are the sender's text: PyJWT's own messages would carry line breaks into the log."""
    marks = ["MARK-kid\r\n", "MARK-aud", "MARK-iss", "MARK-sub\n", "MARK-typ", "MARK-alg"]
    tokens = [
        auth0.issue_token("a|b", audience=API, headers={"kid": marks[0]}),
        auth0.issue_token("a|b", audience=marks[1]),
        auth0.issue_token("a|b", audience=API, iss=marks[2]),
        auth0.issue_token(marks[3], audience=API),
        auth0.issue_token("a|b", audience=API, headers={"typ": marks[4]}),
        auth0.issue_token("a|b", audience=API, algorithm="none", headers={"alg": marks[5]}) + "AAAA",
    ]
    for token in tokens:
        with pytest.raises(CallerUnauthenticated) as refused:
            await authenticator.authenticate(bearer(token))
        said = f"{refused.value!r} {refused.value} {refused.value.headers()} {refused.value.__cause__} {caplog.text}"
        assert "MARK" not in said
        assert token not in said


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("issuer", {"issuer": ""}),
        ("issuer", {"issuer": None}),
        ("issuer", {"issuer": b"https://acme.example"}),
        ("issuer", {"issuer": "acme.eu.auth0.com"}),
        ("issuer", {"issuer": "http://acme.eu.auth0.com/"}),
        ("issuer", {"issuer": "ftp://acme.eu.auth0.com/"}),
        ("issuer", {"issuer": "https://alice:pw@acme.eu.auth0.com/"}),
        ("issuer", {"issuer": "https://acme.eu.auth0.com/?tenant=1"}),
        ("issuer", {"issuer": "https://acme.eu.auth0.com/#x"}),
        ("issuer", {"issuer": "a\r\nb", "jwks_url": "https://acme.example/jwks"}),
        ("jwks_url", {"jwks_url": "http://acme.example/jwks"}),
        ("jwks_url", {"jwks_url": ""}),
        ("jwks_url", {"jwks_url": "file:///etc/jwks.json"}),
        ("audience", {"audience": ""}),
        ("audience", {"audience": []}),
        ("audience", {"audience": ["api", ""]}),
        ("audience", {"audience": None}),
        ("audience", {"audience": ["api", 7]}),
        ("algorithms", {"algorithms": []}),
        ("algorithms", {"algorithms": "RS256"}),
        ("algorithms", {"algorithms": ["none"]}),
        ("algorithms", {"algorithms": ["RS256", "None"]}),
        ("algorithms", {"algorithms": ["HS256"]}),
        ("algorithms", {"algorithms": ["RS256", "HS512"]}),
        ("algorithms", {"algorithms": ["rs256"]}),
        ("algorithms", {"algorithms": ["ES521"]}),
        ("algorithms", {"algorithms": [None]}),
        ("leeway", {"leeway": -1}),
        ("leeway", {"leeway": 301}),
        ("leeway", {"leeway": float("nan")}),
        ("leeway", {"leeway": "10"}),
        ("leeway", {"leeway": True}),
        ("scope_claims", {"scope_claims": "scope"}),
        ("scope_claims", {"scope_claims": [""]}),
        ("schemes", {"schemes": []}),
        ("schemes", {"schemes": "bearer"}),
        ("schemes", {"schemes": ["dpop"]}),
        ("schemes", {"schemes": [None]}),
        ("types", {"types": []}),
        ("types", {"types": "JWT"}),
    ],
)
def test_a_mistake_in_the_set_up_names_its_argument(auth0: Auth0, key: str, options: dict[str, Any]) -> None:
    """It fails where it is written, not at the first request."""
    with pytest.raises(ConfigurationError) as wrong:
        authenticator_for(auth0, **options)
    assert wrong.value.key == key


async def test_plain_http_works_on_loopback_or_on_request() -> None:
    """For tests and private clouds; anywhere else keys could be swapped on the way."""
    for issuer, options in (
        ("http://127.0.0.1:9100/", {}),
        ("http://localhost:9100/", {}),
        ("http://idp.internal/", {"allow_insecure": True}),
    ):
        auth0 = Auth0(issuer)
        token = auth0.issue_token("auth0|alice", audience=API)
        issuer = auth0.issuer
        authenticator = JWTAuthenticator(
            issuer=issuer,
            audience=API,
            jwks_url=issuer + ".well-known/jwks.json",
            transport=httpx.ASGITransport(app=auth0),
            **options,
        )
        assert (await authenticator.authenticate(bearer(token))).subject == "auth0|alice"


async def test_an_issuer_with_a_key_url_is_only_a_name(auth0: Auth0) -> None:
    """RFC 7519 section 4.1.1: `iss` is any string; it is compared, never asked."""
    authenticator = authenticator_for(auth0, issuer="acme", jwks_url=ISSUER + ".well-known/jwks.json")
    token = auth0.issue_token("auth0|alice", audience=API, iss="acme")
    assert (await authenticator.authenticate(bearer(token))).issuer == "acme"
    assert [r.path for r in auth0.requests] == ["/.well-known/jwks.json"]


def test_it_serves_one_event_loop_beside_another(auth0: Auth0) -> None:
    """Test clients run each app in a loop of its own; a fetch that one left unfinished must not block the next."""
    authenticator = authenticator_for(auth0)
    token = auth0.issue_token("auth0|alice", audience=API)
    auth0.stall("/.well-known/jwks.json", 30, times=1)

    async def give_up() -> None:
        async with asyncio.timeout(0.05):
            await authenticator.authenticate(bearer(token))

    async def call() -> Caller:
        return await authenticator.authenticate(bearer(token))

    with asyncio.Runner() as runner:
        with pytest.raises(TimeoutError):
            runner.run(give_up())
        assert asyncio.run(call()).subject == "auth0|alice"
        assert runner.run(call()).subject == "auth0|alice"


def test_a_hit_costs_next_to_nothing(auth0: Auth0) -> None:
    """It is on every request's way: two microseconds, where a signature takes seventy; the bound is generous."""
    authenticator = authenticator_for(auth0)
    conn = bearer(auth0.issue_token("auth0|alice", audience=API))

    async def measure() -> float:
        await authenticator.authenticate(conn)
        started = time.perf_counter()
        for _ in range(2000):
            await authenticator.authenticate(conn)
        return (time.perf_counter() - started) / 2000

    assert min(asyncio.run(measure()) for _ in range(3)) < 25e-6
