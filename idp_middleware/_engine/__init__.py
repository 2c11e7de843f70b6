"""Our own HTTP/1.1 client for relaying: raw bytes in, raw bytes out, on asyncio and httptools.

Imports run one way, and each file knows only what stands below it:

    _client       sends one request: framing, the one retry, the event loop   -> Engine
    _pool         the connections to one origin: reuse, bounds, waiting
    _connection   one connection: time-outs, back-pressure, the upload, its end
    _deadline     its one timer
    _dial         opening a connection, and how that fails
    _tls          whom to trust, and who ended it
    _parser       bytes to a response; no sockets, no clock
    _response     what the caller reads from
    _request      bytes of a request head

Beside it, on the same `_dial`, `_tls` and `_request`, and imported only for routes that take WebSockets:

    _websocket_client    opens WebSocket connections, and knows those that are open
    _websocket           one of them
    _websocket_messages  what has arrived on it
"""

from idp_middleware._engine._client import Engine

__all__ = ["Engine"]
