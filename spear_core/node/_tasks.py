"""Tasks: their states, and the table that remembers them."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING

import attrs
import msgspec
import trio

from spear_core.api import (
    Artifact,
    ErrorInfo,
    ExecutionInfo,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    InvokeRequest,
    Priority,
    TaskConfig,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    TaskNotFoundError,
)
from spear_core.node._task_log import TaskLog, TaskLogDirectory
from spear_core.node._tokens import TokenSource
from spear_core.node._tracing import TaskTracing
from spear_core.node._turns import Turn

if TYPE_CHECKING:
    from spear_core.node._journal import TaskEntry
    from spear_core.node._task_objects import TaskObjects

__all__ = ["STATUS_ENDPOINT", "Task", "TaskTable", "Work"]

Work = Callable[[Instance, ExecutionRequest], Awaitable[ExecutionResponse]]
"""What an execution does with its instance."""

STATUS_ENDPOINT = "/status/"
"""And an execution's id: what an `async` call is told to ask for."""

_TIDY_S = 30.0
"""How exactly the age of finished tasks is looked at."""

_UNANSWERED = {TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT}
_NEXT: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset({TaskState.RUNNING, TaskState.RETRYING, *_UNANSWERED}),
    TaskState.RUNNING: frozenset({TaskState.COMPLETED, TaskState.RETRYING, *_UNANSWERED}),
    # From retrying to retrying: an attempt failed before its guest began.
    TaskState.RETRYING: frozenset({TaskState.RUNNING, TaskState.RETRYING, *_UNANSWERED}),
}


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
    deadline: float
    """On trio's clock, for all attempts together."""
    log: TaskLog
    turn: Turn
    created_at: float = attrs.field(factory=time.time)
    scope: trio.CancelScope | None = None
    """Cancelling it stops the task wherever it is; ``None``: nothing of it runs yet."""
    withdraw: Callable[[Task], None] | None = None
    """How to cancel it while it is but a record in the queue; ``None``: it is not."""
    waiting_since: float = attrs.field(factory=time.perf_counter)
    execution_s: float | None = None
    """How long it had an instance; ``None``: it never had one."""
    state: TaskState = TaskState.PENDING
    started_at: float | None = None
    completed_at: float | None = None
    ended_up: float = 0.0
    """When it ended, by how long the machine had been up then: no setting of its clock ages a
    result."""
    result: TaskResult | None = None
    cancel_reason: str | None = None
    priority: Priority = Priority.NORMAL
    caller: str = ""
    context: Mapping[str, str] = attrs.field(factory=dict)
    parent_task_id: str = ""
    detached: bool = False
    depth: int = 1
    """How many tasks deep it is, itself and all above it counted, detached or not."""
    attempt: int = 1
    failed_executions: tuple[ExecutionInfo, ...] = ()
    cold: bool = False
    queue_s: float = 0.0
    instance_id: str = ""
    """Of the present attempt, and so are the two before."""
    pauses: int = 0
    """How many of its calls of others it waits for."""
    resumed: trio.Event | None = None
    """Set when one of these calls has tried to take the slot again."""
    same: tuple[str, str] | None = None
    """Under which caller and idempotency key it is remembered."""
    digest: bytes = b""
    """Of what was asked for under that key."""
    work: Work | None = None
    """A stream puts its own here, between :meth:`TaskTable.add` and the start; ``None``: to
    execute."""
    tracing: TaskTracing | None = None
    record: TaskEntry | None = None
    """What is on disk of it; ``None``: nothing is."""
    postponing: bool = False
    """It is being stopped in order to be :attr:`postponed`."""
    postponed: bool = False
    """It is not final and nothing of it runs: it waits on disk for the node's next start."""
    children: dict[str, Task] | None = None
    """Unfinished ones that end with this one; ``None``: it never had any."""
    _done: trio.Event | None = None

    @property
    def function(self) -> str:
        """``artifact@version[:entry]``."""
        return f"{self.artifact.ref}:{self.entry}" if self.entry else self.artifact.ref

    def execute(
        self, instance: Instance, request: ExecutionRequest
    ) -> Awaitable[ExecutionResponse]:
        """Do the task's work on an instance, and trace it where that is wanted."""
        if self.tracing is not None:
            return self.tracing.execute(self, instance, request)
        return self.do_work(instance, request)

    def do_work(
        self, instance: Instance, request: ExecutionRequest
    ) -> Awaitable[ExecutionResponse]:
        """The same, and nobody traces it."""
        return instance.execute(request) if self.work is None else self.work(instance, request)

    def move(self, state: TaskState) -> None:
        """Change the state; an illegal change is a bug of ours and raises ``AssertionError``."""
        if self.state.is_final or state not in _NEXT[self.state]:
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

    @property
    def is_record(self) -> bool:
        """Whether it waits in the queue without a trio task of its own."""
        return self.withdraw is not None

    def cancel(self, reason: str) -> None:
        """Ask the task to stop; it does so at its own next chance."""
        if self.state.is_final or self.cancel_reason is not None:
            return
        self.cancel_reason = reason
        if self.scope is not None:
            self.scope.cancel()
        elif self.withdraw is not None:
            self.withdraw(self)

    def enter_scope(self) -> trio.CancelScope:
        """The scope to run it in, cancelled already if that was asked for before."""
        self.withdraw = None
        scope = self.scope = trio.CancelScope(deadline=self.deadline)
        if self.cancel_reason is not None:
            scope.cancel()
        return scope

    def postpone(self) -> None:
        """Leave it as it is, and wake who waits for it."""
        self.postponed = True
        if self._done is not None:
            self._done.set()

    async def wait_final(self) -> None:
        """Wait until the task is final, or :attr:`postponed`."""
        if self.state.is_final or self.postponed:
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
            attempt=self.attempt,
            failed_executions=self.failed_executions,
        )


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
        self._keep = keep_finished
        self._keep_bytes = keep_finished_bytes
        self._keep_s = keep_finished_s
        self._tasks: dict[str, Task] = {}
        self._by_execution: dict[str, Task] = {}
        self._by_key: dict[tuple[str, str], Task] = {}
        self._finished: deque[Task] = deque()
        self._finished_bytes = 0
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
        up, wall = _up(), time.time()
        for task in sorted(final, key=attrgetter("completed_at")):
            # Only the clock can tell what was before; one in the future has ended just now.
            task.ended_up = up - max(0.0, wall - (task.completed_at or 0.0))
            task.log.offer()
            self._finished.append(task)
            self._finished_bytes += _kept_bytes(task)
        self._expire()
        self._trim()

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
        task.ended_up = _up()
        self._finished.append(task)
        self._finished_bytes += _kept_bytes(task)
        self._trim()

    def reconfigure(self, config: TaskConfig) -> None:
        """Take other limits, also for what has finished already."""
        self._keep = config.keep_finished
        self._keep_bytes = config.keep_finished_bytes
        self._keep_s = config.keep_finished_ms / 1000
        self._trim()

    async def keep_tidy(self) -> None:
        """Forget what is too old, for ever."""
        while True:
            await trio.sleep(_TIDY_S)
            self._expire()

    def _expire(self) -> None:
        if self._keep_s:
            oldest = _up() - self._keep_s
            while self._finished and self._finished[0].ended_up < oldest:
                self._forget_oldest()

    def _trim(self) -> None:
        while self._finished and (
            len(self._finished) > self._keep or self._finished_bytes > self._keep_bytes
        ):
            if len(self._finished) == 1 and self._keep:
                break
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = self._finished.popleft()
        self._finished_bytes -= _kept_bytes(oldest)
        self._forget(oldest)

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


def _up() -> float:
    """Seconds since the machine was started, also those that it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _kept_bytes(task: Task) -> int:
    return len(task.result.output) + task.result.object_size if task.result else 0


def _digest(request: InvokeRequest) -> bytes:
    """Of everything in a request that says what is to be done."""
    context = sorted(request.context.items())
    asked = [request.function, request.content_type, context, request.payload]
    if request.input_object:  # whoever asks again names the same key, whatever is there by now
        asked = [request.function, "", context, request.input_object]
    return hashlib.sha256(msgspec.msgpack.encode(asked)).digest()
