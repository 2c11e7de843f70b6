"""A token endpoint whose refresh tokens work once, and which takes a second use for theft.

Does what RFC 9700 section 4.14.2 asks of a server that rotates: a refresh token that comes again revokes all tokens of
the same login. Knows nothing of the middleware.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from idp_middleware.testing._double import Answer, Double
from idp_middleware.testing._recording import RecordedRequest


@dataclass(slots=True)
class _Login:
    """All tokens that came of one login of a user; only the newest refresh token is good."""

    scope: str
    refresh_tokens: list[str] = field(default_factory=list)
    access_tokens: dict[str, float] = field(default_factory=dict)
    revoked: bool = False


class RotatingTokens(Double):
    """The token endpoint of a provider that rotates refresh tokens, as an ASGI app.

    | endpoint | answers |
    |---|---|
    | `POST /token` | new tokens, for the refresh-token grant of the one client there is |
    | `POST /revoke` | 200, for the client that either token is of, known or not (RFC 7009); all of its login is over |
    | `GET /me` | JSON with the `scope` of the access token; 401 where that is not valid |

    `lifetime` of access tokens is in seconds. With `rotates` off, refresh tokens work again and again, and answers hold
    none. A refresh ends the access tokens that came before, as GitHub's and GitLab's do. `answer_after` is in seconds,
    between the deed and the answer: who leaves meanwhile has spent a refresh token and got nothing for it.
    `refreshes` and `reuses` count what was granted and what was taken for theft.
    """

    def __init__(
        self,
        *,
        client_id: str = "client",
        client_secret: str = "secret",  # noqa: S107 - a double's
        lifetime: float = 3600.0,
        rotates: bool = True,
        answer_after: float = 0.0,
    ) -> None:
        super().__init__()
        self.client_id = client_id
        self.client_secret = client_secret
        self.lifetime = lifetime
        self.rotates = rotates
        self.answer_after = answer_after
        self.refreshes: int = 0
        self.reuses: int = 0
        self._logins: list[_Login] = []

    def log_in(self, *, scope: str = "read") -> dict[str, Any]:
        """What the token endpoint gives to the app after a user's login: access token, refresh token, `expires_in`."""
        login = _Login(scope)
        self._logins.append(login)
        return self._issue(login, rotate=True)

    def revoke(self, token: str) -> None:
        """Revoke the login that a token came of, as a user does in the provider's settings."""
        for login in self._logins:
            if token in login.refresh_tokens or token in login.access_tokens:
                login.revoked = True

    def valid(self, token: str) -> bool:
        """Whether this access token or refresh token would be taken now."""
        return self._login_of(token) is not None or any(
            not login.revoked and login.refresh_tokens[-1] == token for login in self._logins
        )

    def answer(self, request: RecordedRequest) -> Answer:
        if (request.method, request.path) == ("GET", "/me"):
            login = self._login_of(request.bearer or "")
            return Answer(401, {"message": "Bad credentials"}) if login is None else Answer(200, {"scope": login.scope})
        if (request.method, request.path) not in (("POST", "/token"), ("POST", "/revoke")):
            return Answer(404, {"message": "Not Found"})
        form = {name: values[-1] for name, values in parse_qs(request.body.decode()).items()}
        if (form.get("client_id"), form.get("client_secret")) != (self.client_id, self.client_secret):
            return Answer(401, {"error": "invalid_client"})
        if request.path == "/revoke":
            if "token" not in form:
                return Answer(400, {"error": "invalid_request"})
            self.revoke(form["token"])
            return Answer(200, "")
        if form.get("grant_type") != "refresh_token":
            return Answer(400, {"error": "unsupported_grant_type"})
        return self._refresh(form.get("refresh_token", ""))

    def _refresh(self, refresh_token: str) -> Answer:
        login = next((login for login in self._logins if refresh_token in login.refresh_tokens), None)
        if login is not None and login.refresh_tokens[-1] != refresh_token:
            self.reuses += 1
            login.revoked = True
        if login is None or login.revoked:
            return Answer(400, {"error": "invalid_grant", "error_description": "unknown, expired or revoked"})
        self.refreshes += 1
        tokens = self._issue(login, rotate=self.rotates)
        if not self.answer_after:
            return Answer(200, tokens)
        return Answer(200, _late(tokens, self.answer_after), {"Content-Type": "application/json"})

    def _issue(self, login: _Login, *, rotate: bool) -> dict[str, Any]:
        access_token = f"access-{uuid4().hex}"
        login.access_tokens = {access_token: time.time() + self.lifetime}
        answer = {
            "access_token": access_token,
            "token_type": "bearer",
            "expires_in": int(self.lifetime),
            "scope": login.scope,
        }
        if rotate:
            login.refresh_tokens.append(f"refresh-{uuid4().hex}")
            answer["refresh_token"] = login.refresh_tokens[-1]
        return answer

    def _login_of(self, access_token: str) -> _Login | None:
        now = time.time()
        for login in self._logins:
            if not login.revoked and login.access_tokens.get(access_token, 0.0) > now:
                return login
        return None


async def _late(tokens: dict[str, Any], seconds: float) -> AsyncGenerator[bytes, None]:
    await asyncio.sleep(seconds)
    yield json.dumps(tokens).encode()
