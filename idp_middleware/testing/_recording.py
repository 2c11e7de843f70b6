"""The record of one request, as a witness saw it.

Knows HTTP messages; nothing of who asks, or what is answered.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

KEPT = 1024 * 1024
"""Bytes of a request body that are kept; all of it is counted and hashed."""


@dataclass(slots=True, eq=False)
class RecordedRequest:
    """One request as it arrived, filled in while its body comes and while it is answered.

    `path` is decoded, `target` is what stood in the request line. `headers` are raw pairs in the order they came,
    names in lower case. `body` holds the first MiB, while `size` (bytes) and `sha256` cover all that arrived.
    `complete`: the body came to its end; `answered`: the whole answer was handed to the server; `disconnected`: the
    client left before that. `time` is that of arrival, in seconds since the epoch.
    """

    method: str
    path: str
    target: bytes
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    scheme: str = field(default="http", repr=False)
    time: float = field(default_factory=time.time, repr=False)
    body: bytes = field(default=b"", repr=False)
    size: int = 0
    complete: bool = False
    answered: bool = False
    disconnected: bool = False
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    @property
    def raw_path(self) -> str:
        """The path as it stood in the request line, still encoded."""
        return self.target.partition(b"?")[0].decode("latin-1")

    @property
    def query(self) -> str:
        """The query as it stood in the request line, still encoded."""
        return self.target.partition(b"?")[2].decode("latin-1")

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all body bytes that arrived."""
        digest: str = self._hash.hexdigest()
        return digest

    def header(self, name: str) -> str | None:
        """All fields of that name, joined with a comma (RFC 9110 section 5.2); None where there is none."""
        values = [value for key, value in self.headers if key == name.lower().encode()]
        return b", ".join(values).decode("latin-1") if values else None

    @property
    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer …`; None where there is none, or more than one such field."""
        scheme, _, token = (self.header("authorization") or "").partition(" ")
        return token if scheme.lower() == "bearer" and token and "," not in token else None

    def json(self) -> Any:
        """The body as JSON. Raises `ValueError` where it is none."""
        return json.loads(self.body)

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes of the body."""
        self.size += len(chunk)
        self._hash.update(chunk)
        if len(self.body) < KEPT:
            self.body += chunk[: KEPT - len(self.body)]
