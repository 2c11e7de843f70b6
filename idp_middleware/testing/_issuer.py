"""What every double of an identity provider does: it has an issuer and keys, and signs tokens for callers.

Knows discovery documents' place and key sets; nothing of grants or vendors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt

from idp_middleware.testing._double import Answer, Double
from idp_middleware.testing._keys import SigningKey, sign, signing_key
from idp_middleware.testing._recording import RecordedRequest

DISCOVERY = "/.well-known/openid-configuration"


class Refused(Exception):
    """A caller's token is not good here; the message says why: "expired", "revoked" or "invalid"."""


class Issuer(Double):
    """An issuer of tokens as an ASGI app. Subclasses spell its URL and add endpoints.

    `issuer` is its URL; left empty, `serve` fills it in.
    """

    def __init__(self, issuer: str = "") -> None:
        super().__init__()
        self.issuer = issuer
        self._generation = 0
        self._published: list[SigningKey] = [signing_key()]
        self._revoked: set[str] = set()

    @property
    def issuer(self) -> str:
        """The `iss` of every token; empty until known."""
        return self._issuer

    @issuer.setter
    def issuer(self, url: str) -> None:
        self._issuer = self.spelled(url.rstrip("/")) if url else ""

    def spelled(self, url: str) -> str:
        """The issuer of a server at this URL, as the vendor writes it."""
        return url

    def metadata(self) -> dict[str, Any]:
        """The document of OpenID Connect Discovery 1.0 section 3."""
        raise NotImplementedError

    def issue_token(
        self,
        subject: str,
        *,
        audience: str | list[str],
        scope: str = "",
        expires_in: float = 3600,
        algorithm: str = "RS256",
        key: Any = None,
        headers: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A caller's access token, or a forgery of one.

        `claims` and `headers` override what a good token has, and None removes it. `expires_in` is in seconds and may
        be negative. The issuer's key for an algorithm is published when first used; any other `key`, a `SigningKey`
        or what PyJWT takes, is not. HMAC needs a `key`, which may be a public key in PEM; "none" signs nothing.

        Raises `ValueError` where an algorithm has no key, or the issuer is not known yet.
        """
        now = int(time.time())
        good = {
            "iss": self._known_issuer(),
            "sub": subject,
            "aud": audience,
            "iat": now,
            "exp": int(now + expires_in),
            "scope": scope or None,
            "azp": "a-single-page-app",
        }
        payload = {name: value for name, value in (good | claims).items() if value is not None}
        if key is None and algorithm != "none" and not algorithm.startswith("HS"):
            key = self._own_key(algorithm)
        return sign(payload, algorithm=algorithm, key=key, headers=headers)

    def revoke(self, token: str) -> None:
        """Refuse this token from now on, as if its session had ended."""
        self._revoked.add(token)

    def rotate_keys(self, *, keep_old: bool = False) -> None:
        """Sign with new keys from now on; the old ones leave the key set, unless kept as in a planned rotation."""
        self._generation += 1
        self._published = [signing_key("RS256", self._generation), *(self._published if keep_old else ())]

    def claims_of(self, token: str) -> dict[str, Any]:
        """What a good token of this issuer says. Raises `Refused` for any other."""
        if token in self._revoked:
            raise Refused("revoked")
        for key in self._published:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.public_pem,
                    algorithms=[key.algorithm],
                    issuer=self._known_issuer(),
                    options={"verify_aud": False, "require": ["exp", "sub"]},
                )
                return claims
            except jwt.ExpiredSignatureError:
                raise Refused("expired") from None
            except jwt.InvalidTokenError:
                continue
        raise Refused("invalid")

    def answer(self, request: RecordedRequest) -> Answer:
        if request.method == "GET" and self.issuer:
            document = self.metadata()
            if request.raw_path == urlsplit(self.issuer).path.rstrip("/") + DISCOVERY:
                return Answer(200, document)
            if request.raw_path == urlsplit(document["jwks_uri"]).path:
                return Answer(200, {"keys": [key.jwk for key in self._published]})
        return self.endpoint(request)

    def endpoint(self, request: RecordedRequest) -> Answer:
        """The answer of any other endpoint."""
        raise NotImplementedError

    def _own_key(self, algorithm: str) -> SigningKey:
        key = signing_key(algorithm, self._generation)
        if key not in self._published:
            self._published.append(key)
        return key

    def _known_issuer(self) -> str:
        if not self.issuer:
            raise ValueError(f"the issuer is not known yet: serve it first, or say {type(self).__name__}(issuer=…)")
        return self.issuer
