"""Clients of a double, and whether a request proves to come from one: RFC 6749 section 2.3, RFC 7523 section 3.

As strict as the strictest server: one way to authenticate for each client, no statement twice.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

import jwt

from idp_middleware.testing._keys import SigningKey
from idp_middleware.testing._recording import RecordedRequest

METHODS = ("client_secret_post", "client_secret_basic", "private_key_jwt")
PUBLIC = "none"
"""How a client authenticates that can keep no secret: a single-page app (RFC 6749 section 2.1)."""

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LONGEST = 300
"""Seconds that a statement may be good for, as at Auth0."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client, and what the vendor's settings say of it."""

    client_id: str
    secret: bytes | None = field(repr=False)
    methods: tuple[str, ...]
    key: SigningKey | None
    settings: Mapping[str, Any]


class NotAuthenticated(Exception):
    """The message says what is wrong, for whoever debugs a test."""


class Clients:
    """The clients of one server."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._statements: set[str] = set()

    def add(
        self,
        client_id: str,
        secret: str | None,
        *,
        methods: Collection[str] = ("client_secret_post",),
        key: SigningKey | None = None,
        **settings: Any,
    ) -> None:
        """Register a client, in place of one before. With a `key` it authenticates with that alone."""
        proofs = [proof for proof in (secret, key) if proof is not None]
        if len(proofs) > 1 or not set(methods) <= set(METHODS if proofs else (PUBLIC,)):
            raise ValueError(
                f"a client has a secret or a key, and authenticates in one of the ways {METHODS}; "
                f"or it has neither, and the way is {PUBLIC!r}"
            )
        methods = tuple(methods) if key is None else ("private_key_jwt",)
        self._clients[client_id] = Client(client_id, secret.encode() if secret else None, methods, key, settings)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients.values()))

    def get(self, client_id: str) -> Client | None:
        """The client of that name, which nobody has proved to be."""
        return self._clients.get(client_id)

    def authenticate(
        self, request: RecordedRequest, parameters: Mapping[str, str], *, audiences: Collection[str]
    ) -> Client:
        """The client that sent this. Raises `NotAuthenticated`."""
        ways = {
            "client_secret_basic": request.header("authorization") is not None,
            "client_secret_post": "client_secret" in parameters,
            "private_key_jwt": "client_assertion" in parameters,
        }
        used = [way for way, there in ways.items() if there] or [PUBLIC]
        if len(used) != 1:
            raise NotAuthenticated(f"{len(used)} ways to authenticate in one request")
        (way,) = used
        client_id, secret = parameters.get("client_id", ""), parameters.get("client_secret", "")
        if way == "client_secret_basic":
            client_id, secret = _basic(request.header("authorization") or "", client_id)
        client = self._clients.get(client_id)
        if client is None:
            raise NotAuthenticated("no such client")
        if way not in client.methods:
            raise NotAuthenticated(f"the client does not authenticate with {way}")
        if way == "private_key_jwt":
            self._check_statement(client, parameters, audiences)
        elif way != PUBLIC and (client.secret is None or not hmac.compare_digest(client.secret, secret.encode())):
            raise NotAuthenticated("wrong secret")
        return client

    def _check_statement(self, client: Client, parameters: Mapping[str, str], audiences: Collection[str]) -> None:
        if parameters.get("client_assertion_type") != ASSERTION_TYPE or client.key is None:
            raise NotAuthenticated("client_assertion_type")
        try:
            statement = parameters["client_assertion"]
            claims = jwt.decode(
                statement,
                client.key.public_pem,
                algorithms=[client.key.algorithm],
                audience=audiences,
                issuer=client.client_id,
                subject=client.client_id,
                options={"require": ["iss", "sub", "aud", "exp", "jti"], "strict_aud": False},
            )
            header = jwt.get_unverified_header(statement)
        except jwt.InvalidTokenError as exc:
            raise NotAuthenticated(f"client_assertion: {exc}") from None
        if not isinstance(claims["aud"], str):
            raise NotAuthenticated("client_assertion is for several")
        if header.get("kid", client.key.kid) != client.key.kid:
            raise NotAuthenticated("client_assertion is signed by a key of another name")
        if claims["exp"] > time.time() + LONGEST:
            raise NotAuthenticated("client_assertion is good for too long")
        if claims["jti"] in self._statements:
            raise NotAuthenticated("client_assertion was used before")
        self._statements.add(claims["jti"])


def _basic(header: str, client_id: str) -> tuple[str, str]:
    """The two halves of a header, each form-decoded (RFC 6749 section 2.3.1)."""
    scheme, _, encoded = header.partition(" ")
    try:
        name, colon, secret = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise NotAuthenticated("malformed Authorization") from None
    if scheme.lower() != "basic" or not colon or ":" in secret:
        raise NotAuthenticated("malformed Authorization")
    if client_id and client_id != unquote_plus(name):
        raise NotAuthenticated("two clients in one request")
    return unquote_plus(name), unquote_plus(secret)
