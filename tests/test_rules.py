"""Rules of a route: what they allow, what they deny however it is spelled, and mistakes in them."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from idp_middleware import Caller
from idp_middleware._config_file import ConfigFile
from idp_middleware._rules import Rule, apply_rules, ask, check_authorize, check_rules, compile_paths
from idp_middleware.errors import BadRequest, CallerForbidden, ConfigurationError

READ, WRITE, ADMIN = frozenset({"read"}), frozenset({"write"}), frozenset({"admin"})


def allowed(rules: Collection[Rule], method: str, path: str, scopes: Collection[str] = ()) -> bool:
    try:
        apply_rules(check_rules(rules), frozenset(scopes), method, path.encode("latin-1"))
    except CallerForbidden:
        return False
    return True


# --- what is allowed -------------------------------------------------------------------------------------------------

RULES = [
    Rule(methods=["GET", "HEAD"], scopes=READ),
    Rule(methods=["GET"], paths=["/public/**"]),
    Rule(methods=["POST", "PATCH"], paths=["/repos/*/*/issues", "/repos/*/*/issues/*"], scopes=WRITE),
    Rule(methods=["DELETE"], paths=["/repos/**"], scopes={"write", "admin"}),
    Rule(methods=["DELETE"], paths=["/gists/*"], scopes=WRITE),
    Rule(methods=["DELETE"], paths=["/gists/*"], scopes=ADMIN),
    Rule(paths=["/admin/**", "/repos/*/*/keys"], deny=True),
    Rule(methods=["PATCH"], paths=["/repos/acme/**"], deny=True),
]


@pytest.mark.parametrize(
    ("method", "path", "scopes", "fine"),
    [
        ("GET", "/user", READ, True),
        ("HEAD", "/user", READ, True),
        ("GET", "", READ, True),
        ("GET", "/user", (), False),
        ("GET", "/user", WRITE, False),
        ("GET", "/public/x", (), True),
        ("HEAD", "/public/x", (), False),
        ("POST", "/repos/a/b/issues", WRITE, True),
        ("POST", "/repos/a/b/issues", READ, False),
        ("PATCH", "/repos/a/b/issues/7", WRITE, True),
        # No rule is about it.
        ("PUT", "/user", {"read", "write", "admin"}, False),
        ("POST", "/user", WRITE, False),
        ("get", "/user", READ, False),
        # All of a rule's scopes, or all of another's.
        ("DELETE", "/repos/a/b", WRITE, False),
        ("DELETE", "/repos/a/b", {"write", "admin"}, True),
        ("DELETE", "/gists/1", WRITE, True),
        ("DELETE", "/gists/1", ADMIN, True),
        ("DELETE", "/gists/1", READ, False),
        # Denied, whoever asks, and wherever the rule stands.
        ("GET", "/admin/x", {"read", "write", "admin"}, False),
        ("GET", "/repos/a/b/keys", READ, False),
        ("GET", "/repos/a/b/keys/1", READ, True),
        ("PATCH", "/repos/acme/b/issues/7", WRITE, False),
        ("POST", "/repos/acme/b/issues", WRITE, True),
    ],
)
def test_one_rule_has_to_allow_it_and_none_to_deny_it(
    method: str, path: str, scopes: Collection[str], fine: bool
) -> None:
    """In any order of the rules: a denial always wins."""
    assert allowed(RULES, method, path, scopes) is fine
    assert allowed(RULES[::-1], method, path, scopes) is fine


def test_without_rules_all_is_allowed() -> None:
    """A route's own lists are there already."""
    assert allowed([], "GET", "/x")


def test_a_missing_scope_is_named() -> None:
    """RFC 6750 section 3.1: the client can then ask for it. Who is denied is told nothing to ask for."""
    with pytest.raises(CallerForbidden) as caught:
        apply_rules(check_rules(RULES), READ, "DELETE", b"/gists/1")
    assert caught.value.scopes == ("write",)
    for path in (b"/admin/x", b"/nothing"):
        with pytest.raises(CallerForbidden) as caught:
            apply_rules(check_rules(RULES), READ, "PATCH", path)
        assert caught.value.scopes == ()


@pytest.mark.parametrize("path", ["/a%2Fb", "/a%2fb", "/a/b%2F", "/%61/b%2Fc"])
def test_an_encoded_slash_has_to_be_allowed_in_both_senses(path: str) -> None:
    """It is one segment to some servers and two to others."""
    assert not allowed([Rule(paths=["/*"])], "GET", path)
    assert not allowed([Rule(paths=["/a/*"])], "GET", path)
    assert allowed([Rule(paths=["/**"])], "GET", path)
    assert allowed([Rule(paths=["/a/*"])], "GET", "/%61/%62")


# --- what is denied --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/admin/keys",
        "/Admin/KEYS",
        "/admin/keys/",
        "/admin//keys",
        "//admin/keys",
        "//admin///keys//",
        "/admin;x=1/keys",
        "/admin/keys;jsessionid=7",
        "/;/admin/keys",
        "/%61dmin/keys",
        "/%2561dmin/keys",
        "/%25252561dmin/keys",
        "/admin%2Fkeys",
        "/admin%2fkeys",
        "/admin%252Fkeys",
        "/admin/%6B%65%79%73",
        "/admin%3Bx/keys",
        "/admin%2F%2Fkeys",
        "/ADMIN%2f;a=b%2fkeys;c",
    ],
)
def test_a_denied_path_is_denied_however_it_is_spelled(path: str) -> None:
    """What the upstream makes of a spelling is not known here, so what it might make of it counts."""
    rules = [Rule(), Rule(paths=["/admin/keys"], deny=True)]
    assert not allowed(rules, "GET", path)
    assert not allowed(rules, "POST", path)


@pytest.mark.parametrize(
    "path", ["/admin", "/admin/keysx", "/admin/key", "/x/admin/keys", "/admin/keys/1", "/admin/k%65y", "/", ""]
)
def test_other_paths_are_not(path: str) -> None:
    """Wide, but not wider than the pattern."""
    assert allowed([Rule(), Rule(paths=["/admin/keys"], deny=True)], "GET", path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/admin/**", "/admin"),
        ("/admin/**", "/admin/"),
        ("/admin/**", "/admin/a/b"),
        ("/admin/**", "/Admin%2fa"),
        ("/*", "/a%2Fb"),
        ("/a/*", "/a%2Fb"),
        ("/a;b", "/a;b"),
        ("//a", "//a"),
        ("/A", "/a"),
        ("/**/keys", "/a/b/keys/"),
    ],
)
def test_each_sense_of_a_pattern_counts(pattern: str, path: str) -> None:
    """Taking a path in a wide sense must not lose the narrow one."""
    assert not allowed([Rule(), Rule(paths=[pattern], deny=True)], "GET", path)


def test_who_may_not_get_may_not_head() -> None:
    """HEAD tells all but the content (RFC 9110 section 9.3.2)."""
    for rule in (Rule(methods=["GET"], paths=["/x"], deny=True), Rule(methods=["GET"], deny=True)):
        assert [allowed([Rule(), rule], method, "/x") for method in ("GET", "HEAD", "POST")] == [False, False, True]
    rules = [Rule(), Rule(methods=["POST"], deny=True)]
    assert [allowed(rules, method, "/x") for method in ("GET", "HEAD", "POST")] == [True, True, False]


@given(st.text(alphabet="ab/;%2F5cC.", max_size=12), st.sampled_from(["/a", "/a/**", "/*", "/b/*/a"]))
@settings(max_examples=300, deadline=None)
def test_no_path_is_both_denied_and_allowed(path: str, pattern: str) -> None:
    """One pattern to allow and to deny: whatever it allows, it denies."""
    path = "/" + path
    if allowed([Rule(paths=[pattern])], "GET", path):
        assert not allowed([Rule(), Rule(paths=[pattern], deny=True)], "GET", path)


# --- patterns --------------------------------------------------------------------------------------------------------

SEGMENTS = ["**", "*", "a", "b", "ab", "", "a*", "*a", "a*b", "*a*", "*a*b*", "b*a*b"]


@given(
    st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5),
    st.lists(st.text(alphabet="ab/\0", max_size=10), min_size=1, max_size=5),
)
@settings(max_examples=1000, deadline=None)
def test_patterns_mean_what_the_plain_expression_means(segments: list[str], paths: list[str]) -> None:
    """The one that runs in linear time, against the one that can be read."""
    plain = "".join("/.*" if each == "**" else "/" + each.replace("*", "[^/]*") for each in segments)
    compiled = compile_paths(["/" + "/".join(segments)])
    for path in paths:
        path = "/" + path
        assert bool(compiled.match(path)) == bool(re.fullmatch(plain, path, re.DOTALL))


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/**/x/**/y/**/z", "/x" * 30_000),
        ("/*x*x*x*y", "/" + "x" * 60_000),
        ("/**/*a*a*b/**/c", "/aaaa" * 12_000),
        ("/**/a/*/a/**/b/*", "/a" * 30_000),
        ("/x", "/" + "%25" * 20_000),
        ("/x", "/;" * 30_000),
    ],
)
@pytest.mark.parametrize("deny", [True, False])
def test_no_path_takes_long(pattern: str, path: str, deny: bool) -> None:
    """Patterns with several stars go wrong in the square of the length, or worse; servers take paths of 64 KiB."""
    rules = [Rule(), Rule(paths=[pattern], deny=True)] if deny else [Rule(paths=[pattern])]
    started = time.perf_counter()
    assert allowed(rules, "GET", path) is deny
    assert time.perf_counter() - started < 1


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("methods", {"methods": []}),
        ("methods", {"methods": "GET"}),
        ("methods", {"methods": ["get"]}),
        ("methods", {"methods": ["GET "]}),
        ("methods", {"methods": ["TRACE"]}),
        ("methods", {"methods": [""]}),
        ("paths", {"paths": []}),
        ("paths", {"paths": "/admin"}),
        ("paths", {"paths": ["admin"]}),
        ("paths", {"paths": [""]}),
        ("paths", {"paths": ["/admin**"]}),
        ("paths", {"paths": ["/a/../b"]}),
        ("paths", {"paths": ["/a/./b"]}),
        ("paths", {"paths": ["/a%2Fb"]}),
        ("paths", {"paths": ["/[a-z]"]}),
        ("paths", {"paths": ["/{id}"]}),
        ("paths", {"paths": ["/a?b"]}),
        ("paths", {"paths": ["/a#b"]}),
        ("paths", {"paths": ["/a\n"]}),
        ("paths", {"paths": ["/ü"]}),
        ("paths", {"paths": [7]}),
        ("scopes", {"scopes": "read"}),
        ("scopes", {"scopes": None}),
        ("scopes", {"scopes": [""]}),
        ("scopes", {"paths": ["/x"], "scopes": ["read"], "deny": True}),
        ("deny", {"deny": True}),
    ],
)
def test_a_mistake_in_a_rule_is_found_where_it_is_written(key: str, arguments: dict[str, Any]) -> None:
    """And not by who finds the open door."""
    with pytest.raises(ConfigurationError) as caught:
        Rule(**arguments)
    assert caught.value.key == key


@pytest.mark.parametrize("rules", ["/x", [None], Rule(), [{"deny": True}], [Rule(paths=["/x"], deny=True)]])
def test_rules_have_to_allow_something(rules: Any) -> None:
    """Who only denies may mean the rest to be allowed, or not to be; so it has to be said."""
    with pytest.raises(ConfigurationError) as caught:
        check_rules(rules)
    assert caught.value.key == "rules"


# --- a function for the rest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [False, None, 1, "yes", Caller("x")])
async def test_only_true_is_yes(answer: Any) -> None:
    """A function that forgets to return, or returns what it looked up, has not said yes."""

    async def authorize(caller: Caller, conn: HTTPConnection) -> Any:
        return answer

    with pytest.raises(CallerForbidden):
        await ask(authorize, Caller("alice"), HTTPConnection({"type": "http", "headers": []}))


async def test_the_function_sees_who_asks_for_what() -> None:
    """What a rule can't say: office hours, a tenant of one's own, a look into a database."""

    class Owners:
        async def __call__(self, caller: Caller, conn: HTTPConnection) -> bool:
            return conn.scope["path"] == f"/idp/github/{caller.subject}"

    authorize = check_authorize(Owners())
    assert authorize is not None
    conn = HTTPConnection({"type": "http", "headers": [], "path": "/idp/github/alice"})
    await ask(authorize, Caller("alice"), conn)
    with pytest.raises(CallerForbidden):
        await ask(authorize, Caller("bob"), conn)


async def test_the_function_may_word_its_refusal() -> None:
    """An error of ours is an answer; anything else it raises lets nobody in either."""

    async def picky(caller: Caller, conn: HTTPConnection) -> bool:
        raise BadRequest("no tenant named")

    with pytest.raises(BadRequest):
        await ask(picky, Caller("alice"), HTTPConnection({"type": "http", "headers": []}))


class Yes:
    async def __call__(self, caller: Caller, conn: HTTPConnection) -> bool:
        return True


@pytest.mark.parametrize("function", [lambda caller, conn: True, "yes", True, Yes])
def test_a_plain_function_is_a_mistake(function: Any) -> None:
    """Nobody would wait for its answer."""
    with pytest.raises(ConfigurationError) as caught:
        check_authorize(function)
    assert caught.value.key == "authorize"


def test_no_function_is_none() -> None:
    """The usual case."""
    assert check_authorize(None) is None


# --- in the file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ruled:
    """Stands for a route."""

    rules: Collection[Rule] = ()
    authorize: Any = None


FILE = """
[[rules]]
methods = ["GET"]
scopes = ["read:${NAME}"]

[[rules]]
paths = ["/admin/$${x}", "/admin/**"]
deny = true
"""


def build(text: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Ruled:
    monkeypatch.setenv("NAME", "github")
    monkeypatch.chdir(directory)
    Path("idp.toml").write_text(text)
    ruled: Ruled = ConfigFile("idp.toml").top().build(Ruled)
    return ruled


def test_rules_are_tables_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every argument is a key; variables are put in once."""
    text = FILE.replace("/admin/$${x}", "/admin/$$")
    first, second = build(text, monkeypatch, tmp_path).rules
    assert (first.methods, first.scopes) == ({"GET"}, {"read:github"})
    assert (second.paths, second.deny) == (("/admin/$$", "/admin/**"), True)
    assert build("", monkeypatch, tmp_path).rules == ()
    inline = 'rules = [{ methods = ["GET"] }, { paths = ["/x"], deny = true }]'
    assert [rule.deny for rule in build(inline, monkeypatch, tmp_path).rules] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE, "[rules #2]: paths: '/admin/${x}' may hold * and ** but no other special characters"),
        ('rules = [{ method = ["GET"] }]', "[rules #1]: method: there is no such key; did you mean 'methods'?"),
        ('rules = [{ deny = "yes" }]', "[rules #1]: deny: must be true or false, not a string"),
        ('rules = ["/x"]', "rules: must be a list of tables"),
        ("rules = { deny = true }", "rules: must be a list of tables, not a table"),
        (
            '[[rules]]\n[[rules]]\nmethods = ["${UNSET_NAME}"]',
            "[rules #2]: methods: the environment variable UNSET_NAME",
        ),
        ('authorize = "x"', "authorize: there is no such key"),
    ],
)
def test_a_mistake_says_in_which_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str) -> None:
    """By their number, since they have no names."""
    with pytest.raises(ConfigurationError) as caught:
        build(text, monkeypatch, tmp_path)
    assert str(caught.value).startswith(f"idp.toml: {message}")
