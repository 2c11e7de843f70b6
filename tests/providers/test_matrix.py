"""Each preset × what can become of a request: the right requests to the API, the right answer to the caller."""

from __future__ import annotations

import json

import pytest

from idp_middleware.errors import IdentityNotLinked, ReconnectRequired
from tests.providers.conftest import OK, User, problem
from tests.providers.facts import FACTS, Said

each_preset = pytest.mark.parametrize("user", FACTS, indirect=True)


def came_with(user: User) -> list[str]:
    """The tokens of the requests that the API saw; each request was sent as its vendor wants it."""
    tokens = []
    for request in user.sent:
        kind, _, token = (request.header("authorization") or "").partition(" ")
        if user.route == "x_oauth1":
            assert kind == "OAuth"
            token = next(part for part in token.split(", ") if part.startswith("oauth_token="))[13:-1]
        else:
            assert kind == "Bearer"
        tokens.append(token)
        facts = FACTS[user.route]
        for name, value in {**facts.default, **facts.fixed}.items():
            if name not in ("accept", "user-agent") or name in facts.fixed:
                assert request.header(name) == value
        assert request.header("cookie") is None
        assert user.stack.token(user.name) not in str(request.headers)
    return tokens


def as_said(answer, said: Said) -> None:
    body = said.body.encode() if isinstance(said.body, str) else json.dumps(said.body).encode()
    assert (answer.status_code, answer.content) == (said.status, body)
    assert dict(answer.headers).items() >= dict(said.headers).items()


@each_preset
def test_a_valid_token(user: User) -> None:
    """One request, under the API's base URL, with the user's own token."""
    user.holds("token-1")
    user.api_says(OK)
    answer = user.call(path="/things/a%2Fb?x=1&x=2", headers={"cookie": "session=1"})
    as_said(answer, OK)
    assert came_with(user) == ["token-1"]
    base = FACTS[user.route].upstream.partition("://")[2].partition("/")[1:]
    target = user.sent[0].target.decode()
    assert target.startswith("".join(base) + "/things/a%2Fb?x=1&x=2")
    assert user.asked == [None]


@each_preset
def test_refused_once_then_renewed(user: User) -> None:
    """The caller never hears of it; the body arrives twice, the same."""
    user.holds("token-1", "token-2")
    user.api_says(FACTS[user.route].refused, OK)
    answer = user.call("POST", content=b'{"name": "thing"}', headers={"content-type": "application/json"})
    as_said(answer, OK)
    assert came_with(user) == ["token-1", "token-2"]
    assert [request.body for request in user.sent] == [b'{"name": "thing"}'] * 2
    assert user.asked == [None, "token-1"]
    user.api_says(OK)
    user.call()
    assert came_with(user)[2:] == ["token-2"], "what was renewed is kept"


@each_preset
def test_refused_twice(user: User) -> None:
    """The API's own words pass, and there is no third time."""
    refused = FACTS[user.route].refused
    user.holds("token-1", "token-2", "token-3")
    user.api_says(refused, refused)
    answer = user.call()
    as_said(answer, refused)
    assert came_with(user) == ["token-1", "token-2"]
    if refused.status == 401:
        assert answer.headers["proxy-status"] == "idp_middleware; received-status=401"


@each_preset
def test_refused_and_no_other_token(user: User) -> None:
    """Trying the same again would be pointless; what the API said is whole, though we have looked into it."""
    refused = FACTS[user.route].refused
    user.holds("token-1")
    user.api_says(refused)
    as_said(user.call(), refused)
    assert came_with(user) == ["token-1"]
    assert user.asked == [None, "token-1"]


@each_preset
def test_rate_limited(user: User) -> None:
    """That is no refusal of the token, whatever the status: nothing is renewed, and the caller is told how long."""
    limited = FACTS[user.route].limited
    user.holds("token-1", "token-2")
    user.api_says(limited)
    as_said(user.call(), limited)
    assert came_with(user) == ["token-1"]
    assert user.asked == [None]


@each_preset
def test_not_linked(user: User) -> None:
    """The API hears nothing."""
    user.holds(IdentityNotLinked("no such account", connection=user.route))
    status, name, members = problem(user.call())
    assert (status, name, members["connection"]) == (403, "identity-not-linked", user.route)
    assert user.sent == []


@each_preset
def test_reconnect(user: User) -> None:
    """Refused, and the identity provider has nothing better either."""
    gone = ReconnectRequired("withdrawn", connection=user.route, connect_url="https://app.example/connect")
    user.holds("token-1", gone)
    user.api_says(FACTS[user.route].refused)
    status, name, members = problem(user.call())
    assert (status, name) == (403, "reconnect-required")
    assert members["connect_url"] == "https://app.example/connect"
    assert came_with(user) == ["token-1"]
