"""Rules of the token engine: whose token, how often the source is asked, how long an answer serves."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import time
from typing import Any

import pytest
import time_machine

from idp_middleware import Caller, ProxyRoute, Token, sources
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    IdentityNotLinked,
    ReconnectRequired,
    TokenError,
    TokenSourceFailed,
    TokenSourceUnavailable,
)

Answer = Token | Exception


class Source:
    """Answers what the test says: one answer after the other, the last one for ever; numbered tokens by default."""

    def __init__(self, *answers: Answer | Callable[[], Answer], identity: tuple[str, ...] | None = None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Caller, str | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        if identity is not None:
            self.identity = identity

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        self.asked.append((caller, None if refused is None else refused.value))
        number = len(self.asked)
        answer: Any = Token(f"token-{number}", time() + 3600)
        if self.answers:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.gate.wait()
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def times(self) -> int:
        return len(self.asked)


def caller(subject: str = "auth0|alice", **fields: Any) -> Caller:
    return Caller(subject, claims={"iss": fields.pop("issuer", "https://acme.example/")}, **fields)


def route(source: Any, **fields: Any) -> ProxyRoute:
    return ProxyRoute("https://api.example.com", token_source=source, **{"connection": "github", **fields})


@pytest.fixture
async def engine() -> AsyncIterator[TokenEngine]:
    engine = TokenEngine()
    yield engine
    await engine.aclose()


@pytest.fixture
def clock() -> Iterator[Any]:
    with time_machine.travel(time(), tick=True) as traveller:
        yield traveller


@pytest.fixture(scope="module", autouse=True)
def nothing_goes_unnoticed() -> Iterator[None]:
    """Whatever asyncio mutters about lost exceptions and tasks, in any of these tests, is a failure."""
    muttered: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: muttered.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("asyncio").addHandler(handler)
    yield
    gc.collect()
    logging.getLogger("asyncio").removeHandler(handler)
    assert muttered == []


async def settled(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("nothing more happens")


async def outcomes(*waiting: Awaitable[Token]) -> list[Any]:
    return await asyncio.gather(*waiting, return_exceptions=True)


# Whose token


@pytest.mark.parametrize(
    "other",
    [
        caller("auth0|bob"),
        caller(issuer="https://other.example/"),
        caller(account="2"),
        caller(scopes=frozenset({"admin"})),
    ],
    ids=["subject", "issuer", "account", "scopes"],
)
async def test_callers_who_differ_in_anything_never_share_a_token(engine: TokenEngine, other: Caller) -> None:
    """An entry shared by two users is the worst this package could do."""
    github = route(Source())
    mine, theirs = await engine.token(caller(), github), await engine.token(other, github)
    assert mine.value != theirs.value
    assert (await engine.token(caller(), github)).value == mine.value


async def test_connections_of_one_source_do_not_share(engine: TokenEngine) -> None:
    """A GitHub token sent to Google is a leak."""
    source = Source(identity=("s", "1"))
    one, other = route(source, connection="github"), route(source, connection="google-oauth2")
    assert await engine.token(caller(), one) != await engine.token(caller(), other)


async def test_sources_of_equal_configuration_share(engine: TokenEngine) -> None:
    """Two routes to one provider through one tenant need one look-up."""
    first, second = Source(identity=("s", "1")), Source(identity=("s", "1"))
    assert await engine.token(caller(), route(first)) == await engine.token(caller(), route(second))
    assert second.times == 0


async def test_sources_of_different_configuration_do_not_share(engine: TokenEngine) -> None:
    """Another tenant's user of the same name is somebody else."""
    first, second = Source(identity=("s", "1")), Source(identity=("s", "2"))
    await engine.token(caller(), route(first))
    await engine.token(caller(), route(second))
    assert second.times == 1


async def test_functions_never_share_not_even_with_themselves_on_another_route(engine: TokenEngine) -> None:
    """Nobody knows what a function makes of the route it is called with."""
    asked = []

    async def source(caller: Caller, route: ProxyRoute) -> Token:
        asked.append(route)
        return Token(f"token-{len(asked)}")

    one, other = route(source), route(source)
    values = {(await engine.token(caller(), r)).value for r in (one, other, one, other)}
    assert values == {"token-1", "token-2"}


async def test_an_apps_own_token_is_the_same_for_all_callers(engine: TokenEngine) -> None:
    """A cache key without the subject says that the answer does not depend on it."""

    class OwnToken(Source):
        def cache_key(self, caller: Caller, route: ProxyRoute) -> tuple[str, ...]:
            return ()

    intranet = route(source := OwnToken())
    assert await engine.token(caller("alice"), intranet) == await engine.token(caller("bob"), intranet)
    assert source.times == 1


async def test_a_source_without_a_cache_key_is_asked_each_time(engine: TokenEngine) -> None:
    """PassThrough's token is the request's own; keeping it would serve one request's credential to the next."""
    passing = route(sources.PassThrough(), connection=None)
    for credential in ("one", "two"):
        me = caller(credential=credential)
        token = await engine.token(me, passing)
        assert token.value == credential
        assert (await engine.renew(me, passing, token)).value == credential
        await engine.forget(me, passing)


# One flight


async def test_a_thousand_requests_of_fifty_users_ask_once_for_each(engine: TokenEngine) -> None:
    """A page that opens with many calls must not cost as many look-ups."""
    source = Source()
    source.answers = []
    users = [caller(f"auth0|{n}") for n in range(50)]
    github = route(source)
    tokens = await asyncio.gather(*(engine.token(users[n % 50], github) for n in range(1000)))
    assert Counter(me.subject for me, _ in source.asked) == dict.fromkeys((me.subject for me in users), 1)
    for n in range(50):
        assert len({token.value for token in tokens[n::50]}) == 1
    assert len({token.value for token in tokens}) == 50


async def test_a_cancelled_first_caller_fails_nobody_else(engine: TokenEngine) -> None:
    """The first to ask is no different from the others, though it is the one that started the flight."""
    source = Source()
    source.gate.clear()
    github = route(source)
    first, second = (asyncio.create_task(engine.token(caller(), github)) for _ in range(2))
    await settled(lambda: source.times == 1)
    first.cancel()
    source.gate.set()
    assert (await second).value == "token-1"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_what_nobody_waits_for_any_more_is_kept_anyway(engine: TokenEngine) -> None:
    """The client will be back, and a rotated token that is thrown away is lost."""
    source = Source()
    source.gate.clear()
    github = route(source)
    only = asyncio.create_task(engine.token(caller(), github))
    await settled(lambda: source.times == 1)
    only.cancel()
    await asyncio.wait([only])
    source.gate.set()
    assert (await engine.token(caller(), github)).value == "token-1"
    assert source.times == 1


async def test_a_failure_is_shared_by_those_who_waited_and_not_kept(engine: TokenEngine) -> None:
    """Who asks next deserves a new try; who waited has had theirs."""
    source = Source(TokenSourceFailed("no"), Token("later"))
    github = route(source)
    failures = await outcomes(*(engine.token(caller(), github) for _ in range(20)))
    assert {type(failure) for failure in failures} == {TokenSourceFailed}
    assert source.times == 1
    assert (await engine.token(caller(), github)).value == "later"


async def test_failing_for_one_user_is_nothing_to_another(engine: TokenEngine) -> None:
    """Alice's outage is not bob's."""

    async def source(caller: Caller, route: ProxyRoute) -> Token:
        if caller.subject == "alice":
            raise TokenSourceUnavailable("down", retry_after=3.0)
        return Token("bobs")

    github = route(source)
    failed, token = await outcomes(engine.token(caller("alice"), github), engine.token(caller("bob"), github))
    assert isinstance(failed, TokenSourceUnavailable)
    assert failed.retry_after == 3.0
    assert token.value == "bobs"


async def test_waiters_get_an_exception_each_and_no_frames_pile_up(engine: TokenEngine) -> None:
    """One object raised a hundred times would drag a hundred requests' frames along."""
    github = route(Source(IdentityNotLinked("no", connection="github")))
    failures = await outcomes(*(engine.token(caller(), github) for _ in range(100)))
    failures += [(await outcomes(engine.token(caller(), github)))[0] for _ in range(100)]
    assert len({id(failure) for failure in failures}) == 200
    assert max(len(traceback.extract_tb(failure.__traceback__)) for failure in failures) < 10
    assert {failure.connection for failure in failures} == {"github"}


async def test_an_error_of_somebodys_own_making_reaches_all_who_wait(engine: TokenEngine) -> None:
    """A subclass may have a constructor that can't be called again."""

    class Odd(TokenError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one}-{two}")

    github = route(Source(Odd("a", "b")))
    failures = await outcomes(*(engine.token(caller(), github) for _ in range(3)))
    assert [str(failure) for failure in failures] == ["a-b"] * 3


async def test_the_cause_that_a_source_names_is_kept(engine: TokenEngine) -> None:
    """An operator who logs traces finds what a source of their own ran into."""

    async def source(caller: Caller, route: ProxyRoute) -> Token:
        try:
            raise OSError("disk")
        except OSError as exc:
            raise TokenSourceFailed("no") from exc

    (failure,) = await outcomes(engine.token(caller(), route(source)))
    assert isinstance(failure.__cause__, OSError)


@pytest.mark.parametrize("error", [IdentityNotLinked, ReconnectRequired])
async def test_not_linked_is_remembered_for_a_few_seconds(
    engine: TokenEngine, clock: Any, error: type[IdentityNotLinked]
) -> None:
    """A page that asks ten times is spared nine look-ups; a user who has just linked is not kept waiting."""
    source = Source(error("no", connection="github", connect_url="https://acme.example/connect"), Token("linked"))
    github = route(source)
    for _ in range(3):
        with pytest.raises(error) as caught:
            await engine.token(caller(), github)
        assert caught.value.members() == {"connection": "github", "connect_url": "https://acme.example/connect"}
    assert source.times == 1
    clock.shift(6)
    assert (await engine.token(caller(), github)).value == "linked"


async def test_not_linked_counts_no_more_for_who_logs_in_anew(engine: TokenEngine, clock: Any) -> None:
    """A user comes back from connecting the account with a new token, and should not be told to connect it."""

    def logged_in(at: object) -> Caller:
        return Caller("auth0|alice", claims={"iss": "https://acme.example/", "iat": at})

    source = Source(IdentityNotLinked("no"), Token("linked"))
    github = route(source)
    for at in (int(time()) - 60, "yesterday", None, int(time())):
        with pytest.raises(IdentityNotLinked):
            await engine.token(logged_in(at), github)
    assert source.times == 1
    clock.shift(2)
    assert (await engine.token(logged_in(int(time())), github)).value == "linked"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (KeyError("s3cret"), "raised KeyError"),
        (None, "gave a NoneType"),
        ("s3cret", "gave a str"),
        (lambda: Token("s3cret\r\nx-evil: 1"), "raised ValueError"),
    ],
)
async def test_a_source_that_misbehaves_is_a_failed_source(
    engine: TokenEngine, caplog: pytest.LogCaptureFixture, answer: Any, told: str
) -> None:
    """Sources are written by others. None of what they do may end as a header of its own, or in the log."""
    github = route(Source(answer if callable(answer) else lambda: answer))
    with pytest.raises(TokenSourceFailed, match=told) as caught:
        await engine.token(caller(), github)
    assert "s3cret" not in f"{caught.value}{caplog.text}"


async def test_where_a_source_broke_is_logged_once(engine: TokenEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Without it, nobody could mend a source of their own."""
    github = route(Source(ZeroDivisionError()), name="github")
    await outcomes(*(engine.token(caller(), github) for _ in range(5)))
    (record,) = caplog.records
    assert "'github' raised ZeroDivisionError" in record.message
    assert f"{__file__}:" in record.message
    assert "\n" not in record.message


# How long a token serves


async def test_a_token_never_serves_past_its_expiry(engine: TokenEngine, clock: Any) -> None:
    """Clocks differ and requests take time, so it stops a little earlier."""
    source = Source()
    github = route(source)
    assert (await engine.token(caller(), github)).value == "token-1"
    clock.shift(3500)
    assert (await engine.token(caller(), github)).value == "token-1"
    clock.shift(92)
    assert (await engine.token(caller(), github)).value == "token-2"


async def test_a_token_is_renewed_in_the_background_before_it_expires(engine: TokenEngine, clock: Any) -> None:
    """No request should wait for what could have been done ahead."""
    source = Source()
    github = route(source)
    await engine.token(caller(), github)
    clock.shift(3545)
    source.gate.clear()
    for _ in range(10):
        assert (await engine.token(caller(), github)).value == "token-1"
    await settled(lambda: source.times == 2)
    source.gate.set()
    await settled(lambda: not engine._keeper._flights)
    assert (await engine.token(caller(), github)).value == "token-2"
    assert source.times == 2


async def test_expiring_while_being_renewed_joins_the_renewal(engine: TokenEngine, clock: Any) -> None:
    """The flight that is on its way brings what is needed."""
    source = Source()
    github = route(source)
    await engine.token(caller(), github)
    clock.shift(3545)
    source.gate.clear()
    await engine.token(caller(), github)
    await settled(lambda: source.times == 2)
    clock.shift(60)
    waiting = asyncio.create_task(engine.token(caller(), github))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await waiting).value == "token-2"
    assert source.times == 2


async def test_a_failing_renewal_keeps_the_old_token_and_tries_ever_more_rarely(
    engine: TokenEngine, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of the identity provider is no outage of a token that is still valid, and no reason to hammer it."""
    down = TokenSourceUnavailable("down")
    source = Source(Token("old", time() + 7200), down, down, down, Token("new", time() + 9000))
    github = route(source)
    await engine.token(caller(), github)
    clock.shift(7200 - 65)

    async def ask() -> str:
        value = (await engine.token(caller(), github)).value
        await settled(lambda: not engine._keeper._flights)
        return value

    assert [await ask() for _ in range(3)] == ["old"] * 3
    assert source.times == 2
    # Each a quarter longer or shorter, so that what failed together is not tried again together.
    for times, (shortest, longest) in enumerate([(3.75, 6.25), (7.5, 12.5)], start=2):
        clock.shift(shortest - 0.1)
        assert await ask() == "old"
        assert source.times == times
        clock.shift(longest - shortest + 0.2)
        assert [await ask() for _ in range(3)] == ["old"] * 3
        assert source.times == times + 1
    clock.shift(25.1)
    assert await ask() == "old"
    assert await ask() == "new"
    assert len([record for record in caplog.records if "next try in" in record.message]) == 1


async def test_a_failing_renewal_waits_as_long_as_it_was_told(engine: TokenEngine, clock: Any) -> None:
    """Retry-After holds for the background too."""
    source = Source(Token("old", time() + 600), TokenSourceUnavailable("slow down", retry_after=30.0))
    github = route(source)
    await engine.token(caller(), github)
    clock.shift(600 - 65)
    for _ in range(3):
        await engine.token(caller(), github)
        await settled(lambda: not engine._keeper._flights)
        clock.shift(9)
    assert source.times == 2


@pytest.mark.parametrize("error", [IdentityNotLinked, ReconnectRequired])
async def test_an_identity_that_is_gone_takes_its_token_with_it(
    engine: TokenEngine, clock: Any, error: type[IdentityNotLinked]
) -> None:
    """A user who unlinks an account expects it to stop working."""
    github = route(Source(Token("old", time() + 600), error("gone")))
    await engine.token(caller(), github)
    clock.shift(600 - 65)
    await engine.token(caller(), github)
    await settled(lambda: not engine._keeper._flights)
    with pytest.raises(error):
        await engine.token(caller(), github)


async def test_a_token_of_unknown_expiry_serves_for_a_bounded_age(engine: TokenEngine, clock: Any) -> None:
    """Nobody would ever learn that it was revoked or replaced."""
    source = Source(Token("one"), Token("two"))
    github = route(source)
    await engine.token(caller(), github)
    clock.shift(200)
    assert (await engine.token(caller(), github)).value == "one"
    clock.shift(100)
    assert (await engine.token(caller(), github)).value == "two"


async def test_a_short_lived_token_serves_more_than_once(engine: TokenEngine) -> None:
    """Fixed margins would use the whole of its life up."""
    source = Source(lambda: Token("short", time() + 20))
    github = route(source)
    for _ in range(5):
        await engine.token(caller(), github)
    assert source.times == 1


@pytest.mark.parametrize("life", [0.0, -1.0, float("nan")])
async def test_a_token_without_a_life_serves_those_who_wait_and_nobody_after(engine: TokenEngine, life: float) -> None:
    """Some servers say that a token expires at once."""
    source = Source(lambda: Token("brief", time() + life))
    github = route(source)
    assert {token.value for token in await outcomes(*(engine.token(caller(), github) for _ in range(5)))} == {"brief"}
    assert source.times == 1
    await engine.token(caller(), github)
    assert source.times == 2


async def test_an_outage_that_outlasts_the_token_is_not_kept_quiet(
    engine: TokenEngine, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing serves any more, so every request tries, and fails as itself."""
    source = Source(Token("old", time() + 600), TokenSourceUnavailable("down"))
    github = route(source)
    await engine.token(caller(), github)
    clock.shift(600)
    for _ in range(3):
        with pytest.raises(TokenSourceUnavailable):
            await engine.token(caller(), github)
    assert source.times == 4
    assert caplog.records == []


async def test_what_is_kept_is_bounded_and_the_least_used_goes_first() -> None:
    """A million users must not become a million entries."""
    engine = TokenEngine(max_entries=10)
    source = Source()
    github = route(source)
    for n in range(100):
        await engine.token(caller("often"), github)
        await engine.token(caller(str(n)), github)
    assert source.times == 101
    assert len(engine._keeper._held) == 10
    unlinked = route(Source(IdentityNotLinked("no")))
    for n in range(100):
        await outcomes(engine.token(caller(str(n)), unlinked))
    assert len(engine._keeper._not_linked) == 10


# Renewal after a refusal


async def test_many_who_were_refused_the_same_token_share_one_renewal(engine: TokenEngine) -> None:
    """A revoked token is refused to everybody who uses it, at the same time."""
    source = Source()
    github = route(source)
    old = await engine.token(caller(), github)
    tokens = await outcomes(*(engine.renew(caller(), github, old) for _ in range(100)))
    assert {token.value for token in tokens} == {"token-2"}
    assert [refused for _, refused in source.asked] == [None, "token-1"]


async def test_who_is_refused_late_gets_what_is_there_by_then(engine: TokenEngine) -> None:
    """A slow request comes back with the refusal of a token that was replaced long ago."""
    source = Source()
    github = route(source)
    old = await engine.token(caller(), github)
    new = await engine.renew(caller(), github, old)
    assert await engine.renew(caller(), github, old) == new
    assert source.times == 2


async def test_a_flight_from_before_the_refusal_will_do_if_it_brings_another_token(
    engine: TokenEngine, clock: Any
) -> None:
    """One question at a time, whoever wants to know."""
    source = Source()
    github = route(source)
    old = await engine.token(caller(), github)
    clock.shift(3545)
    source.gate.clear()
    await engine.token(caller(), github)
    await settled(lambda: source.times == 2)
    renewing = asyncio.create_task(engine.renew(caller(), github, old))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await renewing).value == "token-2"
    assert source.times == 2


async def test_a_flight_from_before_the_refusal_that_brings_the_refused_one_is_followed_by_another(
    engine: TokenEngine,
) -> None:
    """It may have asked just before the identity provider heard of the revocation."""
    source = Source(Token("revoked"), Token("fresh"))
    github = route(source)
    source.gate.clear()
    asking = asyncio.create_task(engine.token(caller(), github))
    await settled(lambda: source.times == 1)
    renewing = [asyncio.create_task(engine.renew(caller(), github, Token("revoked"))) for _ in range(3)]
    await asyncio.sleep(0)
    source.gate.set()
    assert (await asking).value == "revoked"
    assert {token.value for token in await outcomes(*renewing)} == {"fresh"}
    assert [refused for _, refused in source.asked] == [None, "revoked"]


async def test_an_api_that_refuses_everything_does_not_drain_the_identity_provider(
    engine: TokenEngine, clock: Any
) -> None:
    """A wrong request can be a 401 for ever, whatever token it has; each would cost a new one."""
    source = Source()
    github = route(source)
    token = await engine.token(caller(), github)
    for _ in range(50):
        token = await engine.renew(caller(), github, token)
    assert source.times == 4
    clock.shift(21)
    assert await engine.renew(caller(), github, token) != token
    assert await engine.renew(caller(), github, await engine.token(caller(), github)) is not None
    assert source.times == 5


async def test_a_source_that_has_no_other_token_may_say_so(engine: TokenEngine) -> None:
    """The refusal then stands, and the caller of renew can tell by the value."""
    github = route(Source(Token("only")))
    token = await engine.token(caller(), github)
    assert (await engine.renew(caller(), github, token)).value == "only"


async def test_a_renewal_that_fails_for_now_keeps_the_token_and_one_that_fails_for_good_drops_it(
    engine: TokenEngine,
) -> None:
    """The refusal may have been the API's mood; a withdrawn grant is not."""
    source = Source(Token("old", time() + 600), TokenSourceUnavailable("down"), ReconnectRequired("withdrawn"))
    github = route(source)
    old = await engine.token(caller(), github)
    with pytest.raises(TokenSourceUnavailable):
        await engine.renew(caller(), github, old)
    assert await engine.token(caller(), github) == old
    with pytest.raises(ReconnectRequired):
        await engine.renew(caller(), github, old)
    with pytest.raises(ReconnectRequired):
        await engine.token(caller(), github)


async def test_many_who_are_refused_one_after_the_other_hear_once_that_it_is_gone(engine: TokenEngine) -> None:
    """Requests that were under way when the account was unlinked come back with their refusals one by one."""
    source = Source(Token("old", time() + 600), IdentityNotLinked("gone"))
    github = route(source)
    old = await engine.token(caller(), github)
    for _ in range(10):
        with pytest.raises(IdentityNotLinked):
            await engine.renew(caller(), github, old)
    assert source.times == 2


async def test_a_renewal_without_anything_kept_asks_the_source(engine: TokenEngine) -> None:
    """The entry may have been dropped while the request was on its way."""
    source = Source()
    assert (await engine.renew(caller(), route(source), Token("gone"))).value == "token-1"


# Forgetting and closing


async def test_forgetting_drops_a_token_and_a_refusal(engine: TokenEngine) -> None:
    """For an app that disconnects an account, or has just connected one."""
    source = Source(Token("one"), IdentityNotLinked("no"), Token("two"))
    github = route(source)
    await engine.token(caller(), github)
    await engine.forget(caller(), github)
    with pytest.raises(IdentityNotLinked):
        await engine.token(caller(), github)
    await engine.forget(caller(), github)
    assert (await engine.token(caller(), github)).value == "two"


async def test_forgetting_also_drops_what_is_on_its_way(engine: TokenEngine) -> None:
    """A flight that asked before the account was disconnected must not bring its token back."""
    source = Source()
    source.gate.clear()
    github = route(source)
    asking = asyncio.create_task(engine.token(caller(), github))
    await settled(lambda: source.times == 1)
    forgetting = asyncio.create_task(engine.forget(caller(), github))
    await asyncio.sleep(0)
    source.gate.set()
    await forgetting
    assert (await asking).value == "token-1"
    assert (await engine.token(caller(), github)).value == "token-2"


async def test_closing_tells_whoever_waits_and_leaves_no_task() -> None:
    """A cancelled flight must not look as if the request itself had been cancelled."""
    engine, source = TokenEngine(), Source()
    source.gate.clear()
    github = route(source)
    waiting = [asyncio.create_task(engine.token(caller(str(n)), github)) for n in range(3)]
    await settled(lambda: source.times == 3)
    await engine.aclose()
    assert [type(failure) for failure in await outcomes(*waiting)] == [TokenSourceUnavailable] * 3
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    source.gate.set()
    assert await engine.token(caller(), github)


def test_a_flight_of_a_loop_that_is_gone_lands_for_nobody() -> None:
    """Test clients run an app on one loop after another; the second must not wait for the first."""

    class Slow(Source):
        async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
            self.asked.append((caller, None))
            if self.times == 1:
                await asyncio.sleep(3600)
            return Token("second")

    async def build() -> tuple[TokenEngine, ProxyRoute]:
        return TokenEngine(), route(Slow())

    first = asyncio.new_event_loop()
    engine, github = first.run_until_complete(build())
    stuck = first.create_task(engine.token(caller(), github))
    first.run_until_complete(asyncio.sleep(0.01))
    assert asyncio.run(engine.token(caller(), github)).value == "second"
    for task in asyncio.all_tasks(first):
        task.cancel()
    first.run_until_complete(asyncio.gather(stuck, return_exceptions=True))
    first.close()


async def test_a_failure_nobody_waits_for_leaves_no_noise(engine: TokenEngine) -> None:
    """asyncio would say "exception was never retrieved" of something handled; the fixture above listens."""
    source = Source(TokenSourceFailed("no"))
    source.gate.clear()
    only = asyncio.create_task(engine.token(caller(), route(source)))
    await settled(lambda: source.times == 1)
    only.cancel()
    await asyncio.wait([only])
    source.gate.set()
    await settled(lambda: not engine._keeper._flights)
