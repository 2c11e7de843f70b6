"""The doubles' signing keys."""

from __future__ import annotations

from idp_middleware.testing import signing_key


def test_a_key_is_the_same_however_it_is_asked_for():
    """A tenant would otherwise publish two keys for one algorithm."""
    assert signing_key() is signing_key("RS256") is signing_key("RS256", 0) is signing_key(generation=0)
    assert signing_key() is not signing_key("RS256", 1)
