"""Fixtures for suites of apps that use idp_middleware; pytest finds them by itself where the package is installed.

A module beside the package, and nothing of it imported here: a suite that does not use them pays for this file alone.
docs/testing.md says how they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from idp_middleware.testing import Auth0, ProviderAPI, World


@pytest.fixture
def idp_settings() -> dict[str, Any]:
    """The arguments of `World`, for a suite to override: `issuer`, `audience`, `client`, as its app has them."""
    return {}


@pytest.fixture
def idp_world(idp_settings: dict[str, Any]) -> World:
    """An identity provider, APIs and users, in process: `idp_middleware.testing.World`."""
    from idp_middleware.testing import World

    return World(**idp_settings)


@pytest.fixture
def idp_transport(idp_world: World) -> httpx.AsyncBaseTransport:
    """What the app under test sends its requests through, instead of the network."""
    return idp_world.transport


@pytest.fixture
def idp_auth0(idp_world: World) -> Auth0:
    """The identity provider's double."""
    return idp_world.auth0


@pytest.fixture
def idp_api(idp_world: World) -> Callable[[str], ProviderAPI]:
    """The APIs' doubles, by host."""
    return idp_world.api
