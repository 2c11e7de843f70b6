"""How the app proves to a token endpoint who it is: a secret in the body, one in a header, or a signed statement.

Knows RFC 6749 section 2.3.1 and RFC 7523; nothing of what is asked for, nor of HTTP clients.
"""

from __future__ import annotations

import base64
import re
from time import time
from typing import Any, Final
from urllib.parse import quote_plus
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from idp_middleware._types import _HoldsSecret
from idp_middleware.errors import ConfigurationError

ASSERTION_LIFE: Final = 120
"""Seconds that a signed statement is good for: enough for clocks that differ. Auth0 takes 300 at most."""

_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class ClientAuth(_HoldsSecret):
    """One client's credentials, and what they add to a request.

    Args:
        client_id: the client.
        client_secret: its password; sent as `client_auth` says.
        client_auth: `post`, in the body, as most vendors document it; or `basic`, in the `Authorization` header.
        private_key: instead of a secret, the key in PEM that signs a statement for each request (`private_key_jwt`):
            RSA, one of the three NIST curves, or Ed25519. `\\n` may stand for the line breaks.
        key_id: the key's name at the server, where the client has several there.
        audience: whom the statement is for: the issuer or the token endpoint.
        thumbprint: the key's name is its certificate's SHA-256 thumbprint in hexadecimal, as Microsoft has it
            (https://learn.microsoft.com/entra/identity-platform/certificate-credentials).

    Raises:
        ConfigurationError: naming the argument at fault.
    """

    # Without a `__dict__`, for who writes out all that `vars` gives.
    __slots__ = ("_algorithm", "_audience", "_basic", "_header", "_key", "_secret", "client_id")

    def __init__(
        self,
        *,
        client_id: str,
        audience: str,
        client_secret: str | None = None,
        client_auth: str = "post",
        private_key: str | None = None,
        key_id: str | None = None,
        thumbprint: bool = False,
    ) -> None:
        self.client_id: str = required("client_id", client_id)
        self._audience = audience
        self._secret: str | None = None
        self._key: Any = None
        if client_auth not in ("post", "basic"):
            raise ConfigurationError('must be "post" or "basic"', key="client_auth")
        self._basic = client_auth == "basic"
        if private_key is None:
            if client_secret is None:
                raise ConfigurationError("is missing; or give a private_key instead", key="client_secret")
            if key_id is not None:
                raise ConfigurationError("is for a private_key, and there is none", key="key_id")
            self._secret = required("client_secret", client_secret)
            return
        if client_secret is not None:
            raise ConfigurationError("give either a client_secret or a private_key", key="private_key")
        self._algorithm, self._key = _signing_key(private_key)
        self._header = {} if key_id is None else {"kid": required("key_id", key_id)}
        if thumbprint:
            self._header = {"x5t#S256": _thumbprint(required("key_id", key_id))}
            self._algorithm = "PS256" if self._algorithm == "RS256" else self._algorithm

    @property
    def secret(self) -> str | None:
        """What must not be repeated in an error message."""
        return self._secret

    def fields(self) -> dict[str, str]:
        """Parameters for the body, new for each request: a statement is accepted once."""
        if self._key is None:
            return {} if self._basic else {"client_id": self.client_id, "client_secret": self._secret or ""}
        now = int(time())
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self._audience,
            "jti": uuid4().hex,
            "iat": now,
            "exp": now + ASSERTION_LIFE,
        }
        return {
            "client_id": self.client_id,
            "client_assertion_type": _ASSERTION_TYPE,
            "client_assertion": jwt.encode(claims, self._key, algorithm=self._algorithm, headers=self._header),
        }

    def headers(self) -> dict[str, str]:
        """Header fields. Both halves are form-encoded first, so that a colon or a % in one means itself."""
        if self._key is not None or not self._basic:
            return {}
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self._secret or '')}"
        return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def required(key: str, value: str | None) -> str:
    """`value`, unless it is no string or an empty one, such as an environment variable that was never set."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError("must not be empty", key=key)
    return value


def _signing_key(pem: str) -> tuple[str, Any]:
    """The algorithm that goes with a key, and the key."""
    try:
        # Most ways to set an environment variable make line breaks hard; PEM has no backslash of its own.
        key: Any = load_pem_private_key(required("private_key", pem).replace("\\n", "\n").encode(), None)
    except ConfigurationError:
        raise
    except Exception:
        # What cryptography says of a key may hold parts of it.
        raise ConfigurationError("is no unencrypted private key in PEM", key="private_key") from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "RS256", key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name], key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "EdDSA", key
    raise ConfigurationError("must be RSA (of 2048 bits or more), P-256, P-384, P-521 or Ed25519", key="private_key")


def _thumbprint(text: str) -> str:
    digits = text.replace(":", "")
    if not re.fullmatch("[0-9A-Fa-f]{64}", digits):
        raise ConfigurationError("must be the certificate's SHA-256 thumbprint in hexadecimal", key="key_id")
    return base64.urlsafe_b64encode(bytes.fromhex(digits)).rstrip(b"=").decode()
