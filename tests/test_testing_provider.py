"""The provider's API is a witness: it records exactly what came, and answers in the awkward ways that real ones do."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from idp_middleware.testing import ProviderAPI, RunningServer, serve

MIB = 1024 * 1024


@pytest.fixture
def api() -> ProviderAPI:
    return ProviderAPI()


@pytest.fixture
def server(api: ProviderAPI) -> Iterator[RunningServer]:
    with serve(api) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestRecording:
    def test_keeps_the_request_as_it_was_sent(self, api: ProviderAPI, server: RunningServer) -> None:
        """Encodings, order and repetition are what a proxy gets wrong."""
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        connection.putrequest("POST", "/echo/a%2Fb//c?x=%20&x", skip_accept_encoding=True)
        for value in ("1", "2"):
            connection.putheader("X-Twice", value)
        connection.putheader("Content-Length", "4")
        connection.endheaders(b"body")
        echoed = json.loads(connection.getresponse().read())
        connection.close()

        request = api.last
        assert (request.method, request.target) == ("POST", b"/echo/a%2Fb//c?x=%20&x")
        assert (request.raw_path, request.query) == ("/echo/a%2Fb//c", "x=%20&x")
        assert [pair for pair in request.headers if pair[0] == b"x-twice"] == [(b"x-twice", b"1"), (b"x-twice", b"2")]
        assert request.header("X-Twice") == "1, 2"
        assert (request.body, request.complete, request.answered) == (b"body", True, True)
        assert echoed["target"] == "/echo/a%2Fb//c?x=%20&x"
        assert ["x-twice", "2"] in echoed["headers"]
        assert echoed["sha256"] == request.sha256 == hashlib.sha256(b"body").hexdigest()

    @pytest.mark.parametrize("chunked", [True, False])
    def test_keeps_only_the_beginning_of_a_large_body(
        self, api: ProviderAPI, client: httpx.Client, chunked: bool
    ) -> None:
        """An upload of a gigabyte must not fill the memory of who watches it."""
        body = bytes(range(256)) * (3 * MIB // 256) + b"end"
        content = (body[start : start + 100_000] for start in range(0, len(body), 100_000)) if chunked else body

        answer = client.put("/upload", content=content).json()

        assert answer == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        assert api.last.body == body[:MIB]
        assert api.last.size == len(body)

    def test_notices_a_client_that_leaves_within_its_upload(self, api: ProviderAPI, server: RunningServer) -> None:
        """An aborted upload must not pass for a whole one."""
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
            eventually(lambda: api.requests and api.last.size == 4)

        eventually(lambda: api.last.disconnected)
        assert not api.last.complete
        assert not api.last.answered

    def test_notices_a_client_that_leaves_within_the_answer(self, api: ProviderAPI, client: httpx.Client) -> None:
        """A proxy whose client has left must not keep the upstream streaming."""
        with client.stream("GET", "/events?chunks=1000&delay=0.05") as response:
            next(response.iter_raw())

        eventually(lambda: api.last.disconnected)
        assert not api.last.answered

    def test_an_answered_client_has_not_left_early(self, api: ProviderAPI, client: httpx.Client) -> None:
        """Closing afterwards is how connections end."""
        client.get("/user")
        client.close()

        assert api.last.answered
        assert not api.last.disconnected


class TestTokens:
    def test_every_request_passes_until_a_token_is_registered(self, api: ProviderAPI, client: httpx.Client) -> None:
        """A test of something else need not set up tokens."""
        assert client.get("/user", headers=bearer("any")).json()["login"] == "anyone"

        api.accept("good", login="alice")

        assert client.get("/user", headers=bearer("good")).json()["login"] == "alice"
        assert client.get("/user", headers=bearer("any")).status_code == 401
        assert client.get("/user").status_code == 401
        assert api.tokens_seen() == ["any", "good"]

    def test_refuses_as_github_does(self, api: ProviderAPI, client: httpx.Client) -> None:
        """The body is what a client shows to its user."""
        api.accept("good")

        assert client.get("/user", headers=bearer("bad")).json()["message"] == "Bad credentials"
        assert client.get("/user").json()["message"] == "Requires authentication"

    def test_two_authorization_fields_are_no_authorization(self, api: ProviderAPI, client: httpx.Client) -> None:
        """A proxy that adds a token beside the caller's has leaked one."""
        api.accept("good")

        response = client.get("/user", headers=[("Authorization", "Bearer good"), ("Authorization", "Bearer callers")])

        assert response.status_code == 401

    def test_a_revoked_token_is_refused_until_accepted_again(self, api: ProviderAPI, client: httpx.Client) -> None:
        """Users withdraw an app, and connect it again."""
        api.revoke("token")
        assert client.get("/user", headers=bearer("token")).status_code == 401
        assert client.get("/user", headers=bearer("other")).status_code == 200

        api.accept("token", login="bob")

        assert client.get("/user", headers=bearer("token")).json()["login"] == "bob"


class TestEndpoints:
    def test_pages_are_linked_by_absolute_urls(self, client: httpx.Client, server: RunningServer) -> None:
        """Links that lead past the proxy are the point of this endpoint."""
        first = client.get("/user/repos")
        second = client.get(first.links["next"]["url"])

        assert first.links["next"]["url"] == f"{server.url}/user/repos?page=2"
        assert second.links["prev"]["url"] == f"{server.url}/user/repos?page=1"
        assert "next" not in second.links
        assert len({repository["id"] for repository in first.json() + second.json()}) == 4
        assert client.get("/user/repos?page=3").json() == []

    @pytest.mark.parametrize("size", [0, 1, 65536, 200_000])
    def test_sends_as_many_bytes_as_asked(self, client: httpx.Client, size: int) -> None:
        """Both framings of HTTP/1.1 carry the same bytes."""
        counted, chunked = client.get(f"/bytes/{size}"), client.get(f"/chunked/{size}")

        assert counted.headers["content-length"] == str(size)
        assert chunked.headers["transfer-encoding"] == "chunked"
        assert len(counted.content) == size
        assert counted.content == chunked.content

    def test_a_head_has_the_length_and_no_body(self, client: httpx.Client) -> None:
        """The length is that of the answer to GET (RFC 9110 section 9.3.2)."""
        response = client.head("/bytes/1000")

        assert (response.headers["content-length"], response.content) == ("1000", b"")

    def test_slow_answers_come_piece_by_piece(self, api: ProviderAPI, client: httpx.Client) -> None:
        """Whether a proxy buffers shows only where the pieces come apart."""
        with client.stream("GET", "/slow?chunks=2&delay=0.3") as response:
            pieces = response.iter_raw()
            assert next(pieces) == b"chunk 0\n"
            assert not api.last.answered
            assert b"".join(pieces) == b"chunk 1\n"

    def test_events_are_an_event_stream(self, client: httpx.Client) -> None:
        """Event sources insist on the media type."""
        response = client.get("/events?chunks=2&delay=0")

        assert response.headers["content-type"] == "text/event-stream"
        assert response.text == "id: 0\ndata: event 0\n\nid: 1\ndata: event 1\n\n"

    @pytest.mark.parametrize("code", [200, 204, 304, 404, 503])
    def test_answers_with_the_status_asked_for(self, client: httpx.Client, code: int) -> None:
        """Those without a body are the ones a proxy trips over."""
        response = client.post(f"/status/{code}")

        assert response.status_code == code
        assert bool(response.content) == (code not in (204, 304))

    def test_sets_two_cookies(self, client: httpx.Client) -> None:
        """Cookies are the field that can't be folded into one."""
        assert len(client.get("/set-cookie").headers.get_list("set-cookie")) == 2

    def test_redirects_where_told(self, client: httpx.Client) -> None:
        """A redirect to elsewhere must not take the token along."""
        assert client.get("/redirect?to=https://evil.example/x").headers["location"] == "https://evil.example/x"

    def test_dies_within_the_body(self, client: httpx.Client) -> None:
        """A truncated body must be told from a whole one."""
        with client.stream("GET", "/die?after=70000") as response:
            received: list[bytes] = []
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(response.iter_raw())

        assert len(b"".join(received)) == 70000

    @pytest.mark.parametrize(
        "path", ["/status/99", "/status/x", "/bytes/-1", "/slow?chunks=x", "/slow?delay=x", "/user/repos?page=x"]
    )
    def test_refuses_a_number_that_is_none(self, client: httpx.Client, path: str) -> None:
        """A typing mistake in a test is an answer, not a stack trace in the server's thread."""
        assert client.get(path).status_code == 422

    @pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("DELETE", "/user"), ("GET", "/upload")])
    def test_knows_nothing_else(self, client: httpx.Client, method: str, path: str) -> None:
        """A path that a proxy has mangled must not find anything."""
        assert client.request(method, path).status_code == 404


class TestCannedAnswers:
    def test_take_the_place_of_the_usual_ones(self, api: ProviderAPI, client: httpx.Client) -> None:
        """Providers have ways of saying no that no endpoint here has."""
        api.accept("good")
        api.respond("/user", status=400, body={"error": {"code": 190}}, headers=[("X-A", "1"), ("X-A", "2")], times=1)

        canned, usual = client.get("/user"), client.get("/user")

        assert canned.status_code == 400
        assert canned.json() == {"error": {"code": 190}}
        assert canned.headers["content-type"].startswith("application/json")
        assert canned.headers.get_list("x-a") == ["1", "2"]
        assert usual.status_code == 401

    def test_may_be_cut_short(self, api: ProviderAPI, client: httpx.Client) -> None:
        """A length that is not kept breaks off an answer, but not one that never has a body."""
        api.respond("/", headers={"Content-Length": "9", "Content-Type": "application/vnd.github+json"}, body={"a": 1})

        assert client.head("/user").headers["content-type"] == "application/vnd.github+json"
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/user")

    def test_come_in_the_order_they_were_set(self, api: ProviderAPI, client: httpx.Client) -> None:
        """A refusal and then an outage is a story that tests tell."""
        api.respond("/user", status=401, times=1)
        api.respond("/", status=503, body="later", headers={"Content-Type": "text/plain"})
        api.stall("/", 0.0)

        answers = [client.get("/user") for _ in range(2)]
        api.reset_faults()

        assert [answer.status_code for answer in answers] == [401, 503]
        assert answers[1].text == "later"
        assert client.get("/user").status_code == 200


async def test_works_in_process() -> None:
    """Where nothing streams, a test needs no socket."""
    api = ProviderAPI()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="https://api.example") as client:
        first = await client.get("/user/repos", headers=bearer("token"))
        upload = await client.post("/upload", content=b"x" * 1000)
        streamed = await client.get("/slow?delay=0.001")

    assert first.links["next"]["url"] == "https://api.example/user/repos?page=2"
    assert upload.json()["size"] == 1000
    assert streamed.text.count("chunk") == 5
    assert api.tokens_seen() == ["token"]
    assert [request.disconnected for request in api.requests] == [False, False, False]


async def test_refuses_websockets() -> None:
    """A handshake that got here by mistake must not succeed."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await ProviderAPI()({"type": "websocket"}, receive, send)

    assert sent == ["websocket.close"]
