"""Refreshing, at the provider, what Auth0 keeps in a profile and does not renew.

Knows the refresh grant (RFC 6749 section 6) for refresh tokens that can be sent again and again; nothing of Auth0's
API. Keeps nothing of any user.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any, Final, Unpack

from idp_middleware._idp_http import DEFAULT_TIMEOUT
from idp_middleware._types import KEPT_WHOLE, Token, _HoldsSecret
from idp_middleware.errors import ConfigurationError, ReconnectRequired
from idp_middleware.sources._checking import check_client, made_up
from idp_middleware.sources._revocation import Revocation
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token

_WITHDRAWN: Final = frozenset({"invalid_grant", "interaction_required"})
"""What only the user can mend; the second is Microsoft's."""

_HINTS: Final = {
    "invalid_client": "check client_id and client_secret of this connection under refresh, and client_auth",
    "unauthorized_client": "the refresh token is another client's; under refresh goes the one that the connection has",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRefresh(_HoldsSecret):
    """How the tokens of one of Auth0's connections are refreshed at its provider.

    Only for providers whose refresh tokens stay good when they are used, such as Google, Microsoft and Dropbox: what
    comes in place of one can't be written back to Auth0. With a provider that rotates them (GitHub Apps, GitLab,
    Atlassian, Slack …) the second refresh would fail, and may cost the user all that the first has brought.

    Args:
        connection: Auth0's name of it, such as `google-oauth2`.
        token_url: the provider's token endpoint, such as `https://oauth2.googleapis.com/token`.
        client_id: of the connection's client at the provider; refresh tokens are good for that one only.
        client_secret: of that client.
        client_auth: how the secret is sent: `post` or `basic`.
        revocation_url: where the provider takes tokens back (RFC 7009), such as `https://oauth2.googleapis.com/revoke`.
    """

    connection: str
    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    client_auth: str = "post"
    revocation_url: str | None = None
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)


class Refreshing(_HoldsSecret):
    """Asks the providers of some connections for new tokens.

    Args:
        refresh: how, one for each connection.
        client: the `ClientOptions` that Auth0 is asked with; those about the network hold here, too.

    Raises:
        ConfigurationError: naming what is at fault, under the key `refresh`.
    """

    def __init__(self, refresh: Collection[ProviderRefresh], **client: Unpack[ClientOptions]) -> None:
        self._endpoints: dict[str, TokenEndpoint] = {}
        self._revocations: dict[str, Revocation] = {}
        for each in refresh:
            if each.connection in self._endpoints:
                raise ConfigurationError(f"has the connection {each.connection!r} twice", key="refresh")
            network: Any = {
                "allow_insecure": client.get("allow_insecure", False),
                "transport": client.get("transport"),
                "timeout": client.get("timeout", DEFAULT_TIMEOUT),
            }
            try:
                endpoint = TokenEndpoint(
                    each.token_url,
                    client_id=each.client_id,
                    client_secret=each.client_secret,
                    client_auth=each.client_auth,
                    **network,
                )
                if each.revocation_url is not None:
                    self._revocations[each.connection] = Revocation(each.revocation_url, endpoint.auth, **network)
            except ConfigurationError as exc:
                raise ConfigurationError(f"{exc.key} {exc.message}", key="refresh") from None
            self._endpoints[each.connection] = endpoint

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on."""
        each = sorted((name, endpoint.url, endpoint.client_id) for name, endpoint in self._endpoints.items())
        return tuple(part for parts in each for part in parts)

    async def token(self, identity: Mapping[str, Any], refused: Token | None) -> Token | None:
        """A new token for an identity of a profile; None where what Auth0 has has to do.

        That is so where there is nothing to refresh with, and where the provider takes the refresh token no longer, as
        long as no token was refused: after a new login without a new refresh token, the access token is good.

        Raises:
            ReconnectRequired: the provider takes the refresh token no longer.
            TokenSourceUnavailable, TokenSourceTimeout, TokenSourceFailed: it gave no answer, or not a usable one.
        """
        connection, refresh_token = identity.get("connection"), identity.get("refresh_token")
        endpoint = self._endpoints.get(connection) if isinstance(connection, str) else None
        if endpoint is None or not isinstance(refresh_token, str) or not refresh_token:
            return None
        asked_at = time()
        try:
            answer = await endpoint.grant({"grant_type": "refresh_token", "refresh_token": refresh_token})
        except GrantRefused as exc:
            if exc.code not in _WITHDRAWN:
                raise exc.explained(_HINTS.get(exc.code)) from None
            if refused is None and identity.get("access_token") is not None:
                return None
            raise ReconnectRequired(str(exc), connection=connection) from None
        return bearer_token(answer, asked_at)

    def revokes(self, connection: str | None) -> bool:
        """Whether the tokens of a connection can be taken back."""
        return connection in self._revocations

    async def revoke(self, identity: Mapping[str, Any]) -> None:
        """Take back what an identity's refresh token stands for. Raises as `Revocation.revoke`."""
        refresh_token = identity.get("refresh_token")
        if isinstance(refresh_token, str) and refresh_token:
            await self._revocations[identity["connection"]].revoke(access_token=None, refresh_token=refresh_token)

    async def check(self) -> None:
        """Raises `CheckFailed` unless each provider takes its client."""
        for endpoint in self._endpoints.values():
            fields = {"grant_type": "refresh_token", "refresh_token": made_up()}
            await check_client(endpoint, fields, _HINTS)

    async def aclose(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints.values():
            await endpoint.aclose()
        for revocation in self._revocations.values():
            await revocation.aclose()
