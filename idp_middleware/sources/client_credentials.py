"""The app's own token for an API (RFC 6749 section 4.4), the same for every caller."""

from __future__ import annotations

from time import time
from typing import Unpack

from idp_middleware._advice import reaching, shown
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.sources._checking import check_failed
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token


class ClientCredentials(_HoldsSecret):
    """The client-credentials grant: what the app may do at the upstream, whoever the caller is.

    Args:
        token_url: the token endpoint.
        client_id: the app there.
        scope: space-separated scopes to ask for; default what the server gives.
        audience: the API that the token is for, where the server asks for one (Auth0).
        client: `ClientOptions`, such as the `client_secret`.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        token_url: str,
        client_id: str,
        scope: str | None = None,
        audience: str | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        self._endpoint = TokenEndpoint(token_url, client_id=client_id, **client)
        fields = {"grant_type": "client_credentials", "scope": scope, "audience": audience}
        self._fields = {name: value for name, value in fields.items() if value}

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, our credentials aside."""
        asked = (f"{name}={value}" for name, value in sorted(self._fields.items()))
        return ("client-credentials", self._endpoint.url, self._endpoint.client_id, *asked)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str, ...]:  # noqa: ARG002
        """One token for all callers."""
        return ()

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """A new token with every call. Raises `errors.TokenError`."""
        asked_at = time()
        try:
            answer = await self._endpoint.grant(self._fields)
        except GrantRefused as exc:
            raise exc.explained(None) from None
        return bearer_token(answer, asked_at)

    async def check(self) -> str:
        """As `Checkable`: a token is asked for, and not kept."""
        with reaching(self._endpoint.url):
            try:
                bearer_token(await self._endpoint.grant(self._fields), time())
            except GrantRefused as exc:
                raise check_failed(exc, self._endpoint.url) from None
        return f"{shown(self._endpoint.url)} gives the client {self._endpoint.client_id} a token"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    def __repr__(self) -> str:
        return f"ClientCredentials(token_url={self._endpoint.url!r}, client_id={self._endpoint.client_id!r})"
