"""The ways to configure the gateway, each with a canary for every secret that it takes."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from itsdangerous import TimestampSigner
from starlette.middleware.sessions import SessionMiddleware

from idp_middleware import (
    AnyOf,
    Caller,
    IntrospectionAuthenticator,
    JWTAuthenticator,
    ProxyRoute,
    SessionAuthenticator,
    Timeout,
    TokenCache,
    providers,
    sources,
)
from idp_middleware.stores import SQLAlchemyTokenStore, SQLiteTokenStore, StoredToken, TokenKey
from idp_middleware.testing import signing_key
from tests.leaks.authority import AUDIENCE, CLIENT_ID, EXCHANGE, INTROSPECT, REALM, REFRESH, REVOKE, USERS
from tests.leaks.world import API_KEY_FIELD, SetUp, World


def patience(world: World) -> Timeout:
    return Timeout(connect=2.0, read=world.patience, write=world.patience, pool=2.0)


def _with_token(world: World, user: str) -> list[str]:
    return [f"Authorization: Bearer {world.authority.callers_token(user)}"]


def _with_opaque_token(world: World, user: str) -> list[str]:
    return ["Authorization: Bearer " + world.canaries.of(user, "opaque token")]


SESSION_KEY = "the app's own key for sessions"


def _with_session(world: World, user: str) -> list[str]:
    session = {"sub": world.authority.subject(user), "canary": world.canaries.of(user, "session cookie")}
    cookie = TimestampSigner(SESSION_KEY).sign(base64.b64encode(json.dumps(session).encode())).decode()
    return [f"Cookie: session={cookie}", "X-CSRF: 1"]


def jwt(world: World) -> JWTAuthenticator:
    return JWTAuthenticator(issuer=world.authority.issuer, audience=AUDIENCE)


def gateway(world: World, source: Any, **options: Any) -> dict[str, Any]:
    """One route, whose answers may echo nothing; with a key of its own for the API."""
    route: dict[str, Any] = {
        "connection": "github",
        "headers": {API_KEY_FIELD: world.canaries["API key of the route"]},
        "timeout": patience(world),
        "max_body": 1_000_000,
        **options.pop("route", {}),
    }
    cache = TokenCache(world.shared, encryption_keys=[world.canaries["encryption key"]])
    return {
        "authenticator": options.pop("authenticator", None) or jwt(world),
        "routes": {"github": ProxyRoute(world.api_url, token_source=source, **route)},
        "cache": cache,
        **options,
    }


def client(world: World) -> dict[str, Any]:
    return {"client_id": CLIENT_ID, "client_secret": world.canaries["client secret"], "timeout": patience(world)}


def management(world: World) -> dict[str, Any]:
    return gateway(world, sources.Auth0Management(base_url=world.idp_url, **client(world)))


def management_that_refreshes(world: World) -> dict[str, Any]:
    """At the provider, with the refresh tokens that the profile has."""
    credentials = client(world)
    at_provider = sources.ProviderRefresh(
        connection="github",
        token_url=world.idp_url + REFRESH,
        client_id=CLIENT_ID,
        client_secret=world.canaries["client secret"],
        revocation_url=world.idp_url + REVOKE,
    )
    return gateway(world, sources.Auth0Management(base_url=world.idp_url, refresh=[at_provider], **credentials))


def signed(world: World) -> dict[str, Any]:
    """Requests signed with secrets that are not sent: the app's, and the user's."""
    arguments = management(world)
    route = providers.x_oauth1(
        token_source=arguments["routes"]["github"].source,
        consumer_key="the-app",
        consumer_secret=world.canaries["client secret"],
        upstream=world.api_url,
        connection="github",
        timeout=patience(world),
    )
    return arguments | {"routes": {"github": route}}


def vault(world: World) -> dict[str, Any]:
    world.authority.add_client(CLIENT_ID, world.canaries["client secret"], vault=True, api=AUDIENCE)
    return gateway(world, sources.Auth0TokenVault(base_url=world.idp_url, **client(world)))


def vault_with_refresh_tokens(world: World) -> dict[str, Any]:
    """The app's own refresh tokens, and a private key in the place of a secret."""
    world.authority.add_client(CLIENT_ID, key=signing_key("RS256", 7), vault=True)
    held = {
        world.authority.subject(user): world.authority.issue_refresh_token(world.authority.subject(user), CLIENT_ID)
        for user in USERS
    }
    for user in USERS:
        world.canaries.add(f"{user}'s refresh token at the identity provider", held[world.authority.subject(user)])

    async def refresh_token(caller: Caller) -> str | None:
        return held.get(caller.subject)

    source = sources.Auth0TokenVault(
        base_url=world.idp_url,
        client_id=CLIENT_ID,
        private_key=world.canaries["private key"],
        refresh_token=refresh_token,
        timeout=patience(world),
    )
    return gateway(world, source)


def keycloak(api: str) -> Any:
    def make(world: World) -> dict[str, Any]:
        credentials = {"timeout": patience(world)} if api == "v1" else client(world)
        return gateway(world, sources.KeycloakBroker(realm_url=world.idp_url + REALM, api=api, **credentials))

    return make


def token_exchange(world: World) -> dict[str, Any]:
    url = world.idp_url + EXCHANGE
    return gateway(world, sources.TokenExchange(token_url=url, client_auth="basic", audience="api", **client(world)))


def on_behalf_of(world: World) -> dict[str, Any]:
    return gateway(
        world, sources.OnBehalfOf(tenant="acme", base_url=world.idp_url, scope="https://api/.default", **client(world))
    )


def client_credentials(world: World) -> dict[str, Any]:
    return gateway(world, sources.ClientCredentials(token_url=f"{world.idp_url}/client-credentials", **client(world)))


def static(world: World) -> dict[str, Any]:
    return gateway(world, sources.Static(world.canaries["the app's own token"]))


def pass_through(world: World) -> dict[str, Any]:
    return gateway(world, sources.PassThrough())


async def connect(world: World, store: SQLiteTokenStore | SQLAlchemyTokenStore) -> None:
    """Put in what the app has got from both users' logins, which has to be refreshed by now."""
    for user in USERS:
        await store.put(
            TokenKey(issuer=world.authority.issuer, subject=world.authority.subject(user), connection="github"),
            StoredToken(
                access_token=world.canaries.of(user, "provider token"),
                refresh_token=world.canaries.of(user, "refresh token"),
                expires_at=1.0,
            ),
        )
    await store.aclose()


def refresh_token(kind: Any, url: str = "") -> Any:
    def make(world: World) -> dict[str, Any]:
        path, keys = f"{url}{world.folder / 'tokens.db'}", [world.canaries["encryption key"]]
        asyncio.run(connect(world, kind(path, encryption_keys=keys)))
        source = sources.RefreshToken(
            store=path,
            encryption_keys=keys,
            token_url=world.idp_url + REFRESH,
            revocation_url=world.idp_url + REVOKE,
            reuse_is_fatal=False,
            **client(world),
        )
        return gateway(world, source)

    return make


def introspection(world: World) -> dict[str, Any]:
    authenticator = IntrospectionAuthenticator(
        introspection_url=world.idp_url + INTROSPECT,
        client_id=CLIENT_ID,
        client_secret=world.canaries["client secret"],
        issuer=world.authority.issuer,
        audience=AUDIENCE,
    )
    return management(world) | {"authenticator": authenticator}


def session(world: World) -> dict[str, Any]:
    return management(world) | {"authenticator": SessionAuthenticator(issuer=world.authority.issuer)}


def any_of(world: World) -> dict[str, Any]:
    authenticators = (jwt(world), introspection(world)["authenticator"], SessionAuthenticator())
    return management(world) | {"authenticator": AnyOf(*authenticators)}


def _in_a_session(world: World, app: Any) -> Any:
    return SessionMiddleware(app, secret_key=SESSION_KEY)


MANAGEMENT = {"/oauth/token": ("client secret",)}
SECRET_AND_TOKEN = ("client secret", "{user}'s token")
REFRESHED = ("{user}'s second provider token",)
REFRESHING = {
    REFRESH: ("client secret", "{user}'s refresh token", "{user}'s second refresh token"),
    REVOKE: (
        "client secret",
        "{user}'s refresh token",
        "{user}'s second refresh token",
        *REFRESHED,
        "{user}'s provider token",
    ),
}
APPS_OWN = ("the app's own token",)

SET_UPS = {
    set_up.name: set_up
    for set_up in (
        SetUp("management", management, _with_token, asked=MANAGEMENT),
        SetUp(
            "management that refreshes",
            management_that_refreshes,
            _with_token,
            serves=("{user}'s second provider token",),
            asked=MANAGEMENT | dict.fromkeys((REFRESH, REVOKE), ("client secret", "{user}'s refresh token")),
        ),
        SetUp("signed", signed, _with_token, scheme="OAuth", asked=MANAGEMENT),
        SetUp("vault", vault, _with_token, asked={"/oauth/token": SECRET_AND_TOKEN}),
        SetUp(
            "vault with refresh tokens",
            vault_with_refresh_tokens,
            _with_token,
            asked={"/oauth/token": ("{user}'s refresh token at the identity provider",)},
        ),
        SetUp("keycloak v1", keycloak("v1"), _with_token, asked={REALM: ("{user}'s token",)}),
        SetUp("keycloak v2", keycloak("v2"), _with_token, asked={REALM: SECRET_AND_TOKEN}),
        SetUp("keycloak exchange", keycloak("exchange"), _with_token, asked={REALM: SECRET_AND_TOKEN}),
        SetUp("token exchange", token_exchange, _with_token, asked={EXCHANGE: SECRET_AND_TOKEN}),
        SetUp("on behalf of", on_behalf_of, _with_token, asked={"/acme/oauth2": SECRET_AND_TOKEN}),
        SetUp(
            "client credentials",
            client_credentials,
            _with_token,
            serves=APPS_OWN,
            asked={"/client-credentials": ("client secret",)},
        ),
        SetUp("static", static, _with_token, serves=APPS_OWN),
        SetUp("pass through", pass_through, _with_token, serves=("{user}'s token",)),
        SetUp("refresh token", refresh_token(SQLiteTokenStore), _with_token, serves=REFRESHED, asked=REFRESHING),
        SetUp(
            "refresh token in a database",
            refresh_token(SQLAlchemyTokenStore, "sqlite+aiosqlite:///"),
            _with_token,
            serves=REFRESHED,
            asked=REFRESHING,
        ),
        SetUp(
            "introspection",
            introspection,
            _with_opaque_token,
            asked=MANAGEMENT | {INTROSPECT: ("client secret", "{user}'s opaque token")},
        ),
        SetUp(
            "session",
            session,
            _with_session,
            asked=MANAGEMENT,
            around=_in_a_session,
            # SessionMiddleware renews the cookie of whose session it is with each answer.
            comes_back=("{user}'s session cookie", "{user}'s id"),
        ),
        SetUp(
            "any of",
            any_of,
            _with_opaque_token,
            asked=MANAGEMENT | {INTROSPECT: ("client secret", "{user}'s opaque token")},
            around=_in_a_session,
        ),
    )
}
