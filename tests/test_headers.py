"""Header fields on their way through: what is dropped, what is kept, in which order."""

from __future__ import annotations

import time

import pytest

from idp_middleware import errors
from idp_middleware._request_headers import read_request
from idp_middleware._response_headers import response_headers


def read(fields: list[tuple[bytes, bytes]]):
    return read_request([(b"host", b"app.example"), *fields])


def forwarded(*fields: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return read(list(fields)).headers


def answered(*fields: tuple[bytes, bytes], status: int = 200, allow_set_cookie: bool = False, rewrite=None):
    rewrite = rewrite or (lambda url, absolute: url)
    return response_headers(fields, status, allow_set_cookie=allow_set_cookie, rewrite=rewrite)


def without_added(headers):
    return [field for field in headers if field[0] not in (b"cache-control", b"vary")]


def test_order_duplicates_and_bytes_of_ordinary_fields_stay():
    """RFC 9110 section 5.3: a proxy must not change the order of field lines of one name."""
    fields = [
        (b"x-multi", b"a"),
        (b"accept-encoding", b"br;q=1, identity;q=0.1"),
        (b"x-multi", b"b"),
        (b"x-latin", b"\xe9\xff"),
        (b"x-empty", b""),
        (b"x-tab", b"a\tb"),
        (b"range", b"bytes=0-1"),
        (b"if-none-match", b'"e"'),
        (b"content-encoding", b"gzip"),
        (b"content-type", b"multipart/form-data; boundary=x"),
        (b"last-event-id", b"7"),
    ]
    assert forwarded(*fields) == fields


@pytest.mark.parametrize(
    "name",
    [
        b"cf-access-jwt-assertion",
        b"cf-access-client-secret",
        b"x-amzn-oidc-accesstoken",
        b"x-amzn-oidc-data",
        b"x_amzn_oidc_data",
        b"x-auth-request-access-token",
        b"x-forwarded-access-token",
        b"x-goog-iap-jwt-assertion",
        b"x-goog-authenticated-user-email",
        b"x-ms-client-principal",
        b"x-ms-client-principal-id",
        b"x-ms-token-aad-access-token",
        b"x-pomerium-jwt-assertion",
        b"x-vercel-oidc-token",
    ],
)
def test_what_a_proxy_in_front_knows_of_the_caller_stays_here(name):
    """It brings the caller's tokens in fields of its own, which are no more the upstream's business than a cookie."""
    assert forwarded((name, b"eyJ.of.alice"), (b"x-other", b"1")) == [(b"x-other", b"1")]


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"proxy-anything",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"expect",
        b"authorization",
        b"cookie",
        b"dpop",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-whatever",
        b"x_forwarded_for",
        b"x-real-ip",
        b"x_real_ip",
        b"x-original-url",
        b"origin",
        b"referer",
        b"sec-fetch-site",
        b"x-http-method-override",
        b"max-forwards",
        b"X-Real-IP",
        b"AUTHORIZATION",
    ],
)
def test_what_is_for_us_or_nobody_does_not_reach_the_upstream(name):
    """Hop-by-hop fields, the caller's credentials, and claims that the upstream might believe; in any spelling."""
    assert forwarded((name, b"x"), (b"x-keep", b"1")) == [(b"x-keep", b"1")]


@pytest.mark.parametrize("connection", [b"keep-alive, X-Hop, x-hop2", b"X-Hop,,X-HOP2 ,close", b"\tx-hop , x-hop2"])
def test_fields_that_connection_names_go_with_it(connection):
    """RFC 9110 section 7.6.1; any case, empty members."""
    fields = [(b"x-hop", b"1"), (b"connection", connection), (b"x-hop2", b"2"), (b"x-keep", b"3")]
    assert forwarded(*fields) == [(b"x-keep", b"3")]
    assert without_added(answered(*fields)) == [(b"x-keep", b"3")]


def test_several_connection_fields_count_together():
    """A list field may come in several lines (RFC 9110 section 5.3)."""
    assert forwarded((b"connection", b"x-a"), (b"connection", b"x-b"), (b"x-a", b"1"), (b"x-b", b"2")) == []


def test_the_length_of_a_body_is_told_in_one_way_only():
    """RFC 9112 section 6.3: what two servers may measure differently is how requests are smuggled."""
    for fields in (
        [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"3"), (b"content-length", b"3")],
        [(b"content-length", b"+3")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"1_0")],
        [(b"content-length", b"3,3")],
        [(b"content-length", b"")],
        [(b"content-length", b"\xb2")],
        [(b"content-length", b"9" * 40)],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"xchunked")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
    ):
        with pytest.raises(errors.BadRequest):
            read(fields)


def test_framing_is_read_and_not_forwarded():
    """The transport frames the body anew."""
    request = read([(b"content-length", b"0")])
    assert (request.length, request.chunked, request.has_body, request.headers) == (0, False, True, [])
    request = read([(b"transfer-encoding", b"Chunked")])
    assert (request.length, request.chunked, request.has_body, request.headers) == (None, True, True, [])
    assert not read([(b"accept", b"*/*")]).has_body


def test_the_named_account_is_read_and_not_forwarded():
    """IdP-Account is between the caller and us."""
    request = read([(b"idp-account", b"12345")])
    assert (request.account, request.headers) == ("12345", [])
    for fields in ([b""], [b"a", b"b"], [b"\xe9"], [b"a\x00b"], [b"x" * 300]):
        with pytest.raises(errors.BadRequest):
            read([(b"idp-account", value) for value in fields])


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"trailer",
        b"proxy-authenticate",
        b"set-cookie",
        b"date",
        b"server",
        b"alt-svc",
        b"clear-site-data",
        b"strict-transport-security",
        b"public-key-pins",
        b"nel",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
        b"x-accel-redirect",
        b"x-sendfile",
        b"cdn-cache-control",
        b"surrogate-control",
    ],
)
def test_what_an_upstream_may_not_say_to_our_callers_is_dropped(name):
    """It would speak for our connection, our origin, the app's CORS policy or the server in front."""
    assert without_added(answered((name, b"x"), (b"x-keep", b"1"))) == [(b"x-keep", b"1")]


def test_ordinary_fields_of_an_answer_stay_as_they_are():
    """Separate lines stay separate; some clients can't split them again."""
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", b"10"),
        (b"www-authenticate", b'Bearer realm="a"'),
        (b"www-authenticate", b"Basic"),
        (b"etag", b'"x"'),
        (b"content-encoding", b"gzip"),
        (b"x-latin", b"\xe9"),
        (b"x-ratelimit-remaining", b"59"),
        (b"content-security-policy", b"default-src 'none'"),
    ]
    assert without_added(answered(*fields)) == fields


def test_cookies_pass_only_where_the_route_allows_them_and_never_joined():
    """An upstream's cookies would land on the app's origin."""
    fields = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2; Expires=Thu, 01 Jan 2099 00:00:00 GMT")]
    assert without_added(answered(*fields, allow_set_cookie=True)) == fields
    assert without_added(answered(*fields)) == []


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_announces_none(status):
    """RFC 9110 section 8.6; and servers hold us to a 304's length."""
    assert without_added(answered((b"content-length", b"10"), status=status)) == []


@pytest.mark.parametrize(
    ("upstream", "ours"),
    [
        ([], b"private"),
        ([b"no-store"], b"no-store"),
        ([b"private, max-age=60"], b"private, max-age=60"),
        ([b"max-age=60"], b"max-age=60, private"),
        ([b"public, max-age=60, s-maxage=60"], b"max-age=60, private"),
        ([b"Public", b"S-MaxAge=60"], b"private"),
        ([b'private="x-a", max-age=60'], b'private="x-a", max-age=60, private'),
        ([b"public, private"], b"private"),
        ([b"max-age=60", b"no-store"], b"max-age=60, no-store"),
    ],
)
def test_an_answer_for_one_user_never_becomes_cacheable_for_others(upstream, ours):
    """Shared caches don't see whose token the upstream answered to (RFC 9111 section 3.5)."""
    headers = answered(*[(b"cache-control", value) for value in upstream])
    assert [value for name, value in headers if name == b"cache-control"] == [ours]


@pytest.mark.parametrize(
    ("upstream", "ours"),
    [
        ([], b"Authorization, Cookie, IdP-Account"),
        ([b"Accept"], b"Accept, Authorization, Cookie, IdP-Account"),
        ([b"Accept", b"Accept-Encoding"], b"Accept, Accept-Encoding, Authorization, Cookie, IdP-Account"),
        ([b"*"], b"*"),
    ],
)
def test_vary_says_what_the_answer_depends_on_besides(upstream, ours):
    """One browser, two users: the second must not see the first one's cached answer."""
    headers = answered(*[(b"vary", value) for value in upstream])
    assert [value for name, value in headers if name == b"vary"] == [ours]


def test_urls_in_headers_are_led_back():
    """Each URL of a Link on its own, absolute since clients resolve them in odd ways; a Location path-absolute."""
    seen = []

    def rewrite(url, absolute):
        seen.append((url, absolute))
        return b"/idp" + url

    headers = answered(
        (b"link", b'<https://a/1>; rel="next", <https://a/2>; rel="last"'),
        (b"location", b"/x"),
        (b"content-location", b"/y"),
        rewrite=rewrite,
    )
    assert without_added(headers) == [
        (b"link", b'</idphttps://a/1>; rel="next", </idphttps://a/2>; rel="last"'),
        (b"location", b"/idp/x"),
        (b"content-location", b"/idp/y"),
    ]
    assert seen == [(b"https://a/1", True), (b"https://a/2", True), (b"/x", False), (b"/y", False)]


def test_a_link_of_nothing_but_brackets_costs_no_more_than_its_length():
    """A pattern that looks for the end from each beginning would hold everybody up for seconds."""
    value = b"<" * 60_000
    start = time.perf_counter()
    assert without_added(answered((b"link", value), (b"refresh", b"1" * 60_000))) == [
        (b"link", value),
        (b"refresh", b"1" * 60_000),
    ]
    assert time.perf_counter() - start < 0.5


def test_made_up_names_do_not_fill_the_memory():
    """Callers choose the names; verdicts on them are remembered only up to a bound."""
    from idp_middleware import _request_headers

    for i in range(3000):
        forwarded((b"x-%d" % i, b""))
    assert len(_request_headers._verdict.__self__) <= 1024
