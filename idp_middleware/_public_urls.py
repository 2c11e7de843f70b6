"""URLs of the upstream's, led back under the prefix.

A client that follows a `Link` or `Location` straight to the upstream would send it the caller's token, and get nowhere.
Knows where the upstream is and where we are mounted; nothing of requests or transports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from idp_middleware._routes import ProxyRoute
from idp_middleware._urls import DEFAULT_PORTS

_HOST = re.compile(rb"[A-Za-z0-9._-]+(:[0-9]{1,5})?\Z|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?\Z")


def public_origin(scope: Mapping[str, Any]) -> str:
    """Our own `scheme://host` as this caller wrote it, or "" where it can't be told.

    The `Host` is the caller's word, but goes back to that caller only: the answer is private.
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or not _HOST.match(hosts[0]):
        return ""
    return f"{scope.get('scheme', 'http')}://{hosts[0].decode()}"


def mount_of(scope: Mapping[str, Any], prefix: str, route: ProxyRoute) -> str:
    """The path of a route with us, ready for a URL; the scope has what the app is mounted under decoded."""
    return quote(f"{scope.get('root_path', '')}{prefix}/{route.name}", safe="/~")


def lead_back(url: bytes, *, route: ProxyRoute, target: bytes, mount: str, origin: str) -> bytes:
    """`url` as found in an answer to `target`, or what a caller should follow instead.

    Relative references are resolved first (RFC 3986 section 5), since they are relative to the upstream's path, not to
    ours. What leads to the upstream but not under the route's base path is left pointing there, where no token waits.

    `mount` is the path of the route with us; `origin` ours, or "" for an answer in path-absolute form.
    """
    text = url.decode("latin-1").strip()
    upstream = route.origin
    base = f"{upstream.scheme}://{upstream.authority.decode()}"
    if not text or not text.isascii() or not text.isprintable():
        return url
    try:
        absolute = urljoin(base + target.decode("latin-1"), text)
        parts = urlsplit(absolute)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return url
    if (parts.scheme, parts.hostname, port) != (upstream.scheme, upstream.host, upstream.port):
        return url
    path = parts.path
    base_path = route.base_path.decode()
    if path != base_path and not path.startswith(base_path + "/"):
        # Same host, so without what would look like our own path, and without any user name in it.
        return _join(base, path, parts.query, parts.fragment)
    return _join(origin + mount, path[len(base_path) :], parts.query, parts.fragment)


def _join(start: str, path: str, query: str, fragment: str) -> bytes:
    url = start + path
    if query:
        url += "?" + query
    if fragment:
        url += "#" + fragment
    return url.encode("ascii")
