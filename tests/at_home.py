"""The parties that pages speak of, on this machine: the tenant `acme.eu.auth0.com`, the API `api.github.com`, alice."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests import pages

AUDIENCE = "https://api.acme.example"
CLIENTS = {"the-auth0-client-id": "the-auth0-client-secret", "...": "..."}
"""As the environment of a test has them, and as a page does that leaves them to its reader."""


class Home:
    """The parties, and words to put their addresses in place of those that a page shows."""

    def __init__(self, servers: ExitStack) -> None:
        self.auth0, self.github = Auth0(), ProviderAPI()
        for client, secret in CLIENTS.items():
            self.auth0.add_client(client, secret)
        self.auth0.add_user("auth0|alice", [Identity("github", "101", access_token="gho_alice")])
        self.github.accept("gho_alice", login="alice")
        self.idp, self.api = (servers.enter_context(serve(party)).url for party in (self.auth0, self.github))
        self.places = {
            'issuer="https://acme.eu.auth0.com/"': f'issuer="{self.idp}/"',
            'issuer = "https://acme.eu.auth0.com/"': f'issuer = "{self.idp}/"',
            'issuer = "https://${AUTH0_DOMAIN}/"': f'issuer = "{self.idp}/"',
            'domain="acme.eu.auth0.com"': f'base_url="{self.idp}"',
            'domain = "acme.eu.auth0.com"': f'base_url = "{self.idp}"',
            'domain = "${AUTH0_DOMAIN}"': f'base_url = "{self.idp}"',
            "providers.github(": f'providers.github(upstream="{self.api}", ',
            'provider = "github"': f'provider = "github"\nupstream = "{self.api}"',
        }

    def at_home(self, text: str) -> str:
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def program(self, page: str) -> dict[str, Any]:
        """The names that a page's Python leaves, all of it run."""
        namespace: dict[str, Any] = {"__name__": "example"}
        for block in pages.programs()[page]:
            exec(compile(self.at_home(block.text), str(block), "exec"), namespace)
        return namespace

    def token(self) -> str:
        """The access token that alice's app has."""
        return self.auth0.issue_token("auth0|alice", audience=AUDIENCE, scope="read:github")

    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token()}"}

    def call(self, app: object) -> None:
        """As the page has it: alice's call is answered by GitHub, for alice."""
        with serve(app) as server:
            answer = httpx.get(f"{server.url}/idp/github/user", headers=self.bearer(), trust_env=False, timeout=30)
            assert (answer.status_code, answer.json()["login"]) == (200, "alice")
        assert self.github.tokens_seen() == ["gho_alice"]
        assert "gho_alice" not in f"{answer.text}{answer.headers}"
