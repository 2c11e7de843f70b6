"""`idp.toml` → the keyword arguments of `IdPMiddleware`.

Here is which tables there are and what each stands for; `_config_file` reads them. Opens no connection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idp_middleware import sources
from idp_middleware._any_of import AnyOf
from idp_middleware._cache import TokenCache
from idp_middleware._config_file import ConfigFile, Table
from idp_middleware._idp_http import Transport
from idp_middleware._introspection import IntrospectionAuthenticator
from idp_middleware._jwt import JWTAuthenticator
from idp_middleware._observation import Exporter, Observer
from idp_middleware._routes import ProxyRoute, RouteMap
from idp_middleware._session import SessionAuthenticator
from idp_middleware._traces import forget_details
from idp_middleware._types import Authenticator, TokenSource
from idp_middleware.errors import ConfigurationError
from idp_middleware.observers import AccessLog, AuditLog
from idp_middleware.providers import PRESETS

AUTHENTICATORS: Mapping[str, Callable[..., Authenticator]] = {
    "jwt": JWTAuthenticator,
    "introspection": IntrospectionAuthenticator,
    "session": SessionAuthenticator,
}
SOURCES: Mapping[str, Callable[..., TokenSource]] = {
    "auth0-management": sources.Auth0Management,
    "auth0-token-vault": sources.Auth0TokenVault,
    "client-credentials": sources.ClientCredentials,
    "keycloak-broker": sources.KeycloakBroker,
    "on-behalf-of": sources.OnBehalfOf,
    "pass-through": sources.PassThrough,
    "refresh-token": sources.RefreshToken,
    "static": sources.Static,
    "token-exchange": sources.TokenExchange,
}
"""What `type` may say. A new one is a line here; its constructor's keyword arguments are the keys of its table."""

logger: logging.Logger = logging.getLogger("idp_middleware")


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says, as objects and by the names that only the file has."""

    prefix: str
    authenticator: Authenticator
    sources: Mapping[str, TokenSource]
    routes: Mapping[str, ProxyRoute]
    cache: TokenCache | None
    observers: Sequence[Observer] = ()
    metrics: Exporter | None = None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `IdPMiddleware`."""
        return {
            "prefix": self.prefix,
            "authenticator": self.authenticator,
            "routes": dict(self.routes),
            "cache": self.cache,
            "observers": self.observers,
            "metrics": self.metrics,
        }


def load_config(path: str | os.PathLike[str] = "idp.toml", *, transport: Transport | None = None) -> dict[str, Any]:
    """The keyword arguments of `IdPMiddleware` from a file: `IdPMiddleware(app, **load_config("idp.toml"))`.

    `${NAME}` inside a string is the environment variable NAME, which has to be set and not empty; `$${` is a plain
    `${`. Secrets have to come from the environment: one that is written out is refused. Durations are seconds; sizes
    are bytes, or strings such as "10MiB".

    `transport` replaces the network for all that the file names: for tests, and for deployments behind a proxy.

    Raises:
        ConfigurationError: for whatever is wrong, in one line that names the file, the table and the key.
    """
    arguments = read_config(path, transport=transport).arguments()
    return arguments if transport is None else {**arguments, "transport": transport}


def read_config(path: str | os.PathLike[str], *, transport: Transport | None = None) -> Config:
    """As `load_config`, for who needs more of the file than the middleware does.

    A source that no route uses is a warning in the log, not an error: it can do no harm, and a route that is commented
    out for an hour should not need its source commented out too.
    """
    try:
        return _read(path, transport)
    except ConfigurationError as exc:
        # On its way, it has passed the values of the environment's variables.
        forget_details(exc)
        raise


def _read(path: str | os.PathLike[str], transport: Transport | None) -> Config:
    file = ConfigFile(path)
    top = file.top()
    prefix = top.take("prefix", str, "/idp")
    observers = _observers(top)
    metrics = _metrics(file) if top.take("metrics", bool, False) else None
    top.no_more("authenticator", "sources", "routes", "cache")
    options = {} if transport is None else {"transport": transport}
    ways_in = [table.build_type(AUTHENTICATORS, **options) for table in top.one_or_more("authenticator")]
    authenticator = ways_in[0] if len(ways_in) == 1 else AnyOf(*ways_in)
    by_name = {table.key: table.build_type(SOURCES, **options) for table in top.tables("sources")}
    tables = top.tables("routes")
    if not tables:
        top.wrong('has no [routes.NAME], such as [routes.github] with provider = "github"')
    unused = dict.fromkeys(by_name)
    routes = {table.key: _route(table, by_name, unused) for table in tables}
    for name in unused:
        logger.warning("%s", ConfigurationError("no route uses it", file=file.path, table=f"sources.{name}"))
    cache = _cache(top.table("cache")) if "cache" in top else None
    with file.locating(None):
        RouteMap(routes, prefix, taken=() if metrics is None else ("metrics",))
    return Config(prefix, authenticator, by_name, routes, cache, observers, metrics)


def _observers(top: Table) -> tuple[Observer, ...]:
    logs: dict[str, Callable[[], Observer]] = {"access_log": AccessLog, "audit_log": AuditLog}
    observers = [log() for key, log in logs.items() if top.take(key, bool, False)]
    if "opentelemetry" in top:
        table = top.table("opentelemetry")
        try:
            from idp_middleware.opentelemetry import OpenTelemetry
        except ImportError:
            table.wrong("needs the extra: pip install 'idp-middleware[opentelemetry]'")
        observers.append(OpenTelemetry(propagate=table.take("propagate", bool, False)))
        table.no_more()
    return tuple(observers)


def _metrics(file: ConfigFile) -> Exporter:
    try:
        from idp_middleware.prometheus import Prometheus
    except ImportError:
        raise ConfigurationError(
            "needs the extra: pip install 'idp-middleware[prometheus]'", key="metrics", file=file.path
        ) from None
    return Prometheus()


def _cache(table: Table) -> TokenCache | None:
    # With every key commented out it says what having no such table says: in process.
    return table.build(TokenCache.from_url) if table else None


def _route(table: Table, by_name: Mapping[str, TokenSource], unused: dict[str, None]) -> ProxyRoute:
    source = table.choose("source", by_name, "[sources.NAME] table")
    unused.pop(source, None)
    factory: Callable[..., ProxyRoute] = ProxyRoute
    if "provider" in table:
        factory = PRESETS[table.choose("provider", PRESETS, "provider")]
    elif "upstream" not in table:
        table.wrong('needs provider = "NAME" (a preset) or upstream = "https://HOST"')
    route: ProxyRoute = table.build(factory, token_source=by_name[source], name=table.key)
    return route
