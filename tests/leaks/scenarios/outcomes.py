"""What may become of a request in any set-up of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from idp_middleware.testing._double import Answer as IdPAnswer
from tests.leaks.authority import repeating, repeating_as_code
from tests.leaks.scenarios.parts import always, by_token, expect, hang_up_after, reply
from tests.leaks.world import World

Run = Callable[[World], None]


def goes_through(world: World) -> None:
    for user in ("alice", "bob", "alice"):
        expect(world, 200, user=user)
        expect(world, 200, "POST", user=user, body=b"some content")


def refused_and_renewed(world: World) -> None:
    """By the upstream, which then takes the new one where there is one."""
    expect(world, 200)
    refused = {world.token_of("alice")}
    world.tap.answer = by_token(world, refused)
    world.authority.renew("alice")
    expect(world, (200, 401), "POST", body=b"once and again")


def refused_for_good(world: World) -> None:
    world.tap.answer = reply("401 Unauthorized", "WWW-Authenticate: Bearer")
    expect(world, 401)


def upstream_breaks_off(world: World) -> None:
    world.tap.answer = always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"))
    expect(world, 200)


def idp_repeats_our_request(world: World) -> None:
    """In its error: some servers do, and so do frameworks in debug mode."""
    world.authority.echo = repeating
    expect_error(world)


def idp_repeats_our_request_as_code(world: World) -> None:
    world.authority.echo = repeating_as_code
    expect_error(world)


def idp_fails(world: World) -> None:
    """With a page that repeats our request."""

    def page(request: Any) -> IdPAnswer | None:
        answer = repeating(request)
        return None if answer is None else IdPAnswer(500, f"<pre>{answer.body}</pre>")

    world.authority.echo = page
    expect_error(world)


def idp_answers_nonsense(world: World) -> None:
    """A success that repeats our request where the token should be."""

    def page(request: Any) -> IdPAnswer | None:
        answer = repeating(request)
        if answer is None or not isinstance(answer.body, dict):
            return None
        said = answer.body["message"]
        return IdPAnswer(200, {"access_token": [said], "active": said, "token_type": said, "identities": said})

    world.authority.echo = page
    expect_error(world)


def idp_hangs_up(world: World) -> None:
    for path in WITH_SECRETS:
        world.authority.drop(path)
    expect_error(world)


def idp_is_slow(world: World) -> None:
    for path in WITH_SECRETS:
        if path != "/introspect":
            world.authority.stall(path, 3.0)
    expect_error(world)


WITH_SECRETS = (
    "/oauth/token", "/api/v2", "/introspect", "/exchange", "/acme", "/realms", "/client-credentials", "/refresh",
)  # fmt: skip


def expect_error(world: World) -> None:
    """An answer of ours, unless the set-up never asks."""
    answer = world.ask()
    if world.set_up.name not in ("static", "pass through"):
        assert answer.status in (401, 403, 502, 503, 504), answer


OUTCOMES: Mapping[str, Run] = {
    "goes through": goes_through,
    "is refused and renewed": refused_and_renewed,
    "is refused for good": refused_for_good,
    "breaks off": upstream_breaks_off,
    "meets an identity provider that repeats our request": idp_repeats_our_request,
    "meets an identity provider that repeats our request as the code of an error": idp_repeats_our_request_as_code,
    "meets an identity provider that fails": idp_fails,
    "meets an identity provider that answers nonsense": idp_answers_nonsense,
    "meets an identity provider that hangs up": idp_hangs_up,
    "meets an identity provider that is slow": idp_is_slow,
}
IMPATIENT = {idp_is_slow: {"patience": 0.2}}


def keys_cannot_be_had(world: World) -> None:
    world.authority.fail("/.well-known/jwks.json")
    expect(world, 503)


def keys_are_poisoned(world: World) -> None:
    world.authority.respond("/.well-known/openid-configuration", body={"issuer": "https://evil.example/"})
    expect(world, 503)


def provider_tokens_that_are_none(world: World) -> None:
    """What the identity provider hands out can't stand in a header."""
    token = world.canaries.of("alice", "provider token")
    world.authority.respond(
        "/api/v2", body={"identities": [{"connection": "github", "user_id": "1", "access_token": f"{token}\r\nX: y"}]}
    )
    expect(world, 502)


def management_token_withdrawn(world: World) -> None:
    expect(world, 200)
    world.authority.revoke_management_tokens()
    expect(world, 200, user="bob")
