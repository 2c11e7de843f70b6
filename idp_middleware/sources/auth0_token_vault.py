"""Provider tokens that Auth0's Token Vault keeps and renews, in exchange for an Auth0 token of the user.

Knows the grant (https://auth0.com/docs/api/authentication/token-vault-token-exchange/get-token) and its errors, those
that the page leaves out as applications in public see them. Keeps nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import time
from typing import Final, Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import IdentityNotLinked, IdPError, ReconnectRequired
from idp_middleware.sources._checking import check_client, made_up
from idp_middleware.sources._on_behalf import ACCESS_TOKEN, caller_refused, credential
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, bearer_token
from idp_middleware.sources.auth0 import auth0_token_endpoint, tenant_url

_GRANT: Final = "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token"
_REFRESH_TOKEN: Final = "urn:ietf:params:oauth:token-type:refresh_token"  # noqa: S105 - the name of a type
_FEDERATED: Final = "http://auth0.com/oauth/token-type/federated-connection-access-token"

_HINTS: Final = {
    "access_denied": "check client_id and its secret or key",
    "invalid_client": "check client_id and its secret or key",
    "mfa_required": "Token Vault does not work with the MFA policy Always",
    "unauthorized_client": (
        "grant the application Token Vault; to exchange access tokens it has to be the one that is linked to the API "
        "(app_type resource_server)"
    ),
}


class Auth0TokenVault(_HoldsSecret):
    """The token of the user's account at the route's connection, from Token Vault.

    The caller's own access token is exchanged; the authenticator must be the same tenant's. Or `refresh_token` gives
    the Auth0 refresh token that the app keeps for the user; then a caller that is only a subject will do. Auth0 renews
    the provider's tokens, and drops what nobody has used for a year.

    Args:
        domain: the tenant, such as `acme.eu.auth0.com`.
        base_url: instead of `domain`, for tests and private clouds.
        client_id: of the application that is linked to the API (access tokens), or that the refresh tokens are for.
        refresh_token: an async function from a `Caller` to the user's Auth0 refresh token, or to None where there is
            none. Rotation must be off for the application.
        client: `ClientOptions`, such as the `client_secret`.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    needs_connection = True

    def __init__(
        self,
        *,
        domain: str | None = None,
        base_url: str | None = None,
        client_id: str,
        refresh_token: Callable[[Caller], Awaitable[str | None]] | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        self._base_url = tenant_url(domain, base_url, allow_insecure=client.get("allow_insecure", False))
        self._endpoint = auth0_token_endpoint(self._base_url, client_id, **client)
        self._refresh_token = refresh_token

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, our credentials and the caller aside."""
        return ("auth0-token-vault", self._base_url, self._endpoint.client_id)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str | None, ...]:  # noqa: ARG002
        """The same for a user whichever token was exchanged: what comes back is the provider's, not narrowed by it."""
        return (caller.issuer, caller.subject, caller.account)

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """The user's token as Auth0 has it now.

        Raises:
            IdentityNotLinked: no account of this connection, or not the one in `caller.account`.
            ReconnectRequired: Auth0 could not renew the provider's token; or takes the user's refresh token no more.
            CallerUnauthenticated: Auth0 takes the caller's access token no more.
            TokenSourceFailed: Auth0 refuses this client.
            TokenSourceUnavailable, TokenSourceTimeout: no answer.
        """
        fields = _exchange(route.connection or "") | await self._subject(caller, route.connection)
        if caller.account is not None:
            # The id at the provider, as for IdP-Account.
            fields["login_hint"] = caller.account
        asked_at = time()
        try:
            answer = await self._endpoint.grant(fields)
        except GrantRefused as exc:
            raise self._meaning(exc, route.connection) from None
        return bearer_token(answer, asked_at)

    async def _subject(self, caller: Caller, connection: str | None) -> dict[str, str]:
        if self._refresh_token is None:
            return {"subject_token": credential(caller), "subject_token_type": ACCESS_TOKEN}
        token = await self._refresh_token(caller)
        if not token:
            raise IdentityNotLinked("the app has no Auth0 refresh token for the user", connection=connection)
        return {"subject_token": token, "subject_token_type": _REFRESH_TOKEN}

    def _meaning(self, refused: GrantRefused, connection: str | None) -> IdPError:
        if refused.code == "federated_connection_refresh_token_not_found":
            return IdentityNotLinked(str(refused), connection=connection)
        if refused.code == "federated_connection_refresh_token_flow_failed":
            return ReconnectRequired(str(refused), connection=connection)
        if (caller := caller_refused(refused)) is not None:
            # A refresh token is the app's, so a new one of the caller's mends nothing: the user has to log in again.
            return caller if self._refresh_token is None else ReconnectRequired(str(refused), connection=connection)
        return refused.explained(_HINTS.get(refused.code))

    async def check(self) -> str:
        """As `Checkable`: a made-up token of a user is offered for exchange."""
        kind = ACCESS_TOKEN if self._refresh_token is None else _REFRESH_TOKEN
        fields = _exchange("idp-middleware-check") | {"subject_token": made_up(), "subject_token_type": kind}
        return await check_client(self._endpoint, fields, _HINTS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    def __repr__(self) -> str:
        return f"Auth0TokenVault(base_url={self._base_url!r}, client_id={self._endpoint.client_id!r})"


def _exchange(connection: str) -> dict[str, str]:
    return {"grant_type": _GRANT, "requested_token_type": _FEDERATED, "connection": connection}
