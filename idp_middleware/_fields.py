"""What is common to header fields both ways: which end at each hop, and a quick verdict on a name.

Header sections are lists of raw pairs here, never a dict: order and duplicates mean something.
"""

from __future__ import annotations

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1, and the fields that only ever meant one connection."""

KEEP, DROP, LOOK = range(3)


def folded(name: bytes) -> bytes:
    """The name as the laxest reader takes it: servers that make variables of names (CGI, WSGI) see no `_` from `-`."""
    return name.lower().replace(b"_", b"-")


class Verdicts(dict[bytes, int]):
    """Name → what to do with the field; worked out once per spelling, bounded since strangers choose the spellings."""

    def __init__(
        self,
        *,
        dropped: frozenset[bytes],
        looked_at: frozenset[bytes],
        prefixes: tuple[bytes, ...] = (),
        suffixes: tuple[bytes, ...] = (),
    ) -> None:
        super().__init__()
        self._dropped = dropped | looked_at
        self._looked_at = looked_at
        self._prefixes = prefixes
        self._suffixes = suffixes

    def __missing__(self, name: bytes) -> int:
        plain = folded(name)
        if name in self._looked_at:
            verdict = LOOK
        elif plain in self._dropped or plain.startswith(self._prefixes) or plain.endswith(self._suffixes):
            verdict = DROP
        else:
            verdict = KEEP
        if len(self) < 1024 and len(name) <= 64:
            self[name] = verdict
        return verdict


def nominated(value: bytes, names: set[bytes] | None) -> set[bytes] | None:
    """`names`, and those that a Connection field keeps to this connection (RFC 9110 section 7.6.1)."""
    value = value.lower()
    if value in (b"keep-alive", b"close"):
        return names
    found = {name.strip() for name in value.split(b",")} - {b"", b"close", b"keep-alive"}
    return found if names is None else names | found
