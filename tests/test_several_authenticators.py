"""Several ways in, in order: whose turn it is, who decides, and what a 401 then asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection

from idp_middleware import (
    AnyOf,
    Caller,
    IdPMiddleware,
    IntrospectionAuthenticator,
    JWTAuthenticator,
    SessionAuthenticator,
    _jwt,
    load_config,
)
from idp_middleware._check import check
from idp_middleware.config import read_config
from idp_middleware.errors import (
    CallerForbidden,
    CallerUnauthenticated,
    ConfigurationError,
    NotMine,
    TokenSourceUnavailable,
)
from idp_middleware.testing import Auth0, IntrospectionServer, ProviderAPI, serve, signing_key
from tests.stack import AUDIENCE, Stack, running
from tests.test_session import OURS, signed

ACME, STAGING = "https://acme.example/", "https://staging.example/"
API = "https://api.acme.example"
CLIENT = ("the-api", "secret")


@pytest.fixture
def acme() -> Auth0:
    return Auth0(ACME)


@pytest.fixture
def staging() -> Auth0:
    return Auth0(STAGING)


@pytest.fixture
def login() -> IntrospectionServer:
    server = IntrospectionServer("https://login.example")
    server.add_client(*CLIENT)
    return server


def jwt_of(auth0: Auth0, **options: Any) -> JWTAuthenticator:
    options = {"audience": API, "transport": httpx.ASGITransport(app=auth0), **options}
    return JWTAuthenticator(issuer=auth0.issuer, **options)


def introspection(server: IntrospectionServer, **options: Any) -> IntrospectionAuthenticator:
    return IntrospectionAuthenticator(
        introspection_url="https://login.example/introspect",
        client_id=CLIENT[0],
        client_secret=CLIENT[1],
        transport=httpx.ASGITransport(app=server),
        **options,
    )


def request(*authorization: str, session: Any = None, headers: dict[str, str] | None = None) -> HTTPConnection:
    fields = [(b"host", b"app.example"), *((b"authorization", value.encode()) for value in authorization)]
    fields += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return HTTPConnection({"type": "http", "scheme": "https", "headers": fields, "session": session or {}})


async def challenge(authenticator: AnyOf, conn: HTTPConnection) -> str:
    with pytest.raises(CallerUnauthenticated) as caught:
        await authenticator.authenticate(conn)
    assert (caught.value.error is None) == ("error=" not in caught.value.headers()[0][1])
    ((name, value),) = caught.value.headers()
    assert name == "www-authenticate"
    return value


INVALID = 'Bearer error="invalid_token", error_description="The access token is not valid here"'

# --- several issuers -------------------------------------------------------------------------------------------------


async def test_each_issuer_has_its_own_rules(acme: Auth0, staging: Auth0) -> None:
    """Tenants side by side: audience, algorithms, and where the scopes are."""
    both = AnyOf(
        jwt_of(acme, scope_claims=["permissions"]),
        jwt_of(staging, audience="staging-api", algorithms=["ES256"], scope_claims=["scp"]),
    )
    claims = {"permissions": ["a"], "scp": "b"}
    for token, scopes, issuer in (
        (acme.issue_token("alice", audience=API, **claims), {"a"}, ACME),
        (staging.issue_token("alice", audience="staging-api", algorithm="ES256", **claims), {"b"}, STAGING),
    ):
        caller = await both.authenticate(request(f"Bearer {token}"))
        assert (caller.subject, caller.scopes, caller.issuer) == ("alice", scopes, issuer)


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": API},
        {"algorithm": "RS256"},
        {"expires_in": -60},
        {"key": signing_key("ES256", 99)},
        {"headers": {"crit": ["exp"]}},
        {"headers": {"typ": "logout+jwt"}},
        {"sub": None},
    ],
)
async def test_one_issuers_rules_never_help_another_in(acme: Auth0, staging: Auth0, changes: dict[str, Any]) -> None:
    """Whose token it says to be decides which rules are for it, and all of those then hold."""
    both = AnyOf(jwt_of(acme), jwt_of(staging, audience="staging-api", algorithms=["ES256"]))
    good: dict[str, Any] = {"audience": "staging-api", "algorithm": "ES256"}
    await both.authenticate(request(f"Bearer {staging.issue_token('alice', **good)}"))

    forged = staging.issue_token("alice", **good | changes)
    assert await challenge(both, request(f"Bearer {forged}")) == INVALID


async def test_a_token_signed_by_the_wrong_issuer_is_refused(acme: Auth0, staging: Auth0) -> None:
    """Staging's administrators must not be able to make production's users."""
    both = AnyOf(jwt_of(acme), jwt_of(staging, algorithms=["ES256"]))
    staging.issue_token("alice", audience=API, algorithm="ES256")
    forged = staging.issue_token("alice", audience=API, algorithm="ES256", iss=ACME)
    assert await challenge(both, request(f"Bearer {forged}")) == INVALID


async def test_an_outage_of_one_issuer_is_its_own(acme: Auth0, staging: Auth0) -> None:
    """And it is a 503 for its users, not a 401 from whoever is asked next."""
    both = AnyOf(jwt_of(acme), jwt_of(staging))
    acme.fail("/")
    token = staging.issue_token("alice", audience=API)
    assert (await both.authenticate(request(f"Bearer {token}"))).issuer == STAGING
    assert acme.requests == []
    with pytest.raises(TokenSourceUnavailable):
        await both.authenticate(request(f"Bearer {acme.issue_token('alice', audience=API)}"))
    assert staging.count("/.well-known/jwks.json") == 1


async def test_what_is_anothers_is_remembered_but_not_for_ever(
    acme: Auth0, staging: Auth0, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many tenants each token passes all those ahead of its own; anyone can make tokens up, so it is bounded."""
    monkeypatch.setattr(_jwt, "MAX_VERIFIED", 3)
    first, second = jwt_of(acme), jwt_of(staging)
    both = AnyOf(first, second)
    tokens = [staging.issue_token(f"user-{number}", audience=API) for number in range(5)]
    for token in [*tokens, *tokens]:
        assert (await both.authenticate(request(f"Bearer {token}"))).issuer == STAGING
    assert (len(first._others), len(first._verified), len(second._verified)) == (3, 0, 3)
    for _ in range(2):
        with pytest.raises(NotMine) as caught:
            await first.authenticate(request(f"Bearer {tokens[4]}"))
        assert caught.value.error == "invalid_token"


# --- several kinds ---------------------------------------------------------------------------------------------------


async def test_opaque_tokens_go_past_the_jwts(acme: Auth0, login: IntrospectionServer) -> None:
    """And JWTs are never shown to the introspection server, theirs being somebody else's."""
    both = AnyOf(jwt_of(acme), introspection(login, issuer="https://login.example"))
    opaque = login.issue_token("alice")
    assert (await both.authenticate(request(f"Bearer {opaque}"))).issuer == "https://login.example"
    token = acme.issue_token("alice", audience=API)
    assert (await both.authenticate(request(f"Bearer {token}"))).issuer == ACME
    expired = acme.issue_token("alice", audience=API, expires_in=-60)
    assert await challenge(both, request(f"Bearer {expired}")) == INVALID
    nobodys = Auth0("https://third.example/").issue_token("alice", audience=API)
    assert await challenge(both, request(f"Bearer {nobodys}")) == INVALID
    assert login.count() == 1


@pytest.mark.parametrize(
    ("authorization", "session", "fields", "outcome"),
    [
        ("good", {"sub": "bob"}, OURS, "alice"),
        ("good", {"sub": "bob"}, {}, "alice"),
        ("good", {}, {}, "alice"),
        ("", {"sub": "bob"}, OURS, "bob"),
        ("Basic YTpi", {"sub": "bob"}, OURS, "bob"),
        # What was sent as a token is judged as one: whoever sends it means to be somebody.
        ("expired", {"sub": "bob"}, OURS, CallerUnauthenticated),
        ("Bearer ", {"sub": "bob"}, OURS, CallerUnauthenticated),
        ("twice", {"sub": "bob"}, OURS, CallerUnauthenticated),
        ("", {"sub": "bob"}, {}, CallerForbidden),
        ("", {}, OURS, NotMine),
        # Nobody's token is nobody's business.
        ("foreign", {"sub": "bob"}, OURS, "bob"),
        ("foreign", {}, OURS, NotMine),
    ],
)
async def test_a_token_comes_before_the_session(
    acme: Auth0, authorization: str, session: Any, fields: dict[str, str], outcome: Any
) -> None:
    """H10: one identity, and always the same one, in the order that was given."""
    tokens = {
        "good": [f"Bearer {acme.issue_token('alice', audience=API)}"],
        "expired": [f"Bearer {acme.issue_token('alice', audience=API, expires_in=-60)}"],
        "foreign": [f"Bearer {Auth0('https://third.example/').issue_token('alice', audience=API)}"],
        "twice": [f"Bearer {acme.issue_token('alice', audience=API)}"] * 2,
        "": [],
    }
    conn = request(*tokens.get(authorization, [authorization]), session=session, headers=fields)
    both = AnyOf(jwt_of(acme), SessionAuthenticator())
    if isinstance(outcome, str):
        assert (await both.authenticate(conn)).subject == outcome
    else:
        with pytest.raises((CallerUnauthenticated, CallerForbidden)) as caught:
            await both.authenticate(conn)
        assert isinstance(caught.value, outcome)
        assert isinstance(caught.value, NotMine) == (outcome is NotMine)


async def test_the_other_order_has_the_other_outcome(acme: Auth0) -> None:
    """The order is the operator's to choose."""
    both = AnyOf(SessionAuthenticator(), jwt_of(acme))
    token = f"Bearer {acme.issue_token('alice', audience=API)}"
    assert (await both.authenticate(request(token, session={"sub": "bob"}, headers=OURS))).subject == "bob"
    assert (await both.authenticate(request(token, session={}))).subject == "alice"
    with pytest.raises(CallerForbidden):
        await both.authenticate(request(token, session={"sub": "bob"}))


async def test_any_callable_can_be_one_of_several(acme: Auth0) -> None:
    """A kiosk's key, a mesh's header: one async function, that says by an error whose turn it is."""

    async def by_key(conn: HTTPConnection) -> Caller:
        if conn.headers.get("x-key") is None:
            raise NotMine("no key", error=None, scheme="Key")
        if conn.headers["x-key"] != "right":
            raise CallerUnauthenticated("wrong key", scheme="Key")
        return Caller("kiosk")

    class ByKey:
        async def __call__(self, conn: HTTPConnection) -> Caller:
            return await by_key(conn)

    token = f"Bearer {acme.issue_token('alice', audience=API)}"
    for way in (by_key, ByKey()):
        several = AnyOf(way, jwt_of(acme))
        assert (await several.authenticate(request(token, headers={"x-key": "right"}))).subject == "kiosk"
        assert (await several.authenticate(request(token))).subject == "alice"
        assert (await challenge(several, request(token, headers={"x-key": "wrong"}))).startswith("Key error=")
        assert await challenge(several, request()) == "Key, Bearer"


async def test_what_an_authenticator_breaks_on_is_not_passed_on(acme: Auth0) -> None:
    """A crash is no "not mine": the next might be weaker."""

    async def broken(conn: HTTPConnection) -> Caller:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await AnyOf(broken, jwt_of(acme)).authenticate(request(f"Bearer {acme.issue_token('alice', audience=API)}"))


# --- the challenge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ([], "Bearer, Cookie"),
        (["Basic YTpi"], "Bearer, Cookie"),
        (["Bearer foreign.to.all"], INVALID + ", Cookie"),
        (["token x"], INVALID + ", Cookie"),
        (["Bearer "], INVALID),
    ],
)
async def test_a_401_names_each_scheme_once(
    acme: Auth0, staging: Auth0, authorization: list[str], expected: str
) -> None:
    """RFC 9110 section 11.6.1 and RFC 6750 section 3.1: an error where a token was sent, none where none was."""
    several = AnyOf(
        jwt_of(acme, schemes=["bearer"]), AnyOf(jwt_of(staging, schemes=["token", "bearer"])), SessionAuthenticator()
    )
    assert await challenge(several, request(*authorization)) == expected


# --- on the whole way ------------------------------------------------------------------------------------------------


class _Closes:
    closed = 0

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        raise NotMine("no")

    async def aclose(self) -> None:
        self.closed += 1


async def test_all_are_closed(acme: Auth0) -> None:
    """Connections to several identity providers."""
    first, second = _Closes(), _Closes()

    async def function(conn: HTTPConnection) -> Caller:
        raise NotMine("no")

    several = AnyOf(first, function, AnyOf(second))
    await IdPMiddleware(routes={}, authenticator=several).aclose()
    assert (first.closed, second.closed) == (1, 1)
    assert repr(AnyOf(jwt_of(acme), SessionAuthenticator(user=True))) == (
        f"AnyOf(JWTAuthenticator(issuer={ACME!r}, audience=[{API!r}]), SessionAuthenticator(user=True))"
    )


@pytest.mark.parametrize("authenticators", [[], [None], [lambda conn: Caller("x")], [SessionAuthenticator]])
def test_what_is_no_authenticator_is_a_mistake(authenticators: list[Any]) -> None:
    """Found where it is written."""
    with pytest.raises(ConfigurationError) as caught:
        AnyOf(*authenticators)
    assert caught.value.key == "authenticator"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Tokens of the stack's own Auth0 first, then sessions."""

    class Lazy:
        """The stack makes its issuer while it starts."""

        jwt: JWTAuthenticator

        async def authenticate(self, conn: HTTPConnection) -> Caller:
            return await self.jwt.authenticate(conn)

        async def aclose(self) -> None:
            await self.jwt.aclose()

    lazy = Lazy()
    several = AnyOf(lazy, SessionAuthenticator())
    with running(authenticator=several, wrap=lambda ours: SessionMiddleware(ours, "key")) as running_stack:
        lazy.jwt = JWTAuthenticator(issuer=running_stack.auth0.issuer, audience=AUDIENCE)
        yield running_stack


def test_users_of_either_kind_get_their_own_provider_token(stack: Stack) -> None:
    """A browser by its session and a script by its token, on one route."""
    cookie = {"cookie": "session=" + signed({"sub": "auth0|bob", "scope": "read:github"}, "key"), **OURS}
    with stack.client(user=None) as client:
        by_token = client.get("/idp/github/user", headers=stack.bearer("alice"))
        by_session = client.get("/idp/github/user", headers=cookie)
        by_both = client.get("/idp/github/user", headers={**cookie, **stack.bearer("alice")})
        by_none = client.get("/idp/github/user")
    assert [answer.json().get("login") for answer in (by_token, by_session, by_both)] == ["alice", "bob", "alice"]
    assert (by_none.status_code, by_none.headers["www-authenticate"]) == (401, "Bearer, Cookie")


def test_the_same_subject_by_session_and_token_shares_no_entry(stack: Stack) -> None:
    """Rule 1: the issuer is part of whose token it is."""
    users = "/api/v2/users/"
    stack.middleware._tokens._keeper._held.clear()
    before = stack.auth0.count(users)
    cookie = {"cookie": "session=" + signed({"sub": "auth0|alice", "scope": "read:github"}, "key"), **OURS}
    with stack.client(user=None) as client:
        for headers in (cookie, stack.bearer("alice")) * 2:
            assert client.get("/idp/github/user", headers=headers).json()["login"] == "alice"
    assert stack.auth0.count(users) == before + 2


# --- in the file -----------------------------------------------------------------------------------------------------

REST = """
[sources.same]
type = "pass-through"
[routes.api]
upstream = "https://api.example"
source = "same"
"""
SEVERAL = """
[[authenticator]]
type = "jwt"
issuer = "https://acme.example/"
audience = "https://api.acme.example"

[[authenticator]]
type = "introspection"
introspection_url = "https://login.example/introspect"
client_id = "the-api"
client_secret = "${SECRET}"
audience = ["https://api.acme.example", "the-api"]
max_age = 5

[[authenticator]]
type = "session"
subject = "user.sub"
allowed_origins = ["https://app.example"]
"""


def load(text: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Any:
    monkeypatch.setenv("SECRET", "s3cr3t")
    (directory / "idp.toml").write_text(text)
    monkeypatch.chdir(directory)
    return load_config("idp.toml")["authenticator"]


def test_the_file_lists_them_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every argument is a key, as ever."""
    several = load(SEVERAL + REST, monkeypatch, tmp_path)
    assert isinstance(several, AnyOf)
    kinds = [JWTAuthenticator, IntrospectionAuthenticator, SessionAuthenticator]
    assert [type(each) for each in several.authenticators] == kinds


@pytest.mark.parametrize("table", SEVERAL.split("[[authenticator]]")[1:])
@pytest.mark.parametrize("header", ["[authenticator]", "[[authenticator]]"])
def test_one_alone_is_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: str, header: str) -> None:
    """A single table, or a list of one."""
    alone = load(header + table + REST, monkeypatch, tmp_path)
    assert not isinstance(alone, AnyOf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('type = "session"', 'type = "cookie"'), "[authenticator #3]: type: there is no type 'cookie'"),
        (("subject =", "subjekt ="), "[authenticator #3]: subjekt: there is no such key; did you mean 'subject'?"),
        (("client_id =", "# client_id ="), "[authenticator #2]: client_id: is missing"),
        (('"${SECRET}"', '"s3cr3t"'), "[authenticator #2]: client_secret: is a secret"),
        (("max_age = 5", "max_age = -5"), "[authenticator #2]: max_age: must be 0 to 3600 seconds"),
        (("https://app.example", "http://app.example"), "[authenticator #3]: allowed_origins: must be https://"),
        ((SEVERAL, "authenticator = []\n"), "authenticator: must be a table, [authenticator], or several of"),
        ((SEVERAL, 'authenticator = ["jwt"]\n'), "authenticator: must be a table, [authenticator], or several of"),
        ((SEVERAL, ""), "[authenticator]: is missing"),
    ],
)
def test_a_mistake_says_in_which_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    """By their number, since they have no names."""
    with pytest.raises(ConfigurationError) as caught:
        load((SEVERAL + REST).replace(*change), monkeypatch, tmp_path)
    assert str(caught.value).startswith(f"idp.toml: {message}")


async def test_check_reaches_each_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line each, by their numbers; a session has nothing to reach."""
    login, acme, api = IntrospectionServer(), Auth0(), ProviderAPI()
    login.add_client("the-api", "s3cr3t")
    with serve(login) as login_at, serve(acme) as acme_at, serve(api) as api_at:
        text = (SEVERAL + REST).replace("https://login.example", login_at.url)
        text = text.replace("https://acme.example", acme_at.url).replace("https://api.example", api_at.url)
        load(text, monkeypatch, tmp_path)
        config = read_config("idp.toml")
        findings = [str(finding) for finding in await check(config)]
        assert findings[:3] == [
            f"ok    authenticator #1        {acme_at.url}/ has keys: 1 for RS256",
            f"ok    authenticator #2        {login_at.url}/introspect answers about tokens",
            "ok    authenticator #3        nothing to reach",
        ]

        login.respond("/introspect", status=401, body={"error": "invalid_client"}, times=1)
        assert str((await check(read_config("idp.toml")))[1]).startswith(
            f"FAIL  authenticator #2        {login_at.url}/introspect refuses our client (status 401)"
        )
        login.respond("/introspect", body={"active": True, "sub": "anybody", "aud": "the-api"}, times=1)
        assert "made up" in str((await check(read_config("idp.toml")))[1])
        acme.fail("/")
        assert str((await check(read_config("idp.toml")))[0]).startswith("FAIL  authenticator #1")
