"""What a token store holds, and the four operations that any store has.

Knows neither databases nor encryption, and not what a refresh is about: a claim and a mark are only kept here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from idp_middleware._types import KEPT_WHOLE, Token, _HoldsSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """Whose token, and for what.

    `issuer` and `subject` are the `iss` and `sub` of the caller's own token (an authenticator without issuers has an
    empty one); `connection` is that of the route. `account` is the user's id at the provider. An app whose users link
    one account each leaves it None; where they may link several, every one of them needs its id.
    """

    issuer: str
    subject: str
    connection: str
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken(_HoldsSecret):
    """What a provider's token endpoint gave for a user.

    `expires_at` is in seconds since the epoch, None where the provider does not tell. `extra` is what else the app
    wants kept, such as Salesforce's `instance_url`: JSON values; a member that a later refresh brings again is updated.

    Raises `ValueError` or `TypeError` for a token that can't stand in a header, for scopes in one string, and for an
    expiry that is no number.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    scopes: Collection[str] = frozenset()
    type: str = "Bearer"
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Token(self.access_token, type=self.type)
        if isinstance(self.scopes, str):
            raise ValueError("scopes are a collection of strings; split the one the provider sends")
        if self.refresh_token is not None and not (isinstance(self.refresh_token, str) and self.refresh_token):
            raise ValueError("a refresh token is a string; None where there is none")
        object.__setattr__(self, "scopes", frozenset(self.scopes))
        if self.expires_at is not None:
            object.__setattr__(self, "expires_at", float(self.expires_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Somebody is about to send the refresh token, or has sent it: written before, gone when the outcome is stored.

    Lasts `lasts` seconds from `at` (seconds since the epoch), which is longer than a refresh can take. One that is
    older was left behind: its owner died, or never learnt what became of the refresh.
    """

    owner: str
    at: float
    lasts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(_HoldsSecret):
    """A token as a store has it.

    `version` is different after every write, never the same twice. `stored_at` is when the token came, in seconds since
    the epoch. `withdrawn` says that the provider takes the refresh token no longer, or that it may be spent, or that
    the user wants it revoked: the user has to connect the account again, and the app's next `put` makes it an ordinary
    entry.
    """

    key: TokenKey
    token: StoredToken
    version: str
    stored_at: float
    claim: Claim | None = None
    withdrawn: bool = False
    _whole: Any = field(default=KEPT_WHOLE, init=False, repr=False, compare=False)

    @property
    def revoked(self) -> bool:
        """Whether it is to be revoked: by who has the claim, or where that is over, by the next who is asked to."""
        return self.withdrawn and self.claim is not None


class TokenStore(Protocol):
    """Users' tokens, shared by all processes that serve them. Only the app's code puts; users may have theirs deleted.

    A store that has `identity: tuple[str, ...]`, equal in all processes that use the same one, lets them share a
    `TokenCache` as well; one that holds connections has `aclose()`. Failures are `errors.TokenSourceUnavailable`, or
    `errors.TokenSourceFailed` where trying again is pointless.
    """

    async def get(self, key: TokenKey) -> Sequence[Entry]:
        """The account that `key.account` names; without one, all that the user has of this connection."""
        ...

    async def put(self, key: TokenKey, token: StoredToken) -> None:
        """Keep what the user's login at the provider has given, whatever was kept before."""
        ...

    async def compare_and_swap(self, entry: Entry) -> Entry | None:
        """Write `entry` if what is stored still has its version, and return it with the new one; None if not."""
        ...

    async def delete(self, key: TokenKey, *, version: str | None = None) -> None:
        """Forget one account; without `key.account`, all that the user has of this connection.

        With a `version`, exactly the entry of that key, and only if it still has that one, in one step: what was put
        meanwhile stays.
        """
        ...
