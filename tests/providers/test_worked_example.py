"""The source and the preset that CONTRIBUTING.md works out: short, and working as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from idp_middleware import providers
from idp_middleware.sources import Auth0Management
from idp_middleware.testing import ProviderAPI, serve
from tests.providers.conftest import problem
from tests.stack import running

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    text = PAGE.partition("## A source and a preset, worked out")[2].partition("\n## ")[0]
    namespace: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        assert len(code.splitlines()) <= 40
        exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    return namespace


def test_the_example_works(example: dict[str, Any]) -> None:
    """A token is obtained, kept, renewed once it is refused; who has none is told so."""
    service = ProviderAPI()
    with serve(service) as tokens:
        source = example["AcmeTokens"](url=tokens.url, api_key="the-key")
        with (
            running(
                routes=lambda api, _: {"acme": example["acme"](token_source=source, upstream=api, connection="work")}
            ) as stack,
            stack.client() as client,
        ):
            for value in ("gho_alice_expired", "gho_alice_provider_token"):
                body = {"access_token": value, "token_type": "Bearer", "expires_in": 3600}
                service.respond("/token", body=body, times=1)
            assert client.get("/idp/acme/user").json()["login"] == "alice"
            assert client.get("/idp/acme/user").json()["login"] == "alice"
            assert [request.query for request in service.requests] == [
                "user=auth0%7Calice&account=work&renew=False",
                "user=auth0%7Calice&account=work&renew=True",
            ]
            assert service.last.header("x-api-key") == "the-key"
            assert stack.provider.last.header("acme-version") == "2026-01"
            for status, expected in (
                (404, (403, "identity-not-linked")),
                (500, (502, "token-source-failed")),
            ):
                service.respond("/token", status=status, times=1)
                with stack.client(f"someone{status}") as other:
                    assert problem(other.get("/idp/acme/user"))[:2] == expected


def test_the_example_is_like_those_that_are_there(example: dict[str, Any]) -> None:
    """What it shows is what the package does."""
    assert set(providers.github.__annotations__) == set(example["acme"].__annotations__)
    assert Auth0Management.needs_connection == example["AcmeTokens"].needs_connection
