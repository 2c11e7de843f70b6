"""Metrics for Prometheus; needs the extra `prometheus`.

    metrics = Prometheus()
    IdPMiddleware(…, metrics=metrics)                     # at /idp/metrics, for anybody who gets there
    IdPMiddleware(…, observers=[metrics])                 # … or where you say:
    app.mount("/metrics", metrics.app)

`METRICS` is all there are. Labels are bounded: routes, kinds of sources, names of problems; never a caller, a path or a
name that somebody asked for. The only module that imports prometheus_client; knows records, and nothing of how they
come about.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from idp_middleware._observation import (
    CacheRecord,
    CircuitRecord,
    Record,
    RequestRecord,
    TokenRecord,
    Trace,
)

__all__ = ["METRICS", "Prometheus"]

_WAITS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds; the longest wait for an upstream is a minute unless a route says otherwise."""

_STAGES: Final = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
"""Seconds: a kept token takes microseconds, and a new one what the identity provider takes."""

_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class Described:
    """One metric: `kind` is counter, gauge or histogram; `live` is how gauges of several processes become one."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    live: Literal["livesum", "livemax"] = "livesum"


METRICS: Final[Mapping[str, Described]] = {
    "idp_middleware_requests_total": Described(
        "counter",
        "Requests under the prefix; status is a class such as 2xx, or none; problem is the answer of ours, if it was.",
        ("route", "method", "status", "problem"),
    ),
    "idp_middleware_requests_unfinished_total": Described(
        "counter",
        "Requests whose answer did not come to its end: the caller left, or it was aborted.",
        ("route", "how"),
    ),
    "idp_middleware_requests_in_progress": Described("gauge", "Requests under way."),
    "idp_middleware_request_seconds": Described(
        "histogram", "From a request to the end of its answer; not WebSockets.", ("route",), _WAITS
    ),
    "idp_middleware_stage_seconds": Described(
        "histogram",
        "Of a request: authenticate, token, upstream (up to the head of its response).",
        ("route", "stage"),
        _STAGES,
    ),
    "idp_middleware_request_bytes_total": Described("counter", "Bytes of bodies from callers.", ("route",)),
    "idp_middleware_response_bytes_total": Described("counter", "Bytes of bodies to callers.", ("route",)),
    "idp_middleware_token_lookups_total": Described(
        "counter",
        "Where requests' tokens came from: held, joined, shared, source, renewed, none.",
        ("route", "found"),
    ),
    "idp_middleware_token_events_total": Described(
        "counter",
        "What became of tokens: obtained, refreshed, renewed, refused, failed, forgotten, revoked.",
        ("route", "source", "event"),
    ),
    "idp_middleware_source_requests_total": Described(
        "counter", "Questions to token sources; outcome is ok, or the problem.", ("source", "outcome")
    ),
    "idp_middleware_source_seconds": Described(
        "histogram", "How long token sources took to answer.", ("source",), _WAITS
    ),
    "idp_middleware_source_circuit_open": Described(
        "gauge", "1 while a route's token source is left alone.", ("route", "source"), live="livemax"
    ),
    "idp_middleware_shared_cache_failures_total": Described(
        "counter", "What the cache that workers share failed at: read, write, delete, open.", ("operation",)
    ),
}
"""Name → what it is."""

_ASKED: Final = frozenset({"obtained", "refreshed", "renewed", "failed"})


class Prometheus:
    """An observer that counts, and answers scrapes.

    Where `PROMETHEUS_MULTIPROC_DIR` is set when the process starts, answers are for all processes that share that
    directory (https://prometheus.github.io/client_python/multiprocess/); `idp-middleware serve --workers` sees to it.

    Args:
        registry: where the metrics are registered; default one of its own. With `prometheus_client.REGISTRY`, an app
            that exposes that has them among its own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        kept = CollectorRegistry() if registry is None else registry
        self._metrics = {name: _made(name, described, kept) for name, described in METRICS.items()}
        self._children: dict[tuple[str, ...], Any] = {}
        self._in_progress = _InProgress(self._metrics["idp_middleware_requests_in_progress"])
        self.registry: CollectorRegistry = kept
        """What a scrape shows."""
        # One of our own, which starts with the first scrape: in asyncio's, look-ups of host names would wait behind.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idp_middleware.prometheus")
        self.app: ASGIApp = _Scrapes(self.answer)
        """Answers scrapes, to mount where you like."""
        if _DIRECTORY in os.environ:
            self.registry = CollectorRegistry()
            self.registry.register(_AllProcesses(os.environ[_DIRECTORY]))

    def __call__(self, record: Record, /) -> None:
        if isinstance(record, RequestRecord):
            self._request(record)
        elif isinstance(record, TokenRecord):
            self._token(record)
        elif isinstance(record, CacheRecord):
            self._of("idp_middleware_shared_cache_failures_total", record.operation).inc()
        elif isinstance(record, CircuitRecord):
            self._of("idp_middleware_source_circuit_open", record.route, record.source).set(float(record.open))

    def begin(self, scope: Scope, route: str | None, *, mount: str) -> Trace:  # noqa: ARG002
        self._in_progress.gauge.inc()
        return self._in_progress

    async def answer(self, conn: HTTPConnection) -> Response:
        """A scrape's answer, in the format that it asks for."""
        encode, content_type = choose_encoder(conn.headers.get("accept", ""))
        # Reading what many workers have written takes a while.
        told = await asyncio.get_running_loop().run_in_executor(self._thread, encode, self.registry)
        return Response(told, headers={"content-type": content_type})

    def _request(self, record: RequestRecord) -> None:
        route = record.route or ""
        method = record.method if record.method in _METHODS else "other"
        status = "none" if record.status is None else f"{record.status // 100}xx"
        self._of("idp_middleware_requests_total", route, method, status, record.problem or "").inc()
        if record.ended != "whole":
            self._of("idp_middleware_requests_unfinished_total", route, record.ended).inc()
        if not record.upgraded:
            self._of("idp_middleware_request_seconds", route).observe(record.total)
        if record.authenticate:
            self._of("idp_middleware_stage_seconds", route, "authenticate").observe(record.authenticate)
        if record.token_wait:
            self._of("idp_middleware_stage_seconds", route, "token").observe(record.token_wait)
        if record.upstream:
            self._of("idp_middleware_stage_seconds", route, "upstream").observe(record.upstream)
        if record.bytes_in:
            self._of("idp_middleware_request_bytes_total", route).inc(record.bytes_in)
        if record.bytes_out:
            self._of("idp_middleware_response_bytes_total", route).inc(record.bytes_out)
        if record.token is not None:
            self._of("idp_middleware_token_lookups_total", route, record.token).inc()

    def _token(self, record: TokenRecord) -> None:
        self._of("idp_middleware_token_events_total", record.route, record.source, record.event).inc()
        if record.event in _ASKED:
            self._of("idp_middleware_source_requests_total", record.source, record.problem or "ok").inc()
            self._of("idp_middleware_source_seconds", record.source).observe(record.seconds)

    def _of(self, name: str, *labels: str) -> Any:
        """The one of these labels: the library's own way to it takes a lock each time."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._metrics[name].labels(*labels)
        return child


class _Scrapes:
    """An ASGI app. An object, since uvicorn takes a bound method for an app of the protocol's first version."""

    def __init__(self, answer: Callable[[HTTPConnection], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await self._answer(HTTPConnection(scope))
            await response(scope, receive, send)


class _InProgress(Trace):
    __slots__ = ("gauge",)

    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge

    def end(self, record: RequestRecord) -> None:  # noqa: ARG002
        self.gauge.dec()


class _AllProcesses:
    """What all processes have written into their directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        for pid in {int(path.stem.rpartition("_")[2]) for path in Path(self._directory).glob("gauge_live*_*.db")}:
            if not _alive(pid):
                # Nobody else tells: what a worker that was killed had in progress would be so for ever.
                # Unless another scrape does just now.
                with suppress(FileNotFoundError):
                    mark_process_dead(pid, self._directory)  # type: ignore[no-untyped-call]
        return MultiProcessCollector(None, self._directory).collect()  # type: ignore[no-untyped-call, no-any-return]


def _made(name: str, described: Described, registry: CollectorRegistry) -> Any:
    options: dict[str, Any] = {"labelnames": described.labels, "registry": registry}
    if described.kind == "counter":
        return Counter(name, described.help, **options)
    if described.kind == "gauge":
        return Gauge(name, described.help, multiprocess_mode=described.live, **options)
    return Histogram(name, described.help, buckets=described.buckets, **options)


def _alive(pid: int) -> bool:
    try:
        # Elsewhere than on POSIX, asking this way would be an order.
        if os.name == "posix":
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def shared_by_workers() -> Iterator[None]:
    """Has the processes that are started inside count together: in the directory that `PROMETHEUS_MULTIPROC_DIR`
    names, of which what an earlier run has counted is removed, or else in one that is made and removed here.
    """
    if directory := os.environ.get(_DIRECTORY):
        for kind in ("counter", "gauge", "histogram", "summary"):
            for path in Path(directory).glob(f"{kind}_*.db"):
                path.unlink(missing_ok=True)
        yield
        return
    with TemporaryDirectory(prefix="idp-middleware-metrics-") as directory:
        os.environ[_DIRECTORY] = directory
        try:
            yield
        finally:
            with suppress(KeyError):
                del os.environ[_DIRECTORY]
