"""What cannot be helped from here, and is left to whoever runs the app: each is as SECURITY.md says it is.

Where one of these fails, something has been mended, by us or by others, and that text can go.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from idp_middleware import TokenCache, sources
from tests.leaks.authority import seeded
from tests.leaks.leaky import CALLER, COOKIE, TOKEN, WHOSE, Planted, found
from tests.leaks.scenarios.outcomes import upstream_breaks_off
from tests.leaks.set_ups import SET_UPS
from tests.leaks.sinks import FILES, report
from tests.leaks.world import World

REQUEST = (CALLER, COOKIE, WHOSE)
"""What is in a caller's request; a JWT says whose it is."""


def cookie_of_the_idp(world: World) -> None:
    canary = world.canaries.make("cookie of the identity provider", special="")
    # A token that it will not know, so that it is asked again.
    once = {"access_token": "x", "token_type": "Bearer"}
    world.authority.respond("/oauth/token", body=once, headers={"Set-Cookie": f"session={canary}"}, times=1)
    world.ask("GET", "/idp/github/user")


def handshake(world: World) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    request = world.request("GET", "/idp/github/ws", *upgrade)
    world.exchange(request.replace(b"Connection: close", b"Connection: Upgrade"))


def token_in_the_url(world: World) -> None:
    token = world.authority.callers_token("alice")
    world.ask("GET", f"/idp/github/user?access_token={token}", credentials=False)


def token_in_a_field_of_its_own(world: World) -> None:
    world.ask("GET", "/idp/github/user", f"X-My-Token: {world.authority.callers_token('alice')}")


def in_the_clear(world: World, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"cache": TokenCache(world.shared)}


LEFT: Mapping[str, Planted] = {
    "httpcore at DEBUG writes down the fields of an identity provider's answers": Planted(
        frozenset({("cookie of the identity provider", "the log")}), run=cookie_of_the_idp
    ),
    "a server at DEBUG writes down a WebSocket's handshake": Planted(
        frozenset((name, "the log") for name in REQUEST), {"uvicorn": {"ws": "websockets-sansio"}}, run=handshake
    ),
    "a server's access log writes down the query": Planted(
        frozenset({(CALLER, "the log"), (WHOSE, "the log")}), run=token_in_the_url
    ),
    "who records variables has the caller's request": Planted(
        frozenset((name, "error reports") for name in REQUEST), {"in_reports": frozenset()}, run=upstream_breaks_off
    ),
    "what a client itself writes elsewhere goes there": Planted(
        frozenset({(CALLER, "the upstream"), (WHOSE, "the upstream")}), run=token_in_a_field_of_its_own
    ),
    "a cache in memory without keys is in the clear, for whoever uses aiocache in this process": Planted(
        frozenset((name, FILES) for name in (TOKEN, "alice's token secret", "management token")),
        {"change": in_the_clear},
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_it_is_as_the_documentation_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No more than that, and no less."""
    assert found(LEFT[name], tmp_path, monkeypatch, capfd) == LEFT[name].places


def test_who_records_variables_has_the_arguments_of_a_constructor_that_refuses_them() -> None:
    """Those are in the frames of the app's own start, too."""
    canaries = seeded()
    with pytest.raises(ValueError, match="must be a host name") as caught:
        sources.Auth0Management(domain="https://acme", client_id="me", client_secret=canaries["client secret"])
    assert {find.canary for find in canaries.find(report(caught.value))} == {"client secret"}


def test_a_route_that_passes_the_callers_token_on_does_so() -> None:
    """That is what it is for."""
    assert SET_UPS["pass through"].serves == ("{user}'s token",)
