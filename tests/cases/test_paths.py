"""Group B: which target a path and a query become, byte for byte, and what is no path for us."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from idp_middleware import ProxyRoute, errors
from tests.cases.conftest import provider_token
from tests.stack import running


@pytest.fixture(scope="module")
def routes(recorder):
    def route(path: str, **options):
        return ProxyRoute(recorder.url + path, token_source=provider_token, **options)

    return {
        "up": route("/base"),
        "root": route(""),
        "query": route("/base?api-version=1"),
        "few": route("/base", paths=["/user", "/repos/**"]),
    }


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("up/v1/x", "/base/v1/x"),
        ("up", "/base"),
        ("up/", "/base/"),
        ("up//", "/base//"),
        ("root", "/"),
        ("root/", "/"),
        ("root//evil.example/x", "//evil.example/x"),
        ("up//evil.example/x", "/base//evil.example/x"),
        ("up/@evil.example/", "/base/@evil.example/"),
        ("up/:80@evil.example", "/base/:80@evil.example"),
        ("up/https://evil.example/x", "/base/https://evil.example/x"),
        ("up/%252e%252e/admin", "/base/%252e%252e/admin"),
        ("up/[...slug]", "/base/[...slug]"),
        ("up/a..b", "/base/a..b"),
        ("up/...", "/base/..."),
        ("up/..a/.b/c.", "/base/..a/.b/c."),
        ("up/a%2Fb/c", "/base/a%2Fb/c"),
        ("up/%e9", "/base/%e9"),
        ("up/%ff%fe", "/base/%ff%fe"),
        ("up/%C3%A9/caf%c3%a9", "/base/%C3%A9/caf%c3%a9"),
        ("up/%zz%", "/base/%zz%"),
        ("up/a%3Fb%23c", "/base/a%3Fb%23c"),
        ("up/~a!$&'()*+,;=:@", "/base/~a!$&'()*+,;=:@"),
        ("up/%7Euser%2e", "/base/%7Euser%2e"),
        ("up/%EF%BC%8E%EF%BC%8E%EF%BC%8Fx", "/base/%EF%BC%8E%EF%BC%8E%EF%BC%8Fx"),
        ("up/%u00e9", "/base/%u00e9"),
        ("up/x;v=1/y", "/base/x;v=1/y"),
        ("up/x?a=1&a=2&b", "/base/x?a=1&a=2&b"),
        ("up/x?a=%zz;b=+%20/..//?&#".rstrip("#"), "/base/x?a=%zz;b=+%20/..//?&"),
        ("up?a", "/base?a"),
        ("up/x?u=http://127.0.0.1:1/", "/base/x?u=http://127.0.0.1:1/"),
        ("query/x?us=er", "/base/x?api-version=1&us=er"),
        ("query/x", "/base/x?api-version=1"),
        ("query/x?api-version=2", "/base/x?api-version=1&api-version=2"),
    ],
)
def test_what_follows_the_route_is_joined_to_the_base_byte_for_byte(stack, upstream, path, target):
    """B01, B02, B09, B10, B11, B18, B19, B20, B23, B26: nothing is decoded, re-encoded, folded or lost."""
    assert stack.ask("GET", f"/idp/{path}").status == 200
    assert upstream.targets() == [target.encode()]


@pytest.mark.parametrize("path", ["|^`{}", '"<>', "a|b^c", "{id}"])
def test_characters_that_no_url_should_hold_go_as_they_came_or_nowhere(stack, upstream, path):
    """B22: never encoded on the way: what was authorized is what is sent."""
    answer = stack.ask("GET", f"/idp/up/{path}")
    assert (answer.status, upstream.targets()) in ((200, [b"/base/" + path.encode()]), (400, []))


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../admin",
        "./x",
        "a/../../../admin",
        "%2e%2e/admin",
        ".%2E/admin",
        "%2e/x",
        "..%2fadmin",
        "a%2f..%2f..%2f..%2fadmin",
        "..;/admin",
        "..;x=1/admin",
        "%2e%2e;/admin",
        "..\\admin",
        "a%5c..%5c..%5cadmin",
        "%c0%ae%c0%ae/admin",
        "..%c0%afadmin",
        "%u002e%u002e/admin",
        "..%20/admin",
        "%00x",
        "%0d%0aX:y",
        "%0a",
        "a%0dX-Injected:%20y",
    ],
)
@pytest.mark.parametrize("route", ["up", "root"])
def test_dot_segments_and_control_bytes_in_any_spelling_are_refused(stack, upstream, route, path):
    """B07, B17: refused and not tidied, since the upstream may read them in yet another way."""
    answer = stack.ask("GET", f"/idp/{route}/{path}")
    assert (answer.status, answer.problem) in ((400, "bad-request"), (400, None))
    assert upstream.requests == []


@pytest.mark.parametrize(
    "target", ["/idp/../idp/up/x", "/x/../idp/up/x", "/./idp/up/x", "//idp/up/x", "/idp/up/../up/x"]
)
def test_a_path_that_would_only_resolve_to_the_prefix_is_not_under_it(stack, upstream, target):
    """B07: the app behind answers or we refuse; nobody resolves."""
    assert stack.ask("GET", target).status in (400, 404, 418)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "target", ["/idpx/up/y", "/IDP/up/x", "/Idp/up/x", "/%69dp/up/x", "/idp%2Fup/x", "/idp;x/up/y", "/", "/x/idp/up"]
)
def test_a_path_that_is_not_under_the_prefix_is_the_apps(stack, upstream, target):
    """B03, B30: compared byte for byte, on a segment's boundary; and not called authenticated by us."""
    answer = stack.ask("GET", target)
    assert (answer.status, answer.body, upstream.requests) == (418, b"the app", [])


@pytest.mark.parametrize("target", ["/idp/upx/y", "/idp/UP/x", "/idp/u%70/x", "/idp//up/x", "/idp//", "/idp/%2F"])
def test_a_path_that_names_no_route_is_404(stack, upstream, target):
    """B03, B30: the prefix is ours, so the app must not get it either."""
    assert stack.ask("GET", target).problem == "route-not-found"
    assert upstream.requests == []


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/idp/up/x",
        "https://evil.example/idp/up/x",
        "http://evil.example/base/x",
        "@evil.example/x",
        "evil.example/x",
        "idp/up/x",
        "?q=/idp/up/x",
        "*",
        "127.0.0.1:{port}",
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_other_forms_of_a_target_are_never_proxied_by_mistake(stack, upstream, target, host):
    """One parser hands them through as a path. Absolute form leads, if anywhere, to the route's own upstream."""
    target = target.replace("{port}", str(stack.gateway.port))
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {stack.token()}\r\n\r\n"
    with stack.connect() as client:
        client.send(request.encode())
        status = client.answer().status
    if status == 200:
        assert target.endswith("/idp/up/x")
        assert upstream.last.head.startswith(b"GET /base/x HTTP/1.1\r\nhost: " + upstream.url[7:].encode() + b"\r\n")
        assert len(upstream.requests) == 1
    else:
        assert status in (400, 404, 418)
        assert upstream.requests == []


@pytest.mark.parametrize("target", ["/idp/up/a#frag", "/idp/up/a?q=1#frag", "/idp/up/#/../admin", "/idp/up#@evil"])
def test_a_fragment_goes_nowhere(stack, upstream, target):
    """One parser cuts it off, the other hands it on: then it is refused, as some servers end a path there."""
    assert stack.ask("GET", target).status in (200, 400, 404)
    assert all(b"#" not in seen and b"frag" not in seen for seen in upstream.targets())


@pytest.mark.parametrize(
    "target", [b"/idp/up/a b", b"/idp/up/\xc3\xa9", b"/idp/up/x?q=\xe9", b"/idp/up/\x00", b"/idp/up/\x7f"]
)
def test_bytes_that_no_target_holds_are_refused(stack, upstream, target):
    """B21, B27: with an answer and not with a traceback."""
    request = b"GET %b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (target, stack.token().encode())
    with stack.connect() as client:
        client.send(request)
        assert client.answer().status == 400
    assert upstream.requests == []


@pytest.mark.parametrize("size", [8_000, 60_000])
@pytest.mark.parametrize("part", ["", "x?q="])
def test_a_long_url_is_the_upstreams_affair(stack, upstream, size, part):
    """B28: it knows how much it takes, and says 414 or not."""
    target = f"/idp/up/{part}{'a' * size}"
    assert stack.ask("GET", target).status == 200
    assert upstream.targets() == [target.replace("/idp/up", "/base").encode()]


def test_a_url_beyond_all_bounds_is_no_500(stack, upstream):
    """B28: refused by the parser or by us, or forwarded."""
    with suppress(ConnectionError):
        assert stack.ask("GET", "/idp/up/" + "a" * 1_000_000).status in (200, 400, 414)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("user", 200),
        ("user?x=/../admin", 200),
        ("repos/a/b", 200),
        ("repos/a%20b", 200),
        ("users", 403),
        ("user/", 403),
        ("user%2F..%2Fadmin", 400),
        ("user%2Fadmin", 403),
        ("repos%2Fa", 403),
        ("", 403),
        ("admin", 403),
        ("%75ser", 200),
        ("repos/..%2f..%2fadmin", 400),
        ("repos/%252e%252e/admin", 200),
    ],
)
def test_a_routes_list_of_paths_holds_in_every_spelling(stack, upstream, path, status):
    """B07, B11: what the upstream may decode to something else has to be allowed either way."""
    assert stack.ask("GET", f"/idp/few/{path}").status == status
    assert upstream.targets() == ([f"/base/{path}".encode()] if status == 200 else [])


def test_an_apps_own_redirects_of_slashes_do_not_come_first(parser, routes, upstream):
    """B33: a framework would answer 307 and lead a caller with its token elsewhere."""

    async def page(request):
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/idp/up/", page), Route("/page/", page), Route("/idp/up/x/", page)])
    with running(http=parser, routes=lambda api, source: routes, app=app) as stack:
        for target in ("/idp/up", "/idp/up/", "/idp/up/x"):
            assert stack.ask("GET", target).status == 200
        assert upstream.targets() == [b"/base", b"/base/", b"/base/x"]
        assert stack.ask("GET", "/page").status == 307


@pytest.mark.parametrize("how", ["mounted", "root_path"])
def test_where_the_app_is_mounted_is_no_part_of_the_path(parser, routes, upstream, how):
    """B29: the same path upstream, and links that lead to where the caller sees us."""
    upstream.answer = b"HTTP/1.1 201 Created\r\nLocation: /base/y\r\nContent-Length: 0\r\n\r\n"

    def wrap(middleware):
        @asynccontextmanager
        async def lifespan(app):
            # Starlette tells mounted apps nothing of the lifespan.
            yield
            await middleware.aclose()

        if how == "root_path":
            return middleware
        return Starlette(routes=[Mount("/svc", app=middleware)], lifespan=lifespan)

    options = {"root_path": "/svc"} if how == "root_path" else {}
    with running(http=parser, routes=lambda api, source: routes, wrap=wrap, uvicorn=options) as stack:
        prefix = "/svc/idp" if how == "mounted" else "/idp"
        for path in ("x", "a%2Fb", "svc/idp/x", "idp/x", "caf%C3%A9?q=/svc/idp"):
            answer = stack.ask("GET", f"{prefix}/up/{path}")
            assert (answer.status, answer.all(b"location")) == (201, [b"/svc/idp/up/y"])
            assert upstream.last.target == b"/base/" + path.encode()
        assert stack.ask("GET", f"{prefix}/up/../x").status == 400
        assert stack.ask("GET", "/svc/svc/idp/up/x").status == 404
        assert len(upstream.requests) == 5


def test_a_base_with_a_user_name_is_refused_where_it_is_written():
    """B34: it would be sent as credentials in place of the token."""
    with pytest.raises(errors.ConfigurationError, match="user name"):
        ProxyRoute("https://user:pw@up.example/", token_source=provider_token)
