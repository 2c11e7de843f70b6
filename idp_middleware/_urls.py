"""Where things are: origins, base URLs, and which paths are too doubtful to be joined to one.

Knows URLs only, and paths as the raw bytes they came in.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes, urlsplit

from idp_middleware.errors import BadRequest, ConfigurationError

DEFAULT_PORTS = {"http": 80, "https": 443}
# A label is of 1 to 63 octets (RFC 1035 section 2.3.4); the resolver would fail on others in words of its own.
_HOST = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?\Z")
# IIS also reads %uXXXX.
_UNSAFE_RAW = re.compile(rb"[^!-~]|[#\\?]|%[uU]00(?:2[eEfF]|5[cC])")
_UNSAFE_DECODED = re.compile(rb"[\x00\r\n\\]")
_TRIMMED = bytes(range(0x21))
# What lax UTF-8 decoders read as "." and "/", though no valid encoder writes it (RFC 3629 section 10).
_OVERLONG = re.compile(rb"\xc0[\xae\xaf]|\xc1\x9c|[\xe0]\x80[\xae\xaf]|\xf0\x80\x80[\xae\xaf]")


class Origin(NamedTuple):
    """Where an upstream is: what a connection is made to, and the `Host` that goes with it."""

    scheme: str
    host: str
    port: int
    authority: bytes


def refuse_unsafe_path(rest: bytes) -> None:
    """Raises `BadRequest` for control bytes, backslashes, and dot segments however they are spelled.

    Decoded once only: `%252e` is the text "%2e" to a server that follows RFC 3986 section 2.4.
    """
    if _UNSAFE_RAW.search(rest):
        raise BadRequest("unsafe byte in the path")
    decoded = unquote_to_bytes(rest)
    if _UNSAFE_DECODED.search(decoded) or _OVERLONG.search(decoded):
        raise BadRequest("unsafe encoded byte in the path")
    for segment in decoded.split(b"/"):
        # Servers of the Servlet family drop ";…" before they resolve dots. Windows drops spaces behind them, and Java's
        # String.trim every control character around them.
        if segment.partition(b";")[0].translate(None, _TRIMMED) in (b".", b".."):
            raise BadRequest("dot segment in the path")


def parse_base_url(url: str, key: str, *, allow_insecure: bool = False) -> tuple[Origin, bytes, bytes]:
    """Origin, raw path and raw query of a base URL.

    Raises `ConfigurationError` for anything but a plain http(s) URL, for userinfo (it would end up as credentials), a
    fragment, and for `http://` to a host that is not loopback unless `allow_insecure`.
    """

    def wrong(message: str) -> NoReturn:
        raise ConfigurationError(message, key=key)

    if not isinstance(url, str):
        wrong(f"must be a URL, not {type(url).__name__}")
    if not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
        wrong("must be plain ASCII without spaces; write international names in their encoded form")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        wrong("is not a URL")
    host = parts.hostname
    if parts.scheme not in DEFAULT_PORTS or not host:
        wrong("must be a full URL, such as https://api.example.com")
    if "@" in parts.netloc:
        wrong("must not hold a user name or password")
    if "#" in url:
        wrong("must not have a fragment")
    if ":" not in host and not _HOST.match(host):
        wrong("has an invalid host name")
    if parts.scheme == "http" and not allow_insecure and not is_loopback(host):
        wrong("must be https:// (http:// is for loopback, or with allow_insecure)")
    if parts.path:
        try:
            refuse_unsafe_path(parts.path.encode())
        except BadRequest as exc:
            wrong(f"has an unsafe path ({exc})")
    bracketed = f"[{host}]" if ":" in host else host
    default = DEFAULT_PORTS[parts.scheme]
    authority = bracketed if port in (None, default) else f"{bracketed}:{port}"
    origin = Origin(parts.scheme, host, default if port is None else port, authority.encode())
    return origin, parts.path.encode(), parts.query.encode()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by definition (RFC 6761 section 6.3 for the name)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
