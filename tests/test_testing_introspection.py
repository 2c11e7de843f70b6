"""The authorization server's stand-in is as strict as RFC 7662 lets it be: what passes here must not fail there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import time_machine

from idp_middleware.testing import IntrospectionServer, serve

CLIENT = ("the-api", "secret")
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def server() -> IntrospectionServer:
    server = IntrospectionServer("https://login.example")
    server.add_client(*CLIENT)
    return server


@pytest.fixture
async def client(server: IntrospectionServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="https://login.example") as client:
        yield client


async def test_says_what_it_knows_of_an_active_token(server: IntrospectionServer, client: httpx.AsyncClient) -> None:
    """Section 2.2."""
    with time_machine.travel(1_800_000_000, tick=False):
        token = server.issue_token("alice", scope="a b", expires_in=60)
        answer = await client.post("/introspect", data={"token": token, "token_type_hint": "x"}, auth=CLIENT)
    assert answer.json() == {
        "active": True,
        "iss": "https://login.example",
        "sub": "alice",
        "client_id": "a-single-page-app",
        "token_type": "Bearer",
        "iat": 1_800_000_000,
        "exp": 1_800_000_060,
        "scope": "a b",
    }


async def test_says_nothing_of_any_other(server: IntrospectionServer, client: httpx.AsyncClient) -> None:
    """Section 2.2: whoever asks must not learn whether a token ever was one."""
    expired, revoked = server.issue_token("alice", expires_in=-1), server.issue_token("alice")
    server.revoke(revoked)
    for token in (expired, revoked, "unknown"):
        answer = await client.post("/introspect", data={"token": token}, auth=CLIENT)
        assert (answer.status_code, answer.json()) == (200, {"active": False})


async def test_a_clients_own_token_names_no_user(server: IntrospectionServer, client: httpx.AsyncClient) -> None:
    """As the client-credentials grant makes them."""
    answer = await client.post("/introspect", data={"token": server.issue_token(None)}, auth=CLIENT)
    assert answer.json()["active"] is True
    assert "sub" not in answer.json()


@pytest.mark.parametrize(
    "auth", [None, ("the-api", "wrong"), ("other", "secret"), "Bearer x", "Basic !", "Basic /w==", "Basic dGhlLWFwaQ=="]
)
async def test_asks_who_asks(client: httpx.AsyncClient, auth: Any) -> None:
    """Section 2.1: or else anyone could try tokens out."""
    headers = {"authorization": auth} if isinstance(auth, str) else {}
    auth = auth if isinstance(auth, tuple) else None
    answer = await client.post("/introspect", data={"token": "t"}, auth=auth, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    "question",
    [
        {"content": "token=t"},
        {"json": {"token": "t"}},
        {"data": {"token": "t"}, "params": {"a": "b"}},
        {"data": {}, "headers": FORM},
        {"data": {"token": ""}},
        {"content": "token=t&token=t", "headers": FORM},
        {"data": {"token": "t", "client_secret": "secret"}},
    ],
)
async def test_refuses_other_ways_to_ask(client: httpx.AsyncClient, question: dict[str, Any]) -> None:
    """Section 2.1 has one form in the body; RFC 6749 section 2.3 one way to authenticate."""
    answer = await client.post("/introspect", auth=CLIENT, **question)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(("method", "path"), [("GET", "/introspect"), ("POST", "/introspect/"), ("POST", "/token")])
async def test_other_endpoints_are_not_there(client: httpx.AsyncClient, method: str, path: str) -> None:
    """Section 2.1: by POST alone."""
    assert (await client.request(method, path, auth=CLIENT)).status_code == 404


def test_serve_names_it() -> None:
    """The issuer is where it can be reached."""
    server = IntrospectionServer()
    with serve(server) as running:
        assert server.issuer == running.url + "/"
