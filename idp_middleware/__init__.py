"""Call providers' APIs as the user, without ever handing out the user's provider token.

    from idp_middleware import IdPMiddleware, JWTAuthenticator, providers, sources

    auth0 = sources.Auth0Management(domain="acme.eu.auth0.com", client_id=…, client_secret=…)

    app.add_middleware(
        IdPMiddleware,
        authenticator=JWTAuthenticator(issuer="https://acme.eu.auth0.com/", audience="https://api.acme.example"),
        routes={"github": providers.github(token_source=auth0, connection="github")},
    )

A request for `/idp/github/user` with the app's own token then goes to `https://api.github.com/user` with the caller's
GitHub token. Asyncio only.
"""

from idp_middleware import errors, providers, sources, stores
from idp_middleware._any_of import AnyOf
from idp_middleware._cache import TokenCache
from idp_middleware._introspection import IntrospectionAuthenticator
from idp_middleware._jwt import JWTAuthenticator
from idp_middleware._middleware import IdPMiddleware
from idp_middleware._routes import ProxyRoute
from idp_middleware._rules import Rule
from idp_middleware._session import SessionAuthenticator
from idp_middleware._types import Authenticator, Caller, Timeout, Token, TokenSource
from idp_middleware._version import __version__
from idp_middleware.config import load_config

__all__ = [
    "AnyOf",
    "Authenticator",
    "Caller",
    "IdPMiddleware",
    "IntrospectionAuthenticator",
    "JWTAuthenticator",
    "ProxyRoute",
    "Rule",
    "SessionAuthenticator",
    "Timeout",
    "Token",
    "TokenCache",
    "TokenSource",
    "__version__",
    "errors",
    "load_config",
    "providers",
    "sources",
    "stores",
]
