"""One public key of an issuer: what it may verify (RFC 7517, RFC 7518), and verifying with it.

The only module that imports `jwt`, and only to verify. Knows nothing of how keys are fetched or kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jwt

from idp_middleware._claims import Policy

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"},
)
"""What may be configured: signatures only. With a MAC, whoever can verify can forge (RFC 8725 section 3.1)."""

MAX_KEYS = 100
"""Keys of a set that are looked at; issuers publish two or three."""

_MIN_RSA_BITS = 2048
_MAX_MEMBER = 2048
"""Characters of a key's member: 12,000 bits of modulus, so that a hostile set can't buy minutes of arithmetic."""

_RSA = tuple(alg for alg in sorted(ALGORITHMS) if alg[0] in "RP")
_BY_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "Ed448": "EdDSA"}
_MATERIAL = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}

_JWT = jwt.PyJWT({"require": ["exp", "iss", "aud", "sub"]})


class Key:
    """A key that its issuer publishes now. `live` turns False when the issuer stops."""

    __slots__ = ("_by_alg", "identity", "kid", "live")

    def __init__(self, kid: str | None, identity: tuple[str | None, ...], by_alg: Mapping[str, jwt.PyJWK]) -> None:
        self.kid = kid
        self.identity = identity
        self.live = True
        self._by_alg = by_alg

    def fits(self, kid: str | None, alg: str) -> bool:
        """Whether a token that names this key (or none) and this algorithm could be signed with it."""
        return alg in self._by_alg and (kid is None or kid == self.kid)

    def verify(self, token: str, alg: str, policy: Policy) -> dict[str, Any] | None:
        """The claims, if the signature is this key's and they satisfy the policy; else None."""
        key = self._by_alg[alg]
        try:
            return _JWT.decode(
                token,
                key,
                # The key's, which came from the configuration, and not the token's.
                algorithms=[key.algorithm_name],
                issuer=policy.issuer,
                audience=policy.audience,
                leeway=policy.leeway,
            )
        except Exception:
            # Not only PyJWTError: TypeError, ValueError and others have come out of it. Whatever it is, it is no "yes".
            return None


def read_keys(document: Mapping[str, Any], algorithms: Collection[str], known: Iterable[Key] = ()) -> tuple[Key, ...]:
    """The keys of a JWK set that may verify one of `algorithms`; what is malformed or of no use is skipped.

    A key that is among `known` stays the same object.
    """
    entries = document.get("keys")
    by_identity = {key.identity: key for key in known}
    found: dict[tuple[str | None, ...], Key] = {}
    for entry in entries[:MAX_KEYS] if isinstance(entries, list) else ():
        identity = _identity(entry)
        if identity is None:
            continue
        key = by_identity.get(identity) or _read_key(entry, identity, algorithms)
        if key is not None:
            found[identity] = key
    return tuple(found.values())


def _identity(jwk: Any) -> tuple[str | None, ...] | None:
    """All that makes this key this key; None for what must not verify signatures."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    # A private key that everybody can read (RFC 7517 section 9.2) proves nothing.
    if "d" in jwk:
        return None
    kty, kid, alg = jwk.get("kty"), jwk.get("kid"), jwk.get("alg")
    # oct is left out here: a published secret, and the door to RS256-as-HS256.
    if not isinstance(kty, str) or kty not in _MATERIAL:
        return None
    material = [jwk.get(name) for name in _MATERIAL[kty]]
    if not all(isinstance(member, str) and len(member) <= _MAX_MEMBER for member in material):
        return None
    if not all(isinstance(label, str | None) for label in (kid, alg)):
        return None
    return (kid, kty, alg, *material)


def _read_key(jwk: Mapping[str, Any], identity: tuple[str | None, ...], algorithms: Collection[str]) -> Key | None:
    kid, kty, alg = identity[:3]
    possible = _RSA if kty == "RSA" else (_BY_CURVE.get(jwk["crv"], ""),)
    # Key and token must agree on the algorithm (RFC 8725 section 3.1); a key that names none may serve all of its kind.
    wanted = [each for each in possible if each in algorithms and alg in (None, each)]
    public = {"kty": kty, **{name: jwk[name] for name in _MATERIAL[str(kty)]}}
    try:
        by_alg = {each: jwt.PyJWK(public, each) for each in wanted}
    except Exception:
        # PyJWKError, InvalidKeyError, and whatever the arithmetic behind them says of points off the curve and such.
        return None
    if not by_alg or any(kty == "RSA" and key.key.key_size < _MIN_RSA_BITS for key in by_alg.values()):
        return None
    return Key(kid, identity, by_alg)
