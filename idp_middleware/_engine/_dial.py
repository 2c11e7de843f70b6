"""Opening a connection: DNS, TCP and TLS, and how each of them fails.

Knows nothing of HTTP but the protocol name. Nothing here looks at proxies in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from typing import Any

from idp_middleware._routes import Origin
from idp_middleware.errors import UpstreamTimeout, UpstreamUnreachable

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds until the next address is tried beside the first (RFC 8305 section 8)."""

TLS_SHUTDOWN_TIMEOUT = 2.0
"""Seconds that a closing connection waits for the peer's close_notify; asyncio's own 30 would pile up sockets."""

_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def default_ssl_context() -> ssl.SSLContext:
    """The system's certificate authorities, host names verified, TLS 1.2 or later (RFC 9325 section 3.1.1)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(
    loop: asyncio.AbstractEventLoop,
    protocol: Callable[[], asyncio.Protocol],
    origin: Origin,
    context: ssl.SSLContext | None,
    seconds: float,
) -> None:
    """Connect `protocol` to an origin, with TLS if there is a `context`.

    Raises `UpstreamUnreachable` or, after `seconds`, `UpstreamTimeout`; what it says is for the log.
    """
    options: dict[str, Any] = {}
    if context is not None:
        # The name is verified, and sent as SNI unless it is an address (RFC 6066 section 3).
        options.update(ssl=context, server_hostname=origin.host, ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT)
    if isinstance(loop, asyncio.BaseEventLoop):
        # uvloop tries one address after the other.
        options["happy_eyeballs_delay"] = HAPPY_EYEBALLS_DELAY
    try:
        async with asyncio.timeout(seconds):
            await loop.create_connection(protocol, origin.host, origin.port, **options)
    except TimeoutError:
        raise UpstreamTimeout("connecting took too long") from None
    except socket.gaierror:
        raise UpstreamUnreachable("the host name was not resolved") from None
    except ssl.SSLCertVerificationError as exc:
        raise UpstreamUnreachable(f"certificate not accepted: {exc.verify_message}") from None
    except ssl.SSLError as exc:
        raise UpstreamUnreachable(f"no TLS connection: {exc.reason or type(exc).__name__}") from None
    except OSError as exc:
        # asyncio's own text names the addresses that were tried.
        raise UpstreamUnreachable(
            f"no connection: {os.strerror(exc.errno) if exc.errno else type(exc).__name__}"
        ) from None


def reset_on_close(transport: asyncio.Transport) -> None:
    """Let go of what the kernel still holds to be sent.

    Closing alone waits behind it, for as long as the peer does not read; and what is left of a broken request is of
    no use to anybody.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # It may have been closed by now; then there is nothing left to let go of.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def ended_cleanly(transport: asyncio.Transport) -> bool:
    """Whether a connection that the peer has closed was closed by the peer, and not by anybody on the way.

    TLS has close_notify to tell (RFC 9112 section 9.8); the event loops do not pass on whether it came.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        pass
    return False
