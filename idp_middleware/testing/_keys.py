"""Signing keys for tokens that tests hand out, made once per process: an RSA key takes a tenth of a second.

Knows PyJWT and cryptography; nothing of who signs or what.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with the id and the JWK (RFC 7517) of its public half."""

    algorithm: str
    kid: str
    private: Any = field(repr=False)
    public_pem: bytes = field(repr=False)
    jwk: dict[str, Any] = field(repr=False)


@functools.cache
def signing_key(algorithm: str = "RS256", generation: int = 0) -> SigningKey:  # noqa: ARG001 (tells keys apart in the cache)
    """The process's key number `generation` for an algorithm: RS256 and kin, ES256, EdDSA.

    Every double starts at generation 0, so a key that no tenant has published is one of a far generation, say 99.
    Raises `ValueError` for an algorithm without a key pair.
    """
    private: Any
    if algorithm.startswith(("RS", "PS")):
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
        jwk = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    elif algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
        jwk = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    else:
        raise ValueError(f"there is no key pair for the algorithm {algorithm!r}")
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    kid = base64.urlsafe_b64encode(hashlib.sha256(pem).digest()).decode().rstrip("=")[:21]
    public = {k: v for k, v in json.loads(json.dumps(jwk)).items() if k not in ("key_ops", "alg")}
    return SigningKey(algorithm, kid, private, pem, {**public, "use": "sig", "alg": algorithm, "kid": kid})
