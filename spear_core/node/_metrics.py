"""What the executor counts and measures, in total and by artifact.

Written to once or twice for each execution, read when somebody asks: so the counters live by
artifact, and a total is a sum made at reading.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import attrs

from spear_core.api import (
    Artifact,
    ArtifactMetrics,
    ExecutionMetrics,
    ExecutionUsage,
    Histogram,
    TaskState,
)

__all__ = ["BOUNDS_S", "ExecutionRecorder"]

BOUNDS_S = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
"""From a warm wasm function to an agent that works for half an hour."""

_MOST_ARTIFACTS = 1_000
"""Versions counted apart; beyond, the oldest that does nothing now is counted with the deleted."""

_MOST_CODES = 64
"""Error codes counted apart: a guest may invent them."""

_MOST_ENTRIES = 64
"""Functions of an artifact whose times are told apart: a caller may name any number that are not
there. Beyond, the one that is known for longest is forgotten."""

_OTHER = "other"

_Key = tuple[str, int]


class _Times:
    """How often one function has run, and for how long in all."""

    __slots__ = ("ran", "seconds")

    def __init__(self) -> None:
        self.ran = 0
        self.seconds = 0.0


class _Counts:
    """The counters of one artifact."""

    __slots__ = (
        "cold",
        "cpu_s",
        "ended",
        "execution_s",
        "execution_times",
        "failed",
        "peak_memory",
        "queue_s",
        "queue_times",
        "queued",
        "ran",
        "retried",
        "running",
        "successful",
        "warm",
    )

    def __init__(self) -> None:
        self.queued = 0
        self.running = 0
        self.ended = 0
        self.ran = 0
        self.successful = 0
        self.failed = 0
        self.retried = 0
        self.cold = 0
        self.warm = 0
        self.execution_s = 0.0
        self.queue_s = 0.0
        self.cpu_s = 0.0
        self.peak_memory = 0
        self.execution_times = [0] * (len(BOUNDS_S) + 1)
        self.queue_times = [0] * (len(BOUNDS_S) + 1)

    def add(self, other: _Counts) -> None:
        """Count all of another's as ours."""
        self.peak_memory = max(self.peak_memory, other.peak_memory)
        for name in self.__slots__:
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, list):
                ours[:] = map(sum, zip(ours, theirs, strict=True))
            elif name != "peak_memory":
                setattr(self, name, ours + theirs)


@attrs.define(eq=False)
class ExecutionRecorder:
    """Takes note of every execution; a few microseconds each.

    A task is :meth:`admitted`, and then either :meth:`ended` before it had an instance, or
    :meth:`started` and :meth:`ended`; after an ``ended`` with ``retried`` it waits again.
    """

    histograms: bool = True
    """Whether to keep the distribution of times, too (``execution.enable_metrics``)."""
    rejected_requests: int = 0
    _by_artifact: dict[_Key, _Counts] = attrs.field(factory=dict, init=False)
    _functions: dict[_Key, dict[str, _Times]] = attrs.field(factory=dict, init=False)
    """By entry: for estimates, which an artifact's total would mix up."""
    _gone: _Counts = attrs.field(factory=_Counts, init=False)
    """Of the artifacts that are deleted: they stay in the totals."""
    _errors: dict[str, int] = attrs.field(factory=dict, init=False)
    _ran: int = attrs.field(default=0, init=False)
    _execution_s: float = attrs.field(default=0.0, init=False)

    def admitted(self, artifact: Artifact) -> None:
        """A task was accepted and waits for its turn."""
        key = (artifact.name, artifact.version)
        counts = self._by_artifact.get(key)
        if counts is None:
            self._make_room()
            counts = self._by_artifact[key] = _Counts()
        counts.queued += 1

    def rejected(self) -> None:
        """A request was refused because a queue, a quota or a circuit said no."""
        self.rejected_requests += 1

    def started(self, artifact: Artifact, *, queue_s: float, cold: bool) -> None:
        """An execution has got its instance.

        :param queue_s: since the task was admitted, or since its last attempt ended.
        :param cold: the instance was made for this execution.
        """
        counts = self._by_artifact.get((artifact.name, artifact.version), self._gone)
        counts.queued -= 1
        counts.running += 1
        if cold:
            counts.cold += 1
        else:
            counts.warm += 1
        if self.histograms:
            counts.queue_s += queue_s
            counts.queue_times[bisect_left(BOUNDS_S, queue_s)] += 1

    def ended(
        self,
        artifact: Artifact,
        state: TaskState,
        *,
        entry: str = "",
        execution_s: float | None,
        usage: ExecutionUsage | None = None,
        error_code: str = "",
        retried: bool = False,
    ) -> None:
        """An execution has ended, or a task before it had one.

        :param state: final, or ``RETRYING`` when ``retried``.
        :param entry: which of the artifact's functions it was.
        :param execution_s: with its instance; ``None``: it never had one.
        :param retried: another attempt follows.
        """
        key = (artifact.name, artifact.version)
        counts = self._by_artifact.get(key, self._gone)
        counts.ended += 1
        if execution_s is None:
            counts.queued -= 1
        else:
            counts.running -= 1
            counts.ran += 1
            self._ran += 1
            counts.execution_s += execution_s
            self._execution_s += execution_s
            self._note_time(key, entry, execution_s)
            if self.histograms:
                counts.execution_times[bisect_left(BOUNDS_S, execution_s)] += 1
        if state is TaskState.COMPLETED:
            counts.successful += 1
        else:
            counts.failed += 1
            self._count_error(error_code or state.value)
        if retried:
            counts.retried += 1
            counts.queued += 1
        if usage is not None:
            counts.cpu_s += usage.cpu_seconds or 0.0
            if (peak := usage.peak_memory_bytes) is not None and peak > counts.peak_memory:
                counts.peak_memory = peak

    def _note_time(self, key: _Key, entry: str, seconds: float) -> None:
        functions = self._functions.get(key)
        if functions is None:
            if key not in self._by_artifact:
                return
            functions = self._functions[key] = {}
        times = functions.get(entry)
        if times is None:
            if len(functions) >= _MOST_ENTRIES:
                del functions[next(iter(functions))]
            times = functions[entry] = _Times()
        times.ran += 1
        times.seconds += seconds

    def _count_error(self, code: str) -> None:
        if code not in self._errors and len(self._errors) >= _MOST_CODES:
            code = _OTHER
        self._errors[code] = self._errors.get(code, 0) + 1

    def _make_room(self) -> None:
        if len(self._by_artifact) < _MOST_ARTIFACTS:
            return
        for key, counts in self._by_artifact.items():
            if not counts.queued and not counts.running:
                self._gone.add(self._by_artifact.pop(key))
                self._functions.pop(key, None)
                return

    def forget(self, artifact: Artifact) -> None:
        """An artifact is deleted; what it did stays in the totals."""
        key = (artifact.name, artifact.version)
        counts = self._by_artifact.pop(key, None)
        self._functions.pop(key, None)
        if counts is not None:
            self._gone.add(counts)

    @property
    def average_s(self) -> float:
        """Seconds per execution of anything; 0 before the first."""
        return self._execution_s / self._ran if self._ran else 0.0

    def average_of(self, artifact: Artifact, entry: str = "") -> float | None:
        """Seconds per execution of this function of the artifact; ``None`` before the first."""
        times = self._functions.get((artifact.name, artifact.version), {}).get(entry)
        return None if times is None else times.seconds / times.ran

    @property
    def errors(self) -> tuple[tuple[str, int], ...]:
        """How often each error code was, most frequent first."""
        return tuple(sorted(self._errors.items(), key=lambda item: (-item[1], item[0])))

    def outcomes(self) -> tuple[int, int]:
        """Executions of anything: how many have ended, and how many of them well. Cheap: whoever
        polls the node's state asks for no more."""
        everyone = (self._gone, *self._by_artifact.values())
        return sum([each.ended for each in everyone]), sum([each.successful for each in everyone])

    def total(self, *, instances: int = 0) -> ExecutionMetrics:
        """Of all artifacts, the deleted ones too."""
        total = _Counts()
        total.add(self._gone)
        for counts in self._by_artifact.values():
            total.add(counts)
        return self._metrics(total, instances)

    def by_artifact(self, instances: Callable[[str, int], int]) -> tuple[ArtifactMetrics, ...]:
        """Of each artifact that has been asked for, by name and version.

        :param instances: how many live, by name and version.
        """
        return tuple(
            ArtifactMetrics(
                artifact=f"{name}@{version}",
                metrics=self._metrics(counts, instances(name, version)),
            )
            for (name, version), counts in sorted(self._by_artifact.items())
        )

    def _metrics(self, counts: _Counts, instances: int) -> ExecutionMetrics:
        return ExecutionMetrics(
            total_executions=counts.ended,
            successful_executions=counts.successful,
            failed_executions=counts.failed,
            retried_executions=counts.retried,
            average_execution_time_ms=1000 * counts.execution_s / counts.ran if counts.ran else 0.0,
            active_instances=instances,
            queue_length=counts.queued,
            running=counts.running,
            cold_starts=counts.cold,
            warm_starts=counts.warm,
            cpu_seconds=counts.cpu_s,
            peak_memory_bytes=counts.peak_memory,
            execution_time=self._histogram(counts.execution_times, counts.execution_s),
            queue_time=self._histogram(counts.queue_times, counts.queue_s),
        )

    def _histogram(self, times: list[int], sum_s: float) -> Histogram:
        if not self.histograms:
            return Histogram(bounds_s=(), counts=(0,))
        return Histogram(bounds_s=BOUNDS_S, counts=tuple(times), sum_s=sum_s)
