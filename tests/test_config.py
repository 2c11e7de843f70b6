"""`idp.toml`: what it becomes, and every mistake in one line that says where it is."""

from __future__ import annotations

import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from idp_middleware import IdPMiddleware, JWTAuthenticator, ProxyRoute, load_config, sources
from idp_middleware._config_file import SECRETS
from idp_middleware._config_types import vocabulary
from idp_middleware.config import AUTHENTICATORS, SOURCES
from idp_middleware.errors import ConfigurationError

AUTHENTICATOR = """
[authenticator]
type = "jwt"
issuer = "https://acme.eu.auth0.com/"
audience = "https://api.acme.example"
"""
SOURCE = """
[sources.auth0]
type = "auth0-management"
domain = "acme.eu.auth0.com"
client_id = "${AUTH0_CLIENT_ID}"
client_secret = "${AUTH0_CLIENT_SECRET}"
"""
ROUTE = """
[routes.github]
provider = "github"
source = "auth0"
connection = "github"
"""
FILE = AUTHENTICATOR + SOURCE + ROUTE
SECRET = "s3cr3t-of-the-client"
EXAMPLE = Path(__file__).parent.parent / "examples" / "idp.toml"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTH0_CLIENT_ID", "the-client")
    monkeypatch.setenv("AUTH0_CLIENT_SECRET", SECRET)
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)


def load(text: str | bytes) -> dict[str, Any]:
    Path("idp.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config("idp.toml")


def route(text: str = "", name: str = "github") -> ProxyRoute:
    loaded = load(FILE + text)["routes"][name]
    assert isinstance(loaded, ProxyRoute)
    return loaded


def mistake(text: str | bytes) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    line = str(caught.value)
    assert "\n" not in line
    # Nor in what a traceback would show besides it.
    assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(f"{text!r}", "")
    return line


def test_a_file_becomes_the_arguments_of_the_middleware() -> None:
    """The point of it: the same vocabulary, so that nothing is left to translate."""
    arguments = load(FILE)
    assert set(arguments) == {"prefix", "authenticator", "routes", "cache", "observers", "metrics"}
    assert arguments["prefix"] == "/idp"
    assert isinstance(arguments["authenticator"], JWTAuthenticator)
    assert isinstance(arguments["routes"]["github"].source, sources.Auth0Management)
    assert arguments["cache"] is None
    IdPMiddleware(None, **arguments)


def test_the_file_of_the_examples_loads() -> None:
    """What people start from has to work as it stands."""
    arguments = load_config(EXAMPLE)
    loaded = arguments["routes"]["github"]
    assert loaded.methods == {"GET", "POST"}
    assert loaded.paths == ("/user", "/user/**", "/repos/**")
    assert loaded.timeout.connect == 5.0
    assert loaded.max_body == 10 * 2**20


def test_the_path_may_be_left_out() -> None:
    """idp.toml in the working directory is what everything else looks for too."""
    load(FILE)
    assert load_config()["prefix"] == "/idp"


def test_every_argument_of_a_route_is_a_key() -> None:
    """A key that the file lacks would send people back to Python for one option."""
    loaded = route(
        """
        upstream = "https://github.acme.example/api/v3"
        methods = ["GET"]
        scopes = ["read:github", "more"]
        paths = ["/user"]
        headers = { X-Api-Key = "${AUTH0_CLIENT_ID}" }
        default_headers = { Accept = "application/json" }
        timeout = { read = 5 }
        max_body = 10
        allow_set_cookie = true
        allow_insecure = true
        """
    )
    assert loaded.upstream == "https://github.acme.example/api/v3"
    assert loaded.connection == "github"
    assert (loaded.methods, loaded.scopes, loaded.paths) == ({"GET"}, {"read:github", "more"}, ("/user",))
    assert loaded.fixed_headers == ((b"x-api-key", b"the-client"),)
    assert (b"accept", b"application/json") in loaded.fallback_headers
    assert (loaded.timeout.read, loaded.timeout.connect) == (5, 5.0)
    assert (loaded.max_body, loaded.allow_set_cookie, loaded.allow_insecure) == (10, True, True)


def test_every_type_of_source_can_be_named() -> None:
    """Each is reached by the name that the documentation gives."""
    arguments = load(
        FILE
        + """
        [sources.intranet]
        type = "client-credentials"
        token_url = "https://login.acme.example/token"
        client_id = "gateway"
        client_secret = "${AUTH0_CLIENT_SECRET}"
        [sources.fixed]
        type = "static"
        value = "${AUTH0_CLIENT_SECRET}"
        [sources.same]
        type = "pass-through"
        [routes.intranet]
        upstream = "https://intranet.acme.example"
        source = "intranet"
        [routes.fixed]
        upstream = "https://fixed.acme.example"
        source = "fixed"
        [routes."v1.0"]
        upstream = "https://same.acme.example"
        source = "same"
        """
    )
    kinds = {name: type(loaded.source) for name, loaded in arguments["routes"].items()}
    assert kinds == {
        "github": sources.Auth0Management,
        "intranet": sources.ClientCredentials,
        "fixed": sources.Static,
        "v1.0": sources.PassThrough,
    }


def test_a_list_is_taken_where_python_takes_one_or_several() -> None:
    """`audience` is a string or a list in Python, so it is either here."""
    several = FILE.replace('audience = "https://api.acme.example"', 'audience = ["a", "b"]\nleeway = 5')
    assert "['a', 'b']" in repr(load(several)["authenticator"])


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("0", 0),
        ("1048576", 1048576),
        ('"512B"', 512),
        ('"1KB"', 1000),
        ('"1KiB"', 1024),
        ('"1 MB"', 10**6),
        ('"10MiB"', 10 * 2**20),
        ('"2GB"', 2 * 10**9),
        ('"2GiB"', 2 * 2**30),
        ('"${LIMIT}"', 2**20),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(written: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MB and 1 MiB differ by 5 %; which is which is not up to us."""
    monkeypatch.setenv("LIMIT", "1MiB")
    assert route(f"max_body = {written}").max_body == size


def test_variables_are_replaced_inside_of_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name that differs by environment is one variable, not a whole URL in one."""
    monkeypatch.setenv("STAGE", "test")
    loaded = route('upstream = "https://${STAGE}.acme.example/$${x}/$x"\n'.replace("/$${x}/$x", "/v1"))
    assert loaded.upstream == "https://test.acme.example/v1"


def test_a_doubled_dollar_is_a_plain_one() -> None:
    """There has to be a way to write what looks like a variable."""
    assert route('headers = { X-Template = "$${UNSET} $5" }').fixed_headers == ((b"x-template", b"${UNSET} $5"),)


def test_all_variables_that_are_missing_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sets one after the other runs it as often as there are variables."""
    monkeypatch.delenv("AUTH0_CLIENT_ID", raising=False)
    monkeypatch.delenv("AUTH0_CLIENT_SECRET", raising=False)
    text = FILE + 'headers = { X = ["${UNSET}", "$${TEXT}", "${AUTH0_CLIENT_ID}"] }'
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    assert "variable AUTH0_CLIENT_ID is not set" in str(caught.value)
    assert caught.value.message.endswith("set it where this runs, and also AUTH0_CLIENT_SECRET, UNSET")


def test_a_byte_order_mark_is_no_mistake() -> None:
    """Editors on Windows write one."""
    assert load(b"\xef\xbb\xbf" + FILE.encode().replace(b"\n", b"\r\n"))["prefix"] == "/idp"


def test_a_cache_table_without_keys_is_a_cache_in_process() -> None:
    """The example has the table with every key commented out."""
    assert load(FILE + "[cache]\n")["cache"] is None


async def test_a_cache_table_makes_a_shared_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and a password in the URL come from the environment, as every secret does."""
    monkeypatch.setenv("IDP_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
    cache = load(
        FILE
        + """
        [cache]
        url = "redis://user:${AUTH0_CLIENT_SECRET}@127.0.0.1:6379/0"
        encryption_keys = ["${IDP_KEY}"]
        """
    )["cache"]
    assert cache is not None
    await cache.aclose()


def test_a_source_that_no_route_uses_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It can do no harm, and a route commented out for an hour should not break the start."""
    with caplog.at_level(logging.WARNING):
        load(FILE + '[sources.spare]\ntype = "pass-through"\n')
    assert [record.getMessage() for record in caplog.records] == [
        "idp.toml: [sources.spare]: no route uses it (idp-middleware explain sources)"
    ]


def test_http_is_for_loopback_or_with_permission() -> None:
    """The permission is written down where the risk is."""
    assert route('upstream = "http://127.0.0.1:9200"').upstream == "http://127.0.0.1:9200"
    assert route('upstream = "http://api.acme.example"\nallow_insecure = true').allow_insecure


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("", "idp.toml: [authenticator]: is missing", id="empty file"),
        pytest.param(
            AUTHENTICATOR,
            'idp.toml: has no [routes.NAME], such as [routes.github] with provider = "github"',
            id="no routes",
        ),
        pytest.param(
            FILE.replace("[authenticator]", "[authenticater]"),
            "idp.toml: authenticater: there is no such table; did you mean 'authenticator'?",
            id="misspelt table",
        ),
        pytest.param(
            "prefx = '/x'" + FILE, "idp.toml: prefx: there is no such key; did you mean 'prefix'?", id="misspelt key"
        ),
        pytest.param(
            "zzz = 1" + FILE,
            "idp.toml: zzz: there is no such key; there is access_log, audit_log, authenticator, cache, metrics, ",
            id="unknown key with no likeness",
        ),
        pytest.param(
            FILE + 'conection = "github"',
            "idp.toml: [routes.github]: conection: there is no such key; did you mean 'connection'?",
            id="misspelt key of a route",
        ),
        pytest.param(
            FILE + 'token_source = "x"',
            "idp.toml: [routes.github]: token_source: there is no such key; did you mean 'source'?",
            id="an argument that a file cannot give",
        ),
        pytest.param(
            FILE + 'name = "x"', "idp.toml: [routes.github]: name: there is no such key; there is", id="a route's name"
        ),
        pytest.param(
            FILE + "timeout = { conect = 1 }",
            "idp.toml: [routes.github.timeout]: conect: there is no such key; did you mean 'connect'?",
            id="misspelt key of a nested table",
        ),
        pytest.param(
            FILE.replace('issuer = "https://acme.eu.auth0.com/"', ""),
            "idp.toml: [authenticator]: issuer: is missing",
            id="missing key",
        ),
        pytest.param(
            FILE.replace('type = "jwt"', ""),
            "idp.toml: [authenticator]: type: is missing; it names a type (introspection, jwt, session)",
            id="missing type",
        ),
        pytest.param(
            FILE.replace('type = "jwt"', 'type = "jvt"'),
            "idp.toml: [authenticator]: type: there is no type 'jvt'; did you mean 'jwt'?",
            id="unknown authenticator",
        ),
        pytest.param(
            FILE.replace('"auth0-management"', '"auth0"'),
            "idp.toml: [sources.auth0]: type: there is no type 'auth0'; there is auth0-management, auth0-token-vault, ",
            id="unknown type of source",
        ),
        pytest.param(
            FILE.replace('source = "auth0"', 'source = "auth1"'),
            "idp.toml: [routes.github]: source: there is no [sources.NAME] table 'auth1'; did you mean 'auth0'?",
            id="unknown source",
        ),
        pytest.param(
            AUTHENTICATOR + ROUTE,
            "idp.toml: [routes.github]: source: there is no [sources.NAME] table 'auth0'",
            id="no sources at all",
        ),
        pytest.param(
            FILE.replace('source = "auth0"', ""),
            "idp.toml: [routes.github]: source: is missing; it names a [sources.NAME] table (auth0)",
            id="route without a source",
        ),
        pytest.param(
            FILE.replace('provider = "github"', 'provider = "githb"'),
            "idp.toml: [routes.github]: provider: there is no provider 'githb'; did you mean 'github'?",
            id="unknown provider",
        ),
        pytest.param(
            FILE.replace('provider = "github"', ""),
            'idp.toml: [routes.github]: needs provider = "NAME" (a preset) or upstream = "https://HOST"',
            id="neither provider nor upstream",
        ),
        pytest.param(
            FILE + 'headers = { X = "${UNSET}" }',
            "idp.toml: [routes.github]: headers: the environment variable UNSET is not set",
            id="unset variable",
        ),
        pytest.param(
            FILE + 'headers = { X = "${EMPTY}" }',
            "idp.toml: [routes.github]: headers: the environment variable EMPTY is empty",
            id="empty variable",
        ),
        pytest.param(
            FILE + 'headers = { X = "${UN SET}" }',
            'idp.toml: [routes.github]: headers: "${" begins a variable, as in "${NAME}"; for the plain characters '
            'write "$${"',
            id="no variable's name",
        ),
        pytest.param(
            FILE + 'headers = { X = "${UNSET" }',
            'idp.toml: [routes.github]: headers: "${" begins a variable',
            id="variable that does not end",
        ),
        pytest.param(
            FILE + 'upstream = "http://api.acme.example"',
            "idp.toml: [routes.github]: upstream: must be https:// (http:// is for loopback, or with allow_insecure)",
            id="http upstream",
        ),
        pytest.param(
            FILE.replace('issuer = "https:', 'issuer = "http:'),
            "idp.toml: [authenticator]: issuer: must be https://",
            id="http issuer",
        ),
        pytest.param(
            FILE.replace('domain = "', 'base_url = "http://'),
            "idp.toml: [sources.auth0]: base_url: must be https://",
            id="http source",
        ),
        pytest.param(
            FILE.replace('connection = "github"', ""),
            "idp.toml: [routes.github]: connection: Auth0Management needs to know which connection",
            id="route without the connection its source needs",
        ),
        pytest.param(
            FILE + "methods = 'GET'",
            "idp.toml: [routes.github]: methods: must be a list of strings, not a string",
            id="string for a list",
        ),
        pytest.param(
            FILE + "methods = ['GET', 1]",
            "idp.toml: [routes.github]: methods: must be a list of strings, not a list with an integer",
            id="mixed list",
        ),
        pytest.param(
            FILE + "methods = ['get']",
            "idp.toml: [routes.github]: methods: 'get' is not a request method (they are upper case)",
            id="what the route refuses",
        ),
        pytest.param(
            FILE + "allow_insecure = 'yes'",
            "idp.toml: [routes.github]: allow_insecure: must be true or false, not a string",
            id="string for a boolean",
        ),
        pytest.param(
            FILE + "max_body = true",
            "idp.toml: [routes.github]: max_body: must be an integer, not true or false",
            id="boolean for an integer",
        ),
        pytest.param(
            FILE + "max_body = 1.5",
            "idp.toml: [routes.github]: max_body: must be an integer, not a number",
            id="number for an integer",
        ),
        pytest.param(
            FILE + "max_body = '10 MiBytes'",
            'idp.toml: [routes.github]: max_body: must be a size in bytes, such as 1048576 or "1MiB" (B, KB, MB, GB, '
            "KiB, MiB, GiB)",
            id="unknown unit",
        ),
        pytest.param(
            FILE + "max_body = '10mib'", "idp.toml: [routes.github]: max_body: must be a size", id="unit in lower case"
        ),
        pytest.param(
            FILE + "max_body = '-1B'", "idp.toml: [routes.github]: max_body: must be a size", id="negative size"
        ),
        pytest.param(
            FILE + "timeout = 5",
            "idp.toml: [routes.github]: timeout: must be a table, not an integer",
            id="number for a table",
        ),
        pytest.param(
            FILE + "timeout = { read = '5' }",
            "idp.toml: [routes.github.timeout]: read: must be a number, not a string",
            id="string for a number",
        ),
        pytest.param(
            FILE + "timeout = { read = nan }",
            "idp.toml: [routes.github.timeout]: read: must be a number, not nan",
            id="not a number",
        ),
        pytest.param(
            FILE + "timeout = { read = inf }",
            "idp.toml: [routes.github.timeout]: read: must be a number, not infinity",
            id="endless",
        ),
        pytest.param(
            FILE + "timeout = { read = 0 }",
            "idp.toml: [routes.github]: timeout: read must be more than 0 seconds",
            id="no time at all",
        ),
        pytest.param(
            FILE + "headers = { X = 1 }",
            "idp.toml: [routes.github]: headers: must be a table of strings, not a table with an integer",
            id="table with a number",
        ),
        pytest.param(
            FILE.replace('audience = "https://api.acme.example"', "audience = 2020-01-01"),
            "idp.toml: [authenticator]: audience: must be a string or a list of strings, not a date or time",
            id="date for a string or a list",
        ),
        pytest.param(
            "routes = 5\n" + AUTHENTICATOR + SOURCE,
            "idp.toml: routes: must be a table, [routes], not an integer",
            id="number for the routes",
        ),
        pytest.param(
            AUTHENTICATOR + SOURCE + "[routes]\ngithub = 'x'",
            "idp.toml: [routes]: github: must be a table, [routes.github], not a string",
            id="string for a route",
        ),
        pytest.param(
            AUTHENTICATOR + SOURCE + ROUTE.replace("[routes.github]", '[routes."a/b"]'),
            "idp.toml: [routes]: a/b: a route's name has letters, digits and . _ ~ - only",
            id="a route's name that no path matches",
        ),
        pytest.param(
            FILE + '[routes."v1.0"]\nsource = "auth0"\nx = 1',
            'idp.toml: [routes."v1.0"]: needs provider',
            id="a name in quotes",
        ),
        pytest.param(
            "prefix = 'idp'" + FILE, "idp.toml: prefix: must start with a slash", id="a prefix that matches nothing"
        ),
        pytest.param(
            FILE.replace('"${AUTH0_CLIENT_SECRET}"', f'"{SECRET}"'),
            "idp.toml: [sources.auth0]: client_secret: is a secret, so take it from the environment: write "
            '"${AUTH0_CLIENT_SECRET}" and set that',
            id="a secret in the file",
        ),
        pytest.param(
            FILE.replace('"${AUTH0_CLIENT_SECRET}"', f'"$${{X}}{SECRET}"'),
            "idp.toml: [sources.auth0]: client_secret: is a secret",
            id="a secret that looks like a variable",
        ),
        pytest.param(
            FILE.replace('"${AUTH0_CLIENT_SECRET}"', "['${AUTH0_CLIENT_SECRET}']"),
            "idp.toml: [sources.auth0]: client_secret: must be a string, not a list of strings",
            id="a secret of the wrong type",
        ),
        pytest.param(
            FILE + f"[cache]\nurl = 'redis://:{SECRET}@127.0.0.1'\nencryption_keys = ['${{AUTH0_CLIENT_SECRET}}']",
            'idp.toml: [cache]: url: is a secret, so take it from the environment: write "${CACHE_URL}" and set that',
            id="a password in a URL",
        ),
        pytest.param(
            FILE.replace(
                "[routes.github]",
                '[sources.own]\ntype = "refresh-token"\nstore = "postgresql+asyncpg://u:pa55word@h/db"\n'
                'token_url = "https://a.example/t"\nclient_id = "id"\nclient_secret = "${AUTH0_CLIENT_SECRET}"\n'
                "\n[routes.github]",
            ),
            "idp.toml: [sources.own]: store: is a secret, so take it from the environment",
            id="a password in a store's URL",
        ),
        pytest.param(
            FILE + f"[cache]\nurl = 'redis://127.0.0.1'\nencryption_keys = ['{SECRET}']",
            "idp.toml: [cache]: encryption_keys: is a secret",
            id="a key in the file",
        ),
        pytest.param(
            FILE + "[cache]\nurl = 'redis://[127.0.0.1'\nencryption_keys = ['${AUTH0_CLIENT_SECRET}']",
            "idp.toml: [cache]: url: is not a valid Redis URL",
            id="no URL",
        ),
        pytest.param(
            FILE + "[cache]\nurl = 'redis://127.0.0.1'\nencryption_keys = ['${AUTH0_CLIENT_SECRET}']",
            "idp.toml: [cache]: encryption_keys: each must be 32 random bytes",
            id="what the cache refuses",
        ),
        pytest.param(
            FILE + "[cache]\nencryption_keys = ['${AUTH0_CLIENT_SECRET}']",
            "idp.toml: [cache]: url: is missing",
            id="keys without a cache",
        ),
        pytest.param(FILE + "x = \n", "idp.toml: line 17: invalid value; text needs quotes around it", id="not TOML"),
        pytest.param(FILE + 'x = """\n', "idp.toml: line 18: unterminated string", id="not TOML up to its end"),
        pytest.param(FILE + ROUTE, "idp.toml: [routes.github]: line 18 has it for the second time", id="a route twice"),
        pytest.param(
            FILE + '\n  source = "b"\n',
            "idp.toml: [routes.github]: source: line 18 has it for the second time",
            id="a key twice",
        ),
        pytest.param(
            "prefix = '/a'\nprefix = '/b'",
            "idp.toml: prefix: line 2 has it for the second time",
            id="a key twice at the top and the end",
        ),
        pytest.param(
            FILE + "timeout = { read = 1, read = 2 }",
            "idp.toml: [routes.github]: timeout: line 17 has it for the second time",
            id="a key twice on one line",
        ),
        pytest.param(
            FILE + "methods = [\n'GET' ]\nmethods = [\n'GET' ]\n",
            "idp.toml: [routes.github]: line 20 has it for the second time",
            id="a key twice, over several lines",
        ),
        pytest.param(b"# \xff", "idp.toml: is not UTF-8 (at byte 2)", id="not UTF-8"),
    ],
)
def test_a_mistake_is_one_line_that_says_where_it_is(
    text: str | bytes, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, table, key and what to do about it: the reader should not need the documentation."""
    monkeypatch.setenv("EMPTY", "")
    assert mistake(text).startswith(line)


@pytest.mark.parametrize("kind", [*AUTHENTICATORS, *SOURCES])
def test_every_secret_has_to_come_from_the_environment(kind: str) -> None:
    """A new type with a secret under a new name must not open a way to write it down."""
    keys = vocabulary({**AUTHENTICATORS, **SOURCES}[kind])
    assert {key for key in keys if re.search("secret|passw|passphrase|private|assertion|refresh_token", key)} <= SECRETS


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """The commonest mistake of all is the wrong directory."""
    for path, message in ((tmp_path / "no.toml", "there is no such file"), (tmp_path, "cannot be read (Is a dir")):
        with pytest.raises(ConfigurationError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{path}: {message}")


def test_no_value_from_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructors quote what they refuse; whether it was a secret only the file knows."""
    monkeypatch.setenv("SECRET_PATH", f"{SECRET}'\"")
    line = mistake(FILE + 'paths = ["/user", "${SECRET_PATH}"]')
    assert "${SECRET_PATH}" in line
    line = mistake(FILE.replace('source = "auth0"', 'source = "${AUTH0_CLIENT_SECRET}"'))
    assert "'${AUTH0_CLIENT_SECRET}'" in line
