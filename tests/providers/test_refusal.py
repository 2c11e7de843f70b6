"""Refusals told in words: what is looked at is relayed to the byte; what is long or of another kind is left alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from idp_middleware import ProxyRoute, Timeout, Token
from idp_middleware._refusal import LOOK_AT, Refusal
from tests.providers.conftest import problem
from tests.stack import Stack, eventually, raw_upstream, read_head, running

REFUSAL = Refusal(
    statuses=frozenset({401, 419}),
    told_under=frozenset({200, 400}),
    member=("error", "code"),
    values=frozenset({190, "expired"}),
)
REFUSED = b'{"error": {"code": 190}}'
JSON = b"Content-Type: application/json\r\n"


class Upstream:
    """Sends the pieces of its answers one after the other, each when it may."""

    def __init__(self) -> None:
        self.answers: list[list[bytes | float]] = []
        self.heads: list[bytes] = []
        self.closed = 0

    def serve(self, connection: socket.socket) -> None:
        while head := read_head(connection):
            self.heads.append(head)
            pieces = self.answers.pop(0)
            for piece in pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    connection.sendall(piece)
            if pieces[-1] == b"":
                return
        self.closed += 1


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Stack, Upstream]]:
    upstream = Upstream()
    with raw_upstream(upstream.serve) as url, running(routes=lambda *_: routes(url)) as stack:
        yield stack, upstream


def routes(url: str, **options: Any) -> dict[str, ProxyRoute]:
    async def source(caller: Any, route: Any, *, refused: Token | None = None) -> Token:
        return Token("second" if refused else "first")

    return {"api": ProxyRoute(url, token_source=source, refused=REFUSAL, **options)}


_users = iter(range(10**6))


def ask(world: tuple[Stack, Upstream], *answers: list[bytes | float], method: str = "GET") -> httpx.Response:
    """The answer to a user whom nobody has seen before."""
    stack, upstream = world
    upstream.answers, upstream.heads = list(answers), []
    with stack.client(f"someone{next(_users)}") as client:
        return client.request(method, "/idp/api/x")


def whole(body: bytes, *, status: str = "200 OK", fields: bytes = JSON) -> list[bytes | float]:
    return [b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status.encode(), fields, len(body), body)]


def tokens(upstream: Upstream) -> list[str]:
    fields = [line for head in upstream.heads for line in head.split(b"\r\n")]
    return [line.split()[-1].decode() for line in fields if line.lower().startswith(b"authorization:")]


FINE = whole(b'{"fine": true}')


@pytest.mark.parametrize(
    ("first", "refused"),
    [
        (whole(REFUSED), True),
        (whole(REFUSED, status="400 Bad Request"), True),
        (whole(b'{"error": {"code": "expired", "more": [1]}}'), True),
        (whole(REFUSED, fields=b"Content-Type: Application/JSON; charset=utf-8\r\n"), True),
        (whole(REFUSED, fields=b"Content-Type: application/problem+json\r\n"), True),
        (whole(REFUSED, fields=JSON + b"Content-Encoding: identity\r\n"), True),
        (whole(b"no JSON", status="401 Unauthorized"), True),
        (whole(b"", status="419 Page Expired", fields=b""), True),
        (whole(REFUSED, status="403 Forbidden"), False),
        (whole(REFUSED, fields=b"Content-Type: text/plain\r\n"), False),
        (whole(REFUSED, fields=b"Content-Type: application/jsonp\r\n"), False),
        (whole(REFUSED, fields=b""), False),
        (whole(REFUSED, fields=JSON + b"Content-Encoding: exi\r\n"), False),
        (whole(b'{"error": {"code": 191}}'), False),
        (whole(b'{"error": {"code": [190]}}'), False),
        (whole(b'{"error": {"code": {"190": 190}}}'), False),
        (whole(b'{"error": 190}'), False),
        (whole(b'{"code": 190}'), False),
        (whole(b'[{"error": {"code": 190}}]'), False),
        (whole(b"190"), False),
        (whole(b""), False),
        (whole(REFUSED[:-1]), False),
        (whole(b"[" * 8000), False),
        (whole(b"\xff\xfe{}"), False),
    ],
)
def test_what_is_a_refusal(world: Any, first: list[bytes | float], refused: bool) -> None:
    """By status, or by a status and a word; whatever else an API says is the caller's, as it is."""
    answer = ask(world, first, FINE)
    assert tokens(world[1]) == (["first", "second"] if refused else ["first"])
    head, _, body = bytes((FINE if refused else first)[0]).partition(b"\r\n\r\n")
    assert (answer.status_code, answer.content) == (int(head.split()[1]), body)


def test_an_answer_that_arrives_in_pieces_is_looked_at_as_one(world: Any) -> None:
    """A refusal cut in two is one; and a chunked one too."""
    cut = whole(REFUSED)[0]
    answer = ask(world, [cut[:-10], 0.05, cut[-10:]], FINE)
    assert (tokens(world[1]), answer.content) == (["first", "second"], b'{"fine": true}')
    chunked = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % JSON
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (REFUSED[:5], REFUSED[5:])]
    answer = ask(world, [chunked, 0.05, chunks[0], 0.05, chunks[1], b"0\r\n\r\n"], FINE)
    assert (tokens(world[1]), answer.content) == (["first", "second"], b'{"fine": true}')


@pytest.mark.parametrize("size", [0, 1, LOOK_AT - 1, LOOK_AT, LOOK_AT + 1, 3 * LOOK_AT, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_was_looked_at_is_relayed_to_the_byte(world: Any, size: int, chunked: bool) -> None:
    """However long, in whatever pieces."""
    body = bytes(33 + i % 90 for i in range(size))
    if chunked:
        parts = [body[i : i + 3000] for i in range(0, size, 3000)]
        pieces: list[bytes | float] = [b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % JSON]
        pieces += [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
        pieces.append(b"0\r\n\r\n")
    else:
        pieces = whole(body)
    answer = ask(world, pieces)
    assert answer.content == body
    assert len(world[1].heads) == 1


def test_a_long_answer_is_not_waited_for(world: Any) -> None:
    """What is longer than an error can be leaves as it comes."""
    stack, upstream = world
    upstream.answers = [[b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % JSON]]
    first = b" " * (LOOK_AT + 1)
    upstream.answers[0] += [b"%x\r\n%b\r\n" % (len(first), first), 1.0, b"2\r\n{}\r\n0\r\n\r\n"]
    with stack.client(f"someone{next(_users)}") as client, client.stream("GET", "/idp/api/x") as answer:
        begun, chunks = time.monotonic(), answer.iter_raw()
        assert next(chunks).startswith(b" ")
        assert time.monotonic() - begun < 0.9
        assert b"".join(chunks).endswith(b"{}")


def test_an_answer_to_head_has_nothing_to_look_at(world: Any) -> None:
    """Its length speaks of a body that does not come."""
    answer = ask(world, [b"HTTP/1.1 200 OK\r\n%bContent-Length: 24\r\n\r\n" % JSON], method="HEAD")
    assert (answer.status_code, answer.headers["content-length"]) == (200, "24")


def test_no_coding_that_could_not_be_looked_into_is_asked_for(world: Any) -> None:
    """Browsers ask for all there are."""
    ask(world, FINE)
    head = world[1].heads[0].lower()
    assert head.count(b"accept-encoding:") == 1
    assert b"\r\naccept-encoding: identity\r\n" in head


def test_an_answer_that_breaks_off_while_it_is_looked_at_is_an_error(world: Any) -> None:
    """Nothing has been sent yet, so it can be said in words."""
    broken = [b"HTTP/1.1 200 OK\r\n%bContent-Length: 100\r\n\r\n{" % JSON, b""]
    assert problem(ask(world, broken))[:2] == (502, "upstream-unreachable")


def test_an_answer_that_stalls_while_it_is_looked_at_is_a_time_out() -> None:
    """Within the bound that the route has for that."""
    upstream = Upstream()
    with (
        raw_upstream(upstream.serve) as url,
        running(routes=lambda *_: routes(url, timeout=Timeout(read=0.3))) as stack,
    ):
        stalled: list[bytes | float] = [b"HTTP/1.1 200 OK\r\n%bContent-Length: 100\r\n\r\n{" % JSON, 2.0, b""]
        assert problem(ask((stack, upstream), stalled))[:2] == (504, "upstream-timeout")


def test_a_caller_who_leaves_meanwhile_leaves_no_connection_behind(world: Any) -> None:
    """Whatever is read while looking has somebody to close it."""
    stack, upstream = world
    upstream.answers = [[b"HTTP/1.1 200 OK\r\n%bContent-Length: 100\r\n\r\n{" % JSON]]
    upstream.heads, closed = [], upstream.closed
    with stack.connect() as client:
        client.send(stack.raw_request("GET", "/idp/api/x", close=False, user=f"someone{next(_users)}"))
        eventually(lambda: upstream.heads)
    eventually(lambda: upstream.closed > closed)


def test_a_refusal_of_more_than_can_be_sent_again_passes() -> None:
    """The body is gone; but the next request has the new token."""
    upstream = Upstream()

    def drain(connection: socket.socket) -> None:
        received = read_head(connection)
        upstream.heads.append(received)
        while b"\r\n0\r\n\r\n" not in received:
            received = received[-7:] + connection.recv(65536)
        connection.sendall(bytes(whole(REFUSED)[0]))

    with raw_upstream(drain) as url, running(routes=lambda *_: routes(url)) as stack, stack.client() as client:
        for _ in range(2):
            answer = client.post("/idp/api/x", content=(b"x" * 10_000 for _ in range(20)))
            assert answer.content == REFUSED
        assert tokens(upstream) == ["first", "second"]
