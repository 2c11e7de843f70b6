"""The demo's parties besides the app: what the stand-ins for Auth0 and for the providers know, and how they are asked.

Knows `idp_middleware.testing`; nothing of the app or the middleware.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from idp_middleware.testing import Auth0, Identity, ProviderAPI, RecordedRequest

AUDIENCE = "https://sample-app.example"
CLIENT_ID, CLIENT_SECRET = "sample-app", "a-secret-of-the-sample-app"
PAGE_ID = "sample-page"
"""The page is an application of its own at Auth0: one that can keep no secret."""
SCOPE = "read:github"


def _made_up(prefix: str, end: str) -> str:
    """A provider token, whose end is all of it that the demo shows."""
    return f"{prefix}{secrets.token_hex(16)}{end}"


GITHUB_TOKEN = _made_up("gho_", "a1ce")
_GITLAB_TOKEN = _made_up("glpat-", "b2df")
_BITBUCKET_TOKEN = _made_up("bbt_", "c3e0")
_BOBS_TOKENS = (_made_up("gho_", "d4f1"), _made_up("glpat-", "e5a2"), _made_up("bbt_", "f6b3"))
PROVIDER_TOKENS = (GITHUB_TOKEN, _GITLAB_TOKEN, _BITBUCKET_TOKEN, *_BOBS_TOKENS)
"""What no browser may ever see."""


def stand_ins() -> tuple[Auth0, ProviderAPI]:
    """alice has linked GitHub, GitLab has withdrawn what she linked, Bitbucket she may link; bob may all three."""
    idp, api = Auth0(), ProviderAPI()
    idp.add_client(CLIENT_ID, CLIENT_SECRET, vault=True, api=AUDIENCE)
    idp.add_api(AUDIENCE, {SCOPE})
    idp.add_user("auth0|alice", [Identity("github", "101", access_token=GITHUB_TOKEN)])
    idp.add_user("auth0|bob")
    idp.connect("auth0|alice", "gitlab", "glpat-withdrawn", account="201")
    idp.withdraw("auth0|alice", "gitlab")
    idp.add_account("auth0|alice", Identity("gitlab", "201", access_token=_GITLAB_TOKEN, expires_in=7200), vault=True)
    idp.add_account("auth0|alice", Identity("bitbucket", "301", access_token=_BITBUCKET_TOKEN))
    idp.add_account("auth0|bob", Identity("github", "102", access_token=_BOBS_TOKENS[0]))
    idp.add_account("auth0|bob", Identity("gitlab", "202", access_token=_BOBS_TOKENS[1], expires_in=7200), vault=True)
    idp.add_account("auth0|bob", Identity("bitbucket", "302", access_token=_BOBS_TOKENS[2]))
    for token, login in zip(PROVIDER_TOKENS, ["alice"] * 3 + ["bob"] * 3, strict=True):
        api.accept(token, login=login)
    return idp, api


def admit_page(idp: Auth0, origins: Collection[str]) -> None:
    """Let the page log users in from these origins."""
    pages = [f"{origin}/" for origin in origins]
    idp.add_client(PAGE_ID, auth="none", redirect_uris=pages, logout_uris=pages)


class Witness:
    """What the stand-ins were asked, for the page to show; of a token its last four characters."""

    def __init__(self, idp: Auth0, api: ProviderAPI) -> None:
        self._idp = idp
        self._api = api

    def seen(self, after: int) -> dict[str, Any]:
        """The requests to both since there were `after` of them, and how many there are now."""
        # Those with an Origin are the page's own; so are those of the login.
        asked = [
            ("idp", request)
            for request in list(self._idp.requests)
            if request.path.startswith(("/api/", "/oauth/")) and request.header("origin") is None
        ]
        came = [("provider", request) for request in list(self._api.requests)]
        events = sorted([*asked, *came], key=lambda event: event[1].time)
        return {"next": len(events), "events": [_told(*event) for event in events[after:]]}


def _told(party: str, request: RecordedRequest) -> dict[str, Any]:
    return {
        "party": party,
        "request": f"{request.method} {request.target.decode('latin-1')}",
        "authorization": masked(request.header("authorization")),
        "cookie": request.header("cookie"),
        "size": request.size,
    }


def masked(authorization: str | None) -> str | None:
    """An `Authorization` value that shows the last four characters of its token."""
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    return f"{scheme} …{token[-4:]}"
