"""Spans and metrics by the conventions for HTTP, through the SDK as an app would set it up."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.routing import Mount

from idp_middleware import ProxyRoute, Token, load_config
from idp_middleware.errors import ConfigurationError, TokenSourceUnavailable
from idp_middleware.observers import CacheRecord, CircuitRecord, TokenRecord, digest
from idp_middleware.opentelemetry import METRICS, OpenTelemetry
from idp_middleware.testing import Identity
from tests.stack import USERS, eventually, recording_upstream, running

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Seen:
    """An SDK that keeps everything."""

    def __init__(self, **options):
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracing = TracerProvider(shutdown_on_exit=False)
        self.tracing.add_span_processor(SimpleSpanProcessor(self._spans))
        metering = MeterProvider([self._reader], shutdown_on_exit=False)
        self.observer = OpenTelemetry(tracer_provider=self.tracing, meter_provider=metering, **options)

    def spans(self, kind, number=1):
        """The ended ones of a kind, once there are so many."""

        def ended():
            return [span for span in self._spans.get_finished_spans() if span.kind is kind]

        return eventually(lambda: len(ended()) >= number and ended())

    def metrics(self):
        """(name, attribute values) → value, or for a histogram how many it has."""
        return {
            (metric.name, *sorted(str(value) for value in point.attributes.values())): (
                point.count if hasattr(point, "count") else point.value
            )
            for resource in self._reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }


def test_a_request_is_a_server_span_with_the_upstreams_inside():
    """By the names that every tool for traces knows, in the trace that the caller began."""
    seen = Seen()
    with running(observers=[seen.observer]) as stack, stack.client() as client:
        answer = client.get("/idp/github/private/path?private=query", headers={"traceparent": PARENT})
        (served,) = seen.spans(SpanKind.SERVER)
        port, api_port, caller = stack.gateway.port, stack.api.port, digest(stack.auth0.issuer, "auth0|alice")
    (asked,) = seen.spans(SpanKind.CLIENT)
    assert served.name == "GET /idp/github/{path}"
    assert dict(served.attributes) == {
        "http.request.method": "GET",
        "http.route": "/idp/github/{path}",
        "http.response.status_code": answer.status_code,
        "url.scheme": "http",
        "url.path": "/idp/github/REDACTED",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": port,
        "idp_middleware.found": "source",
        "enduser.pseudo.id": caller,
    }
    assert f"{served.context.trace_id:032x}" == TRACE
    assert f"{served.parent.span_id:016x}" == PARENT.split("-")[2]
    assert served.status.status_code is StatusCode.UNSET
    assert asked.name == "GET"
    assert asked.parent.span_id == served.context.span_id
    assert asked.attributes["url.full"] == f"http://127.0.0.1:{api_port}/REDACTED"
    assert (asked.attributes["server.address"], asked.attributes["server.port"]) == ("127.0.0.1", api_port)
    assert served.start_time <= asked.start_time <= asked.end_time <= served.end_time
    (token,) = seen.spans(SpanKind.INTERNAL)
    assert token.parent.span_id == served.context.span_id
    assert dict(token.attributes) == {
        "idp_middleware.source": "Auth0Management",
        "idp_middleware.event": "obtained",
    }


def test_durations_are_metrics_by_the_conventions():
    """And what no convention has is named as ours."""
    seen = Seen()
    with running(observers=[seen.observer]) as stack, stack.client() as client:
        for number in (1, 2):
            client.get("/idp/github/user")
            seen.spans(SpanKind.SERVER, number)
        port = str(stack.api.port)
    for record in (
        CacheRecord("read"),
        CircuitRecord("S", route="github", open=True),
        TokenRecord(event="refused", route="github", source="S", caller="c"),
    ):
        seen.observer(record)
    told = seen.metrics()
    assert told["http.server.request.duration", "/idp/github/{path}", "1.1", "200", "GET", "http"] == 2
    assert told["http.client.request.duration", "127.0.0.1", "200", port, "GET", "http"] == 2
    assert told["idp_middleware.token.lookups", "github", "held"] == 1
    assert told["idp_middleware.source.duration", "Auth0Management", "obtained"] == 1
    assert told["idp_middleware.token.events", "S", "github", "refused"] == 1
    assert told["idp_middleware.shared_cache.failures", "read"] == 1
    assert told["idp_middleware.source.circuit_open", "S", "github"] == 1
    assert {name for name, *_ in told} == {"http.server.request.duration", "http.client.request.duration", *METRICS}


def test_a_route_is_one_series_however_many_tenants_it_is_mounted_for():
    """`http.route` is a metric's label: the conventions want it to have few values."""
    seen = Seen()

    def wrap(middleware):
        mounted = Starlette(routes=[Mount("/{tenant}", app=middleware)])

        async def app(scope, receive, send):
            # Starlette tells no lifespan to what is mounted.
            await (mounted if scope["type"] == "http" else middleware)(scope, receive, send)

        return app

    with running(observers=[seen.observer], wrap=wrap) as stack, stack.client() as client:
        for number, tenant in enumerate(("acme", "initech"), start=1):
            assert client.get(f"/{tenant}/idp/github/user").status_code == 200
            spans = seen.spans(SpanKind.SERVER, number)
    assert {span.name for span in spans} == {"GET /idp/github/{path}"}
    assert [span.attributes["url.path"] for span in spans] == [
        "/acme/idp/github/REDACTED",
        "/initech/idp/github/REDACTED",
    ]
    assert seen.metrics()["http.server.request.duration", "/idp/github/{path}", "1.1", "200", "GET", "http"] == 2


@pytest.mark.parametrize("propagate", [False, True])
def test_an_upstream_is_told_of_the_trace_only_where_that_is_asked_for(propagate):
    """A vendor has no use for it; and never of baggage, which holds what the app says to itself."""
    seen = Seen(propagate=propagate)
    with (
        recording_upstream() as upstream,
        running(
            routes=lambda _, source: {"github": ProxyRoute(upstream.url, token_source=source, connection="github")},
            observers=[seen.observer],
        ) as stack,
    ):
        stack.ask("GET", "/idp/github/user", f"traceparent: {PARENT}", "tracestate: congo=t61rcWkgMzE")
        (asked,) = seen.spans(SpanKind.CLIENT)
        (sent,) = upstream.last.all(b"traceparent")
        states = upstream.last.all(b"tracestate")
        tokens = upstream.last.all(b"authorization")
    ours = f"00-{TRACE}-{asked.context.span_id:016x}-01"
    assert sent.decode() == (ours if propagate else PARENT)
    assert states == [b"congo=t61rcWkgMzE"]
    assert tokens == [f"Bearer {USERS['alice']}".encode()]


def test_each_time_that_the_upstream_is_asked_is_a_span():
    """A refused token is half the time of such a request, and would otherwise be the upstream's."""
    seen = Seen(propagate=True)
    with running(observers=[seen.observer]) as stack, stack.client() as client:
        client.get("/idp/github/user")
        stack.provider.revoke(USERS["alice"])
        stack.provider.accept("gho_new", login="alice")
        stack.auth0.unlink("auth0|alice", "github")
        stack.auth0.link("auth0|alice", Identity("github", "101", access_token="gho_new"))
        assert client.get("/idp/github/user").status_code == 200
        *_, served = seen.spans(SpanKind.SERVER, 2)
    _, first, second = seen.spans(SpanKind.CLIENT, 3)
    assert [span.attributes["http.response.status_code"] for span in (first, second)] == [401, 200]
    assert first.attributes["error.type"] == "401"
    assert first.status.status_code is StatusCode.ERROR
    assert "http.request.resend_count" not in first.attributes
    assert second.attributes["http.request.resend_count"] == 1
    assert served.attributes["idp_middleware.found"] == "renewed"


def test_what_fails_has_a_type_of_error():
    """Ours by the problem's name; a caller's mistake is none."""
    seen = Seen()

    async def down(caller, route):
        raise TokenSourceUnavailable("down")

    with (
        running(
            routes=lambda api, _: {
                "github": ProxyRoute(api, token_source=down),
                "closed": ProxyRoute("http://127.0.0.1:1", token_source=ours),
            },
            observers=[seen.observer],
        ) as stack,
    ):
        for number, (method, target) in enumerate(
            [("GET", "/idp/github/user"), ("PROPFIND", "/idp/nowhere"), ("GET", "/idp/closed/")], start=1
        ):
            stack.ask(method, target)
            seen.spans(SpanKind.SERVER, number)
    unavailable, nowhere, closed = seen.spans(SpanKind.SERVER, 3)
    assert unavailable.attributes["error.type"] == "token-source-unavailable"
    assert unavailable.status.status_code is StatusCode.ERROR
    (token,) = (span for span in seen.spans(SpanKind.INTERNAL) if span.attributes.get("error.type"))
    assert token.attributes["error.type"] == "token-source-unavailable"
    assert token.attributes["idp_middleware.event"] == "failed"
    assert nowhere.name == "HTTP"
    assert (nowhere.attributes["http.request.method"], nowhere.attributes["url.path"]) == ("_OTHER", "/idp/REDACTED")
    assert "http.route" not in nowhere.attributes
    assert "error.type" not in nowhere.attributes
    assert closed.attributes["error.type"] == "upstream-unreachable"
    (asked,) = seen.spans(SpanKind.CLIENT)
    assert asked.attributes["error.type"] == "upstream-unreachable"
    assert "http.response.status_code" not in asked.attributes


async def ours(caller, route):
    return Token("some-token")


def test_in_an_app_that_is_traced_a_request_is_part_of_that():
    """One request is one server span, whoever makes it."""
    seen = Seen()
    tracer = seen.tracing.get_tracer("the app's own")

    def wrap(middleware):
        async def app(scope, receive, send):
            with tracer.start_as_current_span("outside", kind=SpanKind.SERVER):
                await middleware(scope, receive, send)

        return app

    with running(observers=[seen.observer], wrap=wrap) as stack, stack.client() as client:
        client.get("/idp/github/user")
        (outside,) = seen.spans(SpanKind.SERVER)
    assert outside.name == "outside"
    inside = next(span for span in seen.spans(SpanKind.INTERNAL) if span.name.startswith("GET "))
    assert inside.parent.span_id == outside.context.span_id


def test_the_file_switches_it_on(tmp_path, monkeypatch):
    """The gateway's own process has its SDK set up around it, by `opentelemetry-instrument`."""
    text = """
[opentelemetry]
{}

[authenticator]
type = "jwt"
issuer = "https://issuer.example/"
audience = "https://api.acme.example"

[sources.key]
type = "pass-through"

[routes.api]
upstream = "http://127.0.0.1:9"
source = "key"
"""
    path = tmp_path / "idp.toml"
    for inside in ("", "propagate = true"):
        path.write_text(text.format(inside))
        (observer,) = load_config(path)["observers"]
        assert isinstance(observer, OpenTelemetry)
    path.write_text(text.format("spread = true"))
    with pytest.raises(ConfigurationError, match=r"\[opentelemetry\]: spread: there is no such key"):
        load_config(path)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "idp_middleware.opentelemetry")
    with pytest.raises(ConfigurationError, match=r"\[opentelemetry\]: needs the extra: pip install"):
        load_config(path)
