"""What a real node tells about its work: metrics by every way out, traces, usage, logs."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from spear_core.api import (
    ArtifactMetrics,
    ArtifactUpload,
    ExecutionMode,
    InvokeRequest,
    NodeApi,
    TaskResult,
)
from spear_core.builtins.local_socket import connect

from .conftest import SPEAR

prometheus = pytest.importorskip("prometheus_client.parser")
pytest.importorskip("spear_metrics_prometheus")
pytest.importorskip("spear_telemetry_otel")
collected = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

CALLER = f"00-{'ab' * 16}-{'cd' * 8}-01"

AGENT = """
from opentelemetry import trace

from spear_sdk import Context, function


@function
def where(context: Context) -> dict[str, str]:
    context.log.info("here")
    current = trace.get_current_span().get_span_context()
    ids = {"trace": f"{current.trace_id:032x}", "span": f"{current.span_id:016x}"}
    return {"told": context.trace, **ids}


@function
async def where_async(context: Context) -> dict[str, str]:
    return where(context)


@function
def burn(mebibytes: str) -> str:
    held = bytearray(int(mebibytes) << 20)
    return str(sum(range(2_000_000)) and len(held))


@function
def fail() -> None:
    raise ValueError("boom")
"""
COMMAND = '#!/bin/sh\nprintf %s "$TRACEPARENT"\n'
TRACED_WASM = """
(module
  (import "spear" "context_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "spear" "call_start" (func $start (param i32 i32 i32 i32) (result i32)))
  (import "spear" "call_result" (func $result (param i32 i32 i32) (result i32)))
  (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "trace") (data (i32.const 16) "command") (data (i32.const 32) " ")
  (func (export "_start")
    (i32.store (i32.const 64) (i32.const 200))
    (drop (call $get (i32.const 8) (i32.const 5) (i32.const 1000) (i32.const 64)))
    (drop (call $write (i32.const 1000) (i32.load (i32.const 64))))
    (drop (call $write (i32.const 32) (i32.const 1)))
    (i32.store (i32.const 64) (i32.const 200))
    (drop (call $result
      (call $start (i32.const 16) (i32.const 7) (i32.const 0) (i32.const 0))
      (i32.const 2000) (i32.const 64)))
    (drop (call $write (i32.const 2000) (i32.load (i32.const 64))))))
"""
"""What it was told of its trace, and what a function that it calls says of its own."""
SPIN_WASM = """
(module
  (memory (export "memory") 20)
  (func (export "_start") (local $n i32)
    (local.set $n (i32.const 30000000))
    (loop $again
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))))
"""


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.url = ""
        self._changed = threading.Condition()

    def take(self, body: bytes) -> None:
        request = collected.ExportTraceServiceRequest.FromString(body)
        with self._changed:
            for of_resource in request.resource_spans:
                for of_scope in of_resource.scope_spans:
                    self.spans += of_scope.spans
            self._changed.notify_all()

    def wait_for(self, name: str) -> Any:
        """The span of this name."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.named(name), 120), name
            return self.named(name)[-1]

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    kept = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            zipped = self.headers.get("content-encoding") == "gzip"
            kept.take(gzip.decompress(body) if zipped else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def observed(start_node: Callable[[str], Any], collector: Collector) -> Any:
    """A node with a metrics port, whose traces go to the collector."""
    return start_node(
        '[plugins.metrics-prometheus]\nlisten = "127.0.0.1:0"\n'
        f'[plugins.telemetry-otel]\nendpoint = "{collector.url}"\nexport_interval_ms = 20\n'
    )


@asynccontextmanager
async def talk_to(node: Any) -> AsyncIterator[NodeApi]:
    with trio.fail_after(240):
        async with connect(node.url) as api:
            yield api


async def deploy(api: NodeApi, name: str, filename: str, content: str) -> None:
    await api.deploy(
        ArtifactUpload(
            name=name, filename=filename, content=content.encode(),
            executable=filename.endswith(".sh"),
        )
    )  # fmt: skip


async def run(api: NodeApi, function: str, payload: bytes = b"") -> TaskResult:
    request = InvokeRequest(function=function, payload=payload, trace=CALLER)
    result = (await api.invoke(request)).task.result
    assert result is not None
    return result


def system_log(node: Any) -> list[dict[str, Any]]:
    (path,) = [p for p in node.state.rglob("*.log") if "task" not in str(p.parent.name)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def scrape(node: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the metrics port, as Prometheus' own parser reads it."""
    ready = " ".join(entry["message"] for entry in system_log(node))
    match = re.search(r"http://127\.0\.0\.1:\d+/metrics", ready)
    assert match, ready
    with urllib.request.urlopen(match[0], timeout=60) as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        page = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in prometheus.text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_one_trace_from_the_caller_into_the_functions_own_spans(
    observed: Any, collector: Collector
) -> None:
    async with talk_to(observed) as api:
        await deploy(api, "agent", "agent.py", AGENT)
        await deploy(api, "command", "command.sh", COMMAND)
        for entry in ("where", "where_async"):
            result = await run(api, f"agent:{entry}")
            assert result.error is None, result.error
            seen = json.loads(result.output)
            task = await trio.to_thread.run_sync(collector.wait_for, f"agent@1:{entry}")
            execution = collector.wait_for(f"execute agent@1:{entry}")
            assert task.trace_id.hex() == execution.trace_id.hex() == "ab" * 16
            assert task.parent_span_id.hex() == "cd" * 8
            assert execution.parent_span_id == task.span_id
            assert seen["told"] == f"00-{'ab' * 16}-{execution.span_id.hex()}-01"
            assert (seen["trace"], seen["span"]) == ("ab" * 16, execution.span_id.hex())
        output = (await run(api, "command")).output.decode()
        execution = await trio.to_thread.run_sync(collector.wait_for, "execute command@1")
        assert output == f"00-{'ab' * 16}-{execution.span_id.hex()}-01"
        assert collector.named("queue")


async def test_a_trace_goes_into_a_wasm_guest_and_on_into_what_it_calls(
    observed: Any, collector: Collector
) -> None:
    async with talk_to(observed) as api:
        await deploy(api, "command", "command.sh", COMMAND)
        await deploy(api, "guest", "guest.wat", TRACED_WASM)
        result = await run(api, "guest")
        assert result.error is None, result.error
    told, told_further = result.output.decode().split(" ")
    task = await trio.to_thread.run_sync(collector.wait_for, "guest@1")
    execution = await trio.to_thread.run_sync(collector.wait_for, "execute guest@1")
    child = await trio.to_thread.run_sync(collector.wait_for, "command@1")
    further = await trio.to_thread.run_sync(collector.wait_for, "execute command@1")
    assert {span.trace_id.hex() for span in (task, execution, child, further)} == {"ab" * 16}
    assert task.parent_span_id.hex() == "cd" * 8
    assert execution.parent_span_id == task.span_id
    assert told == f"00-{'ab' * 16}-{execution.span_id.hex()}-01"
    assert further.parent_span_id == child.span_id
    assert told_further == f"00-{'ab' * 16}-{further.span_id.hex()}-01"
    hostcall = await trio.to_thread.run_sync(collector.wait_for, "functions.start")
    assert child.parent_span_id == hostcall.parent_span_id == execution.span_id


async def test_every_way_out_tells_the_same(observed: Any) -> None:
    async with talk_to(observed) as api:
        await deploy(api, "agent", "agent.py", AGENT)
        for _ in range(3):
            await run(api, "agent:where")
        await run(api, "agent:fail")
        metrics = await api.metrics()
    (agent,) = metrics.artifacts
    m = agent.metrics
    assert agent.artifact == "agent@1"
    assert (m.total_executions, m.successful_executions, m.failed_executions) == (4, 3, 1)
    assert (m.cold_starts, m.warm_starts, m.active_instances) == (1, 3, 1)
    assert (m.running, m.queue_length) == (0, 0)
    assert sum(m.execution_time.counts) == sum(m.queue_time.counts) == 4
    assert m.queue_time.sum_s > m.execution_time.bounds_s[2]  # the cold start is in it
    assert metrics.errors == (("unknown", 1),)
    assert metrics.memory_bytes > 1 << 20
    assert metrics.cpu_seconds > 0

    samples = await trio.to_thread.run_sync(scrape, observed)
    mine = {"artifact": "agent", "version": "1"}

    def sample(name: str, **labels: str) -> float:
        return samples[name, frozenset({**mine, **labels}.items())]

    assert sample("spear_executions_total", result="success") == 3
    assert sample("spear_executions_total", result="failure") == 1
    assert sample("spear_starts_total", start="cold") == 1
    assert sample("spear_execution_duration_seconds_count") == 4
    assert sample("spear_queue_duration_seconds_sum") == pytest.approx(m.queue_time.sum_s)

    def top(*arguments: str) -> str:
        command = [SPEAR, "top", "--state-dir", str(observed.state), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout

    assert json.loads(await trio.to_thread.run_sync(top, "--json"))["errors"] == [["unknown", 1]]
    assert "agent@1" in await trio.to_thread.run_sync(top)


async def test_a_deleted_artifact_is_no_longer_told_of_but_stays_in_the_totals(
    observed: Any,
) -> None:
    async with talk_to(observed) as api:
        await deploy(api, "gone", "gone.sh", COMMAND)
        await run(api, "gone")
        await api.delete_artifact("gone")
        metrics = await api.metrics()
    assert metrics.artifacts == ()
    assert metrics.total.total_executions == 1


async def test_each_execution_says_what_it_has_used(observed: Any) -> None:
    async with talk_to(observed) as api:
        await deploy(api, "agent", "agent.py", AGENT)
        await deploy(api, "command", "command.sh", "#!/bin/sh\nmd5sum /bin/sh\n")
        await deploy(api, "spin", "spin.wat", SPIN_WASM)
        much = (await run(api, "agent:burn", b"100")).usage
        little = (await run(api, "agent:burn", b"1")).usage
        assert much.cpu_seconds
        assert little.cpu_seconds
        assert much.peak_memory_bytes
        assert little.peak_memory_bytes
        assert much.peak_memory_bytes > 100 << 20
        assert little.peak_memory_bytes < much.peak_memory_bytes - (50 << 20)
        command = (await run(api, "command")).usage
        assert command.cpu_seconds is not None
        assert (command.peak_memory_bytes or 0) > 100_000
        spin = (await run(api, "spin")).usage
        assert (spin.cpu_seconds or 0) > 0.001
        assert spin.peak_memory_bytes == 20 << 16
        by_name: dict[str, ArtifactMetrics] = {
            a.artifact: a for a in (await api.metrics()).artifacts
        }
    agent = by_name["agent@1"].metrics
    assert agent.cpu_seconds == pytest.approx(much.cpu_seconds + little.cpu_seconds)
    assert agent.peak_memory_bytes == much.peak_memory_bytes
    assert by_name["agent@1"].memory_bytes


async def test_a_refused_request_is_counted(start_node: Any) -> None:
    node = start_node("[execution]\nmax_concurrent_tasks = 1\nmax_queued_tasks = 0\n")
    async with talk_to(node) as api:
        await deploy(api, "slow", "slow.sh", "#!/bin/sh\nexec sleep 600\n")
        request = InvokeRequest(function="slow", mode=ExecutionMode.ASYNC)
        task = await api.invoke(request)
        with pytest.raises(Exception, match=r"full|queue"):
            await api.invoke(request)
        metrics = await api.metrics()
        assert (metrics.rejected, metrics.total.total_executions) == (1, 0)
        await api.cancel_task(task.task.task_id)
        metrics = await api.metrics()
    assert metrics.errors == (("cancelled", 1),)
    assert (metrics.total.running, metrics.total.queue_length) == (0, 0)
