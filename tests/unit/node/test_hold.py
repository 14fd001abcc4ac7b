"""What records name is deleted after them, and not while somebody copies."""

from __future__ import annotations

from typing import Any

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
    NodeApi,
    ObjectStore,
    SpearletConfig,
    TaskConfig,
)
from spear_core.node._hold import DeletionHold

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")
LARGE = b"x" * 100_000
HUGE = b"y" * 500_000


async def echo(request: ExecutionRequest) -> ExecutionResponse:
    return ExecutionResponse.completed(request.payload)


async def test_a_hold_is_waited_for() -> None:
    hold = DeletionHold()
    await hold.passed()
    passed = []

    async def delete() -> None:
        await hold.passed()
        passed.append(True)

    async with trio.open_nursery() as nursery:
        with hold.holding():
            with hold.holding():
                nursery.start_soon(delete)
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            assert not passed, "the outer one holds still"
    assert passed


async def test_waiting_for_a_hold_can_be_cancelled() -> None:
    hold = DeletionHold()
    with hold.holding(), trio.move_on_after(0) as scope:
        await hold.passed()
    assert scope.cancelled_caught


async def finish(api: NodeApi, payload: bytes) -> str:
    request = InvokeRequest(function="f", payload=payload, mode=ExecutionMode.ASYNC)
    task_id = (await api.invoke(request)).task.task_id
    await api.get_task(task_id, wait=True)
    return task_id


async def keys(objects: ObjectStore) -> set[str]:
    return {stat.key for stat in (await objects.list(".")).objects}


CONFIG = SpearletConfig(
    tasks=TaskConfig(keep_finished=1),
    execution=ExecutionConfig(shutdown_grace_ms=0, inline_output_bytes=200_000),
)


@pytest.mark.parametrize(("payload", "place"), [(LARGE, ".tasks/{}/output"), (HUGE, ".spear/")])
async def test_objects_of_a_forgotten_task_go_after_its_record(
    open_steered_node: Any, runtime: Any, disk: Any, payload: bytes, place: str
) -> None:
    """Else a node that is killed in between has a task whose result is lost."""
    runtime.behaviour = echo
    async with open_steered_node(CONFIG, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        first = await finish(node.api, payload)
        (output,) = [k for k in await keys(disk.objects) if k.startswith(place.format(first))]
        disk.metadata.gate = trio.Event()
        node._local._tasks.reconfigure(TaskConfig(keep_finished=0))
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert await disk.metadata.get(b"tasks/" + first.encode()) is not None
        assert output in await keys(disk.objects), "the record names it still"
        disk.metadata.gate.set()
        while True:
            if output not in await keys(disk.objects):
                break
            await trio.sleep(0.01)
        assert await disk.metadata.get(b"tasks/" + first.encode()) is None


@pytest.mark.parametrize("payload", [LARGE, HUGE])
async def test_nothing_is_deleted_while_it_is_held(
    open_steered_node: Any, runtime: Any, disk: Any, payload: bytes
) -> None:
    runtime.behaviour = echo
    async with open_steered_node(CONFIG, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await finish(node.api, payload)
        await disk.copy()  # waits until nothing is left to be written, or to be deleted
        with node._local._task_objects.hold.holding():
            before = await keys(disk.objects)
            assert before
            last = await finish(node.api, payload)
            await disk.copy()
            assert before < await keys(disk.objects)
        while True:
            left = await keys(disk.objects)
            if all(last in key for key in left):
                break
            await trio.sleep(0.01)


async def test_code_stays_while_it_is_held(open_steered_node: Any, tmp_path: Any) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        code = node._local._deployer._artifacts.code
        digest = (await node.api.list_artifacts())[0].digest
        with code.holding():
            await node.api.delete_artifact("f")
            assert (code.place(digest) / "f.st").read_bytes() == b"code"
        assert not code.place(digest).exists()

        with code.holding():
            await node.api.deploy(UPLOAD)
            await node.api.delete_artifact("f")
            await node.api.deploy(UPLOAD)
        assert code.place(digest).exists(), "somebody needs it again"
