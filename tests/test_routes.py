"""The route map: what is under the prefix, where it leads, and what is refused on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idp_middleware import ProxyRoute, Timeout, errors
from idp_middleware._routes import RouteMap


async def source(caller, route):
    raise NotImplementedError


def route(upstream: str = "https://api.example.com", **options) -> ProxyRoute:
    return ProxyRoute(upstream, token_source=source, **options)


def scope(raw: bytes, *, root_path: str = "", raw_path: bool = True) -> dict:
    from urllib.parse import unquote

    made = {"type": "http", "path": unquote(raw.decode("latin-1")), "root_path": root_path}
    return {**made, "raw_path": raw} if raw_path else made


routes = RouteMap({"github": route()}, "/idp")


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (b"/idp/github/user", b"/github/user"),
        (b"/idp/github", b"/github"),
        (b"/idp/", b"/"),
        (b"/idp", b""),
        (b"/idp/github//a%2Fb/", b"/github//a%2Fb/"),
    ],
)
def test_what_is_under_the_prefix_is_cut_from_the_raw_path(raw, rest):
    """Byte for byte: what follows goes to the upstream as it came."""
    assert routes.under_prefix(scope(raw)) == rest


@pytest.mark.parametrize(
    "raw",
    [b"/", b"/idpx/github", b"/IDP/github", b"/%69dp/github", b"/idp%2Fgithub", b"/x/idp/github", b"//idp/github", b""],
)
def test_what_only_looks_like_the_prefix_goes_to_the_app(raw):
    """A path that decodes to the prefix is the app's, or two readers would disagree on who guards it."""
    assert routes.under_prefix(scope(raw)) is None


def test_a_server_without_raw_path_is_served_from_the_path():
    """`raw_path` is optional in ASGI."""
    assert routes.under_prefix(scope(b"/idp/github/a%20b", raw_path=False)) == b"/github/a%20b"


@pytest.mark.parametrize(
    ("raw", "root_path"),
    [
        (b"/svc/idp/github/x", "/svc"),
        (b"/svc/v%201/idp/github/x", "/svc/v 1"),
        (b"/caf%C3%A9/idp/github/x", "/café"),
        (b"/idp/github/x", "/svc"),
    ],
)
def test_what_the_app_is_mounted_under_is_not_part_of_the_prefix(raw, root_path):
    """uvicorn --root-path and Starlette's Mount; and servers that leave root_path out of the path."""
    assert routes.under_prefix(scope(raw, root_path=root_path)) == b"/github/x"


def test_a_name_is_matched_whole():
    """A longer name is another route, or none."""
    assert routes.match(b"/github/user")[1] == b"/user"
    assert routes.match(b"/github")[1] == b""
    for rest in (b"/githubx/user", b"/git", b"/", b"", b"//github", b"/Github/user", b"/git%68ub/user"):
        with pytest.raises(errors.RouteNotFound):
            routes.match(rest)


@pytest.mark.parametrize(
    ("upstream", "rest", "query", "target"),
    [
        ("https://up.example", b"/v1/x", b"", b"/v1/x"),
        ("https://up.example", b"", b"", b"/"),
        ("https://up.example", b"/", b"", b"/"),
        ("https://up.example/base", b"", b"", b"/base"),
        ("https://up.example/base", b"/", b"", b"/base/"),
        ("https://up.example/base/", b"/v1/x", b"", b"/base/v1/x"),
        ("https://up.example/base", b"/a%2Fb/c", b"", b"/base/a%2Fb/c"),
        ("https://up.example/base", b"//evil.example/x", b"", b"/base//evil.example/x"),
        ("https://up.example", b"/%252e%252e/x", b"", b"/%252e%252e/x"),
        ("https://up.example", b"/a..b/.../[...slug]/.hidden", b"", b"/a..b/.../[...slug]/.hidden"),
        ("https://up.example", b"/%e9/%C3%A9/caf%c3%a9/%zz%", b"", b"/%e9/%C3%A9/caf%c3%a9/%zz%"),
        ("https://up.example", b'/x|^`{}"<>', b"", b'/x|^`{}"<>'),
        ("https://up.example", b"/x", b"a=1&a=2&b", b"/x?a=1&a=2&b"),
        ("https://up.example", b"/x", b"u=https://evil/../..&e=%00", b"/x?u=https://evil/../..&e=%00"),
        ("https://up.example/?v=1", b"/x", b"us=er", b"/x?v=1&us=er"),
        ("https://up.example/?v=1", b"/x", b"", b"/x?v=1"),
    ],
)
def test_the_target_is_joined_on_raw_bytes(upstream, rest, query, target):
    """Nothing is decoded, re-encoded, folded or lost."""
    assert route(upstream).target(rest, query) == target


@pytest.mark.parametrize(
    "rest",
    [
        b"/..",
        b"/../admin",
        b"/.",
        b"/a/./b",
        b"/a/../../../admin",
        b"/%2e%2e/admin",
        b"/.%2E/admin",
        b"/%2e/admin",
        b"/..%2fadmin",
        b"/a%2f..%2fb",
        b"/..;x=1/admin",
        b"/;/..;/admin",
        b"/%c0%ae%c0%ae/admin",
        b"/%e0%80%ae/admin",
        b"/..%c0%afadmin",
        b"/%u002e%u002E/admin",
        b"/..%U002fadmin",
        b"/..%20/admin",
        b"/.%09./admin",
        b"/..%0c/admin",
        b"/%0b../admin",
        b"/..%1f;x/admin",
        b"/a\\b",
        b"/a%5cb",
        b"/..%5c..%5cadmin",
        b"/%00x",
        b"/%0d%0aX:y",
        b"/%0a",
        b"/a b",
        b"/a\tb",
        b"/a\x7f",
        b"/\xc3\xa9",
        b"/a#frag",
        b"/a?b",
    ],
)
def test_what_another_parser_may_read_as_another_path_is_refused(rest):
    """Refused, not tidied up: a tidied path is not what was authorized."""
    with pytest.raises(errors.BadRequest):
        route("https://up.example/base").target(rest, b"")


@pytest.mark.parametrize("query", [b"\xe9", b"a b", b"a#b", b"a\r\nX: y", b"\x00"])
def test_a_query_with_bytes_that_no_target_holds_is_refused(query):
    """A raw line break would end the request line."""
    with pytest.raises(errors.BadRequest):
        route().target(b"/x", query)


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_a_target_is_the_base_and_the_very_bytes_or_nothing(rest, query):
    """Whatever comes in: refused, or joined unchanged and without anything that ends a request line."""
    try:
        target = route("https://up.example/base").target(b"/" + rest, query)
    except errors.BadRequest:
        return
    assert target == b"/base/" + rest + (b"?" + query if query else b"")
    assert all(0x21 <= byte <= 0x7E for byte in target)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("/user", [b"/user"], [b"/user/", b"/users", b"/User", b"", b"/user/x", b"//user"]),
        ("/user/**", [b"/user/", b"/user/x", b"/user/x/y"], [b"/user", b"/userx/y"]),
        ("/repos/*/issues", [b"/repos/a/issues"], [b"/repos/a/b/issues", b"/repos/a%2Fb/issues", b"/repos//x/issues"]),
        ("/v1.0/*.json", [b"/v1.0/a.json"], [b"/v1x0/a.json", b"/v1.0/a.jsonx", b"/v1.0/a/b.json"]),
        ("/**", [b"/", b"/a/b", b""], []),
        ("/a/**/z", [b"/a/b/z", b"/a/b/c/z"], [b"/a/z/y"]),
    ],
)
def test_a_path_has_to_fit_one_of_the_patterns_however_slashes_are_read(pattern, allowed, refused):
    """An encoded slash is one segment to some servers and two to others; neither reading may leave the list."""
    limited = route(paths=[pattern])
    for rest in allowed:
        limited.check_path(rest)
    for rest in refused:
        with pytest.raises(errors.CallerForbidden):
            limited.check_path(rest)


def test_methods_are_case_sensitive_and_the_answer_lists_the_allowed_ones():
    """`get` allowed as GET and forwarded as `get` would be two different requests."""
    limited = route(methods=["GET", "POST"])
    limited.check_method("GET")
    for method in ("get", "DELETE", "TRACE", "CONNECT", "FOO-BAR"):
        with pytest.raises(errors.MethodNotAllowed) as caught:
            limited.check_method(method)
        assert dict(caught.value.headers()) == {"allow": "GET, POST"}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"upstream": "http://api.example.com"}, "upstream"),
        ({"upstream": "ftp://api.example.com"}, "upstream"),
        ({"upstream": "api.example.com"}, "upstream"),
        ({"upstream": "https://"}, "upstream"),
        ({"upstream": "https://user:pw@api.example.com"}, "upstream"),
        ({"upstream": "https://api.example.com/#x"}, "upstream"),
        ({"upstream": "https://api.example.com/../x"}, "upstream"),
        ({"upstream": "https://api.example.com:port"}, "upstream"),
        ({"upstream": "https://api.exa mple.com"}, "upstream"),
        ({"upstream": "https://api.exämple.com"}, "upstream"),
        ({"upstream": "https://api,example"}, "upstream"),
        ({"upstream": "https://api..example"}, "upstream"),
        ({"upstream": f"https://{'a' * 64}.example"}, "upstream"),
        ({"upstream": 5}, "upstream"),
        ({"methods": ["get"]}, "methods"),
        ({"methods": ["TRACE"]}, "methods"),
        ({"methods": "GET"}, "methods"),
        ({"scopes": "read"}, "scopes"),
        ({"scopes": [1]}, "scopes"),
        ({"paths": []}, "paths"),
        ({"paths": ["user"]}, "paths"),
        ({"paths": ["/a/../b"]}, "paths"),
        ({"paths": ["/a**"]}, "paths"),
        ({"paths": ["/a[0-9]"]}, "paths"),
        ({"paths": ["/a?x=1"]}, "paths"),
        ({"headers": {"bad name": "x"}}, "headers"),
        ({"headers": {"x": "a\r\nb: c"}}, "headers"),
        ({"default_headers": {"x": "é"}}, "default_headers"),
        ({"headers": {"Authorization": "Bearer x"}}, "headers"),
        ({"headers": {"Host": "other.example"}}, "headers"),
        ({"default_headers": {"Content-Length": "3"}}, "default_headers"),
        ({"cookies": "session"}, "cookies"),
        ({"cookies": ["a b"]}, "cookies"),
        ({"timeout": Timeout(read=0)}, "timeout"),
        ({"max_body": -1}, "max_body"),
        ({"token_source": 5}, "token_source"),
        ({"token_source": lambda caller, route: None}, "token_source"),
    ],
)
def test_a_mistake_in_a_route_is_told_where_it_is_written(options, key):
    """A wrong pattern or URL must not become an open door at the first request."""
    given = {"upstream": "https://api.example.com", "token_source": source, **options}
    with pytest.raises(errors.ConfigurationError) as caught:
        ProxyRoute(given.pop("upstream"), **given)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_plain_http_is_for_loopback_or_by_consent():
    """A provider token must not cross a network in clear."""
    for upstream in ("http://127.0.0.1:9", "http://[::1]:9", "http://localhost", "http://api.localhost"):
        route(upstream)
    route("http://api.internal", allow_insecure=True)
    with pytest.raises(errors.ConfigurationError):
        route("http://localhost.example")


@pytest.mark.parametrize(
    ("upstream", "authority", "port"),
    [
        ("https://up.example", b"up.example", 443),
        ("https://UP.example:443", b"up.example", 443),
        ("https://[::1]:8443/base", b"[::1]:8443", 8443),
        ("http://127.0.0.1:80", b"127.0.0.1", 80),
    ],
)
def test_the_host_sent_upstream_is_the_authority_of_the_base_url(upstream, authority, port):
    """RFC 9110 section 7.2; a default port is left out, an IPv6 address keeps its brackets."""
    assert route(upstream).origin.authority == authority
    assert route(upstream).origin.port == port


@pytest.mark.parametrize("prefix", ["idp", "/idp/", "/i dp", "/ïdp", "/a//b", "/", "", "/%69dp"])
def test_a_prefix_that_could_not_be_matched_byte_for_byte_is_refused(prefix):
    """The prefix is compared with raw bytes."""
    with pytest.raises(errors.ConfigurationError) as caught:
        RouteMap({}, prefix)
    assert caught.value.key == "prefix"


@pytest.mark.parametrize("name", ["", "a/b", "..", "ä", "a b", "a%20b"])
def test_a_route_name_is_one_plain_segment(name):
    """Anything else would need decoding before it could be looked up."""
    with pytest.raises(errors.ConfigurationError):
        RouteMap({name: route()}, "/idp")


@pytest.mark.parametrize("name", ["health", "ready"])
def test_a_route_cannot_have_the_name_of_what_is_our_own(name):
    """Either of the two would never be reached."""
    told = rf"\[routes\]: {name}: /api/idp/{name} is the middleware's own"
    with pytest.raises(errors.ConfigurationError, match=told):
        RouteMap({name: route()}, "/api/idp")


def test_a_route_map_holds_routes_only():
    """A tuple or a URL in its place is named, not met at the first request."""
    with pytest.raises(errors.ConfigurationError, match=r"\[routes.github\]: must be a ProxyRoute"):
        RouteMap({"github": "https://api.github.com"}, "/idp")  # type: ignore[dict-item]


def test_the_repr_of_a_route_shows_no_header_and_no_source():
    """Fixed headers may hold an API key."""
    shown = repr(route(headers={"x-api-key": "s3cret"}))
    assert "s3cret" not in shown
    assert "source" not in shown
