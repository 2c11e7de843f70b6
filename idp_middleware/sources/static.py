"""Tokens that are there already: a fixed one, and the caller's own. Know no HTTP."""

from __future__ import annotations

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller, Token, _HoldsSecret
from idp_middleware.errors import ConfigurationError, TokenSourceFailed


class Static(_HoldsSecret):
    """One token for everybody: a service's API key, or a stand-in for a test.

    Args:
        value: the token, or its value alone (sent as `Bearer`).

    Raises:
        ConfigurationError: a value that can't stand in a header.
    """

    def __init__(self, value: str | Token) -> None:
        try:
            self._token = value if isinstance(value, Token) else Token(value)
        except (ValueError, TypeError):
            raise ConfigurationError("must be visible ASCII, since it becomes a header", key="value") from None

    at_hand = True
    """Nobody is asked."""

    def cache_key(self, caller: Caller, route: ProxyRoute) -> None:  # noqa: ARG002
        """Nothing to keep."""
        return None

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """The token, refused or not: there is no other."""
        return self._token


class PassThrough:
    """The caller's own credential, sent on as it came.

    Only for an upstream that the credential is meant for: the same audience, the same people who run it. Anybody else
    could use it against this app (RFC 9700 section 4.9, access token leakage at the resource server).
    """

    at_hand = True
    """Nobody is asked."""

    def cache_key(self, caller: Caller, route: ProxyRoute) -> None:  # noqa: ARG002
        """Never kept: each request brings its own."""
        return None

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:  # noqa: ARG002
        """The caller's credential. Raises `errors.TokenSourceFailed` where the authenticator hands none over."""
        if caller.credential is None:
            raise TokenSourceFailed("the caller comes with no credential to pass on, as a session's or a job's does")
        return Token(caller.credential)
