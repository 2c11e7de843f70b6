"""The app's own token for an API (RFC 6749 section 4.4), the same for every caller."""

from __future__ import annotations

from time import time

from idp_middleware._idp_http import Transport
from idp_middleware._routes import ProxyRoute, parse_base_url
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import ConfigurationError
from idp_middleware.sources._patient import PatientClient
from idp_middleware.sources._token_endpoint import bearer_token, request_grant


class ClientCredentials(_HoldsSecret):
    """The client-credentials grant: what the app may do at the upstream, whoever the caller is.

    Args:
        token_url: the token endpoint.
        client_id: sent with the secret in the request's body (RFC 6749 section 2.3.1), as most vendors document it.
        client_secret: the client's password.
        scope: space-separated scopes to ask for; default what the server gives.
        audience: the API that the token is for, where the server asks for one (Auth0).
        allow_insecure: permit `http://` to a host that is not loopback.
        transport: replaces the network.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        token_url: str,
        client_id: str,
        client_secret: str,
        scope: str | None = None,
        audience: str | None = None,
        allow_insecure: bool = False,
        transport: Transport | None = None,
    ) -> None:
        parse_base_url(token_url, "token_url", allow_insecure=allow_insecure)
        self._token_url = token_url
        fields = {
            "grant_type": "client_credentials",
            "client_id": required("client_id", client_id),
            "client_secret": required("client_secret", client_secret),
            "scope": scope,
            "audience": audience,
        }
        self._fields = {name: value for name, value in fields.items() if value}
        self._client = PatientClient(transport=transport)

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, the secret aside."""
        asked = (f"{name}={value}" for name, value in sorted(self._fields.items()) if name != "client_secret")
        return ("client-credentials", self._token_url, *asked)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str, ...]:  # noqa: ARG002
        """One token for all callers."""
        return ()

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """A new token with every call. Raises `errors.TokenError`."""
        asked_at = time()
        return bearer_token(await request_grant(self._client, self._token_url, self._fields), asked_at)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def __repr__(self) -> str:
        return f"ClientCredentials(token_url={self._token_url!r}, client_id={self._fields['client_id']!r})"


def required(key: str, value: str) -> str:
    """`value`, unless it is no string or an empty one, such as an environment variable that was never set."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError("must not be empty", key=key)
    return value
