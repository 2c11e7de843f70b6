"""Users with a server each: where a token says to go is gone to only where the route allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from idp_middleware import ProxyRoute, Token, providers
from idp_middleware._check import check
from idp_middleware.config import read_config
from idp_middleware.errors import ConfigurationError, TokenSourceFailed
from tests.providers.conftest import User, problem
from tests.providers.facts import FACTS, Said
from tests.stack import running

salesforce = pytest.mark.parametrize("user", ["salesforce"], indirect=True)


async def nobody(caller: Any, route: Any) -> Any:
    raise AssertionError("no token is asked for here")


def at(url: Any, route: ProxyRoute | None = None) -> ProxyRoute:
    return (route or providers.salesforce(token_source=nobody)).at(Token("t", extra={"instance_url": url}))


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://acme.my.salesforce.com", b"acme.my.salesforce.com"),
        ("https://acme.my.salesforce.com/", b"acme.my.salesforce.com"),
        ("https://acme.my.salesforce.com:443", b"acme.my.salesforce.com"),
        ("https://ACME.My.Salesforce.COM", b"acme.my.salesforce.com"),
        ("https://acme--test.sandbox.my.salesforce.com", b"acme--test.sandbox.my.salesforce.com"),
    ],
)
def test_a_server_under_the_routes_upstream(url: str, authority: bytes) -> None:
    """Any name there, sandboxes too."""
    route = at(url)
    assert (route.origin.scheme, route.origin.port, route.origin.authority) == ("https", 443, authority)
    assert route.target(b"/services/data", b"") == b"/services/data"


@pytest.mark.parametrize(
    "url",
    [
        "https://my.salesforce.com",
        "https://evil.example",
        "https://evilmy.salesforce.com",
        "https://acme.my.salesforce.com.evil.example",
        "https://acme.my.salesforce.com.",
        "https://evil.example/.my.salesforce.com",
        "https://evil.example/acme.my.salesforce.com",
        "https://evil.example?.my.salesforce.com",
        "https://evil.example#.my.salesforce.com",
        "https://evil.example\\.my.salesforce.com",
        "https://evil.example%2f.my.salesforce.com",
        "https://evil.example:443\\@acme.my.salesforce.com",
        "https://acme.my.salesforce.com@evil.example",
        "https://user@acme.my.salesforce.com",
        "https://user:pw@acme.my.salesforce.com",
        "https://evil.example\n.my.salesforce.com",
        "https://evil.example\x00.my.salesforce.com",
        "https://evil.example .my.salesforce.com",
        "https://evil.example/\t.my.salesforce.com",
        "https://аcme.my.salesforce.com",
        "https://*.my.salesforce.com",
        "https://.my.salesforce.com",
        "https://a..my.salesforce.com",
        "https://[::1].my.salesforce.com",
        "https://127.0.0.1",
        "https://[::1]",
        "https://169.254.169.254/latest/meta-data",
        "http://acme.my.salesforce.com",
        "http://localhost",
        "http://localhost.my.salesforce.com",
        "https://acme.my.salesforce.com:8443",
        "https://acme.my.salesforce.com:80",
        "https://acme.my.salesforce.com:0",
        "https://acme.my.salesforce.com:99999",
        "https://acme.my.salesforce.com?x=1",
        "https://acme.my.salesforce.com/..",
        "https://acme.my.salesforce.com/%2e%2e/x",
        "HTTPS:acme.my.salesforce.com",
        "//acme.my.salesforce.com",
        "acme.my.salesforce.com",
        "file:///etc/passwd",
        "gopher://acme.my.salesforce.com",
        "",
        None,
        7,
        ["https://acme.my.salesforce.com"],
    ],
)
def test_a_server_elsewhere_is_not_gone_to(url: Any) -> None:
    """Whatever the URL looks like to whom: the token would go there."""
    with pytest.raises(TokenSourceFailed):
        at(url)


def test_an_upstream_without_a_star_is_the_only_server() -> None:
    """And its path the only one under which to go."""
    for url, good in (
        ("https://api.example.com/v1", True),
        ("https://api.example.com/v1/sites/7", True),
        ("https://api.example.com/v10", False),
        ("https://api.example.com/", False),
        ("https://x.api.example.com/v1", False),
    ):
        route = ProxyRoute(
            "https://api.example.com/v1/", token_source=nobody, instance=lambda token: token.extra["instance_url"]
        )
        if good:
            assert at(url, route).base_path.startswith(b"/v1")
        else:
            with pytest.raises(TokenSourceFailed):
                at(url, route)


def test_a_star_stands_at_the_beginning_of_a_host_only_and_for_instances_only() -> None:
    """Nothing else would know what to put there."""
    for upstream in (
        "https://*.com",
        "https://*.com/x.y",
        "https://*",
        "https://a.*.example.com",
        "https://*x.example.com",
    ):
        with pytest.raises(ConfigurationError):
            ProxyRoute(upstream, token_source=nobody, instance=lambda _: "https://a.example.com")
    with pytest.raises(ConfigurationError):
        ProxyRoute("https://*.example.com", token_source=nobody)


def test_a_server_is_looked_at_once_and_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking costs some ten microseconds, and there may be many."""
    monkeypatch.setattr("idp_middleware._routes.MAX_INSTANCES", 3)
    route = providers.salesforce(token_source=nobody)
    first = at("https://a0.my.salesforce.com", route)
    assert at("https://a0.my.salesforce.com", route) is first
    for number in range(10):
        at(f"https://a{number}.my.salesforce.com", route)
    assert len(route._instances) <= 3


def test_a_route_without_instances_is_its_own() -> None:
    """Whoever asks need not know."""
    route = providers.github(token_source=nobody)
    assert route.at(Token("t")) is route


def test_the_site_of_each_user_of_atlassians() -> None:
    """The cloud id is what the app's store keeps with the token."""
    route = providers.atlassian(token_source=nobody, product="confluence")
    assert route.at(Token("t", extra={"cloud_id": "1324a887-45db"})).upstream == (
        "https://api.atlassian.com/ex/confluence/1324a887-45db"
    )
    for wrong in (None, 7, "", "a/b", "..", "a%2fb", "a?b", "x" * 65, "ä"):
        with pytest.raises(TokenSourceFailed):
            route.at(Token("t", extra={"cloud_id": wrong}))


@salesforce
def test_a_token_for_a_server_elsewhere_is_not_sent(user: User) -> None:
    """The caller is told that it is not their fault, and not where it would have gone."""
    user.holds("token-1", instance_url="https://evil.example")
    answer = user.call()
    assert problem(answer)[:2] == (502, "token-source-failed")
    assert "evil" not in answer.text + str(answer.headers)
    assert user.sent == []


@salesforce
def test_a_renewed_token_for_a_server_elsewhere_is_not_sent_either(user: User) -> None:
    """The check is made for each token."""
    user.holds("token-1", Token("token-2", extra={"instance_url": "https://evil.example"}))
    user.api_says(FACTS["salesforce"].refused)
    assert problem(user.call())[:2] == (502, "token-source-failed")
    assert [request.bearer for request in user.sent] == ["token-1"]


async def test_check_has_no_server_to_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody's token is there, nobody knows one; that is no mistake in the file."""
    monkeypatch.setenv("TOKEN", "t0ken")
    file = tmp_path / "idp.toml"
    file.write_text("""
        [authenticator]
        type = "session"
        [sources.s]
        type = "static"
        value = "${TOKEN}"
        [routes.crm]
        provider = "salesforce"
        source = "s"
    """)
    findings = {finding.what: finding for finding in await check(read_config(file))}
    assert findings["route crm"].ok
    assert "each user" in findings["route crm"].detail


def test_two_users_go_to_their_own_servers_and_urls_lead_back_from_each() -> None:
    """Relative to the user's own base; what leads to another's is left pointing there, where no token waits."""

    async def source(caller: Any, route: Any) -> Token:
        name = caller.subject.partition("|")[2]
        return Token(f"token-{name}", extra={"instance_url": f"{base[0]}/sites/{name}"})

    base: list[str] = []

    def routes(api: str, _: Any) -> dict[str, ProxyRoute]:
        base.append(api)
        route = ProxyRoute(
            f"{api}/sites",
            token_source=source,
            instance=lambda token: token.extra["instance_url"],
            rewrite_bodies=True,
        )
        return {"crm": route}

    with running(routes=routes) as stack:
        for user in ("alice", "bob", "alice"):
            other = "bob" if user == "alice" else "alice"
            mine, theirs = (f"{stack.api.url}/sites/{name}/things" for name in (user, other))
            said = Said(200, {"mine": mine, "theirs": theirs}, {"location": mine, "content-location": "/sites/x"})
            stack.provider.respond("/", status=said.status, body=said.body, headers=dict(said.headers), times=1)
            with stack.client(user) as client:
                answer = client.get("/idp/crm/things?a=b")
            assert (stack.provider.last.target.decode(), stack.provider.last.bearer) == (
                f"/sites/{user}/things?a=b",
                f"token-{user}",
            )
            assert answer.json() == {"mine": f"{stack.url}/idp/crm/things", "theirs": theirs}
            assert answer.headers["location"] == "/idp/crm/things"
            assert answer.headers["content-location"].endswith("/sites/x")
