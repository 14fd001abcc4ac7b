"""What was accepted is accounted for by the next node, whenever the one before has ended."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
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
    InvokeResponse,
    NodeApi,
    SpearletConfig,
    TaskConfig,
    TaskInfo,
    TaskState,
)
from spear_core.errors import (
    ConfigError,
    InstanceLostError,
    NodeStoppingError,
    SpearError,
    StoreFormatError,
    StoreFullError,
    TaskNotFoundError,
)
from spear_core.node._task import Task
from spear_core.node._task_records import TASKS, Deadline

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")
TWICE = attrs.evolve(UPLOAD, name="twice", content=b"other", idempotent=True)
QUICK = SpearletConfig(execution=ExecutionConfig(shutdown_grace_ms=0))
"""Of a node that is copied while it works: its own end is of no interest."""
ONE_AT_A_TIME = SpearletConfig(
    execution=ExecutionConfig(max_concurrent_tasks=1, shutdown_grace_ms=0)
)
FULL = StoreFullError("no room left on the disk of /x")


async def hang(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep_forever()
    raise AssertionError


async def shout(request: ExecutionRequest) -> ExecutionResponse:
    return ExecutionResponse.completed(request.payload.upper())


async def in_background(api: NodeApi, function: str = "f", **request: Any) -> str:
    asked = InvokeRequest(function=function, mode=ExecutionMode.ASYNC, **request)
    return (await api.invoke(asked)).task.task_id


async def begun(api: NodeApi, upload: ArtifactUpload = UPLOAD, **request: Any) -> str:
    """Deploy, and have a task of it that its guest has begun with."""
    await api.deploy(upload)
    task_id = await in_background(api, upload.name, **request)
    await trio.testing.wait_all_tasks_blocked()
    return task_id


async def test_every_kind_of_task_is_accounted_for(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=disk) as node:
        api = node.api
        await api.deploy(UPLOAD)
        await api.deploy(TWICE)
        finished = await in_background(api, payload=b"one")
        assert (await api.get_task(finished, wait=True)).result.output == b"ONE"
        runtime.behaviour = hang
        cancelled = await in_background(api)
        await api.cancel_task(cancelled, reason="enough")
        running = await in_background(api)
        twice = await in_background(api, "twice", payload=b"two")
        await trio.testing.wait_all_tasks_blocked()
        for task_id in (running, twice):
            assert (await api.get_task(task_id)).state is TaskState.RUNNING
        before = await api.list_tasks()
        crashed = await disk.copy()

    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=crashed) as node:
        api = node.api
        assert [t.task_id for t in await api.list_tasks()] == [t.task_id for t in before]
        assert (await api.get_task(finished)).result.output == b"ONE"
        task = await api.get_task(cancelled)
        assert (task.state, "enough" in task.result.error.message) == (TaskState.CANCELLED, True)
        task = await api.get_task(running, wait=True)
        assert task.state is TaskState.FAILED
        assert (task.result.error.code, task.result.error.kind) == (
            "unavailable",
            "NodeRestartedError",
        )
        assert "idempotent" in task.result.error.message
        task = await api.get_task(twice, wait=True)
        assert (task.state, task.result.output, task.attempt) == (TaskState.COMPLETED, b"TWO", 2)
        (lost,) = task.failed_executions
        assert lost.error.kind == "NodeRestartedError"
        assert await api.get_task(lost.execution_id) == task
        status = await api.status()
        assert (status.running, status.queued) == (0, 0)


async def test_queued_tasks_run_in_their_order(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = hang
    async with open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        await begun(node.api)
        queued = [await in_background(node.api, payload=b"%d" % n) for n in range(300)]
        crashed = await disk.copy()

    ran = []

    async def note(request: ExecutionRequest) -> ExecutionResponse:
        ran.append(int(request.payload))
        assert request.attempt == 1
        return ExecutionResponse.completed(request.payload)

    runtime.behaviour = note
    async with open_steered_node(ONE_AT_A_TIME, disk=crashed) as node:
        for number, task_id in enumerate(queued):
            task = await node.api.get_task(task_id, wait=True)
            assert (task.state, task.result.output) == (TaskState.COMPLETED, b"%d" % number)
        assert ran == list(range(300))
        chunk = await node.api.read_log(queued[0])
        assert "restarted" in chunk.entries[0].message


async def test_a_task_between_two_attempts_goes_on(
    open_steered_node: Any, runtime: Any, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def lose(request: ExecutionRequest) -> ExecutionResponse:
        raise InstanceLostError("shot", unsent=True)

    runtime.behaviour = lose
    async with open_steered_node(QUICK, disk=disk) as node:
        slow = {"attempts": 2, "initial_backoff_s": 100.0, "max_backoff_s": 100.0}
        retry = attrs.evolve(UPLOAD.retry, **slow)
        await node.api.deploy(attrs.evolve(UPLOAD, retry=retry))
        task_id = await in_background(node.api, payload=b"x")
        with trio.move_on_after(1):
            await node.api.get_task(task_id, wait=True)
        assert (await node.api.get_task(task_id)).state is TaskState.RETRYING
        crashed = await disk.copy()

    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=crashed) as node:
        task = await node.api.get_task(task_id, wait=True)
        assert (task.state, task.attempt) == (TaskState.COMPLETED, 2)
        assert task.failed_executions[0].error.message == "shot"


async def test_an_idempotency_key_finds_its_task_again(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    keyed = InvokeRequest(function="f", payload=b"x", idempotency_key="k", caller="me")
    runtime.behaviour = hang
    async with open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        await begun(node.api)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.api.invoke, keyed)
            await trio.testing.wait_all_tasks_blocked()
            crashed = await disk.copy()
            nursery.cancel_scope.cancel()

    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=crashed) as node:
        answer = await node.api.invoke(keyed)
        assert (answer.success, answer.task.result.output) == (True, b"X")
        assert len(await node.api.list_tasks()) == 2
        with pytest.raises(SpearError, match="another request"):
            await node.api.invoke(attrs.evolve(keyed, payload=b"y"))
        again = await crashed.copy()
    async with open_steered_node(QUICK, disk=again) as node:
        assert (await node.api.invoke(keyed)).task == answer.task


async def test_what_a_caller_waited_for_ends_with_the_node(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = hang
    async with open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        await node.api.deploy(TWICE)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(node.api.invoke, InvokeRequest(function="twice"))
                await trio.testing.wait_all_tasks_blocked()
            crashed = await disk.copy()
            nursery.cancel_scope.cancel()

    async with open_steered_node(QUICK, disk=crashed) as node:
        queued, running = await node.api.list_tasks()
        assert queued.state is TaskState.CANCELLED
        assert "caller went away" in queued.result.error.message
        assert running.state is TaskState.FAILED
        assert running.result.error.kind == "NodeRestartedError"


async def test_sync_calls_can_be_left_out(open_steered_node: Any, runtime: Any, disk: Any) -> None:
    runtime.behaviour = shout
    config = SpearletConfig(tasks=TaskConfig(durable_sync=False))
    async with open_steered_node(config, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        before = disk.metadata.transactions
        assert (await node.api.invoke(InvokeRequest(function="f", payload=b"x"))).success
        assert disk.metadata.transactions == before
        keyed = InvokeRequest(function="f", payload=b"x", idempotency_key="k")
        task = (await node.api.invoke(keyed)).task
        crashed = await disk.copy()
    async with open_steered_node(config, disk=crashed) as node:
        assert [t.task_id for t in await node.api.list_tasks()] == [task.task_id]


@pytest.mark.parametrize("mode", [ExecutionMode.ASYNC, ExecutionMode.SYNC])
async def test_nothing_is_told_or_begun_before_the_acceptance_is_on_disk(
    open_steered_node: Any, runtime: Any, disk: Any, mode: ExecutionMode
) -> None:
    began = []

    async def note(request: ExecutionRequest) -> ExecutionResponse:
        began.append(request)
        return ExecutionResponse.completed(b"")

    runtime.behaviour = note
    answers: list[InvokeResponse] = []
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)

        async def call() -> None:
            answers.append(await node.api.invoke(InvokeRequest(function="f", mode=mode)))

        async with trio.open_nursery() as nursery:
            disk.metadata.gate = trio.Event()
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            assert not began or mode is ExecutionMode.SYNC, "a caller waits, who is told at the end"
            disk.metadata.gate.set()
        assert len(answers) == 1


async def test_a_result_is_told_when_it_is_on_disk(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    async def close_and_answer(request: ExecutionRequest) -> ExecutionResponse:
        disk.metadata.gate = trio.Event()
        return ExecutionResponse.completed(b"done")

    runtime.behaviour = close_and_answer
    heard: list[Any] = []

    async def hear(call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        heard.append(await call(*args))

    async with open_steered_node(QUICK, disk=disk) as node:
        api = node.api
        await api.deploy(UPLOAD)
        task_id = await in_background(api)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, api.get_task, task_id)
            nursery.start_soon(hear, api.list_tasks)
            nursery.start_soon(hear, api.cancel_task, task_id)
            await trio.testing.wait_all_tasks_blocked()
            assert heard == []
            crashed = await disk.copy()
            disk.metadata.gate.set()
        assert len(heard) == 3
    async with open_steered_node(QUICK, disk=crashed) as node:
        assert (await node.api.get_task(task_id)).state is TaskState.FAILED, "nobody had heard"


async def test_that_a_guest_begins_is_on_disk_before_it_does_unless_it_may_run_twice(
    open_steered_node: Any, runtime: Any, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    began = {b"once": trio.Event(), b"twice": trio.Event()}

    async def note(request: ExecutionRequest) -> ExecutionResponse:
        began[request.payload].set()
        return ExecutionResponse.completed(b"")

    runtime.start_delay = 1.0
    runtime.behaviour = note
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.deploy(TWICE)
        await in_background(node.api, payload=b"once")
        await in_background(node.api, "twice", payload=b"twice")
        disk.metadata.gate = trio.Event()  # both are accepted, and wait for an instance
        await began[b"twice"].wait()
        await trio.sleep(60)
        assert not began[b"once"].is_set()
        disk.metadata.gate.set()
        await began[b"once"].wait()


async def test_a_full_store_takes_no_task_and_keeps_no_place_for_it(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        disk.metadata.failure = FULL
        for mode in (ExecutionMode.ASYNC, ExecutionMode.SYNC, ExecutionMode.SYNC):
            for key in ("", "k"):
                request = InvokeRequest(function="f", mode=mode, idempotency_key=key)
                with pytest.raises(StoreFullError, match=r"not accepted.*no room left") as caught:
                    await node.api.invoke(request)
                assert caught.value.code == "resource_exhausted"
        await trio.testing.wait_all_tasks_blocked()
        assert await node.api.list_tasks() == []
        status = await node.api.status()
        assert (status.running, status.queued, runtime.opened) == (0, 0, [])
        assert (await node.api.get_artifact("f")).info.in_use == 0
        disk.metadata.failure = None
        answer = await node.api.invoke(InvokeRequest(function="f", payload=b"x"))
        assert answer.task.result.output == b"X"


async def test_a_quick_call_is_one_write(
    open_steered_node: Any, runtime: Any, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def count(request: ExecutionRequest) -> ExecutionResponse:
        return ExecutionResponse.completed(b"%d" % len(request.payload))

    runtime.behaviour = count
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        before = disk.metadata.transactions
        await node.api.invoke(InvokeRequest(function="f", payload=b"x" * 100_000))
        assert disk.metadata.transactions == before + 1
        assert b"inputs/" not in await kept(disk)


async def test_a_long_call_is_on_disk_while_it_runs(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = hang
    async with open_steered_node(QUICK, disk=disk) as node, trio.open_nursery() as nursery:
        await node.api.deploy(UPLOAD)
        nursery.start_soon(node.api.invoke, InvokeRequest(function="f"))
        with trio.fail_after(60):
            while b"tasks/" not in await kept(disk):  # noqa: ASYNC110
                await trio.sleep(0.01)  # nobody is told
        nursery.cancel_scope.cancel()


async def test_a_result_that_cannot_be_written_is_not_told_and_not_lost(
    open_steered_node: Any, runtime: Any, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def fill(request: ExecutionRequest) -> ExecutionResponse:
        disk.metadata.failure = FULL
        return ExecutionResponse.completed(b"dear")

    runtime.behaviour = fill
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        with pytest.raises(StoreFullError, match="spear result t-") as caught:
            await node.api.invoke(InvokeRequest(function="f"))
        assert not caught.value.retryable, "it has run"
        (task,) = await node.api.list_tasks()
        with pytest.raises(StoreFullError):
            await node.api.get_task(task.task_id, wait=True)
        await trio.sleep(5)
        disk.metadata.failure = None
        await trio.sleep(2)
        assert (await node.api.get_task(task.task_id)).result.output == b"dear"
        crashed = await disk.copy()
    async with open_steered_node(QUICK, disk=crashed) as node:
        assert (await node.api.get_task(task.task_id)).result.output == b"dear"


async def test_what_cannot_begin_for_want_of_room_waits_for_it(
    open_steered_node: Any, runtime: Any, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = shout
    runtime.start_delay = 1.0
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        patient = await in_background(node.api, payload=b"x", timeout_s=100)
        hasty = await in_background(node.api, payload=b"x", timeout_s=10)
        disk.metadata.failure = FULL
        await trio.sleep(50)
        assert (await node.api.get_task(patient)).state is TaskState.PENDING
        disk.metadata.failure = None
        assert (await node.api.get_task(patient, wait=True)).result.output == b"X"
        assert (await node.api.get_task(hasty, wait=True)).state is TaskState.TIMEOUT


@pytest.mark.parametrize("size", [1, 64 << 10, (64 << 10) + 1, 1 << 20])
async def test_inputs_and_outputs_of_any_size_are_there_again_and_leave_nothing_behind(
    open_steered_node: Any, runtime: Any, disk: Any, size: int
) -> None:
    runtime.behaviour = hang
    config = attrs.evolve(ONE_AT_A_TIME, tasks=TaskConfig(keep_finished=2))
    async with open_steered_node(config, disk=disk) as node:
        await begun(node.api)
        task_id = await in_background(node.api, payload=b"a" * size)
        crashed = await disk.copy()

    runtime.behaviour = shout
    async with open_steered_node(config, disk=crashed) as node:
        task = await node.api.get_task(task_id, wait=True)
        assert task.result.output == b"A" * size
        again = await crashed.copy()
    async with open_steered_node(config, disk=again) as node:
        assert (await node.api.get_task(task_id)).result.output == b"A" * size
        for _ in range(2):
            await node.api.invoke(InvokeRequest(function="f"))
        with pytest.raises(TaskNotFoundError):
            await node.api.get_task(task_id)
    assert task_id.encode() not in await kept(again)
    assert [o for o in (await again.objects.list()).objects if o.key.startswith(".tasks/")] == []


async def kept(disk: Any) -> bytes:
    """All keys of the metadata store, joined."""
    return b" ".join(item.key for item in (await disk.metadata.range(limit=100_000)).items)


async def test_objects_of_no_task_are_swept(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    await disk.objects.put(".tasks/t-1/input", b"left over")
    await disk.objects.put("mine", b"kept")
    async with open_steered_node(QUICK, disk=disk):
        await trio.testing.wait_all_tasks_blocked()
    assert [o.key for o in (await disk.objects.list()).objects] == ["mine"]


async def test_a_lost_input_or_output_is_named(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = shout
    async with open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        done = await in_background(node.api, payload=b"x")
        await node.api.get_task(done, wait=True)
        runtime.behaviour = hang
        await in_background(node.api)
        await trio.testing.wait_all_tasks_blocked()
        waiting = await in_background(node.api, payload=b"y")
        crashed = await disk.copy()
    await crashed.metadata.delete(b"outputs/" + done.encode())
    await crashed.metadata.delete(b"inputs/" + waiting.encode())
    async with open_steered_node(QUICK, disk=crashed) as node:
        for task_id, what in ((done, "output is lost"), (waiting, "input is lost")):
            task = await node.api.get_task(task_id, wait=True)
            assert (task.state, task.result.error.code) == (TaskState.FAILED, "data_loss")
            assert what in task.result.error.message


async def test_children_end_with_a_parent_that_was_lost(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = hang
    async with open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        parent = await begun(node.api)
        child = await in_background(node.api, parent_task_id=parent)
        free = await in_background(node.api, parent_task_id=parent, detached=True)
        crashed = await disk.copy()
    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=crashed) as node:
        states = [
            (await node.api.get_task(each, wait=True)).state for each in (parent, child, free)
        ]
        assert states == [TaskState.FAILED, TaskState.CANCELLED, TaskState.COMPLETED]


async def test_a_deadline_goes_on_while_the_node_is_away(
    open_steered_node: Any, runtime: Any, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.behaviour = hang
    async with open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        await begun(node.api)
        soon = await in_background(node.api, timeout_s=60)
        late = await in_background(node.api, timeout_s=6000)
        crashed = await disk.copy()
    real = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + 600)
    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=crashed) as node:
        assert (await node.api.get_task(soon, wait=True)).state is TaskState.TIMEOUT
        assert (await node.api.get_task(late, wait=True)).state is TaskState.COMPLETED


def test_a_deadline_outlives_boots_and_steps_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: dict[str, Any] = {"wall": 1e9, "up": 500.0, "boot": "a"}
    monkeypatch.setattr(time, "time", lambda: clocks["wall"])
    monkeypatch.setattr(time, "clock_gettime", lambda clock: clocks["up"])
    monkeypatch.setattr("spear_core.node._task_records._boot", lambda: clocks["boot"])
    deadline = msgspec.msgpack.decode(msgspec.msgpack.encode(Deadline.after(100)), type=Deadline)
    clocks.update(wall=1e9 + 86_400, up=510.0)  # somebody set the clock
    assert deadline.remaining() == 90
    clocks.update(wall=1e9 + 30, up=5.0, boot="b")  # the machine was booted
    assert deadline.remaining() == 70
    clocks.update(wall=1e9 - 86_400)  # … and its clock is wrong
    assert deadline.remaining() == 100
    clocks.update(wall=1e9 + 30, boot="")  # it cannot say
    assert deadline.remaining() == 70


async def test_what_is_kept_is_bounded_by_count_and_age_on_disk_too(
    open_steered_node: Any, runtime: Any, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.behaviour = shout
    config = SpearletConfig(tasks=TaskConfig(keep_finished=3, keep_finished_ms=3_600_000))

    async def records() -> int:
        return len((await disk.metadata.range(TASKS)).items)

    async with open_steered_node(config, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        for _ in range(10):
            await node.api.invoke(InvokeRequest(function="f", payload=b"x"))
    assert await records() == 3
    two = attrs.evolve(config, tasks=attrs.evolve(config.tasks, keep_finished=2))
    async with open_steered_node(two, disk=disk) as node:
        assert len(await node.api.list_tasks()) == 2
    assert await records() == 2

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    async with open_steered_node(two, disk=disk) as node:
        assert await node.api.list_tasks() == []
    assert await records() == 0


@pytest.mark.parametrize("size", [10, 100_000])
async def test_what_is_not_kept_any_more_is_gone_from_memory(
    open_steered_node: Any, runtime: Any, disk: Any, size: int
) -> None:
    """At once: in a node that works, the garbage collector seldom comes by."""
    runtime.behaviour = shout
    config = SpearletConfig(tasks=TaskConfig(keep_finished=3))

    def alive() -> set[str]:
        return {found.id for found in gc.get_objects() if type(found) is Task}

    gc.collect()
    before = alive()
    gc.disable()
    try:
        async with open_steered_node(config, disk=disk) as node:
            await node.api.deploy(UPLOAD)
            for _ in range(10):
                task_id = await in_background(node.api, payload=b"x" * size)
                await node.api.get_task(task_id, wait=True)
            with trio.fail_after(60):
                while len(alive() - before) > 3:  # noqa: ASYNC110 - until all is written
                    await trio.sleep(0.01)
            assert len(await node.api.list_tasks()) == 3
    finally:
        gc.enable()


async def test_setting_the_clock_ages_nothing_that_a_running_node_keeps(
    open_steered_node: Any, disk: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SpearletConfig(tasks=TaskConfig(keep_finished_ms=3_600_000))
    wall, up = time.time, time.clock_gettime
    async with open_steered_node(config, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(InvokeRequest(function="f"))
    monkeypatch.setattr(time, "time", lambda: wall() - 7200)  # as if the record were of tomorrow
    async with open_steered_node(config, disk=disk) as node:
        await node.api.invoke(InvokeRequest(function="f"))
        monkeypatch.setattr(time, "time", lambda: wall() + 86_400)
        await node.api.invoke(InvokeRequest(function="f"))
        await trio.sleep(100)
        assert len(await node.api.list_tasks()) == 3
        monkeypatch.setattr(time, "time", lambda: wall() - 86_400)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: up(clock) + 3500)
        await trio.sleep(100)
        assert len(await node.api.list_tasks()) == 3
        monkeypatch.setattr(time, "clock_gettime", lambda clock: up(clock) + 3700)
        await trio.sleep(100)
        assert await node.api.list_tasks() == []


async def test_logs_go_on_where_they_were(
    open_steered_node: Any, runtime: Any, disk: Any, tmp_path: Path
) -> None:
    async def talk(request: ExecutionRequest) -> ExecutionResponse:
        runtime.context.hostcalls.log(request.execution_id, f"in {request.attempt}")
        if request.attempt == 1:
            await trio.sleep_forever()
        return ExecutionResponse.completed(b"")

    runtime.behaviour = talk
    async with open_steered_node(QUICK, disk=disk) as node:
        task_id = await begun(node.api, TWICE)
        crashed = await disk.copy()
        log = tmp_path / f"state/logs/tasks/{task_id}.log"
        written = log.read_bytes()
    log.write_bytes(written + b'{"seq":2,"ts":1.0,"lev')  # cut in mid-line
    async with open_steered_node(QUICK, disk=crashed) as node:
        await node.api.get_task(task_id, wait=True)
        chunk = await node.api.read_log(task_id)
        assert chunk.finished
        messages = [entry.message for entry in chunk.entries]
        assert (messages[0], messages[-1]) == ("in 1", "in 2")
        assert [entry.seq for entry in chunk.entries] == list(range(1, len(messages) + 1))
        done = await crashed.copy()
    async with open_steered_node(QUICK, disk=done) as node:
        assert (await node.api.read_log(task_id)).entries == chunk.entries


async def test_a_damaged_record_is_left_out_and_named(
    open_steered_node: Any, disk: Any, tmp_path: Path
) -> None:
    await disk.metadata.put(b"tasks/t-1", b"\xc1")
    async with open_steered_node(QUICK, disk=disk) as node:
        assert await node.api.list_tasks() == []
    assert "tasks/t-1" in (tmp_path / "state/logs/system.log").read_text()
    assert await disk.metadata.get(b"tasks/t-1") is not None


async def test_records_of_a_newer_node_are_refused(open_steered_node: Any, disk: Any) -> None:
    await disk.metadata.put(b"node/format", b"999")
    with pytest.RaisesGroup(StoreFormatError, flatten_subgroups=True, allow_unwrapped=True):
        async with open_steered_node(QUICK, disk=disk):
            pass
    assert (await disk.metadata.get(b"node/format")).value == b"999"


async def test_durability_can_be_turned_off_or_asked_for(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    off = SpearletConfig(tasks=TaskConfig(durable="off"))
    async with open_steered_node(off, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(InvokeRequest(function="f"))
        assert (await node.api.get_artifact("f")).info.version == 1
    assert b"tasks/" not in await kept(disk)
    assert b"versions/f/000000001" in await kept(disk), "what is deployed is another matter"
    on = SpearletConfig(tasks=TaskConfig(durable="on"))
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match="spear-store-lmdb"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        async with open_steered_node(on):
            pass


async def test_a_node_that_stops_in_order_postpones_what_can_wait(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = hang
    told: list[SpearError] = []
    async with trio.open_nursery() as nursery, open_steered_node(ONE_AT_A_TIME, disk=disk) as node:
        api = node.api

        async def wait_for(task_id: str) -> None:
            with pytest.raises(NodeStoppingError, match="started again") as caught:
                await api.get_task(task_id, wait=True)
            told.append(caught.value)

        await api.deploy(UPLOAD)
        await api.deploy(TWICE)
        running = await in_background(api, "twice", payload=b"twice")
        await trio.testing.wait_all_tasks_blocked()
        waiting = await in_background(api, payload=b"waiting")
        child = await in_background(api, parent_task_id=running)
        for task_id in (running, waiting):
            nursery.start_soon(wait_for, task_id)
        await trio.testing.wait_all_tasks_blocked()
    assert [error.retryable for error in told] == [True, True]

    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=disk) as node:
        task = await node.api.get_task(running, wait=True)
        assert (task.result.output, task.attempt) == (b"TWICE", 2)
        task = await node.api.get_task(waiting, wait=True)
        assert (task.result.output, task.attempt) == (b"WAITING", 1)
        assert (await node.api.get_task(child)).state is TaskState.CANCELLED


async def test_a_node_that_stops_waits_for_an_output_on_its_way_to_disk(
    open_steered_node: Any, runtime: Any, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task has ended, and must not be said to have failed with the node."""
    begun, go = trio.Event(), trio.Event()
    put = disk.objects.put

    async def slow(key: str, *args: Any, **options: Any) -> Any:
        if key.endswith("/output"):
            begun.set()
            await go.wait()
        return await put(key, *args, **options)

    size = (64 << 10) + 1
    runtime.behaviour = shout
    async with trio.open_nursery() as nursery, open_steered_node(disk=disk) as node:
        await node.api.deploy(UPLOAD)
        monkeypatch.setattr(disk.objects, "put", slow)
        task_id = await in_background(node.api, payload=b"a" * size)
        await begun.wait()

        async def let_go() -> None:
            await trio.testing.wait_all_tasks_blocked()
            go.set()

        await node.drain()
        nursery.start_soon(let_go)
    async with open_steered_node(disk=disk) as node:
        task = await node.api.get_task(task_id)
        assert (task.state, task.result.output) == (TaskState.COMPLETED, b"A" * size)


async def test_an_artifact_that_is_gone_is_named(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    runtime.behaviour = shout
    async with open_steered_node(QUICK, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        done = await in_background(node.api, payload=b"x")
        task: TaskInfo = await node.api.get_task(done, wait=True)
        await node.api.delete_artifact("f")
    async with open_steered_node(QUICK, disk=disk) as node:
        assert await node.api.get_task(done) == task
