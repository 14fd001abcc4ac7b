"""The tasks that a node knows: by id, by execution and by idempotency key."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from spear_core.api import (
    Artifact,
    ErrorInfo,
    ExecutionInfo,
    InvokeRequest,
    TaskConfig,
    TaskState,
)
from spear_core.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    TaskNotFoundError,
)
from spear_core.node._finished_tasks import FinishedTasks
from spear_core.node._task import Task
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._tokens import TokenSource
from spear_core.node._turns import Turn

if TYPE_CHECKING:
    from spear_core.node._task_objects import TaskObjects

__all__ = ["STATUS_ENDPOINT", "TaskTable"]

STATUS_ENDPOINT = "/status/"
"""And an execution's id: what an `async` call is told to ask for."""


class TaskTable:
    """Every unfinished task, and the newest finished ones within the limits."""

    def __init__(
        self,
        logs: TaskLogDirectory,
        *,
        keep_finished: int,
        keep_finished_bytes: int,
        keep_finished_s: float = 0.0,
    ) -> None:
        """:param keep_finished_s: 0: whatever their age."""
        self._logs = logs
        self._tokens = TokenSource()
        self._finished = FinishedTasks(
            self._forget, keep=keep_finished, keep_bytes=keep_finished_bytes, keep_s=keep_finished_s
        )
        self._tasks: dict[str, Task] = {}
        self._by_execution: dict[str, Task] = {}
        self._by_key: dict[tuple[str, str], Task] = {}
        self._objects: TaskObjects | None = None

    def attach(self, objects: TaskObjects) -> None:
        """Who lets go of what tasks hold in the object store."""
        self._objects = objects

    def add(
        self, artifact: Artifact, request: InvokeRequest, turn: Turn, *, entry: str, deadline: float
    ) -> Task:
        """Make a pending task.

        :param turn: its place in the queue.
        :param entry: what the request's function names, or the artifact's default.
        :param deadline: on trio's clock.
        """
        token = self._tokens.next()
        task_id = f"t-{token}"
        task = Task(
            id=task_id,
            execution_id=f"e-{token}",
            artifact=artifact,
            entry=entry,
            payload=request.payload,
            content_type=request.content_type,
            trace=request.trace,
            deadline=deadline,
            turn=turn,
            log=self._logs.open(task_id),
            priority=turn.priority,
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
                parent.children = {}
            parent.children[task_id] = task
        if request.idempotency_key:
            task.same = (request.caller, request.idempotency_key)
            task.digest = _digest(request)
            self._by_key[task.same] = task
        return task

    def restore(self, tasks: Iterable[Task]) -> None:
        """Have tasks of an earlier run of the node, in their order; final ones are kept as far as
        the limits go."""
        final = []
        for task in tasks:
            self._tasks[task.id] = self._by_execution[task.execution_id] = task
            for execution in task.failed_executions:
                self._by_execution[execution.execution_id] = task
            if task.same is not None:
                self._by_key[task.same] = task
            if task.state.is_final:
                final.append(task)
            elif not task.detached and (parent := self._tasks.get(task.parent_task_id)):
                if parent.children is None:
                    parent.children = {}
                parent.children[task.id] = task
        self._finished.restore(final)

    def drop(self, task: Task) -> None:
        """Forget a task that was not accepted after all."""
        parent = self._tasks.get(task.parent_task_id)
        if parent is not None and parent.children:
            parent.children.pop(task.id, None)
        record, task.record = task.record, None
        self._forget(task)
        if record is not None:
            record.refused()

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tasks

    def same(self, request: InvokeRequest) -> Task | None:
        """The task that was made for this request under its idempotency key before.

        :raises IdempotencyConflictError: the key was used for something else.
        """
        if not request.idempotency_key:
            return None
        task = self._by_key.get((request.caller, request.idempotency_key))
        if task is not None and task.digest != _digest(request):
            raise IdempotencyConflictError(
                f"idempotency key {request.idempotency_key!r} was used for another request, "
                f"which is task {task.id} of {task.function}"
            )
        return task

    def next_attempt(self, task: Task, error: ErrorInfo) -> None:
        """An attempt has failed and another follows, with an execution id of its own."""
        task.move(TaskState.RETRYING)
        ended = ExecutionInfo(
            execution_id=task.execution_id,
            attempt=task.attempt,
            instance_id=task.instance_id,
            started_at=task.started_at or task.created_at,
            completed_at=time.time(),
            error=error,
        )
        task.failed_executions += (ended,)
        task.attempt += 1
        task.execution_id = f"e-{task.id[2:]}-{task.attempt}"
        task.started_at = task.execution_s = None
        task.instance_id = ""
        self._by_execution[task.execution_id] = task

    def ancestors(self, task: Task | None) -> Iterator[Task]:
        """A task, the one that it is a child of, and so on, as far as they still wait for it."""
        while task is not None and not task.state.is_final:
            yield task
            task = None if task.detached else self._tasks.get(task.parent_task_id)

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

    def below(self, task: Task) -> Iterator[Task]:
        """Its unfinished children that end with it, theirs, and so on."""
        for child in list(task.children.values()) if task.children else ():
            yield child
            yield from self.below(child)

    def get(self, task_id: str) -> Task:
        """By the task's or its execution's id, or its status endpoint.

        :raises TaskNotFoundError: unknown.
        """
        task = self._tasks.get(task_id) or self._by_execution.get(
            task_id.removeprefix(STATUS_ENDPOINT)
        )
        if task is None:
            raise TaskNotFoundError(
                f"no task {task_id!r} is known here: it was never made on this node, its result "
                "is no longer kept (tasks.keep_finished is "
                f"{self._finished.most}), or the node was restarted since"
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
        """Every task that is not final, nor postponed."""
        return (
            task for task in self._tasks.values() if not task.state.is_final and not task.postponed
        )

    def retire(self, task: Task) -> None:
        """Take note that a task is final, and forget the oldest ones beyond the limits.

        Its unfinished children are cancelled.
        """
        task.log.close()
        task.scope = None
        if self._objects is not None:
            self._objects.ended(task)
        parent = self._tasks.get(task.parent_task_id)
        if parent is not None and parent.children:
            parent.children.pop(task.id, None)
        for child in list(task.children.values()) if task.children else ():
            child.cancel(f"its parent {task.id} has ended ({task.state.value})")
        self._finished.add(task)

    def reconfigure(self, config: TaskConfig) -> None:
        """Take other limits, also for what has finished already."""
        self._finished.reconfigure(config)

    async def keep_tidy(self) -> None:
        """Forget what is too old, for ever."""
        await self._finished.keep_tidy()

    def _forget(self, task: Task) -> None:
        del self._tasks[task.id], self._by_execution[task.execution_id]
        for execution in task.failed_executions:
            del self._by_execution[execution.execution_id]
        if task.same is not None:
            del self._by_key[task.same]
        task.log.remove()
        if task.result is not None and task.result.object_key and self._objects is not None:
            after = task.record.gone if task.record is not None else None
            self._objects.drop_output(task.id, after=after)
        if task.record is not None:
            task.record.forget()


def _digest(request: InvokeRequest) -> bytes:
    """Of everything in a request that says what is to be done."""
    context = sorted(request.context.items())
    asked = [request.function, request.content_type, context, request.payload]
    if request.input_object:  # whoever asks again names the same key, whatever is there by now
        asked = [request.function, "", context, request.input_object]
    return hashlib.sha256(msgspec.msgpack.encode(asked)).digest()
