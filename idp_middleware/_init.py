"""`idp-middleware init`: a commented `idp.toml` for a token source and some providers.

Which keys there are, and what is said of each, is read off the constructors and their docstrings, so that neither can
drift. What is not known yet is an environment variable: the file loads once those are set. Knows of each source only
what to call it and which of its keys nobody does without.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from idp_middleware._config_types import vocabulary
from idp_middleware._jwt import JWTAuthenticator
from idp_middleware._meanings import Described
from idp_middleware._routes import ProxyRoute
from idp_middleware.config import SOURCES
from idp_middleware.errors import ConfigurationError
from idp_middleware.providers import PRESETS
from idp_middleware.sources._client_auth import ClientAuth

_WIDTH: Final = 100
_ROUTE_KEYS: Final = ("scopes", "token_scopes", "methods", "paths", "max_body")
"""Options of a route that are shown with the first, commented out; there are more, for who looks for them."""
_LEFT_OUT: Final = frozenset({"allow_insecure", "audience", "base_url", "encryption_keys", "issuer", "timeout"})
"""Options of sources that few need: for tests, private clouds and odd servers."""
_AUTH0_NAMES: Final = {
    "google": "google-oauth2",
    "microsoft_graph": "windowslive",
    "x": "twitter",
    "x_oauth1": "twitter",
}
"""Auth0's names of connections (https://auth0.com/docs/authenticate/identity-providers/social-identity-providers)."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a source is set up: its name in the file and in variables (None: each provider's), keys, callers' issuer."""

    name: str | None
    keys: tuple[str, ...]
    issuer: str = "${IDP_ISSUER}"


_CLIENT: Final = ("client_id", "client_secret")
_PLANS: Final = {
    "auth0-management": _Plan("auth0", ("domain", *_CLIENT), "https://${AUTH0_DOMAIN}/"),
    "auth0-token-vault": _Plan("auth0", ("domain", *_CLIENT), "https://${AUTH0_DOMAIN}/"),
    "client-credentials": _Plan("app", ("token_url", *_CLIENT)),
    "keycloak-broker": _Plan("keycloak", ("realm_url",), "${KEYCLOAK_REALM_URL}"),
    "on-behalf-of": _Plan(
        "entra", ("tenant", *_CLIENT, "scope"), "https://login.microsoftonline.com/${ENTRA_TENANT}/v2.0"
    ),
    "pass-through": _Plan("caller", ()),
    "refresh-token": _Plan(None, ("store", "encryption_keys", "token_url", *_CLIENT)),
    "static": _Plan(None, ("value",)),
    "token-exchange": _Plan("exchange", ("token_url", *_CLIENT, "audience")),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """The text of a file, its routes, what each variable in it is for, and what the source says of itself."""

    text: str
    routes: tuple[str, ...]
    variables: dict[str, str]
    about: str


def chosen(
    source: str | None, providers: Sequence[str], *, ask: Callable[[str], str] | None
) -> tuple[str, Sequence[str]]:
    """A source and providers that there are; `ask` gets an answer to a question for what is not given.

    Raises `ConfigurationError` for what there is not, and for what nobody can be asked.
    """
    source = source or _answer("source", SOURCES, ask)
    providers = providers or _answer("provider", PRESETS, ask).split()
    for name, value, known in (("--source", source, SOURCES), *(("--provider", each, PRESETS) for each in providers)):
        if value not in known:
            raise ConfigurationError(f"there is no {value!r}; there is {', '.join(known)}", key=name)
    return source, providers


def _answer(what: str, names: Collection[str], ask: Callable[[str], str] | None) -> str:
    answer = ""
    if ask is not None:
        with suppress(EOFError):
            answer = ask(f"Which {what}? There is {', '.join(names)}\n{what}: ").strip()
    if not answer:
        raise ConfigurationError(f"is needed; there is {', '.join(names)}", key=f"--{what}")
    return answer


def draft(source: str, providers: Sequence[str]) -> Draft:
    """A file for one kind of source and some presets, by the names that `idp.toml` has for them."""
    plan, variables = _PLANS[source], dict[str, str]()
    about = _about(SOURCES[source])
    named = {provider: plan.name or provider for provider in dict.fromkeys(providers)}
    lines = [
        *_comment(
            "Made by idp-middleware init. Every key is a keyword argument of the Python names; an unknown one is an "
            "error. ${NAME} is an environment variable, which has to be set. Secrets have to come from there."
        ),
        "",
        'prefix = "/idp"',
        "",
        *_comment(f"Who may call. {_about(JWTAuthenticator).splitlines()[0]}"),
        "[authenticator]",
        'type = "jwt"',
    ]
    jwt = Described(JWTAuthenticator).arguments
    lines += _given("issuer", json.dumps(plan.issuer), jwt["issuer"], variables)
    lines += _given("audience", '"${IDP_AUDIENCE}"', jwt["audience"], variables)
    lines += _options(JWTAuthenticator, ("jwks_url", "algorithms"), jwt)
    for name in dict.fromkeys(named.values()):
        lines += ["", *_comment(f"Where the users' provider tokens are. {about}"), f"[sources.{name}]"]
        lines += [f'type = "{source}"', *_source(source, name, plan.keys, variables)]
    for number, (provider, name) in enumerate(named.items()):
        lines += ["", *_route(provider, source, name, variables)]
        if not number:
            lines += _options(ProxyRoute, _ROUTE_KEYS, Described(ProxyRoute).arguments)
    lines += [
        "",
        *_comment("By default tokens are kept in process. This shares them with other workers and hosts, encrypted:"),
        "# [cache]",
        '# url = "redis://127.0.0.1:6379/0"',
        '# encryption_keys = ["${IDP_KEY}"]',
    ]
    return Draft("\n".join(lines) + "\n", tuple(named), variables, about)


def _source(kind: str, name: str, keys: Collection[str], variables: dict[str, str]) -> list[str]:
    factory = SOURCES[kind]
    said = {**Described(ClientAuth).arguments, **Described(factory).arguments}
    accepted = vocabulary(factory)
    lines = []
    for key in keys:
        variable = f"${{{name.upper()}_{key.upper()}}}"
        value = json.dumps([variable] if key == "encryption_keys" else variable)
        lines += _given(key, value, said[key], variables)
    rest = [key for key in accepted if key not in keys and key not in _LEFT_OUT and key in said]
    return lines + _options(factory, rest, said)


def _route(provider: str, source: str, name: str, variables: dict[str, str]) -> list[str]:
    preset, said = PRESETS[provider], Described(ProxyRoute).arguments
    needed = [key for key, (_, required) in vocabulary(preset).items() if required]
    # What a key is that only this preset has stands somewhere in what it says of itself.
    about = _about(preset) if needed else _about(preset).split("\n\n")[0]
    lines = [*_comment(about), f"[routes.{provider}]", f'provider = "{provider}"']
    lines.append(f'source = "{name}"')
    if getattr(SOURCES[source], "needs_connection", False):
        names = _AUTH0_NAMES if source.startswith("auth0") else {}
        lines += _given("connection", json.dumps(names.get(provider, provider)), said["connection"], variables)
    for key in needed:
        variable = f"{provider.upper()}_{key.upper()}"
        lines.append(f'{key} = "${{{variable}}}"')
        variables[variable] = f"{key}: of {provider}; the comment in the file says more"
    return lines


def _given(key: str, value: str, said: str, variables: dict[str, str]) -> list[str]:
    for variable in re.findall(r"\$\{(\w+)\}", value):
        if variable not in variables or json.dumps(f"${{{variable}}}") == value:
            variables[variable] = f"{key}: {said}"
    return [*_comment(f"{key}: {said}"), f"{key} = {value}"]


def _options(factory: Callable[..., Any], keys: Iterable[str], said: dict[str, str]) -> list[str]:
    """Keys that need not be there, commented out, with their default where it can be written."""
    parameters = inspect.signature(factory).parameters
    lines = []
    for key in keys:
        default = parameters[key].default if key in parameters else None
        if isinstance(default, frozenset | tuple):
            value = json.dumps(sorted(default))
        else:
            value = json.dumps(default) if isinstance(default, str | bool | int | float) else "…"
        lines += [*_comment(f"{key}: {said[key]}"), f"# {key} = {value}"]
    return lines


def _about(what: object) -> str:
    """A docstring before its sections."""
    return re.split(r"\n\s*(?:- Refused|Args|Sources?|Raises):", inspect.getdoc(what) or "")[0].strip()


def _comment(text: str) -> list[str]:
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(
            paragraph,
            _WIDTH,
            initial_indent="# ",
            subsequent_indent="# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def next_steps(made: Draft, path: str) -> str:
    """What to do with a draft that stands in a file now."""
    lines = [f"{path} is written. Next:", "", "1. Set what it takes from the environment:"]
    for name, text in made.variables.items():
        lines += [f"       export {name}=…"]
        lines += textwrap.wrap(text, _WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11)
    lines += ["", "2. See to it that the source can work:"]
    for paragraph in made.about.split("\n\n"):
        lines += textwrap.wrap(" ".join(paragraph.split()), _WIDTH, initial_indent=" " * 7, subsequent_indent=" " * 7)
    lines += ["", "3. Try it:", f"       idp-middleware check {path}"]
    lines += [f"       idp-middleware call {made.routes[0]} / --as SUBJECT --config {path}"]
    lines += [f"       idp-middleware serve {path}"]
    return "\n".join(lines)
