"""An identity provider that is down: who is spared, who still gets through, and how it comes back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import time_machine

from idp_middleware import Caller, ProxyRoute, Token
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    IdentityAmbiguous,
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenSourceBusy,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.observers import CircuitRecord
from tests.stack import running

DOWN = TokenSourceUnavailable("unreachable")


class Source:
    """Says the same to everybody, until told otherwise."""

    def __init__(self) -> None:
        self.says: Any = Token("fine")
        self.asked = 0
        self.at_once = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        self.asked += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Users:
    """Each new to the engine, so that each needs the source."""

    def __init__(self) -> None:
        self.engine = TokenEngine()
        self.source = Source()
        self.route = ProxyRoute("https://api.example.com", token_source=self.source, connection="github", name="github")
        self.seen = 0

    async def next(self, many: int = 1) -> list[Any]:
        """What so many new users get, all at once."""
        self.seen += many
        callers = [Caller(f"user-{number}") for number in range(self.seen - many, self.seen)]
        asking = (self.engine.token(caller, self.route) for caller in callers)
        return await asyncio.gather(*asking, return_exceptions=True)

    async def fails(self, times: int = 5) -> None:
        self.source.says = DOWN
        for _ in range(times):
            await self.next()


@pytest.fixture
async def users() -> AsyncIterator[Users]:
    users = Users()
    yield users
    await users.engine.aclose()


@pytest.fixture
def clock() -> Iterator[Any]:
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        yield clock


@pytest.mark.parametrize("error", [DOWN, TokenSourceTimeout("no answer")])
async def test_a_source_that_is_down_is_not_waited_for_by_each(users: Users, clock: Any, error: IdPError) -> None:
    """Every request would wait its time-out, and hold what it holds for so long."""
    users.source.says = error
    failures = [(await users.next())[0] for _ in range(5)]
    assert [type(failure) for failure in failures] == [type(error)] * 5
    told = await users.next(100)
    assert users.source.asked == 5
    assert {type(each) for each in told} == {TokenSourceUnavailable}
    assert all(0.75 <= each.retry_after <= 1.6 for each in told)
    assert len({each.retry_after for each in told}) > 50, "all were told to come back at one moment"


async def test_one_looks_whether_it_is_back_and_ever_more_rarely(users: Users, clock: Any) -> None:
    """Of a thousand who wait, one request is enough; an outage of an hour is not asked about each second."""
    await users.fails()
    asked = []
    for _ in range(12):
        at_a_time = users.source.asked
        await users.next(50)
        await users.next(50)
        assert users.source.asked - at_a_time <= 1
        asked.append(users.source.asked)
        clock.shift(1.3)
    assert 3 <= asked[-1] - 5 <= 6


async def test_it_opens_for_all_once_one_got_through(
    users: Users, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And one line in the log for each turn of things."""
    await users.fails(times=20)
    clock.shift(1.3)
    users.source.says = Token("back")
    users.source.gate.clear()
    probing = asyncio.create_task(users.next(1))
    await asyncio.sleep(0)
    while users.source.at_once != 1:  # noqa: ASYNC110 (the source has no event for it)
        await asyncio.sleep(0)
    assert {type(each) for each in await users.next(50)} == {TokenSourceUnavailable}
    users.source.gate.set()
    assert await probing == [Token("back")]
    assert await users.next(50) == [Token("back")] * 50
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        "Source (github) is down (5 failures in a row), and asked only now and then",
        "Source (github) answers again",
    ]


async def test_who_comes_back_does_so_a_few_at_a_time(users: Users, clock: Any) -> None:
    """A source that has just got up must not be run over by all who waited."""
    await users.fails()
    clock.shift(1.3)
    users.source.says = Token("back")
    await users.next()
    users.source.gate.clear()
    crowd = asyncio.create_task(users.next(1000))
    for _ in range(20):
        await asyncio.sleep(0)
    assert users.source.at_once == 100
    users.source.gate.set()
    assert set(await crowd) == {Token("back")}
    assert users.source.most == 100


@pytest.mark.parametrize(
    "error",
    [
        IdentityNotLinked("none"),
        ReconnectRequired("withdrawn"),
        IdentityAmbiguous("two"),
        TokenSourceFailed("status 400"),
        TokenSourceBusy("slow down", retry_after=1),
    ],
)
async def test_an_answer_about_a_user_or_our_rate_is_an_answer(users: Users, error: IdPError) -> None:
    """A page of a thousand users who have linked nothing must not cut off those who have."""
    users.source.says = error
    for _ in range(20):
        await users.next()
    users.source.says = Token("fine")
    assert await users.next() == [Token("fine")]
    assert users.source.asked == 21


async def test_failures_between_answers_are_weather(users: Users) -> None:
    """In a row means in a row."""
    for _ in range(5):
        await users.fails(4)
        users.source.says = IdentityNotLinked("none")
        await users.next()
    assert users.source.asked == 25


async def test_a_user_for_whom_the_source_always_fails_is_no_outage(users: Users, clock: Any) -> None:
    """What Auth0 keeps of one user may make it answer 500, and their page asks ever again: nobody else is to pay."""
    answers = Source()

    async def token(caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        if caller.subject == "mallory":
            users.source.asked += 1
            raise DOWN
        return await answers.token(caller, route, refused=refused)

    users.source.token = token  # type: ignore[method-assign]
    mallory = Caller("mallory")
    for asked in range(50):
        with pytest.raises(TokenSourceUnavailable):
            await users.engine.token(mallory, users.route)
        assert await users.next() == [Token("fine")], f"after {asked + 1} failures"
    users.source.asked = 0
    for _ in range(20):
        with pytest.raises(TokenSourceUnavailable):
            await users.engine.token(mallory, users.route)
    assert users.source.asked == 5
    answers.gate.clear()
    crowd = asyncio.create_task(users.next(50))
    for _ in range(20):
        await asyncio.sleep(0)
    assert answers.at_once == 50
    answers.gate.set()
    assert await crowd == [Token("fine")] * 50


async def test_a_second_user_who_fails_makes_it_an_outage(
    users: Users, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """However it began; and only then does the log say so."""
    users.source.says = DOWN
    for _ in range(20):
        with pytest.raises(TokenSourceUnavailable):
            await users.engine.token(Caller("first"), users.route)
    assert users.source.asked == 5
    assert not caplog.records
    clock.shift(100)
    await users.next()
    assert users.source.asked == 6
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    # One looks again, since the wait is over; then nobody.
    await users.next()
    await users.next(50)
    assert users.source.asked == 7
    assert len(caplog.records) == 1


async def test_each_route_of_a_source_that_is_down_is_told(clock: Any) -> None:
    """By source alone, two of a kind would overwrite each other; a route that is new to it joins in."""
    told: list[Any] = []
    engine, source = TokenEngine(observe=told.append), Source()
    source.identity = ("one",)  # type: ignore[attr-defined]
    source.says = DOWN
    first, second, third = (
        ProxyRoute("https://api.example.com", token_source=source, connection="github", name=name)
        for name in ("first", "second", "third")
    )
    for number, route in enumerate((first, second, first, second, first, third)):
        with pytest.raises(TokenSourceUnavailable):
            await engine.token(Caller(f"user-{number}"), route)
    assert told == [CircuitRecord("Source", route=name, open=True) for name in ("first", "second", "third")]
    told.clear()
    clock.shift(10)
    source.says = Token("back")
    await engine.token(Caller("alice"), second)
    assert told == [CircuitRecord("Source", route=name, open=False) for name in ("first", "second", "third")]
    await engine.aclose()


async def test_tokens_that_are_held_serve_on(users: Users, clock: Any) -> None:
    """An outage of the identity provider is no outage of what has been obtained."""
    users.source.says = Token("held", time.time() + 600)
    await users.next()
    await users.fails()
    clock.shift(600 - 70 + 30)
    assert await users.engine.token(Caller("user-0"), users.route) == Token("held", 1_800_000_600)


async def test_a_source_that_is_down_is_nothing_to_another(users: Users) -> None:
    """A circuit for each."""
    await users.fails()
    other = Source()
    route = ProxyRoute("https://api.example.com", token_source=other, connection="github")
    assert await users.engine.token(Caller("alice"), route) == Token("fine")


async def test_a_probe_that_is_cancelled_leaves_the_way_to_the_next(users: Users, clock: Any) -> None:
    """Or nobody would ever ask again."""
    await users.fails()
    clock.shift(1.3)
    users.source.gate.clear()
    probing = asyncio.create_task(users.next())
    while users.source.at_once != 1:  # noqa: ASYNC110 (the source has no event for it)
        await asyncio.sleep(0)
    # As a shutdown does.
    await users.engine.aclose()
    await probing
    users.source.gate.set()
    users.source.says = Token("back")
    assert await users.next() == [Token("back")]


async def test_the_wait_for_a_turn_is_bounded(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that hangs must not gather all requests there are; and our own crowd is no failure of its."""
    monkeypatch.setattr("idp_middleware._circuit.PATIENCE", 0.05)
    users.source.gate.clear()
    crowd = asyncio.create_task(users.next(150))
    await asyncio.sleep(0.3)
    users.source.gate.set()
    assert Counter(type(each) for each in await crowd) == {Token: 100, TokenSourceBusy: 50}
    assert TokenSourceBusy.status == 503
    assert await users.next() == [Token("fine")]


async def test_a_clock_that_was_set_back_does_not_keep_it_shut(users: Users, clock: Any) -> None:
    """For as long as the clock was wrong."""
    await users.fails()
    clock.shift(-3600)
    users.source.says = Token("back")
    assert await users.next() == [Token("back")]


def test_callers_are_told_at_once_and_when_to_come_back() -> None:
    """Over the wire, with an Auth0 that answers 500: the sixth request does not reach it."""
    with running() as stack:
        stack.auth0.fail("/api/v2/users/", status=500)
        with stack.client() as client:
            answers = [client.get("/idp/github/user") for _ in range(8)]
            assert [answer.status_code for answer in answers] == [503] * 8
            assert all(int(answer.headers["retry-after"]) in (1, 2) for answer in answers)
            assert {answer.json()["type"].rpartition(":")[2] for answer in answers} == {"token-source-unavailable"}
            assert stack.auth0.count("/api/v2/users/") == 5
            stack.auth0.reset_faults()
            _until_well(client)


def _until_well(client: httpx.Client) -> None:
    for _ in range(100):
        if client.get("/idp/github/user").status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail("it did not recover")
