"""Spans and metrics for OpenTelemetry; needs the extra `opentelemetry`, and an SDK that the app has set up.

    IdPMiddleware(…, observers=[OpenTelemetry()])

By the conventions for HTTP (https://opentelemetry.io/docs/specs/semconv/http/): a server span for each request, a
client span for each time the upstream is asked, `http.server.request.duration` and `http.client.request.duration`.
Besides, a span for each question to a token source, and `METRICS`. What of a path lies beyond the route is `REDACTED`;
query strings, callers' addresses and names are left out. `http.route` begins with our prefix: what the app is mounted
at may be another for each tenant, and nothing tells the pattern of it. The only module that imports opentelemetry;
knows records, and nothing of how they come about.
"""

from __future__ import annotations

import re
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Final, TypeAlias

from opentelemetry import context, propagate, trace
from opentelemetry.metrics import Histogram, MeterProvider, get_meter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from idp_middleware._observation import CacheRecord, CircuitRecord, Record, RequestRecord, TokenRecord, Trace
from idp_middleware._types import RawHeaders
from idp_middleware._version import __version__
from idp_middleware.errors import IdPError

__all__ = ["METRICS", "OpenTelemetry"]

if TYPE_CHECKING:
    from idp_middleware._urls import Origin

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.27.0"
_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Seconds, as the conventions advise."""
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,255})(?::([0-9]{1,5}))?")
_REDACTED: Final = "REDACTED"
_TRACE_FIELDS: Final = (b"traceparent", b"tracestate")

Attributes: TypeAlias = dict[str, str | int]

METRICS: Final = {
    "idp_middleware.token.lookups": "Where requests' tokens came from, by route.",
    "idp_middleware.source.duration": "Seconds that token sources took, by source and event.",
    "idp_middleware.token.events": "What became of tokens, by route, source and event.",
    "idp_middleware.shared_cache.failures": "What the cache that workers share failed at.",
    "idp_middleware.source.circuit_open": "1 while a token source is left alone, by route and source.",
}
"""Those that no convention names → what they are."""


class OpenTelemetry:
    """An observer that makes spans and metrics.

    A request whose app is traced already becomes a span inside that one. A client span ends with the head of the
    answer.

    Args:
        propagate: tell the upstream which trace a request belongs to (`traceparent`, `tracestate`, in place of the
            caller's); baggage never leaves. For upstreams of your own: a vendor has no use for it.
        tracer_provider, meter_provider: default the global ones.
    """

    def __init__(
        self,
        *,
        propagate: bool = False,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._propagate = propagate
        self._tracer = trace.get_tracer("idp_middleware", __version__, tracer_provider, _SCHEMA)
        meter = get_meter("idp_middleware", __version__, meter_provider, _SCHEMA)

        def seconds(name: str, description: str) -> Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_BUCKETS)

        def own(name: str) -> tuple[str, str, str]:
            return name, "1", METRICS[name]

        self._served = seconds("http.server.request.duration", "Duration of HTTP server requests.")
        self._asked = seconds("http.client.request.duration", "Duration of HTTP client requests.")
        self._source = seconds("idp_middleware.source.duration", METRICS["idp_middleware.source.duration"])
        self._lookups = meter.create_counter(*own("idp_middleware.token.lookups"))
        self._events = meter.create_counter(*own("idp_middleware.token.events"))
        self._cache_failures = meter.create_counter(*own("idp_middleware.shared_cache.failures"))
        self._circuit = meter.create_gauge(*own("idp_middleware.source.circuit_open"))

    def __call__(self, record: Record, /) -> None:
        if isinstance(record, TokenRecord):
            self._token(record)
        elif isinstance(record, CacheRecord):
            self._cache_failures.add(1, {"idp_middleware.operation": record.operation})
        elif isinstance(record, CircuitRecord):
            named = {"idp_middleware.route": record.route, "idp_middleware.source": record.source}
            self._circuit.set(int(record.open), named)

    def begin(self, scope: Scope, route: str | None, *, mount: str) -> Trace:
        at = f"{mount}/{route}/" if route is not None else f"{mount}/"
        method = _method(scope.get("method", "GET"))
        named: Attributes = {
            "http.request.method": method,
            "url.scheme": _scheme(scope),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        template = f"{mount.removeprefix(scope.get('root_path', ''))}/{route}/{{path}}"
        if route is not None:
            named["http.route"] = template
        around = context.get_current()
        kind = SpanKind.INTERNAL
        if not trace.get_current_span(around).get_span_context().is_valid:
            kind = SpanKind.SERVER
            around = propagate.extract(_Fields(scope["headers"]), around, getter=_getter)
        name = "HTTP" if method == "_OTHER" else method
        span = self._tracer.start_span(
            name if route is None else f"{name} {template}",
            around,
            kind,
            {**named, **_server(scope), "url.path": at + _REDACTED},
        )
        return _Request(self, span, named)

    def _token(self, record: TokenRecord) -> None:
        named = {"idp_middleware.source": record.source, "idp_middleware.event": record.event}
        self._events.add(1, {**named, "idp_middleware.route": record.route})
        if not record.seconds:
            return
        if record.problem is not None:
            named["error.type"] = record.problem
        self._source.record(record.seconds, named)
        ended = time_ns()
        # Inside the request that has caused it, which may be over by now.
        span = self._tracer.start_span(
            "idp_middleware.token",
            attributes=named,
            start_time=ended - int(record.seconds * 1e9),
        )
        if record.problem is not None:
            span.set_status(StatusCode.ERROR)
        span.end(ended)


class _Request(Trace):
    """One request, and its spans."""

    __slots__ = ("_asking", "_asking_named", "_asking_since", "_attached", "_named", "_of", "_span", "_times")

    def __init__(self, of: OpenTelemetry, span: Span, named: Attributes) -> None:
        self._of = of
        self._span = span
        self._named = named
        self._times = 0
        # So that what others do inside (as an instrumented httpx, asking for a token) is told as part of it.
        self._attached = context.attach(trace.set_span_in_context(span))

    def sending(self, origin: Origin, method: str, headers: RawHeaders) -> RawHeaders:
        method = _method(method)
        self._asking_named: Attributes = {
            "http.request.method": method,
            "server.address": origin.host,
            "server.port": origin.port,
            "url.scheme": origin.scheme,
        }
        url = f"{origin.scheme}://{origin.authority.decode()}/{_REDACTED}"
        more: Attributes = {"url.full": url, "http.request.resend_count": self._times}
        if not self._times:
            del more["http.request.resend_count"]
        self._times += 1
        self._asking_since = perf_counter()
        self._asking = self._of._tracer.start_span(
            "HTTP" if method == "_OTHER" else method, None, SpanKind.CLIENT, {**self._asking_named, **more}
        )
        if self._of._propagate:
            fields: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(fields, trace.set_span_in_context(self._asking))
            headers = [field for field in headers if field[0] not in _TRACE_FIELDS]
            headers += [(name.encode(), value.encode()) for name, value in fields.items()]
        return headers

    def answered(self, status: int | None, error: BaseException | None) -> None:
        named = self._asking_named
        if status is not None:
            named["http.response.status_code"] = status
            if status >= 400:
                named["error.type"] = str(status)
        elif error is not None:
            named["error.type"] = error.name if isinstance(error, IdPError) else type(error).__name__
        _end(self._asking, named)
        self._of._asked.record(perf_counter() - self._asking_since, named)

    def end(self, record: RequestRecord) -> None:
        named = self._named
        if record.status is not None:
            named["http.response.status_code"] = record.status
        if record.ended != "whole":
            named["error.type"] = record.ended
        elif record.status is not None and record.status >= 500:
            named["error.type"] = record.problem or str(record.status)
        own = {
            "idp_middleware.problem": record.problem,
            "idp_middleware.found": record.token,
            "enduser.pseudo.id": record.caller,
        }
        _end(self._span, {**named, **{name: value for name, value in own.items() if value is not None}})
        context.detach(self._attached)
        if not record.upgraded:
            self._of._served.record(record.total, named)
        if record.token is not None and record.route is not None:
            self._of._lookups.add(1, {"idp_middleware.route": record.route, "idp_middleware.found": record.token})


def _end(span: Span, attributes: Attributes) -> None:
    span.set_attributes(attributes)
    if "error.type" in attributes:
        span.set_status(StatusCode.ERROR)
    span.end()


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


def _scheme(scope: Scope) -> str:
    scheme: str = scope.get("scheme", "http")
    return {"ws": "http", "wss": "https"}.get(scheme, scheme)


def _server(scope: Scope) -> Attributes:
    """Host and port as the caller knows them: what `Host` says."""
    for name, value in scope["headers"]:
        if name == b"host" and (found := _HOST.fullmatch(value)):
            port = int(found[2]) if found[2] else {"https": 443}.get(_scheme(scope), 80)
            return {"server.address": found[1].decode(), "server.port": port}
    return {}


class _Fields:
    """Header fields, for propagators to read."""

    def __init__(self, raw: RawHeaders) -> None:
        self.raw = raw


class _Getter(Getter[_Fields]):
    def get(self, carrier: _Fields, key: str) -> list[str] | None:
        wanted = key.lower().encode()
        return [value.decode("latin-1") for name, value in carrier.raw if name == wanted] or None

    def keys(self, carrier: _Fields) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier.raw]


_getter: Final = _Getter()
