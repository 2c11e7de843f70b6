"""An identity provider of every kind, and all of its answers hold canaries.

Auth0's tenant is the strict one of `idp_middleware.testing`. The others are not about being strict: they hand out what
a request asks for, and can be told to answer with all that they were sent, as some servers do when something is wrong.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.parse import unquote_plus

from idp_middleware.testing import Auth0, Identity, signing_key
from idp_middleware.testing._double import Answer
from idp_middleware.testing._recording import RecordedRequest
from tests.leaks.canaries import IN_B64TOKEN, IN_COOKIE, Canaries

AUDIENCE = "https://api.acme.example"
USERS = ("alice", "bob")
CLIENT_ID = "the-client"

EXCHANGE, INTROSPECT, REFRESH, REVOKE, OBO, REALM = (
    "/exchange",
    "/introspect",
    "/refresh",
    "/revoke",
    "/acme/oauth2/v2.0/token",
    "/realms/acme",
)
GRANTS = (EXCHANGE, OBO, REALM, "/client-credentials")


def seeded() -> Canaries:
    """One secret of each kind, for each of two users where it is a user's."""
    return _seeded().copy()


@cache
def _seeded() -> Canaries:
    canaries = Canaries()
    for user in USERS:
        canaries.make(f"{user}'s provider token", prefix="gho_")
        canaries.make(f"{user}'s second provider token", prefix="gho_")
        canaries.make(f"{user}'s token secret")
        canaries.make(f"{user}'s refresh token")
        canaries.make(f"{user}'s second refresh token")
        canaries.make(f"{user}'s refresh token at the identity provider")
        canaries.make(f"{user}'s opaque token", special=IN_B64TOKEN)
        canaries.make(f"{user}'s session cookie", special=IN_COOKIE)
        # Not secret, but nobody's business either: it belongs neither into a log nor into a file.
        canaries.make(f"{user}'s id", special="", size=24)
    canaries.make("client secret")
    canaries.make("password of the cache", special="+~.=")
    canaries.make("password of the database", special="+~.=")
    canaries.make("API key of the route")
    canaries.make("the app's own token")
    canaries.make("what somebody's code says", special="")
    text = canaries.make("encryption key", special="+/%~&=.", size=32)
    canaries.add("encryption key", base64.urlsafe_b64encode(text.encode()).decode(), telling=text)
    pem = signing_key("RS256", 7).private_pem
    # The first half of it is the modulus, which is public.
    canaries.add("private key", pem, telling="".join(pem.splitlines()[1:-1])[900:1400])
    return canaries


class Authority(Auth0):
    """See the module."""

    def __init__(self, canaries: Canaries) -> None:
        super().__init__()
        self._canaries = canaries
        self._tokens: dict[str, str] = {}
        self.renewed: set[str] = set()
        """Users whose second provider token is given out from now on."""
        self.echo: Callable[[RecordedRequest], Answer | None] = lambda request: None
        for number, user in enumerate(USERS, start=101):
            self.add_user(self.subject(user), [self._identity(user, number)])
            self.connect(self.subject(user), "github", canaries.of(user, "provider token"), account=str(number))
        self.add_client(CLIENT_ID, canaries["client secret"])

    def subject(self, user: str) -> str:
        return "auth0|" + (self._canaries.of(user, "id") if user in USERS else user)

    def renew(self, user: str) -> None:
        """Have another provider token for a user, as after a new login."""
        self.renewed.add(user)
        number = 101 + USERS.index(user)
        self.link(self.subject(user), self._identity(user, number))
        self.connect(self.subject(user), "github", self.provider_token(user), account=str(number))

    def provider_token(self, user: str) -> str:
        return self._canaries.of(user, "second provider token" if user in self.renewed else "provider token")

    def callers_token(self, user: str, **options: Any) -> str:
        """A JWT, known from now on as the user's token; what tells is the signature.

        The same each time, unless there are `options` of `issue_token`: one of a second later would be another.
        """
        token = None if options else self._tokens.get(user)
        if token is None:
            token = self.issue_token(self.subject(user), **{"audience": AUDIENCE, "scope": "read:github", **options})
        if not options:
            self._tokens[user] = token
        self._canaries.add(f"{user}'s token", token, telling=token.rpartition(".")[2])
        return token

    def answer(self, request: RecordedRequest) -> Answer:
        return self.echo(request) or super().answer(request)

    def endpoint(self, request: RecordedRequest) -> Answer:
        if request.path == INTROSPECT:
            return self._introspected(request)
        if request.path == REFRESH:
            user = self._who(request, "refresh token")
            return self._granted(user, refresh_token=self._canaries.of(user, "second refresh token"), second=True)
        if request.path == REVOKE:
            return Answer(200)
        if request.path == "/client-credentials":
            return Answer(200, {"access_token": self._canaries["the app's own token"], "token_type": "Bearer"})
        if request.path.startswith(GRANTS):
            return self._granted(self._who(request, "token"))
        return super().endpoint(request)

    def _granted(self, user: str, *, second: bool = False, **more: str) -> Answer:
        token = self._canaries.of(user, "second provider token") if second else self.provider_token(user)
        return Answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": 3600, **more})

    def _introspected(self, request: RecordedRequest) -> Answer:
        user = self._who(request, "opaque token")
        members = {"sub": self.subject(user), "iss": self.issuer, "aud": AUDIENCE, "scope": "read:github"}
        return Answer(200, {"active": True, "token_type": "Bearer", **members})

    def _who(self, request: RecordedRequest, kind: str) -> str:
        said = unquote_plus(everything_of(request))
        return next(
            (user for user in USERS if f"{user}'s {kind}" in self._canaries and self._canaries.of(user, kind) in said),
            "alice",
        )

    def _identity(self, user: str, number: int) -> Identity:
        return Identity(
            "github",
            str(number),
            access_token=self.provider_token(user),
            access_token_secret=self._canaries.of(user, "token secret"),
            refresh_token=self._canaries.of(user, "refresh token"),
        )


def everything_of(request: RecordedRequest) -> str:
    """A request as text."""
    lines = [f"{request.method} {request.target.decode('latin-1')}"]
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in request.headers]
    return "\n".join([*lines, "", request.body.decode("latin-1")])


def repeating(request: RecordedRequest) -> Answer | None:
    """An error that repeats the whole request, first what is secret in it, as it came and as it is understood."""
    if request.path.startswith("/.well-known"):
        return None
    authorization = request.header("authorization") or ""
    body = request.body.decode("latin-1")
    said = f"{unquote_plus(body)} {authorization} {body}"
    with suppress(ValueError, AttributeError):
        said = f"{' '.join(map(str, json.loads(body).values()))} {said}"
    return Answer(400, {"error": "invalid_request", "error_description": said[:2000], "message": said, "detail": said})


def repeating_as_code(request: RecordedRequest) -> Answer | None:
    """The same where the code of the error should be."""
    answer = repeating(request)
    if answer is None or not isinstance(answer.body, dict):
        return answer
    return Answer(401, {**answer.body, "error": answer.body["error_description"], "errorCode": answer.body["message"]})
