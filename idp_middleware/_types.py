"""READ FIRST: the values and the two one-method protocols everything else is written in.

Knows nothing of HTTP clients, JWTs or caches, and imports nothing of ours but the errors.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias

from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from idp_middleware._routes import ProxyRoute

_VISIBLE = re.compile(r"[!-~]+\Z")

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]
"""Header fields as ASGI hands them over: in order, duplicates kept, never a dict."""


class _HoldsSecret:
    """Values with a secret inside stay in this process: no pickle, and copies are the value itself.

    A dataclass has a field with `KEPT_WHOLE` besides.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and is not pickled")

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self


class _Whole:
    __slots__ = ()

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("holds a secret and is not taken to pieces; ask for what you need by its name")


KEPT_WHOLE: Final = _Whole()
"""As a field, what `dataclasses.asdict` fails at, and so does what uses that (FastAPI's encoder)."""


@dataclass(frozen=True, slots=True)
class Caller(_HoldsSecret):
    """Who sent the request, once an authenticator has verified it.

    `credential` is the caller's own token as it came (token exchange needs it); like `claims` it never shows in
    the repr. `account` is the `IdP-Account` the request named, if any: which of several linked accounts is meant.
    """

    subject: str
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    credential: str | None = field(default=None, repr=False)
    account: str | None = None
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)

    @property
    def issuer(self) -> str:
        """Who vouches for the subject; two issuers may both know an "alice"."""
        issuer = self.claims.get("iss", "")
        return issuer if isinstance(issuer, str) else ""


@dataclass(frozen=True, slots=True)
class Token(_HoldsSecret):
    """A provider token, as the identity provider handed it out.

    `expires_at` is in seconds since the epoch; None means that nobody knows, and the token then serves for a bounded
    age only. `type` is the authentication scheme it is sent with (RFC 6749 section 7.1). Empty `scopes` are unknown.
    `extra` is what came with it and some APIs need (JSON values): the `access_token_secret` of OAuth 1.0a, Salesforce's
    `instance_url`. `account` is the user's id at the provider, where the source knows it.
    """

    value: str = field(repr=False)
    expires_at: float | None = None
    type: str = "Bearer"
    scopes: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    account: str | None = None
    authorization: bytes = field(init=False, repr=False, compare=False)
    """The `Authorization` value it is sent as, made once."""
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Both become a header field; a line break in one would become a second field.
        if not _VISIBLE.match(self.value) or not _VISIBLE.match(self.type):
            raise ValueError("a token and its type are visible ASCII characters without spaces")
        object.__setattr__(self, "authorization", f"{self.type} {self.value}".encode())


class Authenticator(Protocol):
    """Turns a connection into a `Caller`, or refuses by raising `errors.CallerUnauthenticated`."""

    async def authenticate(self, conn: HTTPConnection) -> Caller: ...


class TokenSource(Protocol):
    """Anything that can give a `Token` for a caller; safe for concurrent use.

    `refused` is the token that the provider has just turned down: whoever keeps tokens must not answer with it again
    unless the system behind has no other. Raises `errors.TokenError` where there is none to give.
    """

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token: ...


class Checkable(Protocol):
    """What `idp-middleware check` asks of an authenticator or a token source that has this method, and no request does.

    Reaches what it will need, and returns what it found, in words for the operator. Sends nothing of any user, changes
    and spends nothing. Raises `errors.CheckFailed`, or another error of `errors`.
    """

    async def check(self) -> str: ...


AuthenticatorLike: TypeAlias = Authenticator | Callable[[HTTPConnection], Awaitable[Caller]]
TokenSourceLike: TypeAlias = TokenSource | Callable[..., Awaitable[Token]]


@dataclass(frozen=True, slots=True)
class Timeout:
    """Bounds on waiting for the upstream, in seconds.

    `connect` covers DNS, TCP and TLS; `read` and `write` each wait for the next bytes to move; `pool` waits for a free
    connection.
    """

    connect: float = 5.0
    read: float = 60.0
    write: float = 60.0
    pool: float = 5.0
