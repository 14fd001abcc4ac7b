"""Tasks: their states, and the table that remembers them."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping

import attrs
import trio

from spear_core.api import (
    Artifact,
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    InvokeRequest,
    Priority,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.errors import InvalidRequestError, TaskNotFoundError
from spear_core.node._task_log import TaskLog, TaskLogDirectory
from spear_core.node._tracing import TaskTracing

__all__ = ["Task", "TaskTable", "Work"]

Work = Callable[[Instance, ExecutionRequest], Awaitable[ExecutionResponse]]
"""What an execution does with its instance."""

_NEXT: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset(
        {TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT}
    ),
    TaskState.RUNNING: frozenset(
        {TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT}
    ),
}


async def _execute(instance: Instance, request: ExecutionRequest) -> ExecutionResponse:
    return await instance.execute(request)


@attrs.define(eq=False)
class Task:
    """One unit of requested work, from its acceptance until it is forgotten."""

    id: str
    execution_id: str
    artifact: Artifact
    entry: str
    payload: bytes
    content_type: str
    trace: str
    scope: trio.CancelScope
    """Cancelling it stops the task wherever it is."""
    log: TaskLog
    created_at: float = attrs.field(factory=time.time)
    waiting_since: float = attrs.field(factory=time.perf_counter)
    execution_s: float | None = None
    """How long it had an instance; ``None``: it never had one."""
    state: TaskState = TaskState.PENDING
    started_at: float | None = None
    completed_at: float | None = None
    result: TaskResult | None = None
    cancel_reason: str | None = None
    priority: Priority = Priority.NORMAL
    caller: str = ""
    context: Mapping[str, str] = attrs.field(factory=dict)
    parent_task_id: str = ""
    detached: bool = False
    depth: int = 1
    """How many tasks deep it is, itself and all above it counted, detached or not."""
    work: Work = _execute
    """A stream puts its own here, between :meth:`TaskTable.add` and the start."""
    tracing: TaskTracing | None = None
    children: list[Task] | None = None
    """Those that end with this one; ``None``: it never had any."""
    _done: trio.Event | None = None

    @property
    def function(self) -> str:
        """``artifact@version[:entry]``."""
        return f"{self.artifact.ref}:{self.entry}" if self.entry else self.artifact.ref

    async def execute(self, instance: Instance, request: ExecutionRequest) -> ExecutionResponse:
        """Do the task's work on an instance, and trace it where that is wanted."""
        if self.tracing is None:
            return await self.work(instance, request)
        return await self.tracing.execute(self, instance, request)

    def move(self, state: TaskState) -> None:
        """Change the state; an illegal change is a bug of ours and raises ``AssertionError``."""
        if state not in _NEXT.get(self.state, ()):
            raise AssertionError(f"task {self.id}: {self.state.value} → {state.value}")
        self.state = state
        if state is TaskState.RUNNING:
            self.started_at = time.time()

    def finish(self, state: TaskState, result: TaskResult) -> None:
        """Enter a final state and wake who waits for it."""
        self.move(state)
        self.completed_at = time.time()
        self.result = result
        self.payload = b""
        if self.tracing is not None:
            self.tracing.finished(self)
        if self._done is not None:
            self._done.set()

    def cancel(self, reason: str) -> None:
        """Ask the task to stop; it does so at its own next chance."""
        if not self.state.is_final and self.cancel_reason is None:
            self.cancel_reason = reason
            self.scope.cancel()

    async def wait_final(self) -> None:
        """Wait until the task is final."""
        if self.state.is_final:
            await trio.lowlevel.checkpoint()
            return
        if self._done is None:
            self._done = trio.Event()
        await self._done.wait()

    def info(self, *, with_output: bool = True) -> TaskInfo:
        """The task as callers see it."""
        result = self.result
        if result is not None and not with_output:
            result = attrs.evolve(result, output=b"")
        return TaskInfo(
            task_id=self.id,
            execution_id=self.execution_id,
            function=self.function,
            state=self.state,
            created_at=self.created_at,
            started_at=self.started_at,
            completed_at=self.completed_at,
            result=result,
            priority=self.priority,
            caller=self.caller,
            parent_task_id=self.parent_task_id,
        )


class TaskTable:
    """Every unfinished task, and the newest finished ones within the limits."""

    def __init__(
        self, logs: TaskLogDirectory, *, keep_finished: int, keep_finished_bytes: int
    ) -> None:
        self._logs = logs
        self._keep = keep_finished
        self._keep_bytes = keep_finished_bytes
        self._tasks: dict[str, Task] = {}
        self._by_execution: dict[str, Task] = {}
        self._finished: deque[Task] = deque()
        self._finished_bytes = 0

    def add(
        self, artifact: Artifact, request: InvokeRequest, *, entry: str, deadline: float
    ) -> Task:
        """Make a pending task.

        :param entry: what the request's function names, or the artifact's default.
        :param deadline: on trio's clock.
        """
        token = secrets.token_hex(8)
        task_id = f"t-{token}"
        task = Task(
            id=task_id,
            execution_id=f"e-{token}",
            artifact=artifact,
            entry=entry,
            payload=request.payload,
            content_type=request.content_type,
            trace=request.trace,
            scope=trio.CancelScope(deadline=deadline),
            log=self._logs.open(task_id),
            priority=request.priority,
            caller=request.caller,
            context=request.context,
            parent_task_id=request.parent_task_id,
            detached=request.detached,
        )
        self._tasks[task_id] = task
        self._by_execution[task.execution_id] = task
        if task.parent_task_id:
            task.depth = self._tasks[task.parent_task_id].depth + 1
        if task.parent_task_id and not task.detached:
            parent = self._tasks[task.parent_task_id]
            if parent.children is None:
                parent.children = []
            parent.children.append(task)
        return task

    def parent(self, request: InvokeRequest) -> Task | None:
        """The task that asks for another one; ``None``: nobody said that it is a task.

        :raises InvalidRequestError: it is not known here, or has ended and cannot have a child.
        """
        if not request.parent_task_id:
            return None
        parent = self._tasks.get(request.parent_task_id)
        if parent is None:
            raise InvalidRequestError(
                f"parent_task_id {request.parent_task_id!r}: no such task is known here"
            )
        if parent.state.is_final and not request.detached:
            raise InvalidRequestError(
                f"parent_task_id {request.parent_task_id!r}: that task has ended "
                f"({parent.state.value}); only a detached task can outlive its parent"
            )
        return parent

    def get(self, task_id: str) -> Task:
        """By the task's or its execution's id. :raises TaskNotFoundError: unknown."""
        task = self._tasks.get(task_id) or self._by_execution.get(task_id)
        if task is None:
            raise TaskNotFoundError(
                f"no task {task_id!r} is known here: it was never made on this node, its result "
                f"is no longer kept (tasks.keep_finished is {self._keep}), or the node was "
                "restarted since"
            )
        return task

    def by_execution(self, execution_id: str) -> Task | None:
        """The unfinished or kept task that this execution belongs to."""
        return self._by_execution.get(execution_id)

    def newest(self, limit: int) -> list[Task]:
        """The newest tasks first."""
        found: list[Task] = []
        for task in reversed(self._tasks.values()):
            if len(found) >= limit:
                break
            found.append(task)
        return found

    def unfinished(self) -> Iterator[Task]:
        """Every task that is not final."""
        return (task for task in self._tasks.values() if not task.state.is_final)

    def retire(self, task: Task) -> None:
        """Take note that a task is final, and forget the oldest ones beyond the limits.

        Its unfinished children are cancelled.
        """
        task.log.close()
        for child in task.children or ():
            child.cancel(f"its parent {task.id} has ended ({task.state.value})")
        task.children = None
        self._finished.append(task)
        self._finished_bytes += _kept_bytes(task)
        while self._finished and (
            len(self._finished) > self._keep or self._finished_bytes > self._keep_bytes
        ):
            if len(self._finished) == 1 and self._keep:
                break
            oldest = self._finished.popleft()
            self._finished_bytes -= _kept_bytes(oldest)
            del self._tasks[oldest.id], self._by_execution[oldest.execution_id]
            oldest.log.remove()


def _kept_bytes(task: Task) -> int:
    return len(task.result.output) if task.result else 0


def failure(error: ErrorInfo, *, node_id: str, instance_id: str = "") -> TaskResult:
    """The result of a task that ended without an answer from its guest."""
    return TaskResult(error=error, node_id=node_id, instance_id=instance_id)
