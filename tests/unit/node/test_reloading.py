"""A node that takes a changed configuration while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import (
    ArtifactUpload,
    Capability,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InstanceState,
    InvokeRequest,
    PoolSettings,
    TaskState,
)
from spear_core.errors import ConfigError, UnsupportedArtifactError

UPLOAD = ArtifactUpload(name="f", content=b"x", filename="f.st")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    write(path, "[execution]\nmax_concurrent_tasks = 1\n")
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def blocked(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep_forever()
    raise AssertionError


async def test_what_changes_is_told_and_holds(open_steered_node: Any, file: Path) -> None:
    async with open_steered_node(config_file=file) as node:
        write(file, "[execution]\nmax_concurrent_tasks = 2\n[tasks]\nkeep_finished = 1\n")
        answer = await node.api.reload_config()
        assert answer.path == str(file)
        assert answer.changed == (
            "execution.max_concurrent_tasks: 1 → 2",
            "tasks.keep_finished: 1000 → 1",
        )
        assert answer.restart == ()
        await node.api.deploy(UPLOAD)
        for _ in range(3):
            await node.api.invoke(InvokeRequest(function="f"))
        assert len(await node.api.list_tasks()) == 1
        again = await node.api.reload_config()
        assert (again.changed, again.restart) == ((), ())


async def test_a_higher_limit_lets_go_on_what_waits(
    open_steered_node: Any, runtime: Any, file: Path
) -> None:
    runtime.behaviour = blocked
    async with open_steered_node(config_file=file) as node:
        await node.api.deploy(UPLOAD)
        tasks = [
            (await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))).task
            for _ in range(3)
        ]
        await trio.testing.wait_all_tasks_blocked()
        assert (await node.api.status()).running == 1
        write(file, "[execution]\nmax_concurrent_tasks = 3\n")
        await node.api.reload_config()
        await trio.testing.wait_all_tasks_blocked()
        assert (await node.api.status()).running == 3
        write(file, "[execution]\nmax_concurrent_tasks = 1\n")
        await node.api.reload_config()
        assert (await node.api.status()).running == 3  # what runs goes on
        for task in tasks:
            await node.api.cancel_task(task.task_id)


async def test_a_file_with_mistakes_changes_nothing_and_all_are_told(
    open_steered_node: Any, file: Path
) -> None:
    async with open_steered_node(config_file=file) as node:
        write(
            file,
            "[execution]\nmax_concurrent_tasks = 0\ntask_timeout_ms = 5\n"
            '[pool]\nselection = "best"\nmin_instances = 9\n[nonsense]\n',
        )
        with pytest.raises(ConfigError) as caught:
            await node.api.reload_config()
        text = str(caught.value)
        for part in ("max_concurrent_tasks", "selection", "nonsense"):
            assert part in text
        await node.api.deploy(UPLOAD)
        response = await node.api.invoke(InvokeRequest(function="f"))
        assert response.task.state is TaskState.COMPLETED
        write(file, "[execution]\nmax_concurrent_tasks = 1\n")
        assert (await node.api.reload_config()).changed == ()


async def test_what_only_a_restart_takes_is_named_and_does_not_hold(
    open_steered_node: Any, file: Path
) -> None:
    async with open_steered_node(config_file=file) as node:
        write(file, "[execution]\nmax_concurrent_tasks = 1\nmax_input_bytes = 10\n")
        for _ in range(2):  # it is still waiting for a restart
            answer = await node.api.reload_config()
            assert (answer.changed, answer.restart) == ((), ("execution.max_input_bytes",))
        await node.api.deploy(UPLOAD)
        response = await node.api.invoke(InvokeRequest(function="f", payload=b"x" * 100))
        assert response.success


async def test_a_node_without_a_file_says_so(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        with pytest.raises(ConfigError, match="without a configuration file"):
            await node.api.reload_config()


async def test_pools_follow(open_steered_node: Any, runtime: Any, file: Path) -> None:
    async with open_steered_node(config_file=file) as node:
        await node.api.deploy(UPLOAD)
        await trio.testing.wait_all_tasks_blocked()
        assert not runtime.opened
        write(file, "[pool]\nmin_instances = 2\n")
        await node.api.reload_config()
        await trio.testing.wait_all_tasks_blocked()
        found = await node.api.list_instances()
        assert [i.state for i in found] == [InstanceState.READY] * 2
        assert all(i.idle_s is not None and i.outstanding == 0 for i in found)


async def test_the_latest_version_is_kept_warm_from_the_nodes_start(
    open_steered_node: Any, runtime: Any, tmp_path: Path
) -> None:
    pool = PoolSettings(min_instances=2)
    async with open_steered_node() as node:
        await node.api.deploy(ArtifactUpload(name="f", content=b"1", filename="f.st", pool=pool))
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.live == 2
    assert runtime.live == 0
    async with open_steered_node() as node:
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.live == 2
        await node.api.deploy(ArtifactUpload(name="f", content=b"2", filename="f.st", pool=pool))
        await trio.testing.wait_all_tasks_blocked()
        artifacts = [info.artifact for info in await node.api.list_instances()]
        assert sorted(artifacts) == ["f@1", "f@1", "f@2", "f@2"]  # the old ones go when idle
        assert await node.api.delete_artifact("f") == 2
        assert runtime.live == 0
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.live == 0


async def test_concurrency_is_refused_where_instances_take_one_execution(
    open_steered_node: Any,
) -> None:
    upload = ArtifactUpload(name="f", content=b"x", filename="f.st", concurrency=4)
    async with open_steered_node() as node:
        with pytest.raises(UnsupportedArtifactError, match="takes one execution at a time"):
            await node.api.deploy(upload)
        assert not await node.api.list_artifacts()


async def test_an_instance_takes_several_where_its_runtime_can(
    open_steered_node: Any, runtime: Any
) -> None:
    runtime.behaviour = blocked
    upload = ArtifactUpload(name="f", content=b"x", filename="f.st", concurrency=4)
    capable = frozenset({Capability.CONCURRENCY})
    async with open_steered_node(capabilities=capable) as node:
        await node.api.deploy(upload)
        for _ in range(4):
            await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        await trio.testing.wait_all_tasks_blocked()
        (info,) = await node.api.list_instances()
        assert (info.outstanding, info.concurrency) == (4, 4)
        for task in await node.api.list_tasks():
            await node.api.cancel_task(task.task_id)
