"""What the executor counts, and that it stays bounded."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from spear_core.api import Artifact, ArtifactMetrics, ExecutionUsage, TaskState
from spear_core.node import _metrics
from spear_core.node._metrics import BOUNDS_S, ExecutionRecorder


def make_artifact(name: str = "f", version: int = 1) -> Artifact:
    return Artifact(
        name=name,
        version=version,
        runtime="echo",
        shape="echo",
        digest="0" * 64,
        path=Path("f.echo"),
        filename="f.echo",
    )


def run(
    recorder: ExecutionRecorder,
    artifact: Artifact,
    *,
    execution_s: float = 0.01,
    queue_s: float = 0.001,
    cold: bool = False,
    state: TaskState = TaskState.COMPLETED,
    usage: ExecutionUsage | None = None,
    code: str = "",
    entry: str = "",
) -> None:
    recorder.admitted(artifact)
    recorder.started(artifact, queue_s=queue_s, cold=cold)
    recorder.ended(
        artifact, state, entry=entry, execution_s=execution_s, usage=usage, error_code=code
    )


def of(recorder: ExecutionRecorder, ref: str = "f@1") -> ArtifactMetrics:
    (found,) = [m for m in recorder.by_artifact(lambda name, version: 3) if m.artifact == ref]
    return found


def test_an_execution_is_counted_where_it_is_at_each_moment() -> None:
    recorder, artifact = ExecutionRecorder(), make_artifact()
    recorder.admitted(artifact)
    assert (recorder.total().queue_length, recorder.total().running) == (1, 0)
    recorder.started(artifact, queue_s=0.5, cold=True)
    assert (recorder.total().queue_length, recorder.total().running) == (0, 1)
    recorder.ended(artifact, TaskState.COMPLETED, execution_s=2.0)
    total = recorder.total(instances=7)
    assert (total.queue_length, total.running, total.active_instances) == (0, 0, 7)
    assert (total.total_executions, total.successful_executions) == (1, 1)
    assert (total.cold_starts, total.warm_starts) == (1, 0)
    assert total.average_execution_time_ms == 2000
    assert of(recorder).metrics.active_instances == 3


def test_times_fall_into_their_ranges_and_a_bound_belongs_to_the_range_below() -> None:
    recorder, artifact = ExecutionRecorder(), make_artifact()
    for seconds in (0.0, BOUNDS_S[3], BOUNDS_S[3] * 1.01, 1e9):
        run(recorder, artifact, execution_s=seconds, queue_s=0.2)
    times = recorder.total().execution_time
    found = {i: count for i, count in enumerate(times.counts) if count}
    assert found == {0: 1, 3: 1, 4: 1, len(BOUNDS_S): 1}
    assert len(times.counts) == len(times.bounds_s) + 1
    assert times.sum_s == pytest.approx(1e9, rel=1e-6)
    queue = recorder.total().queue_time
    assert sum(queue.counts) == 4
    assert queue.sum_s == pytest.approx(0.8)


def test_what_never_had_an_instance_counts_as_failed_but_has_no_time() -> None:
    recorder, artifact = ExecutionRecorder(), make_artifact()
    run(recorder, artifact, execution_s=1.0)
    recorder.admitted(artifact)
    recorder.ended(artifact, TaskState.CANCELLED, execution_s=None)
    total = recorder.total()
    assert (total.total_executions, total.failed_executions) == (2, 1)
    assert (total.queue_length, total.running) == (0, 0)
    assert total.average_execution_time_ms == 1000
    assert recorder.errors == (("cancelled", 1),)


def test_a_retried_execution_waits_again() -> None:
    recorder, artifact = ExecutionRecorder(), make_artifact()
    recorder.admitted(artifact)
    recorder.started(artifact, queue_s=0, cold=True)
    recorder.ended(
        artifact, TaskState.RETRYING, execution_s=0.1, error_code="unavailable", retried=True
    )
    total = recorder.total()
    assert (total.retried_executions, total.failed_executions, total.queue_length) == (1, 1, 1)
    recorder.started(artifact, queue_s=0, cold=False)
    recorder.ended(artifact, TaskState.COMPLETED, execution_s=0.1)
    total = recorder.total()
    assert (total.total_executions, total.successful_executions, total.queue_length) == (2, 1, 0)
    assert recorder.errors == (("unavailable", 1),)


def test_usage_is_summed_and_its_peak_kept() -> None:
    recorder, artifact = ExecutionRecorder(), make_artifact()
    for cpu, peak in ((0.5, 100), (0.25, 300), (None, None), (0.25, 200)):
        run(recorder, artifact, usage=ExecutionUsage(cpu_seconds=cpu, peak_memory_bytes=peak))
    assert (recorder.total().cpu_seconds, recorder.total().peak_memory_bytes) == (1.0, 300)


def test_totals_keep_what_a_deleted_artifact_did_and_its_own_metrics_go() -> None:
    recorder, one, two = ExecutionRecorder(), make_artifact("one"), make_artifact("two")
    run(recorder, one)
    run(recorder, two, cold=True)
    recorder.admitted(one)
    before = recorder.total()
    recorder.forget(one)
    assert [m.artifact for m in recorder.by_artifact(lambda *_: 0)] == ["two@1"]
    assert recorder.total() == before
    # the one that was waiting ends later, and counts nowhere but in the totals
    recorder.ended(one, TaskState.CANCELLED, execution_s=None)
    assert recorder.total().queue_length == 0
    assert recorder.total().total_executions == 3
    assert recorder.outcomes() == (3, 2)
    assert recorder.average_of(one) is None


def test_each_function_of_an_artifact_has_its_own_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_metrics, "_MOST_ENTRIES", 3)
    recorder, first, second = ExecutionRecorder(), make_artifact(), make_artifact(version=2)
    for seconds in (1.0, 3.0):
        run(recorder, first, entry="slow", execution_s=seconds)
    run(recorder, first, entry="quick", execution_s=0.5)
    assert recorder.average_of(first, "slow") == 2.0
    assert recorder.average_of(first, "quick") == 0.5
    assert recorder.average_of(first, "never") is None
    assert recorder.average_of(second, "slow") is None
    for number in range(100):  # a caller may name what is not there
        run(recorder, first, entry=f"absent{number}")
    assert recorder.average_of(first, "slow") is None
    assert recorder.average_of(first, "absent98") == 0.01
    assert len(recorder._functions["f", 1]) == 3
    recorder.forget(first)
    recorder.ended(first, TaskState.COMPLETED, entry="slow", execution_s=1.0)
    assert recorder.average_of(first, "slow") is None
    assert not recorder._functions


def test_artifacts_and_error_codes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_metrics, "_MOST_ARTIFACTS", 3)
    monkeypatch.setattr(_metrics, "_MOST_CODES", 2)
    recorder = ExecutionRecorder()
    recorder.admitted(make_artifact("busy"))
    for number in range(10):
        run(recorder, make_artifact(f"f{number}"), state=TaskState.FAILED, code=f"code{number}")
    assert [m.artifact for m in recorder.by_artifact(lambda *_: 0)] == ["busy@1", "f8@1", "f9@1"]
    assert set(recorder._functions) == {("f8", 1), ("f9", 1)}
    assert recorder.total().failed_executions == 10
    assert recorder.errors == (("other", 8), ("code0", 1), ("code1", 1))


def test_without_histograms_the_counters_stay() -> None:
    recorder, artifact = ExecutionRecorder(histograms=False), make_artifact()
    run(recorder, artifact, execution_s=2.0)
    total = recorder.total()
    assert (total.execution_time.bounds_s, total.execution_time.counts) == ((), (0,))
    assert total.queue_time == attrs.evolve(total.execution_time)
    assert (total.total_executions, total.average_execution_time_ms) == (1, 2000)
    assert recorder.average_of(artifact) == recorder.average_s == 2.0


def test_a_refusal_is_no_execution() -> None:
    recorder = ExecutionRecorder()
    recorder.rejected()
    assert recorder.rejected_requests == 1
    assert recorder.total().total_executions == 0
