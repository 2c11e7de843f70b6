"""Hops 4 and 5 of a request's way: the caller's token, and the request sent with it; once more where it is refused.

The same for what callers send through the middleware and for what the app sends itself (`_client`). Knows the token
engine and the seam to upstreams; nothing of ASGI, and not who may send what.
"""

from __future__ import annotations

import logging

from idp_middleware._refusal import look_at
from idp_middleware._routes import ProxyRoute
from idp_middleware._signing import tailored
from idp_middleware._tokens import TokenEngine
from idp_middleware._types import Caller, RawHeaders, Timeout, Token
from idp_middleware._upstream import RequestBody, Upstream, UpstreamResponse
from idp_middleware.errors import IdentityNotLinked, TokenError, UpstreamUnreachable

logger = logging.getLogger("idp_middleware")


async def send_authorized(
    tokens: TokenEngine,
    upstream: Upstream,
    caller: Caller,
    route: ProxyRoute,
    *,
    method: str,
    rest: bytes,
    query: bytes,
    target: bytes,
    headers: RawHeaders,
    body: RequestBody | None,
    timeout: Timeout,
) -> tuple[UpstreamResponse, Token, ProxyRoute, bytes]:
    """Send a request to a route's upstream with the caller's token, up to the head of the response.

    Returns that response; the token that it was sent with, at last; the route, at the user's own server if users have
    one each; and the target that references in the answer are relative to.

    `target` is what `ProxyRoute.target` makes of `rest` and `query`. `headers` are all but `Authorization`, which is
    added to this list. Raises `errors.IdPError`, and what the body's `read` raises.
    """
    token = await tokens.token(caller, route)
    headers.append((b"authorization", token.authorization))
    at, sent = route, target
    for attempt in (1, 2):
        if route.tailored:
            at, target, sent, headers[-1] = await tailored(
                route, token, method=method, rest=rest, query=query, headers=headers[:-1], body=body
            )
        response = await upstream.send(at.origin, method.encode(), sent, headers, body, timeout)
        if response.status not in route.suspect or attempt == 2:
            break
        response, refused = await look_at(response, route.refused)
        renewed = await _renewed(tokens, caller, route, token, response) if refused else None
        if renewed is None or (body is not None and not body.rewind()):
            break
        await response.aclose()
        token = renewed
        headers[-1] = (b"authorization", token.authorization)
    if response.status in (407, 421):
        # Both speak of the connection between us and the upstream (RFC 9110 sections 15.5.8 and 15.5.20).
        await response.aclose()
        raise UpstreamUnreachable(f"status {response.status}")
    return response, token, at, target


async def _renewed(
    tokens: TokenEngine, caller: Caller, route: ProxyRoute, refused: Token, response: UpstreamResponse
) -> Token | None:
    """Another token after a refusal; None where the refusal stands."""
    try:
        renewed = await tokens.renew(caller, route, refused)
    except IdentityNotLinked:
        await response.aclose()
        raise
    except TokenError as exc:
        logger.warning("route %s: no other token after a refusal: %s", route.name, exc)
        return None
    except BaseException:
        await response.aclose()
        raise
    return None if renewed.value == refused.value else renewed
