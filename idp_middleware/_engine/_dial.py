"""Opening a connection, DNS to TLS, and how each step fails; and letting go of one that nobody reads.

Knows nothing of HTTP. Nothing here looks at proxies in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from itertools import chain, zip_longest
from typing import Any, TypeAlias

from idp_middleware._engine._tls import SHUTDOWN_TIMEOUT
from idp_middleware._urls import Origin
from idp_middleware.errors import UpstreamTimeout, UpstreamUnreachable

ATTEMPT_DELAY = 0.25
"""Seconds until the next address is tried beside the last (RFC 8305 section 8)."""

_Address: TypeAlias = tuple[socket.AddressFamily, Any]
_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


async def dial(
    loop: asyncio.AbstractEventLoop,
    protocol: Callable[[], asyncio.Protocol],
    origin: Origin,
    context: ssl.SSLContext | None,
    seconds: float,
) -> None:
    """Connect `protocol` to an origin, with TLS if there is a `context`.

    Raises `UpstreamUnreachable` or, after `seconds`, `UpstreamTimeout`; what they say is for the log.
    """
    options: dict[str, Any] = {}
    if context is not None:
        # The name is verified, and sent as SNI unless it is an address (RFC 6066 section 3).
        options.update(ssl=context, server_hostname=origin.host, ssl_shutdown_timeout=SHUTDOWN_TIMEOUT)
    try:
        async with asyncio.timeout(seconds):
            connection = await _connect(loop, await _resolve(loop, origin.host, origin.port))
            try:
                await loop.create_connection(protocol, sock=connection, **options)
            finally:
                if not isinstance(loop, asyncio.BaseEventLoop):
                    # uvloop has the descriptor now, and closes it. The socket object still names it, and would close
                    # whatever has that number by the time it is collected: uvloop lets go of it only where the
                    # connection ends in an orderly way (its issues 645 and 738).
                    connection.detach()
    except TimeoutError:
        raise UpstreamTimeout("connecting took too long") from None
    except socket.gaierror:
        raise UpstreamUnreachable("the host name was not resolved", error="dns_error") from None
    except ssl.SSLCertVerificationError as exc:
        raise UpstreamUnreachable(
            f"certificate not accepted: {exc.verify_message}", error="tls_certificate_error"
        ) from None
    except ssl.SSLError as exc:
        raise UpstreamUnreachable(
            f"no TLS connection: {exc.reason or type(exc).__name__}", error="tls_protocol_error"
        ) from None
    except OSError as exc:
        # Its own text may name addresses.
        reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
        error = "connection_refused" if isinstance(exc, ConnectionRefusedError) else None
        raise UpstreamUnreachable(f"no connection: {reason}", error=error) from None


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[_Address]:
    """The addresses to try, the system's favourite first, families by turns (RFC 8305 section 4)."""
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(host).version
        return [(socket.AF_INET6 if version == 6 else socket.AF_INET, (host, port))]
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [(family, address) for family, _, _, _, address in found]
    favoured = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    return [address for address in chain(*zip_longest(favoured, others)) if address is not None]


async def _connect(loop: asyncio.AbstractEventLoop, addresses: list[_Address]) -> socket.socket:
    """The first of the addresses that takes a connection.

    By ourselves, since uvloop tries each only after the one before has failed, and asyncio's race loses its winner
    when it is cancelled in the wrong moment.
    """
    if len(addresses) == 1:
        return await _attempt(loop, addresses[0])
    waiting = addresses[::-1]
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        while True:
            if waiting:
                attempts.add(loop.create_task(_attempt(loop, waiting.pop())))
            delay = ATTEMPT_DELAY if waiting else None
            done, _ = await asyncio.wait(attempts, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                attempts.remove(attempt)
                if attempt.exception() is None or not (attempts or waiting):
                    return attempt.result()
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_discard)


async def _attempt(loop: asyncio.AbstractEventLoop, address: _Address) -> socket.socket:
    connection = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(connection, address[1])
    except BaseException:
        connection.close()
        raise
    return connection


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


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
