"""Header fields of a request on their way to the upstream.

What is dropped is dropped first; what we add comes last, so that nothing a caller sends can remove or shadow it. Knows
nothing of routes, tokens or transports.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from idp_middleware._fields import HOP_BY_HOP, KEEP, LOOK, Verdicts, folded, nominated
from idp_middleware._types import RawHeaders
from idp_middleware.errors import BadRequest

_CREDENTIALS = frozenset({b"authorization", b"cookie", b"cookie2", b"dpop", b"idp-account"})
"""The caller's credentials are for us. None of them is the upstream's business."""

_CREDENTIALS_FROM_IN_FRONT = (
    b"cf-access-",  # Cloudflare Access
    b"x-amzn-oidc-",  # Amazon's Application Load Balancer
    b"x-auth-request-",  # oauth2-proxy, which also has X-Forwarded-Access-Token
    b"x-goog-authenticated-user-",  # Google's Identity-Aware Proxy
    b"x-goog-iap-",
    b"x-ms-client-principal",  # Azure App Service
    b"x-ms-token-",
    b"x-pomerium-",
    b"x-vercel-oidc-",
)
"""What proxies in front of an app add once they have let somebody in: that person's tokens, and who it is."""

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
"""Host is the upstream's; framing is the transport's; we answer Expect by asking for the body; Max-Forwards counts."""

REQUEST_DROPPED = HOP_BY_HOP | _CREDENTIALS | _ABOUT_THE_CLIENT | _ABOUT_OUR_ORIGIN | _METHOD_OVERRIDE | _REWRITTEN

MAX_FIELDS = 256
"""Header fields of a request."""

MAX_SIZE = 64 * 1024
"""Bytes of their names and values; some servers bound neither."""

_LOOKED_AT = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"idp-account",
        b"max-forwards",
        b"trailer",
        b"transfer-encoding",
        b"via",
    }
)
_verdict = Verdicts(
    dropped=REQUEST_DROPPED,
    looked_at=_LOOKED_AT,
    prefixes=(b"x-forwarded-", b"proxy-", *_CREDENTIALS_FROM_IN_FRONT),
).__getitem__

_DIGITS = re.compile(rb"[0-9]{1,18}\Z")


class Request:
    """What one pass over a request's fields finds: those to forward, and what the others said."""

    __slots__ = ("account", "chunked", "headers", "length", "max_forwards", "via")

    headers: RawHeaders
    length: int | None
    chunked: bool
    account: str | None
    max_forwards: bytes | None
    via: bytes

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length is not None

    def forward_once_more(self) -> bool:
        """Count this hop; False where it is the last one (RFC 9110 section 7.6.2, for OPTIONS).

        Raises `BadRequest` where the number of hops is none.
        """
        if self.max_forwards is None:
            return True
        if not _DIGITS.match(self.max_forwards.rstrip(b" \t")):
            raise BadRequest("malformed Max-Forwards")
        left = int(self.max_forwards) - 1
        self.headers.append((b"max-forwards", b"%d" % left))
        return left >= 0


def read_request(fields: RawHeaders) -> Request:
    """Sort a request's fields.

    Raises `BadRequest` where the body's length is told in a way that two servers may read differently (RFC 9112
    section 6.3), where there is not exactly one Host (section 3.2), and for a header section out of proportion.
    """
    if len(fields) > MAX_FIELDS:
        raise BadRequest("oversized header section")
    request = Request()
    request.headers = kept = []
    request.length = request.account = request.max_forwards = None
    request.chunked = False
    request.via = b""
    hosts = size = 0
    not_forwarded: set[bytes] | None = None
    for field in fields:
        name, value = field
        size += len(name) + len(value)
        verdict = _verdict(name)
        if verdict == KEEP:
            kept.append(field)
        elif verdict == LOOK:
            if name == b"host":
                hosts += 1
            elif name == b"connection" or name == b"trailer":
                # Some servers append trailers to the header section, which they must not join (RFC 9110 section 6.5.1).
                not_forwarded = nominated(value, not_forwarded)
            elif name == b"content-length":
                # Some parsers leave white space behind a value.
                if request.length is not None or not _DIGITS.match(value.rstrip(b" \t")):
                    raise BadRequest("ambiguous Content-Length")
                request.length = int(value)
            elif name == b"transfer-encoding":
                if request.chunked or value.rstrip(b" \t").lower() != b"chunked":
                    raise BadRequest("unknown Transfer-Encoding")
                request.chunked = True
            elif name == b"via":
                request.via = _joined(request.via, value)
            elif name == b"max-forwards":
                request.max_forwards = _joined(request.max_forwards, value)
            else:
                request.account = _account(value, request.account)
    if size > MAX_SIZE:
        raise BadRequest("oversized header section")
    if hosts != 1:
        raise BadRequest("not exactly one Host")
    if request.chunked and request.length is not None:
        raise BadRequest("both Content-Length and Transfer-Encoding")
    if not_forwarded:
        request.headers = [field for field in kept if field[0] not in not_forwarded]
    return request


def _joined(before: bytes | None, value: bytes) -> bytes:
    return before + b", " + value if before else value


def _account(value: bytes, before: str | None) -> str:
    account = value.decode("latin-1").strip()
    if before is not None or not account or len(account) > 256 or not account.isascii() or not account.isprintable():
        raise BadRequest("malformed IdP-Account")
    return account


def without(fields: RawHeaders, names: Collection[bytes]) -> RawHeaders:
    """`fields` less those of `names` (as `folded`), however they are spelled."""
    return [field for field in fields if folded(field[0]) not in names]


def forwarded(fields: RawHeaders, scope: Mapping[str, Any]) -> RawHeaders:
    """`X-Forwarded-For`, `-Proto` and `-Host` as a proxy adds them whose peers are trusted.

    What came stays: the proxy in front has seen the caller's own connection.
    """

    def came(name: bytes) -> bytes:
        return b", ".join([value for field, value in fields if field == name])

    client = scope.get("client")
    addresses = [came(b"x-forwarded-for"), client[0].encode() if client else b""]
    added = [
        (b"x-forwarded-for", b", ".join(filter(None, addresses))),
        (b"x-forwarded-proto", came(b"x-forwarded-proto") or scope.get("scheme", "http").encode()),
        (b"x-forwarded-host", came(b"x-forwarded-host") or came(b"host")),
    ]
    return [field for field in added if field[1]]


def cookies(fields: RawHeaders, names: Collection[bytes]) -> RawHeaders:
    """A `Cookie` field with those of `names`, if any came; in one line: HTTP/2 splits it (RFC 9113 section 8.2.3)."""
    pairs = [pair.strip() for name, value in fields if name == b"cookie" for pair in value.split(b";")]
    kept = [pair for pair in pairs if b"=" in pair and pair.partition(b"=")[0].rstrip() in names]
    return [(b"cookie", b"; ".join(kept))] if kept else []
