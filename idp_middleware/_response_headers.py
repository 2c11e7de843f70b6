"""Header fields of an upstream's answer on their way to the caller.

What would speak for our connection, our origin or our caches is dropped; URLs lead back under the prefix. Knows nothing
of routes, tokens or transports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from idp_middleware._fields import HOP_BY_HOP, KEEP, LOOK, Verdicts, nominated
from idp_middleware._types import RawHeaders

_ABOUT_THE_UPSTREAMS_ORIGIN = frozenset(
    {
        b"alt-svc",
        b"clear-site-data",
        b"expect-ct",
        b"nel",
        b"origin-agent-cluster",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"strict-transport-security",
    }
)
"""What holds for a whole origin; relayed, the upstream would set it for ours."""

_FOR_SERVERS_IN_FRONT = frozenset({b"x-accel-redirect", b"x-lighttpd-send-file", b"x-sendfile"})
"""Orders to a server in front of us, such as nginx, to serve one of its own files."""

RESPONSE_DROPPED = (
    HOP_BY_HOP
    | _ABOUT_THE_UPSTREAMS_ORIGIN
    | _FOR_SERVERS_IN_FRONT
    | {
        # The server we run on sends its own; two of either is one too many.
        b"date",
        b"server",
        # The same as Cache-Control to some caches in between, and stronger.
        b"edge-control",
        b"surrogate-control",
        b"x-accel-expires",
    }
)

_LOOKED_AT = frozenset(
    {
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-location",
        b"link",
        b"location",
        b"refresh",
        b"set-cookie",
        b"vary",
    }
)

_verdict = Verdicts(
    dropped=RESPONSE_DROPPED,
    looked_at=_LOOKED_AT,
    prefixes=(b"access-control-",),
    # CDN-Cache-Control and vendors' own: rules for the caches of one network, that override Cache-Control (RFC 9213).
    suffixes=(b"-cache-control",),
).__getitem__

_URI_IN_LINK = re.compile(rb"<([^<>]*)>")
# Seconds, and perhaps where to (HTML's "shared declarative refresh steps"; no RFC has it).
_BEFORE_URL_IN_REFRESH = re.compile(rb"[0-9. \t]+[;,][ \t]*(?:url[ \t]*=[ \t]*)?([\"']?)", re.IGNORECASE)
_SHARED_CACHE_DIRECTIVES = frozenset({b"public", b"s-maxage", b"proxy-revalidate"})
_VARY = b"Authorization, Cookie, IdP-Account"


def response_headers(
    fields: Iterable[tuple[bytes, bytes]],
    status: int,
    *,
    allow_set_cookie: bool,
    rewrite: Callable[[bytes, bool], bytes],
) -> RawHeaders:
    """The fields of an upstream's answer that a caller may see.

    `rewrite` leads a URL of the upstream's back under the prefix; its second argument asks for an absolute one.

    An answer made for one user never becomes cacheable for others, whatever the upstream says: its permission was
    given to a request with a token that shared caches don't see (RFC 9111 section 3.5).
    """
    kept: RawHeaders = []
    not_forwarded: set[bytes] | None = None
    cache_control = vary = b""
    for field in fields:
        verdict = _verdict(field[0])
        if verdict == KEEP:
            kept.append(field)
        elif verdict == LOOK:
            name, value = field
            if name == b"content-length":
                # None on 204 (RFC 9110 section 8.6); on 304, servers hold us to a body of that length.
                if status not in (204, 304) and status >= 200:
                    kept.append(field)
            elif name == b"cache-control":
                cache_control = cache_control + b", " + value if cache_control else value
            elif name == b"vary":
                vary = vary + b", " + value if vary else value
            elif name == b"connection":
                not_forwarded = nominated(value, not_forwarded)
            elif name == b"set-cookie":
                if allow_set_cookie:
                    kept.append(field)
            elif name == b"link":
                kept.append((name, _URI_IN_LINK.sub(lambda m: b"<" + rewrite(m[1], True) + b">", value)))
            elif name == b"refresh":
                kept.append((name, _refresh(value, rewrite)))
            else:
                kept.append((name, rewrite(value, False)))
    if not_forwarded:
        kept = [field for field in kept if field[0] not in not_forwarded]
    kept.append((b"cache-control", _private(cache_control) if cache_control else b"private"))
    kept.append((b"vary", _varied(vary) if vary else _VARY))
    return kept


@lru_cache(maxsize=128)
def _varied(value: bytes) -> bytes:
    """A `Vary` value and what our answer depends on besides."""
    return value if value.strip() == b"*" else value + b", " + _VARY


def _refresh(value: bytes, rewrite: Callable[[bytes, bool], bytes]) -> bytes:
    before = _BEFORE_URL_IN_REFRESH.match(value)
    if before is None:
        return value
    # A value holds no line break, so without quotes the URL goes to the end.
    url, quote, after = value[before.end() :].partition(before[1] or b"\n")
    return before[0] + rewrite(url, False) + quote + after


@lru_cache(maxsize=128)
def _private(value: bytes) -> bytes:
    """A `Cache-Control` value less what would let shared caches keep the answer."""
    directives = [d.strip() for d in value.split(b",")]
    names = {d.partition(b"=")[0].strip().lower() for d in directives}
    if not names & _SHARED_CACHE_DIRECTIVES:
        bare = {d.lower() for d in directives} & {b"private", b"no-store"}
        return value if bare else value + b", private"
    kept = [d for d in directives if d and d.partition(b"=")[0].strip().lower() not in _SHARED_CACHE_DIRECTIVES]
    # A field-name list (private="x") protects those fields only, so it is no substitute for the bare word.
    if not any(d.lower() in (b"private", b"no-store") for d in kept):
        kept.append(b"private")
    return b", ".join(kept)
