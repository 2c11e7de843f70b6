"""Routes as operations of an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1).

A template's variable is one segment of a path: that is what the specification says, and clients encode a slash in one.
So a route is described by as many templates as it takes: those of its `paths`, where `**`, as a route without `paths`,
is one for each number of segments up to `DEPTH`. Knows routes and what they answer; nothing of requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from idp_middleware._routes import ProxyRoute

DEPTH: Final = 4
"""Segments that stand for `**`; as many as `/repos/{owner}/{repo}/issues` has."""

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})

_BEARER: Final = {"type": "http", "scheme": "bearer", "description": "The app's own access token for the user."}

_PROBLEM: Final = {
    "type": "object",
    "description": "RFC 9457; told from the API's own answers by the field Proxy-Status.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "connection": {"type": "string", "description": "Which account is missing, or has to be connected again."},
        "connect_url": {"type": "string", "format": "uri"},
        "accounts": {"type": "array", "items": {"type": "string"}, "description": "For the field IdP-Account."},
        "scopes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["type", "title", "status"],
}
_ACCOUNT: Final = {
    "name": "IdP-Account",
    "in": "header",
    "description": "Which account of the user, where several are linked.",
    "schema": {"type": "string"},
}


def describe(document: dict[str, Any], routes: Iterable[ProxyRoute], prefix: str, authenticator: object) -> None:
    """Add the routes to a document, with a tag each, and what callers authenticate with."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["IdPProblem"] = _PROBLEM
    components.setdefault("responses", {})["IdPProblem"] = {
        "description": "The API's own refusal, or a problem of the middleware's.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/IdPProblem"}}},
    }
    schemes = dict(_schemes(authenticator))
    components.setdefault("securitySchemes", {}).update(schemes)
    paths = document.setdefault("paths", {})
    for route in routes:
        security = [{name: sorted(route.scopes)} for name in schemes]
        document.setdefault("tags", []).append({"name": route.name, "description": "An API, as the caller."})
        for number, template in enumerate(dict.fromkeys(_templates(route))):
            names = re.findall(r"\{(\w+)\}", template)
            operations: dict[str, Any] = {
                "parameters": [
                    *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
                    _ACCOUNT,
                ]
            }
            for method in _METHODS:
                if method in route.methods:
                    operations[method.lower()] = _operation(route.name, method, number, security)
            if len(operations) > 1:
                paths[f"{prefix}/{route.name}{template}"] = operations


def _operation(name: str, method: str, number: int, security: list[dict[str, list[str]]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [name],
        "operationId": f"{re.sub('[^A-Za-z0-9]', '_', name)}_{method.lower()}_{number}",
        "responses": {
            "2XX": {"description": "The API's own answer, as it came."},
            "4XX": {"$ref": "#/components/responses/IdPProblem"},
            "5XX": {"$ref": "#/components/responses/IdPProblem"},
        },
        "security": security,
    }
    if method in _WITH_BODY:
        operation["requestBody"] = {"content": {"application/json": {"schema": {}}}}
    return operation


def _templates(route: ProxyRoute) -> Iterator[str]:
    for pattern in route.paths or ("/**",):
        before, deep, after = pattern.partition("/**")
        for depth in range(DEPTH + 1) if deep else (0,):
            # What is left of further stars is one segment each.
            text = before + "/*" * depth + after.replace("**", "*")
            stars = iter(range(1, 100))
            yield re.sub(r"\*", lambda _, stars=stars: f"{{segment{next(stars)}}}", text)  # type: ignore[misc]


def _schemes(authenticator: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """By the authenticator's own account, or a bearer token."""
    for each in getattr(authenticator, "authenticators", (authenticator,)):
        scheme = getattr(each, "security_scheme", None)
        yield ("idp", _BEARER) if scheme is None else ("idp_session", scheme)
