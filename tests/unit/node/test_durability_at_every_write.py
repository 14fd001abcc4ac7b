"""A node that ends after any one of its writes to the disk: the next one knows all it has said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import attrs
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
    RetryPolicy,
    SpearletConfig,
    TaskInfo,
    TaskState,
)
from spear_core.errors import InstanceLostError

ONCE = ArtifactUpload(
    name="once",
    filename="f.st",
    content=b"code",
    retry=RetryPolicy(initial_backoff_s=1.0, jitter=0.0),
)
TWICE = attrs.evolve(ONCE, name="twice", idempotent=True)
CONFIG = SpearletConfig(execution=ExecutionConfig(max_concurrent_tasks=2, shutdown_grace_ms=0))


@attrs.define
class Said:
    """What the node has said, and how much was on disk by then."""

    disk: Any
    accepted: list[tuple[int, str]] = attrs.field(factory=list)
    ended: list[tuple[int, TaskInfo]] = attrs.field(factory=list)
    deployed: list[tuple[int, str]] = attrs.field(factory=list)
    keyed: list[tuple[int, InvokeRequest, str]] = attrs.field(factory=list)

    @property
    def now(self) -> int:
        return len(self.disk.metadata.history)

    async def invoke(self, api: NodeApi, function: str, **request: Any) -> TaskInfo:
        asked = InvokeRequest(function=function, **request)
        task = (await api.invoke(asked)).task
        self.accepted.append((self.now, task.task_id))
        if asked.idempotency_key:
            self.keyed.append((self.now, asked, task.task_id))
        if task.state.is_final:
            self.ended.append((self.now, task))
        return task

    async def wait(self, api: NodeApi, task_id: str) -> None:
        task = await api.get_task(task_id, wait=True)
        self.ended.append((self.now, task))


async def a_life(api: NodeApi, said: Said) -> None:
    """A bit of everything."""
    for upload in (ONCE, TWICE):
        await api.deploy(upload)
        said.deployed.append((said.now, upload.name))
    background: dict[str, Any] = {"mode": ExecutionMode.ASYNC}
    tasks = []
    for function in ("once", "twice"):
        for payload in (b"quick", b"slow", b"broken", b"unlucky"):
            task = await said.invoke(api, function, payload=payload, **background)
            tasks.append(task.task_id)
        await said.invoke(api, function, payload=b"quick")
        await said.invoke(api, function, payload=b"quick", idempotency_key=f"key {function}")
        await said.invoke(api, function, payload=b"broken")
    parent = await said.invoke(api, "once", payload=b"slow", **background)
    child = await said.invoke(
        api, "once", payload=b"slow", parent_task_id=parent.task_id, **background
    )
    cancelled = await said.invoke(api, "twice", payload=b"slow", **background)
    cancelled = await api.cancel_task(cancelled.task_id)
    said.ended.append((said.now, cancelled))
    async with trio.open_nursery() as nursery:
        for task_id in (*tasks, parent.task_id, child.task_id):
            nursery.start_soon(said.wait, api, task_id)


async def behave(request: ExecutionRequest) -> ExecutionResponse:
    if request.payload == b"slow":
        await trio.sleep(5)
    if request.payload == b"unlucky" and request.attempt == 1:
        raise InstanceLostError("shot", unsent=True)
    if request.payload == b"broken":
        raise InstanceLostError("shot")
    return ExecutionResponse.completed(b"did " + request.payload)


async def hold_to_it(api: NodeApi, said: Said, moment: int, begun_before: set[str]) -> None:
    """Compare a later node with what was said until the moment that it was made from."""
    for at, name in said.deployed:
        if at <= moment:
            assert (await api.get_artifact(name)).info.version == 1
    for at, told in said.ended:
        if at <= moment:
            task = await api.get_task(told.task_id)
            assert (task.state, task.result) == (told.state, told.result)
    for at, task_id in said.accepted:
        if at <= moment:
            task = await api.get_task(task_id, wait=True)
            assert task.result is not None
            if task.state is TaskState.FAILED:
                assert task.result.error is not None
                assert task.result.error.kind in ("InstanceLostError", "NodeRestartedError")
                if task_id not in begun_before and task.function == "once@1":
                    assert task.result.error.kind == "InstanceLostError"
            elif task.state is TaskState.COMPLETED:
                assert task.result.output in (b"did quick", b"did slow", b"did unlucky")
    for at, asked, task_id in said.keyed:
        if at <= moment:
            assert (await api.invoke(asked)).task.task_id == task_id
    for task in await api.list_tasks():
        assert (await api.get_task(task.task_id, wait=True)).state.is_final


async def test_it_may_end_after_any_write(
    open_steered_node: Any,
    runtime: Any,
    disk: Any,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    said = Said(disk)
    disk.metadata.history = []
    began: dict[str, int] = {}
    """When the guest of each task began first."""

    async def note_and_behave(request: ExecutionRequest) -> ExecutionResponse:
        began.setdefault(request.task_id, said.now)
        return await behave(request)

    runtime.behaviour = note_and_behave
    async with open_steered_node(CONFIG, disk=disk) as node:
        await a_life(node.api, said)
    history = disk.metadata.history
    assert len(history) > 10
    assert {task.state for _, task in said.ended} == {
        TaskState.COMPLETED,
        TaskState.FAILED,
        TaskState.CANCELLED,
    }
    idempotent = {t.task_id for _, t in said.ended if t.function == "twice@1"}
    for moment, items in enumerate(history, 1):
        again = type(disk)()
        for item in items:
            await again.metadata.put(item.key, item.value)
        repeated: list[str] = []

        async def note_again(
            request: ExecutionRequest, repeated: list[str] = repeated
        ) -> ExecutionResponse:
            repeated.append(request.task_id)
            return await behave(request)

        runtime.behaviour = note_again
        before = {task_id for task_id, at in began.items() if at <= moment}
        state = tmp_path / f"state-{moment}"
        shutil.copytree(tmp_path / "state/artifacts", state / "artifacts")
        async with open_steered_node(CONFIG, disk=again, state_dir=state) as node:
            await hold_to_it(node.api, said, moment, before)
            twice = {t for t in repeated if t in before and t not in idempotent}
            unlucky = {t.task_id for t in await node.api.list_tasks() if t.attempt > 1}
            assert twice <= unlucky, "at most once, but for what never reached its guest"
