"""What a caller offers as subprotocols of a WebSocket, and the token that may be among it.

A page can't set `Authorization` on a WebSocket; what it offers is all it can say beside the URL, which ends up in logs.
Kubernetes takes tokens this way (https://github.com/kubernetes/kubernetes/pull/47740), and Jupyter Server, which also
has a name to choose instead (https://github.com/jupyter-server/jupyter_server/pull/1407). Knows nothing of what a token
means.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from starlette.types import Scope

from idp_middleware._types import RawHeaders
from idp_middleware.errors import BadRequest

BEARER = "idp.bearer"
"""With a dot and a token in base64url behind it, it is the token. By itself it is what we choose where the upstream
chooses none: browsers give up on a server that chooses none of what they offer."""

# RFC 6455 section 11.3.4: each is a token (RFC 9110 section 5.6.2).
_SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+\Z")


class Handshake(NamedTuple):
    """A caller's handshake as the GET request that it is."""

    scope: Scope
    """With the token where authenticators look for it, and with a method."""
    subprotocols: list[str]
    """What is offered to the upstream: never a token."""
    otherwise: str | None
    """The subprotocol to choose where the upstream chooses none."""


def read_handshake(scope: Scope, *, bearer: bool) -> Handshake:
    """Take what is ours out of a caller's offers. A token among them counts only if `bearer`.

    Raises `BadRequest` for a malformed offer, and for more than one token: two readers might choose different ones.
    """
    subprotocols: list[str] = []
    tokens: list[str] = []
    otherwise = None
    for offered in scope.get("subprotocols") or ():
        if not _SUBPROTOCOL.match(offered):
            raise BadRequest("malformed Sec-WebSocket-Protocol")
        if offered == BEARER:
            otherwise = BEARER
        elif offered.startswith(f"{BEARER}."):
            tokens.append(offered.removeprefix(f"{BEARER}."))
        else:
            subprotocols.append(offered)
    fields: RawHeaders = [field for field in scope["headers"] if field[0].lower() != b"sec-websocket-protocol"]
    if tokens and bearer:
        if len(tokens) > 1 or any(name.lower() == b"authorization" for name, _ in fields):
            raise BadRequest("more than one token")
        fields.append((b"authorization", b"Bearer " + _decoded(tokens[0])))
    # Forwarded, and in absolute URLs of a refusal, the scheme is that of requests.
    scheme = scope.get("scheme", "ws").replace("ws", "http")
    request = {**scope, "method": "GET", "scheme": scheme, "headers": fields, "subprotocols": subprotocols}
    return Handshake(request, subprotocols, otherwise)


def _decoded(text: str) -> bytes:
    try:
        if _BASE64URL.match(text):
            token = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            if all(0x20 < byte < 0x7F for byte in token):
                return token
    except binascii.Error:
        pass
    raise BadRequest("malformed token in Sec-WebSocket-Protocol")
