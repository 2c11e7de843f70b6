"""Header fields on their way through: pure functions on lists of raw pairs, never a dict.

What is dropped is dropped first; what we add comes last, so that nothing a caller sends can remove or shadow it. Knows
nothing of routes, tokens or transports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from idp_middleware._types import RawHeaders
from idp_middleware.errors import BadRequest

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

_CREDENTIALS = frozenset({b"authorization", b"cookie", b"cookie2", b"dpop", b"idp-account"})
"""The caller's credentials are for us. None of them is the upstream's business."""

_ABOUT_THE_CLIENT = frozenset(
    {
        b"cf-connecting-ip",
        b"client-ip",
        b"fastly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-original-host",
        b"x-original-url",
        b"x-real-ip",
        b"x-rewrite-url",
    }
)
"""Claims about who called and through what; a caller can write anything here, and some servers believe it."""

_ABOUT_OUR_ORIGIN = frozenset(
    {
        b"access-control-request-headers",
        b"access-control-request-method",
        b"access-control-request-private-network",
        b"origin",
        b"referer",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"sec-fetch-user",
    }
)
"""What a browser says of the page it calls from. It speaks of our origin, and a referrer may hold the app's secrets."""

_METHOD_OVERRIDE = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
"""An allowed POST must not be a forbidden DELETE at the upstream."""

_REWRITTEN = frozenset({b"content-length", b"expect", b"host", b"max-forwards"})
"""Host is the upstream's; framing is the transport's; we have answered Expect by asking for the body."""

REQUEST_DROPPED = HOP_BY_HOP | _CREDENTIALS | _ABOUT_THE_CLIENT | _ABOUT_OUR_ORIGIN | _METHOD_OVERRIDE | _REWRITTEN

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
        # Rules for shared caches, that override Cache-Control (RFC 9213).
        b"cdn-cache-control",
        b"surrogate-control",
    }
)

_KEEP, _DROP, _LOOK = range(3)
_LOOKED_AT_IN_REQUEST = frozenset({b"connection", b"content-length", b"idp-account", b"transfer-encoding", b"via"})
_LOOKED_AT_IN_RESPONSE = frozenset(
    {
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-location",
        b"link",
        b"location",
        b"set-cookie",
        b"vary",
    }
)

_DIGITS = re.compile(rb"[0-9]{1,18}\Z")


class Request:
    """What one pass over a request's fields finds: those to forward, and what the others said."""

    __slots__ = ("account", "chunked", "headers", "length", "via")

    headers: RawHeaders
    length: int | None
    chunked: bool
    account: str | None
    via: bytes

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length is not None


class _Verdicts(dict[bytes, int]):
    """Name → what to do with the field; worked out once per spelling, bounded since callers choose the spellings."""

    def __init__(self, dropped: frozenset[bytes], looked_at: frozenset[bytes], prefixes: tuple[bytes, ...]) -> None:
        super().__init__()
        self._dropped = dropped
        self._looked_at = looked_at
        self._prefixes = prefixes

    def __missing__(self, name: bytes) -> int:
        # Servers that make variables of field names (CGI, WSGI) take X_Real_IP for X-Real-IP.
        lower = name.lower().replace(b"_", b"-")
        if name in self._looked_at:
            verdict = _LOOK
        elif lower in self._dropped or lower in self._looked_at or lower.startswith(self._prefixes):
            verdict = _DROP
        else:
            verdict = _KEEP
        if len(self) < 1024 and len(name) <= 64:
            self[name] = verdict
        return verdict


_request_verdict = _Verdicts(REQUEST_DROPPED, _LOOKED_AT_IN_REQUEST, (b"x-forwarded-", b"proxy-")).__getitem__
_response_verdict = _Verdicts(frozenset(RESPONSE_DROPPED), _LOOKED_AT_IN_RESPONSE, (b"access-control-",)).__getitem__


def read_request(fields: Iterable[tuple[bytes, bytes]]) -> Request:
    """Sort a request's fields.

    Raises `BadRequest` where the body's length is told in a way that two servers may read differently (RFC 9112
    section 6.3).
    """
    request = Request()
    request.headers = kept = []
    request.length = request.account = None
    request.chunked = False
    request.via = b""
    nominated: set[bytes] | None = None
    for field in fields:
        verdict = _request_verdict(field[0])
        if verdict == _KEEP:
            kept.append(field)
        elif verdict == _LOOK:
            name, value = field
            if name == b"connection":
                nominated = _nominated(value, nominated)
            elif name == b"content-length":
                if request.length is not None or not _DIGITS.match(value):
                    raise BadRequest("ambiguous Content-Length")
                request.length = int(value)
            elif name == b"transfer-encoding":
                if request.chunked or value.strip().lower() != b"chunked":
                    raise BadRequest("unknown Transfer-Encoding")
                request.chunked = True
            elif name == b"via":
                request.via = request.via + b", " + value if request.via else value
            else:
                request.account = _account(value, request.account)
    if request.chunked and request.length is not None:
        raise BadRequest("both Content-Length and Transfer-Encoding")
    if nominated:
        request.headers = [field for field in kept if field[0] not in nominated]
    return request


def _account(value: bytes, before: str | None) -> str:
    account = value.decode("latin-1").strip()
    if before is not None or not account or len(account) > 256 or not account.isascii() or not account.isprintable():
        raise BadRequest("malformed IdP-Account")
    return account


def _nominated(value: bytes, names: set[bytes] | None) -> set[bytes] | None:
    """The fields that a Connection field names as meant for this connection only (RFC 9110 section 7.6.1)."""
    value = value.lower()
    if value in (b"keep-alive", b"close"):
        return names
    found = {name.strip() for name in value.split(b",")} - {b"", b"close", b"keep-alive"}
    return found if names is None else names | found


_URI_IN_LINK = re.compile(rb"<([^>]*)>")
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
    nominated: set[bytes] | None = None
    cache_control = vary = b""
    for field in fields:
        verdict = _response_verdict(field[0])
        if verdict == _KEEP:
            kept.append(field)
        elif verdict == _LOOK:
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
                nominated = _nominated(value, nominated)
            elif name == b"set-cookie":
                if allow_set_cookie:
                    kept.append(field)
            elif name == b"link":
                kept.append((name, _URI_IN_LINK.sub(lambda m: b"<" + rewrite(m[1], True) + b">", value)))
            else:
                kept.append((name, rewrite(value, False)))
    if nominated:
        kept = [field for field in kept if field[0] not in nominated]
    kept.append((b"cache-control", _private(cache_control) if cache_control else b"private"))
    kept.append((b"vary", _VARY if not vary else vary if vary.strip() == b"*" else vary + b", " + _VARY))
    return kept


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
