"""What each key of `idp.toml` is, read off the code: signatures, annotations, docstrings.

For the site's reference, the comments that `init` writes and what `explain` says: none of them can leave out a key or
tell of one that isn't there. Knows how docstrings here are written, and sees constructors with the eyes of the
configuration file itself (`_config_types`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from idp_middleware._config_file import SECRETS
from idp_middleware._config_types import in_words, vocabulary
from idp_middleware._routes import ProxyRoute
from idp_middleware.providers import PRESETS

_SHARED: Final = {
    "client_secret": "the app's password there",
    "client_auth": "how it is sent: `post`, in the body, or `basic`, in the `Authorization` header",
    "private_key": "instead of a secret, the key in PEM that signs a statement for each request (`private_key_jwt`)",
    "key_id": "the key's name at the server, where the client has several there",
    "issuer": "the server's name, where signed statements have to be for that rather than for the endpoint",
    "allow_insecure": "permit `http://` to a host that is not loopback",
    "timeout": "bounds on waiting for the server; see [time-outs](#time-outs)",
    "domain": "the tenant, such as `acme.eu.auth0.com`",
    "upstream": "the base URL, where it is not the preset's own",
    "encryption_keys": "Fernet keys: the first encrypts, all of them decrypt; see [secrets](#secrets)",
    "url": "`redis://[[user]:password@]host[:port][/db]`, or `rediss://` for TLS",
}
"""What keys mean whose meaning is told in prose in the code, or where several share it."""
_TYPED_DEFAULTS: Final[Mapping[str, Any]] = {"client_auth": "post", "allow_insecure": False}
_ROUTES: Final = (ProxyRoute, *PRESETS.values())


class Described:
    """A docstring in its parts."""

    def __init__(self, thing: object) -> None:
        text = inspect.getdoc(thing) or ""
        self.prose, _, rest = re.sub(r"\n\s*Raises:\n.*?(?=\n\S|\Z)", "", text, flags=re.S).partition("\nArgs:\n")
        self.prose = self.prose.strip()
        self.arguments = {
            name: " ".join(meaning.split())
            for name, meaning in re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", rest, re.M | re.S)
        }

    @property
    def first(self) -> str:
        """The first paragraph."""
        return " ".join(self.prose.partition("\n\n")[0].split())


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    name: str
    kind: str
    """What its value is called."""
    secret: bool
    required: bool
    default: Any
    meaning: str


def keys(factory: Callable[..., Any]) -> list[Key]:
    """The keys that stand for the arguments of `factory`, in their order."""
    described, defaults = meanings(factory), _defaults(factory)
    return [
        Key(
            key,
            in_words(kind) + (' or a size such as "10MiB"' if key == "max_body" else ""),
            key in SECRETS,
            required,
            defaults.get(key),
            described[key],
        )
        for key, (kind, required) in vocabulary(factory).items()
    ]


def meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """What each key means, from the docstring that tells it: its own, or the one its options are handed on to."""
    own, routes = Described(factory).arguments, Described(ProxyRoute).arguments
    found = {}
    for key in vocabulary(factory):
        meaning = own.get(key) or (routes.get(key) if factory in _ROUTES else None) or _SHARED.get(key)
        found[key] = _mentioned(key, factory) if meaning in (None, "as above.") else meaning
    return found


def own_keys(preset: Callable[..., Any]) -> list[Key]:
    """Those that a preset has and other routes have not."""
    return [key for key in keys(preset) if key.name not in vocabulary(ProxyRoute)]


def _mentioned(key: str, factory: Callable[..., Any]) -> str:
    """The sentence of the prose that a key is in."""
    prose = " ".join(Described(factory).prose.partition("\n- ")[0].split())
    for sentence in re.split(r"(?<=[.;]) (?=[A-Z`])", prose):
        if f"`{key}`" in sentence:
            return sentence.rstrip(";")
    raise LookupError(f"{factory.__name__}: no docstring says what {key} means")


def _defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    found = dict(_TYPED_DEFAULTS)
    for each in (ProxyRoute, factory) if factory in _ROUTES else (factory,):
        for name, parameter in inspect.signature(each).parameters.items():
            if parameter.default is not parameter.empty and "factory" not in repr(parameter.default):
                found[name] = parameter.default
    return found
