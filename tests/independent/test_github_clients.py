"""Octokit, GitHub's own client for JavaScript, and PyGithub, on the way through to a GitHub that we did not write.

They list, page through and create things, and never reach past the prefix with the caller's token.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import github as pygithub
import httpx
import pytest
import requests

from idp_middleware import providers
from tests.independent.conftest import HERE
from tests.stack import USERS, Stack, running


@pytest.fixture
def through(github: Any) -> Iterator[Stack]:
    """The middleware before that GitHub."""
    with running(
        routes=lambda _, source: {
            "github": providers.github(
                token_source=source, connection="github", upstream=github.url, scopes={"read:github"}
            ),
            "rewritten": providers.github(
                token_source=source, connection="github", upstream=github.url, rewrite_bodies=True
            ),
        },
        # PyGithub and Octokit both send "token", the latter for what looks like no JWT.
        schemes=("bearer", "token"),
    ) as stack:
        yield stack


def at_github(server: Any, user: str, path: str) -> Any:
    """What GitHub itself says to a user."""
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        return client.get(path, headers={"authorization": f"Bearer {USERS[user]}"}).json()


@pytest.mark.parametrize("user", USERS)
def test_octokit(node: str, github: Any, through: Stack, user: str) -> None:
    """Its pages are tied together by `Link`, which leads back under the prefix."""
    names = [f"{user}-octokit-{number}" for number in range(5)]
    prefix = f"{through.url}/idp/github"
    settings = {"baseUrl": prefix, "auth": through.token(user), "names": names}
    ran = subprocess.run(
        [node, str(HERE / "octokit.mjs")],
        env={**os.environ, "SETTINGS": json.dumps(settings)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["login"] == user
    assert set(names) <= set(found["repos"])
    assert found["titles"] == [["third"], ["second"], ["first"]]
    assert (found["sha"], found["content"], found["missing"]) == (True, "héllo", 404)
    assert len([url for url in found["urls"] if "per_page=2" in url]) >= 3
    assert [url for url in found["urls"] if not url.startswith(prefix + "/")] == []
    there = at_github(github, user, "/user/repos?per_page=100")
    assert {repo["name"] for repo in there if repo["name"] in names} == set(names)
    assert {repo["owner"]["login"] for repo in there if repo["name"] in names} == {user}


@pytest.mark.parametrize("user", USERS)
def test_pygithub(github: Any, through: Stack, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows URLs that stand in bodies, and refuses those of another host."""
    asked = record(monkeypatch)
    prefix = f"{through.url}/idp/rewritten"
    client = pygithub_client(prefix, through.token(user))
    me = client.get_user()
    assert me.login == user
    names = [f"{user}-pygithub-{number}" for number in range(3)]
    for name in names:
        me.create_repo(name, private=True, auto_init=True)
    assert set(names) <= {repo.name for repo in me.get_repos()}
    repo = client.get_repo(f"{user}/{names[0]}")
    for title in ("first", "second", "third"):
        repo.create_issue(title=title, body='a – "body"').edit(state="open")
    assert [issue.title for issue in repo.get_issues(state="all")] == ["third", "second", "first"]
    repo.create_file("docs/a b.txt", "add", "héllo")
    assert repo.get_contents("docs/a b.txt").decoded_content.decode() == "héllo"
    assert repo.owner.login == user
    with pytest.raises(pygithub.UnknownObjectException):
        client.get_repo(f"{user}/missing")
    client.close()
    assert len([url for url in asked if "page=" in url]) >= 3
    assert [url for url in asked if not url.startswith(prefix + "/")] == []
    assert [issue["title"] for issue in at_github(github, user, f"/repos/{user}/{names[0]}/issues")] == [
        "third",
        "second",
        "first",
    ]


def test_pygithub_needs_the_bodies_rewritten(through: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds out by itself, and before it sends anything there."""
    asked = record(monkeypatch)
    prefix = f"{through.url}/idp/github"
    client = pygithub_client(prefix, through.token())
    with pytest.raises(AssertionError):
        client.get_user().create_repo("alice-not-rewritten", auto_init=True).create_issue("never").edit(state="closed")
    client.close()
    assert [url for url in asked if not url.startswith(prefix + "/")] == []


def test_what_is_one_users_is_not_the_others(github: Any, through: Stack) -> None:
    """The right token went along: with any other, GitHub would show what it shows to all."""
    with through.client("alice") as alice, through.client("bob") as bob:
        made = alice.post("/idp/github/user/repos", json={"name": "alice-private", "private": True})
        assert made.status_code == 201
        assert alice.get("/idp/github/repos/alice/alice-private").status_code == 200
        assert bob.get("/idp/github/repos/alice/alice-private").status_code in (403, 404)
        assert bob.get("/idp/github/user").json()["login"] == "bob"


def pygithub_client(base_url: str, token: str) -> pygithub.Github:
    """As patient as a test is."""
    auth = pygithub.Auth.Token(token)
    return pygithub.Github(
        base_url=base_url, auth=auth, per_page=2, retry=None, seconds_between_requests=0, seconds_between_writes=0
    )


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every URL that PyGithub asks for from now on."""
    asked: list[str] = []
    send = requests.Session.send

    def recording(self: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append(str(request.url))
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", recording)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return asked
