"""Whatever comes in, from callers or from an issuer, the outcome is a caller, a 401 or (without keys) a 503."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from idp_middleware import JWTAuthenticator
from idp_middleware.errors import CallerUnauthenticated, TokenSourceUnavailable
from idp_middleware.testing import signing_key

EXAMPLES = 150
"""Per property. Set it to 30,000 for an afternoon's run."""

ISSUER = "https://acme.eu.auth0.com/"
API = "https://api.acme.example"
KEY = signing_key("EdDSA")
GOOD_HEADER = {"alg": "EdDSA", "typ": "JWT", "kid": KEY.kid}
GOOD_CLAIMS = {"iss": ISSUER, "sub": "auth0|alice", "aud": API, "exp": int(time.time()) + 36000}

fuzz = settings(max_examples=EXAMPLES, deadline=None, database=None)

texts = st.text(max_size=12) | st.sampled_from(
    ["JWT", "at+jwt", "none", "RS256", "EdDSA", KEY.kid, ISSUER, API, "b64", "sig", "enc", "OKP", "RSA", "Ed25519"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 4_000_000_000)
    | st.floats()
    | st.sampled_from([10**400, -1, 1e308])
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def mutated(good: dict[str, Any], names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """The good object with a few members changed, added or taken away."""
    changes = st.dictionaries(st.sampled_from([*good, *names]) | texts, values, max_size=2)
    gone = st.sets(st.sampled_from([*good]), max_size=1) if good else st.just(set())
    return st.builds(lambda new, less: {n: v for n, v in {**good, **new}.items() if n not in less}, changes, gone)


headers = mutated(GOOD_HEADER, ["crit", "b64", "jwk", "jku", "x5u", "zip", "cty"])
claims = mutated(GOOD_CLAIMS, ["nbf", "iat", "jti", "cnf", "scope", "scp", "permissions", "at_hash", "events"])
segments = st.binary(max_size=40) | st.builds(lambda value: json.dumps(value).encode(), values)


def written(objects: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    return objects.map(json.dumps).map(str.encode)


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(header: bytes, payload: bytes) -> bytes:
    data = b64(header) + b"." + b64(payload)
    return data + b"." + b64(KEY.private.sign(data))


GOOD_TOKEN = signed(json.dumps(GOOD_HEADER).encode(), json.dumps(GOOD_CLAIMS).encode())


def authenticator(discovery: Any, keys: Any, asked: list[httpx.URL] | None = None) -> JWTAuthenticator:
    class Issuer(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if asked is not None:
                asked.append(request.url)
            body = discovery if request.url.path.endswith("openid-configuration") else keys
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return httpx.Response(200, stream=httpx.ByteStream(content))

    return JWTAuthenticator(issuer=ISSUER, audience=API, algorithms=["RS256", "EdDSA"], transport=Issuer())


DISCOVERY = {"issuer": ISSUER, "jwks_uri": ISSUER + "jwks.json"}
KEYS = {"keys": [KEY.jwk, signing_key("RS256").jwk]}


class Outcome:
    """Calls an authenticator on a loop that outlives the examples."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._run = runner.run
        self.shared = authenticator(DISCOVERY, KEYS)

    def of(self, fields: list[tuple[bytes, bytes]], here: JWTAuthenticator | None = None) -> Any:
        """The caller, or which of the two errors; anything else is a failure of the test."""
        conn = HTTPConnection({"type": "http", "headers": fields})
        try:
            return self._run((here or self.shared).authenticate(conn))
        except CallerUnauthenticated:
            # Or NotMine, which is one.
            return CallerUnauthenticated
        except TokenSourceUnavailable as exc:
            return type(exc)

    def of_token(self, token: bytes, here: JWTAuthenticator | None = None) -> Any:
        return self.of([(b"authorization", b"Bearer " + token)], here)


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    with asyncio.Runner() as runner:
        yield Outcome(runner)


schemes = st.sampled_from([b"Bearer"] * 6 + [b"bearer", b"BEARER", b"Basic", b"token", b"DPoP", b"", b"\xe9"])
spaces = st.sampled_from([b" "] * 8 + [b"  ", b"\t", b"", b" \t", b"\n", b"\xa0", b",", b"="])
credentials = st.sampled_from([GOOD_TOKEN] * 4 + [GOOD_TOKEN[:-1], b"", b"a.b.c", b"e30.e30.e30"]) | st.binary(
    max_size=30
)
fields = st.tuples(
    st.sampled_from([b"authorization", b"Authorization", b"AUTHORIZATION", b"x-authorization", b"cookie"]),
    st.builds(
        lambda *parts: b"".join(parts),
        schemes,
        spaces,
        credentials,
        st.sampled_from([b""] * 5 + [b" ", b",", b" x", b"\0"]),
    )
    | st.binary(max_size=30),
)


@fuzz
@given(st.lists(fields, max_size=3))
def test_any_authorization_fields(outcome: Outcome, fields: list[tuple[bytes, bytes]]) -> None:
    """A caller only where exactly one field holds exactly the scheme, one space and the good token."""
    found = [value for name, value in fields if name.lower() == b"authorization"]
    expected = len(found) == 1 and re.fullmatch(rb"(?i:bearer) " + re.escape(GOOD_TOKEN), found[0])
    result = outcome.of(fields)
    assert (result is not CallerUnauthenticated) == bool(expected)


@fuzz
@given(st.builds(lambda parts: b".".join(map(b64, parts)), st.lists(segments, max_size=5)) | st.binary(max_size=200))
def test_any_bytes_for_a_token(outcome: Outcome, token: bytes) -> None:
    """Nothing unsigned is ever a caller."""
    assert outcome.of_token(token) is CallerUnauthenticated


@fuzz
@given(written(headers) | written(headers) | segments, written(claims) | written(claims) | segments)
def test_any_signed_segments(outcome: Outcome, header: bytes, payload: bytes) -> None:
    """Signed by the issuer, and still a caller only if all that has to be said is said."""
    caller = outcome.of_token(signed(header, payload))
    if caller is not CallerUnauthenticated:
        said, claimed = json.loads(header), json.loads(payload)
        assert said["alg"] == "EdDSA"
        assert said.get("kid", KEY.kid) == KEY.kid
        assert str(said.get("typ", "JWT")).lower().removeprefix("application/") in ("jwt", "at+jwt")
        assert not {"crit", "b64"} & said.keys()
        assert claimed["iss"] == ISSUER
        assert API in ([claimed["aud"]] if isinstance(claimed["aud"], str) else claimed["aud"])
        assert caller.subject == claimed["sub"]
        assert caller.subject.encode()
        assert time.time() - 10 < float(claimed["exp"]) < 1e12
        assert not {"cnf", "at_hash", "c_hash", "events"} & claimed.keys()
        assert all(isinstance(scope, str) and scope.isascii() for scope in caller.scopes)


key_entries = st.lists(
    mutated(KEY.jwk, ["use", "key_ops", "d", "n", "e", "y", "k"])
    | mutated(signing_key("RS256").jwk, ["use", "key_ops", "d", "p"])
    | mutated(signing_key("ES256").jwk, ["use", "key_ops"])
    | values,
    max_size=4,
)


@fuzz
@given(st.builds(lambda keys: {"keys": keys}, key_entries) | values | st.binary(max_size=60))
def test_any_key_set(outcome: Outcome, document: Any) -> None:
    """A key set can make a good token a stranger's, or leave us without keys, but not break anything."""
    result = outcome.of_token(GOOD_TOKEN, authenticator(DISCOVERY, document))
    if result not in (CallerUnauthenticated, TokenSourceUnavailable):
        published = [(key.get("kid"), key.get("x")) for key in document["keys"] if isinstance(key, dict)]
        assert (KEY.kid, KEY.jwk["x"]) in published


urls = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["https://", "http://", "HTTPS://", "ftp://", "//", "", "https:", "javascript:"]),
        st.sampled_from(["acme.example", "127.0.0.1", "localhost", "[::1]", "user@acme.example", "a b", "é", ""])
        | texts,
        st.sampled_from(["", ":443", ":0", ":99999", ":x"]),
        st.sampled_from(["", "/jwks", "/../jwks", "?a=b", "#f", "/%00", "/\r\n"]) | texts,
    ),
)
discoveries = mutated(DISCOVERY, []) | st.builds(lambda url: {**DISCOVERY, "jwks_uri": url}, urls | values)


@fuzz
@given(discoveries | values | st.binary(max_size=60))
def test_any_discovery_document(outcome: Outcome, document: Any) -> None:
    """It leads to the issuer's keys over TLS or on this machine, or to none."""
    asked: list[httpx.URL] = []
    result = outcome.of_token(GOOD_TOKEN, authenticator(document, KEYS, asked))
    assert result is TokenSourceUnavailable or result.subject == "auth0|alice"
    for url in asked:
        assert url.scheme == "https" or url.host in ("127.0.0.1", "localhost", "::1") or url.host.endswith(".localhost")
