"""What every token store does."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet

from idp_middleware.errors import TokenSourceFailed
from idp_middleware.stores import Claim, StoredToken, TokenKey, TokenStore
from tests.stores.conftest import KEY, MakeStore

TOKEN = StoredToken(
    access_token="access-s3cret",
    refresh_token="refresh-s3cret",
    expires_at=2e9,
    scopes=["repo", "gist"],
    extra={"instance_url": "https://acme.example", "ids": [1, None]},
)
CLAIM = Claim(owner="me", at=1e9, lasts=60.0)


@pytest.fixture
def alice() -> TokenKey:
    """A user of her own for each test, since one database serves them all."""
    return TokenKey(issuer="https://acme.example/", subject=f"auth0|{uuid4().hex}", connection="github")


async def test_what_the_app_puts_comes_back_as_it_was(store: TokenStore, alice: TokenKey) -> None:
    """All of it decides something, and `extra` is the app's own."""
    plain = replace(alice, connection="plain")
    await store.put(alice, TOKEN)
    await store.put(plain, StoredToken(access_token="plain", type="token"))
    (entry,) = await store.get(alice)
    assert (entry.key, entry.token, entry.claim, entry.withdrawn) == (alice, TOKEN, None, False)
    assert entry.stored_at == pytest.approx(time.time(), abs=30)
    assert [entry.token for entry in await store.get(plain)] == [StoredToken(access_token="plain", type="token")]


async def test_accounts_of_a_user_are_kept_apart_and_found_together(store: TokenStore, alice: TokenKey) -> None:
    """A user who has linked two can be asked which, and can unlink one."""
    one, other = replace(alice, account="101"), replace(alice, account="102")
    await store.put(one, TOKEN)
    await store.put(other, replace(TOKEN, access_token="other"))
    assert sorted(entry.key.account or "" for entry in await store.get(alice)) == ["101", "102"]
    assert [entry.token.access_token for entry in await store.get(other)] == ["other"]
    await store.delete(one)
    assert [entry.key for entry in await store.get(alice)] == [other]
    await store.put(one, TOKEN)
    await store.delete(alice)
    assert await store.get(alice) == []


@pytest.mark.parametrize(
    "change",
    [{"issuer": "https://other.example/"}, {"subject": "auth0|bob"}, {"connection": "google"}, {"account": "101"}],
    ids=lambda change: next(iter(change)),
)
async def test_nobody_else_gets_it(store: TokenStore, alice: TokenKey, change: dict[str, str]) -> None:
    """An entry that two users share is the worst that could happen."""
    await store.put(alice, TOKEN)
    other = replace(alice, **change)
    assert await store.get(other) == []
    await store.delete(other)
    assert len(await store.get(alice)) == 1


async def test_a_swap_needs_the_version_that_is_there(store: TokenStore, alice: TokenKey) -> None:
    """Whoever comes too late changes nothing, and is told."""
    await store.put(alice, TOKEN)
    (first,) = await store.get(alice)
    second = await store.compare_and_swap(replace(first, claim=CLAIM, withdrawn=True))
    assert second is not None
    assert await store.get(alice) == [second]
    assert (second.claim, second.withdrawn, second.version == first.version) == (CLAIM, True, False)
    assert await store.compare_and_swap(first) is None
    assert await store.get(alice) == [second]


async def test_a_version_never_comes_back(store: TokenStore, alice: TokenKey) -> None:
    """Deleted and put again, it is another entry, however much it looks like the first."""
    versions = set()
    for _ in range(3):
        await store.put(alice, TOKEN)
        (entry,) = await store.get(alice)
        versions.add(entry.version)
        await store.delete(alice)
        assert await store.compare_and_swap(entry) is None
    assert len(versions) == 3
    assert await store.get(alice) == []


async def test_a_put_wins_over_whatever_was_there(store: TokenStore, alice: TokenKey) -> None:
    """A user who connects again is through with claims and marks of the past."""
    await store.put(alice, TOKEN)
    (entry,) = await store.get(alice)
    marked = await store.compare_and_swap(replace(entry, claim=CLAIM, withdrawn=True))
    assert marked is not None
    await store.put(alice, replace(TOKEN, access_token="new"))
    (entry,) = await store.get(alice)
    assert (entry.token.access_token, entry.claim, entry.withdrawn) == ("new", None, False)
    assert await store.compare_and_swap(marked) is None


async def test_of_many_who_swap_at_once_one_wins(make_store: MakeStore, alice: TokenKey) -> None:
    """It is the lock that a refresh stands on."""
    stores = [make_store() for _ in range(4)]
    await stores[0].put(alice, TOKEN)
    (entry,) = await stores[0].get(alice)
    tries = [replace(entry, claim=replace(CLAIM, owner=str(number))) for number in range(40)]
    swapped = await asyncio.gather(*(stores[n % 4].compare_and_swap(attempt) for n, attempt in enumerate(tries)))
    (winner,) = [each for each in swapped if each is not None]
    assert await stores[3].get(alice) == [winner]


async def test_of_many_who_put_at_once_all_succeed(make_store: MakeStore, alice: TokenKey) -> None:
    """Two tabs of one user, and a table that is not there yet."""
    stores = [make_store() for _ in range(4)]
    await asyncio.gather(*(stores[n % 4].put(alice, replace(TOKEN, access_token=f"n{n}")) for n in range(12)))
    assert len(await stores[0].get(alice)) == 1


async def test_keys_rotate(make_store: MakeStore, alice: TokenKey) -> None:
    """The first key encrypts, all of them decrypt; what is written again is under the new one."""
    new = Fernet.generate_key().decode()
    old_store, both, new_store = make_store(), make_store([new, KEY]), make_store([new])
    await old_store.put(alice, TOKEN)
    (entry,) = await both.get(alice)
    assert entry.token == TOKEN
    with pytest.raises(TokenSourceFailed, match="encryption_keys"):
        await new_store.get(alice)
    await both.compare_and_swap(entry)
    assert [entry.token for entry in await new_store.get(alice)] == [TOKEN]


async def test_a_key_that_is_wrong_is_an_error_and_not_an_empty_store(make_store: MakeStore, alice: TokenKey) -> None:
    """Else every user would be asked to connect again, over what the right key could still open."""
    await make_store().put(alice, TOKEN)
    with pytest.raises(TokenSourceFailed, match="encryption_keys"):
        await make_store([Fernet.generate_key().decode()]).get(alice)


async def test_what_json_has_no_word_for_is_refused_before_it_is_written(store: TokenStore, alice: TokenKey) -> None:
    """The app's mistake is the app's error."""
    with pytest.raises(TypeError):
        await store.put(alice, replace(TOKEN, extra={"when": object()}))
    assert await store.get(alice) == []


async def test_a_store_that_was_closed_opens_again(store: TokenStore, alice: TokenKey) -> None:
    """An app under test starts and stops more than once."""
    await store.put(alice, TOKEN)
    await store.aclose()  # type: ignore[attr-defined]
    assert [entry.token for entry in await store.get(alice)] == [TOKEN]


async def test_stores_say_which_they_are(make_store: MakeStore) -> None:
    """So that processes may share a cache of tokens, and stores of two apps not."""
    one = make_store()
    assert one.identity == make_store([Fernet.generate_key().decode()]).identity
    assert repr(one).startswith(type(one).__name__)
    assert KEY not in repr(one) + str(one.identity)


async def test_what_was_deleted_by_its_version_is_no_later_one(store: TokenStore, alice: TokenKey) -> None:
    """A login in the instant of a revocation must not be lost; look and deed are one step."""
    await store.put(alice, TOKEN)
    (first,) = await store.get(alice)
    await store.put(alice, replace(TOKEN, access_token="new"))
    await store.delete(alice, version=first.version)
    (second,) = await store.get(alice)
    assert second.token.access_token == "new"
    await store.delete(alice, version=second.version)
    assert await store.get(alice) == []
    await store.delete(alice, version=second.version)


async def test_deleted_by_its_version_is_one_entry_only(store: TokenStore, alice: TokenKey) -> None:
    """A key without an account then means the entry without one, and no other of the user's."""
    named = replace(alice, account="101")
    await store.put(alice, TOKEN)
    await store.put(named, TOKEN)
    (plain,) = [entry for entry in await store.get(alice) if entry.key == alice]
    await store.delete(alice, version=plain.version)
    assert [entry.key for entry in await store.get(alice)] == [named]
