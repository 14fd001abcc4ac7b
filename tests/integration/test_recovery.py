"""Workers that are killed, a queue that stays full, a signal at full load: with the real parts."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InstanceState,
    InvokeRequest,
    NodeApi,
    RetryPolicy,
    TaskState,
)
from spear_core.builtins.local_socket import connect
from spear_core.errors import CircuitOpenError, ResourceExhaustedError, SpearError

FULL_S = float(os.environ.get("SPEAR_FULL_QUEUE_S", "1"))
"""How long a queue stays full; a minute in ``nox -s endurance``."""
AGENT = b"""
import os, signal, time
from pathlib import Path

from spear_sdk import Context, function


@function
def nap(seconds: str) -> int:
    time.sleep(float(seconds))
    return os.getpid()


@function
def nap_at_first(text: str, context: Context) -> int:
    if context.attempt == 1:
        time.sleep(600)
    return os.getpid()


@function
def die(text: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""
SPIN_WAT = b"""
(module
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (loop $again
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 10000000))))))
"""
"""Some milliseconds of work."""
UPLOAD = ArtifactUpload(
    name="agent",
    filename="agent.py",
    content=AGENT,
    retry=RetryPolicy(initial_backoff_s=0.01),
)


@asynccontextmanager
async def deployed(node: Any, **settings: Any) -> AsyncIterator[NodeApi]:
    async with connect(node.url) as api:
        with trio.fail_after(240 + FULL_S):
            await api.deploy(attrs.evolve(UPLOAD, **settings))
            yield api


def call(entry: str, payload: str = "", **more: Any) -> InvokeRequest:
    return InvokeRequest(function=f"agent:{entry}", payload=payload.encode(), **more)


async def submit(api: NodeApi, request: InvokeRequest) -> str:
    """Start a task and return its id."""
    request = attrs.evolve(request, mode=ExecutionMode.ASYNC)
    return (await api.invoke(request)).task.task_id


async def worker(api: NodeApi, state: InstanceState) -> int:
    """The pid of a worker in this state, once there is one."""
    while True:
        for instance in await api.list_instances():
            if instance.state is state and instance.pid:
                return instance.pid
        await trio.sleep(0.01)


async def test_a_worker_killed_before_its_execution_costs_nobody_anything(
    start_node: Callable[..., Any],
) -> None:
    async with deployed(start_node()) as api:
        first = (await api.invoke(call("nap", "0"))).task.result
        assert first is not None
        os.kill(await worker(api, InstanceState.READY), signal.SIGKILL)
        while await api.list_instances():  # noqa: ASYNC110 - until the node has seen it
            await trio.sleep(0.01)
        task = (await api.invoke(call("nap", "0"))).task
        assert (task.state, task.attempt) == (TaskState.COMPLETED, 1)
        assert task.result is not None
        assert task.result.output != first.output


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_worker_killed_in_the_middle_of_its_execution(
    start_node: Callable[..., Any], idempotent: bool
) -> None:
    async with deployed(start_node(), idempotent=idempotent) as api:
        accepted = await api.invoke(call("nap_at_first", mode=ExecutionMode.ASYNC))
        # a worker that is only taken for it by now could be replaced, at no cost
        while (await api.get_task(accepted.task.task_id)).state is TaskState.PENDING:  # noqa: ASYNC110
            await trio.sleep(0.01)
        killed = await worker(api, InstanceState.RUNNING)
        os.kill(killed, signal.SIGKILL)
        task = await api.get_task(accepted.task.task_id, wait=True)
        assert task.result is not None
        if not idempotent:
            assert (task.state, task.attempt) == (TaskState.FAILED, 1)
            assert task.result.error is not None
            assert task.result.error.code == "unavailable"
            assert "SIGKILL" in task.result.error.message
            return
        assert (task.state, task.attempt) == (TaskState.COMPLETED, 2)
        assert task.result.output != str(killed).encode()
        (lost,) = task.failed_executions
        assert lost.error is not None
        assert "SIGKILL" in lost.error.message
        assert (await api.get_task(lost.execution_id)).task_id == task.task_id


async def test_a_worker_killed_after_its_execution_takes_no_answer_along(
    start_node: Callable[..., Any],
) -> None:
    async with deployed(start_node()) as api:
        done = (await api.invoke(call("nap", "0"))).task
        os.kill(await worker(api, InstanceState.READY), signal.SIGKILL)
        assert await api.get_task(done.task_id) == done


async def test_attempts_are_used_up_in_the_end(start_node: Callable[..., Any]) -> None:
    async with deployed(start_node(), idempotent=True) as api:
        task = (await api.invoke(call("die"))).task
        assert (task.state, task.attempt) == (TaskState.FAILED, 3)
        killed = {execution.instance_id for execution in task.failed_executions}
        assert task.result is not None
        assert len(killed | {task.result.instance_id}) == 3
        log = await api.read_log(task.task_id)
        said = [entry for entry in log.entries if entry.source == "node"]
        assert [entry.message[:16] for entry in said] == ["attempt 1 failed", "attempt 2 failed"]


async def test_a_crash_loop_is_left_alone_and_disturbs_nobody(
    start_node: Callable[..., Any],
) -> None:
    config = "[execution]\ncircuit_failures = 3\ncircuit_open_ms = 60_000\n"
    async with deployed(start_node(config)) as api:
        await api.deploy(attrs.evolve(UPLOAD, name="well"))
        for _ in range(3):
            assert not (await api.invoke(call("die"))).success
        with pytest.raises(CircuitOpenError, match="SIGKILL") as refused:
            await api.invoke(call("nap", "0"))
        assert refused.value.retryable
        assert refused.value.retry_after is not None
        assert (await api.invoke(InvokeRequest(function="well:nap", payload=b"0"))).success


async def test_cancellations_at_random_moments_leave_nothing(
    start_node: Callable[..., Any],
) -> None:
    """Of agents, which have to be ended and started anew, and of wasm guests while they run."""
    chance = random.Random(11)
    config = "[execution]\nmax_concurrent_tasks = 6\n[pool]\nmax_instances = 3\n"
    async with deployed(start_node(config)) as api:
        await api.deploy(ArtifactUpload(name="spin", filename="spin.wat", content=SPIN_WAT))
        await api.invoke(call("nap", "0"))
        spin = InvokeRequest(function="spin", mode=ExecutionMode.ASYNC)
        states = Counter[TaskState]()

        async def one(request: InvokeRequest, within: float) -> None:
            task = (await api.invoke(request)).task
            await trio.sleep(chance.random() * within)
            states[(await api.cancel_task(task.task_id)).state] += 1

        async with trio.open_nursery() as nursery:
            for seconds in ["0.05"] * 100 + ["600"] * 100:
                nursery.start_soon(one, call("nap", seconds, mode=ExecutionMode.ASYNC), 1.0)
            for _ in range(800):
                nursery.start_soon(one, spin, 2.0)
        assert set(states) <= {TaskState.CANCELLED, TaskState.COMPLETED}
        assert states[TaskState.CANCELLED] >= 100  # so many do not end by themselves
        status = await api.status()
        assert (status.running, status.queued) == (0, 0)
        assert status.total_executions == 1001
        assert (await api.invoke(call("nap", "0"))).success
        assert (await api.invoke(InvokeRequest(function="spin"))).success


async def test_a_full_queue_refuses_quickly_and_loses_nothing_for_as_long_as_it_is_full(
    start_node: Callable[..., Any],
) -> None:
    config = (
        "[execution]\nmax_concurrent_tasks = 2\nmax_queued_tasks = 20\n"
        "[tasks]\nkeep_finished = 100000\n"
    )
    async with deployed(start_node(config)) as api:
        await api.invoke(call("nap", "0"))
        accepted, refused = [], 0
        slow = [await submit(api, call("nap", "600")) for _ in range(2)]
        over = trio.current_time() + FULL_S
        while refused < 10 or len(accepted) < 40 or trio.current_time() < over:
            if refused == 10:  # it was full; from now on it is emptied meanwhile
                for task_id in slow:
                    await api.cancel_task(task_id)
            try:
                response = await api.invoke(call("nap", "0.02", mode=ExecutionMode.ASYNC))
            except ResourceExhaustedError as full:
                refused += 1
                assert (await api.status()).queued <= 20
                await trio.sleep(min(full.retry_after or 60, 0.1))
            else:
                accepted.append(response.task.task_id)
        for task_id in accepted:
            assert (await api.get_task(task_id, wait=True)).state is TaskState.COMPLETED
        metrics = await api.metrics()
        assert metrics.rejected == refused
        assert metrics.total.total_executions == len(accepted) + 3


async def test_a_signal_at_full_load_accounts_for_every_task(
    start_node: Callable[..., Any],
) -> None:
    config = "[execution]\nmax_concurrent_tasks = 4\nshutdown_grace_ms = 1000\n"
    node = start_node(config)
    async with deployed(node) as api:
        await api.invoke(call("nap", "0"))
        told: list[str] = []
        some = trio.Event()
        slow = [await submit(api, call("nap", "600")) for _ in range(4)]

        async def client() -> None:
            try:
                info = (await api.invoke(call("nap", "1"))).task
            except SpearError as error:
                told.append(error.code)
            else:
                told.append(info.state.value)
            if len(told) == 4:
                some.set()

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client)
            while (await api.status()).queued < 200:  # noqa: ASYNC110 - in another process
                await trio.sleep(0.01)
            for task_id in slow:
                await api.cancel_task(task_id)
            await some.wait()
            assert await trio.to_thread.run_sync(node.stop) == 0
        assert len(told) == 200
        assert set(told) <= {"completed", "cancelled", "unavailable"}
        assert told.count("completed") >= 4
        assert told.count("cancelled") >= 100
