"""What objects tell of themselves: the secrets that they hold are not among it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, is_typeddict

import httpx
import pytest
from aiocache import SimpleMemoryCache

import idp_middleware
from idp_middleware import (
    AnyOf,
    Caller,
    IdPMiddleware,
    IntrospectionAuthenticator,
    JWTAuthenticator,
    ProxyRoute,
    Rule,
    SessionAuthenticator,
    Timeout,
    Token,
    TokenCache,
    providers,
    sources,
    stores,
)
from idp_middleware._idp_http import Answer
from idp_middleware.config import read_config
from idp_middleware.sources._client_auth import ClientAuth
from idp_middleware.sources._token_endpoint import TokenEndpoint
from idp_middleware.stores import Claim, Entry, SQLAlchemyTokenStore, SQLiteTokenStore, StoredToken, TokenKey
from tests.leaks.authority import AUDIENCE, USERS, seeded
from tests.leaks.canaries import Canaries
from tests.leaks.scenarios.outcomes import goes_through, refused_and_renewed
from tests.leaks.set_ups import SET_UPS
from tests.leaks.ways import WAYS, told
from tests.leaks.world import world

NOT_SECRET = {f"{user}'s id" for user in USERS}
"""A `Caller` says who it is."""

IDP = "https://idp.example"


@dataclass
class Shelf:
    """What objects are made of."""

    canaries: Canaries
    folder: Path

    def __getitem__(self, name: str) -> str:
        return self.canaries[name]

    @property
    def client(self) -> dict[str, Any]:
        return {"client_id": "gateway", "client_secret": self["client secret"]}

    @property
    def keys(self) -> list[str]:
        return [self["encryption key"]]

    @property
    def token(self) -> Token:
        return Token(self["alice's provider token"], extra={"access_token_secret": self["alice's refresh token"]})

    @property
    def stored(self) -> StoredToken:
        return StoredToken(
            access_token=self["alice's provider token"],
            refresh_token=self["alice's refresh token"],
            extra={"more": self["alice's second refresh token"]},
        )

    @property
    def caller(self) -> Caller:
        token = self["alice's opaque token"]
        return Caller("alice", claims={"token": token}, credential=token)

    @property
    def route(self) -> ProxyRoute:
        return ProxyRoute(
            f"https://api.example/v1?key={self['password of the cache']}",
            token_source=sources.Static(self["the app's own token"]),
            headers={"x-api-key": self["API key of the route"]},
            default_headers={"x-other-key": self["API key of the route"]},
        )

    @property
    def database(self) -> str:
        return f"postgresql+asyncpg://user:{self['password of the database']}@127.0.0.1/tokens"

    @property
    def refresh(self) -> sources.ProviderRefresh:
        return sources.ProviderRefresh(
            connection="google-oauth2", token_url=f"{IDP}/token", client_id="x", client_secret=self["client secret"]
        )

    @property
    def config(self) -> Any:
        file = self.folder / "idp.toml"
        file.write_text(CONFIG)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SECRET", self["client secret"])
            environment.setenv("KEY", self["encryption key"])
            environment.setenv("API_KEY", self["API key of the route"])
            return read_config(file)

    async def refresh_token(self, caller: Caller) -> str:
        return self["alice's refresh token"]


CONFIG = """
[authenticator]
type = "introspection"
introspection_url = "https://idp.example/introspect"
client_id = "gateway"
client_secret = "${SECRET}"

[sources.auth0]
type = "auth0-management"
base_url = "https://idp.example"
client_id = "gateway"
client_secret = "${SECRET}"

[routes.github]
provider = "github"
source = "auth0"
connection = "github"
headers = { "X-Api-Key" = "${API_KEY}" }

[cache]
url = "redis://127.0.0.1:6379/0"
encryption_keys = ["${KEY}"]
"""

KEY = TokenKey(issuer="", subject="alice", connection="github")

OBJECTS: Mapping[str, Callable[[Shelf], Any]] = {
    "Token": lambda has: has.token,
    "Caller": lambda has: has.caller,
    "Timeout": lambda has: Timeout(),
    "Rule": lambda has: Rule(),
    "ProxyRoute": lambda has: has.route,
    "a preset": lambda has: providers.github(
        token_source=sources.Static(has.token), headers={"x-key": has["API key of the route"]}
    ),
    "a preset that signs": lambda has: providers.x_oauth1(
        token_source=sources.Static(has.token), consumer_key="key", consumer_secret=has["client secret"]
    ),
    "IdPMiddleware": lambda has: IdPMiddleware(
        routes={"api": has.route},
        authenticator=IntrospectionAuthenticator(introspection_url=f"{IDP}/introspect", **has.client),
        cache=TokenCache(SimpleMemoryCache(), encryption_keys=has.keys),
    ),
    "JWTAuthenticator": lambda has: JWTAuthenticator(issuer=f"{IDP}/", audience=AUDIENCE),
    "IntrospectionAuthenticator": lambda has: IntrospectionAuthenticator(introspection_url=f"{IDP}/i", **has.client),
    "SessionAuthenticator": lambda has: SessionAuthenticator(),
    "AnyOf": lambda has: AnyOf(IntrospectionAuthenticator(introspection_url=f"{IDP}/i", **has.client)),
    "TokenCache": lambda has: TokenCache(SimpleMemoryCache(), encryption_keys=has.keys),
    "TokenCache in Redis": lambda has: TokenCache.from_url(
        f"redis://user:{has['password of the cache']}@127.0.0.1:6379/0", encryption_keys=has.keys
    ),
    "Auth0Management": lambda has: sources.Auth0Management(base_url=IDP, **has.client),
    "Auth0Management that refreshes": lambda has: sources.Auth0Management(
        base_url=IDP, refresh=[has.refresh], **has.client
    ),
    "ProviderRefresh": lambda has: has.refresh,
    "Auth0TokenVault": lambda has: sources.Auth0TokenVault(base_url=IDP, refresh_token=has.refresh_token, **has.client),
    "ClientCredentials": lambda has: sources.ClientCredentials(
        token_url=f"{IDP}/token", client_auth="basic", **has.client
    ),
    "ClientCredentials with a key": lambda has: sources.ClientCredentials(
        token_url=f"{IDP}/token", client_id="gateway", private_key=has["private key"]
    ),
    "KeycloakBroker": lambda has: sources.KeycloakBroker(realm_url=f"{IDP}/realms/acme", api="v2", **has.client),
    "OnBehalfOf": lambda has: sources.OnBehalfOf(tenant="acme", scope="s", base_url=IDP, **has.client),
    "PassThrough": lambda has: sources.PassThrough(),
    "RefreshToken": lambda has: sources.RefreshToken(
        store=str(has.folder / "tokens.db"), encryption_keys=has.keys, token_url=f"{IDP}/token", **has.client
    ),
    "RefreshToken with a database": lambda has: sources.RefreshToken(
        store=has.database, encryption_keys=has.keys, token_url=f"{IDP}/token", **has.client
    ),
    "Static": lambda has: sources.Static(has.token),
    "TokenExchange": lambda has: sources.TokenExchange(token_url=f"{IDP}/token", **has.client),
    "SQLiteTokenStore": lambda has: SQLiteTokenStore(has.folder / "tokens.db", encryption_keys=has.keys),
    "SQLAlchemyTokenStore": lambda has: SQLAlchemyTokenStore(has.database, encryption_keys=has.keys),
    "StoredToken": lambda has: has.stored,
    "TokenKey": lambda has: KEY,
    "Claim": lambda has: Claim(owner="me", at=0.0, lasts=1.0),
    "Entry": lambda has: Entry(key=KEY, token=has.stored, version="1", stored_at=0.0),
    # Not public, but what locals and attributes of public ones hold.
    "ClientAuth": lambda has: ClientAuth(audience=IDP, **has.client),
    "ClientAuth with a key": lambda has: ClientAuth(audience=IDP, client_id="me", private_key=has["private key"]),
    "TokenEndpoint": lambda has: TokenEndpoint(f"{IDP}/token", **has.client),
    "Answer": lambda has: Answer(
        200,
        httpx.Headers({"set-cookie": has["alice's session cookie"]}),
        has["alice's provider token"].encode(),
    ),
    "Config": lambda has: has.config,
}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(seeded(), tmp_path)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_shows_no_secret_whichever_way_it_is_written_out(shelf: Shelf, name: str) -> None:
    """It may refuse; what it shows is no secret, neither its own nor of what it holds."""
    assert told(OBJECTS[name](shelf), shelf.canaries) == set()


def test_no_public_class_is_left_out(shelf: Shelf) -> None:
    """A new one has to be looked at here."""
    made = {type(make(shelf)) for make in OBJECTS.values()}
    public = {
        value
        for module in (idp_middleware, sources, stores)
        for value in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(value) and not getattr(value, "_is_protocol", False) and not is_typeddict(value)
    }
    assert public - made == set()


@pytest.mark.parametrize("name", SET_UPS)
def test_nor_after_it_has_been_at_work(name: str, tmp_path: Path) -> None:
    """By then it holds tokens, those of callers and those of users."""
    with world(SET_UPS[name], tmp_path) as made:
        goes_through(made)
        refused_and_renewed(made)
        assert made.middleware is not None
        shown = told(made.middleware, made.canaries)
        for part in (made.middleware._authenticator, made.middleware._tokens, *made.middleware._routes):
            shown |= told(part, made.canaries)
    assert {find for find in shown if find[1] not in NOT_SECRET} == set()


MISTAKES: Mapping[str, Callable[[Shelf], Any]] = {
    "a token that is none": lambda has: Token(has["alice's provider token"] + "\r\n"),
    "a stored token that is none": lambda has: StoredToken(access_token=has["alice's provider token"] + " x"),
    "scopes in one string": lambda has: StoredToken(
        access_token=has["alice's provider token"], refresh_token=has["alice's refresh token"], scopes="a b"
    ),
    "a static token that is none": lambda has: sources.Static(has["the app's own token"] + "\n"),
    "no such domain": lambda has: sources.Auth0Management(domain="https://acme", **has.client),
    "no such client_auth": lambda has: sources.ClientCredentials(
        token_url=f"{IDP}/token", client_auth=has["client secret"], **has.client
    ),
    "no such argument": lambda has: sources.ClientCredentials(token_url=f"{IDP}/token", secret="x", **has.client),
    "http": lambda has: sources.ClientCredentials(token_url="http://idp.example/token", **has.client),
    "both a secret and a key": lambda has: sources.ClientCredentials(
        token_url=f"{IDP}/token", private_key=has["private key"], **has.client
    ),
    "half a key": lambda has: sources.ClientCredentials(
        token_url=f"{IDP}/token", client_id="me", private_key=has["private key"][:1000]
    ),
    "a key for encryption that is none": lambda has: TokenCache(
        SimpleMemoryCache(), encryption_keys=[has["client secret"]]
    ),
    "keys that are no list": lambda has: SQLiteTokenStore(has.folder / "x.db", encryption_keys=has["encryption key"]),
    "a port that is none": lambda has: TokenCache.from_url(
        f"redis://localhost:{has['password of the cache']}", encryption_keys=has.keys
    ),
    "a URL that is none": lambda has: TokenCache.from_url(
        f"redis://:{has['password of the cache']}@[::1", encryption_keys=has.keys
    ),
    "an option that is none": lambda has: TokenCache.from_url(
        f"redis://localhost?socket_timeout={has['password of the cache']}", encryption_keys=has.keys
    ),
    "a database that is none": lambda has: SQLAlchemyTokenStore(
        f"nosuch://user:{has['password of the database']}@host/db", encryption_keys=has.keys
    ),
    "a database without a driver": lambda has: SQLAlchemyTokenStore(
        f"mysql+asyncmy://user:{has['password of the database']}@host/db", encryption_keys=has.keys
    ),
    "a database with a port that is none": lambda has: SQLAlchemyTokenStore(
        f"postgresql+asyncpg://user@host:{has['password of the database']}/db", encryption_keys=has.keys
    ),
    "a user in a URL": lambda has: ProxyRoute(
        f"https://me:{has['client secret']}@api.example", token_source=sources.Static(has.token)
    ),
    "a header that is none": lambda has: ProxyRoute(
        "https://api.example",
        token_source=sources.Static(has.token),
        headers={"x-key": has["API key of the route"] + "\n"},
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_without_the_secret_beside_it(shelf: Shelf, name: str) -> None:
    """Nor is it in what is behind the exception, which `from None` keeps out of tracebacks but not out of reach."""
    with pytest.raises((ValueError, TypeError)) as caught:
        MISTAKES[name](shelf)
    behind: list[BaseException] = []
    each: BaseException | None = caught.value
    while each is not None:
        behind.append(each)
        each = each.__cause__ or each.__context__
    said = "\n".join(f"{each!r} {each} {each.args!r} {vars(each)!r}" for each in behind)
    assert shelf.canaries.find(said) == set(), said


class Leaky:
    """Each shows what it holds in one of the ways."""

    def __init__(self, secret: str) -> None:
        self.secret = secret


@dataclass(frozen=True, slots=True)
class LeakyValue:
    secret: str = field(repr=False)


class LeakyText(Leaky):
    def __str__(self) -> str:
        return self.secret


class LeakyFormat(Leaky):
    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return self.secret


class LeakyFrozen:
    __slots__ = ("_inner",)

    def __init__(self, secret: str) -> None:
        self._inner = secret

    def __reduce__(self) -> Any:
        return (LeakyFrozen, (self._inner,))


class LeakyRepr:
    __slots__ = ("_inner",)

    def __init__(self, secret: str) -> None:
        self._inner = secret

    def __repr__(self) -> str:
        return f"<{self._inner[:24]}>"

    def __reduce__(self) -> Any:
        raise TypeError


class LeakyHolder:
    """Two steps away, and in base64."""

    def __init__(self, secret: str) -> None:
        self.inner = Leaky(httpx.BasicAuth("user", secret)._auth_header)


@pytest.mark.parametrize(
    ("leaky", "ways"),
    [
        (Leaky, {"vars", "vars, all the way", "json of vars", "pickle", "copy", "a log"}),
        (LeakyText, {"str", "json"}),
        (LeakyFormat, {"format"}),
        (LeakyValue, {"asdict", "astuple", "pickle"}),
        (LeakyFrozen, {"pickle"}),
        (LeakyRepr, {"repr", "str", "format", "in a list", "pprint", "a traceback with variables", "a log", "json"}),
        (LeakyHolder, {"vars, all the way", "json of vars", "pickle"}),
    ],
)
def test_who_shows_a_secret_is_found_out(leaky: Callable[[str], Any], ways: set[str]) -> None:
    """Else nothing of the above would mean anything."""
    canaries = Canaries()
    shown = told(leaky(canaries.make("it")), canaries)
    assert ways - {"a log"} <= {way for way, _ in shown} <= set(WAYS)
    assert {canary for _, canary in shown} == {"it"}
