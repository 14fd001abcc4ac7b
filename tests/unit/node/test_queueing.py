"""Tasks that wait: records, their deadlines and cancellations, order, keys, parents."""

from __future__ import annotations

import random
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
    PoolConfig,
    PoolSettings,
    Priority,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    ResourceExhaustedError,
    UnsupportedModeError,
)

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code", reuse=False)
CALL = InvokeRequest(function="f", payload=b"1")
ASYNC = attrs.evolve(CALL, mode=ExecutionMode.ASYNC)


def config(**execution: Any) -> SpearletConfig:
    return SpearletConfig(execution=ExecutionConfig(**{"max_concurrent_tasks": 1, **execution}))


@pytest.fixture
def order(runtime: Any) -> list[bytes]:
    """What ran, in order; an execution takes as many seconds as its content type says."""
    ran: list[bytes] = []

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        ran.append(request.payload)
        await trio.sleep(float(request.content_type))
        return ExecutionResponse.completed(request.payload)

    runtime.behaviour = work
    return ran


def job(name: str, *, seconds: float = 1, function: str = "f", **more: Any) -> InvokeRequest:
    payload = name.encode()
    content_type = str(seconds)
    more = {"mode": ExecutionMode.ASYNC, **more}
    return InvokeRequest(function=function, payload=payload, content_type=content_type, **more)


async def settle(node: Any) -> None:
    for info in await node.api.list_tasks(limit=10_000):
        await node.api.get_task(info.task_id, wait=True)


async def test_a_task_that_waits_is_a_record_and_no_trio_task(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config()) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(job("first", seconds=10))
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(900):
            await node.api.invoke(job(f"{number}", seconds=0))
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= before + 1
        assert (await node.api.status()).queued == 900
        await settle(node)
        assert order == [b"first", *(b"%d" % number for number in range(900))]


async def test_waiting_tasks_end_at_their_deadlines(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config()) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(job("first", seconds=100))
        began = trio.current_time()
        times = [30, 5, 90, 1, 60]
        tasks = [
            (await node.api.invoke(job("late", timeout_s=seconds))).task.task_id
            for seconds in times
        ]
        ended = {}

        async def watch(seconds: int, task_id: str) -> None:
            info = await node.api.get_task(task_id, wait=True)
            ended[seconds] = trio.current_time() - began
            assert info.state is TaskState.TIMEOUT
            assert "waiting for its turn" in info.result.error.message

        async with trio.open_nursery() as nursery:
            for seconds, task_id in zip(times, tasks, strict=True):
                nursery.start_soon(watch, seconds, task_id)
        assert ended == {seconds: pytest.approx(seconds, abs=0.01) for seconds in times}
        assert order == [b"first"]
        assert (await node.api.status()).queued == 0


async def test_a_thousand_cancellations_at_random_leave_nothing(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(7)

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(chance.random())
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    runtime.start_delay = 0.1
    limits = config(max_concurrent_tasks=7, max_concurrent_per_caller=5)
    async with open_steered_node(limits) as node, trio.open_nursery() as nursery:
        await node.api.deploy(UPLOAD)
        await node.api.deploy(attrs.evolve(UPLOAD, name="g", reuse=True, max_concurrent=3))

        async def one(number: int) -> None:
            request = InvokeRequest(
                function="fg"[number % 2],
                caller="abc"[number % 3],
                mode=list(ExecutionMode)[number % 2],
                priority=Priority(number % 4),
            )
            await trio.sleep(chance.random() * 60)
            if request.mode is ExecutionMode.SYNC:
                with trio.move_on_after(chance.random() * 5):
                    await node.api.invoke(request)
            else:
                task = (await node.api.invoke(request)).task
                await trio.sleep(chance.random() * 5)
                await node.api.cancel_task(task.task_id)

        async with trio.open_nursery() as many:
            for number in range(1000):
                many.start_soon(one, number)
        status = await node.api.status()
        assert (status.running, status.queued) == (0, 0)
        assert status.total_executions == 1000
        total = (await node.api.metrics()).total
        assert (total.running, total.queue_length) == (0, 0)
        assert runtime.live == len(await node.api.list_instances())
        nursery.cancel_scope.cancel()
    assert runtime.live == 0


async def test_higher_priorities_go_first_and_waiting_makes_up_for_it(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config(ageing_ms=10_000)) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(job("now"))
        for name, priority in [("low", 0), ("normal", 1), ("high", 2), ("urgent", 3)]:
            await node.api.invoke(job(name, priority=Priority(priority)))
        await settle(node)
        assert order == [b"now", b"urgent", b"high", b"normal", b"low"]
        order.clear()
        await node.api.invoke(job("low", priority=Priority.LOW))
        async with trio.open_nursery() as nursery:

            async def keep_busy() -> None:
                for _ in range(60):
                    await node.api.invoke(job("urgent", priority=Priority.URGENT))
                    await trio.sleep(0.9)

            await node.api.invoke(job("low", priority=Priority.LOW))
            nursery.start_soon(keep_busy)
        await settle(node)
        # From low to urgent takes three steps of ten seconds, and then it is the older one.
        assert 28 <= order.index(b"low", 1) <= 36


async def test_one_artifacts_queue_takes_nothing_from_anothers_share(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config()) as node:
        for name, weight in [("noisy", 1), ("quiet", 1), ("heavy", 3)]:
            await node.api.deploy(attrs.evolve(UPLOAD, name=name, weight=weight))
        for number in range(100):
            await node.api.invoke(job(f"n{number}", function="noisy"))
        await trio.sleep(10.5)
        for number in range(10):
            await node.api.invoke(job(f"q{number}", function="quiet"))
        await trio.sleep(30)
        served = [name for name in order if name.startswith(b"q")]
        assert len(served) == 10
        assert served == sorted(served)
        assert len(order) <= 42
        order.clear()
        for number in range(100):
            await node.api.invoke(job(f"h{number:02}", function="heavy"))
        await trio.sleep(40)
        heavy = [name for name in order if name.startswith(b"h")]
        assert len(heavy) == pytest.approx(30, abs=3)


async def test_long_executions_count_for_as_long_as_they_last(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config()) as node:
        for name in ("long", "short"):
            await node.api.deploy(attrs.evolve(UPLOAD, name=name))
        for _ in range(100):
            await node.api.invoke(job("L", function="long", seconds=10))
            await node.api.invoke(job("s", function="short", seconds=1))
        await trio.sleep(150)
        assert order.count(b"s") > 5 * order.count(b"L")


async def test_a_callers_limits(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    limits = config(max_concurrent_tasks=4, max_concurrent_per_caller=2, max_queued_per_caller=3)
    async with open_steered_node(limits) as node:
        await node.api.deploy(UPLOAD)
        for number in range(5):
            await node.api.invoke(job(f"a{number}", caller="a"))
        with pytest.raises(ResourceExhaustedError, match=r"caller 'a'.*max_queued_per_caller"):
            await node.api.invoke(job("a9", caller="a"))
        await node.api.invoke(job("b0", caller="b"))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == [b"a0", b"a1", b"b0"]
        await settle(node)
        assert sorted(order[3:5]) == [b"a2", b"a3"]
        assert order[5:] == [b"a4"]


async def test_a_callers_rate(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config(max_rate_per_caller=2.0)) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(job("1", caller="a"))
        await node.api.invoke(job("2", caller="a"))
        with pytest.raises(ResourceExhaustedError, match="max_rate_per_caller") as refused:
            await node.api.invoke(job("3", caller="a"))
        assert refused.value.retry_after == pytest.approx(0.5)
        await node.api.invoke(job("1", caller="b"))
        await trio.sleep(0.51)
        await node.api.invoke(job("3", caller="a"))


async def test_the_hint_of_a_full_queue_comes_from_its_drain_rate(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config(max_queued_tasks=100)) as node:
        await node.api.deploy(UPLOAD)
        for _ in range(91):
            await node.api.invoke(job("x", seconds=0.1))
        await trio.sleep(4.95)
        for _ in range(49):
            await node.api.invoke(job("x", seconds=0.1))
        with pytest.raises(ResourceExhaustedError, match="max_queued_per_artifact") as refused:
            await node.api.invoke(job("x"))
        # A tenth of 91 tasks, at about ten a second (less, for it remembers the time before).
        assert 0.5 < refused.value.retry_after < 3


async def test_no_more_tasks_begin_than_could_have_an_instance(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    limits = SpearletConfig(pool=PoolConfig(max_instances=2))
    async with open_steered_node(limits) as node:
        await node.api.deploy(attrs.evolve(UPLOAD, reuse=True))
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(500):
            await node.api.invoke(job(f"{number:03}", seconds=1))
        await trio.sleep(0.5)
        assert trio.lowlevel.current_statistics().tasks_living < before + 20
        assert len(order) == 2
        await settle(node)
        for number in range(0, 500, 2):  # trio decides which of two begins first
            assert sorted(order[number : number + 2]) == [b"%03d" % number, b"%03d" % (number + 1)]


# Idempotency keys ---------------------------------------------------------------------------------


async def test_one_key_is_one_task_however_often_and_in_whatever_mode(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        keyed = job("once", idempotency_key="k", caller="a")
        first = await node.api.invoke(keyed)
        waiting = await node.api.invoke(attrs.evolve(keyed, mode=ExecutionMode.SYNC))
        again = await node.api.invoke(keyed)
        assert first.task.task_id == waiting.task.task_id == again.task.task_id
        assert waiting.task.result.output == b"once"
        assert order == [b"once"]
        other = await node.api.invoke(attrs.evolve(keyed, caller="b"))
        assert other.task.task_id != first.task.task_id
        with pytest.raises(IdempotencyConflictError, match=first.task.task_id):
            await node.api.invoke(attrs.evolve(keyed, payload=b"else"))
        with pytest.raises(IdempotencyConflictError):
            await node.api.invoke(attrs.evolve(keyed, context={"a": "b"}))


async def test_a_caller_that_leaves_keeps_the_task_for_the_others(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        keyed = job("once", seconds=10, idempotency_key="k", mode=ExecutionMode.SYNC)
        with trio.move_on_after(5):
            await node.api.invoke(keyed)
        assert (await node.api.invoke(keyed)).success
        assert trio.current_time() == pytest.approx(10, abs=0.1)
        assert order == [b"once"]


async def test_a_key_is_forgotten_with_its_task(open_steered_node: Any, order: list[bytes]) -> None:
    from spear_core.api import TaskConfig

    async with open_steered_node(SpearletConfig(tasks=TaskConfig(keep_finished=2))) as node:
        await node.api.deploy(UPLOAD)
        keyed = job("once", seconds=0, idempotency_key="k", mode=ExecutionMode.SYNC)
        first = await node.api.invoke(keyed)
        for _ in range(2):
            await node.api.invoke(job("x", seconds=0, mode=ExecutionMode.SYNC))
        assert (await node.api.invoke(keyed)).task.task_id != first.task.task_id


# Parents and children -----------------------------------------------------------------------------


async def test_the_end_of_a_parent_is_the_end_of_its_children(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config(max_concurrent_tasks=10)) as node:
        await node.api.deploy(UPLOAD)
        parent = (await node.api.invoke(job("p", seconds=50))).task.task_id
        child = (await node.api.invoke(job("c", seconds=50, parent_task_id=parent))).task.task_id
        below = (await node.api.invoke(job("g", seconds=50, parent_task_id=child))).task.task_id
        apart = (
            await node.api.invoke(job("d", seconds=50, parent_task_id=parent, detached=True))
        ).task.task_id
        await trio.sleep(1)
        await node.api.cancel_task(parent)
        for task_id, above in ((child, parent), (below, child)):
            info = await node.api.get_task(task_id)
            assert info.state is TaskState.CANCELLED
            assert f"its parent {above} has ended" in info.result.error.message
            assert info.parent_task_id == above
        assert (await node.api.get_task(apart)).state is TaskState.RUNNING
        with pytest.raises(InvalidRequestError, match="has ended"):
            await node.api.invoke(job("late", parent_task_id=parent))
        with pytest.raises(InvalidRequestError, match="no such task"):
            await node.api.invoke(job("late", parent_task_id="t-none"))


async def test_a_child_has_no_more_time_and_no_less_priority_than_its_parent(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config(max_concurrent_tasks=2)) as node:
        await node.api.deploy(UPLOAD)
        high = job("p", seconds=50, timeout_s=5, priority=Priority.HIGH)
        parent = (await node.api.invoke(high)).task.task_id
        await trio.sleep(1)
        child = job("c", seconds=50, timeout_s=100, parent_task_id=parent)
        info = (await node.api.invoke(child)).task
        assert info.priority is Priority.HIGH
        ended = await node.api.get_task(info.task_id, wait=True)
        assert ended.state in (TaskState.TIMEOUT, TaskState.CANCELLED)
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_a_child_that_would_wait_for_its_own_ancestors_instance_is_refused(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node() as node:
        upload = attrs.evolve(UPLOAD, reuse=True, pool=PoolSettings(max_instances=1))
        await node.api.deploy(upload)
        parent = (await node.api.invoke(job("p", seconds=50))).task.task_id
        with pytest.raises(ResourceExhaustedError, match="would wait for itself") as refused:
            await node.api.invoke(job("c", parent_task_id=parent))
        assert not refused.value.retryable


async def test_streaming_is_not_for_invocations(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        with pytest.raises(UnsupportedModeError, match="StreamFunction"):
            await node.api.invoke(attrs.evolve(CALL, mode=ExecutionMode.STREAM))


async def test_calls_that_overlap_take_the_slot_again_once(
    open_steered_node: Any, order: list[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_steered_node(config()) as node:
        await node.api.deploy(UPLOAD)
        executor = node._executor
        info = (await node.api.invoke(job("p", seconds=100))).task
        await trio.sleep(1)
        task = executor._tasks.get(info.task_id)

        async def pause(begin: float, seconds: float) -> None:
            await trio.sleep(begin)
            async with executor.slots.paused(task):
                await trio.sleep(seconds)
            assert executor.slots.holds(task.turn)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause, 0, 2)  # it ends while another task has the slot, …
            await node.api.invoke(job("other", seconds=10))
            nursery.start_soon(pause, 3, 1)  # … and this one begins and ends meanwhile
            await trio.sleep(5)
            assert order == [b"p", b"other"]
            assert executor.slots.running == 1
        assert trio.current_time() == pytest.approx(11, abs=0.5)
        assert executor.slots.running == 1
        await node.api.cancel_task(info.task_id)
        assert (executor.slots.running, executor.slots.queued) == (0, 0)
