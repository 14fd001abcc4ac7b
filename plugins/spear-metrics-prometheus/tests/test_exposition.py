"""The page, as Prometheus' own parser reads it."""

from __future__ import annotations

import shutil
import subprocess

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from spear_core.api import ArtifactMetrics, ExecutionMetrics, Histogram, NodeMetrics
from spear_metrics_prometheus._exposition import render

TIMES = Histogram(bounds_s=(0.001, 0.1, 1.0), counts=(5, 3, 0, 2), sum_s=7.25)
EXECUTIONS = ExecutionMetrics(
    total_executions=10,
    successful_executions=7,
    failed_executions=3,
    retried_executions=2,
    active_instances=4,
    queue_length=6,
    running=1,
    cold_starts=8,
    warm_starts=9,
    cpu_seconds=1.5,
    peak_memory_bytes=1 << 20,
    execution_time=TIMES,
    queue_time=TIMES,
)
METRICS = NodeMetrics(
    node_id="n-1",
    version="0.1.0",
    started_at=1_700_000_000.5,
    cpu_seconds=12.0,
    memory_bytes=3 << 20,
    total=EXECUTIONS,
    artifacts=(
        ArtifactMetrics(artifact="echo@3", metrics=EXECUTIONS, memory_bytes=77),
        ArtifactMetrics(artifact="other@1", metrics=EXECUTIONS),
    ),
    rejected=11,
    errors=(("unavailable", 3),),
)
ECHO = {"artifact": "echo", "version": "3"}


def samples(metrics: NodeMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(render(metrics)):
        assert family.documentation
        assert family.type != "unknown"
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(name: str, **labels: str) -> float:
    return samples(METRICS)[name, frozenset(labels.items())]


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("spear_executions_total", {"result": "success"}, 7),
        ("spear_executions_total", {"result": "failure"}, 3),
        ("spear_starts_total", {"start": "cold"}, 8),
        ("spear_starts_total", {"start": "warm"}, 9),
        ("spear_executions_retried_total", {}, 2),
        ("spear_executions_running", {}, 1),
        ("spear_queue_length", {}, 6),
        ("spear_instances", {}, 4),
        ("spear_instances_memory_bytes", {}, 77),
        ("spear_execution_cpu_seconds_total", {}, 1.5),
        ("spear_execution_peak_memory_bytes", {}, 1 << 20),
    ],
)
def test_each_artifact_has_its_metrics(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(name, **ECHO, **labels) == expected


def test_the_node_has_its_own() -> None:
    assert value("spear_node_info", node_id="n-1", version="0.1.0") == 1
    assert value("spear_node_executions_total", result="failure") == 3
    assert value("spear_node_starts_total", start="cold") == 8
    assert value("spear_node_executions_running") == 1
    assert value("spear_node_queue_length") == 6
    assert value("spear_node_instances") == 4
    assert value("spear_requests_rejected_total") == 11
    assert value("spear_errors_total", code="unavailable") == 3
    assert value("process_start_time_seconds") == 1_700_000_000.5
    assert value("process_cpu_seconds_total") == 12
    assert value("process_resident_memory_bytes") == 3 << 20


@pytest.mark.parametrize(
    "name", ["spear_execution_duration_seconds", "spear_queue_duration_seconds"]
)
def test_buckets_are_cumulative_and_end_with_the_count(name: str) -> None:
    buckets = [value(f"{name}_bucket", **ECHO, le=le) for le in ("0.001", "0.1", "1.0", "+Inf")]
    assert buckets == [5, 8, 8, 10]
    assert value(f"{name}_count", **ECHO) == 10
    assert value(f"{name}_sum", **ECHO) == 7.25


def test_without_histograms_there_are_none() -> None:
    none = Histogram(bounds_s=(), counts=(0,))
    plain = attrs.evolve(EXECUTIONS, execution_time=none, queue_time=none)
    artifact = ArtifactMetrics(artifact="echo@3", metrics=plain)
    names = {name for name, _ in samples(attrs.evolve(METRICS, artifacts=(artifact,)))}
    assert not [name for name in names if "duration" in name]
    assert "spear_executions_total" in names


def test_what_a_guest_may_write_into_a_label_cannot_break_the_page() -> None:
    evil = 'x"} 1\n# TYPE evil \\counter'
    found = samples(attrs.evolve(METRICS, errors=((evil, 5),)))
    assert found["spear_errors_total", frozenset({("code", evil)})] == 5


def test_a_node_that_has_done_nothing_has_a_page() -> None:
    nothing = Histogram(bounds_s=(1.0,), counts=(0, 0))
    total = ExecutionMetrics(execution_time=nothing, queue_time=nothing)
    assert samples(NodeMetrics(node_id="n-1", total=total))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_own_checker_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=render(METRICS), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
