"""The tasks that an earlier run of the node had, as it starts again.

======================================  =========================================================
when the node ended, the task was …    … and now it
======================================  =========================================================
final                                   is there with its result, as long as it is kept
accepted, never begun, or between       is queued again, in the old order, until its old deadline
two attempts
the same, and a caller waited for it    is cancelled: its caller went away with the node
running, and may run twice              is retried, if it has attempts left
running, else                           has failed with ``NodeRestartedError``
======================================  =========================================================
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import suppress
from logging import Logger
from pathlib import Path

import attrs
import trio

from spear_core.api import Artifact, ErrorInfo, Priority, TaskState
from spear_core.errors import (
    NodeRestartedError,
    ObjectNotFoundError,
    SpearError,
    StoreCorruptError,
)
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._executor import Executor
from spear_core.node._journal import TaskJournal
from spear_core.node._task import Task
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._task_records import (
    INPUTS,
    OBJECTS,
    OUTPUTS,
    TASKS,
    Place,
    TaskRecord,
    decode_task,
    object_key,
)
from spear_core.node._task_table import TaskTable
from spear_core.node._tracing import Tracing
from spear_core.node._turns import Caller, Line, Turn, TurnState

__all__ = ["Restorer"]


@attrs.define(eq=False)
class Restorer:
    """Reads the records, makes tasks of them and has the executor go on."""

    journal: TaskJournal
    tasks: TaskTable
    executor: Executor
    artifacts: ArtifactStore
    logs: TaskLogDirectory
    log: Logger
    tracing: Tracing | None = None
    _objects: set[str] = attrs.field(factory=set)
    """Inputs and outputs that a record names."""
    _lost: dict[str, SpearError] = attrs.field(factory=dict)
    """By task: why its input is not there."""

    async def restore(self) -> None:
        """Have everything again that was accepted.

        **Raises** :exc:`~spear_core.errors.StoreError`: the store cannot be read.
        """
        records = [found async for found in self._records()]
        records.sort(key=lambda each: each[1].number)
        restored = [(await self._task(task_id, record), record) for task_id, record in records]
        self.tasks.restore(task for task, _ in restored)
        if records:
            self.journal.number_from(records[-1][1].number + 1)
        unfinished = [pair for pair in restored if not pair[0].state.is_final]
        for task, record in unfinished:
            self._go_on(task, record)
        if records:
            self.log.info(
                "%d tasks of an earlier run are here again, %d of them unfinished",
                len(records),
                len(unfinished),
            )

    async def _records(self) -> AsyncIterator[tuple[str, TaskRecord]]:
        after, revision = None, None
        while True:
            page = await self.journal.store.range(TASKS, after=after, revision=revision)
            for item in page.items:
                try:
                    record = decode_task(item.key, item.value)
                except StoreCorruptError as error:
                    self.log.error("a task is left out: %s", error)
                else:
                    yield item.key[len(TASKS) :].decode(), record
            if page.next_key is None:
                return
            after, revision = page.next_key, page.revision

    async def _task(self, task_id: str, record: TaskRecord) -> Task:
        final = record.state.is_final
        artifact = self._artifact(record)
        left = record.deadline.remaining() if record.deadline else 0.0
        task = Task(
            id=task_id,
            execution_id=record.execution_id,
            artifact=artifact,
            entry=record.entry,
            payload=b"" if final else await self._input(task_id, record),
            content_type=record.content_type,
            trace=record.trace,
            deadline=trio.current_time() + left,
            log=self.logs.reopen(task_id, finished=final),
            turn=_no_turn(artifact, record.priority),
            created_at=record.created_at,
            state=record.state,
            started_at=record.started_at,
            completed_at=record.completed_at,
            result=record.result,
            priority=record.priority,
            caller=record.caller,
            context=record.context,
            parent_task_id=record.parent,
            detached=record.detached,
            depth=record.depth,
            attempt=record.attempt,
            failed_executions=record.failed_executions,
            instance_id=record.instance_id,
            same=None if record.key is None else (record.caller, record.key),
            digest=record.digest,
        )
        if final and record.result is not None and record.output is not Place.NOWHERE:
            await self._add_output(task, record)
        self.journal.resume(task, record)
        return task

    def _artifact(self, record: TaskRecord) -> Artifact:
        try:
            return self.artifacts.version(record.artifact)
        except SpearError:
            name, _, version = record.artifact.rpartition("@")
            return Artifact(
                name=name, version=int(version), digest="", runtime="", shape="",
                path=Path(), filename="",
            )  # fmt: skip

    async def _input(self, task_id: str, record: TaskRecord) -> bytes:
        try:
            return await self._value(task_id, "input", record.input)
        except (ObjectNotFoundError, StoreCorruptError) as error:
            self._lost[task_id] = StoreCorruptError(f"its input is lost: {error}")
            return b""

    async def _value(self, task_id: str, what: str, place: Place) -> bytes:
        if place is Place.NOWHERE:
            return b""
        if place is Place.RECORD:
            prefix = INPUTS if what == "input" else OUTPUTS
            found = await self.journal.store.get(prefix + task_id.encode())
            if found is None:
                raise StoreCorruptError(f"the {what} of task {task_id} is not in the store")
            return found.value
        key = object_key(task_id, what)
        self._objects.add(key)
        objects = await self.journal.objects()
        _, value = await objects.get(key)
        return value

    async def _add_output(self, task: Task, record: TaskRecord) -> None:
        assert record.result is not None
        try:
            output = await self._value(task.id, "output", record.output)
        except (ObjectNotFoundError, StoreCorruptError) as error:
            self.log.error("task %s: its output is lost: %s", task.id, error)
            info = ErrorInfo(code="data_loss", message=f"its output is lost: {error}")
            task.state = TaskState.FAILED
            task.result = attrs.evolve(record.result, error=info)
        else:
            task.result = attrs.evolve(record.result, output=output)

    def _go_on(self, task: Task, record: TaskRecord) -> None:
        """Have an unfinished task run, or end."""
        executor = self.executor
        try:
            executor.readmit(task)
            self._check(task, record)
        except SpearError as error:
            executor.fail_waiting(task, error)
            return
        parent = self._parent(task)
        if parent is not None and (parent == "" or self.tasks.get(parent).state.is_final):
            task.cancel_reason = task.cancel_reason or "its parent ended with the node"
        elif record.attached and task.state is not TaskState.RUNNING:
            task.cancel_reason = "its caller went away when the node ended"
        if task.cancel_reason is not None or trio.current_time() >= task.deadline:
            executor.stop_waiting(task)
        elif task.state is not TaskState.RUNNING:
            self._queue(task, "the node was restarted; the task waits for its turn again")
        elif not record.attached and executor.retry(task, _restarted(task)):
            self._queue(task, "the node was restarted; the task is tried again")
        else:
            executor.fail_waiting(task, _restarted(task))

    def _check(self, task: Task, record: TaskRecord) -> None:
        """:raises SpearError: the task has lost what it needs."""
        if (lost := self._lost.get(task.id)) is not None:
            raise lost
        self.artifacts.version(record.artifact)

    def _parent(self, task: Task) -> str | None:
        """The task that it ends with; empty: one that is not known any more."""
        if not task.parent_task_id or task.detached:
            return None
        return task.parent_task_id if task.parent_task_id in self.tasks else ""

    def _queue(self, task: Task, message: str) -> None:
        task.log.append(task.execution_id, message, level="warn", source="node")
        if self.tracing is not None:
            self.tracing.begin(task)
        self.executor.start(task)

    async def sweep(self) -> None:
        """Delete inputs and outputs of tasks that are no more: a crash can leave them."""
        after = None
        try:
            objects = await self.journal.objects()
            while True:
                page = await objects.list(OBJECTS, after=after)
                for stat in page.objects:
                    if self._is_left_over(stat.key):
                        with suppress(ObjectNotFoundError):
                            await objects.delete(stat.key)
                if page.next_key is None:
                    return
                after = page.next_key
        except SpearError as error:
            self.log.warning("left-over inputs and outputs of tasks are not swept: %s", error)

    def _is_left_over(self, key: str) -> bool:
        if key in self._objects:
            return False
        task_id, _, what = key.removeprefix(OBJECTS).partition("/")
        if task_id not in self.tasks:
            return True
        return what == "input" and self.tasks.get(task_id).state.is_final


def _restarted(task: Task) -> NodeRestartedError:
    return NodeRestartedError(
        f"the node ended while task {task.id} was running, and nobody can say how far "
        f"{task.function} has come; invoke it again if running twice does no harm "
        "(`idempotent = true` in its spear.toml lets the node do so by itself)"
    )


def _no_turn(artifact: Artifact, priority: Priority) -> Turn:
    """For a task that does not stand in the queue."""
    turn = Turn(Line(artifact), Caller(name="", limit=math.inf), priority, 0)
    turn.state = TurnState.DONE
    return turn
