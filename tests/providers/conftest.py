"""All presets on one middleware, each led to one API that answers as a test says, with tokens that a test holds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from idp_middleware import Caller, ProxyRoute, Token, providers
from idp_middleware.errors import IdPError
from idp_middleware.testing import RecordedRequest
from tests.providers.facts import FACTS, Said
from tests.stack import Stack, running

OK = Said(200, {"ok": True})

_numbers = itertools.count()


@dataclass
class Keyring:
    """Where tokens come from: for each user the one now, and what there is once that is refused."""

    tokens: dict[str, list[Token | IdPError]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Whose token was asked for, and which one had been refused."""

    async def __call__(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        self.asked.append((caller.subject, None if refused is None else refused.value))
        held = self.tokens[caller.subject]
        if refused is not None and len(held) > 1:
            held.pop(0)
        if isinstance(held[0], IdPError):
            raise held[0]
        return held[0]


@dataclass
class User:
    """A user whom nobody has seen before, calling a route."""

    stack: Stack
    keyring: Keyring
    name: str
    route: str

    def holds(self, *tokens: str | Token | IdPError, **extra: Any) -> None:
        """Have this token; and each next one once the one before it is refused."""
        known = {"access_token_secret": "s3cret", "instance_url": self.stack.api.url, **extra}
        self.keyring.tokens[f"auth0|{self.name}"] = [
            Token(token, extra=known) if isinstance(token, str) else token for token in tokens
        ]

    @property
    def asked(self) -> list[str | None]:
        """Which token had been refused whenever one of theirs was asked for."""
        return [refused for subject, refused in self.keyring.asked if subject == f"auth0|{self.name}"]

    def api_says(self, *answers: Said) -> None:
        for answer in answers:
            self.stack.provider.respond(
                "/", status=answer.status, body=answer.body, headers=dict(answer.headers), times=1
            )

    def call(self, method: str = "GET", path: str = "/things", **options: Any) -> httpx.Response:
        with self.stack.client(self.name) as client:
            return client.request(method, f"/idp/{self.route}{path}", **options)

    @property
    def sent(self) -> list[RecordedRequest]:
        """What reached the API."""
        return self.stack.provider.requests


def all_presets(api: str, keyring: Keyring) -> dict[str, ProxyRoute]:
    routes = {}
    for name, facts in FACTS.items():
        # Only the host is another one.
        upstream = api + urlsplit(facts.upstream).path
        preset = getattr(providers, name)
        routes[name] = preset(token_source=keyring, upstream=upstream, connection=name, **facts.arguments)
    return routes


@pytest.fixture(scope="session")
def everything() -> Iterator[tuple[Stack, Keyring]]:
    keyring = Keyring()
    with running(routes=lambda api, _: all_presets(api, keyring)) as stack:
        yield stack, keyring


@pytest.fixture
def user(everything: tuple[Stack, Keyring], request: pytest.FixtureRequest) -> User:
    stack, keyring = everything
    stack.provider.clear()
    stack.provider.reset_faults()
    return User(stack, keyring, f"user{next(_numbers)}", getattr(request, "param", ""))


def problem(answer: httpx.Response) -> tuple[int, str, dict[str, Any]]:
    """Status, name and members of an answer of ours."""
    assert answer.headers["content-type"] == "application/problem+json"
    document = json.loads(answer.content)
    name = document.pop("type").removeprefix("urn:idp-middleware:problem:")
    return answer.status_code, name, document
