"""What a running task may do with other functions."""

from __future__ import annotations

import attrs

from spear_core.api import ExecutionMode, FunctionCalls, InvokeRequest, NodeApi, TaskInfo
from spear_core.errors import TaskNotFoundError
from spear_core.node._executor import Executor
from spear_core.node._task import Task
from spear_core.node._task_objects import TaskObjects
from spear_core.node._task_table import TaskTable

__all__ = ["TaskCalls"]


class TaskCalls(FunctionCalls):
    """Calls in the name of one task."""

    def __init__(
        self,
        task: Task,
        node: NodeApi,
        tasks: TaskTable,
        executor: Executor,
        objects: TaskObjects | None = None,
    ) -> None:
        self._objects = objects
        self._task = task
        self._node = node
        self._tasks = tasks
        self._executor = executor

    async def invoke(self, request: InvokeRequest) -> TaskInfo:
        async with self._executor.slots.paused(self._task):
            if not request.detached:
                ended = (await self._node.invoke(self._ours(request, ExecutionMode.SYNC))).task
            else:
                started = await self._start(request)
                ended = await self._node.get_task(started.task_id, wait=True)
            return await self._with_output(ended)

    async def start(self, request: InvokeRequest) -> TaskInfo:
        return await self._start(request)

    async def _start(self, request: InvokeRequest) -> TaskInfo:
        return (await self._node.invoke(self._ours(request, ExecutionMode.ASYNC))).task

    async def wait(self, task_id: str) -> TaskInfo:
        child = self._child(task_id)
        async with self._executor.slots.paused(self._task):
            return await self._with_output(await self._node.get_task(child.id, wait=True))

    async def _with_output(self, task: TaskInfo) -> TaskInfo:
        """A large one lies elsewhere, where the parent could not read it."""
        return task if self._objects is None else await self._objects.with_output(task)

    async def cancel(self, task_id: str, *, reason: str = "") -> TaskInfo:
        child = self._child(task_id)
        reason = reason or f"by its parent {self._task.id}"
        return await self._node.cancel_task(child.id, reason=reason)

    def _ours(self, request: InvokeRequest, mode: ExecutionMode) -> InvokeRequest:
        task = self._task
        key = request.input_object
        if key and self._objects is not None:
            key = self._objects.scope(task).readable(key)
        return attrs.evolve(
            request,
            input_object=key,
            mode=mode,
            parent_task_id=task.id,
            trace=request.trace or task.trace,
            caller=task.caller,
        )

    def _child(self, task_id: str) -> Task:
        child = self._tasks.get(task_id)
        if child.parent_task_id != self._task.id:
            raise TaskNotFoundError(f"{task_id!r} is no task that {self._task.id} has started")
        return child
