"""The behaviour cases of a proxy that injects tokens, each with raw bytes over sockets, on both of uvicorn's parsers.

One stack per module and parser. Modules override `routes`, or `around` (what wraps the middleware).
"""

from __future__ import annotations

import pytest

from idp_middleware import ProxyRoute, Token
from tests.stack import PARSERS, recording_upstream, running

TOKENS = {"auth0|alice": "provider-token-of-alice", "auth0|bob": "provider-token-of-bob"}
"""What must reach the upstream, and nobody else."""


async def provider_token(caller, route):
    """A token source that needs no identity provider."""
    return Token(TOKENS[caller.subject])


async def app_behind(scope, receive, send):
    """What must never see a request under the prefix. It accepts everything, and has no lifespan."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.body", "body": b"the app"})
    elif scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "the app"})


@pytest.fixture(scope="module", params=PARSERS)
def parser(request):
    return request.param


@pytest.fixture(scope="module")
def recorder():
    with recording_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def routes(recorder):
    return {"up": ProxyRoute(f"{recorder.url}/base", token_source=provider_token)}


@pytest.fixture(scope="module")
def around():
    return lambda middleware: middleware


@pytest.fixture(scope="module")
def shared_stack(parser, routes, around):
    with running(http=parser, routes=lambda api, source: routes, app=app_behind, wrap=around) as stack:
        yield stack


@pytest.fixture
def upstream(recorder):
    """The upstream as it was at the start: nothing seen, and an answer of 200."""
    recorder.reset()
    return recorder


@pytest.fixture
def stack(shared_stack, upstream):
    """The gateway and its parties, in front of `upstream`."""
    return shared_stack
