"""The double of a provider that rotates refresh tokens: strict enough to convict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from idp_middleware.testing import serve
from idp_middleware.testing.refresh import RotatingTokens


@pytest.fixture
def provider() -> RotatingTokens:
    return RotatingTokens()


@pytest.fixture
def client(provider: RotatingTokens) -> Iterator[httpx.Client]:
    with serve(provider) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        yield client


def refresh(client: httpx.Client, token: str, **changes: str) -> httpx.Response:
    form = {"grant_type": "refresh_token", "client_id": "client", "client_secret": "secret", "refresh_token": token}
    return client.post("/token", data={**form, **changes})


def me(client: httpx.Client, token: str) -> httpx.Response:
    return client.get("/me", headers={"authorization": f"Bearer {token}"})


def test_a_refresh_brings_new_tokens_and_ends_the_old_ones(provider: RotatingTokens, client: httpx.Client) -> None:
    """Of both kinds."""
    old = provider.log_in(scope="repo")
    assert me(client, old["access_token"]).json() == {"scope": "repo"}
    new: dict[str, Any] = refresh(client, old["refresh_token"]).json()
    assert (new["token_type"], new["expires_in"], new["scope"]) == ("bearer", 3600, "repo")
    assert me(client, new["access_token"]).status_code == 200
    assert me(client, old["access_token"]).status_code == 401
    assert [provider.valid(tokens[kind]) for tokens in (old, new) for kind in ("access_token", "refresh_token")] == [
        False,
        False,
        True,
        True,
    ]
    assert (provider.refreshes, provider.reuses) == (1, 0)


def test_a_second_use_revokes_all_of_that_login_and_nothing_else(
    provider: RotatingTokens, client: httpx.Client
) -> None:
    """As RFC 9700 section 4.14.2 has it."""
    other = provider.log_in()
    old = provider.log_in()
    new = refresh(client, old["refresh_token"]).json()
    for token in (old["refresh_token"], new["refresh_token"]):
        answer = refresh(client, token)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    assert me(client, new["access_token"]).status_code == 401
    assert (provider.refreshes, provider.reuses) == (1, 1)
    assert me(client, other["access_token"]).status_code == 200


def test_a_login_that_the_user_has_revoked_is_over(provider: RotatingTokens, client: httpx.Client) -> None:
    """In the provider's own settings."""
    tokens = provider.log_in()
    provider.revoke(tokens["access_token"])
    assert refresh(client, tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert me(client, tokens["access_token"]).status_code == 401
    assert provider.reuses == 0


def test_without_rotation_a_refresh_token_works_again_and_none_comes_back(
    provider: RotatingTokens, client: httpx.Client
) -> None:
    """Google's way."""
    provider.rotates = False
    tokens = provider.log_in()
    for _ in range(2):
        assert "refresh_token" not in refresh(client, tokens["refresh_token"]).json()
    assert provider.valid(tokens["refresh_token"])
    assert (provider.refreshes, provider.reuses) == (2, 0)


def test_access_tokens_expire(provider: RotatingTokens, client: httpx.Client) -> None:
    """After `lifetime`."""
    provider.lifetime = 0.0
    assert me(client, provider.log_in()["access_token"]).status_code == 401


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"refresh_token": "unknown"}, 400, "invalid_grant"),
        ({"refresh_token": ""}, 400, "invalid_grant"),
    ],
    ids=repr,
)
def test_what_is_not_right_is_refused(
    provider: RotatingTokens, client: httpx.Client, changes: dict[str, str], status: int, error: str
) -> None:
    """And spends nothing."""
    token = provider.log_in()["refresh_token"]
    answer = refresh(client, token, **changes)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert provider.valid(token)


def test_an_answer_can_come_after_the_deed(provider: RotatingTokens, client: httpx.Client) -> None:
    """Whoever leaves meanwhile has spent a refresh token and got nothing for it."""
    provider.answer_after = 30.0
    token = provider.log_in()["refresh_token"]
    with pytest.raises(httpx.ReadTimeout):
        client.post(
            "/token",
            data={
                "grant_type": "refresh_token",
                "client_id": "client",
                "client_secret": "secret",
                "refresh_token": token,
            },
            timeout=0.2,
        )
    assert (provider.refreshes, provider.valid(token)) == (1, False)
    provider.answer_after = 0.01
    token = provider.log_in()["refresh_token"]
    assert provider.valid(refresh(client, token).json()["refresh_token"])


def test_there_is_nothing_else(client: httpx.Client) -> None:
    """A wrong URL is not to look like a refusal."""
    assert client.get("/token").status_code == 404
    assert client.get("/").status_code == 404
