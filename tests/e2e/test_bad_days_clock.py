"""A machine whose clock is set back and forth by years, all the time: a real node on it."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InvokeRequest,
    NodeApi,
    Priority,
    TaskInfo,
    TaskState,
)
from spear_core.builtins.local_socket import connect

YEAR_S = 365 * 86_400
CLOCK = f"""
import random, time
real, chance = time.time, random.Random(1)
time.time = lambda: real() + chance.choice([-9, 0, 9]) * {YEAR_S}
time.time_ns = lambda: int(time.time() * 1e9)
"""
SETTINGS = """
[execution]
max_concurrent_tasks = 1
ageing_ms = 300
[pool]
health_check_interval_ms = 100
[tasks]
keep_finished_ms = 0
"""
NAP = b"""
import time

def nap(seconds: str) -> str:
    time.sleep(float(seconds))
    return f"slept {seconds}"
"""


@pytest.fixture
def start(home: Any) -> Callable[[], Any]:
    """Starts nodes that have such a clock."""
    (home.folder / "sitecustomize.py").write_text(CLOCK)
    (home.folder / "node.toml").write_text(SETTINGS)
    wrapper = f'PYTHONPATH={home.folder} exec "$@"'
    return lambda: home.node("--config", str(home.folder / "node.toml"), wrapper=wrapper)


def talk(home: Any, what: Callable[[NodeApi], Awaitable[Any]]) -> Any:
    async def talking() -> Any:
        with trio.fail_after(240):
            async with connect(f"unix://{home.state}/node.sock") as api:
                return await what(api)

    return trio.run(talking)


async def submit(api: NodeApi, seconds: str, **more: Any) -> str:
    request = InvokeRequest(
        function="nap", payload=seconds.encode(), mode=ExecutionMode.ASYNC, **more
    )
    return (await api.invoke(request)).task.task_id


async def started(api: NodeApi) -> str:
    """A task that has the only slot; while its instance starts, another one may have it."""
    task_id = await submit(api, "600", timeout_s=3600)
    while (await api.get_task(task_id)).state is TaskState.PENDING:  # noqa: ASYNC110
        await trio.sleep(0.01)
    return task_id


async def end_of(api: NodeApi, task_id: str) -> TaskInfo:
    return await api.get_task(task_id, wait=True)


async def deadlines_and_turns(api: NodeApi) -> None:
    await api.deploy(
        ArtifactUpload(name="nap", filename="nap.py", content=NAP, entry="nap", runtime="process")
    )
    before = trio.current_time()
    first = await started(api)
    late = await submit(api, "0", timeout_s=0.5)
    waiting = [await submit(api, "0", priority=each) for each in Priority]
    assert (await end_of(api, late)).state is TaskState.TIMEOUT
    assert (await api.get_task(first)).state is TaskState.RUNNING
    await api.cancel_task(first)
    soon = await submit(api, "600", timeout_s=0.5)
    assert (await end_of(api, soon)).state is TaskState.TIMEOUT
    ended = [await end_of(api, task_id) for task_id in waiting]
    lasted_ms = (trio.current_time() - before) * 1000
    for task in ended:
        assert task.result is not None
        assert task.result.output == b"slept 0"
        assert 0 <= task.result.queue_time_ms <= lasted_ms
        assert 0 <= task.result.execution_time_ms <= lasted_ms
    total = (await api.metrics()).total
    assert 0 <= total.queue_time.sum_s * 1000 <= total.total_executions * lasted_ms


def test_a_clock_that_steps_changes_no_deadline_no_turn_and_no_task(
    home: Any, start: Callable[[], Any]
) -> None:
    pytest.importorskip("spear_store_lmdb")
    node = start()
    talk(home, deadlines_and_turns)

    async def leave_some(api: NodeApi) -> list[str]:
        finished = await submit(api, "0")
        await end_of(api, finished)
        running = await started(api)
        return [finished, running, await submit(api, "0")]

    finished, running, queued = talk(home, leave_some)
    node.stop(signal.SIGKILL)
    node = start()

    async def account(api: NodeApi) -> None:
        states = [(await end_of(api, each)).state for each in (finished, running, queued)]
        assert states == [TaskState.COMPLETED, TaskState.FAILED, TaskState.COMPLETED]

    talk(home, account)
    assert node.stop() == 0
    lines = (home.state / "logs" / "system.log").read_text().splitlines()
    stamps = sorted(json.loads(line)["ts"] for line in lines)
    assert stamps[-1] - stamps[0] > 8 * YEAR_S, "its clock was as ours: nothing was tested"
