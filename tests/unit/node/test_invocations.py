"""From a request to its answer: which one task is whose, and how long it may take.

What concerns streams is in ``test_streams.py``.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import (
    ArtifactUpload,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import (
    IdempotencyConflictError,
    ResourceExhaustedError,
    UnsupportedModeError,
)

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")
CALL = InvokeRequest(function="f", payload=b"x")
KEYED = attrs.evolve(CALL, idempotency_key="k", caller="me")
ONE_AT_A_TIME = SpearletConfig(
    execution=ExecutionConfig(max_concurrent_tasks=1, max_queued_tasks=1, shutdown_grace_ms=0)
)
MODES = pytest.mark.parametrize("mode", [ExecutionMode.SYNC, ExecutionMode.ASYNC])


async def hang(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep_forever()
    raise AssertionError


async def test_a_stream_cannot_be_invoked(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        with pytest.raises(UnsupportedModeError, match=r"call StreamFunction"):
            await node.api.invoke(attrs.evolve(CALL, mode=ExecutionMode.STREAM))
        assert await node.api.list_tasks() == []


@MODES
async def test_a_key_makes_one_task_of_all_requests(
    open_steered_node: Any, runtime: Any, mode: ExecutionMode
) -> None:
    begun = 0
    go = trio.Event()

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        nonlocal begun
        begun += 1
        await go.wait()
        return ExecutionResponse.completed(b"done")

    runtime.behaviour = work
    request = attrs.evolve(KEYED, mode=mode)
    found = set()

    async def ask() -> None:
        found.add((await node.api.invoke(request)).task.task_id)

    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            go.set()
        (task_id,) = found
        await node.api.get_task(task_id, wait=True)
        await ask()
        assert (found, begun) == ({task_id}, 1)


async def test_a_keyed_task_outlives_its_caller(open_steered_node: Any, runtime: Any) -> None:
    """Whoever lost the connection finds it again; a call without a key goes with its caller."""
    runtime.behaviour = hang
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.api.invoke, KEYED)
            nursery.start_soon(node.api.invoke, CALL)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        tasks = {task.caller: task for task in await node.api.list_tasks()}
        assert tasks["me"].state is TaskState.RUNNING
        assert tasks[""].state is TaskState.CANCELLED
        await node.api.cancel_task(tasks["me"].task_id)  # or the node waits for it at its end


async def test_a_key_is_for_one_request_of_one_caller(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        first = await node.api.invoke(KEYED)
        with pytest.raises(IdempotencyConflictError, match=first.task.task_id):
            await node.api.invoke(attrs.evolve(KEYED, payload=b"y"))
        other = await node.api.invoke(attrs.evolve(KEYED, payload=b"y", caller="you"))
        assert other.task.task_id != first.task.task_id


@MODES
async def test_a_refused_request_leaves_no_task_and_no_key(
    open_steered_node: Any, runtime: Any, mode: ExecutionMode
) -> None:
    runtime.behaviour = hang
    async with open_steered_node(ONE_AT_A_TIME) as node:
        await node.api.deploy(UPLOAD)
        background = attrs.evolve(CALL, mode=ExecutionMode.ASYNC)
        running = (await node.api.invoke(background)).task.task_id
        await trio.testing.wait_all_tasks_blocked()
        await node.api.invoke(background)
        request = attrs.evolve(KEYED, mode=mode)
        with pytest.raises(ResourceExhaustedError):
            await node.api.invoke(request)
        assert len(await node.api.list_tasks()) == 2
        await node.api.cancel_task(running)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.api.invoke, attrs.evolve(request, payload=b"other"))
            await trio.testing.wait_all_tasks_blocked()
            assert len(await node.api.list_tasks()) == 3, "the key was still free"
            nursery.cancel_scope.cancel()


async def test_a_child_ends_no_later_than_its_parent(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = hang
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        parent = await node.api.invoke(
            attrs.evolve(CALL, mode=ExecutionMode.ASYNC, timeout_s=10, payload=b"parent")
        )
        child = attrs.evolve(
            CALL, mode=ExecutionMode.ASYNC, timeout_s=1_000, parent_task_id=parent.task.task_id
        )
        bound = await node.api.invoke(child)
        free = await node.api.invoke(attrs.evolve(child, detached=True))
        assert bound.estimated_completion_ms <= 10_000 < free.estimated_completion_ms
        await trio.sleep(20)
        states = [
            (await node.api.get_task(answer.task.task_id)).state for answer in (parent, bound, free)
        ]
        assert states[0] is TaskState.TIMEOUT
        assert states[1].is_final
        assert states[2] is TaskState.RUNNING
