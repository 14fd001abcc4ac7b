"""Executions that may end without waiting: run in no scope until they wait."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import (
    ArtifactUpload,
    Capability,
    ExecutionConfig,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    RetryPolicy,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import InstanceLostError
from spear_core.node._executor import _MOST_IN_A_ROW

PROMPT = frozenset({Capability.PROMPT})
UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code", reuse=False)
CALL = InvokeRequest(function="f", payload=b"in")


@pytest.fixture
def runtime(runtime: Any) -> Any:
    runtime.start_delay = None
    return runtime


async def waiting(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep_forever()
    raise AssertionError


async def test_one_that_does_not_wait_is_in_no_scope(open_steered_node: Any, runtime: Any) -> None:
    deadlines = []

    async def behave(request: ExecutionRequest) -> ExecutionResponse:
        deadlines.append(trio.current_effective_deadline() - trio.current_time())
        return ExecutionResponse.completed(request.payload)

    runtime.behaviour = behave
    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        for _ in range(3):
            response = await node.api.invoke(CALL)
            assert response.task.result.output == b"in"
    assert deadlines[0] < 1e6  # made ready on the way, which waits
    assert deadlines[1:] == [float("inf")] * 2
    assert runtime.live == 0


async def test_its_deadline_ends_one_that_waits(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(CALL)
        runtime.behaviour = waiting
        start = trio.current_time()
        response = await node.api.invoke(attrs.evolve(CALL, timeout_s=7))
        assert response.task.state is TaskState.TIMEOUT
        assert trio.current_time() - start == pytest.approx(7)
    assert runtime.live == 0


@pytest.mark.parametrize("by", ["request", "caller"])
async def test_cancelling_ends_one_that_waits(
    open_steered_node: Any, runtime: Any, by: str
) -> None:
    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(CALL)
        runtime.behaviour = waiting
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.api.invoke, CALL)
            await trio.testing.wait_all_tasks_blocked()
            (task, _) = await node.api.list_tasks()
            assert task.state is TaskState.RUNNING
            if by == "request":
                await node.api.cancel_task(task.task_id, reason="enough")
            else:
                nursery.cancel_scope.cancel()
        ended = await node.api.get_task(task.task_id)
        assert ended.state is TaskState.CANCELLED
        reason = "enough" if by == "request" else "its caller went away"
        assert reason in ended.result.error.message
    assert runtime.live == 0


async def test_a_caller_that_is_cancelled_already_starts_nothing(
    open_steered_node: Any, runtime: Any
) -> None:
    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(CALL)
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.api.invoke(CALL)
        assert scope.cancelled_caught
        assert len(runtime.opened) == 1
        assert (await node.api.list_tasks())[0].state is TaskState.CANCELLED


async def test_another_attempt_follows_one_that_broke_at_once(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    left: list[Exception] = []

    async def behave(request: ExecutionRequest) -> ExecutionResponse:
        if left:
            raise left.pop()
        return ExecutionResponse.completed(b"attempt %d" % request.attempt)

    async with open_steered_node(capabilities=PROMPT) as node:
        retry = RetryPolicy(initial_backoff_s=3, jitter=0)
        await node.api.deploy(attrs.evolve(UPLOAD, idempotent=True, retry=retry))
        await node.api.invoke(CALL)
        left.append(InstanceLostError("it was shot"))
        runtime.behaviour = behave
        start = trio.current_time()
        response = await node.api.invoke(CALL)
        assert response.task.result.output == b"attempt 2"
        assert trio.current_time() - start == pytest.approx(3)


async def test_one_that_waits_for_a_slot_runs_in_its_turn(
    open_steered_node: Any, runtime: Any
) -> None:
    order, go_on = [], trio.Event()

    async def behave(request: ExecutionRequest) -> ExecutionResponse:
        if request.payload == b"first":
            await go_on.wait()
        order.append(request.payload)
        return ExecutionResponse.completed(b"")

    config = SpearletConfig(execution=ExecutionConfig(max_concurrent_tasks=1))
    async with open_steered_node(config, capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(CALL)
        runtime.behaviour = behave
        async with trio.open_nursery() as nursery:
            for payload in (b"first", b"second", b"third"):
                nursery.start_soon(node.api.invoke, attrs.evolve(CALL, payload=payload))
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()
    assert order == [b"first", b"second", b"third"]


class ScopedStore:
    """Keeps large outputs, in a scope of its own."""

    most_inline = 10

    def __init__(self) -> None:
        self.kept = 0

    async def keep_output(self, task: Any, response: ExecutionResponse) -> None:
        with trio.fail_after(60):
            await trio.lowlevel.checkpoint()
        self.kept += len(response.payload)


async def test_a_large_output_may_be_kept_by_a_store_with_scopes_of_its_own(
    open_steered_node: Any,
) -> None:
    store = ScopedStore()
    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(CALL)
        node.api._executor._executions._objects = store
        response = await node.api.invoke(attrs.evolve(CALL, payload=bytes(100)))
        assert response.task.state is TaskState.COMPLETED, response.message
        node.api._executor._executions._objects = None
    assert store.kept == 100


async def test_a_task_that_calls_again_and_again_lets_others_run(
    open_steered_node: Any, runtime: Any
) -> None:
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await trio.lowlevel.checkpoint()

    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)

        async def call(calls: int) -> None:
            for _ in range(calls):
                await node.api.invoke(CALL)
            assert passes >= calls // _MOST_IN_A_ROW - 2  # trio shuffles its passes

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            async with trio.open_nursery() as callers:
                callers.start_soon(call, 80)
                callers.start_soon(call, 120)
            nursery.cancel_scope.cancel()


async def test_one_that_is_cancelled_while_others_have_their_turn_does_not_run(
    open_steered_node: Any, runtime: Any
) -> None:
    async def behave(request: ExecutionRequest) -> ExecutionResponse:
        await trio.lowlevel.checkpoint_if_cancelled()
        return ExecutionResponse.completed(request.payload)

    runtime.behaviour = behave
    cancelled = False

    async def call() -> None:
        while not cancelled:
            await node.api.invoke(CALL)  # now and then one lets others run before it begins

    async with open_steered_node(capabilities=PROMPT) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(CALL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            while not cancelled:
                (newest, *_) = await node.api.list_tasks()
                if newest.state is TaskState.PENDING:
                    cancelled = True
                    ended = await node.api.cancel_task(newest.task_id)
                    assert ended.state is TaskState.CANCELLED
                await trio.lowlevel.checkpoint()
