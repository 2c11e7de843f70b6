"""Tokens that must not get in: the attack classes of RFC 8725, of Project Wycheproof and of published advisories.

Each is made from a token that does get in, by one change, and signed by the issuer's own key unless the change is in
the signature; so nothing but the rule in question refuses it.
"""

from __future__ import annotations

import base64
import functools
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import RSAAlgorithm
from starlette.requests import HTTPConnection

from idp_middleware import JWTAuthenticator
from idp_middleware.errors import CallerUnauthenticated
from idp_middleware.testing import signing_key

ISSUER = "https://acme.eu.auth0.com/"
API = "https://api.acme.example"
SECRET = b"a-symmetric-secret-that-the-key-set-gives-away!!"

RSA, STRANGER, ENC, PS = (signing_key("RS256", generation) for generation in (0, 99, 98, 97))
EC, ED = signing_key("ES256"), signing_key("EdDSA")


@functools.cache
def weak() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


def key_set() -> dict[str, Any]:
    weak_jwk = json.loads(RSAAlgorithm.to_jwk(weak().public_key()))
    return {
        "keys": [
            RSA.jwk,
            EC.jwk,
            ED.jwk,
            {**ENC.jwk, "use": "enc", "kid": "enc"},
            {**PS.jwk, "alg": "PS256", "kid": "ps"},
            {**weak_jwk, "kid": "weak", "alg": "RS256", "key_ops": ["verify"]},
            {"kty": "oct", "k": b64(SECRET).decode(), "kid": "oct", "alg": "HS256", "use": "sig"},
        ]
    }


async def jwks_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(key_set()).encode()})


def authenticator() -> JWTAuthenticator:
    return JWTAuthenticator(
        issuer=ISSUER,
        audience=API,
        jwks_url="https://acme.eu.auth0.com/.well-known/jwks.json",
        algorithms=["RS256", "ES256", "EdDSA"],
        transport=httpx.ASGITransport(app=jwks_app),
    )


# --- forging ---------------------------------------------------------------------------------------------------------

Part: TypeAlias = dict[str, Any] | bytes | str
Drop = ...
"""As a value: leave the member out."""


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def encoded(part: Part) -> bytes:
    if isinstance(part, dict):
        part = json.dumps({name: value for name, value in part.items() if value is not Drop})
    return b64(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)


def header(**changes: Any) -> dict[str, Any]:
    return {"alg": "RS256", "typ": "JWT", "kid": RSA.kid, **changes}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": ISSUER, "sub": "auth0|alice", "aud": API, "iat": now, "exp": now + 3600, "scope": "a", **changes}


def claims_text(replace: str, by: str, **changes: Any) -> str:
    """The claims as JSON text with one piece of it replaced by what no JSON library would write."""
    text = json.dumps(claims(**changes))
    assert replace in text
    return text.replace(replace, by)


def rs256(private: Any, data: bytes, digest: Any = None) -> bytes:
    return private.sign(data, padding.PKCS1v15(), digest or hashes.SHA256())


def pss(private: Any, data: bytes) -> bytes:
    return private.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def es256(data: bytes) -> bytes:
    r, s = decode_dss_signature(EC.private.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


Sign: TypeAlias = Callable[[bytes], bytes]


def good(data: bytes) -> bytes:
    return rs256(RSA.private, data)


def token(head: Part | None = None, body: Part | None = None, sign: Sign = good) -> bytes:
    signed = encoded(header() if head is None else head) + b"." + encoded(claims() if body is None else body)
    return signed + b"." + b64(sign(signed))


def mac(secret: bytes, digest: str = "sha256") -> Sign:
    return lambda data: hmac.new(secret, data, digest).digest()


def fixed(signature: bytes) -> Sign:
    return lambda data: signature


def on_signature(change: Callable[[bytes], bytes], head: Part | None = None, sign: Sign = good) -> bytes:
    return token(head, sign=lambda data: change(sign(data)))


def public(encoding: Encoding, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    key = load_pem_public_key(RSA.public_pem)
    return key.public_bytes(encoding, form)


def modulus() -> bytes:
    n: int = RSA.private.public_key().public_numbers().n
    return n.to_bytes(256, "big")


EC_HEADER = header(alg="ES256", kid=EC.kid)
ED_HEADER = header(alg="EdDSA", kid=ED.kid)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED_ORDER = 2**252 + 27742317777372353535851937790883648493
STANDARD = bytes.maketrans(b"-_", b"+/")

Table: TypeAlias = dict[str, Callable[[], bytes]]


def each(name: str, values: list[Any], make: Callable[[Any], bytes]) -> Table:
    table: Table = {}
    for value in values:
        key = f"{name}={named(value)}"
        # Of those that begin alike, each would replace the one before.
        while key in table:
            key += "+"
        table[key] = functools.partial(make, value)
    return table


def named(value: Any) -> str:
    """The same in each process, though keys are not: those that share the tests compare what tests there are."""
    text = ascii(value)
    for key, name in (
        (ascii(STRANGER.jwk), "JWK"),
        (STRANGER.kid, "STRANGER"),
        (RSA.kid, "KID"),
        (RSA.kid.swapcase(), "kID"),
    ):
        text = text.replace(key, name)
    return text[:40]


ALGORITHMS: Table = {
    # RFC 8725 section 2.1: "none", in every spelling that a case-folding allow-list has fallen for.
    **each(
        "unsigned, alg",
        ["none", "None", "NONE", "nOnE", "none ", " none", "none\0", "", Drop, None, 0, False, [], {}, ["none"]],
        lambda alg: token(header(alg=alg), sign=fixed(b"")),
    ),
    # With a signature that is good for RS256.
    **each(
        "signed, alg",
        ["none", "NONE", "", Drop, None, 0, True, [], ["RS256"], {"RS256": 1}, "rs256", "RS256 ", " RS256", "RS256\0"],
        lambda alg: token(header(alg=alg)),
    ),
    **each(
        "not allowed, alg",
        ["HS256", "RS1", "ES256K", "A256KW", "dir", "RSA-OAEP", "EdDSA2", "Ed25519", "RS256,ES256", "R\u017f256"],
        lambda alg: token(header(alg=alg)),
    ),
    "RS384, which is not allowed": lambda: token(
        header(alg="RS384"), sign=lambda data: rs256(RSA.private, data, hashes.SHA384())
    ),
    "RS512, which is not allowed": lambda: token(
        header(alg="RS512"), sign=lambda data: rs256(RSA.private, data, hashes.SHA512())
    ),
    "RS384's signature called RS256": lambda: token(sign=lambda data: rs256(RSA.private, data, hashes.SHA384())),
    "PS256, which is not allowed": lambda: token(header(alg="PS256", kid="ps"), sign=lambda d: pss(PS.private, d)),
    "PS256's signature called RS256": lambda: token(sign=lambda data: pss(RSA.private, data)),
    "RS256 by a key that is for PS256": lambda: token(header(kid="ps"), sign=lambda d: rs256(PS.private, d)),
    "RSA's signature called ES256": lambda: token(header(alg="ES256")),
    "RSA's signature called ES256, with the EC key's id": lambda: token(EC_HEADER),
    "RSA's signature called EdDSA": lambda: token(ED_HEADER),
    "EC's signature called RS256": lambda: token(header(kid=EC.kid), sign=es256),
    "EC's signature with RSA's key id": lambda: token(header(alg="ES256"), sign=es256),
    # RFC 8725 section 2.1: the public key as the secret of a MAC.
    **{
        f"HS{bits} signed with {form}": functools.partial(
            lambda bits, secret: token(header(alg=f"HS{bits}"), sign=mac(secret(), f"sha{bits}")), bits, secret
        )
        for bits in (256, 384, 512)
        for form, secret in {
            "the PEM": lambda: RSA.public_pem,
            "the PEM without its last line break": lambda: RSA.public_pem.rstrip(),
            "the DER": lambda: public(Encoding.DER),
            "the PKCS#1 PEM": lambda: public(Encoding.PEM, PublicFormat.PKCS1),
            "the JWK": lambda: json.dumps(RSA.jwk).encode(),
            "the modulus": modulus,
            "nothing": lambda: b"",
        }.items()
    },
    "HS256 by the oct key in the key set": lambda: token(header(alg="HS256", kid="oct"), sign=mac(SECRET)),
    "RS256 with the oct key's id": lambda: token(header(kid="oct"), sign=mac(SECRET)),
    "MAC with the public key, called RS256": lambda: token(sign=mac(RSA.public_pem)),
}

KEY_IDS = [
    "", None, 0, 1, True, 1.5, [RSA.kid], {"kid": RSA.kid}, RSA.kid + " ", RSA.kid.swapcase(), "k" * 257,
    "../../../dev/null", "' OR '1'='1", "key\r\nX: y", "\0", "\ud800", "/dev/null\0", "|id",
]  # fmt: skip

KEYS: Table = {
    "unknown key id": lambda: token(header(kid="unknown")),
    "another key's id": lambda: token(header(kid=EC.kid)),
    "signed by a stranger": lambda: token(sign=lambda data: rs256(STRANGER.private, data)),
    "signed by a stranger, stranger's key id": lambda: token(
        header(kid=STRANGER.kid), sign=lambda data: rs256(STRANGER.private, data)
    ),
    "signed by the encryption key": lambda: token(header(kid="enc"), sign=lambda data: rs256(ENC.private, data)),
    "signed by a 1024 bit key": lambda: token(header(kid="weak"), sign=lambda data: rs256(weak(), data)),
    # RFC 8725 section 3.10: the token brings its own key.
    **each(
        "stranger's",
        [
            {"jwk": STRANGER.jwk},
            {"jwk": STRANGER.jwk, "kid": Drop},
            {"jwk": STRANGER.jwk, "kid": STRANGER.kid},
            {"jku": "https://evil.example/jwks.json", "kid": STRANGER.kid},
            {"jku": "https://acme.eu.auth0.com@evil.example/", "kid": STRANGER.kid},
            {"x5u": "https://evil.example/cert.pem", "kid": STRANGER.kid},
            {"x5c": ["MIIB"], "kid": STRANGER.kid},
            {"x5t": "AAAA", "kid": STRANGER.kid},
        ],
        lambda extra: token(header(**extra), sign=lambda data: rs256(STRANGER.private, data)),
    ),
    **each(
        "kid",
        KEY_IDS,
        lambda kid: token(header(kid=kid)),
    ),
}

TYPES = [
    "logout+jwt", "dpop+jwt", "secevent+jwt", "id_token", "JWE", "JOSE", "vc+sd-jwt", "kb+jwt", "rt+jwt",
    "oauth-authz-req+jwt", "client-authentication+jwt", "token-introspection+jwt", "text/at+jwt", "at jwt",
    "at+jwt; charset=utf-8", "application/", "application/application/jwt", "JWT ", " JWT", "",
    None, 1, True, [], ["JWT"], {},
]  # fmt: skip

HEADERS: Table = {
    # RFC 7515 section 4.1.11: an extension that is not understood (CVE-2026-32597), and malformed lists of them.
    **each(
        "crit",
        [["x"], [], ["exp"], "exp", ["b64"], [1], {}, None, False, ["alg"], ["http://example.invalid/UNDEFINED"]],
        lambda crit: token(header(crit=crit, x=1, exp=1)),
    ),
    "crit of what is there": lambda: token({**header(crit=["nonce"]), "nonce": "1"}),
    "crit and b64, as they should be": lambda: token(header(crit=["b64"], b64=True)),
    "b64 alone, false": lambda: token(header(b64=False)),
    "b64 alone, true": lambda: token(header(b64=True)),
    "b64 with crit, payload detached": lambda: token(header(b64=False, crit=["b64"]), ""),
    # RFC 8725 section 3.12: other kinds of JWT by the same issuer.
    **each(
        "typ",
        TYPES,
        lambda typ: token(header(typ=typ)),
    ),
}

OBJECTS = [
    b"", b"null", b"1", b'"x"', b"[]", b"[{}]", b"true", b"{", b"}", b"{}{}", b"\xff\xfe", b"\xc3\x28", b"NaN",
]  # fmt: skip

DEEP = "[" * 5000 + "]" * 5000
DIGITS = "9" * 5000

SHAPES: Table = {
    **each(
        "raw",
        [b".", b"..", b"...", b"....", b"a", b"a.b", b"a.b.c", b"null", b"eyJ.eyJ.eyJ", b"=.=.=", b"%2e", b"\0"],
        lambda raw: raw,
    ),
    "two parts": lambda: token().rpartition(b".")[0],
    "two parts and a dot": lambda: token().rpartition(b".")[0] + b".",
    "four parts": lambda: token() + b".AAAA",
    "five parts, as a JWE": lambda: token(header(alg="RSA-OAEP", enc="A256GCM")) + b".AAAA.AAAA",
    "a dot in front": lambda: b"." + token(),
    "a dot behind": lambda: token() + b".",
    "no header": lambda: b"." + token().partition(b".")[2],
    "no payload": lambda: token(body=b""),
    "disclosures of SD-JWT behind": lambda: token() + b"~",
    "JSON serialization": lambda: json.dumps(
        dict(zip(("protected", "payload", "signature"), token().decode().split("."), strict=True))
    ).encode(),
    **each("junk behind", [b"=", b"==", b"\n", b"\0", b"!", b",", b"\xc3\xa9"], lambda x: token() + x),
    **each("junk in the header", [b"=", b" ", b"?", b"\n", b"+", b"\0"], lambda x: token().replace(b".", x + b".", 1)),
    "junk in the payload": lambda: token().replace(b".", b".?", 1),
    "standard base64": lambda: signed_raw(encoded(header()), encoded(claims(x="~~~???" * 9)).translate(STANDARD)),
    "padded header": lambda: signed_raw(encoded(header(x="")) + b"=", encoded(claims())),
    "line break inside": lambda: b"\n".join([token()[:50], token()[50:]]),
    "percent-encoded": lambda: token().replace(b".", b"%2E"),
    "two tokens": lambda: token() + b"." + token(),
    "a token in a token (cty JWT)": lambda: token(header(cty="JWT"), token()),
    "larger than 16 KiB": lambda: token(body=claims(x="x" * 12300)),
    **each("header", OBJECTS, lambda raw: token(raw)),
    **each("payload", OBJECTS, lambda raw: token(body=raw)),
    "header with a byte order mark": lambda: token("\ufeff" + json.dumps(header())),
    "payload with a byte order mark": lambda: token(body="\ufeff" + json.dumps(claims())),
    "header in UTF-16": lambda: token(json.dumps(header()).encode("utf-16")),
    "payload in UTF-16": lambda: token(body=json.dumps(claims()).encode("utf-16-le")),
    "payload in UTF-32": lambda: token(body=json.dumps(claims()).encode("utf-32")),
    "payload with a raw surrogate": lambda: token(body=claims_text('"a"', '"\ud800"')),
    "payload with a comment": lambda: token(body=json.dumps(claims()) + "//"),
    "payload with a trailing comma": lambda: token(body=json.dumps(claims())[:-1] + ",}"),
    "payload in single quotes": lambda: token(body=str(claims())),
    "payload with a raw line break in a string": lambda: token(body=claims_text('"a"', '"a\n"')),
    "a hundred thousand levels": lambda: token(body=claims_text('"a"', "[" * 100_000)),
    **each(
        "levels in",
        ["header", "payload"],
        lambda where: token(json.dumps(header())[:-1] + f', "x": {DEEP}}}', claims()) if where == "header"
        else token(body=claims_text('"a"', DEEP)),
    ),
    "5,000 digits in the header": lambda: token(json.dumps(header())[:-1] + f', "x": {DIGITS}}}'),
    "5,000 digits in the payload": lambda: token(body=claims_text('"a"', DIGITS)),
    "NaN in the header": lambda: token(json.dumps(header())[:-1] + ', "x": NaN}'),
    "Infinity in the payload": lambda: token(body=claims_text('"a"', "-Infinity")),
    # RFC 7515 section 5.2: two members of one name, one for each reader.
    **{
        f"{name} twice, {order}": functools.partial(
            lambda name, twice: token(
                *((twice(header(), name), None) if name in ("alg", "kid", "typ") else (None, twice(claims(), name)))
            ),
            name,
            twice,
        )
        for name in ("alg", "kid", "typ", "iss", "sub", "aud", "exp", "scope")
        for order, twice in {
            "other first": lambda d, n: json.dumps({"~": "none", **d}).replace('"~"', f'"{n}"'),
            "other last": lambda d, n: json.dumps({**d, "~": "none"}).replace('"~"', f'"{n}"'),
            "the same": lambda d, n: json.dumps({**d, "~": d[n]}).replace('"~"', f'"{n}"'),
            "escaped": lambda d, n: json.dumps({**d, "~": "x"}).replace('"~"', f'"\\u{ord(n[0]):04x}{n[1:]}"'),
        }.items()
    },
    "a member twice, deep inside": lambda: token(body=claims_text('"a"', '{"x": [{"y": 1, "y": 2}]}')),
}  # fmt: skip


def signed_raw(head: bytes, body: bytes) -> bytes:
    signed = head + b"." + body
    return signed + b"." + b64(good(signed))


SIGNATURES: Table = {
    **each(
        "signature",
        [b"", b"\0", b"\0" * 256, b"\1" * 256, b"\xff" * 256, b"\0" * 255 + b"\1", b"\0" * 64, b"\0" * 512],
        lambda signature: token(sign=fixed(signature)),
    ),
    "first bit flipped": lambda: on_signature(lambda s: bytes([s[0] ^ 128]) + s[1:]),
    "last bit flipped": lambda: on_signature(lambda s: s[:-1] + bytes([s[-1] ^ 1])),
    "cut short": lambda: on_signature(lambda s: s[:-1]),
    "a byte more": lambda: on_signature(lambda s: s + b"\0"),
    "a byte more in front": lambda: on_signature(lambda s: b"\0" + s),
    "twice": lambda: on_signature(lambda s: s + s),
    "plus the modulus": lambda: on_signature(
        lambda s: (int.from_bytes(s, "big") + int.from_bytes(modulus(), "big")).to_bytes(257, "big")
    ),
    "in standard base64": lambda: token().rpartition(b".")[0]
    + b"."
    + base64.b64encode(good(token().rpartition(b".")[0])),
    "of another token": lambda: token().rpartition(b".")[0] + b"." + token(body=claims(sub="x")).rpartition(b".")[2],
    "of the payload alone": lambda: token(sign=lambda data: good(data.partition(b".")[2])),
    "of the decoded parts": lambda: token(sign=lambda data: good(json.dumps(claims()).encode())),
    "loose bits at its end": lambda: loosened(token()),
    # CVE-2022-21449 and its kin.
    **{
        f"ES256 with r={r}, s={s}": functools.partial(
            lambda r, s: token(EC_HEADER, sign=fixed(r.to_bytes(32, "big") + s.to_bytes(32, "big"))), r, s
        )
        for r, s in [(0, 0), (0, 1), (1, 0), (1, 1), (ORDER, ORDER), (ORDER, 1), (1, ORDER), (2**256 - 1, 2**256 - 1)]
    },
    "ES256 in DER": lambda: token(EC_HEADER, sign=lambda data: EC.private.sign(data, ec.ECDSA(hashes.SHA256()))),
    "ES256 cut short": lambda: on_signature(lambda s: s[:-1], EC_HEADER, es256),
    "ES256 with a byte more": lambda: on_signature(lambda s: s + b"\0", EC_HEADER, es256),
    "ES256 padded": lambda: on_signature(lambda s: b"\0" * 16 + s[:32] + b"\0" * 16 + s[32:], EC_HEADER, es256),
    "ES256 r and s swapped": lambda: on_signature(lambda s: s[32:] + s[:32], EC_HEADER, es256),
    "ES256 empty": lambda: token(EC_HEADER, sign=fixed(b"")),
    "ES256 by SHA-384": lambda: token(EC_HEADER, sign=lambda data: es256(data + b"x")),
    "EdDSA of zeros": lambda: token(ED_HEADER, sign=fixed(b"\0" * 64)),
    "EdDSA cut short": lambda: on_signature(lambda s: s[:-1], ED_HEADER, ED.private.sign),
    "EdDSA with a byte more": lambda: on_signature(lambda s: s + b"\0", ED_HEADER, ED.private.sign),
    "EdDSA with s over the order": lambda: on_signature(
        lambda s: s[:32] + (int.from_bytes(s[32:], "little") + ED_ORDER).to_bytes(32, "little"),
        ED_HEADER,
        ED.private.sign,
    ),
}  # fmt: skip


def loosened(good_token: bytes) -> bytes:
    """The same signature in another spelling: 256 bytes leave four bits of the last character unused."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return good_token[:-1] + bytes([alphabet[alphabet.index(good_token[-1]) ^ 1]])


NO_DATES = ["2030-01-01", "1900000000", " 1900000000", "", None, True, False, [], [1900000000], {}, {"$date": 1}]
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1", "1e20", "9" * 400, "1900000000000", "0x7fffffff", "-0.1"]

ISSUERS = [
    Drop, None, "", ISSUER[:-1], ISSUER + " ", ISSUER + "\0", ISSUER.upper(), ISSUER.replace("https", "http"),
    ISSUER + "tenant/", "https://acme.eu.auth0.com.evil.example/", "https://acme.eu.\u0430uth0.com/", [ISSUER],
    {ISSUER: 1}, True, 0, "https://acme.eu.auth0.com:443/", "acme.eu.auth0.com",
]  # fmt: skip

SUBJECTS = [
    Drop, None, "", " ", "\t", "\n", "\u3000", "a\nb", "a\r", "a\0b", "\ud800", "x\udfff", "a\u2028b", "a\u202eb",
    1, True, 1.5, [], ["auth0|alice"], {"id": "x"},
]  # fmt: skip

AUDIENCES = [
    Drop, None, "", [], [""], API[:-1], API + "/", API + " ", API.upper(), "https://api", "*", True, 1, {API: 1},
    [None, API], [API, 1], [[API]], ["https://other.example"], f"{API} https://other.example", f"{API},x", [True],
]  # fmt: skip

CLAIMS: Table = {
    **each(
        "iss",
        ISSUERS,
        lambda iss: token(body=claims(iss=iss)),
    ),
    **each(
        "sub",
        SUBJECTS,
        lambda sub: token(body=claims(sub=sub)),
    ),
    **each(
        "aud",
        AUDIENCES,
        lambda aud: token(body=claims(aud=aud)),
    ),
    **{
        f"{name}={value!a}": functools.partial(lambda n, v: token(body=claims(**{n: v})), name, value)
        for name in ("exp", "nbf", "iat")
        for value in NO_DATES
    },
    **{
        f"{name}={text[:24]}": functools.partial(
            lambda name, text: token(body=claims_text('"~"', text, **{name: "~"})), name, text
        )
        for name in ("exp", "nbf", "iat")
        for text in NO_NUMBERS
    },
    "exp left out": lambda: token(body=claims(exp=Drop)),
    "exp is now, less the leeway": lambda: token(body=claims(exp=int(time.time()) - 10)),
    "exp an hour ago": lambda: token(body=claims(exp=int(time.time()) - 3600)),
    "exp of 1970": lambda: token(body=claims(exp=0)),
    "nbf in a minute": lambda: token(body=claims(nbf=int(time.time()) + 60)),
    "iat in a minute": lambda: token(body=claims(iat=int(time.time()) + 60)),
    "Exp and Sub for exp and sub": lambda: token(body=claims(exp=Drop, sub=Drop, Exp=1900000000, Sub="x")),
    "claims one level down": lambda: token(body={"claims": claims()}),
    "nothing but iat": lambda: token(body={"iat": int(time.time())}),
    "no claims": lambda: token(body={}),
    "a number as jti": lambda: token(body=claims(jti=1)),
    # Sender-constrained tokens without their proof (RFC 9449, RFC 8705).
    **each(
        "cnf",
        [{"jkt": "x"}, {"x5t#S256": "x"}, {}, None, "x", [], {"jwk": STRANGER.jwk}],
        lambda cnf: token(body=claims(cnf=cnf)),
    ),
    "an ID token of the implicit flow": lambda: token(body=claims(nonce="n", at_hash="x")),
    "an ID token of the hybrid flow": lambda: token(body=claims(nonce="n", c_hash="x")),
    "a logout token without its type": lambda: token(
        body=claims(sid="s", jti="j", events={"http://schemas.openid.net/event/backchannel-logout": {}})
    ),
    "a logout token": lambda: token(header(typ="logout+jwt"), claims(jti="j", events={})),
}  # fmt: skip

FORGED: Table = {**ALGORITHMS, **KEYS, **HEADERS, **SHAPES, **SIGNATURES, **CLAIMS}


def bearer(raw: bytes) -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [(b"authorization", b"Bearer " + raw)]})


def test_there_are_enough_of_them() -> None:
    """A table that shrinks by accident should say so; entries of one name would hide each other."""
    assert len(FORGED) == sum(map(len, (ALGORITHMS, KEYS, HEADERS, SHAPES, SIGNATURES, CLAIMS)))
    assert len({make() for make in FORGED.values()}) > 400


@pytest.mark.parametrize(
    "make",
    [
        token,
        lambda: token(EC_HEADER, sign=es256),
        lambda: token(ED_HEADER, sign=ED.private.sign),
        # Without a key id, exactly one key fits RS256, ES256 and EdDSA each.
        lambda: token(header(kid=Drop)),
        lambda: token(EC_HEADER | {"kid": Drop}, sign=es256),
        # Members that say nothing to us.
        lambda: token(header(cty="json", zip="DEF", x5t="x"), claims(nonce="n", sid="s", amr=["pwd"])),
        lambda: token(body=" \n\t" + json.dumps(claims(), indent=2) + "\r\n"),
        lambda: token(body=claims(jti="j", nbf=0, iat=1.5, auth_time="yesterday")),
        lambda: token(body=claims(x="x" * 10000)),
    ],
)
async def test_what_they_are_made_from_gets_in(make: Callable[[], bytes]) -> None:
    """Else the table would prove nothing."""
    caller = await authenticator().authenticate(bearer(make()))
    assert caller.subject == "auth0|alice"


@pytest.fixture(scope="module")
def shared() -> JWTAuthenticator:
    """One for all: what a forged token leaves behind would show in the next."""
    return authenticator()


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_or_malformed_token_is_refused(shared: JWTAuthenticator, name: str) -> None:
    """Refused as 401 and nothing else, twice over, whatever the libraries below make of it."""
    raw = FORGED[name]()
    for _ in range(2):
        with pytest.raises(CallerUnauthenticated) as refused:
            await shared.authenticate(bearer(raw))
        assert refused.value.error == "invalid_token"


async def test_forgeries_leave_nothing_behind(shared: JWTAuthenticator) -> None:
    """After all of them, the good token still gets in and a forged one still does not."""
    for make in FORGED.values():
        with pytest.raises(CallerUnauthenticated):
            await shared.authenticate(bearer(make()))
    assert (await shared.authenticate(bearer(token()))).subject == "auth0|alice"
    with pytest.raises(CallerUnauthenticated):
        await shared.authenticate(bearer(token(sign=fixed(b"\0" * 256))))
