"""The executor: every way a task can end, with a steered runtime."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import (
    Artifact,
    ErrorInfo,
    ExecutionConfig,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    Limits,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import InstanceLostError, InstanceStartError, ResourceExhaustedError
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._executor import Executor, open_executor
from spear_core.node._task import Task
from spear_core.node._task_table import TaskTable


class Bench:
    """An executor and what a test needs around it."""

    def __init__(self, executor: Executor, tasks: TaskTable, artifact: Artifact) -> None:
        self.executor = executor
        self.tasks = tasks
        self.artifact = artifact

    def admit(self, payload: bytes = b"in", *, timeout_s: float = 60) -> Task:
        request = InvokeRequest(function=self.artifact.ref, payload=payload)
        deadline = trio.current_time() + timeout_s
        return self.executor.accept(self.artifact, request, entry="", deadline=deadline)

    async def run(self, payload: bytes = b"in", *, timeout_s: float = 60) -> Task:
        task = self.admit(payload, timeout_s=timeout_s)
        await self.executor.run(task)
        return task


@pytest.fixture
def open_bench(
    source: Any,
    artifacts: ArtifactStore,
    tasks: TaskTable,
    add_artifact: Callable[..., Awaitable[Artifact]],
    log: logging.Logger,
) -> Callable[..., Any]:
    @asynccontextmanager
    async def open_it(*, reuse: bool = True, **execution: int) -> AsyncIterator[Bench]:
        config = SpearletConfig(execution=ExecutionConfig(**execution))
        async with open_executor(
            source, artifacts, tasks, config, node_id="n-1", log=log
        ) as executor:
            yield Bench(executor, tasks, await add_artifact(reuse=reuse))

    return open_it


def error_of(task: Task) -> ErrorInfo:
    assert task.result is not None
    assert task.result.error is not None
    return task.result.error


@pytest.mark.parametrize("reuse", [True, False])
async def test_a_task_completes(open_bench: Any, runtime: Any, reuse: bool) -> None:
    async with open_bench(reuse=reuse) as bench:
        task = await bench.run(b"hello")
        again = await bench.run(b"again")
        assert task.state is TaskState.COMPLETED
        assert (task.result.output, again.result.output) == (b"hello", b"again")
        assert task.result.node_id == "n-1"
        assert len(runtime.opened) == (1 if reuse else 2)
        assert runtime.prepared == ["f@1"]
        assert bench.executor.recorder.total().successful_executions == 2
        assert bench.executor.slots.running == 0
    assert runtime.live == 0


async def test_a_guests_failure_is_the_tasks_and_keeps_the_instance(
    open_bench: Any, runtime: Any
) -> None:
    async def fail(request: ExecutionRequest) -> ExecutionResponse:
        return ExecutionResponse.failed(ErrorInfo(code="unknown", message="boom", kind="E"))

    runtime.behaviour = fail
    async with open_bench() as bench:
        task = await bench.run()
        assert task.state is TaskState.FAILED
        assert error_of(task).message == "boom"
        await bench.run()
        assert len(runtime.opened) == 1
        assert bench.executor.recorder.total().failed_executions == 2


@pytest.mark.parametrize("error", [InstanceLostError("it was shot"), OSError("weird")])
async def test_a_broken_instance_fails_the_task_and_is_not_used_again(
    open_bench: Any, runtime: Any, error: Exception
) -> None:
    async def lose(request: ExecutionRequest) -> ExecutionResponse:
        raise error

    runtime.behaviour = lose
    async with open_bench() as bench:
        task = await bench.run()
        assert task.state is TaskState.FAILED
        assert str(error) in error_of(task).message
        await bench.run()
        assert len(runtime.opened) == 2


async def test_an_error_in_a_group_from_a_plugins_nursery_is_shown_as_itself(
    open_bench: Any, runtime: Any
) -> None:
    async def lose(request: ExecutionRequest) -> ExecutionResponse:
        raise ExceptionGroup("from a nursery", [ExceptionGroup("", [InstanceLostError("shot")])])

    runtime.behaviour = lose
    async with open_bench() as bench:
        error = error_of(await bench.run())
        assert (error.kind, error.message) == ("InstanceLostError", "shot")


async def test_an_instance_that_cannot_start_fails_the_task(open_bench: Any, runtime: Any) -> None:
    runtime.open_error = InstanceStartError("no luck")
    async with open_bench() as bench:
        task = await bench.run()
        assert task.state is TaskState.FAILED
        assert error_of(task).kind == "InstanceStartError"


async def test_the_deadline_stops_a_running_task(
    open_bench: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(request: ExecutionRequest) -> ExecutionResponse:
        assert request.deadline_s == pytest.approx(5)
        await trio.sleep_forever()
        raise AssertionError

    runtime.behaviour = hang
    async with open_bench() as bench:
        task = await bench.run(timeout_s=5)
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        assert task.state is TaskState.TIMEOUT
        assert "running" in error_of(task).message
        await trio.testing.wait_all_tasks_blocked()
        assert not runtime.live


async def test_the_deadline_counts_the_time_in_the_queue(
    open_bench: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def sleep(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(100)
        raise AssertionError

    runtime.behaviour = sleep
    async with open_bench(max_concurrent_tasks=1) as bench:
        first, second = bench.admit(timeout_s=50), bench.admit(timeout_s=5)
        bench.executor.start(first)
        await trio.testing.wait_all_tasks_blocked()
        await bench.executor.run(second)
        assert second.state is TaskState.TIMEOUT
        assert "waiting" in error_of(second).message
        assert bench.executor.slots.running == 1


async def test_a_full_queue_refuses_at_once_and_recovers(
    open_bench: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def sleep(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(1)
        return ExecutionResponse.completed(b"")

    runtime.behaviour = sleep
    async with open_bench(max_concurrent_tasks=2, max_queued_tasks=3) as bench:
        tasks = [bench.admit() for _ in range(5)]
        for task in tasks:
            bench.executor.start(task)
        with pytest.raises(ResourceExhaustedError, match="full") as refused:
            bench.admit()
        assert refused.value.retry_after is not None
        for task in tasks:
            await task.wait_final()
        await trio.testing.wait_all_tasks_blocked()
        assert [task.state for task in tasks] == [TaskState.COMPLETED] * 5
        assert bench.executor.slots.queued == 0
        assert (await bench.run()).state is TaskState.COMPLETED


@pytest.mark.parametrize("when", ["queued", "running"])
async def test_cancelling_a_task(open_bench: Any, runtime: Any, when: str) -> None:
    stopped = 0

    async def hang(request: ExecutionRequest) -> ExecutionResponse:
        nonlocal stopped
        try:
            await trio.sleep_forever()
        finally:
            stopped += 1
        raise AssertionError

    runtime.behaviour = hang
    async with open_bench(max_concurrent_tasks=1) as bench:
        running, queued = bench.admit(), bench.admit()
        bench.executor.start(running)
        await trio.testing.wait_all_tasks_blocked()
        bench.executor.start(queued)
        await trio.testing.wait_all_tasks_blocked()
        task = running if when == "running" else queued
        task.cancel("I want it")
        await task.wait_final()
        assert task.state is TaskState.CANCELLED
        assert "I want it" in error_of(task).message
        assert stopped == (when == "running")
        (queued if task is running else running).cancel("tidy up")


async def test_a_caller_that_goes_away_cancels_its_task(open_bench: Any, runtime: Any) -> None:
    async def hang(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep_forever()
        raise AssertionError

    runtime.behaviour = hang
    async with open_bench() as bench:
        task = bench.admit()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.executor.run, task)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert task.state is TaskState.CANCELLED
        assert "caller went away" in error_of(task).message
        assert bench.executor.slots.running == 0


async def test_output_over_the_artifacts_limit_is_an_error(
    open_bench: Any, artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    async with open_bench(max_output_bytes=10) as bench:
        assert (await bench.run(b"x" * 10)).state is TaskState.COMPLETED
        task = await bench.run(b"x" * 11)
        assert task.state is TaskState.FAILED
        assert error_of(task).code == "resource_exhausted"
        assert task.result.output == b""
        assert Limits().output_bytes is None


async def test_draining_waits_for_the_grace_period_and_then_cancels(
    open_bench: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def work(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(float(request.payload))
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    async with open_bench() as bench:
        short, long = bench.admit(b"2"), bench.admit(b"100")
        bench.executor.start(short)
        bench.executor.start(long)
        await bench.executor.drain(5)
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        assert short.state is TaskState.COMPLETED
        assert long.state is TaskState.CANCELLED
        assert "shutting down" in error_of(long).message


async def test_finished_tasks_are_forgotten_oldest_first_with_their_logs(
    open_bench: Any, tasks: TaskTable
) -> None:
    async with open_bench() as bench:
        done = []
        for number in range(8):
            task = bench.admit(b"%d" % number)
            task.log.append(task.execution_id, "hello", level="info", source="guest")
            await bench.executor.run(task)
            done.append(task)
        assert tasks.newest(100) == done[:2:-1]
        big = await bench.run(b"x" * 990)
        assert tasks.newest(100) == [big, *done[:-6:-1]][: len(tasks.newest(100))]
        assert len(tasks.newest(100)) == 5
        bigger = await bench.run(b"x" * 5000)
        assert tasks.newest(100) == [bigger]


async def test_deleting_ends_idle_instances(open_bench: Any, runtime: Any) -> None:
    async with open_bench() as bench:
        await bench.run()
        assert runtime.live == 1
        await bench.executor.undeploy(bench.artifact)
        assert runtime.live == 0


async def test_who_waits_for_an_instance_keeps_nobody_else_from_running(
    open_bench: Any,
    runtime: Any,
    add_artifact: Callable[..., Awaitable[Artifact]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    now, most = 0, 0

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.sleep(float(request.payload))
        now -= 1
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    runtime.start_delay = 1
    async with open_bench(max_concurrent_tasks=10) as slow, trio.open_nursery() as nursery:
        quick = Bench(slow.executor, slow.tasks, await add_artifact("quick", reuse=False))
        for _ in range(200):  # of eight instances; all the slots and more
            nursery.start_soon(partial(slow.run, b"100", timeout_s=1000))
        await trio.sleep(2)
        with trio.fail_after(12):
            async with trio.open_nursery() as several:
                for _ in range(10):
                    several.start_soon(quick.run, b"1")
        assert slow.executor.recorder.total().successful_executions == 10
        await trio.sleep(150)
        assert most == 10
        assert slow.executor.slots.running == 8
        assert slow.executor.slots.queued == 200 - 8 - 8
        nursery.cancel_scope.cancel()
    assert slow.executor.slots.running == 0
    assert slow.executor.slots.queued == 0
    assert runtime.live == 0


async def test_a_task_that_has_its_instance_goes_before_those_that_never_ran(
    open_bench: Any,
    runtime: Any,
    add_artifact: Callable[..., Awaitable[Artifact]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    order: list[bytes] = []

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        order.append(request.payload)
        await trio.sleep(10)
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    runtime.start_delay = 1
    async with open_bench(max_concurrent_tasks=1) as pooled, trio.open_nursery() as nursery:
        single = Bench(pooled.executor, pooled.tasks, await add_artifact("single", reuse=False))
        first, second = pooled.admit(b"first"), pooled.admit(b"second")
        for task in (first, second):  # they leave the slot while their instances start
            nursery.start_soon(pooled.executor.run, task)
            await trio.testing.wait_all_tasks_blocked()
        for number in b"abc":
            nursery.start_soon(single.run, bytes([number]))
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(5)
        assert order == [b"a"]
        second.cancel("test")
        await second.wait_final()
        assert second.state is TaskState.CANCELLED
        # Its instance is as good as ever.
        assert pooled.executor.deployments.instances_of("f", 1) == 2
        assert pooled.executor.slots.running == 1
        await first.wait_final()
        assert order == [b"a", b"first"]
    assert order == [b"a", b"first", b"b", b"c"]
    assert runtime.live == 0


async def test_a_machine_that_is_short_of_something_is_no_bug_of_ours(
    open_bench: Any, runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def run_out(request: ExecutionRequest) -> ExecutionResponse:
        raise OSError(errno.EMFILE, "Too many open files")

    runtime.behaviour = run_out
    async with open_bench(reuse=False) as bench:
        task = await bench.run()
    assert error_of(task).code == "resource_exhausted"
    assert "Too many open files" in error_of(task).message
    assert "broke" not in error_of(task).message
    assert [r for r in caplog.records if r.exc_info] == []
