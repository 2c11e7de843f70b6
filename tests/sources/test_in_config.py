"""The sources that exchange something, as tables of idp.toml: the same words, and no secret written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from idp_middleware import load_config, sources
from idp_middleware.errors import ConfigurationError
from idp_middleware.testing import signing_key

HEAD = """
[authenticator]
type = "jwt"
issuer = "https://sso.acme.example/realms/acme"
audience = "gateway"
"""
TABLES = {
    "auth0-token-vault": (
        sources.Auth0TokenVault,
        'domain = "acme.eu.auth0.com"\nclient_id = "gateway"\nclient_secret = "${SECRET}"',
    ),
    "keycloak-broker": (
        sources.KeycloakBroker,
        'realm_url = "https://sso.acme.example/realms/acme"\napi = "v2"\nclient_id = "gateway"\n'
        'client_secret = "${SECRET}"\nclient_auth = "basic"',
    ),
    "token-exchange": (
        sources.TokenExchange,
        'token_url = "https://sso.acme.example/token"\nclient_id = "gateway"\nprivate_key = "${KEY}"\nkey_id = "2027"\n'
        'issuer = "https://sso.acme.example"\naudience = ["orders", "billing"]\nresource = "https://orders.example"\n'
        "timeout = { read = 3 }\nallow_insecure = true",
    ),
    "on-behalf-of": (
        sources.OnBehalfOf,
        'tenant = "acme.example"\nclient_id = "gateway"\nclient_secret = "${SECRET}"\n'
        'scope = "https://graph.microsoft.com/.default"',
    ),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "s3cret-of-the-client")
    monkeypatch.setenv("KEY", signing_key("ES256").private_pem)
    monkeypatch.chdir(tmp_path)


def load(kind: str, table: str) -> object:
    route = '[routes.api]\nupstream = "https://api.example.com"\nsource = "one"\nconnection = "github"\n'
    Path("idp.toml").write_text(f'{HEAD}[sources.one]\ntype = "{kind}"\n{table}\n{route}')
    return load_config()["routes"]["api"].source


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_becomes_the_source(kind: str) -> None:
    """With every argument that can be written down."""
    expected, table = TABLES[kind]
    assert type(load(kind, table)) is expected


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("variable", "key"), [("SECRET", "client_secret"), ("KEY", "private_key")])
def test_a_secret_is_not_written_down(kind: str, variable: str, key: str) -> None:
    """Not even the one that a file would hold just as well."""
    _, table = TABLES[kind]
    if f"${{{variable}}}" in table:
        with pytest.raises(ConfigurationError) as caught:
            load(kind, table.replace(f"${{{variable}}}", "written-down"))
        assert caught.value.key == key
        assert "written-down" not in str(caught.value)


def test_a_mistake_is_told_by_table_and_key() -> None:
    """Those that the source itself finds, too; and nothing of the key."""
    _, table = TABLES["token-exchange"]
    with pytest.raises(ConfigurationError) as caught:
        load("token-exchange", table.replace("${KEY}", "${SECRET}"))
    assert (caught.value.table, caught.value.key) == ("sources.one", "private_key")
    assert "s3cret" not in str(caught.value)
