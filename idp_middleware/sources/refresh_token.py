"""The user's token from a store that the app fills, refreshed with its refresh token (RFC 6749 section 6).

Knows what a token endpoint says to a refresh, and what each vendor makes of the RFC there. That one refresh token is
sent once, and what comes back is not lost, is `_rotation`'s business; where it is kept, the store's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import time
from typing import Any, Final, Unpack

import httpx

from idp_middleware._advice import reaching
from idp_middleware._idp_http import DEFAULT_TIMEOUT, Answer
from idp_middleware._routes import ProxyRoute
from idp_middleware._token_keeper import MAX_AGE
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import (
    CheckFailed,
    ConfigurationError,
    IdentityAmbiguous,
    IdentityNotLinked,
    TokenError,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.sources._checking import check_client, made_up
from idp_middleware.sources._patient import PatientClient
from idp_middleware.sources._revocation import Revocation, take_back
from idp_middleware.sources._rotation import MaybeSpent, Rotation, Withdrawn, is_fresh, serves
from idp_middleware.sources._token_endpoint import ClientOptions, GrantRefused, TokenEndpoint, bearer_token
from idp_middleware.stores import Entry, SQLAlchemyTokenStore, SQLiteTokenStore, StoredToken, TokenKey, TokenStore

log: logging.Logger = logging.getLogger("idp_middleware.tokens")

_WITHDRAWN: Final = frozenset(
    {
        "invalid_grant",  # RFC 6749 section 5.2; Atlassian says it with status 403
        "bad_refresh_token",  # GitHub, with status 200
        "invalid_refresh_token",  # Slack, with status 200 and "ok": false
        "Invalid refresh token",  # Twitch, as "message"
        "BAD_REFRESH_TOKEN",  # HubSpot, as "status"
    }
)
"""What says that the user has to connect the account again; anything else is about us, or passes."""

_AS_BEARER: Final = frozenset({"", "bearer", "bot", "user"})
"""Types of tokens that are sent as bearer tokens, in lower case. Atlassian and LinkedIn name none; Slack tells by it
whom the token stands for."""

_HINTS: Final = {
    "invalid_client": "check client_id and its secret or key, and how the server wants them (client_auth)",
    "unauthorized_client": "the client is not allowed to refresh tokens",
}


class RefreshToken(_HoldsSecret):
    """The user's token from a store, for apps that run the login at the provider themselves.

    Serves the stored access token while it is valid, and refreshes it a minute before it expires, or when the provider
    has refused it. Of all processes that share the store, one refreshes; the others wait for what it stores. Only what
    the provider says of the refresh token itself is final (`reconnect-required`, until the app puts a new token); any
    other failure passes, and a token that is still valid serves through it.

    With `reuse_is_fatal`, a refresh token that may have been spent is not sent again: where the process that sent it
    was killed, or the connection broke before the answer. The access token then serves until it expires, and the user
    has to reconnect. Turn that off for a provider whose refresh tokens may be sent again: Google, Microsoft, Dropbox.

    Args:
        store: a `TokenStore`; or the path of a `SQLiteTokenStore`'s file; or the URL for a `SQLAlchemyTokenStore`.
        token_url: the provider's token endpoint.
        client_id: the app there.
        encryption_keys: of the store, where it is given by its path or URL.
        reuse_is_fatal: as above.
        revocation_url: where the provider takes tokens back (RFC 7009), such as `https://oauth2.googleapis.com/revoke`;
            or GitHub's `https://api.github.com/applications/{client_id}/grant`.
        connect_url: the app's page where a user connects an account, for whoever has to.
        client: `ClientOptions`, such as the `client_secret`. Twice what `timeout` allows a request, a refresh that was
            broken off by `kill -9` keeps the others waiting.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    needs_connection = True

    def __init__(
        self,
        *,
        store: TokenStore | str,
        token_url: str,
        client_id: str,
        encryption_keys: Sequence[str] | Sequence[bytes] = (),
        reuse_is_fatal: bool = True,
        revocation_url: str | None = None,
        connect_url: str | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        self._endpoint = TokenEndpoint(token_url, client_id=client_id, **client)
        timeout = client.get("timeout", DEFAULT_TIMEOUT)
        self._endpoint.http = _Telling(transport=client.get("transport"), timeout=timeout)
        self._within = timeout.connect + timeout.read + timeout.write
        self._revocation: Revocation | None = None
        if revocation_url is not None:
            self._revocation = Revocation(
                revocation_url,
                self._endpoint.auth,
                allow_insecure=client.get("allow_insecure", False),
                transport=client.get("transport"),
                timeout=timeout,
            )
        self._owned: SQLiteTokenStore | SQLAlchemyTokenStore | None = None
        if isinstance(store, str):
            store = self._owned = _opened(store, encryption_keys)
        elif encryption_keys:
            raise ConfigurationError("are the store's, which has them already", key="encryption_keys")
        self._store = store
        self.connect_url = connect_url
        self._rotation = Rotation(
            store, self._exchange, self._at_provider, lasts=2 * self._within, reuse_is_fatal=reuse_is_fatal
        )

    @property
    def identity(self) -> tuple[str, ...] | None:
        """What the tokens depend on besides the user; None for a store that does not say which it is."""
        store: tuple[str, ...] | None = getattr(self._store, "identity", None)
        return None if store is None else ("refresh-token", self._endpoint.url, self._endpoint.client_id, *store)

    def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str | None, ...]:  # noqa: ARG002
        """The same tokens for a user whatever scopes the caller's own token has."""
        return (caller.issuer, caller.subject, caller.account)

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        """The user's access token, refreshed if need be.

        What the app puts and deletes is seen within `MAX_AGE` seconds in every process: no token claims to live longer.

        Raises:
            IdentityNotLinked: nothing in the store for this user and connection, or not for `caller.account`.
            ReconnectRequired: the provider has withdrawn it, or the refresh token may be spent.
            IdentityAmbiguous: several accounts, and `caller.account` names none.
            TokenSourceUnavailable, TokenSourceTimeout, TokenSourceFailed: store or provider gave no answer, or not a
                usable one.
        """
        key = TokenKey(
            issuer=caller.issuer, subject=caller.subject, connection=route.connection or "", account=caller.account
        )
        turned_down = None if refused is None else refused.value
        try:
            entry = _the_one(await self._store.get(key), route.connection)
            if not is_fresh(entry, turned_down):
                entry = await self._renewed(entry, turned_down)
        except IdentityNotLinked as exc:
            exc.connect_url = self.connect_url
            raise
        token, latest = entry.token, time() + MAX_AGE
        expires_at = None if token.expires_at is None else min(token.expires_at, latest)
        return Token(
            token.access_token, expires_at, token.type, frozenset(token.scopes), token.extra, entry.key.account
        )

    async def revoke(self, caller: Caller, route: ProxyRoute) -> None:
        """Take the user's tokens back at the provider, where there is a `revocation_url`, and delete them.

        Nothing stored is nothing to do. Where the provider does not answer, the tokens are not given out any more, but
        stay in the store so that they can be taken back another time.

        Raises:
            IdentityAmbiguous: several accounts, and `caller.account` names none.
            TokenSourceUnavailable, TokenSourceTimeout, TokenSourceFailed: store or provider gave no answer, or refused.
        """
        key = TokenKey(
            issuer=caller.issuer, subject=caller.subject, connection=route.connection or "", account=caller.account
        )
        entries = await self._store.get(key)
        if entries:
            entry = _the_one(entries, route.connection)
            # One request for each of the two tokens.
            await take_back(self._store, entry.key, self._at_provider, lasts=2 * self._within)

    async def _at_provider(self, token: StoredToken) -> None:
        if self._revocation is not None:
            await self._revocation.revoke(access_token=token.access_token, refresh_token=token.refresh_token)

    async def _renewed(self, entry: Entry, refused: str | None) -> Entry:
        try:
            return await self._rotation.renewed(entry.key, refused)
        except IdentityNotLinked:
            raise
        except TokenError as exc:
            if not serves(entry, refused):
                raise
            log.warning("no refresh yet of a token of %r that still serves: %s", entry.key.connection, exc)
            return entry

    async def check(self) -> str:
        """As `Checkable`: the store is read, and a made-up refresh token sent to the provider."""
        try:
            await self._store.get(TokenKey(issuer="", subject=made_up(), connection=""))
        except TokenError as exc:
            todo = "check store, that this process may use it, and its encryption_keys"
            raise CheckFailed(f"the token store: {exc}", todo=todo) from None
        fields = {"grant_type": "refresh_token", "refresh_token": made_up()}
        try:
            return await check_client(self._endpoint, fields, _HINTS, fine=_WITHDRAWN)
        except MaybeSpent as exc:
            failure = exc.error
        # Out here, so that it keeps what is behind it.
        with reaching(self._endpoint.url):
            raise failure

    async def aclose(self) -> None:
        """Let refreshes under way come to an end, then close the connections, and a store given by its path or URL."""
        await self._rotation.aclose()
        await self._endpoint.aclose()
        if self._revocation is not None:
            await self._revocation.aclose()
        if self._owned is not None:
            await self._owned.aclose()

    def __repr__(self) -> str:
        return f"RefreshToken(token_url={self._endpoint.url!r}, client_id={self._endpoint.client_id!r})"

    async def _exchange(self, token: StoredToken) -> StoredToken:
        """One refresh, as `Rotation` wants it."""
        asked_at = time()
        fields = {"grant_type": "refresh_token", "refresh_token": token.refresh_token or ""}
        try:
            async with asyncio.timeout(self._within):
                answer = await self._endpoint.grant(fields)
        except GrantRefused as exc:
            said = {exc.answer.get(name) for name in ("error", "message", "status") if _is_text(exc.answer.get(name))}
            if said & _WITHDRAWN:
                raise Withdrawn(str(exc)) from None
            raise exc.explained(_HINTS.get(exc.code)) from None
        except TimeoutError:
            raise MaybeSpent(TokenSourceTimeout("no refresh in time")) from None
        try:
            return _refreshed(token, answer, asked_at)
        except TokenSourceFailed as exc:
            raise MaybeSpent(exc) from None


class _Telling(PatientClient):
    """Tells an answer that was lost from a request that cannot have arrived."""

    async def request(self, method: str, url: str, **options: Any) -> Answer:
        """As `PatientClient.request`. Raises `MaybeSpent` where the request may have arrived without a clear answer."""
        try:
            answer = await super().request(method, url, **options)
            if answer.status < 300:
                answer.json()
        except TokenError as exc:
            # `from None` keeps a cause out of the log, not out of reach. A rate limit, an answer, has none.
            before = isinstance(exc.__context__, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
            if before or (exc.__context__ is None and isinstance(exc, TokenSourceUnavailable)):
                raise
            raise MaybeSpent(exc) from None
        return answer


def _refreshed(old: StoredToken, answer: Mapping[str, Any], asked_at: float) -> StoredToken:
    """The answer, with what it leaves out as it was (RFC 6749 sections 5.1 and 6).

    Raises `TokenSourceFailed` where it holds no usable token.
    """
    kind = answer.get("token_type", "")
    as_bearer = isinstance(kind, str) and kind.lower() in _AS_BEARER
    scope = answer.get("scope")
    if isinstance(scope, list) and all(map(_is_text, scope)):
        scope = " ".join(scope)  # Twitch
    token = bearer_token({**answer, "token_type": "bearer" if as_bearer else kind, "scope": scope}, asked_at)
    refresh_token = answer.get("refresh_token")
    return replace(
        old,
        access_token=token.value,
        refresh_token=refresh_token if _is_text(refresh_token) and refresh_token else old.refresh_token,
        expires_at=token.expires_at,
        scopes=token.scopes if scope is not None else old.scopes,
        extra={**{name: answer.get(name, value) for name, value in old.extra.items()}, **token.extra},
    )


def _the_one(entries: Sequence[Entry], connection: str | None) -> Entry:
    if not entries:
        raise IdentityNotLinked("nothing in the store", connection=connection)
    if len(entries) > 1:
        accounts = sorted(entry.key.account for entry in entries if entry.key.account is not None)
        raise IdentityAmbiguous("several accounts in the store", accounts=accounts, connection=connection)
    return entries[0]


def _opened(store: str, encryption_keys: Sequence[str] | Sequence[bytes]) -> SQLiteTokenStore | SQLAlchemyTokenStore:
    try:
        if "://" in store:
            return SQLAlchemyTokenStore(store, encryption_keys=encryption_keys)
        return SQLiteTokenStore(store, encryption_keys=encryption_keys)
    except ConfigurationError as exc:
        key = exc.key if exc.key == "encryption_keys" else "store"
        raise ConfigurationError(exc.message, key=key) from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)
