"""Where tokens come from: one class for each way, each a `TokenSource`.

To add one: a module with one class, a line here, a test beside the others. `TokenEngine` says which two optional
members (`identity`, `cache_key`) tell it what an answer depends on; a source keeps no tokens of callers itself.
"""

from idp_middleware.sources._auth0_refresh import ProviderRefresh
from idp_middleware.sources._token_endpoint import ClientOptions
from idp_middleware.sources.auth0 import Auth0Management
from idp_middleware.sources.auth0_token_vault import Auth0TokenVault
from idp_middleware.sources.client_credentials import ClientCredentials
from idp_middleware.sources.keycloak_broker import KeycloakBroker
from idp_middleware.sources.on_behalf_of import OnBehalfOf
from idp_middleware.sources.refresh_token import RefreshToken
from idp_middleware.sources.static import PassThrough, Static
from idp_middleware.sources.token_exchange import TokenExchange

__all__ = [
    "Auth0Management",
    "Auth0TokenVault",
    "ClientCredentials",
    "ClientOptions",
    "KeycloakBroker",
    "OnBehalfOf",
    "PassThrough",
    "ProviderRefresh",
    "RefreshToken",
    "Static",
    "TokenExchange",
]
