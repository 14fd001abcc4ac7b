"""A node's metrics as Prometheus reads them.

The text format 0.0.4:
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from spear_core.api import ArtifactMetrics, ExecutionMetrics, Histogram, NodeMetrics

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[Labels, float]

_OF_ARTIFACTS: Sequence[tuple[str, str, str, Callable[[ExecutionMetrics], float]]] = (
    ("spear_executions_retried_total", "counter",
     "Executions that failed and were followed by another attempt.",
     lambda m: m.retried_executions),
    ("spear_executions_running", "gauge", "Executions that have an instance now.",
     lambda m: m.running),
    ("spear_queue_length", "gauge", "Tasks that wait for their turn now.",
     lambda m: m.queue_length),
    ("spear_instances", "gauge", "Live instances.", lambda m: m.active_instances),
    ("spear_execution_cpu_seconds_total", "counter",
     "CPU time of executions, as far as their runtime can tell.", lambda m: m.cpu_seconds),
    ("spear_execution_peak_memory_bytes", "gauge",
     "The most memory that any execution has had, as far as its runtime can tell.",
     lambda m: m.peak_memory_bytes),
)  # fmt: skip


def render(metrics: NodeMetrics) -> str:
    """The whole page."""
    return "".join(f"{line}\n" for line in _lines(metrics))


def _lines(metrics: NodeMetrics) -> Iterator[str]:
    yield from _of_node(metrics)
    artifacts = [(_labels(artifact), artifact) for artifact in metrics.artifacts]
    yield from _family(
        "spear_executions_total", "counter", "Executions that have ended, by how.",
        [sample for labels, a in artifacts for sample in _results(labels, a.metrics)],
    )  # fmt: skip
    yield from _family(
        "spear_starts_total", "counter",
        "Executions by whether they had to wait for a new instance (cold) or not (warm).",
        [sample for labels, a in artifacts for sample in _starts(labels, a.metrics)],
    )  # fmt: skip
    for name, type_, text, get in _OF_ARTIFACTS:
        yield from _family(name, type_, text, [(ls, get(a.metrics)) for ls, a in artifacts])
    yield from _family(
        "spear_instances_memory_bytes", "gauge",
        "What live instances hold, as far as their runtime can tell.",
        [(ls, a.memory_bytes) for ls, a in artifacts if a.memory_bytes is not None],
    )  # fmt: skip
    yield from _histograms(
        "spear_execution_duration_seconds", "How long executions had their instance.",
        [(labels, a.metrics.execution_time) for labels, a in artifacts],
    )  # fmt: skip
    yield from _histograms(
        "spear_queue_duration_seconds", "How long executions waited before they had an instance.",
        [(labels, a.metrics.queue_time) for labels, a in artifacts],
    )  # fmt: skip


def _of_node(metrics: NodeMetrics) -> Iterator[str]:
    info = {"node_id": metrics.node_id, "version": metrics.version}
    total = metrics.total
    families: Sequence[tuple[str, str, str, Iterable[Sample]]] = (
        ("spear_node_info", "gauge", "The node; always 1.", [(info, 1)]),
        ("process_start_time_seconds", "gauge", "When the node started, in Unix time.",
         [({}, metrics.started_at)]),
        ("process_cpu_seconds_total", "counter",
         "CPU time of the node's own process, wasm guests included.", [({}, metrics.cpu_seconds)]),
        ("process_resident_memory_bytes", "gauge", "Memory of the node's own process.",
         [({}, metrics.memory_bytes)]),
        ("spear_node_executions_total", "counter",
         "Executions that have ended, of deleted artifacts too.", _results({}, total)),
        ("spear_node_starts_total", "counter",
         "Cold and warm starts, of deleted artifacts too.", _starts({}, total)),
        ("spear_node_executions_running", "gauge", "Executions that have an instance now.",
         [({}, total.running)]),
        ("spear_node_queue_length", "gauge", "Tasks that wait for their turn now.",
         [({}, total.queue_length)]),
        ("spear_node_instances", "gauge", "Live instances.", [({}, total.active_instances)]),
        ("spear_requests_rejected_total", "counter",
         "Requests refused because a queue, a quota or a circuit said no.",
         [({}, metrics.rejected)]),
        ("spear_errors_total", "counter", "Executions that did not succeed, by error code.",
         [({"code": code}, count) for code, count in metrics.errors]),
    )  # fmt: skip
    for family in families:
        yield from _family(*family)


def _labels(artifact: ArtifactMetrics) -> Labels:
    name, _, version = artifact.artifact.rpartition("@")
    return {"artifact": name, "version": version}


def _results(labels: Labels, metrics: ExecutionMetrics) -> list[Sample]:
    return [
        ({**labels, "result": "success"}, metrics.successful_executions),
        ({**labels, "result": "failure"}, metrics.failed_executions),
    ]


def _starts(labels: Labels, metrics: ExecutionMetrics) -> list[Sample]:
    return [
        ({**labels, "start": "cold"}, metrics.cold_starts),
        ({**labels, "start": "warm"}, metrics.warm_starts),
    ]


def _family(name: str, type_: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {type_}"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _histograms(name: str, text: str, samples: Iterable[tuple[Labels, Histogram]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for labels, histogram in samples:
        if not histogram.bounds_s:  # the node keeps none (execution.enable_metrics)
            continue
        count = 0
        for bound, more in zip(histogram.bounds_s, histogram.counts, strict=False):
            count += more
            yield _sample(f"{name}_bucket", {**labels, "le": _number(bound)}, count)
        count += histogram.counts[-1]
        yield _sample(f"{name}_bucket", {**labels, "le": "+Inf"}, count)
        yield _sample(f"{name}_sum", labels, histogram.sum_s)
        yield _sample(f"{name}_count", labels, count)


def _sample(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(value)
