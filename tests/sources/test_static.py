"""Sources that need nobody to ask."""

from __future__ import annotations

from typing import Any

import pytest

from idp_middleware import Caller, ProxyRoute, Token
from idp_middleware.errors import ConfigurationError, TokenSourceFailed
from idp_middleware.sources import PassThrough, Static


async def ask(source: Any, caller: Caller) -> Token:
    return await source.token(caller, ProxyRoute("https://api.example.com", token_source=source))


async def test_static_gives_what_it_was_given() -> None:
    """A value is sent as Bearer; a Token says for itself how."""
    assert await ask(Static("key"), Caller("alice")) == Token("key")
    token = Token("key", type="token")
    assert await ask(Static(token), Caller("bob")) is token


@pytest.mark.parametrize("value", ["", "two words", "a\nb", "é", None, 7])
def test_static_refuses_what_is_no_header(value: Any) -> None:
    """An unset environment variable is an empty string."""
    with pytest.raises(ConfigurationError) as caught:
        Static(value)
    assert caught.value.key == "value"
    assert caught.value.__suppress_context__


async def test_pass_through_gives_the_callers_own_credential() -> None:
    """And no other caller's."""
    source = PassThrough()
    assert (await ask(source, Caller("alice", credential="alices"))).value == "alices"
    assert (await ask(source, Caller("bob", credential="bobs"))).value == "bobs"


async def test_pass_through_fails_where_there_is_no_credential() -> None:
    """An authenticator of sessions has none; sending without would be failing open."""
    with pytest.raises(TokenSourceFailed):
        await ask(PassThrough(), Caller("alice"))


def test_neither_is_ever_kept() -> None:
    """There is nothing to gain, and a caller's credential is not for keeping."""
    route = ProxyRoute("https://api.example.com", token_source=Static("key"))
    for source in (Static("key"), PassThrough()):
        assert source.cache_key(Caller("alice"), route) is None
        assert "key" not in repr(source)
