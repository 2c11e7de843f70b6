"""Who is calling: a `Caller` from the JWT access token of a request (RFC 9068, and older ones by RFC 7519).

Puts the parts together and remembers who was verified. Knows nothing of routes or provider tokens; the parts are
`_bearer` (the token in the request), `_claims` (what it must say), `_jwks` and `_jwk` (the issuer's keys).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypedDict, TypeVar

import httpx
from starlette.requests import HTTPConnection

from idp_middleware._bearer import authorization, check_schemes, token_of
from idp_middleware._claims import (
    Policy,
    check_claims,
    check_header,
    check_leeway,
    media_type,
    refuse,
    scopes,
    string_set,
    text,
    unverified,
)
from idp_middleware._idp_http import IdPClient
from idp_middleware._issuer_check import check_issuer
from idp_middleware._jwk import ALGORITHMS, Key
from idp_middleware._jwks import KeySet
from idp_middleware._types import Caller
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import ConfigurationError, NotMine

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache

MAX_VERIFIED = 10_000
"""Verified tokens that are remembered; the least recently seen is forgotten first. As many that are not ours."""

_T = TypeVar("_T")


class _Where(TypedDict):
    issuer: str
    jwks_url: str | None
    allow_insecure: bool


class _Verified(NamedTuple):
    caller: Caller
    expires: float
    key: Key


class JWTAuthenticator:
    """Verifies the JWT access tokens of one issuer.

    Accepts a token from the request's one `Authorization` field that is signed by a key the issuer publishes now, says
    exactly this `iss`, one of our audiences in `aud`, a `sub`, an `exp` to come, and is not of another kind: ID tokens
    are told by `at_hash` or `c_hash`, logout tokens by `events` or their `typ`, sender-constrained tokens by `cnf`.
    An ID token without those marks looks like an access token, so never make a client id an audience.

    For several issuers, put one of these for each into `AnyOf`. The issuer is looked at before anything else, so a
    token of another one is `NotMine` without asking this one's identity provider, even while that is down.

    A token that was verified is not verified again until it expires, or until its key leaves the issuer's key set. That
    set is fetched again, in the background, by the first request after ten minutes. A key that the issuer has just
    begun to sign with works at once, or within 30 seconds where another unknown key id was asked for shortly before
    (tokens without a key id: within those ten minutes). Keys are kept for as long as no others can be fetched.

    Args:
        issuer: the exact `iss` (RFC 8725 section 3.8), with its trailing slash if it has one (Auth0's do).
        audience: one or several names of this API; the token must be for one of them (RFC 8725 section 3.9).
        jwks_url: where the issuer's keys are; else found by OpenID discovery, and then `issuer` must be a URL.
        algorithms: signature algorithms to accept: RS, PS and ES 256, 384, 512, and EdDSA.
        leeway: tolerance for clocks that differ, in seconds, at most 300.
        scope_claims: claims that hold scopes, as a space-separated string or a list; their union counts. A claim of
            another shape grants nothing.
        schemes: authentication schemes, of `bearer` and `token` (which clients of GitHub's API send).
        types: the `typ` values to accept, for example `("at+jwt",)` where all access tokens are by RFC 9068. By
            default `JWT`, `at+jwt` or none.
        allow_insecure: permit `http://` to hosts that are not loopback.
        transport: replaces the network, for tests and for deployments behind a proxy.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str | Collection[str],
        jwks_url: str | None = None,
        algorithms: Collection[str] = ("RS256",),
        leeway: float = 10.0,
        scope_claims: Collection[str] = ("scope", "scp", "permissions"),
        schemes: Collection[str] = ("bearer",),
        types: Collection[str] | None = None,
        allow_insecure: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        text(issuer, "issuer")
        if jwks_url is not None:
            parse_base_url(jwks_url, "jwks_url", allow_insecure=allow_insecure)
        else:
            parse_base_url(issuer, "issuer", allow_insecure=allow_insecure)
            if "?" in issuer:
                raise ConfigurationError("must not have a query", key="issuer")
        if not string_set(algorithms, "algorithms") <= ALGORITHMS:
            raise ConfigurationError(f"may hold {', '.join(sorted(ALGORITHMS))} only", key="algorithms")
        self._policy = Policy(
            issuer=issuer,
            audience=string_set((audience,) if isinstance(audience, str) else audience, "audience"),
            algorithms=string_set(algorithms, "algorithms"),
            types=None if types is None else frozenset(media_type(each) or "" for each in string_set(types, "types")),
            leeway=check_leeway(leeway),
        )
        self._scope_claims = string_set(scope_claims, "scope_claims") if scope_claims else frozenset()
        self._schemes = check_schemes(schemes)
        self._client = IdPClient(transport=transport)
        self._where: _Where = {"issuer": issuer, "jwks_url": jwks_url, "allow_insecure": allow_insecure}
        self._keys = KeySet(algorithms=self._policy.algorithms, client=self._client, **self._where)
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        # With many tenants, each token passes all those ahead of its own; what it says of its issuer never changes.
        self._others: OrderedDict[bytes, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"JWTAuthenticator(issuer={self._policy.issuer!r}, audience={sorted(self._policy.audience)!r})"

    @property
    def issuer(self) -> str:
        """Who vouches for its callers."""
        return self._policy.issuer

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        """The caller that the request's token speaks for.

        Raises:
            NotMine: there is no token, or it is no JWT, or it names another issuer.
            CallerUnauthenticated: the token is this issuer's by its own account, but not valid.
            TokenSourceUnavailable: the issuer's keys could not be had even once.
        """
        value = authorization(conn.scope["headers"])
        now = time.time()
        self._keys.keep_fresh(now)
        # Of the whole field: what was verified once need not be taken apart again.
        digest = sha256(value).digest()
        verified = self._verified.get(digest)
        if verified is not None:
            if now < verified.expires and verified.key.live:
                self._verified.move_to_end(digest)
                return verified.caller
            del self._verified[digest]
        if digest in self._others:
            self._others.move_to_end(digest)
            raise NotMine("not this issuer's")
        try:
            verified = await self._verify(token_of(value, self._schemes), now)
        except NotMine:
            _remember(self._others, digest, None)
            raise
        _remember(self._verified, digest, verified)
        return verified.caller

    def use_cache(self, cache: TokenCache) -> None:
        """Share the issuer's keys with other workers through `cache`; `IdPMiddleware` calls this with its own."""
        self._keys.shared = cache

    async def check(self) -> str:
        """As `Checkable`: the issuer, its keys and its clock."""
        policy = self._policy
        return await check_issuer(self._client, algorithms=policy.algorithms, leeway=policy.leeway, **self._where)

    async def aclose(self) -> None:
        """Close the connections to the identity provider; a later request opens new ones."""
        await self._keys.aclose()
        await self._client.aclose()

    async def _verify(self, token: bytes, now: float) -> _Verified:
        header, claims = unverified(token)
        # Before the header: what another issuer signs with is not ours to judge.
        expires = check_claims(claims, self._policy, now)
        alg, kid = check_header(header, self._policy)
        keys = await self._keys.find(kid, alg)
        if kid is None and len(keys) > 1:
            refuse("the token names no key, and several fit")
        compact = token.decode()
        for key in keys:
            verified = key.verify(compact, alg, self._policy)
            if verified is not None:
                caller = Caller(
                    subject=verified["sub"],
                    scopes=scopes(verified, self._scope_claims),
                    # Shared by all requests with this token.
                    claims=MappingProxyType(verified),
                    credential=compact,
                )
                return _Verified(caller, expires, key)
        refuse("no key of the issuer has signed this")


def _remember(store: OrderedDict[bytes, _T], digest: bytes, value: _T) -> None:
    store[digest] = value
    if len(store) > MAX_VERIFIED:
        store.popitem(last=False)
