"""The node's spans as OpenTelemetry's."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spear_core.api import ErrorInfo, PluginContext, SpanKind, Tracer, TraceSpan

from ._config import OtelConfig
from ._export import BoundedExport

__all__ = ["OtelTracer", "open_tracer"]

# It tells each failed attempt; we tell how many spans were lost.
logging.getLogger("opentelemetry.exporter").addHandler(logging.NullHandler())

_LAST_EXPORT_S = 3.0
_W3C = TraceContextTextMapPropagator()
_KINDS = {
    SpanKind.TASK: trace.SpanKind.SERVER,
    SpanKind.QUEUE: trace.SpanKind.INTERNAL,
    SpanKind.EXECUTION: trace.SpanKind.CLIENT,
    SpanKind.HOSTCALL: trace.SpanKind.SERVER,
}
"""An execution is the node's call of the guest, a hostcall the guest's call of the node."""


class _Span(TraceSpan):
    """A span and the context that goes on from it."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}"
        )

    def end(
        self,
        *,
        error: ErrorInfo | None = None,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """See :meth:`TraceSpan.end`."""
        if attributes:
            self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute("error.type", error.code)
            if error.kind:
                self._span.set_attribute("exception.type", error.kind)
            self._span.set_status(Status(StatusCode.ERROR, error.message or error.code))
        self._span.end()


class OtelTracer(Tracer):
    """Makes spans with a provider of its own; the process-wide one is not touched."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start(
        self,
        kind: SpanKind,
        name: str,
        *,
        parent: str,
        attributes: Mapping[str, str | int | float],
        started_at: float | None = None,
    ) -> TraceSpan:
        """See :meth:`Tracer.start`."""
        context = Context()  # nothing that happens to be current
        if parent:
            context = _W3C.extract({"traceparent": parent}, context)
        span = self._tracer.start_span(
            name,
            context,
            kind=_KINDS[kind],
            attributes={"spear.span": kind.value, **attributes},
            start_time=None if started_at is None else round(started_at * 1e9),
        )
        return _Span(span)


@asynccontextmanager
async def open_tracer(context: PluginContext, config: OtelConfig) -> AsyncIterator[OtelTracer]:
    """Trace while the block lasts; at its end, send what is left for a few seconds at most."""
    exporter = OTLPSpanExporter(
        endpoint=config.endpoint,
        headers=dict(config.headers),
        timeout=config.export_timeout_ms / 1000,
    )
    export = BoundedExport(
        exporter,
        most=config.max_queued_spans,
        interval_s=config.export_interval_ms / 1000,
        log=context.log,
    )
    resource = Resource.create(
        {"service.name": config.service_name, "service.instance.id": context.node_id}
    )
    provider = TracerProvider(
        resource=resource,
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(export)
    try:
        yield OtelTracer(provider.get_tracer("spear"))
    finally:
        with trio.move_on_after(_LAST_EXPORT_S + 1, shield=True):
            await trio.to_thread.run_sync(export.close, _LAST_EXPORT_S, abandon_on_cancel=True)
