"""The credential of a request: the token in its one `Authorization` field (RFC 6750 section 2.1).

Knows nothing of what a token means. Never looks at the query or the body (sections 2.2, 2.3): those end up in logs,
histories and `Referer`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from idp_middleware.errors import CallerUnauthenticated, ConfigurationError, NotMine

MAX_TOKEN = 16 * 1024
"""Bytes of a token; servers stop at 8 to 64 KiB of header, and some parsers at nothing."""

_SCHEMES = frozenset({"bearer", "token"})


def check_schemes(schemes: Collection[str], key: str = "schemes") -> frozenset[bytes]:
    """The authentication schemes to look for, ready for `bearer_token`.

    `token` is what clients of GitHub's API send. No others: a scheme such as DPoP promises a proof that nobody here
    would check. Raises `ConfigurationError`.
    """
    if isinstance(schemes, str) or not schemes or not all(isinstance(scheme, str) for scheme in schemes):
        raise ConfigurationError("must be a list of strings, and not empty", key=key)
    lowered = frozenset(scheme.lower() for scheme in schemes)
    if not lowered <= _SCHEMES:
        raise ConfigurationError("may hold bearer and token only", key=key)
    return frozenset(scheme.encode() for scheme in lowered)


def bearer_token(headers: Iterable[tuple[bytes, bytes]], schemes: frozenset[bytes]) -> bytes:
    """The token of a request: `token_of` its `authorization`."""
    return token_of(authorization(headers), schemes)


def authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The value of the one `Authorization` field, of any scheme.

    Raises `NotMine`, without an error code, where there is none (RFC 6750 section 3.1); plain `CallerUnauthenticated`
    where it is too long or there are several, since two readers could pick different ones.
    """
    value: bytes | None = None
    for name, candidate in headers:
        # ASGI servers lower-case names, but the specification lets them not to.
        if len(name) == 13 and name.lower() == b"authorization":
            if value is not None:
                raise CallerUnauthenticated("several Authorization fields", error="invalid_request")
            value = candidate
    if value is None:
        raise NotMine("no Authorization field", error=None)
    if len(value) > MAX_TOKEN + 16:
        raise CallerUnauthenticated("the Authorization field is too long")
    return value


def token_of(value: bytes, schemes: frozenset[bytes]) -> bytes:
    """What follows the scheme and exactly one space; not empty, at most `MAX_TOKEN` bytes, otherwise unchecked.

    Raises `NotMine`, without an error code, for another scheme; plain `CallerUnauthenticated` where it is malformed.
    """
    # White space behind a value is no part of it (RFC 9112 section 5.1), though some parsers leave it there.
    scheme, _, token = value.rstrip(b" \t").partition(b" ")
    if scheme.lower() not in schemes:
        raise NotMine("another authentication scheme", error=None)
    if not token or len(token) > MAX_TOKEN:
        raise CallerUnauthenticated("the token is empty or too long")
    return token
