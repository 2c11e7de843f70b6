"""Group F: whose token gets in, and what the others are told."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import contextmanager

import httpx
import jwt
import pytest
import time_machine

from idp_middleware import JWTAuthenticator, ProxyRoute
from idp_middleware.testing import Auth0, signing_key
from tests import test_jwt_forged as forged
from tests.cases.conftest import provider_token
from tests.stack import AUDIENCE, running

INVALID = b'Bearer error="invalid_token", error_description="The access token is not valid here"'
JWKS = "/.well-known/jwks.json"


@pytest.fixture(scope="module")
def routes(recorder):
    def route(**options):
        return ProxyRoute(f"{recorder.url}/base", token_source=provider_token, **options)

    return {"up": route(), "scoped": route(scopes={"read:github", "repo"})}


@contextmanager
def gateway(parser, upstream, **options):
    """A stack of a test's own, with what it remembers."""
    routes = {"up": ProxyRoute(upstream.url, token_source=provider_token)}
    with running(http=parser, routes=lambda api, source: routes, **options) as stack:
        yield stack


@pytest.fixture(scope="module")
def strict(parser, recorder):
    """A gateway that knows the issuer whose tokens `tests/test_jwt_forged.py` forges."""
    recorder.reset()
    with gateway(parser, recorder, authenticator=forged.authenticator()) as stack:
        yield stack


def with_token(stack, token, method="GET", target="/idp/up/x", *fields):
    """The answer to a request with these very bytes as its token."""
    token = token.decode("latin-1") if isinstance(token, bytes) else token
    return stack.ask(method, target, f"Authorization: Bearer {token}", *fields, user=None)


def outcome(answer):
    return answer.status, answer.problem, answer.all(b"www-authenticate")


REFUSED = (401, "caller-unauthenticated", [INVALID])


def test_who_sends_no_token_is_not_told_of_an_error(stack, upstream):
    """F01: RFC 6750 section 3.1."""
    assert outcome(stack.ask("GET", "/idp/up/x", user=None)) == (401, "caller-unauthenticated", [b"Bearer"])
    assert upstream.requests == []


def test_every_invalid_token_has_the_same_answer(stack, upstream):
    """F02: whether it was the signature, the issuer, the audience or the hour is for the operator's log."""
    signed, _, signature = stack.token().rpartition(".")
    invalid = {
        "expired": stack.token(expires_in=-60),
        "signature": f"{signed}.{signature[:-4]}AAAA",
        "issuer": stack.token(iss="https://evil.example/"),
        "audience": stack.token(audience="https://another.example"),
        "not yet": stack.token(nbf=int(time.time()) + 60),
        "garbage": "garbage",
    }
    seen = set()
    for name, token in invalid.items():
        answer = with_token(stack, token)
        assert outcome(answer) == REFUSED, name
        seen.add((answer.start, tuple(field for field in answer.fields if field[0] != b"date"), answer.body))
    assert len(seen) == 1
    assert upstream.requests == []


@pytest.mark.parametrize("scope", ["", "read:github", "read:github repos", "REPO read:github", "read:github,repo"])
def test_a_missing_scope_is_named(stack, upstream, scope):
    """F03: RFC 6750 section 3.1; all that the route asks for, and not what the caller holds."""
    answer = with_token(stack, stack.token(scope=scope), "GET", "/idp/scoped/x")
    challenge = b'Bearer error="insufficient_scope", scope="read:github repo"'
    assert outcome(answer) == (403, "caller-forbidden", [challenge])
    assert upstream.requests == []
    assert with_token(stack, stack.token(scope="repo read:github x"), "GET", "/idp/scoped/x").status == 200


def refused_over_the_wire(stack, table):
    """Drive a table of forgeries, each on a connection of its own; what was not refused, and how many were sent."""
    let_in, sent = {}, 0
    for name, make in table.items():
        token = make()
        if b"\n" in token or b"\r" in token:
            # The line ends there, and what is left may be a good token.
            continue
        sent += 1
        # A parser may refuse what no header field holds, or is too long for one, and not wait for all of it.
        unspeakable = re.search(rb"[^\t -~\x80-\xff]", token) or len(token) > 60_000
        try:
            answer = outcome(with_token(stack, token))
        except ConnectionError:
            answer = (400, "reset")
        if answer != REFUSED and not (unspeakable and answer[0] == 400):
            let_in[name] = answer
    return let_in, sent


@pytest.mark.parametrize(
    ("table", "at_least"),
    [
        pytest.param(forged.ALGORITHMS, 60, id="F04 algorithms"),
        pytest.param(forged.KEYS, 30, id="F30 keys"),
        pytest.param(forged.HEADERS, 35, id="F21 critical extensions, F30 types"),
        pytest.param(forged.SHAPES, 90, id="F23 shapes"),
        pytest.param(forged.SIGNATURES, 30, id="F30 signatures"),
        pytest.param(forged.CLAIMS, 130, id="F05 F07 F11 F12 F29 claims"),
    ],
)
def test_no_forgery_gets_in(strict, upstream, table, at_least):
    """F04, F05, F07, F12, F21, F23, F30: each differs in one thing from a token that gets in."""
    let_in, sent = refused_over_the_wire(strict, table)
    assert let_in == {}
    assert sent >= at_least
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("head", "claims", "sign"),
    [
        pytest.param({}, {}, forged.good, id="F30 RS256"),
        pytest.param(forged.EC_HEADER, {}, forged.es256, id="F30 ES256"),
        pytest.param(forged.ED_HEADER, {}, forged.ED.private.sign, id="F30 EdDSA"),
        pytest.param({"zip": "DEF", "cty": "JWT"}, {}, forged.good, id="F21 no meaning in a signed token"),
        pytest.param({"jwk": forged.STRANGER.jwk}, {}, forged.good, id="F30 a key that it brings"),
        pytest.param({}, {"aud": ["https://other.example", forged.API]}, forged.good, id="F12 one of several"),
        pytest.param({}, {"iat": 0, "nbf": 0.5}, forged.good, id="F07 numbers of any kind"),
    ],
)
def test_a_good_token_of_each_kind_gets_in(strict, upstream, head, claims, sign):
    """F12, F21, F30: else refusing the others would prove nothing."""
    token = forged.token(forged.header(**head), forged.claims(**claims), sign)
    assert with_token(strict, token).status == 200
    assert upstream.last.all(b"authorization") == [b"Bearer provider-token-of-alice"]


@pytest.mark.parametrize("missing", ["exp", "aud", "iss", "sub"])
def test_what_a_token_has_to_say_it_says(stack, upstream, missing):
    """F05: none of it is optional, whatever the library below has as its default."""
    claims = {"audience": None} if missing == "aud" else {missing: None}
    assert outcome(with_token(stack, stack.token(**claims))) == REFUSED
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("claims", "accepted"),
    [
        ({"exp": -5}, True),
        ({"exp": -30}, False),
        ({"nbf": 5}, True),
        ({"nbf": 30}, False),
        ({"iat": 5}, True),
        ({"iat": 30}, False),
    ],
)
def test_clocks_may_differ_by_the_leeway(stack, upstream, claims, accepted):
    """F08: ten seconds by default, either way, and no more."""
    token = stack.token(**{name: int(time.time()) + offset for name, offset in claims.items()})
    assert (with_token(stack, token).status == 200) is accepted
    assert len(upstream.requests) == accepted


def test_another_tenant_of_one_host_is_another_issuer(parser, upstream):
    """F11: tenants of one identity provider may share its keys, so the signature is good, and is not enough."""
    key = signing_key("RS256")
    ours = "https://login.example/11111111/v2.0"

    async def keys(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"keys": [key.jwk]}).encode()})

    authenticator = JWTAuthenticator(
        issuer=ours,
        audience=AUDIENCE,
        jwks_url="https://login.example/common/keys",
        transport=httpx.ASGITransport(app=keys),
    )
    with gateway(parser, upstream, authenticator=authenticator) as stack:
        for issuer, status in (
            (ours, 200),
            ("https://login.example/22222222/v2.0", 401),
            ("https://login.example/11111111", 401),
            ("https://login.example/11111111/v2.0/", 401),
            ("https://login.example/common/v2.0", 401),
            ("https://login.example/{tenantid}/v2.0", 401),
        ):
            # `tid` is what Entra calls the tenant; a token may say what it likes of it.
            token = Auth0("https://x.example").issue_token(
                "auth0|alice", audience=AUDIENCE, key=key, iss=issuer, tid="11111111", headers={"kid": key.kid}
            )
            assert with_token(stack, token).status == status, issuer
    assert len(upstream.requests) == 1


async def statuses(stack, tokens, *, at_once=50):
    """The status of a request with each of these tokens, several at a time."""
    turns = asyncio.Semaphore(at_once)

    async def call(token):
        async with turns:
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
            request = stack.raw_request("GET", "/idp/up/x", f"Authorization: Bearer {token}", user=None)
            writer.write(request)
            head = await reader.read()
            writer.close()
            return int(head.split(b" ", 2)[1])

    return await asyncio.gather(*map(call, tokens))


def with_key_id(token, kid):
    """The same token by another key's name. Nobody knows that its signature does not fit before they have the key."""
    header = forged.b64(json.dumps({"alg": "RS256", "typ": "JWT", "kid": kid}).encode()).decode()
    return f"{header}.{token.partition('.')[2]}"


def test_a_thousand_made_up_key_ids_ask_for_the_keys_once(parser, upstream):
    """F15: CVE-2026-48524 of PyJWT; and who has a known key does not wait for those who don't."""
    with gateway(parser, upstream) as stack:
        good = stack.token()
        assert with_token(stack, good).status == 200
        fetched = stack.auth0.count(JWKS)
        flood = [with_key_id(good, f"kid-{number}") for number in range(1000)]
        tokens = [token for made_up in flood for token in (made_up, good)]
        assert asyncio.run(statuses(stack, tokens)) == [401, 200] * 1000
        assert stack.auth0.count(JWKS) <= fetched + 1


def test_a_new_key_works_at_once_and_the_next_within_the_cool_down(parser, upstream):
    """F16: identity providers announce keys ahead; one that does not is waited for, half a minute at the longest."""
    with gateway(parser, upstream) as stack:
        assert with_token(stack, stack.token()).status == 200
        stack.auth0.rotate_keys()
        assert with_token(stack, stack.token()).status == 200
        stack.auth0.rotate_keys()
        assert outcome(with_token(stack, stack.token())) == REFUSED
        with time_machine.travel(time.time() + 31):
            assert with_token(stack, stack.token()).status == 200


def test_a_malformed_key_spoils_no_other(parser, upstream):
    """F18: unknown kinds, two keys of one id, RSA and EC in one set: what is usable is used."""
    rsa, ec, ed, other = (
        signing_key("RS256"),
        signing_key("ES256"),
        signing_key("EdDSA"),
        signing_key("RS256", 1),
    )
    documents = [
        {"kty": "RSA", "kid": "no modulus", "e": "AQAB"},
        {"kty": "RSA", "kid": "no numbers", "n": "!", "e": 3},
        {"kty": "AKP", "kid": "unknown", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": "EC", "crv": "P-256", "kid": "off the curve", "x": "AQ", "y": "AQ"},
        None,
        "key",
        {**other.jwk, "kid": rsa.kid},
        rsa.jwk,
        {**ec.jwk, "kid": rsa.kid},
        {**ed.jwk, "alg": "Ed25519"},
    ]

    async def keys(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"keys": documents}).encode()})

    authenticator = JWTAuthenticator(
        issuer="https://login.example/",
        audience=AUDIENCE,
        jwks_url="https://login.example/keys",
        algorithms=["RS256", "ES256", "EdDSA"],
        transport=httpx.ASGITransport(app=keys),
    )
    issuer = Auth0("https://login.example/")

    def token(key, algorithm, kid):
        return issuer.issue_token("auth0|alice", audience=AUDIENCE, key=key, algorithm=algorithm, headers={"kid": kid})

    with gateway(parser, upstream, authenticator=authenticator) as stack:
        for key, algorithm, kid, status in (
            (rsa, "RS256", rsa.kid, 200),
            (other, "RS256", rsa.kid, 200),
            (ec, "ES256", rsa.kid, 200),
            (ed, "EdDSA", ed.kid, 401),
            (rsa, "RS256", "no modulus", 401),
        ):
            assert with_token(stack, token(key, algorithm, kid)).status == status, (algorithm, kid)
    assert len(upstream.requests) == 3


def test_an_answer_repeats_nothing_and_names_nothing(stack, upstream):
    """F25: RFC 9457; the whole document is this, and a HEAD has none."""
    expired = stack.token(expires_in=-60, sub="auth0|somebody-else")
    answer = with_token(stack, expired)
    assert json.loads(answer.body) == {
        "type": "urn:idp-middleware:problem:caller-unauthenticated",
        "title": "The request needs a valid access token.",
        "status": 401,
    }
    assert b"somebody" not in answer.head
    forbidden = with_token(stack, stack.token(scope="secret-scope"), "GET", "/idp/scoped/x")
    assert set(json.loads(forbidden.body)) == {"type", "title", "status"}
    assert b"secret-scope" not in forbidden.head + forbidden.body
    request = stack.raw_request("HEAD", "/idp/up/x", f"Authorization: Bearer {expired}", user=None)
    head, _, body = stack.raw(request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"content-type: application/problem+json" in head
    assert body == b""
    assert upstream.requests == []


def test_a_preflight_is_refused_where_no_cors_middleware_answers_it(stack, upstream):
    """F27: it carries no credentials, and opens nothing; README says where Starlette's CORSMiddleware goes."""
    fields = ["Origin: https://app.example", "Access-Control-Request-Method: POST"]
    answer = stack.ask("OPTIONS", "/idp/up/x", *fields, user=None)
    assert outcome(answer) == (401, "caller-unauthenticated", [b"Bearer"])
    assert not [name for name, _ in answer.fields if name.startswith(b"access-control-")]
    assert upstream.requests == []


def test_a_flood_of_invalid_tokens_costs_no_signatures_and_no_others_their_turn(parser, upstream, monkeypatch):
    """F28: what is cheap to see comes first, so a signature is looked at only where all else is in order."""
    looked_at = []
    decode = jwt.PyJWT.decode
    monkeypatch.setattr(jwt.PyJWT, "decode", lambda *args, **kw: looked_at.append(args[1]) or decode(*args, **kw))
    with gateway(parser, upstream) as stack:
        good = stack.token()
        assert with_token(stack, good).status == 200
        assert looked_at == [good]
        cheap = [
            stack.token(expires_in=-60),
            stack.token(audience="https://another.example"),
            stack.token(algorithm="HS256", key="x" * 64),
            with_key_id(good, "unknown"),
            good + "." + "A" * 17_000,
        ] * 100
        start = time.monotonic()
        answers = asyncio.run(statuses(stack, [*cheap, good], at_once=501))
        assert answers == [401] * 500 + [200]
        assert looked_at == [good]
        # Half a second here; a verification of each would not show in this, what blocks the loop would.
        assert time.monotonic() - start < 30
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("scheme", ["DPoP", "dpop", "MAC", "HOBA", "Negotiate", "AWS4-HMAC-SHA256"])
def test_a_scheme_that_promises_a_proof_is_none_of_ours(stack, upstream, scheme):
    """F29: RFC 9449 section 7.1; with its proof or without, since nobody here would check it."""
    fields = [f"Authorization: {scheme} {stack.token()}", "DPoP: eyJ0eXAiOiJkcG9wK2p3dCJ9.e30.AA"]
    answer = stack.ask("GET", "/idp/up/x", *fields, user=None)
    assert outcome(answer) == (401, "caller-unauthenticated", [b"Bearer"])
    assert upstream.requests == []


@pytest.mark.parametrize("cnf", [{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}, {"x5t#S256": "bwcK0esc"}])
def test_a_token_that_is_bound_to_a_key_is_worth_nothing_by_itself(stack, upstream, cnf):
    """F29: RFC 9449 section 7.2, RFC 8705 section 3: who stole it would send it in just this way."""
    assert outcome(with_token(stack, stack.token(cnf=cnf))) == REFUSED
    assert upstream.requests == []
