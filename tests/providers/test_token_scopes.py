"""Scopes that a route asks of the user's token: the caller learns which are missing and where to get them."""

from __future__ import annotations

from typing import Any

import pytest

from idp_middleware import ProxyRoute, Token
from idp_middleware.errors import ConfigurationError
from tests.providers.conftest import problem
from tests.stack import Stack, running

CONNECT = "https://app.example/connect"


class Source:
    """What the user has granted by now."""

    connect_url: str | None = CONNECT

    def __init__(self, **options: Any) -> None:
        self.granted: dict[str, Token] = {}
        self.asked: list[Token | None] = []
        for name, value in options.items():
            setattr(self, name, value)

    async def token(self, caller: Any, route: Any, *, refused: Token | None = None) -> Token:
        self.asked.append(refused)
        return self.granted[caller.subject.partition("|")[2]]


def two_routes(source: Any) -> Any:
    """One asks for more than the other; both have the same tokens."""

    def routes(api: str, _: Any) -> dict[str, ProxyRoute]:
        return {
            "read": ProxyRoute(api, token_source=source, connection="github"),
            "write": ProxyRoute(api, token_source=source, connection="github", token_scopes={"repo", "gist", "user"}),
        }

    return routes


def test_missing_scopes_are_named() -> None:
    """Only those; and what needs none of them goes on."""
    source = Source(identity=("test",))
    source.granted["alice"] = Token("gho_alice_provider_token", scopes=frozenset({"gist", "more"}))
    with running(routes=two_routes(source)) as stack, stack.client() as client:
        assert client.get("/idp/read/user").status_code == 200
        stack.provider.clear()
        status, name, members = problem(client.get("/idp/write/user"))
        assert (status, name) == (403, "reconnect-required")
        assert (members["scopes"], members["connect_url"], members["connection"]) == (
            ["repo", "user"],
            CONNECT,
            "github",
        )
        assert stack.provider.requests == []
        assert client.get("/idp/read/user").status_code == 200
        assert set(source.asked) == {None}, "nothing was refused, so nothing has to be refreshed"


def granted(stack: Stack, source: Source, user: str = "alice") -> Token:
    token = Token(f"gho_{user}_more", scopes=frozenset({"repo", "gist", "user"}))
    source.granted[user] = token
    stack.provider.accept(token.value, login=user)
    return token


def test_a_user_who_comes_back_with_more_is_let_in_at_once() -> None:
    """The token that is kept may be good for an hour yet; what it lacks is asked for anew."""
    source = Source(identity=("test",))
    source.granted["alice"] = Token("gho_alice_provider_token", expires_at=4e9, scopes=frozenset({"gist"}))
    with running(routes=two_routes(source)) as stack, stack.client() as client:
        assert problem(client.get("/idp/write/user"))[1] == "reconnect-required"
        token = granted(stack, source)
        assert client.get("/idp/write/user").status_code == 200
        assert stack.provider.last.bearer == token.value
        asked = len(source.asked)
        assert client.get("/idp/write/user").status_code == client.get("/idp/read/user").status_code == 200
        assert len(source.asked) == asked, "and is kept from now on"


def test_a_caller_who_keeps_asking_does_not_drain_the_source() -> None:
    """As few times as with refusals."""
    source = Source(identity=("test",))
    source.granted["alice"] = Token("gho_alice_provider_token", expires_at=4e9, scopes=frozenset({"gist"}))
    with running(routes=two_routes(source)) as stack, stack.client() as client:
        for _ in range(20):
            assert problem(client.get("/idp/write/user"))[2]["scopes"] == ["repo", "user"]
    assert 2 <= len(source.asked) <= 5


def test_unknown_scopes_are_left_to_the_api() -> None:
    """Auth0's profile tells none: refusing would lock everybody out."""
    source = Source()
    source.granted["alice"] = Token("gho_alice_provider_token")
    with running(routes=two_routes(source)) as stack, stack.client() as client:
        assert client.get("/idp/write/user").status_code == 200


def test_a_source_that_knows_no_place_to_connect() -> None:
    """The member is left out, as everywhere."""

    async def source(caller: Any, route: Any) -> Token:
        return Token("gho_alice_provider_token", scopes=frozenset({"gist"}))

    with running(routes=two_routes(source)) as stack, stack.client() as client:
        members = problem(client.get("/idp/write/user"))[2]
        assert (members["scopes"], "connect_url" in members) == (["repo", "user"], False)


def test_tokens_that_nobody_keeps_are_looked_at_too() -> None:
    """Those of a source that has each answer depend on the request."""
    source = Source(cache_key=lambda caller, route: None)
    source.granted["alice"] = Token("gho_alice_provider_token", scopes=frozenset({"gist"}))
    with running(routes=two_routes(source)) as stack, stack.client() as client:
        assert problem(client.get("/idp/write/user"))[2]["scopes"] == ["repo", "user"]
        granted(stack, source)
        assert client.get("/idp/write/user").status_code == 200
        # Refused, and what comes instead is good for less.
        stack.provider.revoke("gho_alice_more")
        source.granted["alice"] = Token("gho_alice_more", scopes=frozenset({"repo", "gist", "user"}))
        assert client.get("/idp/write/user").status_code == 401


def test_a_renewed_token_that_is_good_for_less() -> None:
    """The user has taken back some of it; the API is not asked with that."""

    class Shrinking(Source):
        async def token(self, caller: Any, route: Any, *, refused: Token | None = None) -> Token:
            if refused is None:
                return Token("gho_alice_revoked", scopes=frozenset({"repo", "gist", "user"}))
            return Token("gho_alice_provider_token", scopes=frozenset({"gist"}))

    with running(routes=two_routes(Shrinking())) as stack, stack.client() as client:
        assert problem(client.get("/idp/write/user"))[2]["scopes"] == ["repo", "user"]
        assert [request.bearer for request in stack.provider.requests] == ["gho_alice_revoked"]


def test_scopes_are_a_list() -> None:
    """One string would ask for its letters."""
    with pytest.raises(ConfigurationError) as caught:
        ProxyRoute("https://api.example.com", token_source=Source(), token_scopes="repo")
    assert caught.value.key == "token_scopes"
