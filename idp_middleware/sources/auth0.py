"""Provider tokens that Auth0 keeps in the user's profile: "Call an Identity Provider API" in its documentation.

Knows Auth0's Management API. Keeps the app's own token for that API, and nothing of any user.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import quote

from idp_middleware._advice import reaching
from idp_middleware._idp_http import Answer
from idp_middleware._routes import ProxyRoute
from idp_middleware._token_keeper import Fetch, Obtained, TokenKeeper
from idp_middleware._tokens import shared_fetch
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import (
    CheckFailed,
    ConfigurationError,
    IdentityAmbiguous,
    IdentityNotLinked,
    TokenSourceFailed,
    TokenSourceUnavailable,
)
from idp_middleware.sources._auth0_refresh import ProviderRefresh, Refreshing
from idp_middleware.sources._checking import check_failed, made_up
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token, server_url

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache

_EXTRA: Final = ("access_token_secret",)
"""What of an identity goes with its token: an OAuth 1.0a provider's requests are signed with the secret."""

_SCOPES: Final = frozenset({"read:users", "read:user_idp_tokens"})

_AUTHORIZE: Final = "authorize the application for the Auth0 Management API, with read:users and read:user_idp_tokens"


class Auth0Management(_HoldsSecret):
    """The token of the caller's identity for the route's connection, looked up with the Management API.

    A caller's `subject` is the Auth0 user id, so the authenticator must be the same tenant's. The machine-to-machine
    application needs the Management API's scopes `read:users` and `read:user_idp_tokens`. Connections that use Auth0's
    Token Vault keep no tokens in the profile.

    Auth0 does not renew what it keeps, nor say when it expires: once the provider's token has, the user has to log in
    again. Where the profile also has a refresh token (Google with `access_type=offline`, Microsoft), `refresh` does
    without that: then the access token comes from the provider, not from the profile, and is renewed ahead of expiry.

    Args:
        domain: the tenant, such as `acme.eu.auth0.com`.
        base_url: instead of `domain`, for tests and private clouds.
        client_id: of the machine-to-machine application.
        management_audience: the Management API's identifier; default `{base_url}/api/v2/`. With a custom domain it is
            still the tenant's own: `https://acme.eu.auth0.com/api/v2/`.
        refresh: a `ProviderRefresh` for each connection whose tokens are refreshed at the provider. Never for one that
            rotates refresh tokens.
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
        management_audience: str | None = None,
        refresh: Collection[ProviderRefresh] = (),
        **client: Unpack[ClientOptions],
    ) -> None:
        self._base_url = tenant_url(domain, base_url, allow_insecure=client.get("allow_insecure", False))
        self._fields = {
            "grant_type": "client_credentials",
            "audience": management_audience or f"{self._base_url}/api/v2/",
        }
        self._endpoint = auth0_token_endpoint(self._base_url, client_id, **client)
        self._management = TokenKeeper()
        self._obtain: Fetch = self._grant
        self._refreshing = Refreshing(refresh, **client)
        if any(each.revocation_url is not None for each in refresh):
            # Only then: by this it is told whether a source has anything to take back.
            self.revoke: Callable[[Caller, ProxyRoute], Awaitable[None]] = self._revoke

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tokens depend on, the secret aside."""
        asked = (self._base_url, self._endpoint.client_id, self._fields["audience"])
        return ("auth0-management", *asked, *self._refreshing.identity)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str | None, ...]:  # noqa: ARG002
        """The same tokens for a user whatever scopes the caller's own token has."""
        return (caller.issuer, caller.subject, caller.account)

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        """The user's token as Auth0 has it now, whose expiry is unknown; or refreshed at the provider.

        Raises:
            ReconnectRequired: it was to be refreshed, and the provider takes the refresh token no longer.
            IdentityNotLinked: no identity of this connection, none with the id in `caller.account`, or no such user.
            IdentityAmbiguous: several, and `caller.account` names none.
            TokenSourceUnavailable, TokenSourceTimeout, TokenSourceFailed: Auth0 or the provider gave no answer, or not
                a usable one.
        """
        identity = await self._identity(caller, route)
        refreshed = await self._refreshing.token(identity, refused)
        account = _user_id(identity) or None
        if refreshed is not None:
            return replace(refreshed, account=account)
        value = identity.get("access_token")
        if value is None:
            raise TokenSourceFailed(
                "Auth0 gave the identity without an access_token: the application lacks the Management API's scope "
                "read:user_idp_tokens, or the connection uses Token Vault, which keeps tokens elsewhere"
            )
        try:
            # `expires_in` is left alone: it counts from an issue time that is not in the profile.
            extra = {name: identity[name] for name in _EXTRA if isinstance(identity.get(name), str)}
            return Token(value, extra=extra, account=account)
        except (TypeError, ValueError):
            raise TokenSourceFailed("Auth0 gave an access_token that can't stand in a header") from None

    def use_cache(self, cache: TokenCache) -> None:
        """Share the management token with other workers through `cache`; `IdPMiddleware` calls this with its own.

        A tenant's plan has a quota of them.
        """
        key = ("auth0-management-token", self._base_url, self._endpoint.client_id, self._fields["audience"])
        self._obtain = shared_fetch(cache, key, self._grant, lambda: self._management.asked_at(None))

    async def _revoke(self, caller: Caller, route: ProxyRoute) -> None:
        """Take the user's refresh token back at the provider, where `refresh` has a `revocation_url` for that.

        What Auth0 keeps, and would give out again, can't be taken back from here: for that, unlink the identity.
        Raises as `token` does.
        """
        if self._refreshing.revokes(route.connection):
            with suppress(IdentityNotLinked):
                await self._refreshing.revoke(await self._identity(caller, route))

    async def _identity(self, caller: Caller, route: ProxyRoute) -> dict[str, Any]:
        segment = _segment(caller.subject)
        if segment is None:
            raise IdentityNotLinked("the subject is no Auth0 user id", connection=route.connection)
        identities = _identities(await self._look_up(segment), route.connection)
        return _the_one(identities, caller.account, route.connection)

    async def check(self) -> str:
        """As `Checkable`: a management token, its scopes, and a look-up of a user that there is not."""
        asked_at = time()
        with reaching(self._endpoint.url):
            try:
                management = bearer_token(await self._endpoint.grant(self._fields, as_json=True), asked_at)
            except GrantRefused as exc:
                hints = {"no grant": _AUTHORIZE, "no such API": "check management_audience: it is the tenant's own"}
                raise check_failed(exc, self._endpoint.url, hints) from None
            if missing := _SCOPES - management.scopes:
                raise CheckFailed(
                    f"{self._base_url} gives a management token, but not for {', '.join(sorted(missing))}",
                    todo="grant that to the application, under the Auth0 Management API",
                )
            try:
                segment = quote(f"auth0|{made_up()}", safe="")
                _identities(await self._get(f"{self._base_url}/api/v2/users/{segment}", management), None)
            except IdentityNotLinked:
                pass
        await self._refreshing.check()
        return f"{self._base_url} gives a management token for {' and '.join(sorted(_SCOPES))}"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._management.aclose()
        await self._endpoint.aclose()
        await self._refreshing.aclose()

    def __repr__(self) -> str:
        return f"Auth0Management(base_url={self._base_url!r}, client_id={self._endpoint.client_id!r})"

    async def _look_up(self, segment: str) -> Answer:
        url = f"{self._base_url}/api/v2/users/{segment}?fields=identities&include_fields=true"
        management = await self._management.token(None, self._obtain)
        answer = await self._get(url, management)
        if answer.status == 401:
            # Withdrawn before its time: the client's secret was rotated, its grant renewed.
            management = await self._management.renew(None, self._obtain, management)
            answer = await self._get(url, management)
        return answer

    async def _get(self, url: str, management: Token) -> Answer:
        # The endpoint's own client: a tenant that limits our rate does so for all we ask.
        return await self._endpoint.http.request("GET", url, headers={"authorization": f"Bearer {management.value}"})

    async def _grant(self, held: Token | None, refused: Token | None) -> Obtained:  # noqa: ARG002
        # Auth0 documents JSON here.
        asked_at = time()
        try:
            answer = await self._endpoint.grant(self._fields, as_json=True)
        except GrantRefused as exc:
            raise exc.explained(None) from None
        return bearer_token(answer, asked_at), asked_at


def auth0_token_endpoint(base_url: str, client_id: str, **client: Unpack[ClientOptions]) -> TokenEndpoint:
    """A tenant's token endpoint.

    A signed statement is for the tenant, with a slash at the end
    (https://auth0.com/docs/get-started/authentication-and-authorization-flow/authenticate-with-private-key-jwt).
    """
    return TokenEndpoint(f"{base_url}/oauth/token", client_id=client_id, audience=f"{base_url}/", **client)


def tenant_url(domain: str | None, base_url: str | None, *, allow_insecure: bool) -> str:
    """A tenant's URL without a slash at the end, of its `domain` or of `base_url`. Raises `ConfigurationError`."""
    if (domain is None) == (base_url is None):
        raise ConfigurationError("give either domain or base_url", key="domain" if base_url is None else "base_url")
    if base_url is None:
        if not isinstance(domain, str) or not re.fullmatch("[A-Za-z0-9.-]+", domain):
            raise ConfigurationError("must be a host name, such as acme.eu.auth0.com", key="domain")
        return f"https://{domain.lower()}"
    return server_url(base_url, "base_url", allow_insecure=allow_insecure)


def _segment(subject: str) -> str | None:
    """The user id as a segment of a path, where `auth0|123` may not stand as it is; None for what can't be one."""
    try:
        segment = quote(subject, safe="")
    except UnicodeEncodeError:
        return None
    # These would lead to another path, and no encoding prevents that (RFC 3986 section 6.2.2.3).
    return None if segment in ("", ".", "..") else segment


def _identities(answer: Answer, connection: str | None) -> list[dict[str, Any]]:
    """The identities of a connection, in Auth0's answer to a user look-up."""
    status = answer.status
    if status >= 500:
        raise TokenSourceUnavailable(f"Auth0 user look-up: status {status}", retry_after=answer.retry_after())
    body = answer.json()
    if status == 200:
        identities = body.get("identities")
        if not isinstance(identities, list) or not all(isinstance(identity, dict) for identity in identities):
            raise TokenSourceFailed("Auth0 user look-up: no list of identities")
        return [identity for identity in identities if identity.get("connection") == connection]
    code = body.get("errorCode")
    # A 404 of something else than the Management API is a wrong URL, and 400 is its word for an id of another format.
    if (status == 404 and "statusCode" in body) or (status, code) == (400, "invalid_uri"):
        raise IdentityNotLinked("Auth0 does not know the user", connection=connection)
    hint = {
        401: "it refuses our management token, a new one too: check management_audience",
        403: "grant the application the Management API's scopes read:users and read:user_idp_tokens",
    }.get(status, "")
    said = f" ({code})" if isinstance(code, str) and re.fullmatch("[a-z_]{1,60}", code) else ""
    raise TokenSourceFailed(f"Auth0 user look-up: status {status}{said}", todo=hint)


def _the_one(identities: list[dict[str, Any]], account: str | None, connection: str | None) -> dict[str, Any]:
    """The identity that is meant, never just the first: account linking gives several."""
    if account is not None:
        identities = [identity for identity in identities if _user_id(identity) == account]
    if not identities:
        raise IdentityNotLinked("no such identity", connection=connection)
    if len(identities) > 1:
        accounts = [user_id for identity in identities if (user_id := _user_id(identity))]
        raise IdentityAmbiguous("several identities", accounts=accounts, connection=connection)
    return identities[0]


def _user_id(identity: dict[str, Any]) -> str:
    """The id at the provider: a string, or a number where the provider counts (GitHub)."""
    user_id = identity.get("user_id")
    return str(user_id) if isinstance(user_id, (str, int)) and not isinstance(user_id, bool) else ""
