"""Retries, circuits, runtimes that break: with a steered runtime in a real node."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from spear_core.api import (
    ArtifactUpload,
    ErrorInfo,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    Fingerprint,
    Health,
    InvokeRequest,
    Resources,
    RetryPolicy,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import (
    ChannelBrokenError,
    CircuitOpenError,
    InstanceLostError,
    InstanceStartError,
    ResourceExhaustedError,
    RuntimeUnavailableError,
    SpearError,
)
from spear_core.node._retries import backoff_s

POLICY = RetryPolicy(initial_backoff_s=1, multiplier=2, jitter=0)
UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code", reuse=False, retry=POLICY)
CALL = InvokeRequest(function="f", payload=b"in")
NO_CIRCUIT = SpearletConfig(execution=ExecutionConfig(circuit_failures=0))


def failing(*errors: Exception) -> Any:
    """A guest that breaks with these errors, one after the other, then answers."""
    left = list(errors)

    async def behave(request: ExecutionRequest) -> ExecutionResponse:
        await trio.lowlevel.checkpoint()
        if left:
            raise left.pop(0)
        return ExecutionResponse.completed(b"attempt %d" % request.attempt)

    return behave


async def test_what_an_idempotent_guest_may_have_begun_is_tried_again(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = failing(InstanceLostError("shot"), ChannelBrokenError("cut"))
    async with open_steered_node() as node:
        await node.api.deploy(attrs.evolve(UPLOAD, idempotent=True))
        began = trio.current_time()
        task = (await node.api.invoke(CALL)).task
        assert task.state is TaskState.COMPLETED
        assert task.result.output == b"attempt 3"
        assert (task.attempt, task.result.attempt) == (3, 3)
        assert trio.current_time() - began == pytest.approx(1 + 2)
        first, second = task.failed_executions
        assert (first.attempt, first.error.message) == (1, "shot")
        assert (second.attempt, second.error.kind) == (2, "ChannelBrokenError")
        ids = [first.execution_id, second.execution_id, task.execution_id]
        assert len(set(ids)) == 3
        for execution_id in ids:  # the status of any attempt is that of the task
            assert (await node.api.get_task(execution_id)).task_id == task.task_id
        log = await node.api.read_log(task.task_id)
        assert [entry.execution_id for entry in log.entries] == ids[:2]
        assert "attempt 1 failed: shot" in log.entries[0].message
        metrics = await node.api.metrics()
        assert metrics.total.retried_executions == 2
        assert metrics.total.running == metrics.total.queue_length == 0


async def test_at_most_once_unless_the_artifact_says_otherwise(
    open_steered_node: Any, runtime: Any
) -> None:
    runtime.behaviour = failing(InstanceLostError("shot"))
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(CALL)).task
        assert (task.state, task.attempt) == (TaskState.FAILED, 1)
        assert runtime.opened[0].executions == 1


async def test_a_request_that_never_reached_its_instance_is_tried_again(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = failing(InstanceLostError("dead already", unsent=True))
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(CALL)).task
        assert (task.state, task.attempt) == (TaskState.COMPLETED, 2)


async def test_what_failed_before_the_guest_began_is_always_tried_again(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.open_error = SpearError("no more processes", code="unavailable", retryable=True)
    async with open_steered_node(NO_CIRCUIT) as node, trio.open_nursery() as nursery:
        await node.api.deploy(UPLOAD)
        states = []

        async def heal() -> None:
            await trio.sleep(1.5)
            (info,) = await node.api.list_tasks()
            states.append((info.state, info.attempt))
            assert (await node.api.status()).running == 0  # no slot is held meanwhile
            runtime.open_error = None

        nursery.start_soon(heal)
        task = (await node.api.invoke(CALL)).task
        assert task.state is TaskState.COMPLETED
        assert task.attempt == 3
        assert states == [(TaskState.RETRYING, 3)]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (InstanceStartError("SyntaxError in f.py"), 1),
        (InstanceStartError("fork: no memory", retryable=True), 3),
        (RuntimeUnavailableError("no backend"), 1),
        (InstanceLostError("shot at birth"), 3),
    ],
)
async def test_which_errors_are_tried_again(
    open_steered_node: Any,
    runtime: Any,
    error: SpearError,
    attempts: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    runtime.open_error = error
    async with open_steered_node(NO_CIRCUIT) as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(CALL)).task
        assert task.state is TaskState.FAILED
        assert (task.attempt, task.result.error.message) == (attempts, error.message)
        assert len(task.failed_executions) == attempts - 1


async def test_a_guests_own_failure_is_an_answer(open_steered_node: Any, runtime: Any) -> None:
    async def fail(request: ExecutionRequest) -> ExecutionResponse:
        return ExecutionResponse.failed(ErrorInfo(code="unavailable", message="no", kind="E"))

    runtime.behaviour = fail
    async with open_steered_node() as node:
        await node.api.deploy(attrs.evolve(UPLOAD, idempotent=True))
        assert (await node.api.invoke(CALL)).task.attempt == 1


async def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = failing(*[InstanceLostError("shot")] * 9)
    async with open_steered_node() as node:
        await node.api.deploy(attrs.evolve(UPLOAD, idempotent=True))
        began = trio.current_time()
        task = (await node.api.invoke(attrs.evolve(CALL, timeout_s=2))).task
        assert (task.state, task.attempt) == (TaskState.FAILED, 2)
        assert trio.current_time() - began == pytest.approx(1)


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
async def test_a_task_that_waits_for_another_attempt_can_be_stopped(
    open_steered_node: Any, runtime: Any, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = failing(*[InstanceLostError("shot")] * 9)
    slow = attrs.evolve(UPLOAD, idempotent=True, retry=RetryPolicy(initial_backoff_s=50, jitter=0))
    async with open_steered_node() as node:
        await node.api.deploy(attrs.evolve(slow, retry=attrs.evolve(slow.retry, max_backoff_s=50)))
        task = (await node.api.invoke(attrs.evolve(CALL, mode=ExecutionMode.ASYNC))).task
        await trio.sleep(5)
        assert (await node.api.get_task(task.task_id)).state is TaskState.RETRYING
        if how == "cancel":
            await node.api.cancel_task(task.task_id)
        else:
            await node.drain()
        assert trio.current_time() < 20
        assert (await node.api.get_task(task.task_id)).state is TaskState.CANCELLED


@given(
    attempt=st.integers(2, 5000),
    policy=st.builds(
        RetryPolicy,
        initial_backoff_s=st.floats(0, 10),
        max_backoff_s=st.floats(0, 100),
        multiplier=st.floats(1, 10),
        jitter=st.floats(0, 1),
    ),
    chance=st.floats(0, 1),
)
def test_backoff_grows_to_its_limit_and_no_further(
    attempt: int, policy: RetryPolicy, chance: float
) -> None:
    wait = backoff_s(policy, attempt, chance=chance)
    longest = backoff_s(policy, attempt, chance=0)
    assert 0 <= wait <= longest <= policy.max_backoff_s
    assert wait >= longest * (1 - policy.jitter) * 0.999999
    assert longest <= backoff_s(policy, attempt + 1, chance=0)


# Circuits -----------------------------------------------------------------------------------------

CIRCUIT = SpearletConfig(execution=ExecutionConfig(circuit_failures=3, circuit_open_ms=10_000))


async def break_circuit(node: Any, runtime: Any) -> None:
    runtime.behaviour = failing(*[InstanceLostError("shot")] * 99)
    await node.api.deploy(UPLOAD)
    for _ in range(3):
        assert not (await node.api.invoke(CALL)).success


async def test_a_crash_loop_opens_the_circuit_of_that_artifact_alone(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(CIRCUIT) as node:
        await break_circuit(node, runtime)
        with pytest.raises(CircuitOpenError, match=r"3 times in a row.*shot") as refused:
            await node.api.invoke(CALL)
        assert refused.value.retryable
        assert refused.value.retry_after == pytest.approx(10)
        runtime.behaviour = failing()
        await node.api.deploy(attrs.evolve(UPLOAD, name="other"))
        assert (await node.api.invoke(attrs.evolve(CALL, function="other"))).success
        with pytest.raises(CircuitOpenError):
            await node.api.invoke(CALL)
        assert (await node.api.metrics()).rejected == 2


@pytest.mark.parametrize("well", [True, False])
async def test_after_a_while_one_execution_is_let_through(
    open_steered_node: Any, runtime: Any, well: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def probe(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(1)
        if not well:
            raise InstanceLostError("again")
        return ExecutionResponse.completed(b"well")

    async with open_steered_node(CIRCUIT) as node:
        await break_circuit(node, runtime)
        runtime.behaviour = probe
        await trio.sleep(10.1)
        one = (await node.api.invoke(attrs.evolve(CALL, mode=ExecutionMode.ASYNC))).task
        await trio.sleep(0.5)
        with pytest.raises(CircuitOpenError):  # one is finding out just now
            await node.api.invoke(CALL)
        ended = await node.api.get_task(one.task_id, wait=True)
        assert (ended.state is TaskState.COMPLETED) is well
        if well:
            assert (await node.api.invoke(CALL)).success
        else:
            with pytest.raises(CircuitOpenError, match="again"):
                await node.api.invoke(CALL)


async def test_a_cancelled_probe_leaves_the_place_to_the_next(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep_forever()
        raise AssertionError

    async with open_steered_node(CIRCUIT) as node:
        await break_circuit(node, runtime)
        runtime.behaviour = hang
        await trio.sleep(10.1)
        one = (await node.api.invoke(attrs.evolve(CALL, mode=ExecutionMode.ASYNC))).task
        await trio.sleep(0.5)
        await node.api.cancel_task(one.task_id)
        runtime.behaviour = failing()
        assert (await node.api.invoke(CALL)).success


async def test_an_answer_in_between_means_that_it_is_no_loop(
    open_steered_node: Any, runtime: Any
) -> None:
    async with open_steered_node(CIRCUIT) as node:
        await node.api.deploy(UPLOAD)
        for _ in range(4):
            runtime.behaviour = failing(InstanceLostError("1"), InstanceLostError("2"))
            for _ in range(3):
                await node.api.invoke(CALL)


# Runtimes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
async def test_a_runtime_that_broke_is_opened_again_without_a_restart(
    open_steered_node: Any, runtime: Any, reuse: bool
) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(attrs.evolve(UPLOAD, reuse=reuse))
        assert (await node.api.invoke(CALL)).success
        runtime.breaks.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await node.api.invoke(CALL)).success
        assert runtime.opens == 2
        assert runtime.prepared == ["f@1"] * 3  # deployed, and once for each life
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.live == (1 if reuse else 0)


async def test_an_unhealthy_runtime_fails_its_tasks_at_once_until_it_is_well(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(NO_CIRCUIT) as node:
        await node.api.deploy(UPLOAD)
        runtime.behaviour = failing(InstanceLostError("shot"))
        runtime.health_answer = Fingerprint(health=Health.UNHEALTHY, message="no fork")
        await node.api.invoke(CALL)
        await trio.sleep(0.1)
        with pytest.raises(RuntimeUnavailableError, match="no fork") as refused:
            await node.api.invoke(CALL)
        assert (refused.value.code, refused.value.retryable) == ("unavailable", True)
        runtime.health_answer = Fingerprint(health=Health.HEALTHY)
        await trio.sleep(1.5)
        assert (await node.api.invoke(CALL)).success


# Reservations -------------------------------------------------------------------------------------


async def test_a_reservation_beyond_the_node_is_refused_when_it_is_deployed(
    open_steered_node: Any,
) -> None:
    config = SpearletConfig(execution=ExecutionConfig(cpu=2, memory_bytes=1000))
    async with open_steered_node(config) as node:
        for resources, what in (
            (Resources(cpu=2.5), "2.5 cores, and this node has 2 "),
            (Resources(memory_bytes=1001), "1001 bytes of memory, and this node has 1000 "),
        ):
            with pytest.raises(ResourceExhaustedError, match=what) as refused:
                await node.api.deploy(attrs.evolve(UPLOAD, resources=resources))
            assert not refused.value.retryable
        await node.api.deploy(attrs.evolve(UPLOAD, resources=Resources(cpu=2, memory_bytes=1000)))
        assert (await node.api.invoke(CALL)).success


async def test_reservations_run_side_by_side_only_as_far_as_they_fit(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    now = most = 0

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.sleep(1)
        now -= 1
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    config = SpearletConfig(execution=ExecutionConfig(cpu=2))
    async with open_steered_node(config) as node, trio.open_nursery() as nursery:
        await node.api.deploy(attrs.evolve(UPLOAD, resources=Resources(cpu=0.6)))
        began = trio.current_time()
        for _ in range(9):
            nursery.start_soon(node.api.invoke, CALL)
        await trio.sleep(2.5)
        assert most == 3
        nursery.cancel_scope.deadline = began + 3.1
    assert now == 0
