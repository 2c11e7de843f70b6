"""Tokens as an app hands them over: what is wrong with one is told there and then, and none shows itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from idp_middleware.errors import ConfigurationError
from idp_middleware.stores import SQLiteTokenStore, StoredToken


@pytest.mark.parametrize(
    "fields",
    [
        {"access_token": ""},
        {"access_token": "two\r\nlines"},
        {"access_token": None},
        {"type": "two words"},
        {"refresh_token": ""},
        {"refresh_token": 7},
        {"scopes": "repo gist"},
        {"scopes": None},
        {"expires_at": "soon"},
    ],
    ids=repr,
)
def test_a_token_that_could_not_be_used_is_refused_where_it_is_made(fields: dict[str, Any]) -> None:
    """In the app's callback, rather than at the next request."""
    with pytest.raises((ValueError, TypeError)):
        StoredToken(**{"access_token": "at", **fields})


def test_fields_are_taken_as_token_endpoints_and_their_libraries_give_them() -> None:
    """Lists of scopes, integers, numbers in strings."""
    token = StoredToken(access_token="at", scopes=["a", "b", "a"], expires_at="1700000000")  # type: ignore[arg-type]
    assert (token.scopes, token.expires_at) == (frozenset({"a", "b"}), 1.7e9)


def test_a_token_shows_nothing_and_leaves_the_process_by_no_way_of_its_own() -> None:
    """Whatever a debugger, a log line or a task queue makes of it."""
    token = StoredToken(access_token="s3cret-a", refresh_token="s3cret-r", extra={"id_token": "s3cret-i"})
    assert "s3cret" not in repr(token)
    assert copy.deepcopy(token) is token
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(token)


@pytest.mark.parametrize("keys", [[], "a key", b"a key", ["short"], [7], [None]], ids=repr)
def test_no_store_without_usable_keys(keys: Any, tmp_path: Any) -> None:
    """Tokens are at rest only encrypted, and a mistake shows no key."""
    with pytest.raises(ConfigurationError) as caught:
        SQLiteTokenStore(tmp_path / "tokens.db", encryption_keys=keys)
    assert caught.value.key == "encryption_keys"
    assert "short" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
