"""An Auth0 tenant's login: the authorization endpoint, its pages, the session that remembers who logged in, logout.

Refuses what Auth0 refuses, and what OAuth 2.1 does besides: a public client without PKCE, the method "plain". Knows
that there are users and that accounts can be connected, not what that means; nothing of tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from idp_middleware.testing import _auth0_pages as pages
from idp_middleware.testing._auth0_codes import Asked, Codes
from idp_middleware.testing._clients import PUBLIC, Clients
from idp_middleware.testing._double import Answer
from idp_middleware.testing._recording import RecordedRequest

_COOKIE = "auth0"
# A SHA-256 in base64url (RFC 7636 section 4.2).
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}\Z")


@dataclass(frozen=True, slots=True)
class Account:
    """An account at a provider, and what it means to connect it."""

    account: str
    connect: Callable[[], None]


class Logins:
    """The logins of one tenant, whose `users` may come and go."""

    def __init__(self, clients: Clients, users: Collection[str], codes: Codes) -> None:
        self._clients = clients
        self._users = users
        self._codes = codes
        self._accounts: dict[tuple[str, str], Account] = {}
        self._under_way: dict[str, tuple[Asked, str | None]] = {}
        self._sessions: dict[str, str] = {}

    def add_account(self, subject: str, connection: str, account: Account) -> None:
        self._accounts[subject, connection] = account

    def answer(self, request: RecordedRequest) -> Answer | None:
        """The answer of the endpoints that browsers are sent to; None for any other."""
        match request.method, request.raw_path:
            case "GET", "/authorize":
                return self._authorize(request)
            case "GET", pages.LOGIN:
                return self._page(request)
            case "POST", pages.LOGIN:
                return self._submit(request)
            case "GET", "/oidc/logout":
                return self._logout(request)
            case "OPTIONS", "/oauth/token":
                allowed = {"Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "Content-Type"}
                return Answer(204, b"", allowed)
        return None

    def readable_by(self, request: RecordedRequest) -> dict[str, str]:
        """The header fields that let pages of other origins read an answer.

        Auth0 lets those of callback URLs, unless told otherwise
        (https://auth0.com/docs/get-started/applications/application-settings).
        """
        origin = request.header("origin")
        if request.raw_path.startswith("/.well-known/"):
            return {"Access-Control-Allow-Origin": "*"}
        known = {_origin(uri) for client in self._clients for uri in client.settings["redirect_uris"]}
        if request.raw_path == "/oauth/token" and origin is not None and origin in known:
            return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return {}

    def _authorize(self, request: RecordedRequest) -> Answer:
        """`GET /authorize`: to the login page, or straight back to the app."""
        try:
            given = _once_each(request.query)
        except ValueError as exc:
            return pages.mistake(400, f"invalid_request: {exc}")
        client = self._clients.get(given.get("client_id", ""))
        if client is None:
            return pages.mistake(400, f"invalid_request: Unknown client: {given.get('client_id', '')}")
        redirect_uri = given.get("redirect_uri", "")
        if redirect_uri not in client.settings["redirect_uris"]:
            # RFC 6749 section 4.1.2.1: never sent there.
            return pages.mistake(
                403, f"Callback URL mismatch. {redirect_uri} is not in the list of allowed callback URLs."
            )
        asked = Asked(
            client,
            redirect_uri,
            given.get("state"),
            given.get("nonce"),
            tuple(given.get("scope", "").split()),
            given.get("audience"),
            given.get("code_challenge"),
            given.get("connection"),
        )
        if (wrong := self._wrong(given, asked)) is not None:
            return _back(asked, error=wrong[0], error_description=wrong[1])
        subject = None if given.get("prompt") == "login" else self._subject(request)
        if given.get("prompt") == "none":
            if subject is None:
                return _back(asked, error="login_required", error_description="Login required")
            if asked.connection is not None:
                return _back(asked, error="interaction_required", error_description="Consent required")
        return self._next(asked, subject)

    def _wrong(self, given: Mapping[str, str], asked: Asked) -> tuple[str, str] | None:
        """The error, and its description, of a request that has come from the app."""
        if given.get("response_type") != "code":
            return "unsupported_response_type", "Only the response type code is allowed for the client."
        if given.get("response_mode", "query") != "query":
            return "invalid_request", "Only the response mode query is supported."
        if asked.challenge is None:
            if PUBLIC in asked.client.methods:
                return "invalid_request", "Missing required parameter: code_challenge"
        elif given.get("code_challenge_method") != "S256" or not _CHALLENGE.match(asked.challenge):
            return "invalid_request", "code_challenge has to be a SHA-256 in base64url, with the method S256."
        if asked.audience is not None and asked.audience not in self._codes.apis:
            return "access_denied", f"Service not found: {asked.audience}"
        return None

    def _subject(self, request: RecordedRequest) -> str | None:
        """Whose session the browser has, if that user is still there."""
        subject = self._sessions.get(_session_id(request))
        return subject if subject in self._users else None

    def _next(self, asked: Asked, subject: str | None, **headers: str) -> Answer:
        """To the page that is next, or back to the app with a code."""
        if subject is not None and asked.connection is None:
            return self._with_code(asked, subject, **headers)
        state = secrets.token_urlsafe(24)
        self._under_way[state] = (asked, subject)
        return Answer(302, b"", {"Location": f"{pages.LOGIN}?{urlencode({'state': state})}", **headers})

    def _with_code(self, asked: Asked, subject: str, **headers: str) -> Answer:
        answer = _back(asked, code=self._codes.issue(asked, subject))
        answer.headers = {**dict(answer.headers), **headers}
        return answer

    def _page(self, request: RecordedRequest) -> Answer:
        """`GET /u/login`: the page of a login under way."""
        state = dict(parse_qsl(request.query)).get("state", "")
        if state not in self._under_way:
            return pages.mistake(400, "invalid_request: this login is over. Start again from the app.")
        asked, subject = self._under_way[state]
        if subject is None or asked.connection is None:
            return pages.login(state, self._users, asked.client.client_id)
        account = self._accounts.get((subject, asked.connection))
        if account is None:
            return _back(asked, error="access_denied", error_description=f"There is no account at {asked.connection}")
        return pages.consent(state, subject, asked.connection, account.account, asked.client.client_id)

    def _submit(self, request: RecordedRequest) -> Answer:
        """`POST /u/login`: what was chosen there, once."""
        state = dict(parse_qsl(request.query)).get("state", "")
        asked, subject = self._under_way.get(state, (None, None))
        if asked is None:
            return pages.mistake(400, "invalid_request: this login is over. Start again from the app.")
        chosen = dict(parse_qsl(request.body.decode("latin-1")))
        if subject is None:
            subject = chosen.get("username", "")
            if subject not in self._users:
                return pages.login(state, self._users, asked.client.client_id, status=400)
            del self._under_way[state]
            session = secrets.token_urlsafe(32)
            self._sessions[session] = subject
            cookie = f"{_COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax"
            return self._next(asked, subject, **{"Set-Cookie": cookie})
        del self._under_way[state]
        account = self._accounts.get((subject, asked.connection or ""))
        if chosen.get("action") != "accept" or account is None:
            return _back(asked, error="access_denied", error_description="User did not authorize the request")
        account.connect()
        return self._with_code(asked, subject)

    def _logout(self, request: RecordedRequest) -> Answer:
        """`GET /oidc/logout`: the session ends (OpenID Connect RP-Initiated Logout 1.0)."""
        try:
            given = _once_each(request.query)
        except ValueError as exc:
            return pages.mistake(400, f"invalid_request: {exc}")
        client = self._clients.get(given.get("client_id", ""))
        target = given.get("post_logout_redirect_uri")
        if target is not None and (client is None or target not in client.settings["logout_uris"]):
            return pages.mistake(400, "The post_logout_redirect_uri is not in the list of allowed logout URLs.")
        self._sessions.pop(_session_id(request), None)
        gone = {"Set-Cookie": f"{_COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"}
        if target is None:
            return Answer(200, "OK", {**gone, "Content-Type": "text/plain"})
        query = {"state": given["state"]} if "state" in given else {}
        return Answer(302, b"", {"Location": _extended(target, query), **gone})


def _once_each(query: str) -> dict[str, str]:
    """Parameters without a value count as not sent, and none may come twice (RFC 6749 section 3.1)."""
    pairs = parse_qsl(query)
    given = dict(pairs)
    if len(given) != len(pairs):
        raise ValueError("a parameter came more than once")
    return given


def _back(asked: Asked, **parameters: str) -> Answer:
    if asked.state is not None:
        parameters["state"] = asked.state
    return Answer(302, b"", {"Location": _extended(asked.redirect_uri, parameters), "Cache-Control": "no-store"})


def _extended(url: str, parameters: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters)}" if parameters else url


def _session_id(request: RecordedRequest) -> str:
    cookies = dict(pair.strip().partition("=")[::2] for pair in (request.header("cookie") or "").split(";"))
    return cookies.get(_COOKIE, "")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
