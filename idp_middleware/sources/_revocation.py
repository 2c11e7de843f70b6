"""Taking a user's tokens back: at the provider (RFC 7009, and what GitHub has in its place), and out of the store.

Knows revocation endpoints and the store's claims; not why anything is taken back.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from secrets import token_hex
from time import monotonic, time
from typing import Final
from urllib.parse import urlsplit

from idp_middleware._idp_http import DEFAULT_TIMEOUT, Answer, Transport
from idp_middleware._types import Timeout, _HoldsSecret
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import ConfigurationError, TokenSourceFailed, TokenSourceUnavailable
from idp_middleware.sources._client_auth import ClientAuth
from idp_middleware.sources._patient import PatientClient
from idp_middleware.sources._rotation import PATIENCE_WITH_OTHERS, POLL, ended, time_left
from idp_middleware.stores import Claim, Entry, StoredToken, TokenKey, TokenStore

_NOTHING_LEFT: Final = frozenset(
    {
        "invalid_token",  # Google, with status 400, where the RFC has 200
        "unsupported_token_type",  # RFC 7009 section 2.2.1: its access tokens simply expire
    }
)


class Revocation(_HoldsSecret):
    """A provider's revocation endpoint.

    Args:
        url: of the endpoint. One that ends as GitHub's do (`/applications/{client_id}/grant` or `/token`) is asked as
            GitHub wants it (https://docs.github.com/rest/apps/oauth-applications).
        auth: our credentials.
        allow_insecure, transport, timeout: as in `ClientOptions`.

    Raises:
        ConfigurationError: naming `revocation_url`.
    """

    def __init__(
        self,
        url: str,
        auth: ClientAuth,
        *,
        allow_insecure: bool = False,
        transport: Transport | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> None:
        parse_base_url(url, "revocation_url", allow_insecure=allow_insecure)
        self._url = url
        self._auth = auth
        self._githubs = bool(
            re.search(f"/applications/{re.escape(auth.client_id)}/(?:grant|token)$", urlsplit(url).path)
        )
        if self._githubs and auth.secret is None:
            raise ConfigurationError("is GitHub's, which takes a client_secret only", key="revocation_url")
        self._http = PatientClient(transport=transport, timeout=timeout)

    async def revoke(self, *, access_token: str | None, refresh_token: str | None) -> None:
        """Take back both, the refresh token first; what is not good any more is no error.

        Raises:
            TokenSourceUnavailable, TokenSourceTimeout, TokenSourceFailed: they may still be good.
        """
        if self._githubs:
            if access_token is not None:
                await self._at_github(access_token)
            return
        # Both, since not every server ends the one with the other (RFC 7009 section 2.1).
        for token, kind in ((refresh_token, "refresh_token"), (access_token, "access_token")):
            if token is not None:
                await self._post(token, kind)

    async def _post(self, token: str, kind: str) -> None:
        answer = await self._http.request(
            "POST",
            self._url,
            headers=self._auth.headers(),
            form=lambda: {"token": token, "token_type_hint": kind, **self._auth.fields()},
        )
        if answer.status >= 300:
            code = _code(answer)
            if code not in _NOTHING_LEFT:
                raise _refused(answer, code)

    async def _at_github(self, token: str) -> None:
        pair = base64.b64encode(f"{self._auth.client_id}:{self._auth.secret}".encode()).decode()
        answer = await self._http.request(
            "DELETE", self._url, headers={"authorization": f"Basic {pair}"}, json={"access_token": token}
        )
        # 404 and 422 are what it says of a token that is none of the app's, or not any more.
        if answer.status >= 300 and answer.status not in (404, 422):
            raise _refused(answer, "")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _code(answer: Answer) -> str:
    try:
        code = answer.json().get("error")
    except TokenSourceFailed:
        return ""
    return code if isinstance(code, str) and re.fullmatch("[a-z_]{1,60}", code) else ""


def _refused(answer: Answer, code: str) -> TokenSourceFailed | TokenSourceUnavailable:
    what = f"revocation endpoint: status {answer.status}{code and ', '}{code}"
    if answer.status >= 500:
        return TokenSourceUnavailable(what, retry_after=answer.retry_after())
    return TokenSourceFailed(what)


async def take_back(
    store: TokenStore, key: TokenKey, revoke: Callable[[StoredToken], Awaitable[None]], *, lasts: float
) -> None:
    """Revoke what is stored under `key`, and forget it. From before the provider is asked on, nobody gets it any more.

    A refresh under way is waited for, or what it brings would outlive this; where one comes back later than that, what
    it brings is revoked, too. Where `revoke` fails, the entry stays as one that is to be revoked. What a login brings
    meanwhile is none of this. `lasts` is how long `revoke` may take, in seconds.

    Raises what `revoke` does, and `TokenSourceUnavailable` where the refresh takes too long.
    """
    give_up, begun = monotonic() + PATIENCE_WITH_OTHERS, False
    while (entry := await _look(store, key)) is not None:
        # Of one that is to be revoked, only a login makes one that is not.
        if begun and not entry.revoked:
            return
        begun = entry.revoked
        wait = 0.0 if entry.claim is None else time_left(entry.claim)
        if wait > 0:
            if monotonic() >= give_up:
                raise TokenSourceUnavailable("it is being refreshed", retry_after=wait)
            await asyncio.sleep(POLL * random.uniform(0.5, 1.5))  # noqa: S311 - spreads looks, hides nothing
            continue
        claim = Claim(owner=token_hex(16), at=time(), lasts=lasts)
        claimed = await store.compare_and_swap(replace(entry, claim=claim, withdrawn=True))
        if claimed is None:
            continue
        begun = True
        try:
            await revoke(claimed.token)
        except BaseException:
            await store.compare_and_swap(replace(claimed, claim=ended(claim)))
            raise
        await store.delete(key, version=claimed.version)


async def _look(store: TokenStore, key: TokenKey) -> Entry | None:
    return next((entry for entry in await store.get(key) if entry.key == key), None)
