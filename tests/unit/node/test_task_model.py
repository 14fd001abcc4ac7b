"""The life of a task against a model: attempts that break, cancellations, deadlines, at random."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spear_core.api import (
    Artifact,
    ArtifactUpload,
    ErrorInfo,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    RetryPolicy,
    SpearletConfig,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.errors import InstanceLostError
from spear_core.node._capacity import Capacity
from spear_core.node._run_queue import RunQueue
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._tasks import Task, TaskTable

BACKOFF_S = 4.0
UPLOAD = ArtifactUpload(
    name="f",
    filename="f.st",
    content=b"code",
    reuse=False,
    retry=RetryPolicy(attempts=3, initial_backoff_s=BACKOFF_S, multiplier=1, jitter=0),
)
CONFIG = SpearletConfig(execution=ExecutionConfig(circuit_failures=0, max_concurrent_tasks=50))


@attrs.frozen
class Plan:
    """What is to happen to one task."""

    outcomes: tuple[str, ...] = attrs.field()
    """Of each attempt: ``ok``, ``fail``, ``lost`` (in the middle) or ``hang``."""
    idempotent: bool
    cancel_at: float | None
    timeout: float


PLANS = st.builds(
    Plan,
    outcomes=st.tuples(*[st.sampled_from(["ok", "fail", "lost", "hang"])] * 3),
    idempotent=st.booleans(),
    cancel_at=st.none() | st.sampled_from([0.5, 2.5, 5.5, 7.5, 11.5, 13.5]),
    timeout=st.sampled_from([1.5, 3.5, 6.5, 9.5, 99.0]),
)


def expected(plan: Plan) -> tuple[TaskState, int, float]:
    """The final state, the attempts begun, and when; an attempt takes two seconds."""
    stops = [(plan.timeout, TaskState.TIMEOUT)]
    if plan.cancel_at is not None:
        stops.append((plan.cancel_at, TaskState.CANCELLED))
    stop_at, stopped = min(stops, key=lambda stop: stop[0])
    now = 0.0
    for attempt, outcome in enumerate(plan.outcomes, 1):
        end = now + 2.0
        if outcome == "hang" or stop_at < end:
            return stopped, attempt, stop_at
        if outcome == "ok":
            return TaskState.COMPLETED, attempt, end
        retried = outcome == "lost" and plan.idempotent and attempt < 3
        if not retried or end + BACKOFF_S >= plan.timeout:
            return TaskState.FAILED, attempt, end
        if stop_at < end + BACKOFF_S:
            return stopped, attempt + 1, stop_at
        now = end + BACKOFF_S
    raise AssertionError("the last attempt always ends it")


async def behave(plan: Plan, request: ExecutionRequest) -> ExecutionResponse:
    outcome = plan.outcomes[request.attempt - 1]
    if outcome == "hang":
        await trio.sleep_forever()
    await trio.sleep(2)
    if outcome == "lost":
        raise InstanceLostError("shot")
    if outcome == "fail":
        return ExecutionResponse.failed(ErrorInfo(code="unknown", message="boom"))
    return ExecutionResponse.completed(b"ok")


async def test_a_tasks_life_is_as_the_model_says(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """Hundreds of plans, fifty at a time side by side in one node."""
    plans: list[Plan] = []

    @settings(max_examples=1000, deadline=None, database=None, derandomize=True)
    @given(PLANS)
    def collect(plan: Plan) -> None:
        plans.append(plan)

    collect()
    distinct = list(dict.fromkeys(plans))
    assert len(distinct) > 300

    async def dispatch(request: ExecutionRequest) -> ExecutionResponse:
        return await behave(distinct[int(request.payload)], request)

    runtime.behaviour = dispatch
    async with open_steered_node(CONFIG) as node:
        await node.api.deploy(UPLOAD)
        await node.api.deploy(attrs.evolve(UPLOAD, name="again", idempotent=True))
        for first in range(0, len(distinct), 50):
            async with trio.open_nursery() as nursery:
                for number in range(first, min(first + 50, len(distinct))):
                    nursery.start_soon(live, node, distinct[number], number)
        status = await node.api.status()
        assert (status.running, status.queued) == (0, 0)
    assert runtime.live == 0


async def live(node: Any, plan: Plan, number: int) -> None:
    began = trio.current_time()
    request = InvokeRequest(
        function="again" if plan.idempotent else "f",
        payload=b"%d" % number,
        timeout_s=plan.timeout,
        mode=ExecutionMode.ASYNC,
    )
    task_id = (await node.api.invoke(request)).task.task_id
    async with trio.open_nursery() as nursery:

        async def cancel() -> None:
            if plan.cancel_at is not None:
                await trio.sleep(plan.cancel_at)
                await node.api.cancel_task(task_id)

        nursery.start_soon(cancel)
        info: TaskInfo = await node.api.get_task(task_id, wait=True)
        lasted = trio.current_time() - began
        nursery.cancel_scope.cancel()
    state, attempts, at = expected(plan)
    assert (info.state, info.attempt) == (state, attempts), plan
    assert lasted == pytest.approx(at, abs=0.1), plan
    assert len(info.failed_executions) == attempts - 1
    assert info.result is not None
    assert (info.result.error is None) == (state is TaskState.COMPLETED)


UNFINISHED = ("pending", "running", "retrying")
LEGAL = {
    ("running", "completed"),
    *((state, "running") for state in ("pending", "retrying")),
    *((state, "retrying") for state in UNFINISHED),
    *((state, end) for state in UNFINISHED for end in ("failed", "cancelled", "timeout")),
}


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(st.sampled_from(TaskState), max_size=12))
def test_an_illegal_change_of_state_is_refused_and_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, path: list[TaskState]
) -> None:
    task = make_task(tmp_path_factory.getbasetemp())
    for state in path:
        before = task.state
        move = functools.partial(task.finish, result=TaskResult()) if state.is_final else task.move
        if (before.value, state.value) in LEGAL:
            move(state)
            assert task.state is state
        else:
            with pytest.raises(AssertionError, match="→"):
                move(state)
            assert task.state is before


def make_task(folder: Path) -> Task:
    artifact = Artifact(
        name="f", version=1, digest="0", runtime="r", shape="s", path=folder / "f", filename="f"
    )
    queue = RunQueue(
        ExecutionConfig(), Capacity(), instances_of=lambda artifact: 9, clock=lambda: 0.0
    )
    request = InvokeRequest(function="f")
    turn = queue.admit(artifact, "", request.priority)
    logs = TaskLogDirectory(folder, max_bytes=1000, warn=logging.warning)
    table = TaskTable(logs, keep_finished=1, keep_finished_bytes=1)
    return table.add(artifact, request, turn, entry="", deadline=1.0)
