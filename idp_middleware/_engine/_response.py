"""A response whose head has arrived, and the body as it arrives.

Filled by the parser and the connection, emptied by the caller. Once the body is whole it holds no connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp_middleware._types import RawHeaders
from idp_middleware.errors import UpstreamAborted

if TYPE_CHECKING:
    from idp_middleware._engine._connection import Connection


class Response:
    """See `idp_middleware._upstream.UpstreamResponse`. Header names are lower-case, order and duplicates as sent."""

    __slots__ = ("chunks", "complete", "connection", "failure", "headers", "paced", "size", "status")

    status: int
    """0 until the head of a final response has arrived."""
    headers: RawHeaders
    complete: bool
    connection: Connection | None
    """None once the exchange is over, either way."""
    failure: BaseException | None
    paced: bool
    """Whether a silence in the body counts as a failure."""
    chunks: list[bytes]
    size: int
    """Bytes in `chunks`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.status = 0
        self.complete = False
        self.failure = None
        self.paced = True
        self.chunks = []
        self.size = 0

    async def read(self) -> bytes:
        """Everything that has arrived since the last call, `b""` at the end.

        Raises `errors.UpstreamAborted` when the body breaks off, and `errors.UpstreamTimeout` when it stalls; what
        arrived before that is handed over first.
        """
        while not self.chunks:
            if self.complete:
                return b""
            if self.failure is not None:
                raise self.failure
            connection = self.connection
            if connection is None:
                raise UpstreamAborted("the response was closed before its end")
            try:
                await connection.expect_body(self)
            except BaseException:
                connection.abort()
                raise
        chunks = self.chunks
        # Joined, since passing each on costs far more than copying it.
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        if self.connection is not None:
            self.connection.resume_reading()
        return data

    async def aclose(self) -> None:
        """Let go of the connection: it is kept if the exchange is over, else closed. May be called again."""
        if self.connection is not None:
            self.connection.abort()
        self.chunks.clear()
