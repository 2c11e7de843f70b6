"""A token for another API in exchange for the caller's own (RFC 8693).

Knows the RFC's parameters and answers. Keeps nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from time import time
from typing import Any, Final, Unpack

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import ConfigurationError, TokenSourceFailed
from idp_middleware.sources._checking import check_client, made_up
from idp_middleware.sources._on_behalf import (
    ACCESS_TOKEN,
    TOKEN_EXCHANGE,
    caller_refused,
    credential,
    credential_key,
    refuse_account,
)
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token

_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"

_HINTS: Final = {
    "access_denied": "the server does not let this client exchange tokens of this user",
    "invalid_client": "check client_id and its secret or key, and how the server wants them (client_auth)",
    "invalid_request": "if the rest is right, the server does not take the caller's token, say for its audience",
    "invalid_scope": "check scope",
    "invalid_target": "the server knows no such audience or resource, or does not let this client have tokens for it",
    "unauthorized_client": "grant the client the token-exchange grant",
    "unsupported_grant_type": "the server does not do RFC 8693 at this URL",
}


class TokenExchange(_HoldsSecret):
    """The token-exchange grant of RFC 8693, with the caller's access token as the subject token.

    Args:
        token_url: the token endpoint.
        client_id: the app there.
        audience: one or several names of the API that the token is for.
        resource: the same as one or several URLs (RFC 8707).
        scope: space-separated scopes to ask for.
        subject_token_type: what the caller's token is; by default an access token, whatever its form (section 3).
        requested_token_type: what to ask for, where the server's choice is not right.
        client: `ClientOptions`, such as the `client_secret`.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        token_url: str,
        client_id: str,
        audience: str | Collection[str] | None = None,
        resource: str | Collection[str] | None = None,
        scope: str | None = None,
        subject_token_type: str = ACCESS_TOKEN,
        requested_token_type: str | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        self._endpoint = TokenEndpoint(token_url, client_id=client_id, **client)
        self._requested_type = requested_token_type
        fields = {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token_type": subject_token_type,
            "audience": _several(audience, "audience"),
            "resource": _several(resource, "resource"),
            "scope": scope,
            "requested_token_type": requested_token_type,
        }
        self._fields = {name: value for name, value in fields.items() if value}

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, our credentials and the caller aside."""
        asked = (f"{name}={value}" for name, value in sorted(self._fields.items()))
        return ("token-exchange", self._endpoint.url, self._endpoint.client_id, *asked)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str | None, ...]:  # noqa: ARG002
        """Kept for the very token that was exchanged."""
        return credential_key(caller)

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """A new token with every call.

        Raises:
            CallerUnauthenticated: the server no longer takes the caller's token.
            IdentityNotLinked: `caller.account` names an account; there are none here.
            TokenSourceFailed: the server refuses this client, or gives what is no bearer token.
            TokenSourceUnavailable, TokenSourceTimeout: no answer.
        """
        refuse_account(caller, route)
        asked_at = time()
        try:
            answer = await self._endpoint.grant({**self._fields, "subject_token": credential(caller)})
        except GrantRefused as exc:
            raise caller_refused(exc) or exc.explained(_HINTS.get(exc.code)) from None
        return bearer_token(self._usable(answer), asked_at)

    def _usable(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, made sure to hold what an API takes and not an ID token, say (section 2.2.1)."""
        issued = answer.get("issued_token_type")
        expected = (ACCESS_TOKEN, _JWT) if self._requested_type is None else (self._requested_type,)
        # It is required, but more than one server leaves it out.
        if issued is not None and issued not in expected:
            raise TokenSourceFailed("token endpoint: gave another type of token than was asked for")
        # "N_A" is for what is no access token. Where that was asked for by name, the operator has a use for it.
        if answer.get("token_type") == "N_A" and issued is not None and issued == self._requested_type != ACCESS_TOKEN:
            return {**answer, "token_type": "Bearer"}
        return answer

    async def check(self) -> str:
        """As `Checkable`: a made-up token of a caller is offered for exchange."""
        return await check_client(self._endpoint, {**self._fields, "subject_token": made_up()}, _HINTS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    def __repr__(self) -> str:
        return f"TokenExchange(token_url={self._endpoint.url!r}, client_id={self._endpoint.client_id!r})"


def _several(value: str | Collection[str] | None, key: str) -> list[str]:
    values = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(each, str) and each for each in values):
        raise ConfigurationError("must be a string or a list of strings, none empty", key=key)
    return values
