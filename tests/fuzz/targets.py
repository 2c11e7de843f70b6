"""What must hold whatever comes in. A target takes bytes and raises where it does not hold.

Knows no fuzzer. Each judges in other words than the code does: by what was published, said or signed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx
from starlette.requests import HTTPConnection

from idp_middleware import Caller, IntrospectionAuthenticator, JWTAuthenticator, ProxyRoute, Rule, errors, sources
from idp_middleware.testing import signing_key
from tests.test_jwt_fuzz import API, GOOD_CLAIMS, GOOD_HEADER, GOOD_TOKEN, ISSUER, KEY, signed

SERVER = "https://login.example/introspect"
KEYS = json.dumps({"keys": [KEY.jwk, signing_key("RS256").jwk, signing_key("ES256").jwk]}).encode()
DISCOVERY = json.dumps({"issuer": ISSUER, "jwks_uri": ISSUER + "jwks.json"}).encode()


@dataclass(frozen=True)
class Target:
    """A place where strangers' bytes come in."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    """What a fuzzer would be long in finding by itself."""


class Answering(httpx.AsyncBaseTransport):
    """An identity provider of few words."""

    def __init__(self, discovery: bytes = DISCOVERY, keys: bytes = KEYS) -> None:
        self.discovery, self.keys = discovery, keys
        self.other, self.status = b"", 200
        self.asked: list[httpx.URL] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url)
        if request.method == "POST":
            return httpx.Response(self.status, stream=httpx.ByteStream(self.other))
        found = request.url.path.endswith("/openid-configuration")
        return httpx.Response(200, stream=httpx.ByteStream(self.discovery if found else self.keys))


@cache
def runner() -> asyncio.Runner:
    return asyncio.Runner()


def caller_of(authenticator: Any, *authorization: bytes) -> Caller | None:
    """The caller, or None where the answer would be 401, 502 or 503; anything else is a find."""
    headers = [(b"authorization", value) for value in authorization]
    try:
        return runner().run(authenticator.authenticate(HTTPConnection({"type": "http", "headers": headers})))
    except (errors.CallerUnauthenticated, errors.TokenSourceFailed, errors.TokenSourceUnavailable):
        return None


def jwts(transport: Answering) -> JWTAuthenticator:
    return JWTAuthenticator(issuer=ISSUER, audience=API, algorithms=["RS256", "ES256", "EdDSA"], transport=transport)


@cache
def shared() -> JWTAuthenticator:
    return jwts(Answering())


def authorization(data: bytes) -> None:
    """A caller only where one field has exactly the scheme, one space and the good token."""
    values = data.split(b"\n")
    caller = caller_of(shared(), *values)
    good = len(values) == 1 and re.fullmatch(rb"(?i:bearer) " + re.escape(GOOD_TOKEN) + rb"[ \t]*", values[0])
    assert (caller is not None) == bool(good)


def token(data: bytes) -> None:
    """Signed by the issuer, and still a caller only where all that has to be said is said."""
    header, _, payload = data.partition(b"\n\n")
    caller = caller_of(shared(), b"Bearer " + signed(header, payload))
    if caller is None:
        return
    said, claimed = json.loads(header), json.loads(payload)
    assert said["alg"] == "EdDSA"
    assert said.get("kid", KEY.kid) == KEY.kid
    assert not {"crit", "b64"} & said.keys()
    assert str(said.get("typ", "JWT")).lower().removeprefix("application/") in ("jwt", "at+jwt")
    assert claimed["iss"] == ISSUER
    assert API in ([claimed["aud"]] if isinstance(claimed["aud"], str) else claimed["aud"])
    assert caller.subject == claimed["sub"]
    assert caller.subject.isprintable()
    assert time.time() - 11 < claimed["exp"] < 1e12
    assert not {"cnf", "at_hash", "c_hash", "events"} & claimed.keys()
    _tame(caller.scopes)


def key_set(data: bytes) -> None:
    """It can make a good token a stranger's or leave us without keys, and vouch for nobody else's."""
    caller = caller_of(jwts(Answering(keys=data)), b"Bearer " + GOOD_TOKEN)
    if caller is not None:
        published = [(key.get("kid"), key.get("x")) for key in json.loads(data)["keys"] if isinstance(key, dict)]
        assert (KEY.kid, KEY.jwk["x"]) in published


def discovery(data: bytes) -> None:
    """It leads to keys over TLS or on this machine, or to none; and is its own issuer's."""
    transport = Answering(discovery=data)
    caller = caller_of(jwts(transport), b"Bearer " + GOOD_TOKEN)
    assert caller is None or json.loads(data)["issuer"] == ISSUER
    assert len(transport.asked) <= 2
    for url in transport.asked:
        assert url.scheme == "https" or re.fullmatch(r"127\.[0-9.]+|::1|(.+\.)?localhost", url.host)
        assert not url.userinfo


NUMBERS = itertools.count()
ANSWERS = Answering()


@cache
def asking() -> IntrospectionAuthenticator:
    return IntrospectionAuthenticator(
        introspection_url=SERVER, client_id="a", client_secret="b", audience=API, transport=ANSWERS
    )


def introspection(data: bytes) -> None:
    """A caller only where a 200 says so: active, with a subject, and meant for us. The first byte is the status."""
    ANSWERS.status = (200, 200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 500, 503)[data[0] % 13] if data else 200
    ANSWERS.other = data[1:]
    ANSWERS.asked.clear()
    # A token of its own, since answers are remembered.
    caller = caller_of(asking(), b"Bearer opaque-%d" % next(NUMBERS))
    if caller is None:
        return
    said = json.loads(data[1:])
    assert ANSWERS.status == 200
    assert said["active"] is True
    assert caller.subject == said["sub"]
    assert API in ([said["aud"]] if isinstance(said["aud"], str) else said["aud"])
    assert caller.issuer == SERVER
    assert said.get("exp") is None or time.time() - 11 < said["exp"]
    _tame(caller.scopes)


def _tame(scopes: Iterable[str]) -> None:
    assert all(re.fullmatch(r"[!#-\[\]-~]+", scope) for scope in scopes)


BASE = b"/base/v1"
ROUTE = ProxyRoute(
    f"https://api.example{BASE.decode()}?key=1",
    token_source=sources.Static("x"),
    paths=["/user/**", "/repos/*/*", "/"],
    rules=[Rule(), Rule(paths=["/user/admin/**"], deny=True)],
)


def target(data: bytes) -> None:
    """Refused, or under the base byte for byte, however often it is decoded and whichever way slashes lean."""
    path, _, query = data.partition(b"?")
    rest = b"/" + path
    try:
        joined = ROUTE.target(rest, query)
    except errors.BadRequest:
        return
    assert joined == BASE + rest + b"?key=1" + (b"&" + query if query else b"")
    assert re.fullmatch(rb"[!-~]+", joined)
    assert b"#" not in joined
    once = unquote_to_bytes(joined.partition(b"?")[0]).replace(b"\\", b"/")
    for segment in once.split(b"/"):
        assert segment.split(b";")[0].strip(bytes(range(0x21))) not in (b".", b"..")
    assert not set(once) & set(b"\r\n\0")
    try:
        ROUTE.check_path(rest)
        ROUTE.check_rules(frozenset(), "GET", rest)
    except errors.CallerForbidden:
        return
    # What both lists let pass is on the one list and not on the other, in a plain reading too.
    plain = unquote_to_bytes(rest)
    assert plain == b"/" or plain.startswith((b"/user", b"/repos/"))
    assert not re.match(rb"/user/admin(/|\Z)", plain, re.IGNORECASE)


def _json(*documents: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(document).encode() for document in documents)


GOOD_ANSWER = {"active": True, "sub": "alice", "aud": API, "exp": 4_000_000_000, "scope": "a b", "token_type": "Bearer"}
_ATOMS = (b"null", b"true", b"false", b"[]", b"{}", b'""', b"1e999", b"NaN", b"-0", b'"\\ud800"', b'"\\u0000"')
_CLAIMS = (b'"exp":', b'"nbf":', b'"iat":', b'"iss":', b'"sub":', b'"aud":', b'"scope":', b'"cnf":', b'"events":')

TARGETS = (
    Target(
        "authorization",
        authorization,
        (b"Bearer " + GOOD_TOKEN, b"bearer a.b.c", b"token x", b"DPoP " + GOOD_TOKEN, b"Bearer \nBearer a", b""),
        (b"Bearer ", b"bearer", b"token ", b"Basic ", b"\t", b"\n", b",", GOOD_TOKEN, b"e30.e30.e30"),
    ),
    Target(
        "token",
        token,
        tuple(
            head + b"\n\n" + body for head in _json(GOOD_HEADER, {"alg": "EdDSA"}) for body in _json(GOOD_CLAIMS, {})
        ),
        (*_ATOMS, *_CLAIMS, b'"alg":', b'"kid":', b'"typ":', b'"crit":', b'"b64":', b'"none"', b'"RS256"', b'"at+jwt"'),
    ),
    Target(
        "key set",
        key_set,
        (KEYS, b'{"keys": []}', *_json({"keys": [KEY.jwk]}, {"keys": [signing_key("ES256").jwk, KEY.jwk, None]})),
        (*_ATOMS, b'"kty":', b'"use":', b'"sig"', b'"enc"', b'"key_ops":', b'"verify"', b'"oct"', b'"RSA"', b'"d":'),
    ),
    Target(
        "discovery",
        discovery,
        (DISCOVERY, *_json({"issuer": ISSUER, "jwks_uri": "http://127.0.0.1/keys"}), b"{}"),
        (
            *_ATOMS,
            b'"issuer":',
            b'"jwks_uri":',
            b"http://",
            b"https://",
            b"@",
            b"[::1]",
            b"\\u0000",
            b":99999",
            b"#",
            b"?",
        ),
    ),
    Target(
        "introspection",
        introspection,
        tuple(b"\0" + answer for answer in _json(GOOD_ANSWER, {"active": False}, {"active": True, "sub": "a"})),
        (*_ATOMS, *_CLAIMS, b'"active":', b'"token_type":', b'"refresh_token"', b'"username":'),
    ),
    Target(
        "target",
        target,
        (
            b"user/repos?a=1",
            b"user/%2e%2e/x",
            b"user/a%2Fb;c/.",
            b"repos/a/b",
            b"user/admin",
            b"",
            b"user/%252e/%u002e",
        ),
        (b"%2e", b"%2F", b"%5c", b"%00", b"%0d%0a", b"..", b";", b"\\", b"%c0%ae", b"%u002e", b"%25", b"//", b"#"),
    ),
)
