"""Answers that are looked through on their way: our URLs for the upstream's own, and its token for nobody's eyes.

Knows which answers, and what follows for their header fields; how to find is `_replacer`'s. All that can fail does so
before the answer starts, save what the body itself does. Knows nothing of how requests are sent.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from idp_middleware._inflated import INFLATED, Inflated
from idp_middleware._public_urls import mount_of, public_origin
from idp_middleware._replacer import BaseURL, Needles, Replacer, Texts
from idp_middleware._routes import ProxyRoute
from idp_middleware._types import RawHeaders, Token
from idp_middleware._upstream import UpstreamResponse
from idp_middleware._urls import DEFAULT_PORTS, Origin
from idp_middleware.errors import UpstreamUnreachable

# JSON and XML in all their flavours (RFC 6839 has the suffixes), and whatever calls itself text.
_TEXTUAL = re.compile(rb"[ \t]*(?:text/|(?:application/|[^/;,]+/[^/;,]+\+)(?:json|xml)[ \t]*(?:;|\Z))", re.IGNORECASE)

_OF_OTHER_BYTES = frozenset(
    {b"accept-ranges", b"content-digest", b"content-encoding", b"content-md5", b"digest", b"repr-digest"}
)
"""What is true of the bytes as they came only (RFC 9530), or offers a Range, which is not forwarded."""

_OF_ANOTHER_LENGTH = _OF_OTHER_BYTES | {b"content-length"}

_MASK = b"[redacted]"
_URL_ALPHABET = bytes.maketrans(b"+/", b"-_")

_SHORT = 8
"""Characters. A token of fewer could be part of any word, so it is looked for together with its scheme."""


async def rewritten(
    response: UpstreamResponse, *, route: ProxyRoute, token: Token, scope: Mapping[str, Any], prefix: str
) -> UpstreamResponse:
    """`response` as a route with `rewrite_bodies` or `scrub` passes it on. Waits for nothing.

    `token` is what the request was sent with; `prefix` is what all routes are under.

    Raises `UpstreamUnreachable` where `scrub` is asked for and the body is in a coding that can't be undone; then the
    response is closed.
    """
    try:
        return await _rewritten(response, route, token, scope, prefix)
    except BaseException:
        await response.aclose()
        raise


async def _rewritten(
    response: UpstreamResponse, route: ProxyRoute, token: Token, scope: Mapping[str, Any], prefix: str
) -> UpstreamResponse:
    status, fields = response.status, response.headers
    needles: list[Needles] = []
    if route.scrub:
        secrets = token_texts(token)
        fields = _scrubbed(fields, secrets)
        needles.append(secrets)
    coding = b"" if status in (204, 304) else _coding(fields)
    readable = not coding or coding in INFLATED
    # A part (206) is left as it is: nobody has asked for one, and its place in the whole would shift.
    led_back = route.rewrite_bodies and readable and status != 206 and _is_text(fields)
    if led_back:
        needles.append(_base_url(route.origin, route.base_path).becoming(_mount(route, scope, prefix)))
    if led_back or (needles and coding) or status == 304:
        # Not the bytes that the tag stands for (RFC 9110 section 8.8.1). A 304 does not say of what kind the copy is
        # that it speaks of, and a weak tag fits both (RFC 9111 section 4.3.4).
        fields = [(name, _weak(value) if name == b"etag" else value) for name, value in fields]
    response.headers = fields
    if not needles or status == 101:
        return response
    if not readable:
        raise UpstreamUnreachable(
            "an answer in a content coding that was not asked for", error="http_response_content_coding"
        )
    announced = _value(fields, b"content-length")
    untrue = _OF_ANOTHER_LENGTH if led_back or coding else _OF_OTHER_BYTES
    response.headers = [field for field in fields if field[0] not in untrue]
    if coding:
        response = Inflated(response)
    if not response.complete:
        return _Streamed(response, needles)
    body = await response.read()
    # Announced and not there is the body of an answer to HEAD.
    known = led_back and announced == b"%d" % len(body)
    for needle in needles:
        body = needle.replaced(body)
    if known:
        response.headers.append((b"content-length", b"%d" % len(body)))
    return _Whole(response, body)


def token_texts(token: Token) -> Texts:
    """How a token may be spelled in an answer, and a mask for each that is as long: no length has to change.

    As it is, percent-encoded (RFC 3986), in JSON with escaped slashes, and in the midst of anything in base64.
    """
    # Padding is no secret, and what most spellings differ in.
    value = token.value.rstrip("=")
    if len(value) < _SHORT:
        return _masked({token.authorization})
    percent = quote(value, safe="")
    lower = re.sub("%..", lambda escape: escape[0].lower(), percent)
    texts = {text.encode() for text in (value, percent, lower, value.replace("/", "\\/"))}
    for before in range(3):
        # Three bytes are four characters; those at either end that depend on the neighbours are left out.
        coded = base64.b64encode(bytes(before) + value.encode())
        coded = coded[(0, 2, 3)[before] : (before + len(value)) * 8 // 6]
        texts |= {coded, coded.translate(_URL_ALPHABET)}
    return _masked(texts)


def _masked(texts: set[bytes]) -> Texts:
    return Texts({text: _MASK.ljust(len(text), b"*")[: len(text)] for text in texts})


def _scrubbed(fields: RawHeaders, secrets: Texts) -> RawHeaders:
    # All at once, since there is nothing to find as good as always; no text has a line break in it.
    values = b"\n".join([value for _, value in fields])
    if secrets.replaced(values) is values:
        return fields
    return [(name, secrets.replaced(value)) for name, value in fields]


def _mount(route: ProxyRoute, scope: Mapping[str, Any], prefix: str) -> bytes:
    """Where the route is with us; without an origin where that can't be told. Nothing in it needs escaping in JSON."""
    return f"{public_origin(scope)}{mount_of(scope, prefix, route)}".encode()


@lru_cache(maxsize=1024)
def _base_url(origin: Origin, path: bytes) -> BaseURL:
    default = DEFAULT_PORTS[origin.scheme]
    return BaseURL(origin.scheme, origin.authority, default if origin.port == default else None, path)


def _value(fields: RawHeaders, name: bytes) -> bytes:
    return b", ".join([value for field, value in fields if field == name])


def _is_text(fields: RawHeaders) -> bool:
    return _TEXTUAL.match(_value(fields, b"content-type")) is not None


def _coding(fields: RawHeaders) -> bytes:
    codings = [coding.strip().lower() for coding in _value(fields, b"content-encoding").split(b",")]
    return b", ".join([coding for coding in codings if coding not in (b"", b"identity")])


def _weak(tag: bytes) -> bytes:
    return tag if tag.startswith(b"W/") else b"W/" + tag


class _Whole:
    """A response whose body is at hand."""

    __slots__ = ("_body", "_response", "complete", "headers", "status")

    def __init__(self, response: UpstreamResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.complete = True
        self._response = response
        self._body = body

    async def read(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def aclose(self) -> None:
        await self._response.aclose()


class _Streamed:
    """A response whose body is looked through as it arrives, for one kind of needles after the other."""

    __slots__ = ("_over", "_replacers", "_response", "headers", "status")

    def __init__(self, response: UpstreamResponse, needles: Iterable[Needles]) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._replacers = [Replacer(needle) for needle in needles]
        self._over = False

    @property
    def complete(self) -> bool:
        return self._over or self._response.complete

    async def read(self) -> bytes:
        while not self._over:
            last = self._response.complete
            data = await self._response.read()
            self._over = last or not data
            for replacer in self._replacers:
                data = replacer.feed(data)
                if self._over:
                    data += replacer.end()
            if data:
                return data
        return b""

    async def aclose(self) -> None:
        await self._response.aclose()
