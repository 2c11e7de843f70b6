"""uvicorn's HTTP protocol, writing an answer's head together with what follows it.

`idp-middleware serve` runs on it. Who runs uvicorn themselves asks for it by its name:

    uvicorn idp_middleware.asgi:app --http idp_middleware.uvicorn:OneWrite

uvicorn writes the head and the first piece of the body one after the other. Event loops that write at once (asyncio's,
and uvloop's since 0.23) then make two system calls and two packets of what is one, and system calls are most of what
a relayed request costs. Knows asyncio's transports only, not how uvicorn uses them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["OneWrite"]

COPIED: Final = 64 * 1024
"""Bytes up to which a piece of a body is joined to its head; longer ones are written after it, uncopied.

Not with `writelines`: asyncio's does not stop a fast sender before Python 3.12.9 and 3.13.2 (CVE-2024-12254), and fails
on a connection that is lost before 3.13.10 and 3.14.1 (https://github.com/python/cpython/issues/136234).
"""


class OneWrite(HttpToolsProtocol):
    """uvicorn's own protocol on httptools, on a transport that holds a head back until the step it is written in ends.

    Whatever follows in the same step of the event loop leaves with it, and a head that nothing follows (of a stream
    whose first piece is still to come) leaves right after that step.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Joining(transport, self.loop)))


class _Joining:
    """A transport that joins a head to the next write."""

    __slots__ = ("_head", "_let_go", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._let_go = self._release
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        head = self._head
        if head is not None:
            self._head = None
            if len(data) <= COPIED:
                self._transport.write(head + data)
            else:
                self._transport.write(head)
                self._transport.write(data)
        elif data[:5] == b"HTTP/":
            # At most one is held, so nothing waits that flow control does not see.
            self._head = data
            self._loop.call_soon(self._let_go)
        else:
            self._transport.write(data)

    def _release(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        # Closing, another protocol's writes …: whatever comes next comes after what is held.
        self._release()
        return getattr(self._transport, name)
