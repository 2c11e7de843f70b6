"""Microsoft's on-behalf-of flow: a token for another API, such as Graph, in exchange for the caller's.

Knows Microsoft Entra ID's token endpoint and its errors
(https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow). Keeps nothing.
"""

from __future__ import annotations

import re
from time import time
from typing import Final, Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import (
    CallerUnauthenticated,
    ConfigurationError,
    IdentityNotLinked,
    IdPError,
    InteractionRequired,
    TokenSourceUnavailable,
)
from idp_middleware.sources._checking import check_client, made_up
from idp_middleware.sources._client_auth import required
from idp_middleware.sources._on_behalf import credential, credential_key, refuse_account
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token, server_url

_MAX_CLAIMS: Final = 4096
"""Characters of a claims challenge; all of it becomes a header field."""

_HINTS: Final = {
    "invalid_client": "check client_id and its secret or certificate",
    "invalid_grant": "the caller's token must be for this app: its audience is client_id or the app's own URI",
    "invalid_resource": "check scope: the API is not in this tenant",
    "invalid_scope": "check scope, which is for one API, such as https://graph.microsoft.com/.default",
    "unauthorized_client": "check tenant and client_id",
}

# Microsoft asks to go by `error` and `suberror`, as the numbers may change. Where there is nothing else to tell cases
# apart by, an unknown number falls back to what `invalid_grant` means in general.
_EXPIRED: Final = frozenset({500133})
_NOT_FOR_US: Final = frozenset({50013, 500131, 50027})
_NO_CONSENT: Final = frozenset({65001})


class OnBehalfOf(_HoldsSecret):
    """The caller's token from Microsoft Entra ID, exchanged for one that another API takes.

    The caller's token has to be for this app, and the user or an administrator must have consented to what this app
    asks for. Where Conditional Access demands more of the user, the caller gets a claims challenge (status 401).

    Args:
        tenant: its id or domain; `organizations` and `common` also work.
        client_id: of this app.
        scope: space-separated, for one API, such as `https://graph.microsoft.com/.default`.
        base_url: of Entra ID: another one for national clouds and tests.
        client: `ClientOptions`, such as the `client_secret`. With a certificate: its `private_key`, and as `key_id`
            its SHA-256 thumbprint in hexadecimal.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        tenant: str,
        client_id: str,
        scope: str,
        base_url: str = "https://login.microsoftonline.com",
        **client: Unpack[ClientOptions],
    ) -> None:
        if not isinstance(tenant, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", tenant):
            raise ConfigurationError("must be a tenant's id or domain", key="tenant")
        base_url = server_url(base_url, "base_url", allow_insecure=client.get("allow_insecure", False))
        self._oauth = f"{base_url}/{tenant}/oauth2/v2.0"
        self._endpoint = TokenEndpoint(
            f"{self._oauth}/token", client_id=client_id, key="base_url", thumbprint=True, **client
        )
        self._scope = required("scope", scope)

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, our credentials and the caller aside."""
        return ("on-behalf-of", self._endpoint.url, self._endpoint.client_id, self._scope)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str | None, ...]:  # noqa: ARG002
        """Kept for the very token that was exchanged."""
        return credential_key(caller)

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """A new token with every call.

        Raises:
            InteractionRequired: the user has to sign in again: a second factor, a changed password, a policy.
            CallerUnauthenticated: the caller's token has expired meanwhile.
            IdentityNotLinked: nobody has consented to `scope`; or `caller.account` names an account.
            TokenSourceFailed: Entra ID refuses this app, or the caller's token is not for it.
            TokenSourceUnavailable, TokenSourceTimeout: no answer.
        """
        refuse_account(caller, route)
        asked_at = time()
        try:
            answer = await self._endpoint.grant(self._fields(credential(caller)))
        except GrantRefused as exc:
            raise self._meaning(exc, route.connection) from None
        return bearer_token(answer, asked_at)

    def _fields(self, assertion: str) -> dict[str, str]:
        return {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": assertion,
            "scope": self._scope,
            "requested_token_use": "on_behalf_of",
        }

    def _meaning(self, refused: GrantRefused, connection: str | None) -> IdPError:
        said, what = refused.answer, str(refused)
        listed = said.get("error_codes")
        numbers = {number for number in listed if isinstance(number, int)} if isinstance(listed, list) else set()
        claims = said.get("claims")
        if isinstance(claims, str) and 0 < len(claims) <= _MAX_CLAIMS:
            # With invalid_grant too: MSAL looks at the claims, not at the code.
            return InteractionRequired(what, claims=claims, authorization_uri=f"{self._oauth}/authorize")
        if refused.code == "temporarily_unavailable":
            return TokenSourceUnavailable(what)
        if refused.code == "consent_required" or said.get("suberror") == "consent_required" or numbers & _NO_CONSENT:
            return IdentityNotLinked(f"{what}; consent for scope {self._scope} is missing", connection=connection)
        if refused.code == "invalid_grant" and numbers & _EXPIRED:
            return CallerUnauthenticated(what)
        if refused.code in ("interaction_required", "login_required") or (
            refused.code == "invalid_grant" and not numbers & _NOT_FOR_US
        ):
            return InteractionRequired(what, authorization_uri=f"{self._oauth}/authorize")
        return refused.explained(_HINTS.get(refused.code))

    async def check(self) -> str:
        """As `Checkable`: a made-up token of a caller is offered for exchange."""
        return await check_client(self._endpoint, self._fields(made_up()), _HINTS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    def __repr__(self) -> str:
        return f"OnBehalfOf(token_url={self._endpoint.url!r}, client_id={self._endpoint.client_id!r})"
