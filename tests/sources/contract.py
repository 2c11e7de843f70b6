"""What every source must do that gets a user's token from an identity provider, over real sockets.

A test module subclasses `Contract`, says which double stands in for the provider and how the source is made, and adds
a table of the provider's own errors. See `test_token_exchange.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from idp_middleware import Caller, ProxyRoute, Timeout, Token
from idp_middleware._tokens import TokenEngine
from idp_middleware.errors import (
    ConfigurationError,
    IdPError,
    TokenSourceBusy,
    TokenSourceFailed,
    TokenSourceTimeout,
    TokenSourceUnavailable,
)
from idp_middleware.testing import serve

SECRET = "s3cret-of-the-client"


@dataclass
class Rig:
    """A double on a socket, and the source under test in front of it."""

    contract: Contract
    double: Any
    url: str
    source: Any
    route: ProxyRoute
    others: list[Any] = field(default_factory=list)

    def another(self, **options: Any) -> Rig:
        """The same double, and a source that is set up differently."""
        rig = self.contract.rig_for(self.double, self.url, **options)
        self.others.append(rig.source)
        return rig

    def caller(self, user: str = "alice", **fields: Any) -> Caller:
        """A caller with a token of this user."""
        token = self.contract.credential(self.double, user)
        claims = {"iss": self.double.issuer}
        return Caller(**{"subject": self.contract.subject(user), "credential": token, "claims": claims, **fields})

    async def token(self, user: str = "alice", **fields: Any) -> Token:
        given: Token = await self.source.token(self.caller(user, **fields), self.route)
        return given

    def asked(self) -> int:
        """How often the provider was asked."""
        return int(self.double.count(self.contract.path))

    @contextmanager
    def refusing(self, error: type[IdPError], match: str | None = None) -> Any:
        """The next thing fails like this, and says nothing secret."""
        with pytest.raises(error, match=match) as caught:
            yield caught
        assert caught.type is error, f"{caught.type} is not exactly {error}"
        assert SECRET not in repr(caught.value)


class Contract:
    """Subclass as `Test…`; the first four have to be said."""

    path: ClassVar[str]
    """Of the endpoint that is asked."""
    connection: ClassVar[str | None] = "github"
    url_key: ClassVar[str]
    """The argument that holds the provider's URL."""

    def double(self) -> Any:
        """The provider, where alice and bob each have a token."""
        raise NotImplementedError

    def source(self, url: str, **options: Any) -> Any:
        """The source under test, for a provider at this URL."""
        raise NotImplementedError

    def owner(self, double: Any, value: str) -> str:
        """Whose a token is."""
        raise NotImplementedError

    def subject(self, user: str) -> str:
        return user

    def credential(self, double: Any, user: str) -> str:
        token: str = double.issue_token(self.subject(user), audience="me")
        return token

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        double = self.double()
        with serve(double) as server:
            rig = self.rig_for(double, server.url)
            yield rig
            for source in (rig.source, *rig.others):
                await source.aclose()

    def rig_for(self, double: Any, url: str, **options: Any) -> Rig:
        source = self.source(url, **options)
        route = ProxyRoute("https://api.example.com", token_source=source, connection=self.connection)
        return Rig(self, double, url, source, route)

    async def test_each_user_gets_the_own_token(self, rig: Rig) -> None:
        """Through the engine, where a wrong key would hand alice's to bob."""
        engine = TokenEngine()
        users = ["alice", "bob"] * 5
        callers = {user: rig.caller(user) for user in users}
        tokens = await asyncio.gather(*(engine.token(callers[user], rig.route) for user in users))
        assert [self.owner(rig.double, token.value) for token in tokens] == users
        assert rig.asked() == 2
        await engine.aclose()

    async def test_a_refused_token_is_asked_for_anew(self, rig: Rig) -> None:
        """The source keeps none; whether there is another is the provider's to say."""
        caller = rig.caller()
        first = await rig.source.token(caller, rig.route)
        again = await rig.source.token(caller, rig.route, refused=first)
        assert self.owner(rig.double, again.value) == "alice"
        assert rig.asked() == 2

    async def test_an_outage_is_not_final(self, rig: Rig) -> None:
        """Whatever a broken server or a load balancer in front says, and nothing of it is remembered."""
        caller = rig.caller()
        for status in (500, 502, 503):
            rig.double.respond(self.path, status=status, body={"error": "invalid_grant"}, times=1)
            with rig.refusing(TokenSourceUnavailable):
                await rig.source.token(caller, rig.route)
        rig.double.drop(self.path, times=1)
        with rig.refusing(TokenSourceUnavailable):
            await rig.source.token(caller, rig.route)
        rig.double.reset_faults()
        await rig.source.token(caller, rig.route)

    async def test_a_rate_limit_is_told_and_kept_to(self, rig: Rig) -> None:
        """Nothing is asked before then, for nobody."""
        rig.double.respond(self.path, status=429, headers={"Retry-After": "60"})
        for user in ("alice", "bob"):
            with rig.refusing(TokenSourceBusy) as caught:
                await rig.token(user)
            assert caught.value.retry_after == pytest.approx(60, abs=5)
        assert rig.asked() == 1

    async def test_a_stalling_provider_is_waited_for_a_bounded_time(self, rig: Rig) -> None:
        """A caller waits behind it."""
        hasty = rig.another(timeout=Timeout(connect=0.1, read=0.1, write=0.1))
        rig.double.stall(self.path, 30)
        with rig.refusing(TokenSourceTimeout):
            await hasty.token()

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "<html>",
            [],
            {},
            {"access_token": ""},
            {"access_token": 7},
            {"access_token": "two words"},
            {"access_token": "x\r\ny: z"},
            {"access_token": "x", "token_type": "DPoP"},
            {"access_token": "x", "token_type": ["Bearer"]},
            {"access_token": "x", "token_type": "N_A"},
        ],
        ids=repr,
    )
    async def test_nonsense_is_a_failed_source(self, rig: Rig, body: Any) -> None:
        """What is no bearer token must not become a header."""
        if isinstance(body, dict) and "access_token" in body:
            body = {"token_type": "Bearer", **body}
        rig.double.respond(self.path, body=body)
        with rig.refusing(TokenSourceFailed):
            await rig.token()

    @pytest.mark.parametrize("status", [301, 400, 403, 404])
    async def test_a_page_is_a_failed_source(self, rig: Rig, status: int) -> None:
        """A wrong URL must not tell users to link an account, nor take our secret along to another server."""
        rig.double.respond(self.path, status=status, body="<html>", headers={"Location": "https://evil.example/"})
        with rig.refusing(TokenSourceFailed, match=str(status)):
            await rig.token()
        assert rig.asked() == 1

    async def test_no_secret_shows(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        """Not in a log, an error, a repr or the identity, even where the provider repeats what it was sent."""
        caplog.set_level(logging.DEBUG)
        caller = rig.caller()
        given = await rig.source.token(caller, rig.route)
        repeated = f"{SECRET} {caller.credential}"
        rig.double.respond(self.path, status=400, body={"error": "server_error", "error_description": repeated})
        with rig.refusing(TokenSourceFailed) as caught:
            await rig.source.token(caller, rig.route)
        seen = f"{caplog.text}{caught.value!r}{rig.source!r}{rig.source.identity}{given!r}"
        assert [secret for secret in (SECRET, caller.credential, given.value) if secret in seen] == []
        with pytest.raises(TypeError):
            rig.source.__reduce_ex__(4)

    def test_equal_configuration_is_equal(self) -> None:
        """Workers share tokens by it; our own password has no part in it, and every argument that decides has."""
        url = "https://idp.example"
        assert self.source(url).identity == self.source(url).identity
        others = [self.source("https://other.example"), *(self.source(url, **each) for each in self.variations())]
        identities = {source.identity for source in [self.source(url), *others]}
        assert len(identities) == 1 + len(others)
        assert all(isinstance(part, str) for part in self.source(url).identity)

    def variations(self) -> list[dict[str, Any]]:
        """Options that each decide which token comes back."""
        return []

    def test_plain_http_is_for_this_machine(self) -> None:
        """Tokens and secrets would cross a network in clear."""
        with pytest.raises(ConfigurationError) as caught:
            self.source("http://idp.example")
        assert caught.value.key == self.url_key
        self.source("http://idp.example", allow_insecure=True)

    @pytest.mark.parametrize("url", ["idp.example", "", "https://user:pw@idp.example", "https://idp.example/#x"])
    def test_a_url_that_is_none_is_told(self, url: str) -> None:
        """Long before the first request."""
        with pytest.raises(ConfigurationError) as caught:
            self.source(url)
        assert caught.value.key == self.url_key


class ExchangesTheCallersToken(Contract):
    """Of sources that hand over the caller's own token."""

    async def test_a_caller_without_a_token_has_nothing_to_exchange(self, rig: Rig) -> None:
        """A session's caller, or a job's. That is the set-up's mistake, not the caller's."""
        with rig.refusing(TokenSourceFailed, match="no credential"):
            await rig.token(credential=None)
        assert rig.asked() == 0

    async def test_the_provider_takes_the_callers_token_no_more(self, rig: Rig) -> None:
        """Its session ended while it was still good here."""
        raise NotImplementedError


class KeptForEachToken(ExchangesTheCallersToken):
    """Of sources whose answer depends on more of the caller's token than whose it is."""

    async def test_each_token_of_a_user_is_exchanged_for_itself(self, rig: Rig) -> None:
        """One narrowed to fewer scopes must not get what a wider one was given."""
        engine = TokenEngine()
        wide, narrow = rig.caller(), rig.caller(credential=rig.double.issue_token("alice", audience="me", acr="1"))
        first = await engine.token(wide, rig.route)
        assert await engine.token(wide, rig.route) is first
        await engine.token(narrow, rig.route)
        assert rig.asked() == 2
        await engine.aclose()
