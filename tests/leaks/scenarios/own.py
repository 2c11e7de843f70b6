"""What is answered under the prefix without an upstream: the overview, revocations, probes."""

from __future__ import annotations

from tests.leaks.authority import REVOKE, repeating
from tests.leaks.scenarios.parts import expect
from tests.leaks.world import World

TOKEN = "/idp/github/token"


def overview(world: World, user: str = "alice", method: str = "GET") -> None:
    """The one answer that tells a caller who they are; nobody else's id is in it."""
    told = ("the caller", f"{user}'s id")
    added = told not in world.also_belongs
    world.also_belongs.add(told)
    expect(world, 200, method, "/idp", user=user)
    if added:
        world.also_belongs.discard(told)


def asked_itself(world: World) -> None:
    """Each path, by callers and by nobody. Of one token for all, nothing is revoked."""
    for user in ("alice", "bob"):
        overview(world, user)
        expect(world, 200, user=user)
        overview(world, user, "HEAD")
        expect(world, 405, "POST", "/idp", user=user, body=b"some content")
    for path in ("/idp", TOKEN):
        expect(world, 401, "DELETE" if path == TOKEN else "GET", path, credentials=False)
    for path in ("/idp/health", "/idp/ready"):
        expect(world, 200, "GET", path)
        expect(world, 405, "PUT", path, body=b"some content")
    expect(world, (204, 403), "DELETE", TOKEN)
    expect(world, (200, 403))
    overview(world)


def overview_fails(world: World) -> None:
    """The identity provider repeats our request in its error."""
    world.authority.echo = repeating
    overview(world)
    expect(world, 204, "DELETE", TOKEN)


def revocation_fails(world: World) -> None:
    """At the provider, whose error repeats our request; then with a page; then with none."""
    expect(world, 200)
    world.authority.echo = repeating
    expect(world, 502, "DELETE", TOKEN)
    world.authority.echo = lambda request: None
    world.authority.respond(REVOKE, status=500, body="<h1>no</h1>", times=1)
    expect(world, 503, "DELETE", TOKEN)
    world.authority.drop(REVOKE, times=1)
    expect(world, (502, 503), "DELETE", TOKEN)
    expect(world, 403)
    expect(world, 204, "DELETE", TOKEN)
