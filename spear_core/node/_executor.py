"""Runs tasks: a slot, an instance, an execution, perhaps another one, a final state.

A task that its caller waits for runs in the caller's own trio task from end to end. Any other one
is a mere record until it has its slot (:meth:`Executor.start`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging import Logger

import trio

from spear_core._late_scope import run_in_scope
from spear_core.api import (
    Artifact,
    InvokeRequest,
    Resources,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import (
    CircuitOpenError,
    ResourceExhaustedError,
    RuntimeUnavailableError,
    SpearError,
)
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import Background, open_background
from spear_core.node._capacity import Capacity, node_capacity
from spear_core.node._deadlines import Deadlines
from spear_core.node._deployments import Deployments, RuntimeSource
from spear_core.node._executions import Executions
from spear_core.node._failures import as_spear_error
from spear_core.node._log_context import working_on
from spear_core.node._metrics import ExecutionRecorder
from spear_core.node._results import Results
from spear_core.node._retries import backoff_s, is_retried
from spear_core.node._runtime_health import RuntimeHealth
from spear_core.node._secrets import Secrets
from spear_core.node._slots import Slots
from spear_core.node._task import Task
from spear_core.node._task_objects import TaskObjects
from spear_core.node._task_table import TaskTable

__all__ = ["Executor", "RuntimeSource", "open_executor"]

_MOST_IN_A_ROW = 4
"""Executions that one trio task may begin without letting others run."""


class Executor:
    """Runs tasks on instances; made by :func:`open_executor`."""

    def __init__(
        self,
        runtimes: RuntimeSource,
        artifacts: ArtifactStore,
        tasks: TaskTable,
        config: SpearletConfig,
        *,
        node_id: str,
        background: Background,
        log: Logger,
        secrets: Secrets | None = None,
        objects: TaskObjects | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._tasks = tasks
        self._config = config
        self._background = background
        self._log = log
        secrets = secrets or Secrets({}, warn=log.warning)
        self._results = Results(
            node_id, secrets, max_output_bytes=config.execution.max_output_bytes
        )
        self.deployments = Deployments(
            runtimes, artifacts, config.pool, background=background, log=log, secrets=secrets
        )
        clock = trio.lowlevel.current_clock().current_time
        self.slots = Slots(
            config.execution,
            node_capacity(config.execution),
            instances_of=self.deployments.most_executions,
            clock=clock,
        )
        self.recorder = ExecutionRecorder(histograms=config.execution.enable_metrics)
        self._executions = Executions(
            self.deployments,
            self.slots,
            self._results,
            self.recorder,
            config,
            health=RuntimeHealth(runtimes.current_runtime, background, clock=clock, log=log),
            secrets=secrets,
            objects=objects,
            log=log,
        )
        self._deadlines = Deadlines(self._expire)
        self._began_last: trio.lowlevel.Task | None = None
        """Who began the last execution on a runtime that is prompt, …"""
        self._in_a_row = 0
        """… and how many."""

    def accept(
        self, artifact: Artifact, request: InvokeRequest, *, entry: str, deadline: float
    ) -> Task:
        """Make a task and reserve its place, to be followed by :meth:`start` or :meth:`run`.

        :raises ResourceExhaustedError: a queue or a quota is full, or it could never run.
        :raises CircuitOpenError: the artifact's instances keep breaking.
        :raises RuntimeUnavailableError: its runtime is unwell.
        """
        try:
            self._executions.check(artifact)
            priority = request.priority
            if request.parent_task_id and not request.detached:
                parent = self._tasks.get(request.parent_task_id)
                self._refuse_deadlock(artifact, parent)
                # A task that waits for this one must not wait at a lower priority than its own.
                priority = max(priority, parent.priority)
            turn = self.slots.admit(artifact, request.caller, priority)
        except (ResourceExhaustedError, CircuitOpenError, RuntimeUnavailableError):
            self.recorder.rejected()
            raise
        self._artifacts.use(artifact)
        self.recorder.admitted(artifact)
        return self._tasks.add(artifact, request, turn, entry=entry, deadline=deadline)

    def _refuse_deadlock(self, artifact: Artifact, parent: Task) -> None:
        """Refuse a child that would wait for an instance which its own ancestors hold."""
        above = [task for task in self._tasks.ancestors(parent) if task.artifact == artifact]
        if above and len(above) >= self.deployments.most_executions(artifact):
            raise ResourceExhaustedError(
                f"{artifact.ref} would wait for itself: task {parent.id} waits for it, and all "
                f"its {len(above)} instances are held by tasks that wait likewise "
                "(pool.max_instances)",
                retryable=False,
            )

    def check_room_for(self, name: str, resources: Resources) -> None:
        """Refuse a reservation that this node could never meet.

        :raises ResourceExhaustedError: not retryable.
        """
        self.slots.capacity.check_room_for(Capacity.of(resources), name)

    def estimate_s(self, task: Task, default: float) -> float:
        """Seconds that an execution of this task's function has taken on average."""
        average = self.recorder.average_of(task.artifact, task.entry)
        return default if average is None else average

    def readmit(self, task: Task) -> None:
        """Give a task its place again that an earlier run of the node had accepted; whatever the
        limits are now.

        :raises ResourceExhaustedError: it reserves more than this node has.
        """
        self._artifacts.use(task.artifact)
        self.recorder.admitted(task.artifact)
        task.turn = self.slots.admit(task.artifact, task.caller, task.priority, again=True)

    def start(self, task: Task) -> None:
        """Run an accepted task in the background, when its turn comes, and once it is on disk
        where that is wanted."""
        if task.record is not None:
            task.record.on_disk(lambda error: self._start_written(task, error))
        else:
            self._start(task)

    def _start_written(self, task: Task, error: SpearError | None) -> None:
        if error is not None:
            self.refuse(task, error)
        elif task.cancel_reason is not None or trio.current_time() >= task.deadline:
            self.stop_waiting(task)
        else:
            self._start(task)

    async def written(self, task: Task) -> None:
        """Wait until an accepted task is on disk, to be followed by :meth:`run`.

        **Raises** what the store said; the task is not accepted then. **Cancellation**: the task
        ends as cancelled.
        """
        assert task.record is not None
        try:
            await task.record.accepted()
        except SpearError as error:
            self.refuse(task, error)
            raise
        except BaseException:
            task.cancel_reason = task.cancel_reason or "its caller went away"
            self.stop_waiting(task)
            raise

    def refuse(self, task: Task, error: SpearError) -> None:
        """Take an acceptance back: the task could not be written down, and nothing of it ran."""
        self.recorder.rejected()
        self._results.finish_failed(task, self._results.error_info(task, error))
        self.slots.done(task.turn)
        self._artifacts.unuse(task.artifact)
        self._count(task)
        self._tasks.drop(task)

    def retry(self, task: Task, error: SpearError) -> bool:
        """Have another attempt follow one that was lost with the node, if there may be one;
        :meth:`start` runs it."""
        if self._wait_before_retry(task, error) is None:
            return False
        self._prepare_retry(task, error, 0.0)
        return True

    def stop_waiting(self, task: Task) -> None:
        """A task that nothing runs of yet was cancelled, or its deadline has passed."""
        self._results.finish_stopped(task)
        self._end(task)

    def fail_waiting(self, task: Task, error: SpearError) -> None:
        """A task that nothing runs of cannot run."""
        self._results.finish_failed(task, self._results.error_info(task, error))
        self._end(task)

    def _start(self, task: Task) -> None:
        if self.slots.take(task.turn):
            self._begin(task)
        else:
            task.turn.wake, task.turn.waker = self._begin_waiting, task
            task.withdraw = self._withdraw
            self._deadlines.add(task)

    def _begin(self, task: Task) -> None:
        task.enter_scope()
        self._background.start_soon(self.run, task)

    def _begin_waiting(self, task: Task) -> None:
        self._deadlines.discard()
        self._begin(task)

    def _withdraw(self, task: Task) -> None:
        """A task that waits as a record was cancelled, or its deadline has passed."""
        self._deadlines.discard()
        task.withdraw = None
        self.stop_waiting(task)

    def _expire(self, task: Task) -> None:
        self._withdraw(task)

    async def run(self, task: Task) -> None:
        """Run an accepted task to its final state.

        **Cancellation**: the task ends as cancelled, and nothing of it runs.
        """
        token = working_on.set(task)
        try:
            if self.deployments.is_prompt(task.artifact):
                await self._take_turn()
                if self._may_do_without_scope(task):
                    await run_in_scope(self._attempts(task), task.enter_scope)
                    return
            with task.scope or task.enter_scope():
                await self._attempts(task)
        finally:
            if task.postponing and not task.state.is_final:
                self._postpone(task)
            else:
                if not task.state.is_final:
                    scope = task.scope
                    if task.cancel_reason is None and not (scope and scope.cancelled_caught):
                        task.cancel_reason = "its caller went away"
                    self._results.finish_stopped(task)
                self._end(task)
            working_on.reset(token)

    def _may_do_without_scope(self, task: Task) -> bool:
        """Whether nothing of ours enters a scope before the runtime's own first wait."""
        return (
            task.scope is None
            and task.work is None
            and (task.record is None or task.record.attached)
            and task.cancel_reason is None
            and not task.artifact.reuse
        )

    async def _take_turn(self) -> None:
        """A checkpoint, which lets others run only if this trio task began the last few
        executions, too.

        Else it has let them run since then: whoever began one of them. And most who come again have
        waited for something meanwhile. A pass of trio's scheduler costs a tenth of a small
        execution.
        """
        task = trio.lowlevel.current_task()
        if task is not self._began_last:
            self._began_last, self._in_a_row = task, 1
        elif self._in_a_row < _MOST_IN_A_ROW:
            self._in_a_row += 1
        else:
            await trio.lowlevel.checkpoint()
            self._began_last, self._in_a_row = task, 1
            return
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _attempts(self, task: Task) -> None:
        """Execute until an answer comes, an error is final or the attempts are used up."""
        while True:
            try:
                await self.slots.hold(task)
                await self._executions.execute(task)
            except Exception as raised:  # barrier: one execution
                error = as_spear_error(raised, f"task {task.id}", self._log)
            else:
                return
            self.slots.release(task.turn)
            if task.state.is_final:
                self._log.warning("after task %s had ended: %s", task.id, error)
                return
            wait_s = self._wait_before_retry(task, error)
            if wait_s is None:
                self._results.finish_failed(task, self._results.error_info(task, error))
                return
            self._prepare_retry(task, error, wait_s)
            await trio.lowlevel.checkpoint()  # see run_in_scope
            await trio.sleep(wait_s)

    def _wait_before_retry(self, task: Task, error: SpearError) -> float | None:
        """Seconds until the next attempt; ``None``: this was the last."""
        artifact = task.artifact
        attempts = artifact.retry.attempts or self._config.execution.retry_attempts
        if task.attempt >= attempts or (task.scope is not None and task.scope.cancel_called):
            return None
        if not is_retried(error, artifact, began=task.state is TaskState.RUNNING):
            return None
        wait_s = backoff_s(artifact.retry, task.attempt + 1)
        return wait_s if trio.current_time() + wait_s < task.deadline else None

    def _prepare_retry(self, task: Task, error: SpearError, wait_s: float) -> None:
        info = self._results.error_info(task, error)
        task.log.append(
            task.execution_id,
            f"attempt {task.attempt} failed: {info.message}; the next follows in {wait_s:.2g} s",
            level="warn",
            source="node",
        )
        self.recorder.ended(
            task.artifact,
            TaskState.RETRYING,
            entry=task.entry,
            execution_s=task.execution_s,
            error_code=info.code,
            retried=True,
        )
        self._tasks.next_attempt(task, info)
        if task.record is not None:
            task.record.retrying()
        task.waiting_since = time.perf_counter() + wait_s

    def _end(self, task: Task) -> None:
        """Everything that a final task gives back."""
        self.slots.done(task.turn)
        self._artifacts.unuse(task.artifact)
        self._count(task)
        if task.record is not None:
            task.record.ended()
        self._tasks.retire(task)

    def _count(self, task: Task) -> None:
        result = task.result
        self.recorder.ended(
            task.artifact,
            task.state,
            entry=task.entry,
            execution_s=task.execution_s,
            usage=result.usage if result else None,
            error_code=result.error.code if result and result.error else "",
        )

    def reconfigure(self, config: SpearletConfig) -> None:
        """Take new limits: what runs goes on, lower ones take effect as things end."""
        self._config = config
        self._results.max_output_bytes = config.execution.max_output_bytes
        self.deployments.configure(config.pool)  # first: the slots ask how many instances fit
        self.slots.reconfigure(config.execution)
        self._executions.reconfigure(config)

    async def undeploy(self, artifact: Artifact) -> None:
        """End the idle instances of an artifact that is about to be deleted."""
        self.recorder.forget(artifact)
        await self.deployments.undeploy(artifact)

    async def drain(self, grace_s: float) -> None:
        """Wait for what runs, at most ``grace_s`` seconds; then cancel it and wait for its end.

        What is on disk and can as well go on when the node is started again is not cancelled but
        postponed: what waits, at once; what may run twice, after the grace.
        """
        self._postpone_records()
        with trio.move_on_after(grace_s):
            for task in list(self._tasks.unfinished()):
                await task.wait_final()
        left = list(self._tasks.unfinished())
        if left:
            self._log.warning("ending %d tasks after a grace of %g s", len(left), grace_s)
        for task in left:
            if task.scope is not None and self._may_postpone(task):
                task.postponing = True
                task.scope.cancel()
            else:
                task.cancel("the node is shutting down")
        for task in left:
            await task.wait_final()

    def _postpone_records(self) -> None:
        count = 0
        for task in list(self._tasks.unfinished()):
            if task.is_record and self._may_postpone(task):
                self._deadlines.discard()
                task.withdraw = None
                self._postpone(task)
                count += 1
        if count:
            self._log.info("%d tasks wait on disk until the node is started again", count)

    def _may_postpone(self, task: Task) -> bool:
        """Whether nobody waits for the task who ends with this node, and it can run again."""
        if task.record is None or task.record.attached or task.cancel_reason is not None:
            return False
        if task.parent_task_id and not task.detached:
            return False
        return task.state is not TaskState.RUNNING or task.artifact.idempotent

    def _postpone(self, task: Task) -> None:
        """Nothing of a task runs any more: it goes on when the node is started again."""
        assert task.record is not None
        task.record.postponed()
        task.log.close(final=False)
        self.slots.done(task.turn)
        self._artifacts.unuse(task.artifact)
        task.postpone()

    async def watch_deadlines(self) -> None:
        """Expire tasks that wait as records, for ever."""
        await self._deadlines.watch()


@asynccontextmanager
async def open_executor(
    runtimes: RuntimeSource,
    artifacts: ArtifactStore,
    tasks: TaskTable,
    config: SpearletConfig,
    *,
    node_id: str,
    log: Logger,
    secrets: Secrets | None = None,
    objects: TaskObjects | None = None,
) -> AsyncIterator[Executor]:
    """An executor; leaving the block ends whatever still runs."""
    async with open_background() as background:
        executor = Executor(
            runtimes,
            artifacts,
            tasks,
            config,
            node_id=node_id,
            background=background,
            log=log,
            secrets=secrets,
            objects=objects,
        )
        background.start_soon(executor.watch_deadlines)
        yield executor
        await executor.deployments.close()
