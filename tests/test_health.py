"""`GET /idp/health` and `/idp/ready`: for whoever runs the process, and nobody learns anything from them."""

from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from idp_middleware import IdPMiddleware
from tests.stack import PARSERS, running


async def nobody(conn):
    raise AssertionError("not asked")


@pytest.fixture(params=PARSERS)
def stack(request):
    with running(http=request.param) as stack:
        yield stack


@pytest.mark.parametrize("path", ["/idp/health", "/idp/ready"])
def test_anybody_is_told_ok_and_no_more(stack, path):
    """Probes have no token. Nothing is asked of anybody, so a probe each second costs nothing."""
    with stack.client(None) as client:
        answer = client.get(path)
        assert (answer.status_code, answer.text, answer.headers["cache-control"]) == (200, "ok", "no-store")
        head = client.head(path)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "2")
        wrong = client.post(path, content=b"x" * 100)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
        # Raw, as everything under the prefix.
        assert client.get(path + "/").status_code == client.get(path.upper()).status_code == 404
    assert stack.auth0.requests == stack.provider.requests == []


def test_it_is_ready_although_the_identity_provider_is_down(stack):
    """A fleet that left service with it would take down what kept tokens could still do."""
    stack.idp.stop()
    with stack.client() as client:
        assert client.get("/idp/github/user").status_code in (502, 503)
        assert client.get("/idp/ready").status_code == 200


def test_it_is_alive_but_not_ready_once_it_closes(stack):
    """So that whoever shares out requests sends new ones elsewhere."""
    asyncio.run(stack.middleware.aclose())
    with stack.client(None) as client:
        ready = client.get("/idp/ready")
        assert (ready.status_code, ready.text) == (503, "closing")
        assert client.get("/idp/health").status_code == 200


def test_it_is_ready_again_once_the_app_starts_again():
    """An app under test is started for each of them."""
    idp = IdPMiddleware(routes={}, authenticator=nobody)
    for _ in range(2):
        with TestClient(idp) as client:
            assert client.get("/idp/ready").text == "ok"
