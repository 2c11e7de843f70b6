"""All the observers that there are, and what they would send away: metrics, spans, lines of logs, records.

Knows how to set each up; nothing of what may be in it.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from idp_middleware.observers import AccessLog, AuditLog, Record
from idp_middleware.opentelemetry import OpenTelemetry
from idp_middleware.prometheus import Prometheus
from tests.leaks.sinks import METRICS, RECORDS, TRACES, Sinks


class Watching:
    """The observers of one world. What the two logs write is in the log."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracing = TracerProvider(shutdown_on_exit=False)
        self.tracing.add_span_processor(SimpleSpanProcessor(self._spans))
        metering = MeterProvider([self._reader], shutdown_on_exit=False)
        self.metrics = Prometheus()
        self._records: list[Record] = []
        spans = OpenTelemetry(tracer_provider=self.tracing, meter_provider=metering)
        self.observers = [AccessLog(), AuditLog(), spans, self._records.append]

    def arguments(self) -> dict[str, Any]:
        return {"observers": self.observers, "metrics": self.metrics}

    def collect(self, sinks: Sinks) -> None:
        """Put in what is there by now."""
        sinks.put(METRICS, generate_latest(self.metrics.registry))
        if (data := self._reader.get_metrics_data()) is not None:
            sinks.put(METRICS, data.to_json())
        for span in self._spans.get_finished_spans():
            sinks.put(TRACES, span.to_json())
        for record in self._records:
            sinks.put(RECORDS, repr(record))
