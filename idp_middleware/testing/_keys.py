"""Signing keys made once per process (an RSA key takes a tenth of a second), and tokens signed with or without them.

Knows PyJWT and cryptography; nothing of who signs, or what.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, with its id and the public half as PEM and as JWK (RFC 7517)."""

    algorithm: str
    kid: str
    private: Any = field(repr=False)
    public_pem: bytes = field(repr=False)
    jwk: dict[str, Any] = field(repr=False)

    @property
    def private_pem(self) -> str:
        """The private half as PEM, as a client has it in its settings."""
        pem: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem.decode()


def signing_key(algorithm: str = "RS256", generation: int = 0) -> SigningKey:
    """The process's key number `generation` for RS256 and its kin, ES256 or EdDSA.

    Every tenant starts at generation 0 and counts up; a key that none has published is one far off, such as 99.
    Raises `ValueError` for an algorithm without a key pair.
    """
    return _made(algorithm, generation)


@functools.cache
def _made(algorithm: str, generation: int) -> SigningKey:  # noqa: ARG001 (parts the cache's keys)
    if algorithm.startswith(("RS", "PS")):
        rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return _described(algorithm, rsa_key, RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True))
    if algorithm == "ES256":
        ec_key = ec.generate_private_key(ec.SECP256R1())
        return _described(algorithm, ec_key, ECAlgorithm.to_jwk(ec_key.public_key(), as_dict=True))
    if algorithm == "EdDSA":
        ed_key = ed25519.Ed25519PrivateKey.generate()
        return _described(algorithm, ed_key, OKPAlgorithm.to_jwk(ed_key.public_key(), as_dict=True))
    raise ValueError(f"there is no key pair for the algorithm {algorithm!r}")


def sign(
    claims: Mapping[str, Any], *, algorithm: str, key: Any = None, headers: Mapping[str, Any] | None = None
) -> str:
    """A JWT, well signed or not: any algorithm with any key, "none" with none.

    `key` is a `SigningKey` or whatever PyJWT takes; for HMAC it is the secret, as text or bytes. A header of None is
    left out. Raises `ValueError` where an HMAC has no key.
    """
    header: dict[str, Any] = {"typ": "JWT"}
    if isinstance(key, SigningKey):
        header["kid"] = key.kid
        key = key.private
    header = {"alg": algorithm, **header, **(headers or {})}
    header = {name: value for name, value in header.items() if value is not None}
    signed = b".".join(_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    if algorithm == "none":
        signature = b""
    elif algorithm.startswith("HS"):
        if key is None:
            raise ValueError(f"{algorithm} needs a key")
        # By hand, since PyJWT rightly refuses a public key or a short secret here.
        signature = hmac.new(key.encode() if isinstance(key, str) else key, signed, f"sha{algorithm[2:]}").digest()
    else:
        implementation = jwt.get_algorithm_by_name(algorithm)
        signature = implementation.sign(signed, implementation.prepare_key(key))
    return (signed + b"." + _base64url(signature)).decode()


def _described(algorithm: str, private: Any, jwk: dict[str, Any]) -> SigningKey:
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    kid = _base64url(hashlib.sha256(pem).digest())[:21].decode()
    public = {name: value for name, value in jwk.items() if name != "key_ops"}
    return SigningKey(algorithm, kid, private, pem, {**public, "use": "sig", "alg": algorithm, "kid": kid})


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
