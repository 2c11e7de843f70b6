"""Several ways in, one after the other: who says "not mine" passes the request on, anybody else decides it.

Knows the protocol of an authenticator and nothing of what each of them looks at.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from idp_middleware._types import Authenticator, AuthenticatorLike, Caller
from idp_middleware.errors import ConfigurationError, NotMine

if TYPE_CHECKING:
    from idp_middleware._cache import TokenCache


class AnyOf:
    """The caller by the first of several authenticators that the request has something for.

    In the order given, each is asked until one does not raise `errors.NotMine`; its caller or its refusal is the
    answer. So an expired token is a 401 even where the same request has a session, and of a token and a session the one
    whose authenticator comes first decides.

    Put the particular before the general: `JWTAuthenticator` for each issuer, then `IntrospectionAuthenticator` (which
    takes every token of its scheme to its server), then `SessionAuthenticator`. Such a set is as strong as its weakest,
    since whoever attacks chooses what to send.

    Args:
        authenticators: each an `Authenticator`, or an async function from a connection to a `Caller`.

    Raises:
        ConfigurationError: there is none, or one of them is neither.
    """

    def __init__(self, *authenticators: AuthenticatorLike) -> None:
        if not authenticators:
            raise ConfigurationError("needs at least one", key="authenticator")
        self.authenticators: tuple[Authenticator, ...] = tuple(map(as_authenticator, authenticators))

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.authenticators))})"

    async def authenticate(self, conn: HTTPConnection) -> Caller:
        """The caller that the first authenticator with something to go by makes out.

        Raises:
            NotMine: none has anything to go by; the answer then names every scheme that would do.
            IdPError: as the authenticator raises it whose credential the request has.
        """
        refusals: list[NotMine] = []
        for authenticator in self.authenticators:
            try:
                return await authenticator.authenticate(conn)
            except NotMine as refusal:
                refusals.append(refusal)
        raise _Nobodys(refusals)

    def use_cache(self, cache: TokenCache) -> None:
        """Pass the shared cache on to those that can use one."""
        for authenticator in self.authenticators:
            if (use_cache := getattr(authenticator, "use_cache", None)) is not None:
                use_cache(cache)

    async def aclose(self) -> None:
        """Close the connections of all that have any."""
        for authenticator in self.authenticators:
            if (aclose := getattr(authenticator, "aclose", None)) is not None:
                await aclose()


class _Nobodys(NotMine):
    """All said "not mine". One challenge for each scheme; where a token was sent, the one that tells what is wrong."""

    def __init__(self, refusals: Sequence[NotMine]) -> None:
        told = next((refusal for refusal in refusals if refusal.error is not None), refusals[0])
        super().__init__("; ".join(dict.fromkeys(map(str, refusals))), error=told.error, scheme=told.scheme)
        self._challenges: dict[str, str] = {}
        for refusal in sorted(refusals, key=lambda refusal: refusal.error is None):
            for name, value in refusal.headers():
                if name == "www-authenticate":
                    self._challenges.setdefault(refusal.scheme, value)

    def headers(self) -> list[tuple[str, str]]:
        # One field with a list in it (RFC 9110 section 11.6.1), since not everybody keeps two of a name apart.
        return [("www-authenticate", ", ".join(self._challenges.values()))]


class _FunctionAuthenticator:
    """A plain async function as an `Authenticator`."""

    def __init__(self, function: Any) -> None:
        self.authenticate = function


def as_authenticator(authenticator: AuthenticatorLike) -> Authenticator:
    """What has the method, or a plain async function that gets it. Raises `ConfigurationError`."""
    if hasattr(authenticator, "authenticate") and not isinstance(authenticator, type):
        return authenticator
    if inspect.iscoroutinefunction(authenticator) or inspect.iscoroutinefunction(
        getattr(authenticator, "__call__", None)  # noqa: B004
    ):
        return _FunctionAuthenticator(authenticator)
    raise ConfigurationError("must have an async method authenticate(), or be an async function", key="authenticator")
