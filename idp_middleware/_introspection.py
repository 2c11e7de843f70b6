"""Who is calling: a `Caller` from an opaque token, by asking the server that issued it (RFC 7662).

Asks, and remembers the answer for a short while; `_introspected` judges it. Knows nothing of routes or provider tokens.
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar
from uuid import uuid4

from starlette.requests import HTTPConnection

from idp_middleware._advice import reaching, shown
from idp_middleware._bearer import bearer_token, check_schemes
from idp_middleware._claims import check_leeway, refuse, scopes, string_set, text, unverified
from idp_middleware._idp_http import Answer, Transport
from idp_middleware._introspected import AnswerPolicy, check_answer, read_answer
from idp_middleware._issuer_check import check_clock, not_an_answer
from idp_middleware._loops import under_way
from idp_middleware._types import Caller, _HoldsSecret
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import (
    CallerUnauthenticated,
    CheckFailed,
    ConfigurationError,
    IdPError,
    NotMine,
    TokenSourceUnavailable,
)
from idp_middleware.sources._client_auth import ClientAuth
from idp_middleware.sources._patient import PatientClient

# All times are in seconds.
MAX_AGE: Final = 60.0  # of an answer: how long a revoked token may still serve
MAX_MAX_AGE: Final = 3600.0
REFUSED_FOR: Final = 2.0  # long enough to spare the server a client that insists, short enough for a slow replica
MAX_REMEMBERED: Final = 10_000

_B64TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")

_T = TypeVar("_T")


class _Accepted(NamedTuple):
    caller: Caller
    asked_at: float
    until: float


class IntrospectionAuthenticator(_HoldsSecret):
    """Asks an authorization server about the opaque tokens that callers send.

    The server has to call the token active, and to name a subject: tokens that clients got for themselves, and whose
    answers have no `sub`, are refused, since no user's provider token goes with them. What the answer says of expiry,
    beginning, issuer and audience has to fit, and what it calls a refresh token or an ID token is refused.

    An answer serves until the token expires and `max_age` at most; a revocation shows after that time, not sooner. No
    answer serves longer because the server is down. Many requests with one token are one question.

    The subject is known under `issuer`, or under the URL of the server where that is not given: a server may not make
    its users another issuer's by what it answers.

    Every token of these schemes is this server's to judge, so in `AnyOf` this comes after the `JWTAuthenticator`s. Only
    with an `issuer` are JWTs that name another one left alone, and not shown to this server.

    Args:
        introspection_url: the introspection endpoint.
        client_id: this API's own client there, sent by HTTP Basic (RFC 6749 section 2.3.1).
        client_secret: its password.
        issuer: the `iss` that answers must have if they have any.
        audience: one or several names of this API, of which answers must name one. Without it, any active token of that
            server is let in, whichever API it was meant for.
        scope_claims: members that hold scopes, as a space-separated string or a list; their union counts.
        schemes: authentication schemes, of `bearer` and `token` (which clients of GitHub's API send).
        leeway: tolerance for clocks that differ, in seconds, at most 300.
        max_age: how long an answer may serve, in seconds, at most an hour; 0 asks with each request.
        allow_insecure: permit `http://` to a host that is not loopback.
        transport: replaces the network.

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    def __init__(
        self,
        *,
        introspection_url: str,
        client_id: str,
        client_secret: str,
        issuer: str | None = None,
        audience: str | Collection[str] | None = None,
        scope_claims: Collection[str] = ("scope", "scp", "permissions"),
        schemes: Collection[str] = ("bearer",),
        leeway: float = 10.0,
        max_age: float = MAX_AGE,
        allow_insecure: bool = False,
        transport: Transport | None = None,
    ) -> None:
        parse_base_url(introspection_url, "introspection_url", allow_insecure=allow_insecure)
        if issuer is not None:
            text(issuer, "issuer")
        if type(max_age) not in (int, float) or not 0 <= max_age <= MAX_MAX_AGE:
            raise ConfigurationError(f"must be 0 to {MAX_MAX_AGE:.0f} seconds", key="max_age")
        self._url = introspection_url
        self._auth = ClientAuth(
            client_id=text(client_id, "client_id"),
            client_secret=text(client_secret, "client_secret"),
            client_auth="basic",
            audience=introspection_url,
        )
        if audience is not None:
            audience = string_set((audience,) if isinstance(audience, str) else audience, "audience")
        self._policy = AnswerPolicy(issuer, audience, check_leeway(leeway))
        self._scope_claims = string_set(scope_claims, "scope_claims") if scope_claims else frozenset()
        self._schemes = check_schemes(schemes)
        self._max_age = max_age
        # Few questions at a time, and two queues: who makes tokens up must not keep those waiting whose token was good.
        self._for_strangers = PatientClient(transport=transport)
        self._for_regulars = PatientClient(transport=transport)
        # By the token's digest alone, since each authenticator has its own: server, client and question are its own too
        # (one cache for several servers was GHSA-4mq7-pvjg-xp2r of Oathkeeper). Apart, so that made-up tokens can't
        # push good ones out.
        self._accepted: OrderedDict[bytes, _Accepted] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._flights: dict[bytes, asyncio.Task[Caller | IdPError]] = {}

    def __repr__(self) -> str:
        return f"IntrospectionAuthenticator(introspection_url={self._url!r}, client_id={self._auth.client_id!r})"

    @property
    def issuer(self) -> str:
        """Who vouches for its callers."""
        return self._policy.issuer or self._url

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        """The caller that the request's token speaks for.

        Raises:
            NotMine: there is no token, or it is a JWT that names another issuer.
            CallerUnauthenticated: the token is malformed, not active, or not good here.
            TokenSourceUnavailable: the server can't be reached, fails, or limits our rate.
            TokenSourceTimeout: the server does not answer in time.
            TokenSourceFailed: the server refuses our client, or answers nonsense.
        """
        token = bearer_token(conn.scope["headers"], self._schemes)
        digest = sha256(token).digest()
        now = time.time()
        known = self._accepted.get(digest)
        if known is not None and known.asked_at <= now < known.until:
            self._accepted.move_to_end(digest)
            return known.caller
        until, reason = self._refused.get(digest, (0.0, ""))
        if until - REFUSED_FOR <= now < until:
            refuse(reason)
        if not _B64TOKEN.fullmatch(token):
            refuse("the token has characters that none has")
        self._leave_others(token)
        return await self._landing(digest, token.decode())

    async def check(self) -> str:
        """As `Checkable`: that the server takes our client, and says of a made-up token that it is not active."""
        where = shown(self._url)
        with reaching(self._url):
            answer = await self._question(self._for_strangers, uuid4().hex)
            if (problem := not_an_answer(answer, self._url)) is not None:
                raise problem
            if answer.status in (401, 403):
                todo = "check client_id and client_secret, and that the server lets this client introspect tokens"
                raise CheckFailed(f"{where} refuses our client (status {answer.status})", todo=todo)
            if answer.status not in (200, 429) and answer.status < 500:
                todo = "check introspection_url: what answers there is no introspection endpoint"
                raise CheckFailed(f"{where} answers with status {answer.status}", todo=todo)
            check_clock(answer, where, self._policy.leeway)
            if read_answer(answer).get("active") is not False:
                todo = "check introspection_url; do not let anybody in by this server"
                raise CheckFailed(
                    f"{where} does not say of a token that was just made up that it is not active", todo=todo
                )
        return f"{where} answers about tokens"

    async def aclose(self) -> None:
        """Break off what is under way and close the connections; a later request opens new ones."""
        flights = [flight for digest in tuple(self._flights) if (flight := self._flying(digest)) is not None]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._for_strangers.aclose()
        await self._for_regulars.aclose()

    def _leave_others(self, token: bytes) -> None:
        """Raises `NotMine` for what says that it is another issuer's: that is nothing to show to this server."""
        issuer = self._policy.issuer
        if issuer is None:
            return
        try:
            _, claims = unverified(token)
        except CallerUnauthenticated:
            return
        if claims.get("iss", issuer) != issuer:
            raise NotMine("from another issuer")

    def _flying(self, digest: bytes) -> asyncio.Task[Caller | IdPError] | None:
        flight = self._flights.get(digest)
        return flight if under_way(flight) else None

    async def _landing(self, digest: bytes, token: str) -> Caller:
        flight = self._flying(digest)
        if flight is None:
            flight = self._flights[digest] = asyncio.create_task(self._ask(digest, token))
            flight.add_done_callback(partial(self._landed, digest))
        # Not awaited as such: a caller who gives up must not take the answer away from the others.
        await asyncio.wait((flight,))
        if flight.cancelled():
            raise TokenSourceUnavailable("shutting down")
        outcome = flight.result()
        if isinstance(outcome, Caller):
            return outcome
        # Each their own: an exception that is raised many times collects everybody's frames.
        raise copy.copy(outcome)

    def _landed(self, digest: bytes, flight: asyncio.Task[Caller | IdPError]) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]

    async def _question(self, client: PatientClient, token: str) -> Answer:
        form = {"token": token, "token_type_hint": "access_token"}
        return await client.request("POST", self._url, headers=self._auth.headers(), form=form)

    async def _ask(self, digest: bytes, token: str) -> Caller | IdPError:
        """Failures are returned: a task's exception is one object for all who wait, or "never retrieved" if none do."""
        now = time.time()
        client = self._for_regulars if digest in self._accepted else self._for_strangers
        try:
            answer = await self._question(client, token)
            said = read_answer(answer)
            expires = check_answer(said, self._policy, now)
        except CallerUnauthenticated as exc:
            self._accepted.pop(digest, None)
            _put(self._refused, digest, (time.time() + REFUSED_FOR, str(exc)))
            return exc
        except IdPError as exc:
            return exc
        caller = Caller(
            subject=said["sub"],
            scopes=scopes(said, self._scope_claims),
            # Shared by all requests with this token.
            claims=MappingProxyType({**said, "iss": self._policy.issuer or self._url}),
            credential=token,
        )
        _put(self._accepted, digest, _Accepted(caller, now, min(expires, now + self._max_age)))
        return caller


def _put(store: OrderedDict[bytes, _T], digest: bytes, value: _T) -> None:
    store[digest] = value
    store.move_to_end(digest)
    if len(store) > MAX_REMEMBERED:
        store.popitem(last=False)
