"""The shared cache: what is at rest, what is believed of it, and that its failures are nobody's."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import time_machine
import trustme
from aiocache import SimpleMemoryCache
from aiocache.base import BaseCache
from aiocache.serializers import PickleSerializer
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from idp_middleware import Caller, ProxyRoute, Token
from idp_middleware._cache import TokenCache, as_token_cache
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import CheckFailed, ConfigurationError, IdentityNotLinked, TokenSourceUnavailable
from tests.fleet.redis_server import running_redis

KEY = Fernet.generate_key().decode()
ALICE = (("auth0-management", "https://acme.example"), "github", "https://acme.example/", "auth0|alice", None)
BOB = (*ALICE[:3], "auth0|bob", None)
TOKEN = Token("gho_s3cret", 2e9, scopes=frozenset({"repo", "gist"}))


def stored(backend: SimpleMemoryCache) -> dict[str, str]:
    return backend._cache


# What is at rest


async def test_a_token_comes_back_as_it_was() -> None:
    """Expiry and scopes decide how it is used."""
    cache = TokenCache(SimpleMemoryCache(), encryption_keys=[KEY])
    await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    await cache.set(BOB, Token("plain"), 1e9, ttl=60)
    assert await cache.get(ALICE) == (TOKEN, 1e9)
    assert await cache.get(BOB) == (Token("plain"), 1e9)
    await cache.delete(ALICE)
    assert await cache.get(ALICE) is None


async def test_neither_token_nor_subject_is_at_rest_in_clear() -> None:
    """Whoever reads the cache learns nothing about anybody."""
    cache = TokenCache(backend := SimpleMemoryCache(), encryption_keys=[KEY])
    await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    at_rest = str(stored(backend))
    assert [word for word in ("s3cret", "alice", "github", "acme") if word in at_rest] == []


async def test_a_value_copied_to_another_users_key_is_not_believed() -> None:
    """Who can write to the cache must not be able to hand alice's token to bob."""
    cache = TokenCache(backend := SimpleMemoryCache(), encryption_keys=[KEY])
    await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    (value,) = stored(backend).values()
    await cache.set(BOB, Token("bobs"), 1e9, ttl=60)
    for name in stored(backend):
        stored(backend)[name] = value
    assert await cache.get(ALICE) == (TOKEN, 1e9)
    assert await cache.get(BOB) is None


async def test_keys_rotate() -> None:
    """The first key encrypts, all of them decrypt, and a key that is gone takes its values along."""
    backend, new = SimpleMemoryCache(), Fernet.generate_key()
    await TokenCache(backend, encryption_keys=[KEY]).set(ALICE, TOKEN, 1e9, ttl=60)
    assert await TokenCache(backend, encryption_keys=[new, KEY.encode()]).get(ALICE) == (TOKEN, 1e9)
    assert await TokenCache(backend, encryption_keys=[new]).get(ALICE) is None
    await TokenCache(backend, encryption_keys=[new, KEY.encode()]).set(ALICE, TOKEN, 1e9, ttl=60)
    assert await TokenCache(backend, encryption_keys=[new]).get(ALICE) == (TOKEN, 1e9)


class Trap:
    """Unpickled, it would run."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    "value",
    ["", "nonsense", b"\xff\xfe", 7, {"a": 1}, pickle.dumps(Trap()), "[" * 100_000],
    ids=["empty", "nonsense", "bytes", "number", "object", "pickle", "deep"],
)
@pytest.mark.parametrize("keys", [[KEY], []], ids=["encrypted", "clear"])
async def test_anything_else_under_a_key_is_a_miss(value: Any, keys: list[str]) -> None:
    """Another program's value, another version's, an attacker's: never an error, never code."""
    backend = SimpleMemoryCache(serializer=PickleSerializer())
    cache = TokenCache(backend, encryption_keys=keys)
    await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    (name,) = stored(backend)
    stored(backend)[name] = value
    assert await cache.get(ALICE) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"value": None},
        {"value": "two\r\nlines"},
        {"value": ["x"]},
        {"type": 1},
        {"expires_at": "soon"},
        {"expires_at": []},
        {"scopes": 5},
        {"scopes": [[]]},
        {"asked_at": None},
        {"name": "other"},
    ],
)
async def test_a_document_with_a_damaged_member_is_a_miss(damage: dict[str, Any]) -> None:
    """Each member decides something."""
    cache = TokenCache(backend := SimpleMemoryCache())
    await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    ((name, text),) = stored(backend).items()
    stored(backend)[name] = json.dumps(json.loads(text) | damage)
    assert await cache.get(ALICE) is None


part = st.recursive(
    st.none() | st.text(st.characters(), max_size=4) | st.frozensets(st.text(max_size=2), max_size=3),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(part, max_size=4).map(tuple), st.lists(part, max_size=4).map(tuple))
def test_no_two_keys_are_one(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """("ab", "c") and ("a", "bc") are different users."""

    async def crosswise() -> tuple[Any, Any]:
        cache = TokenCache(SimpleMemoryCache())
        await cache.set(one, TOKEN, 1e9, ttl=10)
        found = await cache.get(one), await cache.get(other)
        await cache.delete(one)
        return found

    mine, theirs = asyncio.run(crosswise())
    assert mine == (TOKEN, 1e9)
    assert (theirs is not None) == (_plain(one) == _plain(other))


def _plain(key: Any) -> Any:
    """Frozensets as the tuples they are written as; a source returns the one or the other, never both for a place."""
    if isinstance(key, frozenset):
        return tuple(sorted(key))
    return tuple(map(_plain, key)) if isinstance(key, tuple) else key


async def test_a_key_of_something_that_has_no_one_spelling_is_refused() -> None:
    """1 and "1", a list and its repr: better a loud mistake of a source's author than a shared entry."""
    with pytest.raises(TypeError, match="not int"):
        await TokenCache(SimpleMemoryCache()).get(("alice", 1))


# How long


class Recording(SimpleMemoryCache):
    ttls: list[Any]

    async def _set(self, key: str, value: Any, ttl: Any = None, **options: Any) -> Any:
        self.ttls = [*getattr(self, "ttls", []), ttl]
        return await super()._set(key, value, ttl=ttl, **options)


@pytest.mark.parametrize("ttl", [0, 0.9, -5, float("-inf")])
async def test_what_is_about_to_expire_is_not_written(ttl: float) -> None:
    """A ttl of zero means "for ever" to aiocache's memory, and an error to Redis."""
    cache = TokenCache(backend := SimpleMemoryCache())
    await cache.set(ALICE, TOKEN, 1e9, ttl=ttl)
    assert stored(backend) == {}


async def test_time_to_live_is_in_whole_seconds_and_bounded() -> None:
    """memcached takes integers only, and reads more than thirty days as a date in 1970."""
    cache = TokenCache(backend := Recording())
    for ttl in (59.9, 1e12, float("inf")):
        await cache.set(ALICE, TOKEN, 1e9, ttl=ttl)
    assert backend.ttls == [59, 2592000, 2592000]
    assert {type(ttl) for ttl in backend.ttls} == {int}
    await cache.delete(ALICE)


async def test_a_host_whose_clock_is_ahead_does_not_lengthen_a_life() -> None:
    """The age of a token of unknown expiry counts from when it was asked for, which can't be tomorrow."""
    cache = TokenCache(SimpleMemoryCache())
    await cache.set(ALICE, TOKEN, time.time() + 3600, ttl=60)
    found = await cache.get(ALICE)
    assert found is not None
    assert found[1] <= time.time()
    await cache.delete(ALICE)


# Failures


class Failing(SimpleMemoryCache):
    """A backend whose server is gone, or hangs."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.calls = 0
        self.delay = delay

    async def _fail(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(self.delay)
        raise ConnectionError("redis://user:pa55word@10.0.0.7 refused")

    _get = _set = _delete = _fail


async def test_a_dead_cache_is_a_miss_that_is_logged_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The identity provider can always be asked; a thousand log lines help nobody."""
    cache = TokenCache(backend := Failing())
    for _ in range(10):
        assert await cache.get(ALICE) is None
        await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    assert backend.calls == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "ConnectionError" in record.message
    assert "pa55word" not in caplog.text
    assert "10.0.0.7" not in caplog.text


async def test_a_cache_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage ends."""
    monkeypatch.setattr("idp_middleware._shared_guard.REST", 0.01)
    cache = TokenCache(backend := Failing())
    await cache.get(ALICE)
    await asyncio.sleep(0.02)
    await cache.set(ALICE, TOKEN, 1e9, ttl=60)
    await asyncio.sleep(0.02)
    await cache.get(ALICE)
    assert backend.calls == 3


async def test_dropping_a_token_is_tried_however_the_cache_fares() -> None:
    """A disconnected account whose token stays in the cache would come back."""
    cache = TokenCache(backend := Failing())
    await cache.get(ALICE)
    await cache.delete(ALICE)
    assert backend.calls == 2


async def test_a_hanging_cache_costs_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiocache's own bound is five seconds, and a backend may have switched it off."""
    monkeypatch.setattr("idp_middleware._shared_guard.PATIENCE", 0.05)
    cache = TokenCache(Failing(delay=3600))
    started = time.monotonic()
    assert await cache.get(ALICE) is None
    assert time.monotonic() - started < 4


# Set-up


class Elsewhere(BaseCache):
    """Some backend that is not this process's memory."""


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: TokenCache(Elsewhere()), "encryption_keys"),
        (lambda: TokenCache("redis://localhost"), "cache"),  # type: ignore[arg-type]
        (lambda: TokenCache(Elsewhere(), encryption_keys=KEY), "encryption_keys"),
        (lambda: TokenCache(Elsewhere(), encryption_keys=["short"]), "encryption_keys"),
        (lambda: TokenCache(Elsewhere(), encryption_keys=[KEY, ""]), "encryption_keys"),
        (lambda: TokenCache(Elsewhere(), encryption_keys=[None]), "encryption_keys"),  # type: ignore[list-item]
        (lambda: TokenCache.from_url("redis://localhost", encryption_keys=[]), "encryption_keys"),
        (lambda: TokenCache.from_url("memory://", encryption_keys=[KEY]), "url"),
        (lambda: TokenCache.from_url("redis://localhost:pa55word", encryption_keys=[KEY]), "url"),
        (lambda: TokenCache.from_url("redis://localhost?socket_timeout=soon", encryption_keys=[KEY]), "url"),
        (lambda: TokenCache.from_url(7, encryption_keys=[KEY]), "url"),  # type: ignore[arg-type]
        (lambda: as_token_cache("memory"), "cache"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_told_where_they_are_made(make: Any, key: str) -> None:
    """Tokens leave the process only encrypted, so there is no default that works without a key."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.key == key
    assert "pa55word" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """redis is optional."""
    monkeypatch.delitem(sys.modules, "idp_middleware._shared_redis", raising=False)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"idp-middleware\[redis\]"):
        TokenCache.from_url("redis://localhost", encryption_keys=[KEY])


def test_what_the_middleware_takes() -> None:
    """None, a TokenCache, or an aiocache backend in memory."""
    cache = TokenCache(SimpleMemoryCache())
    assert as_token_cache(None) is None
    assert as_token_cache(cache) is cache
    assert isinstance(as_token_cache(SimpleMemoryCache()), TokenCache)


# Behind the engine: two workers


class Source:
    identity = ("source", "1")

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.times = 0

    async def token(self, caller: Caller, route: ProxyRoute, *, refused: Token | None = None) -> Token:
        self.times += 1
        answer = self.answers.pop(0) if self.answers else Token(f"token-{self.times}", time.time() + 3600)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Workers:
    """Two processes' engines on one cache, and a source that both ask."""

    def __init__(self, backend: BaseCache) -> None:
        self.source = Source()
        self.route = ProxyRoute("https://api.example.com", token_source=self.source, connection="github")
        self.one, self.other = (TokenEngine(TokenCache(backend, encryption_keys=[KEY])) for _ in range(2))

    async def first(self) -> Token:
        return await self.one.token(Caller("alice"), self.route)

    async def second(self) -> Token:
        return await self.other.token(Caller("alice"), self.route)


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = Workers(backend := SimpleMemoryCache())
    yield workers
    await workers.one.aclose()
    await workers.other.aclose()
    for handle in backend._handlers.values():
        handle.cancel()


async def test_workers_share_what_one_of_them_asked_for(workers: Workers) -> None:
    """Four workers would otherwise cost four look-ups per user."""
    assert await workers.first() == await workers.second()
    assert workers.source.times == 1


async def test_a_source_without_an_identity_stays_in_its_process() -> None:
    """Nothing says that another worker's function of the same name is the same function."""
    backend = SimpleMemoryCache()

    async def source(caller: Caller, route: ProxyRoute) -> Token:
        return Token("mine")

    engine = TokenEngine(TokenCache(backend))
    here = ProxyRoute("https://api.example.com", token_source=source)
    await engine.token(Caller("alice"), here)
    await engine.forget(Caller("alice"), here)
    assert stored(backend) == {}


async def test_a_token_that_another_worker_renewed_is_taken(workers: Workers) -> None:
    """One renewal for all of them; the refused one in the cache is of no use to anybody."""
    old = await workers.first()
    await workers.second()
    new = await workers.one.renew(Caller("alice"), workers.route, old)
    assert new != old
    assert await workers.other.renew(Caller("alice"), workers.route, old) == new
    assert workers.source.times == 2


async def test_renewing_ahead_passes_over_the_token_being_renewed(workers: Workers) -> None:
    """The cache holds the very token that is about to expire."""
    with time_machine.travel(time.time(), tick=True) as clock:
        old = await workers.first()
        clock.shift(3545)
        assert await workers.second() == old
        await workers.first()
        await asyncio.gather(*workers.one._keeper._flights.values())
        assert await workers.first() != old
        assert workers.source.times == 2


async def test_the_age_of_a_token_counts_from_when_it_was_asked_for(workers: Workers) -> None:
    """Passed from worker to worker, a token of unknown expiry would never grow old."""
    workers.source.answers = [Token("one"), Token("two")]
    with time_machine.travel(time.time(), tick=True) as clock:
        await workers.first()
        clock.shift(200)
        assert (await workers.second()).value == "one"
        clock.shift(150)
        assert (await workers.second()).value == "two"


async def test_what_is_not_linked_any_more_leaves_the_cache(workers: Workers) -> None:
    """Or a worker that starts afresh would find it there."""
    old = await workers.first()
    workers.source.answers = [IdentityNotLinked("gone"), IdentityNotLinked("gone")]
    with pytest.raises(IdentityNotLinked):
        await workers.one.renew(Caller("alice"), workers.route, old)
    with pytest.raises(IdentityNotLinked):
        await workers.second()


async def test_forgetting_reaches_the_cache(workers: Workers) -> None:
    """The app calls it in one worker; the others find nothing there."""
    await workers.first()
    await workers.one.forget(Caller("alice"), workers.route)
    await workers.second()
    assert workers.source.times == 2


async def test_an_outage_of_the_identity_provider_is_bridged_by_the_cache(workers: Workers) -> None:
    """A worker that starts during it serves what the others still hold."""
    await workers.first()
    workers.source.answers = [TokenSourceUnavailable("down")]
    assert (await workers.second()).value == "token-1"


# A real Redis


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    users = ["--user", "default", "off", "--user", "w@rker", "on", ">p@ss/word", "~*", "+@all"]
    with running_redis(tmp_path_factory.mktemp("redis"), *users) as server:
        yield f"redis://w%40rker:p%40ss%2Fword@127.0.0.1:{server.port}/3"


@pytest.fixture
async def redis_cache(redis_server: str) -> AsyncIterator[TokenCache]:
    cache = TokenCache.from_url(redis_server, encryption_keys=[KEY])
    yield cache
    await cache.delete(ALICE)
    await cache.aclose()


async def test_redis_keeps_what_it_is_given(redis_server: str, redis_cache: TokenCache) -> None:
    """User name, password and database of the URL are used, percent-encoding undone."""
    assert await redis_cache.get(ALICE) is None
    await redis_cache.set(ALICE, TOKEN, 1e9, ttl=60)
    another = TokenCache.from_url(redis_server, encryption_keys=[KEY])
    assert await another.get(ALICE) == (TOKEN, 1e9)
    await another.aclose()
    await redis_cache.delete(ALICE)
    assert await redis_cache.get(ALICE) is None


async def test_what_is_in_redis_is_ciphertext_and_expires(redis_server: str, redis_cache: TokenCache) -> None:
    """Looked at from outside, with a client that knows nothing of ours."""
    from redis.asyncio import Redis

    await redis_cache.set(ALICE, TOKEN, 1e9, ttl=59.5)
    async with Redis.from_url(redis_server) as client:
        (name,) = await client.keys("*")
        value = await client.get(name)
        assert 50 <= await client.ttl(name) <= 59
        assert name.startswith(b"idp-middleware:token:")
        assert json.loads(Fernet(KEY).decrypt(value.partition(b":")[2]))["value"] == "gho_s3cret"
        for at_rest in (name, value):
            assert b"s3cret" not in at_rest
            assert b"alice" not in at_rest


async def test_workers_share_through_redis(redis_server: str) -> None:
    """The whole of it: two engines, one look-up."""
    one, other = (TokenEngine(TokenCache.from_url(redis_server, encryption_keys=[KEY])) for _ in range(2))
    source = Source()
    here = ProxyRoute("https://api.example.com", token_source=source, connection="github")
    assert await one.token(Caller("carol"), here) == await other.token(Caller("carol"), here)
    assert source.times == 1
    await one.forget(Caller("carol"), here)
    await one.aclose()
    await other.aclose()


async def test_a_cache_works_again_after_it_was_closed(redis_cache: TokenCache) -> None:
    """Two apps may share one, and the first to shut down closes it."""
    await redis_cache.set(ALICE, TOKEN, 1e9, ttl=60)
    await redis_cache.aclose()
    assert await redis_cache.get(ALICE) == (TOKEN, 1e9)


async def test_redis_over_tls_is_only_spoken_to_under_the_name_in_its_certificate(tmp_path: Path) -> None:
    """Older redis-py would take any name that the authority has signed."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "ca.pem"]
    with running_redis(tmp_path, "--port", "0", "--tls-auth-clients", "no", *files) as server:
        for host, found in (("localhost", (TOKEN, 1e9)), ("127.0.0.1", None)):
            url = f"rediss://{host}:{server.port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
            cache = TokenCache.from_url(url, encryption_keys=[KEY])
            await cache.set(ALICE, TOKEN, 1e9, ttl=60)
            assert await cache.get(ALICE) == found
            await cache.aclose()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_a_redis_that_is_not_there_is_a_miss(scheme: str) -> None:
    """Refused, or spoken to in TLS where there is none: both are the operator's to read in the log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    cache = TokenCache.from_url(f"{scheme}://127.0.0.1:{port}", encryption_keys=[KEY])
    assert await cache.get(ALICE) is None
    await cache.delete(ALICE)
    await cache.aclose()


async def test_a_backend_that_was_passed_in_is_not_closed() -> None:
    """It is its owner's, who may use it for other things."""
    closed = []

    class Mine(SimpleMemoryCache):
        async def _close(self, *args: Any, **kwargs: Any) -> None:
            closed.append(self)

    await TokenCache(Mine()).aclose()
    assert closed == []


@pytest.mark.parametrize(
    ("old", "new", "wrong", "todo"),
    [
        ("", "", None, ""),
        ("p%40ss", "another", "it refuses us (AuthenticationError)", "check user name and password in url"),
        ("redis:", "rediss:", "it does not answer in time", "rediss:// for TLS"),
        ("127.0.0.1", "no.such.host.invalid", "the host name is not known to DNS", "check its spelling"),
    ],
)
async def test_check_tells_what_is_wrong_with_a_redis(
    redis_server: str, old: str, new: str, wrong: str | None, todo: str
) -> None:
    """And leaves nothing in it that lasts. (Last here, since it lasts two seconds.)"""
    cache = TokenCache.from_url(redis_server.replace(old, new, 1), encryption_keys=[KEY])
    try:
        if wrong is None:
            assert await cache.check() == "gives back what was put in"
            return
        with pytest.raises(CheckFailed) as caught:
            await cache.check()
        assert str(caught.value) == f"the shared cache: {wrong}"
        assert todo in caught.value.todo
    finally:
        await cache.aclose()
