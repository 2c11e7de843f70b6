"""TLS as an upstream is talked to. Knows nothing of HTTP but its name in ALPN."""

from __future__ import annotations

import asyncio
import ssl

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that a closing connection waits for the peer's close_notify; asyncio's own 30 would pile up sockets."""


def default_ssl_context() -> ssl.SSLContext:
    """The system's certificate authorities, host names verified, TLS 1.2 or later (RFC 9325 section 3.1.1)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def ended_cleanly(transport: asyncio.Transport) -> bool:
    """Whether it was the peer who ended a connection, and nobody on the way; plain TCP cannot tell.

    TLS has close_notify for it (RFC 9112 section 9.8), but the event loops do not pass on whether that came.
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
