"""What sources share that hand the caller's own token to the identity provider and get another one for it.

Knows whose the answer is and what a refusal of the caller's token means; nothing of endpoints.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from idp_middleware._routes import ProxyRoute
from idp_middleware._types import Caller
from idp_middleware.errors import CallerUnauthenticated, IdentityNotLinked, TokenSourceFailed
from idp_middleware.sources._token_endpoint import GrantRefused

_REFUSED: Final = frozenset({"expired_token", "invalid_grant", "invalid_token"})

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a type
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - likewise


def credential(caller: Caller) -> str:
    """The caller's token. Raises `TokenSourceFailed` where there is none: as of a session or a job."""
    if caller.credential is None:
        raise TokenSourceFailed("the caller comes with no credential to exchange, as a session's or a job's does")
    return caller.credential


def credential_key(caller: Caller) -> tuple[str | None, ...]:
    """A cache key for what was given in exchange for this very token of the caller.

    What comes back may be narrowed by the scopes of the token that was sent, and by much else in it: the client, the
    session, a second factor. So one token's answer never serves another, be it the same user's (as in Microsoft's own
    libraries, which keep such tokens under a digest of the assertion).
    """
    digest = None if caller.credential is None else sha256(caller.credential.encode()).hexdigest()
    return (caller.issuer, caller.subject, caller.account, digest)


def refuse_account(caller: Caller, route: ProxyRoute) -> None:
    """Raises `IdentityNotLinked` where the request names an account, for sources that can't tell accounts apart.

    To act on whichever there is could be to act on another than was meant.
    """
    if caller.account is not None:
        raise IdentityNotLinked("this source can't tell accounts apart", connection=route.connection)


def caller_refused(refused: GrantRefused) -> CallerUnauthenticated | None:
    """A 401 for the caller, where the error can only be about the token that the caller brought.

    It was good a moment ago, so its session has ended or it was revoked; a new one mends that. `invalid_request` is
    not such an error, though RFC 8693 section 2.2.2 allows it: it is also what a mistake in the set-up gets, which no
    new token mends.
    """
    return CallerUnauthenticated(str(refused)) if refused.code in _REFUSED else None
