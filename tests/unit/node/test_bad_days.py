"""Clocks that step, a queue that stays full, a thousand who change their mind: nothing is lost."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    NodeApi,
    PoolConfig,
    Priority,
    SpearletConfig,
    TaskConfig,
    TaskState,
)
from spear_core.errors import ResourceExhaustedError

AT_ONCE = 4


class SteppingClock:
    """What ``time.time`` says on a machine whose clock is set whenever somebody looks."""

    def __init__(self) -> None:
        self.chance = random.Random(1)

    def __call__(self) -> float:
        return self.chance.choice([0.0, 1e9, 4e9])


async def rest(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep(1)
    return ExecutionResponse.completed(b"")


@pytest.fixture
def open_node(open_steered_node: Any) -> Callable[..., Any]:
    """Opens a node with ``f`` deployed and used once, so that no thread is at work any more while
    the clock jumps."""

    @asynccontextmanager
    async def open_it(**execution: int) -> AsyncIterator[NodeApi]:
        settings = SpearletConfig(
            execution=ExecutionConfig(**execution),
            pool=PoolConfig(max_instances=20),
            tasks=TaskConfig(keep_finished=2_000),
        )
        async with open_steered_node(settings) as node:
            await node.api.deploy(ArtifactUpload(name="f", content=b"x", filename="f.st"))
            await node.api.invoke(InvokeRequest(function="f"))
            yield node.api

    return open_it


@pytest.fixture(params=["a clock that goes", "a clock that steps"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test that has it runs with both."""
    if request.param == "a clock that steps":
        monkeypatch.setattr(time, "time", SteppingClock())


async def accept(api: NodeApi, **request: Any) -> str:
    asked = InvokeRequest(function="f", mode=ExecutionMode.ASYNC, **request)
    return (await api.invoke(asked)).task.task_id


async def test_the_clock_does_not_matter_to_deadlines_and_order(
    open_node: Any, runtime: Any, autojump_clock: Any, clock: None
) -> None:
    runtime.behaviour = rest
    async with open_node(max_concurrent_tasks=1) as api:
        started = trio.current_time()
        served = [await accept(api, timeout_s=20.5) for _ in range(20)]
        late = await accept(api, timeout_s=5.5)
        assert (await api.get_task(late, wait=True)).state is TaskState.TIMEOUT
        assert trio.current_time() - started == pytest.approx(5.5)
        for number, task_id in enumerate(served[5:], 6):
            assert (await api.get_task(task_id, wait=True)).state is TaskState.COMPLETED
            assert trio.current_time() - started == pytest.approx(number)


async def test_the_clock_does_not_matter_to_ageing(
    open_node: Any, runtime: Any, autojump_clock: Any, clock: None
) -> None:
    runtime.behaviour = rest
    async with open_node(max_concurrent_tasks=1, ageing_ms=4_000) as api:
        started = trio.current_time()
        for _ in range(30):
            await accept(api, priority=Priority.URGENT)
        low = await accept(api, priority=Priority.LOW)
        await api.get_task(low, wait=True)
        # It has to age three times to be as good as those, and they are served meanwhile.
        assert 10 <= trio.current_time() - started <= 16


async def test_a_queue_that_is_full_for_a_minute(
    open_node: Any, runtime: Any, autojump_clock: Any
) -> None:
    """A minute of the node's clock, with three times as many callers as it can serve."""
    runtime.behaviour = rest
    admitted: list[str] = []
    hints: list[float | None] = []
    async with open_node(max_concurrent_tasks=AT_ONCE, max_queued_tasks=20) as api:
        for _second in range(60):
            for _ in range(3 * AT_ONCE):
                try:
                    admitted.append(await accept(api, timeout_s=30))
                except ResourceExhaustedError as error:
                    hints.append(error.retry_after)
            status = await api.status()
            assert (status.running, status.queued <= 20) == (AT_ONCE, True)
            await trio.sleep(1)
        assert len(hints) > 400
        assert all(hint is not None and 0 < hint < 30 for hint in hints)
        assert len(admitted) >= 60 * AT_ONCE, "no slot was ever idle"
        states = {(await api.get_task(task_id, wait=True)).state for task_id in admitted}
        assert states == {TaskState.COMPLETED}
        status = await api.status()
        assert (status.running, status.queued) == (0, 0)


async def test_a_thousand_cancels_at_random_moments(
    open_node: Any, runtime: Any, autojump_clock: Any
) -> None:
    chance = random.Random(7)
    inside = 0

    async def hold(request: ExecutionRequest) -> ExecutionResponse:
        nonlocal inside
        inside += 1
        try:
            await trio.sleep(chance.uniform(0, 2))
            return ExecutionResponse.completed(b"")
        finally:
            inside -= 1

    async def cancel(api: NodeApi, task_id: str) -> None:
        await trio.sleep(chance.uniform(0, 60))
        await api.cancel_task(task_id)

    async with open_node(max_concurrent_tasks=20) as api:
        runtime.behaviour = hold
        runtime.start_delay = 0.1  # some are cancelled while they wait for their instance
        tasks = [await accept(api) for _ in range(1_000)]
        async with trio.open_nursery() as nursery:
            for task_id in tasks:
                nursery.start_soon(cancel, api, task_id)
        states = [(await api.get_task(task_id, wait=True)).state for task_id in tasks]
        assert set(states) == {TaskState.COMPLETED, TaskState.CANCELLED}
        assert min(states.count(state) for state in set(states)) > 100
        assert inside == 0
        status = await api.status()
        assert (status.running, status.queued) == (0, 0)
        assert (await api.invoke(InvokeRequest(function="f"))).success
    assert runtime.live == 0
