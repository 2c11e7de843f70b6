"""The seam to whatever speaks HTTP to an upstream: raw bytes in, raw bytes out.

Narrower than httpx's, since a relay needs no URL, header or cookie objects: those cost more than the relaying. Knows
nothing of callers, tokens or routes.
"""

from __future__ import annotations

from typing import Protocol

from idp_middleware._types import RawHeaders, Timeout
from idp_middleware._urls import Origin


class RequestBody(Protocol):
    """A request body that is read as it arrives."""

    length: int | None
    """Bytes announced by Content-Length; None where the body is chunked."""

    async def read(self) -> bytes:
        """The next bytes, `b""` at the end. Raises what must break the upstream request off, never ends early."""
        ...

    def rewind(self) -> bool:
        """Start over from the first byte; False where some of them are gone."""
        ...


class UpstreamResponse(Protocol):
    """A response whose head has arrived."""

    status: int
    headers: RawHeaders

    @property
    def complete(self) -> bool:
        """Whether the whole body has arrived, so that one more `read` yields all that is left."""
        ...

    async def read(self) -> bytes:
        """Raw bytes as they came, `b""` at the end.

        Raises `errors.UpstreamAborted` when the body breaks off, and `errors.UpstreamTimeout` when it stalls.
        """
        ...

    async def aclose(self) -> None:
        """Let go of the connection: kept if the exchange is over, else closed. Never raises; may be called again."""
        ...


class Upstream(Protocol):
    """Sends requests to origins.

    Raises `errors.UpstreamUnreachable`, `errors.UpstreamTimeout`, and whatever the body's `read` raised. A cancelled
    `send` closes its connection.
    """

    async def send(
        self,
        origin: Origin,
        method: bytes,
        target: bytes,
        headers: RawHeaders,
        body: RequestBody | None,
        timeout: Timeout,
    ) -> UpstreamResponse: ...

    async def aclose(self) -> None: ...
