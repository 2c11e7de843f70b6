"""Stand-ins for the parties around the middleware: identity providers, a provider's API, and a server for all.

    from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve

    auth0, github = Auth0(), ProviderAPI()
    auth0.add_client("client", "secret")
    auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice")])
    github.accept("gho_alice", login="alice")

    with serve(auth0) as idp, serve(github) as api:      # real sockets on loopback
        app = IdPMiddleware(..., routes={"github": ProxyRoute(api.url, ...)})
        token = auth0.issue_token("auth0|alice", audience="https://api.example")
        ...
        assert github.tokens_seen() == ["gho_alice"]
        assert auth0.count("/oauth/token") == 1

`Keycloak`, `Entra` and `TokenEndpoint` (RFC 8693) stand in for other identity providers, in the same way.

`World` puts them together in process, for the suite of an app; docs/testing.md says how.

All are plain ASGI apps, so they also work in process with `httpx.ASGITransport`; whatever streams, stalls or breaks
off needs `serve`, which needs the extra `idp-middleware[server]`. They are witnesses: they share no code with the
middleware, and refuse what the real systems refuse.
"""

from idp_middleware.testing._auth0_wire import Identity
from idp_middleware.testing._keys import SigningKey, signing_key
from idp_middleware.testing._recording import RecordedRequest
from idp_middleware.testing.auth0 import Auth0
from idp_middleware.testing.entra import Entra
from idp_middleware.testing.introspection import IntrospectionServer
from idp_middleware.testing.keycloak import Keycloak
from idp_middleware.testing.provider import ProviderAPI
from idp_middleware.testing.refresh import RotatingTokens
from idp_middleware.testing.server import RunningServer, serve
from idp_middleware.testing.token_endpoint import TokenEndpoint
from idp_middleware.testing.world import Linked, World

__all__ = [
    "Auth0",
    "Entra",
    "Identity",
    "IntrospectionServer",
    "Keycloak",
    "Linked",
    "ProviderAPI",
    "RecordedRequest",
    "RotatingTokens",
    "RunningServer",
    "SigningKey",
    "TokenEndpoint",
    "World",
    "serve",
    "signing_key",
]
