"""Pools of real Python agents in a real node, and what may happen to them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InstanceInfo,
    InvokeRequest,
    NodeApi,
    PoolConfig,
    PoolSettings,
    SpearletConfig,
    TaskState,
)
from spear_core.config import load_config
from spear_core.node import open_node
from spear_core.plugins import load_plugins

CODE = """
import os, time
from pathlib import Path
from spear_sdk import function

@function
def pid() -> str:
    return str(os.getpid())

@function
async def wait(seconds: str) -> str:
    import asyncio
    await asyncio.sleep(float(seconds))
    return seconds
"""


@asynccontextmanager
async def node(folder: Path, **pool: Any) -> AsyncGenerator[NodeApi]:
    plugins = load_plugins()
    settings = load_config(None, plugins)
    spearlet = SpearletConfig(pool=PoolConfig(**pool))
    async with open_node(
        attrs.evolve(settings, spearlet=spearlet), plugins, state_dir=folder, serve=False
    ) as opened:
        yield opened.api


def upload(code: str = CODE, **fields: Any) -> ArtifactUpload:
    return ArtifactUpload(name="f", content=code.encode(), filename="f.py", **fields)


async def until(
    api: NodeApi, wanted: Callable[[Sequence[InstanceInfo]], bool]
) -> Sequence[InstanceInfo]:
    with trio.fail_after(60):
        while True:
            found = await api.list_instances()
            if wanted(found):
                return found
            await trio.sleep(0.02)


def ready(many: int) -> Callable[[Sequence[InstanceInfo]], bool]:
    return lambda found: [i.state.value for i in found] == ["ready"] * many


async def call(api: NodeApi, entry: str, payload: bytes = b"", **fields: Any) -> Any:
    return await api.invoke(
        InvokeRequest(function=f"f:{entry}", payload=payload, timeout_s=60, **fields)
    )


async def test_a_killed_idle_worker_is_replaced_and_nobody_notices(tmp_path: Path) -> None:
    async with node(tmp_path) as api:
        await api.deploy(upload(pool=PoolSettings(min_instances=2)))
        before = {info.pid for info in await until(api, ready(2))}
        victim = min(before, key=str)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        await until(api, lambda found: ready(2)(found) and victim not in {i.pid for i in found})
        response = await call(api, "pid")
        assert response.success
        assert int(response.task.result.output) != victim


async def test_a_killed_busy_worker_fails_its_task_only_and_is_replaced(tmp_path: Path) -> None:
    async with node(tmp_path) as api:
        await api.deploy(upload(pool=PoolSettings(min_instances=2)))
        await until(api, ready(2))
        response = await call(api, "wait", b"600", mode=ExecutionMode.ASYNC)
        with trio.fail_after(60):  # a worker that is only taken for it by now could be replaced
            while (await api.get_task(response.task.task_id)).state is TaskState.PENDING:  # noqa: ASYNC110
                await trio.sleep(0.01)
        (busy,) = [i.pid for i in await api.list_instances() if i.outstanding]
        assert busy is not None
        os.kill(busy, signal.SIGKILL)
        with trio.fail_after(60):
            task = await api.get_task(response.task.task_id, wait=True)
        assert task.state is TaskState.FAILED
        assert (await call(api, "pid")).success
        await until(api, lambda found: ready(2)(found) and busy not in {i.pid for i in found})


async def test_a_worker_that_hangs_in_its_health_check_is_replaced(tmp_path: Path) -> None:
    limits = {"health_check_interval_ms": 200, "health_check_timeout_ms": 2000}
    async with node(tmp_path, min_instances=1, **limits) as api:
        await api.deploy(upload())
        (info,) = await until(api, ready(1))
        assert info.pid is not None
        stopped = psutil.Process(info.pid)
        os.kill(info.pid, signal.SIGSTOP)
        await until(api, lambda found: ready(1)(found) and found[0].pid != info.pid)
        assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
        assert (await call(api, "pid")).success


async def test_a_crash_at_every_start_is_not_tried_all_the_time(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []

    def note(record: logging.LogRecord) -> None:
        if "do not last (" in record.getMessage():
            told.append((trio.current_time(), record.getMessage()))

    handler = logging.Handler(logging.WARNING)
    handler.emit = note  # type: ignore[method-assign]
    logging.getLogger("spear").addHandler(handler)
    try:
        async with node(tmp_path, min_instances=1) as api:
            await api.deploy(upload("import os\nfrom spear_sdk import function\nos._exit(3)\n"))
            with trio.fail_after(120):
                while len(told) < 4:  # noqa: ASYNC110 - a log record wakes nobody
                    await trio.sleep(0.05)
            assert [line.split()[-2:] for _, line in told] == [
                [pause, "s"] for pause in ("0.5", "1", "2", "4")
            ]
            # Each is held back for as long as is said, and then takes a while to start.
            for (before, _), (after, _), pause in zip(told, told[1:], (0.5, 1, 2), strict=False):
                assert after - before >= pause
            assert not (await call(api, "pid")).success
    finally:
        logging.getLogger("spear").removeHandler(handler)


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_several_executions_share_a_worker_if_they_may(
    concurrency: int, tmp_path: Path
) -> None:
    async with node(tmp_path, max_instances=8) as api:
        await api.deploy(upload(concurrency=concurrency))
        tasks = [
            (await call(api, "wait", b"600", mode=ExecutionMode.ASYNC)).task.task_id
            for _ in range(8)
        ]
        found = await until(api, lambda found: sum(i.outstanding for i in found) == 8)
        assert len(found) == 8 // concurrency
        (gone, *others) = tasks
        await api.cancel_task(gone)
        with trio.fail_after(60):
            for task in others:  # one that has its instance runs once that is on disk
                while (state := (await api.get_task(task)).state) is TaskState.PENDING:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert state is TaskState.RUNNING
        found = await api.list_instances()
        assert sum(i.outstanding for i in found) == 7
        for task in others:
            await api.cancel_task(task)
