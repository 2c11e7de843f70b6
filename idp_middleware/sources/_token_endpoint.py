"""The one place that POSTs to a token endpoint and reads the answer (RFC 6749 sections 5.1 and 5.2).

Knows what an answer says, not what a grant is about: a source that needs more than the access token reads it from the
answer, and one that sent a user's grant turns `GrantRefused` with the code "invalid_grant" into `ReconnectRequired`.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypedDict, Unpack
from urllib.parse import quote, quote_plus

from idp_middleware._idp_http import DEFAULT_TIMEOUT, Transport
from idp_middleware._types import Timeout, Token, _HoldsSecret
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import ConfigurationError, TokenSourceFailed, TokenSourceUnavailable
from idp_middleware.sources._client_auth import ClientAuth
from idp_middleware.sources._patient import PatientClient

_PART: Final = 8
"""Characters of a secret by which it is recognised where it is repeated in part."""

MAX_LIFE: Final = 365 * 24 * 3600.0
"""Seconds; what claims to live longer is believed no further."""

_SECRET_FIELDS = frozenset(
    {"client_secret", "client_assertion", "assertion", "subject_token", "actor_token", "refresh_token", "token", "code"}
)

_EXTRA: Final = ("instance_url",)
"""What of an answer goes with its token: Salesforce tells by it which server the token is for."""

Fields: TypeAlias = Mapping[str, str | Sequence[str]]
"""Parameters of a request; one with several values is sent as often (RFC 8693 section 2.1)."""


class ClientOptions(TypedDict, total=False):
    """What every source that asks a token endpoint takes besides its own arguments.

    `client_secret`, `client_auth`, `private_key` and `key_id` are as `ClientAuth` describes them. `issuer`: the
    server's name (RFC 8414 section 2), where statements signed with `private_key` have to be for that rather than for
    the endpoint. `allow_insecure`: permit `http://` to a host that is not loopback. `transport`: replaces the network.
    `timeout`: bounds on waiting for the server; `pool` is the wait for a turn, as ten requests go to it at a time.
    """

    client_secret: str | None
    client_auth: str
    private_key: str | None
    key_id: str | None
    issuer: str | None
    allow_insecure: bool
    transport: Transport | None
    timeout: Timeout


class GrantRefused(TokenSourceFailed):
    """The token endpoint said no; `code` is its `error` (RFC 6749 section 5.2 has the standard ones).

    `answer` is all it said, for the source to look into: it may hold what must not be shown.
    """

    def __init__(self, message: str = "", *, code: str = "", answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.answer = answer or {}

    def explained(self, hint: str | None) -> TokenSourceFailed:
        """The same for the operator's log, with what to do about it, and without the answer."""
        return TokenSourceFailed(str(self), todo=hint or "")


class TokenEndpoint(_HoldsSecret):
    """A token endpoint, our credentials there and the pace it sets.

    Args:
        url: of the endpoint.
        key: what a mistake in `url` is told under.
        client_id: the client.
        audience: whom a signed statement is for; default the endpoint.
        thumbprint: see `ClientAuth`.
        options: `ClientOptions`.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        key: str = "token_url",
        audience: str | None = None,
        thumbprint: bool = False,
        **options: Unpack[ClientOptions],
    ) -> None:
        if unknown := options.keys() - ClientOptions.__annotations__.keys():
            raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
        parse_base_url(url, key, allow_insecure=options.get("allow_insecure", False))
        self.url = url
        self.auth: ClientAuth = ClientAuth(
            client_id=client_id,
            client_secret=options.get("client_secret"),
            client_auth=options.get("client_auth", "post"),
            private_key=options.get("private_key"),
            key_id=options.get("key_id"),
            audience=options.get("issuer") or audience or url,
            thumbprint=thumbprint,
        )
        self.http: PatientClient = PatientClient(
            transport=options.get("transport"), timeout=options.get("timeout", DEFAULT_TIMEOUT)
        )
        self.client_id: str = self.auth.client_id

    async def grant(self, fields: Fields, *, url: str | None = None, as_json: bool = False) -> dict[str, Any]:
        """As `request_grant`; `url` is another endpoint of the same server."""
        return await request_grant(self.http, url or self.url, fields, auth=self.auth, as_json=as_json)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()


def server_url(url: str, key: str, *, allow_insecure: bool = False) -> str:
    """The URL that a server's endpoints are under, without a slash at the end. Raises `ConfigurationError`."""
    _, _, query = parse_base_url(url, key, allow_insecure=allow_insecure)
    if query:
        raise ConfigurationError("must not have a query", key=key)
    return url.rstrip("/")


async def request_grant(
    client: PatientClient, url: str, fields: Fields, *, auth: ClientAuth | None = None, as_json: bool = False
) -> dict[str, Any]:
    """The JSON of a successful answer.

    Sends a form as the RFC has it, or JSON where a vendor documents that; `auth` adds our credentials.

    Raises:
        GrantRefused: an error answer, HTTP 200 with an `error` included (GitHub).
        TokenSourceUnavailable: unreachable, rate limited, or a server error.
        TokenSourceTimeout: no answer in time.
        TokenSourceFailed: not an answer of a token endpoint.
    """
    own: Mapping[str, str] = {}

    def body() -> Fields:
        nonlocal own
        own = auth.fields() if auth else {}
        return {**fields, **own}

    headers = auth.headers() if auth else {}
    answer = await client.request("POST", url, headers=headers, **({"json": body} if as_json else {"form": body}))
    if answer.status == 429 or answer.status >= 500:
        raise TokenSourceUnavailable(f"token endpoint: status {answer.status}", retry_after=answer.retry_after())
    told = answer.json()
    if answer.status != 200 or told.get("error") is not None:
        secrets = [value for name, value in {**fields, **own}.items() if name in _SECRET_FIELDS]
        if auth is not None and auth.secret is not None:
            secrets += [auth.secret, *headers.values()]
        code = _quotable(told.get("error"), 80, secrets)
        description = _quotable(told.get("error_description"), 300, secrets)
        why = f"status {answer.status}, {code or 'no error code'}{description and f' ({description})'}"
        raise GrantRefused(f"token endpoint: {why}", code=code, answer=told)
    return told


def bearer_token(answer: Mapping[str, Any], asked_at: float) -> Token:
    """The access token of an answer of `request_grant`, whose life counts from `asked_at` (seconds since the epoch).

    `expires_in` is what a server makes of "a number of seconds": a string, a float, nothing. One that is not above zero
    serves those who wait for it and nobody else; one that can't be understood is unknown.

    Raises:
        TokenSourceFailed: no token, one that can't stand in a header, or one that is not used as a bearer token.
    """
    # A client must not use a token of a type it does not understand (RFC 6749 section 7.1); case does not matter (5.1).
    kind = answer.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenSourceFailed("token endpoint: the token_type is not Bearer")
    life = _seconds(answer.get("expires_in"))
    scope = answer.get("scope")
    # Some separate scopes with commas (GitHub, Auth0's Token Vault).
    scopes = frozenset(filter(None, re.split("[ ,]+", scope))) if isinstance(scope, str) else frozenset()
    extra = {name: answer[name] for name in _EXTRA if isinstance(answer.get(name), str)}
    try:
        return Token(answer["access_token"], None if life is None else asked_at + life, scopes=scopes, extra=extra)
    except (KeyError, TypeError, ValueError):
        raise TokenSourceFailed("token endpoint: no usable access_token") from None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_LIFE)


def _quotable(value: object, longest: int, secrets: Iterable[str | Sequence[str]]) -> str:
    """What an operator needs most of an answer, without any secret of ours that it repeats."""
    if not isinstance(value, str):
        return ""
    # A mask is shorter than what it hides.
    text = _masked(value[: 4 * longest], {secret for secret in secrets if isinstance(secret, str) and secret})
    return re.sub("[^ -~]", " ", text)[:longest]


def _masked(text: str, secrets: Iterable[str]) -> str:
    """`text` with `***` for all that is recognisably part of a secret: servers cut off what they repeat."""
    spelled = {form for secret in secrets for form in _spellings(secret)}
    parts = {form[at : at + _PART] for form in spelled for at in range(len(form) - _PART + 1)}
    hidden = {at + n for at in range(len(text)) if text[at : at + _PART] in parts for n in range(_PART)}
    text = "".join("\0" if at in hidden else character for at, character in enumerate(text))
    for form in spelled:
        if len(form) < _PART:
            text = text.replace(form, "\0")
    return re.sub("\0+", "***", text)


def _spellings(secret: str) -> set[str]:
    """As it is, and as what repeats a request may have it: in a form, in JSON, in HTML."""
    percent, plus, in_json = quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]
    lower = [re.sub("%..", lambda escape: escape[0].lower(), each) for each in (percent, plus)]
    slashed = in_json.replace("/", "\\/")
    return {secret, quote(secret), percent, plus, *lower, in_json, slashed, html.escape(secret)}
