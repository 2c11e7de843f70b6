"""What Prometheus gets to see, from one process and from several."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import HTTPConnection

from idp_middleware import Caller, IdPMiddleware, ProxyRoute, load_config, sources
from idp_middleware.errors import ConfigurationError
from idp_middleware.observers import CacheRecord, CircuitRecord, RequestRecord, TokenRecord
from idp_middleware.prometheus import METRICS, Prometheus, shared_by_workers
from idp_middleware.testing import serve
from tests.stack import eventually, free_port, running


def samples(text):
    """(name, labels as a set of pairs) → value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text, name, **labels):
    """The sum over all that have these labels."""
    return sum(each for (found, having), each in samples(text).items() if found == name and labels.items() <= having)


def a_request(**changes):
    fields = {
        "route": "github",
        "caller": "c" * 16,
        "method": "GET",
        "status": 200,
        "problem": None,
        "bytes_in": 3,
        "bytes_out": 5,
        "authenticate": 0.0002,
        "token_wait": 0.2,
        "upstream": 0.04,
        "total": 0.3,
        "token": "source",
        "upgraded": False,
        "ended": "whole",
    }
    return RequestRecord(**fields | changes)


def scraped(prometheus, **headers):
    with serve(prometheus.app) as server:
        return httpx.get(server.url, headers=headers, trust_env=False)


def test_a_scrape_shows_what_has_been():
    """The whole of it over the wire, with the path that asks for it."""
    with running(metrics=Prometheus()) as stack, stack.client() as client:
        for path in ("github/user", "github/user", "nowhere", "nobody-asks-twice"):
            client.get(f"/idp/{path}")
        answer = httpx.get(f"{stack.url}/idp/metrics", trust_env=False)
        assert httpx.post(f"{stack.url}/idp/metrics", trust_env=False).status_code == 405
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["cache-control"] == "no-store"
    told = answer.text
    assert value(told, "idp_middleware_requests_total", route="github", method="GET", status="2xx", problem="") == 2
    assert value(told, "idp_middleware_requests_total", route="", status="4xx", problem="route-not-found") == 2
    assert value(told, "idp_middleware_request_seconds_count", route="github") == 2
    for stage in ("authenticate", "token", "upstream"):
        assert value(told, "idp_middleware_stage_seconds_count", route="github", stage=stage) == 2
    assert value(told, "idp_middleware_token_lookups_total", found="source") == 1
    assert value(told, "idp_middleware_token_lookups_total", found="held") == 1
    assert value(told, "idp_middleware_token_events_total", event="obtained", source="Auth0Management") == 1
    assert value(told, "idp_middleware_source_requests_total", outcome="ok", source="Auth0Management") == 1
    assert value(told, "idp_middleware_source_seconds_count", source="Auth0Management") == 1
    # The scrape itself.
    assert value(told, "idp_middleware_requests_in_progress") == 1
    assert "nobody-asks-twice" not in told
    assert "alice" not in told


def test_everything_that_can_happen_is_counted():
    """By the names that dashboards and alerts rely on; each metric that there is comes up once."""
    prometheus = Prometheus()
    for record in (
        a_request(),
        a_request(status=None, ended="left", token="none", authenticate=0.0, token_wait=0.0, upstream=0.0),
        a_request(status=101, upgraded=True, method="BREW", total=3000.0),
        TokenRecord(
            event="failed", route="github", source="S", caller="c", problem="token-source-timeout", seconds=6.0
        ),
        TokenRecord(event="refused", route="github", source="S", caller="c"),
        CacheRecord("read"),
        CircuitRecord("S", route="github", open=True),
        CircuitRecord("S", route="slack", open=False),
    ):
        prometheus(record)
    told = scraped(prometheus).text
    assert value(told, "idp_middleware_requests_total", status="none") == 1
    assert value(told, "idp_middleware_requests_total", status="1xx", method="other") == 1
    assert value(told, "idp_middleware_requests_unfinished_total", how="left") == 1
    # A WebSocket's hour is no request's.
    assert value(told, "idp_middleware_request_seconds_count") == 2
    assert value(told, "idp_middleware_request_bytes_total", route="github") == 9
    assert value(told, "idp_middleware_response_bytes_total", route="github") == 15
    assert value(told, "idp_middleware_source_requests_total", outcome="token-source-timeout") == 1
    assert value(told, "idp_middleware_source_seconds_bucket", source="S", le="5.0") == 0
    assert value(told, "idp_middleware_token_events_total", event="refused") == 1
    assert value(told, "idp_middleware_shared_cache_failures_total", operation="read") == 1
    # Two sources of a kind don't speak for each other.
    assert value(told, "idp_middleware_source_circuit_open", source="S", route="github") == 1
    assert value(told, "idp_middleware_source_circuit_open", source="S", route="slack") == 0
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name, _ in samples(told)}
    assert families == {name.removesuffix("_total") for name in METRICS}
    prometheus(CircuitRecord("S", route="github", open=False))
    assert value(scraped(prometheus).text, "idp_middleware_source_circuit_open", source="S") == 0


def test_the_newer_format_is_spoken_too():
    """Prometheus asks for it first."""
    answer = scraped(Prometheus(), accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_an_apps_own_metrics_can_be_among_ours():
    """One scrape for the app and what is around it."""
    registry = CollectorRegistry()
    Counter("app_things", "Things.", registry=registry).inc()
    prometheus = Prometheus(registry)
    prometheus(a_request())
    told = scraped(prometheus).text
    assert value(told, "app_things_total") == value(told, "idp_middleware_requests_total") == 1
    assert not any(name.startswith("idp_middleware") for name in REGISTRY._names_to_collectors)


async def test_slow_scrapes_delay_no_look_up_of_a_host_name():
    """What threads asyncio has, upstreams' and identity providers' names are looked up in."""
    go_on = threading.Event()

    class Slow:
        def collect(self):
            go_on.wait(30)
            return []

    registry = CollectorRegistry()
    prometheus = Prometheus(registry)
    registry.register(Slow())
    conn = HTTPConnection({"type": "http", "headers": []})
    scrapes = [asyncio.create_task(prometheus.answer(conn)) for _ in range(64)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(10):
            await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        assert not any(scrape.done() for scrape in scrapes)
    finally:
        go_on.set()
        answers = await asyncio.gather(*scrapes)
    assert {answer.status_code for answer in answers} == {200}


async def nobody(conn) -> Caller:
    raise NotImplementedError


def test_a_route_cannot_have_the_name_that_metrics_have():
    """Its callers would get our numbers, or Prometheus an API's answer."""
    routes = {"metrics": ProxyRoute("https://api.example.com", token_source=sources.Static("token"))}
    IdPMiddleware(authenticator=nobody, routes=routes)
    with pytest.raises(ConfigurationError, match=r"\[routes\]: metrics: is a path of the middleware's own here"):
        IdPMiddleware(authenticator=nobody, routes=routes, metrics=Prometheus())


def test_there_are_no_metrics_unless_asked_for():
    """Who gets there may read them."""
    with running() as stack:
        assert stack.ask("GET", "/idp/metrics").problem == "route-not-found"


CONFIG = """
metrics = true
access_log = true
audit_log = true

[authenticator]
type = "jwt"
issuer = "https://issuer.example/"
audience = "https://api.acme.example"

[sources.key]
type = "static"
value = "${KEY}"

[routes.%s]
upstream = "http://127.0.0.1:9"
source = "key"
"""


def test_the_file_switches_them_on(tmp_path, monkeypatch):
    """And says it by file and key where a route is in the way."""
    monkeypatch.setenv("KEY", "some-token")
    path = tmp_path / "idp.toml"
    path.write_text(CONFIG % "api")
    arguments = load_config(path)
    assert isinstance(arguments["metrics"], Prometheus)
    assert [type(each).__name__ for each in arguments["observers"]] == ["AccessLog", "AuditLog"]
    path.write_text(CONFIG % "metrics")
    with pytest.raises(ConfigurationError, match=r"idp\.toml: \[routes\]: metrics: is a path"):
        load_config(path)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "idp_middleware.prometheus")
    with pytest.raises(ConfigurationError, match=r"idp\.toml: metrics: needs the extra: pip install"):
        load_config(path)


@contextmanager
def workers(tmp_path, count, **environment):
    """The gateway as a command with so many workers; yields its URL."""
    path, port = tmp_path / "idp.toml", free_port()
    path.write_text(CONFIG % "api")
    command = [sys.executable, "-m", "idp_middleware", "serve", str(path), "--port", str(port), "--workers", str(count)]
    environment = {**os.environ, "KEY": "some-token", "TMPDIR": str(tmp_path), **environment}
    with (
        (tmp_path / "output").open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.DEVNULL) as process,
    ):
        url = f"http://127.0.0.1:{port}"

        def up():
            try:
                return httpx.get(f"{url}/idp/health", trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        try:
            eventually(up, within=30)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def ask_patiently(url, path):
    """As `ask`; None where the worker that took the connection was killed."""
    with suppress(httpx.TransportError):
        return ask(url, path)
    return None


def ask(url, path, times=1):
    """Each on a connection of its own, so that any worker may get it; returns the last answer."""
    for _ in range(times):
        answer = httpx.get(f"{url}/idp/{path}", trust_env=False)
    return answer.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_count_together(tmp_path):
    """Whichever of them is scraped, and though one is killed in the middle of a request; and nothing is left behind."""
    with workers(tmp_path, 2) as url:
        ask(url, "api/user", 30)
        told = [ask(url, "metrics") for _ in range(5)]
        assert {value(each, "idp_middleware_requests_total", problem="caller-unauthenticated") for each in told} == {30}
        (directory,) = tmp_path.glob("idp-middleware-metrics-*")
        pid = max(int(path.stem.rpartition("_")[2]) for path in directory.glob("gauge_livesum_*.db"))
        gauge = directory / f"gauge_livesum_{pid}.db"
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # Of a process that is gone (and, uvicorn being its parent, waited for).
        eventually(lambda: ask_patiently(url, "metrics") and not gauge.exists(), within=20)
        told = ask_patiently(url, "metrics")
        assert value(told, "idp_middleware_requests_total", problem="caller-unauthenticated") == 30
        assert value(told, "idp_middleware_requests_in_progress") == 1
    lines = (tmp_path / "output").read_text().splitlines()
    assert len(lines) >= 30
    assert all(json.loads(line)["status"] in (200, 401) for line in lines)
    assert list(tmp_path.glob("idp-middleware-metrics-*")) == []


def test_a_directory_of_ones_own_is_emptied_of_an_earlier_run_and_of_nothing_else(tmp_path, monkeypatch):
    """Counters that a run begins with would be nobody's; and a token store may be in there too."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for name in ("counter_1.db", "gauge_livesum_1.db", "histogram_1.db", "tokens.db"):
        (tmp_path / name).touch()
    with shared_by_workers():
        assert [path.name for path in tmp_path.iterdir()] == ["tokens.db"]
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path)


def test_the_numbers_of_a_process_that_is_gone_stay_but_for_what_it_had_in_progress(tmp_path, monkeypatch):
    """A counter that fell would look like a restart of all of them."""
    script = """
from idp_middleware.prometheus import Prometheus
from tests.test_prometheus import a_request
prometheus = Prometheus()
prometheus.begin({}, "github", mount="/idp")
prometheus(a_request())
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    told = scraped(Prometheus()).text
    assert value(told, "idp_middleware_requests_total", route="github") == 1
    assert value(told, "idp_middleware_requests_in_progress") == 0


def test_scrapes_at_the_same_time_do_not_trip_over_a_dead_worker(tmp_path, monkeypatch):
    """Each removes what it has left behind, and finds that another was faster; many, so that it does happen."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    beyond_any_pid = 2**22 + 1
    for number in range(200):
        (tmp_path / f"gauge_livesum_{beyond_any_pid + number}.db").touch()
    registry = Prometheus().registry
    with ThreadPoolExecutor(4) as pool:
        for scrape in [pool.submit(lambda: list(registry.collect())) for _ in range(4)]:
            assert scrape.result(timeout=30) == []
    assert list(tmp_path.iterdir()) == []
