"""Provider tokens that Keycloak keeps for users who logged in through it or linked an account (identity brokering).

Knows Keycloak's three ways to hand them out, and their answers and errors as in its source: IdentityBrokerService,
AbstractIdentityProvider, AbstractOAuth2IdentityProvider, OIDCIdentityProvider. Keeps nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from time import time
from typing import Any, Final, Unpack
from urllib.parse import parse_qsl, quote

from idp_middleware._idp_http import DEFAULT_TIMEOUT, Answer
from idp_middleware._issuer_check import check_issuer
from idp_middleware._jwk import ALGORITHMS
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import (
    CallerUnauthenticated,
    ConfigurationError,
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenSourceFailed,
    TokenSourceUnavailable,
)
from idp_middleware.sources._checking import check_client, made_up
from idp_middleware.sources._on_behalf import (
    ACCESS_TOKEN,
    TOKEN_EXCHANGE,
    caller_refused,
    credential,
    credential_key,
    refuse_account,
)
from idp_middleware.sources._patient import PatientClient
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token, server_url

_NO_LIFE: Final = 1e9
"""Seconds; what is above is no life but a moment (9 September 2001 or later)."""

_URL: Final = re.compile(r"https?://[!-~]{1,2000}")

_HINTS: Final = {
    "access_denied": "let the client exchange tokens for this identity provider (fine-grained admin permissions)",
    "invalid_client": (
        "check client_id and its secret or key; the client's settings must have this identity provider among Allowed "
        "Identity Providers for External Tokens"
    ),
    "invalid_request": "check connection (the alias), and that Keycloak runs with the feature that this api needs",
    "unauthorized_client": "check the client's credentials, and that the caller's token has it in its audience",
    "unsupported_grant_type": "Keycloak runs without the feature token-exchange",
}


class KeycloakBroker(_HoldsSecret):
    """The token of the user's account at the identity provider whose alias is the route's connection.

    The authenticator must be the same realm's. Keycloak has one account for each user and alias, and renews tokens
    where the provider gives refresh tokens; the identity provider's "Store tokens" has to be on.

    Args:
        realm_url: the realm, such as `https://sso.acme.example/realms/acme`: what its tokens have as issuer.
        api: how to ask. `v1`: with the caller's token, which needs the role `read-token` of the client `broker`; on by
            default. `v2`: as a client with "Allow retrieve external tokens", Keycloak's feature
            `identity-brokering-api:v2`. `exchange`: legacy token exchange, feature `token-exchange:v1`; the only one
            that gives a `connect_url`, to which the caller's app adds its `redirect_uri`.
        client_id: for `v2` and `exchange`.
        client: `ClientOptions`, such as the `client_secret`.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    needs_connection = True

    def __init__(
        self,
        *,
        realm_url: str,
        api: str = "v1",
        client_id: str | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        self._realm = server_url(realm_url, "realm_url", allow_insecure=client.get("allow_insecure", False))
        if api not in ("v1", "v2", "exchange"):
            raise ConfigurationError('must be "v1", "v2" or "exchange"', key="api")
        self._api = api
        self._endpoint: TokenEndpoint | None = None
        if api == "v1":
            given = {"client_id": client_id, **client}
            for key in given.keys() - {"allow_insecure", "transport", "timeout"}:
                if given[key] is not None:
                    raise ConfigurationError('is of no use to api = "v1"', key=key)
            self._http = PatientClient(
                transport=client.get("transport"), timeout=client.get("timeout", DEFAULT_TIMEOUT)
            )
            return
        self._endpoint = TokenEndpoint(
            f"{self._realm}/protocol/openid-connect/token",
            key="realm_url",
            client_id=client_id or "",
            audience=self._realm,
            **client,
        )
        self._http = self._endpoint.http

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, our credentials and the caller aside."""
        return ("keycloak-broker", self._realm, self._api, self._endpoint.client_id if self._endpoint else "")

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str | None, ...]:  # noqa: ARG002
        """Kept for the caller's very token: its roles or client decide, and tokens may be its session's."""
        return credential_key(caller)

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """The user's token as Keycloak has it now.

        Raises:
            IdentityNotLinked: no such account is linked; or `caller.account` names one, which Keycloak can't look for.
            ReconnectRequired: it is, but its token has expired and could not be renewed, or was never stored.
            CallerUnauthenticated: the caller's session at Keycloak has ended.
            TokenSourceFailed: Keycloak refuses this client or the caller's role, or does not store tokens.
            TokenSourceUnavailable, TokenSourceTimeout: no answer.
        """
        refuse_account(caller, route)
        connection = route.connection or ""
        url = f"{self._realm}/broker/{quote(connection, safe='')}/token"
        asked_at = time()
        if self._endpoint is None:
            headers = {"authorization": f"Bearer {credential(caller)}"}
            return _stored(await self._http.request("GET", url, headers=headers), connection, asked_at)
        try:
            if self._api == "v2":
                answer = await self._endpoint.grant({"token": credential(caller)}, url=url)
            else:
                answer = await self._endpoint.grant(_exchange(connection, credential(caller)))
        except GrantRefused as exc:
            raise _meaning(exc, connection) from None
        life = _number(answer.get("expires_in"))
        if life is not None and life < _NO_LIFE:
            return _token(answer, asked_at + life)
        # Of a token that a session keeps Keycloak gives the moment it expires instead of its life.
        return _token(answer, life)

    async def check(self) -> str:
        """As `Checkable`: the realm answers; with a client, it is tried with a made-up token of a caller."""
        await check_issuer(
            self._http,
            issuer=self._realm,
            jwks_url=None,
            algorithms=ALGORITHMS,
            leeway=math.inf,
            key="realm_url",
            allow_insecure=True,
        )
        if self._endpoint is None:
            return f"{self._realm} is a realm"
        if self._api == "v2":
            url = f"{self._realm}/broker/idp-middleware-check/token"
            # Who we are is refused as "unauthorized_client"; this one is about the alias, and there is none such.
            return await check_client(self._endpoint, {"token": made_up()}, _HINTS, url=url, fine=("invalid_client",))
        return await check_client(self._endpoint, _exchange("idp-middleware-check", made_up()), _HINTS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def __repr__(self) -> str:
        return f"KeycloakBroker(realm_url={self._realm!r}, api={self._api!r})"


def _exchange(connection: str, subject_token: str) -> dict[str, str]:
    return {
        "grant_type": TOKEN_EXCHANGE,
        "subject_token": subject_token,
        "subject_token_type": ACCESS_TOKEN,
        "requested_token_type": ACCESS_TOKEN,
        "requested_issuer": connection,
    }


def _meaning(refused: GrantRefused, connection: str) -> IdPError:
    """What an error in the form of OAuth's says (`v2`, `exchange`)."""
    what, description = str(refused), refused.answer.get("error_description")
    link = refused.answer.get("account-link-url")
    connect_url = link if isinstance(link, str) and _URL.fullmatch(link) else None
    if refused.code == "not_linked" or description == "User not associated to identity provider":
        return IdentityNotLinked(what, connection=connection, connect_url=connect_url)
    if refused.code == "token_expired":
        return ReconnectRequired(what, connection=connection, connect_url=connect_url)
    if description == "Failed to retrieve token from identity provider":
        return TokenSourceUnavailable(what)
    return caller_refused(refused) or refused.explained(_HINTS.get(refused.code))


def _stored(answer: Answer, connection: str, now: float) -> Token:
    """The token in an answer to `v1`: what the provider answered Keycloak when it was issued."""
    if answer.status != 200:
        raise _meaning_v1(answer, connection)
    told = _provider_answer(answer.body)
    # The provider's own expires_in counts from a login that nobody knows the time of.
    expires_at = _number(told.get("accessTokenExpiration"))
    token = _token(told, expires_at)
    if expires_at is not None and expires_at <= now:
        raise ReconnectRequired("the stored token has expired, and was not renewed", connection=connection)
    return token


def _meaning_v1(answer: Answer, connection: str) -> IdPError:
    try:
        said = answer.json().get("errorMessage")
    except TokenSourceFailed:
        said = None
    message = said if isinstance(said, str) else ""
    what = f"Keycloak broker: status {answer.status}"
    if answer.status == 401 or message == "Invalid token.":
        return CallerUnauthenticated(what)
    if "is not associated with identity provider" in message:
        return IdentityNotLinked(what, connection=connection)
    if message.startswith("No token stored") or message == "Unable to refresh token":
        # The second is a 502, since Keycloak says the same of a provider that refuses and of one it can't reach. The
        # first is what lasts, and what the user can do something about.
        return ReconnectRequired(what, connection=connection)
    if answer.status >= 500:
        return TokenSourceUnavailable(what, retry_after=answer.retry_after())
    if answer.status == 403:
        return TokenSourceFailed(what, todo="give users the role read-token of the client broker")
    if "does not support this operation" in message:
        return TokenSourceFailed(what, todo=f'turn on "Store tokens" for the identity provider {connection}')
    if "not enabled" in message:
        return TokenSourceFailed(what, todo="let Keycloak run with the feature identity-brokering-api:v1")
    return TokenSourceFailed(what, todo="check realm_url and connection (the alias)")


def _provider_answer(body: bytes) -> Mapping[str, Any]:
    """A provider's stored answer: JSON, or a form as GitHub and Facebook once had it."""
    text = body.decode("utf-8", "replace").strip()
    if not text.startswith("{"):
        return dict(parse_qsl(text))
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = {}
    return told if isinstance(told, dict) else {}


def _token(answer: Mapping[str, Any], expires_at: float | None) -> Token:
    # Keycloak leaves the type out, and so did providers in answers that it stored.
    kind = answer.get("token_type") or "Bearer"
    told = {name: answer[name] for name in ("access_token", "scope", "instance_url") if name in answer}
    return replace(bearer_token({**told, "token_type": kind}, 0.0), expires_at=expires_at)


def _number(value: object) -> float | None:
    """A number of seconds above zero; None for anything else, since 0 is Keycloak's word for unknown."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None
