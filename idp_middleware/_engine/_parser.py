"""Bytes to a response (RFC 9112 sections 4 to 7). No sockets, no clock, no waiting.

httptools (llhttp, strict) reads heads and chunks; what it lets pass and a relay must not is refused here. A body of
known length, or up to the close, goes past it: the bytes objects that came in are handed on as they are.
"""

from __future__ import annotations

import sys

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from idp_middleware._engine._response import Response
from idp_middleware._types import RawHeaders
from idp_middleware.errors import UpstreamAborted, UpstreamUnreachable

MAX_HEAD = 64 * 1024
"""Bytes of a header section, and of trailers. Most stay under 8 KiB, but nothing bounds a Set-Cookie."""

MAX_FIELDS = 256
"""Field lines of a header section."""

MAX_INTERIM = 16
"""1xx responses before the final one (RFC 9110 section 15.2)."""

_UNBOUNDED = sys.maxsize


class _Stop(Exception):
    """Leaves httptools from within a callback."""


class ResponseParser:
    """Reads the responses of one connection; each starts with `begin`.

    After a `feed`, `complete` says whether the message has ended, and `reusable` whether another may follow it on the
    connection. The reason given for a refusal holds no byte of the response.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_fields",
        "_fruitless",
        "_interim",
        "_llhttp",
        "_refusal",
        "_response",
        "_spent",
        "complete",
        "ends_at_close",
        "left",
        "reusable",
    )

    _llhttp: HttpResponseParser
    _response: Response
    _fields: RawHeaders
    ends_at_close: bool
    """Whether the end of the connection is the end of the body."""
    left: int
    """Bytes that are still to come of a body whose length is known; 0 with no such body."""

    def __init__(self) -> None:
        self._spent = True

    def begin(self, response: Response, bodiless: bool) -> None:
        """Expect the response to a request; `bodiless` if that was HEAD (RFC 9112 section 6.3)."""
        if self._spent:
            # llhttp was left inside a body that went past it, or that never comes.
            self._llhttp = HttpResponseParser(self)
            self._spent = False
        self._response = response
        self._bodiless = bodiless
        self._fields = []
        self._fruitless = self._interim = self.left = 0
        self._refusal = ""
        self._chunked = self.ends_at_close = self.complete = self.reusable = False

    @property
    def untouched(self) -> bool:
        """Whether no byte has arrived since `begin`."""
        return not (self._fruitless or self._response.status)

    def feed(self, data: bytes) -> None:
        """Take what has arrived.

        Raises `UpstreamUnreachable` for what is no acceptable head, `UpstreamAborted` for a broken body.
        """
        response = self._response
        if self.left:
            self._take(response, data)
            return
        headless = not response.status
        # llhttp also takes RTSP, ICE, HTTP/0.9 and HTTP/2.0 for a response.
        if headless and not self._fruitless and not data.startswith(b"HTTP/1.") and not b"HTTP/1.".startswith(data):
            raise UpstreamUnreachable("the upstream does not answer in HTTP/1", error="http_protocol_error")
        before = response.size
        self._fruitless += len(data)
        surplus = False
        try:
            self._llhttp.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            if not self.complete:
                # llhttp's own reasons are fixed phrases.
                raise self._refused(headless, self._refusal or str(exc)) from None
            surplus = True
        if headless and response.status:
            self._fruitless = 0
            if self._bodiless:
                # A surplus too short for llhttp to report must not be taken for the next response.
                surplus = surplus or not (data.endswith(b"\r\n\r\n") or b"\r\n\r\n".endswith(data))
            if self._chunked or not self.complete:
                self._frame(response)
        elif response.size > before:
            self._fruitless = 0
        if self._fruitless > MAX_HEAD and not self.complete:
            # Heads and trailers are gathered by llhttp's caller without a bound of its own.
            raise self._refused(headless, "oversized header or trailer section")
        if surplus:
            self.reusable = False

    def _refused(self, headless: bool, reason: str) -> UpstreamUnreachable | UpstreamAborted:
        if headless:
            # Its head may have been taken for good before the rest of the packet was seen.
            self._response.status = 0
            return UpstreamUnreachable(f"the upstream's answer is refused: {reason}", error="http_protocol_error")
        return UpstreamAborted(f"the upstream's body is broken: {reason}")

    def _frame(self, response: Response) -> None:
        """How the body ends (RFC 9112 section 6.3); needed only where it did not come whole with the head."""
        length = None
        codings = []
        for name, value in response.headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                codings.append(value.strip().lower())
            elif name == b"content-type" and value[:17].lower() == b"text/event-stream":
                response.paced = False
        if codings and codings != [b"chunked"]:
            # Other codings were not asked for (TE), and could not be undone on the way.
            raise self._refused(True, "unknown transfer coding")
        if self.complete or codings:
            return
        self._spent = True
        if length is None:
            self.ends_at_close = True
            self.left = _UNBOUNDED
        else:
            self.left = length - response.size
            self.reusable = self._llhttp.should_keep_alive()

    def _take(self, response: Response, data: bytes) -> None:
        size = len(data)
        if size >= self.left:
            self.complete = True
            if size > self.left:
                data = data[: self.left]
                self.reusable = False
        self.left -= len(data)
        response.chunks.append(data)
        response.size += len(data)

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        # The parser takes off the white space before a value only (RFC 9112 section 5.1).
        self._fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        fields = self._fields
        self._fields = []  # Trailers must not join the header section (RFC 9110 section 6.5.1): they end here.
        status = self._llhttp.get_status_code()
        if status < 200:
            self._interim += 1
            if status < 100 or status == 101 or self._interim > MAX_INTERIM:
                self._refuse("status out of place")
            return
        if status > 599:
            self._refuse("status out of range")
        if len(fields) > MAX_FIELDS:
            self._refuse("too many header fields")
        if self._fruitless > MAX_HEAD and sum(len(name) + len(value) + 4 for name, value in fields) > MAX_HEAD:
            self._refuse("oversized header section")
        response = self._response
        response.headers = fields
        response.status = status
        if self._bodiless:
            self.complete = self._spent = True
            self.reusable = self._keeps_alive(fields)

    def on_chunk_header(self) -> None:
        self._chunked = True

    def on_body(self, data: bytes) -> None:
        if self.complete:
            raise _Stop
        response = self._response
        response.chunks.append(data)
        response.size += len(data)

    def on_message_complete(self) -> None:
        if not self._response.status:
            return
        self._spent = False
        if not self.complete:
            self.complete = True
            self.reusable = self._llhttp.should_keep_alive()

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        raise _Stop

    def _keeps_alive(self, fields: RawHeaders) -> bool:
        """As llhttp would say if it knew that no body follows (RFC 9112 section 9.3)."""
        if self._llhttp.should_keep_alive():
            return True
        return bool(self._llhttp.get_http_version() == "1.1") and not any(
            name == b"connection" and b"close" in value.lower() for name, value in fields
        )
