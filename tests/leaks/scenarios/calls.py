"""Requests of callers: those that are refused, and those that try to bring more along than they should."""

from __future__ import annotations

import threading
import time
from typing import Any

from idp_middleware.testing import Identity
from tests.leaks.scenarios.parts import always, expect, hang_up_after
from tests.leaks.world import World

BIG = b"x" * 300_000


def refusals(world: World) -> None:
    """Whatever is wrong with a caller's request."""
    token = world.authority.callers_token("alice")
    bearer = f"Authorization: Bearer {token}"
    bad: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = [
        (401, ("GET", "/idp/github/user"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"{bearer}x"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", bearer, bearer), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"Authorization: Basic {token}"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"Authorization: {token}"), {"credentials": False}),
        (401, ("GET", "/idp/github/user", f"{bearer}{'x' * 20_000}"), {"credentials": False}),
        (401, ("POST", "/idp/github/user"), {"credentials": False, "body": f"access_token={token}".encode()}),
        (404, ("GET", "/idp/nothing/user"), {}),
        (405, ("TRACE", "/idp/github/user"), {}),
        (400, ("GET", "/idp/github/../user"), {}),
        (400, ("GET", "/idp/github/user", "Host: another.example"), {}),
        (400, ("GET", "/idp/github/user", "IdP-Account: \x7f"), {}),
        (413, ("POST", "/idp/github/user"), {"body": b"x" * 1_000_001}),
        (403, ("GET", "/idp/github/user", "IdP-Account: 999"), {}),
    ]
    for status, args, options in bad:
        expect(world, status, *args, **options)


def tokens_in_urls(world: World) -> None:
    """They are no credentials here. What a server's access log makes of URLs is its own affair."""
    token = world.authority.callers_token("alice")
    expect(world, 401, "GET", f"/idp/github/user?access_token={token}", credentials=False)
    expect(world, 404, "GET", f"/idp/{token}")
    expect(world, 400, "GET", f"/idp/github/../{token}")


def forged_and_expired(world: World) -> None:
    for options in (
        {"expires_in": -3600},
        {"audience": "https://another.example"},
        {"iss": "https://another.example/"},
        {"algorithm": "none"},
        {"scope": "other"},
        {"sub": None},
        {"headers": {"kid": "unknown"}},
    ):
        token = world.authority.callers_token("alice", **options)
        expect(world, (401, 403), "GET", "/idp/github/user", f"Authorization: Bearer {token}", credentials=False)


def accounts(world: World) -> None:
    """One of several, none, and an unknown user."""

    subject = world.authority.subject("alice")
    world.authority.link(
        subject, Identity("github", "999", access_token=world.canaries.of("alice", "second provider token"))
    )
    expect(world, 409)
    expect(world, 200, "GET", "/idp/github/user", "IdP-Account: 999")
    expect(world, 403, "GET", "/idp/github/user", "IdP-Account: 5")
    world.authority.unlink(subject, "github")
    expect(world, (200, 403), user="bob")
    world.authority.remove_user(subject)
    expect(world, 403, "GET", "/idp/github/user", "IdP-Account: 7")


def odd_methods(world: World) -> None:
    expect(world, 200, "HEAD")
    expect(world, 200, "OPTIONS")
    expect(world, 204, "OPTIONS", "/idp/github/user", "Max-Forwards: 0")
    expect(world, 200, "DELETE", body=b"x")


def headers_that_try(world: World) -> None:
    """To bring the caller's secrets along by another name, or to choose where things go."""
    token, cookie = world.authority.callers_token("alice"), world.canaries.of("alice", "session cookie")
    for name in CARRIERS:
        expect(world, 200, "GET", "/idp/github/user", f"{name}: {token}")
        expect(world, 200, "GET", "/idp/github/user", f"{name}: a=b; session={cookie}")
    expect(world, 200, "GET", "/idp/github/user", "Connection: X-Token", f"X-Token: {token}")
    expect(world, 200, "GET", "/idp/github/user", f"Referer: https://app.example/?token={token}")
    expect(world, 200, "GET", "/idp/github/user", "X-Upstream: https://evil.example", "X-User-Id: bob")


CARRIERS = (
    "Cookie", "Cookie2", "DPoP", "Proxy-Authorization", "X-Forwarded-Access-Token", "X-Forwarded-User",
    "X-Auth-Request-Access-Token", "X-Amzn-Oidc-Accesstoken", "X-Amzn-Oidc-Data", "X-Goog-Iap-Jwt-Assertion",
    "Cf-Access-Jwt-Assertion", "X-Ms-Token-Aad-Access-Token", "X-Ms-Token-Aad-Id-Token", "X-Ms-Client-Principal",
    "X_Amzn_Oidc_Data", "X-Pomerium-Jwt-Assertion", "X-Vercel-Oidc-Token",
)  # fmt: skip
"""Fields in which proxies in front of an app hand on the caller's token or session."""


def callers_leave(world: World) -> None:
    slow = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
    world.tap.answer = always(hang_up_after(slow, seconds=0.3))
    world.exchange(world.request(), stop_after=500)
    world.tap.answer = always(hang_up_after(b"", seconds=0.3))
    world.exchange(world.request(), stop_after=0)
    head = world.request("PUT", "/idp/github/user", "Content-Length: 500000")
    world.exchange(head + b"x" * 100_000, stop_after=0)
    time.sleep(0.2)


def gateway_is_stopped(world: World) -> None:
    """While a request waits for the upstream, another for the identity provider, and one streams."""

    world.tap.answer = always(hang_up_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun", seconds=0.4))
    world.authority.stall(f"/api/v2/users/{world.authority.subject('bob')}", 2.0)
    threads = [threading.Thread(target=world.ask, kwargs={"user": user}) for user in ("alice", "bob")]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert world.gateway is not None
    world.gateway.stop()
    for thread in threads:
        thread.join(10)
