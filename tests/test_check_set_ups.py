"""Set-ups that are wrong, as `idp-middleware check` meets them: does it say what is wrong, and what to do next?

Each on real sockets against the local doubles, with the middleware's own clients.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from aiocache import SimpleMemoryCache

from idp_middleware import JWTAuthenticator, TokenCache, _idp_http
from idp_middleware._check import Finding, check
from idp_middleware._engine import _client as engine_client
from idp_middleware._engine._tls import default_ssl_context
from idp_middleware.config import read_config
from idp_middleware.errors import CheckFailed
from idp_middleware.testing import (
    Auth0,
    Entra,
    IntrospectionServer,
    Keycloak,
    ProviderAPI,
    RotatingTokens,
    TokenEndpoint,
    serve,
)
from tests.filed import SECRET, parties
from tests.stack import raw_upstream, read_head

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("IDP_KEY", KEY)


@dataclass
class SetUp:
    """A tenant and an API that are as they should be, and the file for them."""

    auth0: Auth0
    api: ProviderAPI
    idp_url: str
    text: str
    servers: ExitStack
    monkeypatch: pytest.MonkeyPatch
    secrets: list[str] = field(default_factory=lambda: [SECRET])

    def write(self, old: str, new: str) -> None:
        assert old in self.text
        self.text = self.text.replace(old, new)

    def source(self, table: str) -> None:
        """Another source than Auth0's for the route."""
        self.text = re.sub(r"\[sources\.auth0\].*?(?=\n\[routes)", f"[sources.auth0]{table}", self.text, flags=re.S)

    def serve(self, app: Any, **options: Any) -> str:
        return self.servers.enter_context(serve(app, **options)).url

    def findings(self, **options: Any) -> list[Finding]:
        Path("idp.toml").write_text(self.text)
        found = asyncio.run(check(read_config("idp.toml"), **options))
        for secret in self.secrets:
            assert secret not in repr(found)
        return found


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetUp]:
    with parties(date_header=False) as made, ExitStack() as servers:
        yield SetUp(made.auth0, made.api, made.idp_url, made.file(), servers, monkeypatch)


def closed_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def authority_that_nobody_knows(s: SetUp, names: tuple[str, ...] = ("localhost",), **options: Any) -> str:
    ca = trustme.CA()
    certificate = ca.issue_cert(*names, **options)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with certificate.private_key_and_cert_chain_pem.tempfile() as pem:
        url = s.serve(ProviderAPI(), ssl_certfile=pem, ssl_keyfile=pem)
    s.ca = ca  # type: ignore[attr-defined]
    return url.replace("127.0.0.1", "localhost")


def known_authority(s: SetUp, *names: str, **options: Any) -> str:
    """A server whose authority is known to both of our clients."""
    url = authority_that_nobody_knows(s, names, **options)

    def context() -> ssl.SSLContext:
        made = default_ssl_context()
        s.ca.configure_trust(made)  # type: ignore[attr-defined]
        return made

    s.monkeypatch.setattr(_idp_http, "_tls", context)
    s.monkeypatch.setattr(engine_client, "default_ssl_context", context)
    return url


@contextmanager
def silence() -> Iterator[str]:
    """A server that takes connections and says nothing."""

    def listen(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with raw_upstream(listen) as url:
        yield url


# What each breaks, and what has to be said of it: what is wrong, then what to do.


def issuer_without_slash(s: SetUp) -> None:
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{s.idp_url}"')


def not_an_issuer(s: SetUp) -> None:
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{s.idp_url}/no/such/"')


def issuer_is_a_web_page(s: SetUp) -> None:
    s.auth0.respond("/.well-known/openid", headers={"Content-Type": "text/html"}, body="<html>Log in</html>")


def issuer_redirects(s: SetUp) -> None:
    s.auth0.respond("/.well-known/openid", status=302, headers={"Location": "https://login.acme.example/x?y=1"})


def issuer_signs_otherwise(s: SetUp) -> None:
    s.write("audience =", 'algorithms = ["ES256"]\naudience =')


def issuer_without_keys(s: SetUp) -> None:
    s.auth0.respond("/.well-known/jwks.json", body={"keys": []})


def issuer_in_trouble(s: SetUp) -> None:
    s.auth0.fail("/.well-known/openid", status=503)


def no_json(s: SetUp) -> None:
    s.auth0.respond("/.well-known/openid", body="here you are")


def no_issuer_named(s: SetUp) -> None:
    s.auth0.respond("/.well-known/openid", body={"jwks_uri": "https://acme.example/keys"})


def bad_jwks_uri(s: SetUp) -> None:
    s.auth0.respond("/.well-known/openid", body={"issuer": f"{s.idp_url}/", "jwks_uri": "http://keys.acme.example"})


def wrong_jwks_url(s: SetUp) -> None:
    s.write("audience =", f'jwks_url = "{s.idp_url}/keys"\naudience =')


def clock_of(seconds: float) -> Callable[[SetUp], None]:
    def break_it(s: SetUp) -> None:
        date = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")
        document = s.auth0.metadata()
        s.auth0.respond(
            "/.well-known/openid", body=document, headers={"Date": date, "Content-Type": "application/json"}
        )

    return break_it


def unknown_host(s: SetUp) -> None:
    s.write(f'issuer = "{s.idp_url}/"', 'issuer = "https://no.such.host.invalid/"')


def unknown_authority(s: SetUp) -> None:
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{authority_that_nobody_knows(s)}/"')


def expired_certificate(s: SetUp) -> None:
    past = datetime.now(UTC) - timedelta(days=30)
    url = known_authority(s, "localhost", not_before=past, not_after=past + timedelta(days=1))
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{url}/"')


def future_certificate(s: SetUp) -> None:
    url = known_authority(s, "localhost", not_before=datetime.now(UTC) + timedelta(days=30))
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{url}/"')


def certificate_of_another(s: SetUp) -> None:
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{known_authority(s, "other.example")}/"')


def plain_http_on_the_port_of_tls(s: SetUp) -> None:
    s.write(f'issuer = "{s.idp_url}/"', f'issuer = "{s.idp_url.replace("http:", "https:")}/"')


def client_unknown(s: SetUp) -> None:
    s.monkeypatch.setenv("SECRET", "an-old-secret")
    s.secrets.append("an-old-secret")


def client_without_grant(s: SetUp) -> None:
    s.auth0.add_client("gateway", SECRET, scopes=[])


def client_without_tokens_scope(s: SetUp) -> None:
    s.auth0.add_client("gateway", SECRET, scopes=["read:users"])


def wrong_management_audience(s: SetUp) -> None:
    s.write("client_id", 'management_audience = "https://login.acme.example/api/v2/"\nclient_id')


def management_api_refuses(s: SetUp) -> None:
    s.auth0.fail("/api/v2/", status=401)


def source_refused(s: SetUp) -> None:
    s.write(f'base_url = "{s.idp_url}"', f'base_url = "{closed_port()}"')


def source_silent(s: SetUp) -> None:
    url = s.servers.enter_context(silence())
    s.source(f'''
        type = "client-credentials"
        token_url = "{url}/token"
        client_id = "gateway"
        client_secret = "${{SECRET}}"
        timeout = {{ read = 0.3 }}''')


def source_hangs_up(s: SetUp) -> None:
    url = s.servers.enter_context(raw_upstream(lambda connection: read_head(connection) and None))
    s.write(f'base_url = "{s.idp_url}"', f'base_url = "{url}"')


def token_url_is_a_page(s: SetUp) -> None:
    s.source(f'''
        type = "client-credentials"
        token_url = "{s.idp_url}/page"
        client_id = "gateway"
        client_secret = "${{SECRET}}"''')
    s.auth0.respond("/page", body="<html>", headers={"Content-Type": "text/html"})


def machine_for_no_such_api(s: SetUp) -> None:
    s.source(f'''
        type = "client-credentials"
        token_url = "{s.idp_url}/oauth/token"
        client_id = "gateway"
        client_secret = "${{SECRET}}"
        audience = "https://nobody.example"''')


def upstream_refused(s: SetUp) -> None:
    s.text = re.sub("upstream = .*", f'upstream = "{closed_port()}"', s.text)


def upstream_of_unknown_authority(s: SetUp) -> None:
    s.text = re.sub("upstream = .*", f'upstream = "{authority_that_nobody_knows(s)}"', s.text)


def upstream_silent(s: SetUp) -> None:
    url = s.servers.enter_context(silence())
    s.text = re.sub("upstream = .*", f'upstream = "{url}"\ntimeout = {{ read = 0.3 }}', s.text)


def upstream_has_moved(s: SetUp) -> None:
    s.api.respond("/", status=301, headers={"Location": "https://api2.acme.example/v2?key=1"})


def upstream_is_a_web_site(s: SetUp) -> None:
    s.api.respond("/", headers={"Content-Type": "text/html"}, body="<html>Welcome</html>")


def upstream_in_trouble(s: SetUp) -> None:
    s.api.respond("/", status=503)


def cache_refused(s: SetUp) -> None:
    url = closed_port().replace("http:", "redis:")
    s.text += f'[cache]\nurl = "{url}/0"\nencryption_keys = ["${{IDP_KEY}}"]\n'


A, S, R, C = "authenticator", "source auth0", "route github", "cache"

TABLE = [
    # breaks, which finding, status, what is wrong, what to do
    (
        issuer_without_slash,
        A,
        "is the document of another issuer, http://127.0.0.1",
        r'write issuer = "http.*/".*slash',
    ),
    (not_an_issuer, A, r"/no/such/.well-known/openid-configuration does not exist \(status 404\)", "as the iss of its"),
    (issuer_is_a_web_page, A, "openid-configuration is a web page", "check the URL"),
    (issuer_redirects, A, "redirects to https://login.acme.example/x, and", "write the URL where it is now"),
    (issuer_signs_otherwise, A, "has keys, but none for the algorithms", r'write algorithms = \[.*"RS256"'),
    (issuer_without_keys, A, "has no key that could verify a token", "check that this is the issuer's key set"),
    (issuer_in_trouble, A, "answers with status 503", "ask whoever runs that server"),
    (no_json, A, "status 200 without a JSON object", "check that URL"),
    (no_issuer_named, A, "names no issuer", "check issuer"),
    (bad_jwks_uri, A, "jwks_uri", "give jwks_url"),
    (wrong_jwks_url, A, r"/keys does not exist \(status 404\)", "check jwks_url"),
    (clock_of(-300), A, r"its clock is (299|30[0-2]) s behind this machine's", "set this machine's clock"),
    (clock_of(300), A, r"its clock is (29[89]|30[01]) s ahead of this machine's", "set this machine's clock"),
    (unknown_host, A, "no.such.host.invalid: the host name is not known", "check its spelling"),
    (unknown_authority, A, "localhost:.*an authority that is not known here", "set SSL_CERT_FILE to its"),
    (expired_certificate, A, "its certificate has expired", "renew it"),
    (future_certificate, A, "its certificate is not valid yet", "set this machine's clock"),
    (certificate_of_another, A, "its certificate is for another host name", "write the name that the certificate has"),
    (plain_http_on_the_port_of_tls, A, "no TLS comes about", "the one for https"),
    (client_unknown, S, "status 401, access_denied", "check client_id and its secret"),
    (client_without_grant, S, "not authorized to access", "authorize the application for the Auth0 Management API"),
    (client_without_tokens_scope, S, "but not for read:user_idp_tokens", "grant that to the application"),
    (wrong_management_audience, S, "Service not enabled", "check management_audience"),
    (management_api_refuses, S, "user look-up: status 401$", "check management_audience"),
    (source_refused, S, r"nothing listens there \(connection refused\)", "check the host and the port"),
    (source_silent, S, "does not answer in time", r"give it more time \(timeout\)"),
    (source_hangs_up, S, "closes the connection without an answer", "check that it speaks HTTP there"),
    (token_url_is_a_page, S, "/page: status 200 without a JSON object", "what answers there is a web page"),
    (machine_for_no_such_api, S, "Service not enabled within domain", "check audience"),
    (upstream_refused, R, "nothing listens there", "check the host and the port"),
    (upstream_of_unknown_authority, R, "an authority that is not known here", "SSL_CERT_FILE"),
    (upstream_silent, R, "did not answer in time", r"give the route more time \(timeout\)"),
    (upstream_has_moved, R, r"redirects to https://api2.acme.example/v2 \(301\)", "write that as upstream"),
    (upstream_is_a_web_site, R, "answers with a web page", "check upstream"),
    (upstream_in_trouble, R, r"error of its own \(503\)", "try again later"),
    (cache_refused, C, "nothing listens there", "check the host and the port"),
]
WARNINGS = {upstream_has_moved, upstream_is_a_web_site, upstream_in_trouble}


def named(row: Any) -> str:
    return getattr(row[0], "__name__", "clock")


@pytest.mark.parametrize(("breaks", "what", "wrong", "todo"), [pytest.param(*row, id=named(row)) for row in TABLE])
def test_what_is_wrong_and_what_to_do_next(
    breaks: Callable[[SetUp], None], what: str, wrong: str, todo: str, set_up: SetUp
) -> None:
    """One thing is wrong, and one finding says so; all else is reached all the same."""
    breaks(set_up)
    bad = [finding for finding in set_up.findings() if finding.status != "ok"]
    assert [finding.what for finding in bad] == [what]
    assert bad[0].status == ("warning" if breaks in WARNINGS else "failed")
    assert re.search(wrong, bad[0].detail), bad[0].detail
    assert re.search(todo, bad[0].todo), bad[0].todo


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {}
"""Sources besides Auth0's: what answers, and the table."""


def other(name: str, table: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        OTHERS[name] = make, table
        return make

    return add


CLIENT = 'client_id = "gateway"\nclient_secret = "${SECRET}"'


@other("auth0-token-vault", f'base_url = "{{url}}"\n{CLIENT}')
def vault() -> Any:
    auth0 = Auth0()
    auth0.add_client("gateway", SECRET, vault=True, api="https://api.acme.example")
    return auth0


@other("token-exchange", f'token_url = "{{url}}/token"\n{CLIENT}')
def exchange() -> Any:
    server = TokenEndpoint()
    server.add_client("gateway", SECRET)
    return server


@other(
    "on-behalf-of", f'base_url = "{{url}}"\ntenant = "acme"\nscope = "https://graph.microsoft.com/.default"\n{CLIENT}'
)
def entra() -> Any:
    server = Entra(tenant="acme")
    server.add_client("gateway", SECRET)
    return server


@other("keycloak-broker", f'realm_url = "{{url}}/realms/acme"\napi = "exchange"\n{CLIENT}')
def keycloak() -> Any:
    server = Keycloak()
    server.add_client("gateway", SECRET, may_exchange=True)
    return server


@other(
    "refresh-token",
    f'token_url = "{{url}}/token"\nstore = "tokens.db"\nencryption_keys = ["${{{{IDP_KEY}}}}"]\n{CLIENT}',
)
def refresh() -> Any:
    return RotatingTokens(client_id="gateway", client_secret=SECRET)


@pytest.mark.parametrize("kind", OTHERS)
def test_each_source_tells_a_good_client_from_a_bad_one(kind: str, set_up: SetUp) -> None:
    """By a grant that is made up: no user's token is asked for, sent or spent."""
    make, table = OTHERS[kind]
    server = make()
    set_up.source(
        f'\ntype = "{kind}"\n' + table.replace("{url}", set_up.serve(server)).replace("{{", "{").replace("}}", "}")
    )
    good = next(finding for finding in set_up.findings() if finding.part == "source")
    assert (good.status, good.todo) == ("ok", "")
    assert good.detail.endswith("takes the client gateway")
    client_unknown(set_up)
    bad = next(finding for finding in set_up.findings() if finding.part == "source")
    assert bad.status == "failed"
    assert "client" in bad.todo


def test_a_realm_by_itself_is_looked_for_too(set_up: SetUp) -> None:
    """Without a client there is nothing else to find out before a caller comes."""
    url = set_up.serve(Keycloak())
    set_up.source(f'''\ntype = "keycloak-broker"\nrealm_url = "{url}/realms/acme"''')
    assert set_up.findings()[1].detail == f"{url}/realms/acme is a realm"
    set_up.write("/realms/acme", "/realms/other")
    (_, bad, *_) = set_up.findings()
    assert ("does not exist" in bad.detail, "check realm_url" in bad.todo) == (True, True)


def test_a_client_of_the_second_broker_api_is_told_from_a_stranger(set_up: SetUp) -> None:
    """That API is asked by alias; the one that is made up is no fault of the client's."""
    server = Keycloak()
    server.add_client("gateway", SECRET, external_tokens=["github"])
    url = set_up.serve(server)
    set_up.source(f'''\ntype = "keycloak-broker"\nrealm_url = "{url}/realms/acme"\napi = "v2"\n{CLIENT}''')
    assert set_up.findings()[1].ok
    client_unknown(set_up)
    assert "check the client's credentials" in set_up.findings()[1].todo


def test_a_connection_that_is_refreshed_at_its_provider_is_tried_there(set_up: SetUp) -> None:
    """Auth0 may be well while the client at the provider is not."""
    url = set_up.serve(RotatingTokens(client_id="at-google", client_secret=SECRET, rotates=False))
    set_up.write(
        "[routes.github]",
        f'''[[sources.auth0.refresh]]
connection = "google-oauth2"
token_url = "{url}/token"
client_id = "at-google"
client_secret = "${{SECRET}}"
[routes.github]''',
    )
    assert set_up.findings()[1].ok
    set_up.write('"at-google"', '"somebody"')
    bad = set_up.findings()[1]
    assert (bad.status, "invalid_client" in bad.detail, "under refresh" in bad.todo) == ("failed", True, True)


@pytest.mark.parametrize("breaks", ["silent", "refused", "store"])
def test_a_refresh_that_cannot_come_about_is_told_apart(breaks: str, set_up: SetUp) -> None:
    """A made-up refresh token that may have been spent is nobody's."""
    url = set_up.servers.enter_context(silence()) if breaks == "silent" else closed_port()
    table = OTHERS["refresh-token"][1].replace("{url}", url).replace("{{", "{").replace("}}", "}")
    set_up.source(f'\ntype = "refresh-token"\ntimeout = {{ read = 0.3 }}\n{table}')
    if breaks == "store":
        Path("tokens.db").write_bytes(b"no database at all" * 100)
    (bad,) = [finding for finding in set_up.findings() if finding.part == "source"]
    said = {"silent": "does not answer in time", "refused": "nothing listens there", "store": "the token store: "}
    assert said[breaks] in bad.detail
    assert bad.todo


@pytest.mark.parametrize(
    ("answer", "wrong", "todo"),
    [
        ({"status": 401, "body": {"error": "invalid_client"}}, "refuses our client", "lets this client introspect"),
        ({"body": {"active": True, "sub": "anybody"}}, "does not say of a token", "do not let anybody in"),
        ({"status": 302, "headers": {"Location": "/login"}}, "redirects", "write the URL where it is now"),
        ({"status": 404}, "status 404", "check introspection_url"),
        ({"body": {"active": False}, "headers": {"Date": "Mon, 02 Jan 2006 15:04:05 GMT"}}, "its clock", "set this"),
        ({"body": {"active": False}, "headers": {"Date": "yesterday"}}, "answers about tokens", ""),
    ],
)
def test_a_server_that_answers_about_tokens(answer: dict[str, Any], wrong: str, todo: str, set_up: SetUp) -> None:
    """Also where it takes the question and still can't be trusted with who may come in."""
    server = IntrospectionServer()
    url = set_up.serve(server, date_header=False)
    server.respond("/introspect", **answer)
    table = f'[authenticator]\ntype = "introspection"\nintrospection_url = "{url}/introspect"\n{CLIENT}\n'
    set_up.text = table + set_up.text[set_up.text.index("[sources") :]
    finding = set_up.findings()[0]
    assert wrong in finding.detail
    assert todo in finding.todo


@pytest.mark.parametrize(
    ("token", "wrong", "todo"),
    [
        ({}, "auth0|alice is let in, with the scopes none", ""),
        ({"audience": "https://other.example"}, "for another audience", "it is for 'https://other.example'"),
        ({"iss": "https://other.example/"}, "another issuer", "it is from 'https://other.example/'"),
        ({"expires_in": -60}, "expired", "get a new one"),
        ({"nbf": 9999999999}, "not valid yet", "set this machine's clock"),
        ({"algorithm": "ES256"}, "the algorithm is not an allowed one", "write algorithms = ['ES256']"),
        ({"headers": {"typ": "logout+jwt"}}, "not that of an access token", "not the ID token"),
        ({"at_hash": "x"}, "not a plain access token", "not the ID token"),
        ({"sub": None}, "no usable subject", "get a new access token"),
        (None, "not a signed JWT", "this is no JWT"),
    ],
)
def test_a_callers_token_says_why_it_is_refused(
    token: dict[str, Any] | None, wrong: str, todo: str, set_up: SetUp
) -> None:
    """A wrong audience is the commonest mistake of all, and no server that is reached can tell of it."""
    options = {"audience": "https://api.acme.example", **(token or {})}
    given = "no-token-of-anybody" if token is None else set_up.auth0.issue_token("auth0|alice", **options)
    (finding,) = [finding for finding in set_up.findings(token=given) if finding.part == "caller"]
    assert wrong in finding.detail
    assert todo in finding.todo
    assert given not in repr(finding)


def test_a_token_without_the_scopes_of_a_route(set_up: SetUp) -> None:
    """Let in, and of no use there."""
    set_up.write('source = "auth0"', 'source = "auth0"\nscopes = ["read:github"]')
    given = set_up.auth0.issue_token("auth0|alice", audience="https://api.acme.example", scope="openid")
    (finding,) = [finding for finding in set_up.findings(token=given) if finding.part == "caller"]
    assert finding.detail == "auth0|alice is let in, but not on github: the token's scopes are openid"
    assert "ask for read:github" in finding.todo


@pytest.mark.parametrize("breaks", ["AuthenticationError", "other", "lost"])
async def test_a_shared_cache_says_what_it_is_that_fails(breaks: str) -> None:
    """Of what Redis says only the kind is told: the rest may name hosts and users."""

    class Broken(SimpleMemoryCache):
        async def set(self, *args: Any, **kwargs: Any) -> Any:
            if breaks == "lost":
                return None
            kind = type(breaks if breaks == "AuthenticationError" else "ResponseError", (Exception,), {})
            raise kind("the-password")

    with pytest.raises(CheckFailed) as caught:
        await TokenCache(Broken()).check()
    assert "the-password" not in str(caught.value)
    said = {"other": "host, port and database", "lost": "read-only replica"}
    assert said.get(breaks, "user name and password") in caught.value.todo


def test_what_has_no_check_has_nothing_to_reach(set_up: SetUp) -> None:
    """Functions and sources of one's own work without."""
    set_up.source('\ntype = "static"\nvalue = "${SECRET}"')
    assert set_up.findings()[1].detail == "nothing to reach"


class Failing(httpx.AsyncBaseTransport):
    """A network on which everything fails in one way."""

    def __init__(self, error: Exception, behind: BaseException) -> None:
        error.__cause__ = behind
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error


@pytest.mark.parametrize(
    ("error", "behind", "said"),
    [
        (httpx.ConnectTimeout("x"), TimeoutError(), "no connection in time"),
        (httpx.ConnectError("x"), OSError(101, "Network is unreachable"), "cannot be reached"),
        (
            httpx.ConnectError("x"),
            ExceptionGroup("x", [OSError(1), ConnectionRefusedError()]),
            "nothing listens there (connection refused)",
        ),
        (httpx.ConnectError("x"), ValueError(), "not reachable (ConnectError)"),
    ],
)
async def test_what_failed_is_found_behind_what_was_raised(error: Exception, behind: BaseException, said: str) -> None:
    """Several addresses are tried at once, and a library or two is between them and us."""
    transport = Failing(error, behind)
    authenticator = JWTAuthenticator(issuer="https://acme.example/", audience="x", transport=transport)
    with pytest.raises(CheckFailed) as caught:
        await authenticator.check()
    assert str(caught.value) == f"acme.example: {said}"
    assert caught.value.todo
