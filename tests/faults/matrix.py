"""Each party × each fault × each stage: what the caller gets, after how long, and what is left behind.

Knows which cells there are; how one is tried is in `attempts.py` and `callers.py`, and what they ought to give in
`docs/fault-matrix.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from tests.faults.caller import Heard
from tests.faults.proxy import FAULTS, Stage

AGAIN = "as it is used again"
STAGES: dict[str, Stage] = {**{stage.value: stage for stage in Stage}, AGAIN: Stage.REQUEST}
"""The columns. The last is a request that goes out on a kept connection in the moment that this breaks."""

Times = tuple[tuple[float, str], ...]
"""Upper bounds in seconds, and what a time below is called."""

UPSTREAM_TIMES: Times = ((0.45, ""), (0.97, "connect time-out"), (1.5, "read time-out"), (2.8, "write time-out"))
PROVIDER_TIMES: Times = ((0.45, ""), (0.97, "connect time-out"), (1.95, "read time-out"), (3.5, "total time-out"))
CACHE_TIMES: Times = ((0.9, ""), (1.9, "patience"))
CALLER_TIMES: Times = ((1.5, ""),)


@dataclass(frozen=True, eq=False)
class Party:
    """A table of the page: whose connections break, `way` by the name that `Ground.settle` has for it."""

    name: str
    way: str
    times: Times
    stranger: bytes
    says: str
    columns: dict[str, str] = field(default_factory=dict)
    """What a stage is called here, where that is something else."""
    mark: bytes = b"\r\n\r\n"
    inside: int = 10
    stages: tuple[str, ...] = tuple(STAGES)


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
TLS_HELLO = bytes.fromhex("16030100630100005f0303") + bytes(range(92))
SMTP = b"220 mail.example ESMTP ready\r\n"

UPSTREAM = Party(
    "The upstream",
    "api",
    UPSTREAM_TIMES,
    SMTP,
    "`GET` of a chunked body; for a fault in the request, `POST` of 8 MiB that breaks after 100,000 bytes.",
)
TLS = Party(
    "The upstream, over TLS",
    "tls",
    UPSTREAM_TIMES,
    HTTP,
    "The same at the level of records.",
    {
        Stage.REQUEST.value: "in our hello",
        Stage.ANSWER.value: "before its hello",
        Stage.HEAD.value: "in its hello",
        Stage.BODY.value: "in its answer's body",
    },
    mark=b"",
    inside=100,
)
KEYS = Party(
    "The identity provider: the keys that callers are verified with",
    "keys",
    PROVIDER_TIMES,
    SMTP,
    "Discovery and the key set, of which nothing is known yet; on a kept connection, the provider has begun to sign "
    "with a new key. Callers with a known key never wait for any of it.",
)
TOKENS = Party(
    "The identity provider: the user's token",
    "tokens",
    PROVIDER_TIMES,
    SMTP,
    "The management token and the user's profile; no token of the user is kept. One that is serves without asking.",
)
RENEWAL = Party(
    "The identity provider: another token after a refusal",
    "tokens",
    PROVIDER_TIMES,
    SMTP,
    "The upstream answers 401 to the token that is kept; the provider has a new one. Where that can't be had, the 401 "
    "stands.",
)
CACHE = Party(
    "The shared cache",
    "redis",
    CACHE_TIMES,
    HTTP,
    "Redis holds the user's token, this process does not; Redis failing, the identity provider is asked.",
    {
        Stage.REQUEST.value: "in the command",
        Stage.ANSWER.value: "before the reply",
        Stage.HEAD.value: "in its first line",
        Stage.BODY.value: "in its value",
    },
    mark=b"\r\n",
    inside=1,
)
WRITE = Party(
    "The shared cache, as it is written to",
    "redis",
    CACHE_TIMES,
    HTTP,
    "Neither Redis nor this process holds the user's token. What the identity provider gives is kept in Redis for "
    "other processes, and here it breaks between the one and the other. *and kept*: they find it there; else they ask "
    "for themselves.",
    CACHE.columns,
    mark=b"\r\n",
    inside=1,
)
CONNECTS, IN_HEAD, IN_BODY, WAITS, READS, RESTS = (
    "as it connects", "in its head", "in its body", "before the answer", "in the answer's body", "at rest",
)  # fmt: skip
CALLER = Party(
    "The caller",
    "api",
    CALLER_TIMES,
    TLS_HELLO,
    "A `GET`; for a fault in the body, a chunked `POST` that breaks after 100,000 bytes. A silent caller stays "
    "for longer than any time-out with an upstream, and for less than the minute after which it is given up. **let "
    "go**: nobody is left to answer, and nothing is left of the request. **held open**: by the server, with "
    "nothing of ours under way. **waits**: the request is under way, for a minute at most. An upload that "
    "was cut off is never whole for the upstream, and an answer that nobody takes is broken off there, too.",
    stages=(CONNECTS, IN_HEAD, IN_BODY, WAITS, READS, RESTS),
)
PARTIES = (UPSTREAM, TLS, KEYS, TOKENS, RENEWAL, CACHE, WRITE, CALLER)


@dataclass(frozen=True)
class Cell:
    """One of the matrix."""

    party: Party
    fault: str
    column: str

    @property
    def stage(self) -> Stage:
        return STAGES[self.column]

    @property
    def senseless(self) -> str:
        """Why there is nothing to try, if there isn't."""
        if self.party is CALLER:
            return self._senseless_of_a_caller()
        if self.fault == "refuse" and self.column not in (Stage.CONNECT.value, Stage.IDLE.value):
            return "only what is not open yet can be refused: see *cut*"
        if self.fault == "stranger" and self.stage in (Stage.HEAD, Stage.BODY):
            return "it has begun to answer: see *garbage*"
        if self.fault in ("delay", "trickle") and self.stage is Stage.IDLE:
            return "nothing moves"
        if self.party is WRITE and self.stage is Stage.BODY:
            return "there is none in the reply"
        return ""

    def _senseless_of_a_caller(self) -> str:
        why = {
            ("black hole", WAITS): "it has nothing to say",
            ("black hole", RESTS): "that is what rest is",
            ("delay", WAITS): "nothing moves",
            ("delay", RESTS): "nothing moves",
            ("trickle", CONNECTS): "see *in its head*",
            ("trickle", WAITS): "nothing moves",
            ("trickle", RESTS): "nothing moves",
        }
        if self.fault == "refuse":
            return "it is who connects"
        if self.fault == "stranger" and self.column != CONNECTS:
            return "it has begun to ask: see *garbage*"
        return why.get((self.fault, self.column), "")


def cells() -> Iterator[Cell]:
    """All of them, also those without sense."""
    for party in PARTIES:
        for fault, column in product(FAULTS, party.stages):
            yield Cell(party, fault, column)


@dataclass(frozen=True)
class Tried:
    """What came of a cell; `wrong` is what must not be, whatever the page says."""

    answer: str
    time: str
    wrong: tuple[str, ...] = ()
    heard: tuple[Heard, ...] = ()

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.answer, self.time)))
