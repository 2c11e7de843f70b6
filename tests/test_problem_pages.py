"""Each problem has a page, found by its name, that says what to do; and what it shows is what really comes back."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from docs.reference import problems
from idp_middleware import AnyOf, IdPMiddleware, JWTAuthenticator, ProxyRoute, Timeout, sources
from idp_middleware.testing import Auth0, Entra, Identity, ProviderAPI, serve
from tests.pages import DOCS
from tests.stack import AUDIENCE, eventually, free_port

PAGES = DOCS / "errors"
SECTIONS = ["## What happened", "## Who can mend it", "## How to find out", "## The answer"]
SCOPE = "https://graph.microsoft.com/.default"


class Scene:
    """Everything that can go wrong, each on a route of its own."""

    def __init__(self, servers: ExitStack) -> None:
        tenant, limited, slow, entra, github = Auth0(), Auth0(), Auth0(), Entra(), ProviderAPI()
        for each in (tenant, limited, slow):
            each.add_client("gateway", "secret", vault=True, api=AUDIENCE)
        tenant.add_user(
            "auth0|alice",
            [
                Identity("github", "101", access_token="gho_alice"),
                Identity("gitlab", "7", access_token="work"),
                Identity("gitlab", "8", access_token="home"),
            ],
        )
        tenant.connect("auth0|alice", "google-oauth2", "ya29")
        tenant.withdraw("auth0|alice", "google-oauth2")
        limited.rate_limit("/oauth/token", retry_after=30)
        slow.stall("/oauth/token", 5)
        entra.add_client("gateway", "secret")
        entra.demand("alice")
        github.accept("gho_alice", login="alice")
        github.stall("/slow", 20)
        self.github = github
        urls = [servers.enter_context(serve(party)).url for party in (tenant, limited, slow, entra, github)]
        auth0, limits, stalls, microsoft, api = urls

        def management(url: str, client: str = "gateway", **options: Timeout) -> sources.Auth0Management:
            return sources.Auth0Management(base_url=url, client_id=client, client_secret="secret", **options)

        kept = management(auth0)
        vault = sources.Auth0TokenVault(base_url=auth0, client_id="gateway", client_secret="secret")
        graph = sources.OnBehalfOf(
            base_url=microsoft, tenant="acme.example", client_id="gateway", client_secret="secret", scope=SCOPE
        )
        same, brief = sources.PassThrough(), Timeout(read=0.2)
        routes = {
            "github": ProxyRoute(
                api,
                token_source=kept,
                connection="github",
                scopes={"read:github"},
                methods=["GET", "POST"],
                max_body=10,
            ),
            "gitlab": ProxyRoute(api, token_source=kept, connection="gitlab"),
            "google": ProxyRoute(api, token_source=kept, connection="google-oauth2"),
            "calendar": ProxyRoute(api, token_source=vault, connection="google-oauth2"),
            "graph": ProxyRoute(api, token_source=graph),
            "stranger": ProxyRoute(api, token_source=management(auth0, "a-stranger"), connection="github"),
            "limited": ProxyRoute(api, token_source=management(limits), connection="github"),
            "stalled": ProxyRoute(api, token_source=management(stalls, timeout=brief), connection="github"),
            "busy": ProxyRoute(api, token_source=same, max_concurrent=1),
            "mine": ProxyRoute(api, token_source=same, max_concurrent_per_caller=1),
            "gone": ProxyRoute(f"http://127.0.0.1:{free_port()}", token_source=same),
            "slow": ProxyRoute(api, token_source=same, timeout=brief),
        }
        known = AnyOf(
            JWTAuthenticator(issuer=tenant.issuer, audience=AUDIENCE),
            JWTAuthenticator(issuer=entra.issuer, audience="gateway"),
        )
        self.url = servers.enter_context(serve(IdPMiddleware(authenticator=known, routes=routes))).url
        self.tokens = {
            "alice": tenant.issue_token("auth0|alice", audience=AUDIENCE, scope="read:github"),
            "without scopes": tenant.issue_token("auth0|alice", audience=AUDIENCE, scope="openid"),
            "of another API": tenant.issue_token("auth0|alice", audience="https://other.example"),
            "of Entra ID": entra.issue_token("alice", audience="gateway"),
        }

    def answer_to(self, name: str) -> str:
        """The answer that has this problem, as a page shows it."""
        if name not in UNDER_WAY:
            return self.ask(*REQUESTS[name])
        # Another request has to be under way, and to stay so.
        before = self.github.count("/slow")
        host, port = self.url.removeprefix("http://").split(":")
        credential = f"Authorization: Bearer {self.tokens['alice']}"
        lines = [f"GET /idp/{UNDER_WAY[name]}/slow HTTP/1.1", f"Host: {host}", credential]
        with socket.create_connection((host, int(port))) as first:
            first.sendall("\r\n".join([*lines, "", ""]).encode())
            eventually(lambda: self.github.count("/slow") > before)
            return self.ask(*REQUESTS[name])

    def ask(self, method: str, path: str, whose: str, body: bytes = b"") -> str:
        """The answer, as a page shows it."""
        headers = {"authorization": f"Bearer {self.tokens[whose]}"}
        answer = httpx.request(
            method, f"{self.url}/idp{path}", headers=headers, content=body or None, trust_env=False, timeout=30
        )
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        shown = [
            f"{name}: {re.sub(r'127.0.0.1:[0-9]+', 'login.microsoftonline.com', value)}"
            for name, value in sorted(answer.headers.items())
            if name not in ("connection", "content-length", "date", "server")
        ]
        document = json.dumps(answer.json(), indent=2, ensure_ascii=False)
        # Without its phrase, which is the server's and changes with Python.
        status = f"HTTP/1.1 {answer.status_code}"
        return "\n".join([status, *shown, "", document])


REQUESTS = {
    "bad-request": ("GET", "/github/repos/%2e%2e/admin", "alice"),
    "body-too-large": ("POST", "/github/gists", "alice", b"more than ten bytes"),
    "caller-forbidden": ("GET", "/github/user", "without scopes"),
    "caller-unauthenticated": ("GET", "/github/user", "of another API"),
    "identity-ambiguous": ("GET", "/gitlab/user", "alice"),
    "identity-not-linked": ("GET", "/google/oauth2/v3/userinfo", "alice"),
    "interaction-required": ("GET", "/graph/me", "of Entra ID"),
    "method-not-allowed": ("DELETE", "/github/user", "alice"),
    "reconnect-required": ("GET", "/calendar/calendar/v3/calendars/primary", "alice"),
    "route-overloaded": ("GET", "/busy/user", "alice"),
    "route-not-found": ("GET", "/githib/user", "alice"),
    "token-source-failed": ("GET", "/stranger/user", "alice"),
    "token-source-timeout": ("GET", "/stalled/user", "alice"),
    "token-source-unavailable": ("GET", "/limited/user", "alice"),
    "too-many-requests": ("GET", "/mine/user", "alice"),
    "upstream-timeout": ("GET", "/slow/slow", "alice"),
    "upstream-unreachable": ("GET", "/gone/user", "alice"),
}


UNDER_WAY = {"route-overloaded": "busy", "too-many-requests": "mine"}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with ExitStack() as servers:
        yield Scene(servers)


def test_each_problem_has_a_page() -> None:
    """`type` says the name, and the page is found by it: a name without one would leave its reader alone."""
    named = {problem.name for problem in problems()}
    assert {path.stem for path in PAGES.glob("*.md")} - {"index", "configuration"} == named
    assert REQUESTS.keys() == named


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_a_page_says_what_happened_and_who_can_mend_it(problem) -> None:
    """Its reader has an answer before them and wants to know what to do."""
    text = (PAGES / f"{problem.name}.md").read_text()
    assert text.startswith(f"# `{problem.name}`\n")
    assert str(problem.status) in text.split("##")[0]
    assert [line for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    assert all(len(part.split()) > 12 for part in re.split(r"^## .*$", text, flags=re.M)[1:4])


@pytest.mark.parametrize("name", REQUESTS)
def test_a_page_shows_the_answer_as_it_is(name, scene) -> None:
    """Taken from a middleware at work: a field that changes its spelling changes here too."""
    answer = scene.answer_to(name)
    assert json.loads(answer.partition("\n\n")[2])["type"] == f"urn:idp-middleware:problem:{name}"
    block = f"```http\n{answer}\n```"
    assert block in (PAGES / f"{name}.md").read_text(), f"docs/errors/{name}.md should have:\n{block}"


def test_no_page_shows_a_token(scene) -> None:
    """They are real answers."""
    for page in PAGES.glob("*.md"):
        for token in scene.tokens.values():
            assert token not in page.read_text()
