"""uvicorn's HTTP protocol, writing once what it would write piece by piece.

`idp-middleware serve` runs on it. Who runs uvicorn themselves asks for it by its name:

    uvicorn idp_middleware.asgi:app --http idp_middleware.uvicorn:OneWrite

uvicorn writes the head and the first piece of the body one after the other, and each answer when it is ready. Event
loops that write at once (asyncio's, and uvloop's since 0.23) then make two system calls and two packets of what is one,
and wake the reader up each time; that is most of what a relayed request costs. Knows asyncio's transports only, not how
uvicorn uses them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from idp_middleware._outbox import Outbox, outbox_of

__all__ = ["OneWrite"]

SHORT: Final = 16 * 1024
"""Bytes that may wait for the end of the step. What is long leaves at once, while the CPU has it in its cache."""

JOINED: Final = 128 * 1024
"""Bytes up to which a piece is copied behind what waits, which costs less than a write; longer ones follow.

Not with `writelines`: asyncio's does not stop a fast sender before Python 3.12.9 and 3.13.2 (CVE-2024-12254), and fails
on a connection that is lost before 3.13.10 and 3.14.1 (https://github.com/python/cpython/issues/136234).
"""


class OneWrite(HttpToolsProtocol):
    """uvicorn's own protocol on httptools, on a transport that gathers what is written in one step of the event loop.

    It leaves right after the step, so that nobody waits for the next event of a stream to see this one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, outbox_of(self.loop))))


class _Gathering:
    """A transport that keeps short writes until the step is over."""

    __slots__ = ("_held", "_outbox", "_release_later", "_size", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._held: list[bytes] = []
        self._size = 0
        self._release_later = self._release
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        size = len(data)
        if size > JOINED:
            self._release()
            self._transport.write(data)
            return
        first = not self._held
        self._held.append(data)
        self._size += size
        # Little waits that flow control does not see.
        if self._size > SHORT:
            self._release()
        elif first:
            self._outbox.add(self._release_later)

    def _release(self) -> None:
        held = self._held
        if held:
            data = held[0] if len(held) == 1 else b"".join(held)
            held.clear()
            self._size = 0
            # The caller may have left in between, and a closed transport of uvloop's raises.
            if not self.is_closing():
                self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        # Closing, another protocol's writes …: whatever comes next comes after what is held.
        self._release()
        return getattr(self._transport, name)
