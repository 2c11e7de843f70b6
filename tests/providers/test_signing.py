"""Requests that are more than a bearer token: Facebook's proof, OAuth 1.0a."""

from __future__ import annotations

import hashlib
import hmac
import logging
import sys
from typing import Any
from urllib.parse import parse_qsl, unquote

import pytest
from oauthlib.oauth1 import RequestValidator, ResourceEndpoint

from idp_middleware import Token, providers
from idp_middleware._signing import MAX_FORM, Unsigned
from idp_middleware._urls import parse_base_url
from idp_middleware.errors import ConfigurationError, IdPError
from tests.providers.conftest import OK, User, problem
from tests.providers.facts import FACTS, Said

facebook = pytest.mark.parametrize("user", ["facebook"], indirect=True)
x_oauth1 = pytest.mark.parametrize("user", ["x_oauth1"], indirect=True)


def proof(token: str) -> str:
    return hmac.new(b"the-app-secret", token.encode(), hashlib.sha256).hexdigest()


@facebook
@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("", ""),
        ("?fields=id,name", "fields=id,name&"),
        ("?a=1&a=2&&b", "a=1&a=2&b&"),
        ("?access_token=mine&limit=5", "limit=5&"),
        ("?limit=5&access%5Ftoken=mine", "limit=5&"),
        ("?access.token=mine&appsecret_proof=mine&after=x%26y", "after=x%26y&"),
        ("?%20access%20token=mine&access_tokens=kept", "access_tokens=kept&"),
    ],
)
def test_a_proof_goes_with_each_token(user: User, query: str, sent: str) -> None:
    """That of the token it is sent with; a caller's own word on who is asking goes no further."""
    user.holds("token-1", "token-2")
    user.api_says(FACTS["facebook"].refused, OK)
    assert user.call(path=f"/me{query}").json() == {"ok": True}
    assert [request.target.decode() for request in user.sent] == [
        f"/v25.0/me?{sent}appsecret_proof={proof(token)}" for token in ("token-1", "token-2")
    ]


async def test_without_the_apps_secret_there_is_no_proof() -> None:
    """And still nothing of the caller's that says who is asking."""
    route = providers.facebook(token_source=nobody)
    assert route.sign is not None
    for target, sent in ((b"/me?access_token=x", b"/me"), (b"/me?a=b&access_token=x", b"/me?a=b"), (b"/me", b"/me")):
        signed = await route.sign(Token("t"), Unsigned("GET", route.origin, target, [], None))
        assert signed == (b"Bearer t", sent)


@facebook
def test_a_link_to_the_next_page_can_be_followed_and_holds_no_token(user: User) -> None:
    """Facebook writes the token into it: what the caller gets is a mask, which does not go to Facebook either."""
    user.holds("EAAtheuserstoken")
    page = f"{user.stack.api.url}/v25.0/me/feed?access_token=EAAtheuserstoken&limit=25&after=QVF"
    user.api_says(Said(200, {"paging": {"next": page}}), OK)
    answer = user.call(path="/me/feed?limit=25")
    assert "EAAtheuserstoken" not in answer.text
    following = answer.json()["paging"]["next"].partition("/v25.0")[2]
    assert "access_token=" in following
    user.call(path=following)
    assert (
        user.sent[-1].target.decode()
        == f"/v25.0/me/feed?limit=25&after=QVF&appsecret_proof={proof('EAAtheuserstoken')}"
    )


@facebook
def test_references_in_an_answer_are_relative_to_what_the_caller_asked(user: User) -> None:
    """Else a relative `Location` would hand out the proof."""
    user.holds("token-1")
    user.api_says(Said(302, "", {"location": "#there"}))
    answer = user.call(path="/me?a=b", follow_redirects=False)
    assert answer.headers["location"] == "/idp/facebook/me?a=b#there"


class Verifier(RequestValidator):  # type: ignore[misc]
    """Takes what X would take."""

    enforce_ssl = False
    client_key_length = nonce_length = access_token_length = (1, 100)
    safe_characters = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    dummy_client = dummy_access_token = "dummy"

    def __init__(self) -> None:
        super().__init__()
        self.nonces: set[str] = set()

    def validate_client_key(self, client_key: str, request: Any) -> bool:
        return client_key == "the-consumer"

    def validate_access_token(self, client_key: str, token: str, request: Any) -> bool:
        return token in ("token-1", "token-2")

    def validate_realms(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def validate_timestamp_and_nonce(self, client_key: str, timestamp: str, nonce: str, *args: Any, **kw: Any) -> bool:
        fresh = nonce not in self.nonces
        self.nonces.add(nonce)
        return fresh

    def get_client_secret(self, client_key: str, request: Any) -> str:
        return "the-consumer-secret"

    def get_access_token_secret(self, client_key: str, token: str, request: Any) -> str:
        return "s3cret"


def accepted(user: User, verifier: Verifier) -> list[bool]:
    """Whether each request that came is one that a server of OAuth 1.0a takes."""
    verdicts = []
    for request in user.sent:
        kind = request.header("content-type")
        headers = {"Authorization": request.header("authorization")} | ({"Content-Type": kind} if kind else {})
        body = request.body.decode() if kind == "application/x-www-form-urlencoded" else None
        url = user.stack.api.url + request.target.decode()
        valid, _ = ResourceEndpoint(verifier).validate_protected_resource_request(url, request.method, body, headers)
        verdicts.append(valid)
    return verdicts


FORM = {"content-type": "application/x-www-form-urlencoded"}


@x_oauth1
@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "/2/users/me", {}),
        ("GET", "/2/users?ids=1,2&user.fields=a%20b", {}),
        ("GET", "/1.1/search?q=%23a%2Bb&q=&empty", {}),
        ("DELETE", "/2/tweets/1", {}),
        ("POST", "/2/tweets", {"json": {"text": "hello"}}),
        ("POST", "/1.1/statuses/update.json?x=1", {"content": b"status=Hello+Ladies%20%2b%20&b=", "headers": FORM}),
        ("POST", "/1.1/statuses/update.json", {"content": (b"status=", b"streamed"), "headers": FORM}),
        ("POST", "/1.1/statuses/update.json", {"content": b"", "headers": FORM}),
        ("POST", "/1.1/media/upload.json", {"files": {"media": b"status=not+signed"}}),
    ],
)
def test_a_server_takes_the_signature(user: User, method: str, path: str, options: dict[str, Any]) -> None:
    """An independent one; of the renewed request too, whose nonce and form are not those of the first."""
    user.holds("token-1", "token-2")
    user.api_says(FACTS["x_oauth1"].refused, OK)
    if isinstance(options.get("content"), tuple):
        options = {**options, "content": iter(options["content"])}
    assert user.call(method, path, **options).json() == {"ok": True}
    assert len(user.sent) == 2
    assert accepted(user, Verifier()) == [True, True]
    assert user.sent[0].body == user.sent[1].body
    assert user.sent[0].target.decode() == path


@x_oauth1
def test_a_changed_request_is_not_taken(user: User) -> None:
    """Else the test above would prove nothing."""
    user.holds("token-1")
    user.api_says(OK)
    user.call(path="/2/users/me?a=b")
    user.sent[0].target = user.sent[0].target.replace(b"a=b", b"a=c")
    assert accepted(user, Verifier()) == [False]


async def nobody(caller: Any, route: Any) -> Any:
    raise AssertionError("no token is asked for here")


async def test_the_signature_that_x_shows_in_its_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in "Creating a signature", made of the request and the keys that are shown there."""
    monkeypatch.setattr("oauthlib.common.generate_nonce", lambda: "kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg")
    monkeypatch.setattr("oauthlib.common.generate_timestamp", lambda: "1318622958")
    route = providers.x_oauth1(
        token_source=nobody,
        consumer_key="xvz1evFS4wEEPTGEFPHBog",
        consumer_secret="kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw",
    )
    token = Token(
        "370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb",
        extra={"access_token_secret": "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE"},
    )
    form = b"status=Hello%20Ladies%20%2b%20Gentlemen%2c%20a%20signed%20OAuth%20request%21"
    request = Unsigned(
        "POST",
        parse_base_url("https://api.x.com", "upstream")[0],
        b"/1.1/statuses/update.json?include_entities=true",
        [(b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")],
        InMemory(form),
    )
    assert route.sign is not None
    signed = await route.sign(token, request)
    fields = dict(part.split("=", 1) for part in signed.authorization.decode().removeprefix("OAuth ").split(", "))
    assert signed.target == request.target
    assert unquote(fields["oauth_signature"].strip('"')) == "Ls93hJiZbQ3akF3HF3x1Bz8/zU4="


class InMemory:
    """A body at hand."""

    def __init__(self, *pieces: bytes, again: bool = True) -> None:
        self.length = sum(map(len, pieces))
        self._pieces = pieces
        self._next = 0
        self._again = again

    async def read(self) -> bytes:
        self._next += 1
        return b"".join(self._pieces[self._next - 1 : self._next])

    def rewind(self) -> bool:
        self._next = 0
        return self._again


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("size", [MAX_FORM, MAX_FORM + 1])
async def test_a_form_is_signed_up_to_a_size(size: int, again: bool) -> None:
    """All of it or none, and only if it can still be sent."""
    origin = parse_base_url("https://api.x.com", "upstream")[0]
    body = InMemory(b"x" * (size - 1), b"x", again=again)
    request = Unsigned("POST", origin, b"/", [(b"content-type", b"application/x-www-form-urlencoded")], body)
    if size <= MAX_FORM and again:
        assert await request.form() == b"x" * size
        assert await body.read() == b"x" * (size - 1)
    else:
        with pytest.raises(IdPError) as caught:
            await request.form()
        assert caught.value.name == "body-too-large"


@x_oauth1
@pytest.mark.parametrize(
    ("path", "form", "expected"),
    [
        ("/2/x?oauth_token=mine", None, (400, "bad-request")),
        ("/2/x?oauth%5Ftoken=mine", None, (400, "bad-request")),
        ("/2/x", b"oauth_consumer_key=mine", (400, "bad-request")),
        ("/2/x?a=%zz", None, (400, "bad-request")),
        ("/2/x", "naïve=1".encode(), (400, "bad-request")),
        ("/2/x", b"a=" + b"x" * (MAX_FORM + 1), (413, "body-too-large")),
    ],
)
def test_what_can_not_be_signed_is_not_sent(
    user: User, path: str, form: bytes | None, expected: tuple[int, str]
) -> None:
    """A signature that does not fit would be taken for a token that is not good."""
    user.holds("token-1")
    answer = user.call("POST", path, content=form, headers=FORM)
    assert problem(answer)[:2] == expected
    assert user.sent == []


@x_oauth1
@pytest.mark.parametrize("secret", [None, 7])
def test_without_the_users_secret_nothing_is_sent(user: User, secret: Any) -> None:
    """Never "send without"."""
    user.holds("token-1", access_token_secret=secret)
    assert problem(user.call())[:2] == (502, "token-source-failed")
    assert user.sent == []


@x_oauth1
def test_signing_logs_neither_token_nor_secret(user: User, caplog: pytest.LogCaptureFixture) -> None:
    """The library's own client writes both the token and the signature at DEBUG."""
    caplog.set_level(logging.DEBUG)
    user.holds("token-1")
    user.api_says(OK)
    user.call()
    signature = dict(parse_qsl(str(user.sent[0].header("authorization")).replace(", ", "&")))["oauth_signature"]
    for secret in ("token-1", "s3cret", "the-consumer-secret", signature.strip('"')):
        assert secret not in caplog.text


def test_oauth1_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, at start-up."""
    monkeypatch.setitem(sys.modules, "oauthlib.oauth1", None)
    with pytest.raises(ConfigurationError, match=r"idp-middleware\[oauth1\]"):
        providers.x_oauth1(token_source=nobody, consumer_key="k", consumer_secret="s")
