"""Auth0, a provider's API, and the `idp.toml` that names them: what the commands are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve
from tests.stack import USERS

SECRET = "the-secret-of-the-client"

FILE = """
[authenticator]
type = "jwt"
issuer = "{idp}/"
audience = "https://api.acme.example"

[sources.auth0]
type = "auth0-management"
base_url = "{idp}"
client_id = "gateway"
client_secret = "${{SECRET}}"

[routes.github]
upstream = "{api}"
source = "auth0"
connection = "github"
"""


@dataclass
class Parties:
    """As they should be: alice and bob are known, linked and accepted."""

    auth0: Auth0
    api: ProviderAPI
    idp_url: str
    api_url: str

    def file(self, more: str = "") -> str:
        """The file, in which `SECRET` is a variable; `more` goes on in the route's table."""
        return (FILE + more).format(idp=self.idp_url, api=self.api_url)


@contextmanager
def parties(**options: Any) -> Iterator[Parties]:
    """They run while the block does; `options` are those of Auth0's server."""
    auth0, api = Auth0(), ProviderAPI()
    auth0.add_client("gateway", SECRET)
    for number, (user, token) in enumerate(USERS.items(), start=101):
        auth0.add_user(f"auth0|{user}", [Identity("github", str(number), access_token=token)])
        api.accept(token, login=user)
    with serve(auth0, **options) as idp, serve(api) as at:
        yield Parties(auth0, api, idp.url, at.url)
