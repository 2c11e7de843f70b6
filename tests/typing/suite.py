"""The suite of a user's app, for the same checkers: the doubles as a test uses them."""

from __future__ import annotations

from typing import Any, assert_type

from idp_middleware.testing import (
    Auth0,
    Entra,
    Identity,
    IntrospectionServer,
    Keycloak,
    Linked,
    ProviderAPI,
    RecordedRequest,
    RotatingTokens,
    RunningServer,
    SigningKey,
    TokenEndpoint,
    World,
    serve,
    signing_key,
)


def parties() -> tuple[Auth0, ProviderAPI]:
    auth0, github = Auth0("https://acme.eu.auth0.com/"), ProviderAPI()
    auth0.add_client("client", "secret", scopes=["read:users", "read:user_idp_tokens"])
    auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice", expires_in=3600)])
    auth0.link("auth0|alice", Identity("github", "102", access_token="gho_other"))
    github.accept("gho_alice", login="alice")
    key: SigningKey = signing_key("ES256")
    token = auth0.issue_token("auth0|alice", audience="https://api.example", scope="read", algorithm="ES256", key=key)
    assert_type(token, str)
    assert_type(auth0.count("/oauth/token"), int)
    assert_type(github.tokens_seen(), list[str])
    auth0.fail("/api/v2", status=503, times=1)
    github.respond("/user", status=200, headers={"x-a": "b"}, body={"login": "alice"})
    return auth0, github


def others() -> None:
    Keycloak(realm="acme").link("alice", "github", "gho_alice", expires_in=3600)
    Entra(tenant="acme.example").withhold_consent("alice")
    IntrospectionServer().issue_token("alice", scope="read")
    TokenEndpoint().refuse("invalid_grant")
    assert_type(RotatingTokens(rotates=False).log_in(scope="read"), dict[str, Any])


def a_world() -> World:
    world = World(audience="https://api.example")
    world.add("https://sso.example", Keycloak())
    linked: Linked = world.link("alice", "github", expires_in=3)
    assert_type(world.headers("alice", scope="read:github"), dict[str, str])
    assert_type(world.api("api.github.com"), ProviderAPI)
    world.revoke(linked)
    world.assert_not_called()
    return world


def a_test(app: object) -> RecordedRequest:
    auth0, github = parties()
    with serve(auth0) as idp, serve(github, host="127.0.0.1") as api:
        assert_type(idp, RunningServer)
        assert_type(api.url, str)
        assert_type(api.port, int)
    last: RecordedRequest = github.last
    assert_type(last.header("authorization"), str | None)
    return last


def mistakes() -> None:
    """Never run: each is for the checkers to find."""
    Identity("github")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Auth0().issue_token("alice")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ProviderAPI().accept(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
