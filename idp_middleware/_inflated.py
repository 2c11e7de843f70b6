"""A compressed answer, read as what was compressed.

Bounded at each step, so that a few bytes that unfold to gigabytes cost no memory and go no faster than the caller
reads. Knows nothing of why anybody looks inside.
"""

from __future__ import annotations

import zlib

from idp_middleware._upstream import UpstreamResponse
from idp_middleware.errors import UpstreamAborted

INFLATED = frozenset({b"gzip", b"x-gzip", b"deflate"})
"""The content codings (RFC 9110 section 8.4.1) that can be undone here."""

_STEP = 256 * 1024
"""Bytes that one `read` yields at most."""

_EITHER_HEADER = 32 + zlib.MAX_WBITS
"""Take a zlib or a gzip header, whichever comes; "deflate" means the former."""


class Inflated:
    """See `idp_middleware._upstream.UpstreamResponse`. `response` is coded with one of `INFLATED`.

    `read` raises `UpstreamAborted` for what is not so coded, and for an end before the end of the compressed data.
    """

    __slots__ = ("_full", "_input", "_response", "_zlib", "complete", "headers", "status")

    def __init__(self, response: UpstreamResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.complete = False
        self._response = response
        self._zlib: zlib._Decompress | None = None
        self._input = b""
        self._full = False

    async def read(self) -> bytes:
        while not self.complete:
            if not self._input and not self._full:
                self._input = await self._response.read()
                if not self._input:
                    if self._zlib is not None and not self._zlib.eof:
                        raise UpstreamAborted("the compressed body ends early")
                    self.complete = True
                    break
            if data := self._inflate():
                return data
        return b""

    def _inflate(self) -> bytes:
        if self._zlib is None or self._zlib.eof:
            # The first, or one more of the members that a gzip file may have (RFC 1952 section 2.2).
            self._zlib = zlib.decompressobj(_EITHER_HEADER)
        try:
            data = self._zlib.decompress(self._input, _STEP)
        except zlib.error:
            raise UpstreamAborted("the compressed body is broken") from None
        # A full step may have left more inside, with no input to show for it.
        self._full = len(data) == _STEP and not self._zlib.eof
        self._input = self._zlib.unconsumed_tail or self._zlib.unused_data
        return data

    async def aclose(self) -> None:
        self._input = b""
        await self._response.aclose()
