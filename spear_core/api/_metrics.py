"""What a node counts and measures."""

from __future__ import annotations

import attrs

__all__ = ["ArtifactMetrics", "ExecutionMetrics", "Histogram", "NodeMetrics"]


@attrs.frozen(kw_only=True)
class Histogram:
    """How often a duration fell into each range."""

    bounds_s: tuple[float, ...]
    """Upper bounds in seconds, ascending; a last range without a bound follows."""
    counts: tuple[int, ...]
    """One per range, not cumulative: ``len(bounds_s) + 1`` of them."""
    sum_s: float = 0.0


@attrs.frozen(kw_only=True)
class ExecutionMetrics:
    """Counters since the node's start, and what is so now."""

    total_executions: int = 0
    successful_executions: int = 0
    failed_executions: int = 0
    """Failed, timed out or cancelled."""
    retried_executions: int = 0
    """Those of the failed that were followed by another attempt."""
    average_execution_time_ms: float = 0.0
    active_instances: int = 0
    queue_length: int = 0
    running: int = 0
    cold_starts: int = 0
    warm_starts: int = 0
    cpu_seconds: float = 0.0
    """Sum over the executions whose runtime could tell."""
    peak_memory_bytes: int = 0
    """The highest of any execution whose runtime could tell."""
    execution_time: Histogram
    queue_time: Histogram


@attrs.frozen(kw_only=True)
class ArtifactMetrics:
    """The metrics of one version of an artifact."""

    artifact: str
    """``name@version``."""
    metrics: ExecutionMetrics
    memory_bytes: int | None = None
    """What its live instances hold now; ``None``: their runtime cannot tell."""


@attrs.frozen(kw_only=True)
class NodeMetrics:
    """What a node counts, in total and by artifact."""

    node_id: str
    version: str = ""
    started_at: float = 0.0
    """Seconds since the Unix epoch; counters begin then."""
    cpu_seconds: float = 0.0
    """Of the node's own process, wasm guests included, processes that it started not."""
    memory_bytes: int = 0
    """Resident, of the node's own process."""
    total: ExecutionMetrics
    artifacts: tuple[ArtifactMetrics, ...] = ()
    rejected: int = 0
    """Requests refused because a queue, a quota or a circuit said no."""
    errors: tuple[tuple[str, int], ...] = ()
    """Failed executions by the error's code."""
