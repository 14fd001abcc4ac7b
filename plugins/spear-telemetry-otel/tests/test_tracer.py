"""Spans as a real collector receives them, and collectors that are no good."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from spear_core.api import ErrorInfo, PluginContext, SpanKind, Tracer
from spear_core.testing import make_context
from spear_telemetry_otel import OtelConfig
from spear_telemetry_otel._export import BoundedExport
from spear_telemetry_otel.plugin import open_otel_tracer

TRACE = "ab" * 16
CALLER = f"00-{TRACE}-{'cd' * 8}-01"
UNSAMPLED = f"00-{TRACE}-{'cd' * 8}-00"


@pytest.fixture
def context(tmp_path: Path) -> PluginContext:
    return make_context(tmp_path)


def make_spans(tracer: Tracer, count: int = 1, *, parent: str = CALLER) -> None:
    for _ in range(count):
        tracer.start(SpanKind.TASK, "f@1", parent=parent, attributes={}).end()


def attributes_of(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_tree_of_spans_arrives(context: PluginContext, collector: Any) -> None:
    config = OtelConfig(endpoint=collector.url, headers={"x-key": "secret"}, service_name="mine")
    async with open_otel_tracer(context, config) as tracer:
        assert tracer is not None
        task = tracer.start(SpanKind.TASK, "f@1", parent=CALLER, attributes={"spear.task_id": "t"})
        run = tracer.start(
            SpanKind.EXECUTION, "execute f@1", parent=task.traceparent,
            attributes={"spear.attempt": 2}, started_at=1_700_000_000.5,
        )  # fmt: skip
        told = run.traceparent
        run.end(attributes={"spear.cpu_seconds": 0.25})
        task.end(error=ErrorInfo(code="unknown", message="boom", kind="ValueError"))
    task_span, run_span = collector.spans["f@1"], collector.spans["execute f@1"]
    assert task_span.trace_id.hex() == run_span.trace_id.hex() == TRACE
    assert task_span.parent_span_id.hex() == "cd" * 8
    assert run_span.parent_span_id == task_span.span_id
    assert told == f"00-{TRACE}-{run_span.span_id.hex()}-01"
    assert (task_span.kind, run_span.kind) == (2, 3)  # server, client
    assert run_span.start_time_unix_nano == 1_700_000_000_500_000_000
    assert attributes_of(run_span) == {
        "spear.span": "execution", "spear.attempt": 2, "spear.cpu_seconds": 0.25
    }  # fmt: skip
    assert (task_span.status.code, task_span.status.message) == (2, "boom")
    assert attributes_of(task_span)["error.type"] == "unknown"
    assert run_span.status.code == 0
    resource = attributes_of(collector.requests[0].resource_spans[0].resource)
    assert (resource["service.name"], resource["service.instance.id"]) == ("mine", context.node_id)
    assert collector.headers[0]["x-key"] == "secret"


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{'0' * 32}-{'cd' * 8}-01"])
async def test_without_a_callers_trace_a_new_one_begins(
    context: PluginContext, collector: Any, parent: str
) -> None:
    async with open_otel_tracer(context, OtelConfig(endpoint=collector.url)) as tracer:
        assert tracer is not None
        make_spans(tracer, parent=parent)
    span = collector.spans["f@1"]
    assert not span.parent_span_id
    assert span.trace_id.hex() not in (TRACE, "0" * 32)


async def test_what_the_caller_does_not_sample_is_not_sent_but_goes_on(
    context: PluginContext, collector: Any
) -> None:
    async with open_otel_tracer(context, OtelConfig(endpoint=collector.url)) as tracer:
        assert tracer is not None
        span = tracer.start(SpanKind.TASK, "f@1", parent=UNSAMPLED, attributes={})
        span.end()
        assert span.traceparent.startswith(f"00-{TRACE}-")
        assert span.traceparent.endswith("-00")
    assert collector.requests == []


async def test_none_of_our_own_traces_at_ratio_zero(context: PluginContext, collector: Any) -> None:
    config = OtelConfig(endpoint=collector.url, sample_ratio=0.0)
    async with open_otel_tracer(context, config) as tracer:
        assert tracer is not None
        make_spans(tracer, parent="")
        make_spans(tracer, parent=CALLER)
    assert [span.trace_id.hex() for span in collector.spans.values()] == [TRACE]


async def test_many_spans_all_arrive(context: PluginContext, collector: Any) -> None:
    async with open_otel_tracer(context, OtelConfig(endpoint=collector.url)) as tracer:
        assert tracer is not None
        make_spans(tracer, 3000)
    sent = sum(len(r.resource_spans[0].scope_spans[0].spans) for r in collector.requests)
    assert sent == 3000
    assert len(collector.requests) > 1


async def test_a_collector_that_hangs_costs_spans_and_no_time(
    context: PluginContext, collector: Any, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answer.clear()
    config = OtelConfig(
        endpoint=collector.url,
        max_queued_spans=1000,
        export_timeout_ms=600_000,
        export_interval_ms=600_000,
    )
    with caplog.at_level(logging.WARNING, logger=context.log.name):
        async with open_otel_tracer(context, config) as tracer:
            assert tracer is not None
            make_spans(tracer, 600)
            await trio.to_thread.run_sync(collector.asked.wait, 30)
            make_spans(tracer, 20_000)  # would wait for ever if any of them did
            started = time.monotonic()
        assert time.monotonic() - started < 60
    (told,) = [r.getMessage() for r in caplog.records if "lost" in r.getMessage()]
    # 512 are on their way; what does not fit beside the 88 left and 912 more is dropped
    assert "19088 did not fit" in told


@pytest.mark.parametrize("kind", ["nobody", "refuses"])
async def test_a_collector_that_takes_nothing_is_complained_of(
    context: PluginContext, collector: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    collector.status = 400
    url = collector.url
    if kind == "nobody":
        with socket.create_server(("127.0.0.1", 0)) as gone:
            url = f"http://127.0.0.1:{gone.getsockname()[1]}/v1/traces"
    config = OtelConfig(endpoint=url, export_timeout_ms=200, export_interval_ms=10)
    with caplog.at_level(logging.WARNING, logger=context.log.name):
        async with open_otel_tracer(context, config) as tracer:
            assert tracer is not None
            make_spans(tracer, 5)
    (told,) = [r.getMessage() for r in caplog.records if "lost" in r.getMessage()]
    assert "5 were not taken by the collector" in told


async def test_without_an_endpoint_nothing_is_opened(context: PluginContext) -> None:
    async with open_otel_tracer(context, OtelConfig()) as tracer:
        assert tracer is None


def test_an_exporter_that_raises_does_not_end_the_thread() -> None:
    class Broken(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            raise RuntimeError("no")

        def shutdown(self) -> None:
            pass

    export = BoundedExport(Broken(), most=10, interval_s=0.01, log=logging.getLogger("test"))
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    for _ in range(2):
        provider.get_tracer("t").start_span("s").end()
        export.close(60)
    assert export.failed == 2
    assert (export.exported, export.dropped) == (0, 0)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "grpc://x:4317", "http://"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        OtelConfig(endpoint=endpoint)
