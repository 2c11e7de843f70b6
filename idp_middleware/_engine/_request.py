"""The bytes of a request: its head, and its body as it is framed (RFC 9112 sections 6 and 7.1).

Knows nothing of connections. Field names and values come from a server's parser or from checked configuration; what is
looked at here is only what could end a line early, since that would be a second request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from idp_middleware._types import RawHeaders
from idp_middleware._upstream import RequestBody
from idp_middleware.errors import BadRequest

SMALL_BODY = 64 * 1024
"""Bytes of a body that are gathered before a connection is taken.

A slow client then holds no connection, and the request leaves in one write.
"""

_field = b": ".join


class BodyLengthMismatch(BadRequest):
    """The body does not have the length that was announced."""


def encode_head(method: bytes, target: bytes, version_and_host: bytes, headers: RawHeaders, framing: bytes) -> bytes:
    """Request line and header section (RFC 9112 sections 3 and 5).

    `version_and_host` goes from the space after the target to the end of the `Host` line, `framing` is a field line
    or nothing; neither ends its line. Raises `BadRequest` for a byte that would end a line.
    """
    lines = [version_and_host, *map(_field, headers)]
    if framing:
        lines.append(framing)
    head = b"%b %b%b\r\n\r\n" % (method, target, b"\r\n".join(lines))
    # One CR LF ends each line (the first holds two), one more the head. Integers are found faster than bytes.
    ends = len(lines) + 2
    if head.count(0x0A) != ends or head.count(0x0D) != ends or 0 in head or 0x20 in target:
        raise BadRequest("unsafe byte in the request head")
    return head


async def gather(body: RequestBody, length: int) -> bytes:
    """The whole of a body of `length` bytes.

    Raises `BodyLengthMismatch`, or what the body's `read` raises.
    """
    content = await body.read()
    while more := await body.read() if content else b"":
        content += more
        if len(content) > length:
            break
    if len(content) != length:
        raise _mismatch()
    return content


async def send_all(
    body: RequestBody, transport: asyncio.WriteTransport, drained: Callable[[], Awaitable[None]]
) -> None:
    """Write a body as it arrives, framed as its length says; `drained` waits until more may be written.

    Raises as `gather`; what has been written by then does not look like a whole request.
    """
    left = body.length
    while chunk := await body.read():
        if left is None:
            # No `writelines`: asyncio's never says that it has enough before Python 3.12.9 and 3.13.2 (CVE-2024-12254),
            # and fails in its own way on a connection that is lost before 3.13.10 and 3.14.1 (cpython issue 136234).
            transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        else:
            left -= len(chunk)
            # The last piece waits for the end of the body, which might be too long.
            if left < 0 or (left == 0 and await body.read()):
                raise _mismatch()
            transport.write(chunk)
        await drained()
    if left:
        raise _mismatch()
    if left is None:
        transport.write(b"0\r\n\r\n")


def _mismatch() -> BodyLengthMismatch:
    return BodyLengthMismatch("the request body does not have the announced length")
