"""Which keys of a key set may verify which tokens (RFC 7517, RFC 7518, RFC 8725 section 3.1)."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from jwt.algorithms import ECAlgorithm, OKPAlgorithm
from starlette.requests import HTTPConnection

from idp_middleware import JWTAuthenticator
from idp_middleware.errors import CallerUnauthenticated, TokenSourceUnavailable
from idp_middleware.testing import SigningKey, signing_key

ISSUER = "https://acme.eu.auth0.com/"
API = "https://api.acme.example"

GOOD, BAD = signing_key("RS256", 0), signing_key("RS256", 99)
ELLIPTIC, EDWARDS = signing_key("ES256"), signing_key("EdDSA")
Drop = ...
"""As a value: leave the member out."""


def changed(key: SigningKey, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**key.jwk, **changes}.items() if value is not Drop}


def authenticator(*keys: Any, algorithms: Any = ("RS256", "ES256", "EdDSA")) -> JWTAuthenticator:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"keys": keys}).encode()})

    return JWTAuthenticator(
        issuer=ISSUER,
        audience=API,
        jwks_url=ISSUER + ".well-known/jwks.json",
        algorithms=algorithms,
        transport=httpx.ASGITransport(app=app),
    )


def token(private: Any, algorithm: str = "RS256", kid: str | None = None) -> str:
    claims = {"iss": ISSUER, "sub": "auth0|alice", "aud": API, "exp": int(time.time()) + 3600}
    return jwt.encode(claims, private, algorithm, headers={} if kid is None else {"kid": kid})


async def accepts(authenticator: JWTAuthenticator, token: str) -> bool:
    conn = HTTPConnection({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]})
    try:
        return (await authenticator.authenticate(conn)).subject == "auth0|alice"
    except CallerUnauthenticated:
        return False


USELESS: dict[str, Any] = {
    **{f"entry {entry!r}": entry for entry in (None, True, 1, "x", [], [BAD.jwk], {})},
    **{
        f"kty {kty!r}": changed(BAD, kty=kty)
        for kty in (Drop, None, "", "rsa", "RSA ", "oct", "EC", "OKP", "AKP", 1, [])
    },
    **{f"use {use!r}": changed(BAD, use=use) for use in ("enc", "SIG", "sig ", "", None, 1, ["sig"])},
    **{
        f"key_ops {operations!r}": changed(BAD, key_ops=operations)
        for operations in ([], ["sign"], ["encrypt"], ["VERIFY"], "verify", None, {"verify": 1}, [["verify"]])
    },
    "use enc beside key_ops verify": changed(BAD, use="enc", key_ops=["verify"]),
    "use sig beside key_ops encrypt": changed(BAD, key_ops=["encrypt", "wrapKey"]),
    **{
        f"alg {alg!r}": changed(BAD, alg=alg)
        for alg in ("RS384", "PS256", "HS256", "none", "RSA-OAEP", "ES256", "rs256", "", 7, ["RS256"])
    },
    **{f"kid {kid!r}": changed(BAD, kid=kid) for kid in (7, True, ["bad"], {"bad": 1}, Drop, None, "other", "BAD")},
    **{f"n {n!r}"[:40]: changed(BAD, n=n) for n in (Drop, None, "", "!!!", 7, "AQAB", "AA", "A" * 3000)},
    # Without what is another in each process: those that share the tests compare what tests there are.
    "n in a list": changed(BAD, n=[BAD.jwk["n"]]),
    "n cut short": changed(BAD, n=BAD.jwk["n"][:-171]),
    "n of another key": changed(BAD, n=GOOD.jwk["n"]),
    **{f"e {e!r}": changed(BAD, e=e) for e in (Drop, None, "", "AA", "AQ", "Ag", "Aw", 65537, "A" * 3000)},
    "published with its private exponent": changed(BAD, d="AQAB"),
    "published with a private part that is null": changed(BAD, d=None),
    "a symmetric key": {"kty": "oct", "k": BAD.jwk["n"], "kid": "bad", "alg": "RS256"},
    "crv of another family": {"kty": "RSA", "crv": "Ed25519", "x": EDWARDS.jwk["x"], "kid": "bad"},
}


@pytest.mark.parametrize("name", USELESS)
async def test_a_useless_key_is_skipped_and_the_others_work(name: str) -> None:
    """Issuers publish encryption keys, new kinds of keys, and now and then nonsense, next to what they sign with."""
    entry = USELESS[name]
    if isinstance(entry, dict) and entry.get("kid") == BAD.kid:
        entry = {**entry, "kid": "bad"}
    here = authenticator(entry, GOOD.jwk)
    assert not await accepts(here, token(BAD.private, kid="bad"))
    assert await accepts(here, token(GOOD.private, kid=GOOD.kid))


CURVES: dict[str, Any] = {
    **{
        f"crv {crv!r}": changed(ELLIPTIC, crv=crv)
        for crv in (Drop, None, "", "P-384", "p-256", "secp256k1", 256, "Ed25519")
    },
    **{f"x {x!r}"[:30]: changed(ELLIPTIC, x=x) for x in (Drop, None, "", "AA", 7, "A" * 43)},
    "x cut short": changed(ELLIPTIC, x=ELLIPTIC.jwk["x"][:-2]),
    "not on the curve": changed(ELLIPTIC, x=ELLIPTIC.jwk["y"], y=ELLIPTIC.jwk["x"]),
    "no y": changed(ELLIPTIC, y=Drop),
    "alg ES384": changed(ELLIPTIC, alg="ES384"),
    "alg RS256": changed(ELLIPTIC, alg="RS256"),
    "kty OKP": changed(ELLIPTIC, kty="OKP"),
    "kty RSA": changed(ELLIPTIC, kty="RSA"),
    "use enc": changed(ELLIPTIC, use="enc"),
}


@pytest.mark.parametrize("name", CURVES)
async def test_a_useless_elliptic_key_is_skipped(name: str) -> None:
    """A point off the curve is how invalid-curve attacks begin."""
    here = authenticator({**CURVES[name], "kid": "bad"}, GOOD.jwk)
    assert not await accepts(here, token(ELLIPTIC.private, "ES256", "bad"))
    assert await accepts(here, token(GOOD.private, kid=GOOD.kid))


OCTETS: dict[str, Any] = {
    **{f"crv {crv!r}": changed(EDWARDS, crv=crv) for crv in (Drop, None, "X25519", "Ed448", "ed25519", "P-256", 1)},
    **{f"x {x!r}": changed(EDWARDS, x=x) for x in (Drop, None, "", "AA", 7)},
    "x too long": changed(EDWARDS, x=EDWARDS.jwk["x"] + "AAAA"),
    "kty EC": changed(EDWARDS, kty="EC"),
    "alg Ed25519": changed(EDWARDS, alg="Ed25519"),
    "with its private half": changed(EDWARDS, d=EDWARDS.jwk["x"]),
}


@pytest.mark.parametrize("name", OCTETS)
async def test_a_useless_edwards_key_is_skipped(name: str) -> None:
    """X25519 keys are for encryption and look alike."""
    here = authenticator({**OCTETS[name], "kid": "bad"}, GOOD.jwk)
    assert not await accepts(here, token(EDWARDS.private, "EdDSA", "bad"))
    assert await accepts(here, token(GOOD.private, kid=GOOD.kid))


async def test_members_that_do_not_matter_do_not() -> None:
    """What makes a key fit for signatures may be said in several ways, or not at all."""
    for changes in (
        {},
        {"use": Drop},
        {"alg": Drop},
        {"use": Drop, "alg": Drop, "key_ops": ["verify"]},
        {"key_ops": ["sign", "verify"]},
        {"alg": None},
        {"x5c": ["MIIB"], "x5t": "x", "x5u": "https://evil.example/", "nbf": 0, "iss": "x", "status": "in use"},
        {"kid": "../" * 90},
    ):
        key = changed(GOOD, **changes)
        assert await accepts(authenticator(key), token(GOOD.private, kid=key["kid"])) == (len(key["kid"]) <= 256)


async def test_a_key_without_alg_serves_its_whole_kind() -> None:
    """But only the algorithms that are allowed here; with an `alg`, that one only (RFC 7517 section 4.4)."""
    open_key, bound_key = changed(GOOD, alg=Drop, kid="open"), changed(BAD, kid="bound")
    here = authenticator(open_key, bound_key, algorithms=("RS256", "PS256"))
    for algorithm, open_fits, bound_fits in (
        ("RS256", True, True),
        ("PS256", True, False),
        ("RS512", False, False),
        ("PS384", False, False),
    ):
        assert await accepts(here, token(GOOD.private, algorithm, "open")) is open_fits
        assert await accepts(here, token(BAD.private, algorithm, "bound")) is bound_fits


@pytest.mark.parametrize(
    ("algorithm", "private"),
    [
        ("ES384", ec.generate_private_key(ec.SECP384R1())),
        ("ES512", ec.generate_private_key(ec.SECP521R1())),
        ("EdDSA", ed448.Ed448PrivateKey.generate()),
    ],
)
async def test_the_larger_curves_work(algorithm: str, private: Any) -> None:
    """They may be configured, so they have to; and each only with its own algorithm."""
    kind = OKPAlgorithm if algorithm == "EdDSA" else ECAlgorithm
    key = {**json.loads(kind.to_jwk(private.public_key())), "kid": "k"}
    here = authenticator(key, algorithms=("ES256", "ES384", "ES512", "EdDSA"))
    assert await accepts(here, token(private, algorithm, "k"))
    assert not await accepts(
        authenticator(key, GOOD.jwk, algorithms=["RS256", "ES256"]), token(private, algorithm, "k")
    )


async def test_keys_that_share_an_id_are_all_tried() -> None:
    """RFC 7517 section 4.5 lets keys of different kinds share one; some issuers let any."""
    shared = [
        changed(BAD, kid="k"),
        changed(ELLIPTIC, kid="k"),
        changed(BAD, kid="k", use="enc"),
        changed(BAD, kid="k"),
        changed(GOOD, kid="k"),
    ]
    here = authenticator(*shared)
    for private, algorithm in ((GOOD.private, "RS256"), (BAD.private, "RS256"), (ELLIPTIC.private, "ES256")):
        assert await accepts(here, token(private, algorithm, "k"))
    assert not await accepts(here, token(signing_key("RS256", 98).private, kid="k"))


async def test_a_token_without_key_id_needs_exactly_one_fitting_key() -> None:
    """Trying them all would let a forger have a hundred signatures checked for one token."""
    one = authenticator(GOOD.jwk, ELLIPTIC.jwk, changed(BAD, use="enc"))
    assert await accepts(one, token(GOOD.private))
    assert await accepts(one, token(ELLIPTIC.private, "ES256"))
    assert not await accepts(one, token(EDWARDS.private, "EdDSA"))

    two = authenticator(GOOD.jwk, BAD.jwk)
    assert not await accepts(two, token(GOOD.private))
    assert await accepts(two, token(GOOD.private, kid=GOOD.kid))


async def test_keys_without_an_id_serve_tokens_without_one() -> None:
    """A token that names a key means that key."""
    here = authenticator(changed(GOOD, kid=Drop))
    assert await accepts(here, token(GOOD.private))
    assert not await accepts(here, token(GOOD.private, kid=GOOD.kid))


async def test_a_key_set_is_looked_at_up_to_a_bound() -> None:
    """A hundred keys; loading each takes a while, on the loop that serves everybody."""
    crowd = [changed(BAD, kid=f"k{n}") for n in range(100)]
    assert await accepts(authenticator(*crowd[:99], GOOD.jwk), token(GOOD.private, kid=GOOD.kid))
    assert not await accepts(authenticator(*crowd, GOOD.jwk), token(GOOD.private, kid=GOOD.kid))


async def test_a_set_without_any_usable_key_is_no_key_set() -> None:
    """Then nobody can be verified, which is not the callers' fault."""
    for keys in ([], [changed(GOOD, use="enc")], [ELLIPTIC.jwk]):
        with pytest.raises(TokenSourceUnavailable):
            await accepts(authenticator(*keys, algorithms=["RS256"]), token(GOOD.private, kid=GOOD.kid))
