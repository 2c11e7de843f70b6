"""URLs of the upstream's, led back under the prefix."""

from __future__ import annotations

import pytest

from idp_middleware import ProxyRoute
from idp_middleware._public_urls import lead_back, public_origin


async def source(caller, route):
    raise NotImplementedError


def led(url: str, *, upstream: str = "https://up.example/base", target: str = "/base/v1/x?a=1", origin: str = ""):
    route = ProxyRoute(upstream, token_source=source)
    return lead_back(url.encode("latin-1"), route=route, target=target.encode(), mount="/idp/r", origin=origin).decode(
        "latin-1"
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://up.example/base/v1/y?page=2", "/idp/r/v1/y?page=2"),
        ("https://UP.example:443/base/v1/y#z", "/idp/r/v1/y#z"),
        ("https://user:pw@up.example/base/y", "/idp/r/y"),
        ("https://up.example/base", "/idp/r"),
        ("//up.example/base/y", "/idp/r/y"),
        ("/base/y", "/idp/r/y"),
        ("y", "/idp/r/v1/y"),
        ("../y", "/idp/r/y"),
        ("?page=2", "/idp/r/v1/x?page=2"),
        ("/base/a%2Fb/%e9", "/idp/r/a%2Fb/%e9"),
    ],
)
def test_what_is_under_the_upstreams_base_leads_back_under_the_prefix(url, expected):
    """A client that follows it stays with us, and keeps its own token to itself."""
    assert led(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/login", "https://up.example/login"),
        ("/basement", "https://up.example/basement"),
        ("../../y", "https://up.example/y"),
        ("https://user:pw@up.example/login", "https://up.example/login"),
    ],
)
def test_what_leaves_the_base_is_not_mistaken_for_our_own_path(url, expected):
    """`/login` of the upstream is not the app's."""
    assert led(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/base/x",
        "https://up.example.evil.example/base",
        "http://up.example/base/x",
        "https://up.example:8443/base/x",
        "//evil.example/x",
        "javascript:alert(1)",
        "http://[::1",
        "mailto:a@b",
        "https://up.example:port/base",
        "",
        "h\xe9",
        "a\tb",
    ],
)
def test_what_leads_elsewhere_stays_as_it_is(url):
    """We follow nothing, and it carries no token."""
    assert led(url) == url


def test_a_link_can_be_absolute():
    """Clients that paste a base URL before anything without a scheme need it so."""
    assert led("/base/y?page=2", origin="https://app.example") == "https://app.example/idp/r/y?page=2"


def test_a_base_without_a_path_takes_every_path():
    """Most APIs have no base path at all."""
    assert led("https://api.example/user/repos?page=2", upstream="https://api.example") == "/idp/r/user/repos?page=2"


@pytest.mark.parametrize(
    ("hosts", "origin"),
    [
        ([b"app.example"], "https://app.example"),
        ([b"app.example:8443"], "https://app.example:8443"),
        ([b"[::1]:8000"], "https://[::1]:8000"),
        ([], ""),
        ([b"a", b"b"], ""),
        ([b"app.example/x"], ""),
        ([b"a b"], ""),
        ([b"a>; rel=next, <https://evil"], ""),
        ([b""], ""),
    ],
)
def test_our_own_origin_is_what_the_caller_called_if_that_is_a_host(hosts, origin):
    """The Host ends up inside a header; only a plain one may."""
    scope = {"scheme": "https", "headers": [(b"host", host) for host in hosts]}
    assert public_origin(scope) == origin
