"""Provider presets: the facts of one vendor's API each, as a function that returns a `ProxyRoute`.

A preset knows the base URL, what the API wants to see on every request, and how it says that it does not take a token.
It knows nothing of users, tokens or how they are obtained: one preset serves any token source. Its docstring says what
the vendor's pages say of refusals, rate limits and refreshing, and what of that nobody could confirm.

To add one: a function beside the others with the vendor's page in its docstring, its name below, a row in
`tests/providers/facts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from idp_middleware._routes import ProxyRoute
from idp_middleware.providers._route import RouteOptions
from idp_middleware.providers.development import atlassian, bitbucket, github, gitlab
from idp_middleware.providers.facebook import facebook
from idp_middleware.providers.salesforce import salesforce
from idp_middleware.providers.slack import slack
from idp_middleware.providers.social import discord, linkedin, spotify, twitch
from idp_middleware.providers.work import dropbox, dropbox_content, google, hubspot, microsoft_graph, notion, zoom
from idp_middleware.providers.x import x, x_oauth1

__all__ = [
    "PRESETS",
    "RouteOptions",
    "atlassian",
    "bitbucket",
    "discord",
    "dropbox",
    "dropbox_content",
    "facebook",
    "github",
    "gitlab",
    "google",
    "hubspot",
    "linkedin",
    "microsoft_graph",
    "notion",
    "salesforce",
    "slack",
    "spotify",
    "twitch",
    "x",
    "x_oauth1",
    "zoom",
]

# The functions among them are in lower case.
PRESETS: Mapping[str, Callable[..., ProxyRoute]] = MappingProxyType(
    {name: globals()[name] for name in __all__ if name.islower()}
)
"""What `provider = "…"` in a configuration file may say."""
