"""What is asked of a JWT before its signature is: shape, header and claims (RFC 7519, RFC 8725, RFC 9068).

Pure functions on bytes and dicts: knows nothing of keys, HTTP or JWT libraries. All of it is cheap beside a signature,
so a flood of forged tokens costs little. Every refusal is `CallerUnauthenticated` with a fixed text: what a token says
is never repeated. What is no JWT, or another issuer's, is refused as `NotMine`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from idp_middleware.errors import CallerUnauthenticated, ConfigurationError, NotMine

MAX_KID = 256
"""Characters of a key id; the longest in use are hex thumbprints."""

MAX_LEEWAY = 300.0
"""Seconds that clocks may differ; more would be a longer life for expired tokens."""

MAX_DATE = 253_402_300_799
"""9999-12-31 in seconds since the epoch. Also refuses dates in milliseconds, which would be valid for millennia."""

# No padding: RFC 7515 section 2 has base64url without it.
_COMPACT = re.compile(rb"([A-Za-z0-9_-]++)\.([A-Za-z0-9_-]++)\.[A-Za-z0-9_-]++")
_SCOPE = re.compile(r"[!#-\[\]-~]+")

# By these claims other tokens of the same issuer give themselves away (RFC 8725 section 3.12): ID tokens (OpenID
# Connect Core sections 3.1.3.6, 3.3.2.11), logout and other event tokens (RFC 8417 section 2.2). Not `nonce`: older
# Keycloaks put it into access tokens too. Sender-constrained tokens (`cnf`, RFC 7800) are worth nothing without the
# proof that a plain Bearer lacks (RFC 9449 section 7.2, RFC 8705 section 3).
_FOREIGN = frozenset({"at_hash", "c_hash", "events", "cnf"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What a token must say. `types` None accepts no `typ`, `JWT` and `at+jwt`; `leeway` is in seconds."""

    issuer: str
    audience: frozenset[str]
    algorithms: frozenset[str]
    types: frozenset[str] | None
    leeway: float


def refuse(reason: str) -> NoReturn:
    raise CallerUnauthenticated(reason)


def unverified(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, as they stand; nobody has vouched for them yet."""
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise NotMine("not a signed JWT in compact form")
    return _json_object(match[1]), _json_object(match[2])


def check_header(header: dict[str, Any], policy: Policy) -> tuple[str, str | None]:
    """The algorithm and the key id that the token names.

    `jwk`, `jku`, `x5c`, `x5u` are not looked at: a token does not get to bring its own key (RFC 8725 section 3.10).
    """
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in policy.algorithms:
        refuse("the algorithm is not an allowed one")
    # We understand no extension, and must then refuse (RFC 7515 section 4.1.11); b64 changes what is signed (RFC 7797).
    if "crit" in header or "b64" in header:
        refuse("the header has a critical extension")
    kid = header.get("kid")
    if "kid" in header and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        refuse("the key id is not a short string")
    if "typ" not in header:
        accepted = policy.types is None
    else:
        accepted = media_type(header["typ"]) in (policy.types or ("jwt", "at+jwt"))
    if not accepted:
        refuse("the type is not that of an access token")
    return alg, kid


def check_claims(claims: dict[str, Any], policy: Policy, now: float) -> float:
    """When the token expires, leeway included, in seconds since the epoch.

    The issuer comes first: what another issuer's token says otherwise is none of our business.
    """
    if claims.get("iss") != policy.issuer:
        raise NotMine("from another issuer")
    check_audience(claims, policy.audience)
    check_subject(claims)
    check_kind(claims)
    if "exp" not in claims:
        refuse("no expiry")
    expires = _date(claims["exp"]) + policy.leeway
    if expires <= now:
        refuse("expired")
    for name in ("nbf", "iat"):
        if name in claims and _date(claims[name]) > now + policy.leeway:
            refuse("not valid yet")
    return expires


def check_audience(claims: Mapping[str, Any], ours: frozenset[str]) -> None:
    """One of ours has to be meant; `aud` is a string or a list of them (RFC 7519 section 4.1.3)."""
    audience = claims.get("aud")
    if isinstance(audience, str):
        audience = [audience]
    if (
        not isinstance(audience, list)
        or not all(isinstance(each, str) for each in audience)
        or ours.isdisjoint(audience)
    ):
        refuse("for another audience")


def check_subject(claims: Mapping[str, Any]) -> str:
    """Whom it speaks for; without one there is no user whose provider token could be meant."""
    subject = claims.get("sub")
    # Unprintable includes lone surrogates, which no one downstream could encode, and line breaks, which logs obey.
    if not isinstance(subject, str) or not subject.strip() or not subject.isprintable():
        refuse("no usable subject")
    return subject


def check_kind(claims: Mapping[str, Any]) -> None:
    """By its claims, an access token that whoever bears it may use."""
    if not _FOREIGN.isdisjoint(claims):
        refuse("not a plain access token")


def scopes(claims: Mapping[str, Any], names: Iterable[str]) -> frozenset[str]:
    """All scopes that these claims grant: each a space-separated string, or a list of strings.

    What is no scope token (RFC 6749 section 3.3) grants nothing, but does not spoil the token: `permissions` and the
    like are not registered claims, and other people put other things there.
    """
    found: set[str] = set()
    for name in names:
        value = claims.get(name)
        values = value.split(" ") if isinstance(value, str) else value if isinstance(value, list) else ()
        found.update(each for each in values if isinstance(each, str) and _SCOPE.fullmatch(each))
    return frozenset(found)


def media_type(value: object) -> str | None:
    """`typ` in the form to compare: case and an `application/` in front don't count (RFC 7515 section 4.1.9)."""
    return value.lower().removeprefix("application/") if isinstance(value, str) else None


def _date(value: object) -> float:
    # bool is an int to Python; NaN fails any comparison.
    if type(value) not in (int, float) or not 0 <= value <= MAX_DATE:  # type: ignore[operator]
        refuse("a date is not a number of seconds")
    return value  # type: ignore[return-value]


def _json_object(segment: bytes) -> dict[str, Any]:
    try:
        text = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)).decode()
        value = _STRICT.decode(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NotMine("a segment is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 7515 section 5.2 step 4: two members of a name mean different things to different readers.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def string_set(values: Collection[str], key: str) -> frozenset[str]:
    """What an authenticator's argument `key` lists. Raises `ConfigurationError`."""
    # A bare string is a collection too: algorithms="RS256" would be R, S, 2, 5 and 6.
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigurationError("must be a list of strings", key=key)
    if not values or not all(isinstance(value, str) and value for value in values):
        raise ConfigurationError("must hold strings, none empty, and at least one", key=key)
    return frozenset(values)


def text(value: str, key: str) -> str:
    """An authenticator's argument `key`, such as its issuer. Raises `ConfigurationError`."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigurationError("must be a string, and not empty", key=key)
    return value


def check_leeway(leeway: float) -> float:
    """An authenticator's argument `leeway`. Raises `ConfigurationError`."""
    if type(leeway) not in (int, float) or not 0 <= leeway <= MAX_LEEWAY:
        raise ConfigurationError(f"must be 0 to {MAX_LEEWAY:.0f} seconds", key="leeway")
    return leeway
