"""What a running task may do with other functions."""

from __future__ import annotations

import attrs

from spear_core.api import ExecutionMode, FunctionCalls, InvokeRequest, NodeApi, TaskInfo
from spear_core.errors import TaskNotFoundError
from spear_core.node._executor import Executor
from spear_core.node._tasks import Task, TaskTable

__all__ = ["TaskCalls"]


class TaskCalls(FunctionCalls):
    """Calls in the name of one task."""

    def __init__(self, task: Task, node: NodeApi, tasks: TaskTable, executor: Executor) -> None:
        self._task = task
        self._node = node
        self._tasks = tasks
        self._executor = executor

    async def invoke(self, request: InvokeRequest) -> TaskInfo:
        async with self._executor.slots.paused(self._task):
            if not request.detached:
                return (await self._node.invoke(self._ours(request, ExecutionMode.SYNC))).task
            started = await self._start(request)
            return await self._node.get_task(started.task_id, wait=True)

    async def start(self, request: InvokeRequest) -> TaskInfo:
        return await self._start(request)

    async def _start(self, request: InvokeRequest) -> TaskInfo:
        return (await self._node.invoke(self._ours(request, ExecutionMode.ASYNC))).task

    async def wait(self, task_id: str) -> TaskInfo:
        child = self._child(task_id)
        async with self._executor.slots.paused(self._task):
            return await self._node.get_task(child.id, wait=True)

    async def cancel(self, task_id: str, *, reason: str = "") -> TaskInfo:
        child = self._child(task_id)
        reason = reason or f"by its parent {self._task.id}"
        return await self._node.cancel_task(child.id, reason=reason)

    def _ours(self, request: InvokeRequest, mode: ExecutionMode) -> InvokeRequest:
        task = self._task
        return attrs.evolve(
            request,
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
