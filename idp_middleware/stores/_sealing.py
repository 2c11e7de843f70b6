"""How an entry looks at rest: its key digested, everything else encrypted.

Knows nothing of databases. What cannot be read is an error, never an entry that is not there: else a wrong key would
ask every user to connect anew, and overwrite what the right one could still open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Final

from cryptography.fernet import InvalidToken

from idp_middleware._fernet import fernet
from idp_middleware._types import _HoldsSecret
from idp_middleware.errors import TokenSourceFailed
from idp_middleware.stores._values import Claim, Entry, StoredToken, TokenKey

_VERSION: Final = "1"
"""Of the digests and of what is sealed."""


class Vault(_HoldsSecret):
    """Seals and opens entries with Fernet keys: the first encrypts, all of them decrypt."""

    __slots__ = ("_fernet",)

    def __init__(self, encryption_keys: Sequence[str] | Sequence[bytes]) -> None:
        self._fernet = fernet(encryption_keys)

    def owner(self, key: TokenKey) -> str:
        """What all of a user's accounts of a connection are filed under."""
        return _digest(_VERSION, key.issuer, key.subject, key.connection)

    def name(self, key: TokenKey) -> str:
        """What one account is filed under."""
        return _digest(_VERSION, key.issuer, key.subject, key.connection, key.account)

    def seal(self, entry: Entry) -> str:
        """The entry less its version. Raises `TypeError` where `extra` holds what JSON has no word for."""
        token = entry.token
        record = {
            # Whoever can write to the store could else hand one user's token to another by copying it, and Fernet has
            # no associated data to say where a value belongs.
            "name": self.name(entry.key),
            "account": entry.key.account,
            "token": {field.name: getattr(token, field.name) for field in fields(token) if field.init}
            | {"scopes": sorted(token.scopes), "extra": dict(token.extra)},
            "stored_at": entry.stored_at,
            "claim": None if entry.claim is None else asdict(entry.claim),
            "withdrawn": entry.withdrawn,
        }
        return self._fernet.encrypt(json.dumps(record).encode()).decode()

    def open(self, key: TokenKey, sealed: str, version: str) -> Entry:
        """The entry of one of the accounts that `key` fits.

        Raises `TokenSourceFailed` for what no key opens, is somebody else's or of another version.
        """
        try:
            record = json.loads(self._fernet.decrypt(sealed))
            claim = record["claim"]
            entry = Entry(
                key=replace(key, account=record["account"]),
                token=StoredToken(**record["token"]),
                version=version,
                stored_at=float(record["stored_at"]),
                claim=None if claim is None else Claim(**claim),
                withdrawn=bool(record["withdrawn"]),
            )
        except InvalidToken:
            raise TokenSourceFailed("token store: none of the encryption_keys opens an entry") from None
        except (ValueError, KeyError, TypeError):
            raise TokenSourceFailed("token store: an entry is of another version") from None
        if record["name"] != self.name(entry.key):
            raise TokenSourceFailed("token store: an entry is not where it belongs")
        return entry


def _digest(*parts: str | None) -> str:
    """SHA-256 over the parts as JSON, in which no two lists are spelt alike."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
