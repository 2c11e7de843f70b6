"""The shape of the package: imports run one way, and the libraries stay in their corners."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import idp_middleware

PACKAGE = Path(idp_middleware.__file__).parent
LAYERS = [
    {"_fernet", "_loops", "_outbox", "_process", "_traces", "_version", "errors", "testing"},
    {"_advice"},
    {"_types"},
    {"_observation"},
    {"observers", "prometheus", "opentelemetry"},
    {"_rules", "_refusal", "_signing", "_limits", "_urls"},
    {"_routes"},
    {"_fields", "_lifespan", "_replacer", "stores"},
    {"_request_headers", "_response_headers", "_public_urls", "_inbound", "_upstream", "_idp_http"},
    {"_shared_store", "_turns"},
    {"_shared_guard", "_shared_aiocache", "_shared_redis"},
    {"_shared_values", "_circuit"},
    {"_shared_revocations", "_revocation"},
    {
        "_engine",
        "_httpx_upstream",
        "_bearer",
        "_claims",
        "_jwk",
        "_issuer_check",
        "sources",
        "_token_keeper",
        "_tokens",
        "_inflated",
        "_watch",
    },
    {"_jwks", "_cache", "_introspected"},
    {"_jwt", "_introspection", "_session", "_any_of"},
    {"providers"},
    {"_answers", "_websocket", "_websocket_offers", "_body_rewriting", "_authorized"},
    {"_client", "_own", "_watched"},
    {"_middleware"},
    {"_openapi"},
    {"fastapi", "uvicorn"},
    {"_config_types"},
    {"_config_file"},
    {"_meanings", "config"},
    {"_given_caller"},
    {"_check", "_call", "_explain", "_init", "_revoke", "asgi"},
    {"_report"},
    {"_demo"},
    {"_cli"},
    {"__main__", "__init__"},
]
"""From the bottom up: a module imports what is below it, or its own neighbours."""

CORNERS = {
    "httpx": {
        "_idp_http",
        "_httpx_upstream",
        "_engine",
        "_middleware",
        "_client",
        "fastapi",
        "_check",
        "_demo",
        "sources",
        "_jwt",
        "testing",
    },
    "jwt": {"_jwt", "_jwk", "_jwks", "_bearer", "_claims", "testing", "sources"},
    "aiocache": {"_shared_aiocache"},
    "redis": {"_shared_redis"},
    "httptools": {"_engine"},
    "prometheus_client": {"prometheus"},
    "opentelemetry": {"opentelemetry"},
    "websockets": {"_engine"},
    "oauthlib": {"providers"},
    "sqlalchemy": {"stores"},
    "sqlite3": {"stores"},
    "uvicorn": {"_cli", "_demo", "testing", "uvicorn"},
    "fastapi": {"fastapi", "_demo"},
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield pytest.param(parts[0], path, id="/".join(parts))


def imported(path: Path):
    tree = ast.parse(path.read_text())
    for branch in ast.walk(tree):
        # What only a type checker sees is no dependency.
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING":
            branch.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module in names)


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_run_one_way(module, path):
    """So that each part can be read without those above it."""
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("idp_middleware.")}
    if module == "testing":
        # Witnesses share no code with what they witness.
        assert ours <= {"testing"}
        return
    for name in ours - {module}:
        if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).exists():
            assert layer(name) <= layer(module), f"{module} imports {name}"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_libraries_stay_in_their_corners(module, path):
    """Each could be replaced by touching those files alone."""
    for name in imported(path):
        corner = CORNERS.get(name.split(".")[0])
        assert corner is None or module in corner, f"{module} imports {name}"


def test_the_public_names_are_a_list_that_is_kept():
    """What users import; a name that appears or vanishes is a decision."""
    assert idp_middleware.__all__ == sorted(idp_middleware.__all__)
    assert set(idp_middleware.__all__) == {
        "AnyOf",
        "Authenticator",
        "Caller",
        "IdPMiddleware",
        "IntrospectionAuthenticator",
        "JWTAuthenticator",
        "ProxyRoute",
        "Rule",
        "SessionAuthenticator",
        "Timeout",
        "Token",
        "TokenCache",
        "TokenSource",
        "__version__",
        "errors",
        "load_config",
        "providers",
        "sources",
        "stores",
    }
    for name in idp_middleware.__all__:
        assert hasattr(idp_middleware, name)
