"""An app that uses all there is, for mypy and pyright at their strictest; `test_typing` runs it, too.

A line with two `ignore`s is a mistake that both have to find: an ignore that is not needed is an error to them.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, assert_type

import httpx
from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from idp_middleware import (
    AnyOf,
    Authenticator,
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
    TokenSource,
    __version__,
    errors,
    load_config,
    providers,
    sources,
    stores,
)
from idp_middleware.config import Config, read_config
from idp_middleware.fastapi import CurrentCaller, current_caller, describe_routes, idp_client
from idp_middleware.observers import (
    AccessLog,
    AuditLog,
    CacheRecord,
    CircuitRecord,
    Observer,
    Record,
    RequestRecord,
    TokenRecord,
    Trace,
    digest,
    log_to_stdout,
)

KEYS = [base64.urlsafe_b64encode(os.urandom(32)).decode()]
IDP = "https://acme.eu.auth0.com/"
ENDPOINT = "https://provider.example/token"
VERSION: str = __version__


class OwnSource:
    """A token source by the protocol alone."""

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        assert_type(caller.subject, str)
        assert_type(caller.scopes, frozenset[str])
        assert_type(caller.claims, Mapping[str, Any])
        assert_type(caller.credential, str | None)
        if route.connection is None:
            raise errors.IdentityNotLinked("no account", connection="github", connect_url="https://app.example/link")
        if refused is not None and refused.scopes:
            raise errors.ReconnectRequired("withdrawn", connection=route.connection, scopes=refused.scopes)
        return Token("value", expires_at=1.9e9, scopes=frozenset({"read"}), extra={"instance_url": "https://a.example"})


async def function_source(caller: Caller, route: ProxyRoute) -> Token:
    return Token(f"{caller.subject}-at-{route.name}", type="Bearer")


class OwnAuthenticator:
    """An authenticator by the protocol alone."""

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        if "x-key" not in conn.headers:
            raise errors.NotMine("no key", error=None, scheme="Key")
        return Caller(conn.headers["x-key"], scopes=frozenset({"read"}), claims={"iss": "keys"}, account="101")


async def function_authenticator(conn: HTTPConnection) -> Caller:
    return Caller(conn.headers.get("x-user", "nobody"))


async def in_office_hours(caller: Caller, conn: HTTPConnection) -> bool:
    return caller.subject != "" and conn.url.path != "/"


own_source: TokenSource = OwnSource()
own_authenticator: Authenticator = OwnAuthenticator()


def ways_in() -> Authenticator:
    timeout = Timeout(connect=1.0, read=30.0, write=30.0, pool=2.0)
    assert_type(timeout.read, float)
    return AnyOf(
        JWTAuthenticator(
            issuer=IDP,
            audience=["https://api.acme.example"],
            algorithms=("RS256", "ES256"),
            leeway=5,
            scope_claims=["scope"],
            schemes=["bearer", "token"],
            types=["at+jwt"],
            jwks_url=f"{IDP}keys",
            transport=httpx.AsyncHTTPTransport(),
        ),
        IntrospectionAuthenticator(
            introspection_url=f"{IDP}introspect", client_id="api", client_secret="secret", issuer=IDP, max_age=10.0
        ),
        SessionAuthenticator(subject="user.sub", issuer=IDP, allowed_origins=["https://app.example"], header="X-Own"),
        own_authenticator,
        function_authenticator,
    )


def token_sources(folder: Path) -> Sequence[TokenSource]:
    client: sources.ClientOptions = {"client_secret": "secret", "client_auth": "basic", "timeout": Timeout(read=5.0)}
    refresh = sources.ProviderRefresh(
        connection="google-oauth2", token_url=ENDPOINT, client_id="google", client_secret="secret"
    )

    async def refresh_token_of(caller: Caller) -> str | None:
        return None if caller.subject == "" else "refresh-token"

    store: stores.TokenStore = stores.SQLiteTokenStore(folder / "tokens.db", encryption_keys=KEYS)
    database = stores.SQLAlchemyTokenStore("sqlite+aiosqlite://", encryption_keys=KEYS)
    return [
        sources.Auth0Management(domain="acme.eu.auth0.com", client_id="m2m", refresh=[refresh], **client),
        sources.Auth0TokenVault(base_url=IDP, client_id="api", refresh_token=refresh_token_of, client_secret="secret"),
        sources.KeycloakBroker(realm_url="https://sso.acme.example/realms/acme"),
        sources.TokenExchange(token_url=ENDPOINT, client_id="api", audience=["a", "b"], client_secret="secret"),
        sources.OnBehalfOf(tenant="acme.example", client_id="api", scope="User.Read", client_secret="secret"),
        sources.RefreshToken(store=store, token_url=ENDPOINT, client_id="api", client_secret="secret"),
        sources.RefreshToken(store=database, token_url=ENDPOINT, client_id="api", reuse_is_fatal=False, **client),
        sources.ClientCredentials(token_url=ENDPOINT, client_id="api", scope="read", client_secret="secret"),
        sources.Static("value"),
        sources.PassThrough(),
        own_source,
    ]


def presets(source: TokenSource) -> Mapping[str, ProxyRoute]:
    options: providers.RouteOptions = {"connection": "c", "scopes": {"read"}, "timeout": Timeout(), "scrub": True}
    made = [
        providers.atlassian(token_source=source, product="jira", cloud_id="x", **options),
        providers.bitbucket(token_source=source, **options),
        providers.discord(token_source=source, user_agent="DiscordBot (https://app.example, 1)", **options),
        providers.dropbox(token_source=source, **options),
        providers.dropbox_content(token_source=source, **options),
        providers.facebook(token_source=source, app_secret="secret", **options),
        providers.github(token_source=function_source, upstream="https://github.acme.example/api/v3", **options),
        providers.gitlab(token_source=source, **options),
        providers.google(token_source=source, methods=["GET"], paths=["/calendar/**"]),
        providers.hubspot(token_source=source, **options),
        providers.linkedin(token_source=source, version="202601", **options),
        providers.microsoft_graph(token_source=source, **options),
        providers.notion(token_source=source, headers={"Notion-Version": "2022-06-28"}),
        providers.salesforce(token_source=source, **options),
        providers.slack(token_source=source, **options),
        providers.spotify(token_source=source, **options),
        providers.twitch(token_source=source, client_id="twitch", **options),
        providers.x(token_source=source, **options),
        providers.x_oauth1(token_source=source, consumer_key="k", consumer_secret="s", **options),
        providers.zoom(token_source=source, **options),
    ]
    assert len(made) == len(providers.PRESETS)
    return {f"route{number}": route for number, route in enumerate(made)}


def own_route(source: TokenSource) -> ProxyRoute:
    route = ProxyRoute(
        "https://intranet.acme.example/api",
        token_source=source,
        connection="c",
        scopes={"read"},
        token_scopes=["repo"],
        methods=("GET", "POST"),
        paths=["/user", "/user/**"],
        rules=[Rule(methods=["GET"]), Rule(paths=["/admin/**"], scopes={"admin"}), Rule(paths=["/x"], deny=True)],
        authorize=in_office_hours,
        default_headers={"x-version": "1"},
        max_body=10 * 1024 * 1024,
        cookies=["theme"],
        forwarded=True,
        websocket=True,
        websocket_bearer=True,
        rewrite_bodies=True,
        allow_set_cookie=True,
    )
    assert_type(route.upstream, str)
    assert_type(route.max_body, int | None)
    assert_type(route.timeout, Timeout)
    return route


def on_error(conn: HTTPConnection, error: errors.IdPError) -> Response:
    assert_type(error.status, int)
    assert_type(error.headers(), list[tuple[str, str]])
    told: Mapping[str, Any] = errors.problem(error)
    if isinstance(error, errors.CallerForbidden | errors.ReconnectRequired):
        assert_type(error.scopes, tuple[str, ...])
    if isinstance(error, errors.IdentityNotLinked):
        assert_type(error.connect_url, str | None)
    if isinstance(error, errors.IdentityAmbiguous):
        assert_type(error.accounts, tuple[str, ...])
    if isinstance(error, errors.MethodNotAllowed):
        assert_type(error.allowed, tuple[str, ...])
    if isinstance(error, errors.TokenSourceUnavailable):
        assert_type(error.retry_after, float | None)
    if isinstance(error, errors.InteractionRequired):
        assert_type(error.claims, str | None)
    return JSONResponse(told, error.status, dict(error.headers()))


def counts(record: Record) -> None:
    if isinstance(record, RequestRecord):
        assert_type(record.route, str | None)
        assert_type(record.total, float)
    elif isinstance(record, TokenRecord):
        assert_type(record.source, str)
    elif isinstance(record, CacheRecord):
        assert_type(record.operation, str)
    else:
        assert_type(record, CircuitRecord)
        assert_type(record.route, str)


observers: Sequence[Observer] = [AccessLog(), AuditLog(), counts]
assert_type(digest("issuer", "alice"), str)


class OwnTrace(Trace):
    """One that sees nothing."""


GitHub = Annotated[httpx.AsyncClient, Depends(idp_client("github"))]


def around_an_app(folder: Path) -> tuple[FastAPI, ASGIApp]:
    app = FastAPI()
    idp = IdPMiddleware(
        prefix="/idp",
        authenticator=ways_in(),
        routes={**presets(own_source), "own": own_route(token_sources(folder)[0])},
        cache=TokenCache.from_url("redis://127.0.0.1:6379/0", encryption_keys=KEYS),
        on_error=on_error,
        observers=observers,
        transport=httpx.AsyncHTTPTransport(),
    )
    app.add_middleware(idp.around)
    describe_routes(app, idp)
    app.add_middleware(
        IdPMiddleware,
        authenticator=function_authenticator,
        routes={"github": providers.github(token_source=own_source)},
    )

    async def starred(github: GitHub, caller: CurrentCaller) -> list[str]:
        assert_type(caller, Caller)
        answer = await github.get("/user/starred")
        return [str(each) for each in answer.json()]

    async def me(caller: Annotated[Caller, Depends(current_caller)]) -> str:
        return caller.issuer

    app.get("/starred")(starred)
    app.get("/me")(me)
    return app, IdPMiddleware(app, authenticator=own_authenticator, routes={})


async def in_a_job(idp: IdPMiddleware) -> int:
    try:
        async with idp.client("github", Caller("auth0|alice", claims={"iss": IDP})) as client:
            assert_type(client, httpx.AsyncClient)
            return (await client.get("/user")).status_code
    except (errors.UpstreamTimeout, errors.UpstreamUnreachable, errors.TokenSourceTimeout, errors.BadRequest):
        return 0
    finally:
        await idp.aclose()


async def after_a_log_in(store: stores.TokenStore) -> stores.Entry | None:
    key = stores.TokenKey(issuer=IDP, subject="alice", connection="github", account="101")
    await store.put(key, stores.StoredToken(access_token="a", refresh_token="r", expires_at=1.9e9, scopes=["read"]))
    for entry in await store.get(key):
        assert_type(entry.claim, stores.Claim | None)
        if entry.revoked:
            await store.delete(key, version=entry.version)
        return await store.compare_and_swap(entry)
    await store.delete(key)
    return None


def from_a_file(path: Path) -> IdPMiddleware:
    config: Config = read_config(path)
    log_to_stdout()
    assert_type(config.prefix, str)
    assert_type(config.routes, Mapping[str, ProxyRoute])
    return IdPMiddleware(**load_config(path))


def mistakes() -> None:
    """Never run: each is for the checkers to find."""
    ProxyRoute("https://a.example")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ProxyRoute("https://a.example", token_source="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ProxyRoute("https://a.example", own_source)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Token(b"value")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    own_route(own_source).max_body = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    sources.Static(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sources.ClientCredentials(token_url="x", client_id="x", secret="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    providers.github(own_source)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    providers.github(token_source=own_source, scope={"x"})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    JWTAuthenticator(issuer=IDP)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    IdPMiddleware(authenticator=print, routes={})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    IdPMiddleware(authenticator=own_authenticator)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    errors.IdentityAmbiguous(accounts=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
