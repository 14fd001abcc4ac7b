"""From counters to what happens now: rates, quantiles and shares between two moments."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import attrs

from spear_core.api import ArtifactMetrics, ExecutionMetrics, Histogram, NodeMetrics

__all__ = ["History", "Rates", "Row", "quantile"]


def quantile(histogram: Histogram, share: float) -> float | None:
    """Seconds below which ``share`` of the durations were, as far as the ranges tell.

    Within a range they are taken as evenly spread; in the last one, which has no bound, as at its
    beginning. ``None``: there were none.
    """
    wanted = share * sum(histogram.counts)
    if not wanted:
        return None
    below = 0
    lower = 0.0
    for count, upper in zip(histogram.counts, histogram.bounds_s, strict=False):
        if below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        below += count
        lower = upper
    return lower or None


@attrs.frozen(kw_only=True)
class Rates:
    """What executions were like between two moments."""

    per_s: float
    errors: int
    p50_s: float | None
    p95_s: float | None
    queued_p95_s: float | None
    cold_share: float | None
    """Of the executions that got an instance; ``None``: there were none."""
    cpu_share: float
    """Of one processor."""


@attrs.frozen(kw_only=True)
class Row:
    """One artifact, now."""

    artifact: str
    now: ExecutionMetrics
    memory_bytes: int | None
    rates: Rates


@attrs.define
class History:
    """The node's metrics over the last seconds; what is shown are the changes within them.

    Before there are two of one run of the node, the changes are those since its start.
    """

    span_s: float
    _seen: deque[tuple[float, NodeMetrics]] = attrs.field(factory=deque, init=False)
    _up_s: float = attrs.field(default=0.0, init=False)

    def add(self, metrics: NodeMetrics) -> None:
        """Take note of the metrics as they are now."""
        when = time.monotonic()  # the time of day may be set while we look
        self._up_s = time.time() - metrics.started_at
        if self._seen and self._seen[-1][1].started_at != metrics.started_at:
            self._seen.clear()
        self._seen.append((when, metrics))
        while len(self._seen) > 2 and when - self._seen[1][0] >= self.span_s:
            self._seen.popleft()

    @property
    def newest(self) -> NodeMetrics:
        """The last that was added."""
        return self._seen[-1][1]

    @property
    def elapsed_s(self) -> float:
        """How long the changes took."""
        elapsed = self._seen[-1][0] - self._seen[0][0] if len(self._seen) > 1 else self._up_s
        return max(elapsed, 1e-3)

    @property
    def _oldest(self) -> NodeMetrics | None:
        return self._seen[0][1] if len(self._seen) > 1 else None

    def total(self) -> Rates:
        """Of the whole node."""
        oldest = self._oldest
        return _rates(self.newest.total, oldest.total if oldest else None, self.elapsed_s)

    def node_cpu_share(self) -> float:
        """Processors that the node's own process uses."""
        before = self._oldest.cpu_seconds if self._oldest else 0.0
        return (self.newest.cpu_seconds - before) / self.elapsed_s

    def rows(self) -> Sequence[Row]:
        """Of each artifact: the busiest first, then those that have work, then by name."""
        before = {a.artifact: a.metrics for a in self._oldest.artifacts} if self._oldest else {}
        rows = [self._row(artifact, before.get(artifact.artifact)) for artifact in
                self.newest.artifacts]  # fmt: skip
        return sorted(
            rows,
            key=lambda row: (
                -row.rates.per_s, -row.now.running, -row.now.queue_length, row.artifact
            ),
        )  # fmt: skip

    def _row(self, artifact: ArtifactMetrics, before: ExecutionMetrics | None) -> Row:
        return Row(
            artifact=artifact.artifact,
            now=artifact.metrics,
            memory_bytes=artifact.memory_bytes,
            rates=_rates(artifact.metrics, before, self.elapsed_s),
        )


def _rates(now: ExecutionMetrics, before: ExecutionMetrics | None, elapsed_s: float) -> Rates:
    cold = now.cold_starts - (before.cold_starts if before else 0)
    warm = now.warm_starts - (before.warm_starts if before else 0)
    ran = now.total_executions - (before.total_executions if before else 0)
    times = _change(now.execution_time, before.execution_time if before else None)
    queued = _change(now.queue_time, before.queue_time if before else None)
    return Rates(
        per_s=ran / elapsed_s,
        errors=now.failed_executions - (before.failed_executions if before else 0),
        p50_s=quantile(times, 0.5),
        p95_s=quantile(times, 0.95),
        queued_p95_s=quantile(queued, 0.95),
        cold_share=cold / (cold + warm) if cold + warm else None,
        cpu_share=(now.cpu_seconds - (before.cpu_seconds if before else 0.0)) / elapsed_s,
    )


def _change(now: Histogram, before: Histogram | None) -> Histogram:
    if before is None or before.bounds_s != now.bounds_s:
        return now
    counts = tuple(max(0, n - b) for n, b in zip(now.counts, before.counts, strict=True))
    return attrs.evolve(now, counts=counts, sum_s=now.sum_s - before.sum_s)
