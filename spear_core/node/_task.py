"""One task: what was asked for, its state, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import attrs
import trio

from spear_core.api import (
    Artifact,
    ExecutionInfo,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    Priority,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.node._task_log import TaskLog
from spear_core.node._tracing import TaskTracing
from spear_core.node._turns import Turn

if TYPE_CHECKING:
    from spear_core.node._journal import TaskEntry

__all__ = ["Task", "Work"]

Work = Callable[[Instance, ExecutionRequest], Awaitable[ExecutionResponse]]
"""What an execution does with its instance."""

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
    """A stream puts its own here, between the task's making and its start; ``None``: to
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
