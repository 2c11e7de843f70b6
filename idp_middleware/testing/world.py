"""A whole world in process: an identity provider, any number of APIs, and users who have linked accounts.

Puts the doubles together behind one httpx transport, so that an app under test needs no sockets. Knows who has linked
what, and tells by what each API saw whose token came. Knows nothing of the middleware.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import time
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from idp_middleware.testing._auth0_wire import Identity
from idp_middleware.testing._recording import RecordedRequest
from idp_middleware.testing.auth0 import Auth0
from idp_middleware.testing.provider import ProviderAPI

ISSUER = "https://acme.eu.auth0.com/"
AUDIENCE = "https://api.acme.example"
CLIENT = ("test-client", "test-secret")


@dataclass(frozen=True, slots=True)
class Linked:
    """An account that a user has linked, and the token that the provider gave for it."""

    user: str
    connection: str
    account: str
    token: str = field(repr=False)
    expires_at: float | None = None

    def __str__(self) -> str:
        return f"{self.user}'s {self.connection} token"


class World:
    """Alice has GitHub linked, her token expires in 3 s: `world.link("alice", "github", expires_in=3)`.

    Args:
        issuer: the tenant, as the app under test knows it.
        audience: the app's own API there.
        client: id and secret of the app's client, which has Token Vault, too.

    `auth0` is the tenant's double; `transport` is what the app sends its requests through instead of the network: to
    the tenant, to what `add` put at other addresses, and for any other host to an API that is made on its first
    request (`api`). Each API takes the tokens of all linked accounts, and no others; which one it was is for
    `assert_called_as` to tell.

    A user is `alice` or a whole subject, such as `auth0|alice`; the first is short for the second.
    """

    def __init__(self, *, issuer: str = ISSUER, audience: str = AUDIENCE, client: tuple[str, str] = CLIENT) -> None:
        self.auth0: Auth0 = Auth0(issuer)
        self.audience: str = audience
        self.client_id: str = client[0]
        self.client_secret: str = client[1]
        self.auth0.add_client(*client, vault=True, api=audience)
        self._apis: dict[str, ProviderAPI] = {}
        self._others: dict[str, Any] = {_host(issuer): self.auth0}
        self._linked: dict[str, Linked] = {}
        self._users: set[str] = set()
        self._revoked: set[str] = set()
        self.transport: httpx.AsyncBaseTransport = _Doubles(self)

    def add(self, url: str, app: Any) -> Any:
        """Let an ASGI app answer at the host of `url`: another double, such as `Keycloak`. Returns the app.

        A double without an issuer gets the URL as its own.
        """
        if getattr(app, "issuer", None) == "":
            app.issuer = url
        self._others[_host(url)] = app
        return app

    def api(self, host: str) -> ProviderAPI:
        """The API at a host, such as `api.github.com`."""
        if host not in self._apis:
            api = self._apis[host] = ProviderAPI()
            # From the first on, all that are not registered are refused.
            api.accept(uuid4().hex)
            for linked in self._linked.values():
                self._accept(api, linked)
        return self._apis[host]

    def link(
        self,
        user: str,
        connection: str,
        *,
        account: str | None = None,
        scope: str = "",
        expires_in: float | None = None,
    ) -> Linked:
        """Give a user an account at a provider, or the same account a new token.

        The provider takes its token for `expires_in` seconds, or until `revoke`. Token Vault tells of that; Auth0's
        profiles tell of no expiry, so there it is the provider's refusal that tells. `account` is the user's id there.
        """
        subject = _subject(user)
        account = account or f"{connection}-{user.rpartition('|')[2]}"
        expires_at = None if expires_in is None else time() + expires_in
        linked = Linked(user, connection, account, f"{connection}-token-of-{user}-{uuid4().hex[:12]}", expires_at)
        if subject not in self._users:
            self._users.add(subject)
            self.auth0.add_user(subject)
        self.auth0.link(subject, Identity(connection, account, access_token=linked.token))
        life = None if expires_in is None else int(expires_in)
        self.auth0.connect(subject, connection, linked.token, account=account, scope=scope, expires_in=life)
        self._linked[linked.token] = linked
        for api in self._apis.values():
            self._accept(api, linked)
        return linked

    def unlink(self, user: str, connection: str) -> None:
        """Remove a user's accounts of a connection. Raises `KeyError` for a user who never had one."""
        self.auth0.unlink(_subject(user), connection)
        self.auth0.disconnect(_subject(user), connection)

    def revoke(self, linked: Linked) -> None:
        """Let every API refuse a token from now on; Auth0 knows nothing of it."""
        self._revoked.add(linked.token)
        for api in self._apis.values():
            api.revoke(linked.token)

    def token(self, user: str, *, scope: str = "", **options: Any) -> str:
        """A caller's access token for the app; `options` are those of `Auth0.issue_token`."""
        return self.auth0.issue_token(_subject(user), **{"audience": self.audience, "scope": scope, **options})

    def headers(self, user: str, *, scope: str = "", **options: Any) -> dict[str, str]:
        """The header fields of a caller; as `token`."""
        return {"authorization": f"Bearer {self.token(user, scope=scope, **options)}"}

    def requests(self, host: str | None = None) -> list[RecordedRequest]:
        """What APIs saw, in the order of arrival; of one host, or of all."""
        apis = self._apis.values() if host is None else (self.api(host),)
        return sorted((request for api in apis for request in api.requests), key=lambda request: request.time)

    def assert_called_as(
        self, user: str, connection: str, *, path: str | None = None, method: str | None = None, host: str | None = None
    ) -> RecordedRequest:
        """That an API saw a request with this user's token of this connection; the latest such request.

        Raises `AssertionError` that lists what was seen instead.
        """
        for request in reversed(self.requests(host)):
            linked = self._linked.get(request.bearer or "")
            if (
                linked is not None
                and (_subject(linked.user), linked.connection) == (_subject(user), connection)
                and path in (None, request.raw_path)
                and method in (None, request.method)
            ):
                return request
        wanted = " ".join(filter(None, (method, path))) or "a request"
        raise AssertionError(f"no API saw {wanted} with {user}'s {connection} token.{self._seen(host)}")

    def assert_not_called(self, host: str | None = None) -> None:
        """That no request came to an API: to that of one host, or to any. Raises `AssertionError`."""
        if self.requests(host):
            raise AssertionError(f"{host or 'no API'} was not to be called.{self._seen(host)}")

    def assert_no_token_in(self, response: Any) -> None:
        """That an answer of the app holds no provider's token, in its body or its header fields.

        `response` is one of httpx or of Starlette's TestClient. Raises `AssertionError`.
        """
        shown = f"{response.headers!r}\n{response.text}"
        for linked in self._linked.values():
            if linked.token in shown:
                raise AssertionError(f"the answer to {response.request.method} {response.request.url} has {linked}")

    def _seen(self, host: str | None) -> str:
        lines = []
        for name, api in self._apis.items():
            for request in api.requests if host in (None, name) else ():
                whose = self._linked.get(request.bearer or "")
                said = (
                    str(whose) if whose else "no token" if request.bearer is None else "a token that nobody has linked"
                )
                lines.append(f"  {name} saw {request.method} {request.raw_path} with {said}")
        return "\n" + "\n".join(lines) if lines else " None saw any request: see what the app answered."

    def _accept(self, api: ProviderAPI, linked: Linked) -> None:
        if linked.token in self._revoked:
            return
        left = None if linked.expires_at is None else linked.expires_at - time()
        api.accept(linked.token, login=linked.user, expires_in=left)

    def _answering(self, host: str) -> Any:
        return self._others.get(host) or self.api(host)


class _Doubles(httpx.AsyncBaseTransport):
    def __init__(self, world: World) -> None:
        self._world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        app = self._world._answering(request.url.netloc.decode())
        return await httpx.ASGITransport(app).handle_async_request(request)


def _subject(user: str) -> str:
    return user if "|" in user else f"auth0|{user}"


def _host(url: str) -> str:
    return urlsplit(url).netloc
