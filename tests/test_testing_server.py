"""`serve` starts at once, stops at once, and leaves nothing behind: a test suite does it a thousand times."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from idp_middleware.testing import Auth0, ProviderAPI, serve, server


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def test_serves_while_the_block_runs() -> None:
    """The first request comes right after the start, and nothing answers after the end."""
    with serve(ProviderAPI()) as running:
        assert running.url == f"http://127.0.0.1:{running.port}"
        assert httpx.get(running.url + "/user").status_code == 200
        assert running.url in repr(running)

    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url + "/user")


def test_leaves_no_thread_and_no_socket() -> None:
    """What leaks here shows up as a warning in somebody else's test."""
    before = threading.active_count()
    for _ in range(3):
        with serve(ProviderAPI()) as running, httpx.Client() as client:
            client.get(running.url + "/user")

    assert threading.active_count() == before
    gc.collect()


def test_stops_only_once() -> None:
    """A test may stop a server to see what its clients do."""
    with serve(ProviderAPI()) as running:
        running.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url)
        running.stop()


def test_a_stopped_servers_port_can_be_served_again() -> None:
    """Upstreams restart, at the same address."""
    with serve(ProviderAPI()) as first, httpx.Client() as client:
        client.get(first.url + "/user")

    with serve(ProviderAPI(), port=first.port) as second:
        assert httpx.get(second.url + "/user").status_code == 200


async def deaf(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await asyncio.sleep(300)


@pytest.mark.parametrize("app", [ProviderAPI(), deaf], ids=["listening", "deaf"])
def test_stops_soon_with_a_stream_open(app: Any) -> None:
    """A hanging stream is what many tests are about; none of them may hang at its end."""
    with httpx.Client(timeout=30) as client:
        with serve(app) as running:
            request = client.build_request("GET", running.url + "/slow?chunks=1000&delay=5")
            response = client.send(request, stream=True)
            pieces = response.iter_raw()  # kept: with the iterator, httpx lets go of the connection
            assert next(pieces)
            start = time.monotonic()
        assert time.monotonic() - start < 3
        response.close()


def test_requests_under_way_may_be_given_time() -> None:
    """How a graceful end looks to a client is a thing to test, too."""
    answers: list[httpx.Response] = []
    api = ProviderAPI()
    with serve(api, timeout_graceful_shutdown=20) as running:
        asking = threading.Thread(
            target=lambda: answers.append(httpx.get(running.url + "/slow?chunks=2&delay=0.5", timeout=30))
        )
        asking.start()
        while not api.requests:
            time.sleep(0.005)
    asking.join()

    assert answers[0].text == "chunk 0\nchunk 1\n"


def test_a_taken_port_is_said_at_once() -> None:
    """Not in another thread's log, after a time-out."""
    with serve(ProviderAPI()) as running, pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{running.port}"):
        serve(ProviderAPI(), port=running.port).__enter__()


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "hangs"])
def test_an_app_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """A test that waited for it would only time out."""
    monkeypatch.setattr(server, "_START", 30.0 if fails else 0.2)
    before = threading.active_count()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if not fails:
            await asyncio.sleep(300)
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(RuntimeError, match="start"):
        serve(app, lifespan="on").__enter__()
    assert threading.active_count() == before


def test_an_app_that_cannot_be_imported_is_an_error() -> None:
    """uvicorn exits the process for it; a thread can't."""
    with pytest.raises(RuntimeError, match="could not start"):
        serve("idp_middleware.nowhere:app").__enter__()


def test_an_app_that_blocks_its_thread_is_said_to_be_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its thread would haunt the tests that follow."""
    monkeypatch.setattr(server, "_STOP", 0.05)
    entered, release = threading.Event(), threading.Event()

    async def blocking(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            entered.set()
            release.wait(30)
            await hello(scope, receive, send)

    running = server.RunningServer(blocking, "127.0.0.1", 0, {})
    asking = threading.Thread(target=lambda: httpx.get(running.url, timeout=30))
    asking.start()
    entered.wait(30)
    with pytest.raises(RuntimeError, match="did not stop"):
        running.stop()
    release.set()
    monkeypatch.undo()
    running.stop()
    asking.join()


def test_runs_the_lifespan() -> None:
    """Apps open and close their resources there."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            message = await receive()
            events.append(message["type"])
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    with serve(app, lifespan="on"):
        assert events == ["lifespan.startup"]
    assert events == ["lifespan.startup", "lifespan.shutdown"]


def test_an_issuer_that_is_set_stays() -> None:
    """A tenant behind a name of its own keeps it."""
    auth0 = Auth0("https://tenant.example/")
    with serve(auth0):
        assert auth0.issuer == "https://tenant.example/"


def test_options_go_to_uvicorn() -> None:
    """Whoever tests a proxy chooses the parser."""
    with serve(hello, http="h11", headers=[("x-served", "yes")]) as running:
        assert httpx.get(running.url).headers["x-served"] == "yes"


def test_speaks_ipv6() -> None:
    """An address with colons needs brackets in a URL."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serve(hello, host="::1") as running:
        assert running.url == f"http://[::1]:{running.port}"
        assert httpx.get(running.url).text == "hello"


def test_needs_uvicorn_only_to_serve() -> None:
    """The doubles are of use without the extra."""
    code = "import sys, idp_middleware.testing; sys.exit('uvicorn' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_the_extra_where_uvicorn_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error of somebody else's module helps nobody."""
    import idp_middleware.testing

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "idp_middleware.testing._uvicorn", raising=False)
    monkeypatch.delattr(idp_middleware.testing, "_uvicorn", raising=False)

    with pytest.raises(ImportError, match=r"idp-middleware\[server\]"):
        serve(hello).__enter__()
