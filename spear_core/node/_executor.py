"""Runs tasks: a slot, an instance, an execution, perhaps another one, a final state.

A task that its caller waits for runs in the caller's own trio task from end to end. Any other one
is a mere record until it has its slot (:meth:`Executor.start`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from logging import Logger
from typing import Any, Protocol

import attrs
import trio

from spear_core.api import (
    Artifact,
    Capability,
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    Instance,
    InstanceInfo,
    InstanceSpec,
    InstanceState,
    InvokeRequest,
    Resources,
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
    SpearletConfig,
    TaskResult,
    TaskState,
)
from spear_core.errors import (
    ChannelError,
    CircuitOpenError,
    InstanceError,
    ResourceExhaustedError,
    RuntimeUnavailableError,
    SpearError,
)
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import Background, open_background
from spear_core.node._capacity import Capacity, node_capacity
from spear_core.node._circuits import Circuits
from spear_core.node._deadlines import Deadlines
from spear_core.node._failures import as_spear_error
from spear_core.node._log_context import working_on
from spear_core.node._metrics import ExecutionRecorder
from spear_core.node._pool import InstancePool, PooledInstance, describe_instance
from spear_core.node._retries import backoff_s, is_retried
from spear_core.node._run_queue import RunQueue
from spear_core.node._runtime_health import RuntimeHealth
from spear_core.node._secrets import Secrets
from spear_core.node._tasks import Task, TaskTable
from spear_core.node._turns import Turn
from spear_core.plugins import Owned

__all__ = ["Executor", "RuntimeSource", "open_executor"]


class RuntimeSource(Protocol):
    """Where the executor gets runtimes."""

    async def runtime(self, name: str) -> Runtime:
        """The open runtime of this name. :raises RuntimeFault: it cannot be had."""

    def current_runtime(self, name: str) -> Runtime | None:
        """The runtime of this name, if it is open."""

    def declared_runtime(self, name: str) -> Owned[RuntimeSpec[Any]]:
        """Its declaration. :raises RuntimeNotFoundError: no plugin has it."""


@attrs.define(eq=False)
class _Deployment:
    """An artifact that runs here: its runtime, ready, and its instances."""

    artifact: Artifact
    runtime: Runtime
    pool: InstancePool


_Key = tuple[str, int]
_WHERE = {
    TaskState.RUNNING: "running",
    TaskState.RETRYING: "waiting for another attempt",
}


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
    ) -> None:
        self._runtimes = runtimes
        self._artifacts = artifacts
        self._tasks = tasks
        self._config = config
        self._node_id = node_id
        self._background = background
        self._log = log
        self._secrets = secrets or Secrets({}, warn=log.warning)
        self.slots = RunQueue(
            config.execution,
            node_capacity(config.execution),
            instances_of=self._most_executions,
            clock=trio.current_time,
        )
        self._circuits = Circuits(config.execution, clock=trio.current_time)
        self._health = RuntimeHealth(
            runtimes.current_runtime, background, clock=trio.current_time, log=log
        )
        self._deadlines = Deadlines(self._expire)
        self.recorder = ExecutionRecorder(histograms=config.execution.enable_metrics)
        self._deployments: dict[_Key, _Deployment] = {}
        self._preparing: dict[_Key, trio.Lock] = {}
        self._warm: frozenset[_Key] = frozenset()
        self._single_use: dict[str, PooledInstance] = {}
        self._numbers = itertools.count(1)

    def accept(
        self, artifact: Artifact, request: InvokeRequest, *, entry: str, deadline: float
    ) -> Task:
        """Make a task and reserve its place, to be followed by :meth:`start` or :meth:`run`.

        :raises ResourceExhaustedError: a queue or a quota is full, or it could never run.
        :raises CircuitOpenError: the artifact's instances keep breaking.
        :raises RuntimeUnavailableError: its runtime is unwell.
        """
        try:
            self._circuits.check(artifact)
            self._health.check(artifact.runtime)
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
        if above and len(above) >= self._most_executions(artifact):
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

    def _most_executions(self, artifact: Artifact) -> float:
        """How many executions of an artifact could have an instance at once."""
        if not artifact.reuse:
            return math.inf
        spec = self._runtimes.declared_runtime(artifact.runtime).spec
        each = artifact.concurrency if Capability.CONCURRENCY in spec.capabilities else 1
        return (artifact.pool.max_instances or self._config.pool.max_instances) * each

    def estimate_s(self, artifact: Artifact, default: float) -> float:
        """Seconds that an execution of this artifact has taken on average."""
        average = self.recorder.average_of(artifact)
        return default if average is None else average

    def start(self, task: Task) -> None:
        """Run an accepted task in the background, when its turn comes."""
        if self.slots.take(task.turn):
            self._begin(task)
        else:
            task.turn.wake, task.turn.waker = self._begin_waiting, task
            task.withdraw = self._withdraw
            self._deadlines.add(task)

    def _begin(self, task: Task) -> None:
        task.enter_scope()
        self._background.start_soon(self._run, task)

    def _begin_waiting(self, task: Task) -> None:
        self._deadlines.discard()
        self._begin(task)

    def _withdraw(self, task: Task) -> None:
        """A task that waits as a record was cancelled, or its deadline has passed."""
        self._deadlines.discard()
        task.withdraw = None
        self._finish_stopped(task)
        self._end(task)

    def _expire(self, task: Task) -> None:
        self._withdraw(task)

    async def run(self, task: Task) -> None:
        """Run an accepted task to its final state.

        **Cancellation**: the task ends as cancelled, and nothing of it runs.
        """
        task.enter_scope()
        await self._run(task)

    async def _run(self, task: Task) -> None:
        scope = task.scope
        assert scope is not None
        token = working_on.set(task)
        try:
            with scope:
                await self._attempts(task)
        finally:
            if not task.state.is_final:
                if task.cancel_reason is None and not scope.cancelled_caught:
                    task.cancel_reason = "its caller went away"
                self._finish_stopped(task)
            self._end(task)
            working_on.reset(token)

    async def _attempts(self, task: Task) -> None:
        """Execute until an answer comes, an error is final or the attempts are used up."""
        while True:
            try:
                await self._take(task)
                await self._execute(task)
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
                info = self._error_info(task, error)
                task.finish(TaskState.FAILED, self._result(task, error=info))
                return
            self._prepare_retry(task, error, wait_s)
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
        info = self._error_info(task, error)
        task.log.append(
            task.execution_id,
            f"attempt {task.attempt} failed: {info.message}; the next follows in {wait_s:.2g} s",
            level="warn",
            source="node",
        )
        self.recorder.ended(
            task.artifact,
            TaskState.RETRYING,
            execution_s=task.execution_s,
            error_code=info.code,
            retried=True,
        )
        self._tasks.next_attempt(task, info)
        task.waiting_since = time.perf_counter() + wait_s

    def _end(self, task: Task) -> None:
        """Everything that a final task gives back."""
        self.slots.done(task.turn)
        self._artifacts.unuse(task.artifact)
        self._count(task)
        self._tasks.retire(task)

    async def _take(self, task: Task) -> None:
        """Wait for a slot, unless the task has one. **Cancellation**: none is taken."""
        turn = task.turn
        if not self.slots.holds(turn) and not self.slots.take(turn):
            await self._wait(turn, self.slots.release)

    async def _take_again(self, task: Task) -> None:
        if not self.slots.come_back(task.turn):
            await self._wait(task.turn, self.slots.give_up)

    async def _wait(self, turn: Turn, leave: Callable[[Turn], None]) -> None:
        turn.wake, turn.waker = trio.lowlevel.reschedule, trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            leave(turn)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @asynccontextmanager
    async def paused(self, task: Task) -> AsyncIterator[None]:
        """Leave the task's slot to others while the block lasts: it waits for another task.

        Several such waits of one task may overlap; the last to end takes the slot again, so a task
        that only waits can't keep those it waits for from running. **Cancellation**: no slot is
        taken.
        """
        if task.state.is_final:  # it ends just now
            yield
            return
        task.pauses += 1
        if self.slots.holds(task.turn):
            self.slots.leave(task.turn)
        try:
            yield
        finally:
            task.pauses -= 1
            if not task.pauses:
                await self._resume(task)

    async def _resume(self, task: Task) -> None:
        """Have the slot again, whichever of several calls of one task takes it."""
        while not task.state.is_final and not self.slots.holds(task.turn):
            if task.resumed is not None:
                await task.resumed.wait()
                continue
            resumed = task.resumed = trio.Event()
            try:
                await self._take_again(task)
            finally:
                task.resumed = None
                resumed.set()

    def _count(self, task: Task) -> None:
        result = task.result
        self.recorder.ended(
            task.artifact,
            task.state,
            execution_s=task.execution_s,
            usage=result.usage if result else None,
            error_code=result.error.code if result and result.error else "",
        )

    def _error_info(self, task: Task, error: SpearError) -> ErrorInfo:
        info = ErrorInfo(code=error.code, message=error.message, kind=type(error).__name__)
        return self._secrets.strike_error(task.artifact, info)

    def _result(self, task: Task, *, error: ErrorInfo) -> TaskResult:
        """The result of a task whose guest gave no answer."""
        return TaskResult(
            error=error,
            node_id=self._node_id,
            execution_time_ms=(task.execution_s or 0.0) * 1000,
            queue_time_ms=task.queue_s * 1000,
            cold=task.cold,
            instance_id=task.instance_id,
            attempt=task.attempt,
        )

    def _finish_stopped(self, task: Task) -> None:
        """The task's scope or its caller's was cancelled: on request, or by the deadline."""
        if task.cancel_reason is not None:
            info = ErrorInfo(
                code="cancelled", message=f"the task was cancelled: {task.cancel_reason}"
            )
            state = TaskState.CANCELLED
        else:
            where = _WHERE.get(task.state, "waiting for its turn")
            info = ErrorInfo(
                code="deadline_exceeded",
                message=f"the task's deadline passed while it was {where}",
            )
            state = TaskState.TIMEOUT
        task.finish(state, self._result(task, error=info))

    async def _execute(self, task: Task) -> None:
        """One execution, watched by the artifact's circuit."""
        artifact = task.artifact
        self._health.check(artifact.runtime)
        self._circuits.enter(artifact)
        try:
            await self._execute_somewhere(task)
        except Exception as raised:
            error = as_spear_error(raised, f"task {task.id}", self._log)
            self._secrets.strike_exception(artifact, error)
            if self._circuits.failed(artifact, error):
                self._log.warning("%s keeps breaking, its circuit is open: %s", artifact.ref, error)
            if isinstance(error, InstanceError | ChannelError):
                self._health.suspect(artifact.runtime)
            raise error from raised
        except BaseException:
            self._circuits.left(artifact)
            raise
        self._circuits.succeeded(artifact)

    async def _execute_somewhere(self, task: Task) -> None:
        artifact = task.artifact
        deployment = self._deployments.get((artifact.name, artifact.version))
        if deployment is None or not self._is_current(deployment):
            deployment = await self.deployment(artifact)
        if artifact.reuse:
            pooled = await self._borrow(deployment.pool, task)
            with self._lent(deployment.pool, pooled):
                await self._execute_on(task, pooled.running, cold=pooled.cold)
            return
        spec = self._secrets.instance_spec(self._new_id(artifact.runtime), artifact)
        async with deployment.runtime.open_instance(spec) as instance:
            with self._single(spec, instance):
                await self._execute_on(task, instance, cold=True)

    def _is_current(self, deployment: _Deployment) -> bool:
        """Whether its runtime still is the one that is open: a broken one is opened anew."""
        name = deployment.artifact.runtime
        return self._runtimes.current_runtime(name) is deployment.runtime

    async def _borrow(self, pool: InstancePool, task: Task) -> PooledInstance:
        """An instance; who waits for one keeps no slot from tasks that could run."""
        if (idle := pool.take_idle()) is not None:
            return idle
        self.slots.leave(task.turn)
        pooled = await pool.acquire()
        try:
            await self._take_again(task)
        except trio.Cancelled:
            pool.release(pooled)
            raise
        return pooled

    @contextmanager
    def _lent(self, pool: InstancePool, pooled: PooledInstance) -> Iterator[None]:
        """Give the instance back at the end; as broken, if the execution did not end by itself."""
        try:
            yield
        except SpearError as error:
            pool.release(pooled, broken=str(error))
            raise
        except BaseException as error:
            pool.release(pooled, broken=f"its execution ended by {type(error).__name__}")
            raise
        pool.release(pooled)

    @contextmanager
    def _single(self, spec: InstanceSpec, instance: Instance) -> Iterator[None]:
        """Show an instance that serves this execution only in listings."""
        key = spec.id.instance_id
        self._single_use[key] = PooledInstance(
            spec, instance=instance, state=InstanceState.RUNNING, executions=1, outstanding=1
        )
        try:
            yield
        finally:
            del self._single_use[key]

    async def _execute_on(self, task: Task, instance: Instance, *, cold: bool) -> None:
        task.move(TaskState.RUNNING)
        started = time.perf_counter()
        task.queue_s = max(0.0, started - task.waiting_since)
        task.cold = cold
        task.instance_id = instance.id.instance_id
        self.recorder.started(task.artifact, queue_s=task.queue_s, cold=cold)
        try:
            response = await task.execute(
                instance,
                ExecutionRequest(
                    execution_id=task.execution_id,
                    task_id=task.id,
                    attempt=task.attempt,
                    entry=task.entry,
                    payload=task.payload,
                    content_type=task.content_type,
                    deadline_s=task.deadline - trio.current_time(),
                    trace=task.trace,
                    context=task.context,
                ),
            )
        finally:
            elapsed = task.execution_s = time.perf_counter() - started
        self._finish(task, response, elapsed)

    def _finish(self, task: Task, response: ExecutionResponse, elapsed: float) -> None:
        output, error = response.payload, response.error
        most = task.artifact.limits.output_bytes or self._config.execution.max_output_bytes
        if len(output) > most:
            error = ErrorInfo(
                code="resource_exhausted",
                message=f"the output has {len(output)} bytes; {most} are allowed "
                "(the artifact's output limit, else execution.max_output_bytes)",
            )
            output = b""
        if error is not None:
            error = self._secrets.strike_error(task.artifact, error)
        completed = response.status is ExecutionStatus.COMPLETED and error is None
        result = TaskResult(
            output=output,
            content_type=response.content_type,
            error=error,
            execution_time_ms=elapsed * 1000,
            queue_time_ms=task.queue_s * 1000,
            cold=task.cold,
            instance_id=task.instance_id,
            node_id=self._node_id,
            attempt=task.attempt,
            usage=response.usage,
        )
        task.finish(TaskState.COMPLETED if completed else TaskState.FAILED, result)

    async def deployment(self, artifact: Artifact) -> _Deployment:
        """Get an artifact ready to run: once in the life of its runtime.

        :raises ArtifactError: its code is corrupt or refused. :raises RuntimeFault: no runtime.
        """
        key = (artifact.name, artifact.version)
        async with self._preparing.setdefault(key, trio.Lock()):
            stale = self._deployments.get(key)
            if stale is not None and not self._is_current(stale):
                del self._deployments[key]
                stale.pool.close("its runtime broke")
            if key not in self._deployments:
                runtime = await self._runtimes.runtime(artifact.runtime)
                await self._artifacts.verify(artifact)
                await runtime.prepare(artifact)
                pool = self._new_pool(artifact, runtime)
                self._deployments[key] = _Deployment(artifact=artifact, runtime=runtime, pool=pool)
                pool.keep_warm(key in self._warm)
        return self._deployments[key]

    def _new_pool(self, artifact: Artifact, runtime: Runtime) -> InstancePool:
        spec = self._runtimes.declared_runtime(artifact.runtime).spec
        capable = Capability.CONCURRENCY in spec.capabilities
        return InstancePool(
            artifact,
            runtime,
            self._config.pool,
            background=self._background,
            new_id=lambda: self._new_id(artifact.runtime),
            log=self._log,
            make_spec=self._secrets.instance_spec,
            concurrency=artifact.concurrency if capable else 1,
        )

    def keep_warm(self, artifacts: Sequence[Artifact]) -> None:
        """Keep ``min_instances`` of these artifacts from now on, and of no others."""
        wanted = {(a.name, a.version): a for a in artifacts if a.reuse}
        self._warm = frozenset(wanted)
        for key, deployment in self._deployments.items():
            deployment.pool.keep_warm(key in wanted)
        for key, artifact in wanted.items():
            least = artifact.pool.min_instances
            if key not in self._deployments and (
                self._config.pool.min_instances if least is None else least
            ):
                self._background.start_soon(self._warm_up, artifact)

    async def _warm_up(self, artifact: Artifact) -> None:
        """Get an artifact ready before somebody asks for it."""
        try:
            await self.deployment(artifact)
            if (artifact.name, artifact.version) not in self._warm:  # it went meanwhile
                await self.undeploy(artifact)
        except Exception as raised:  # barrier: one artifact
            error = as_spear_error(raised, f"warming up {artifact.ref}", self._log)
            self._log.warning("%s is not kept warm: %s", artifact.ref, error)

    def reconfigure(self, config: SpearletConfig) -> None:
        """Take new limits: what runs goes on, lower ones take effect as things end."""
        self._config = config
        self.slots.reconfigure(config.execution)
        self._circuits.reconfigure(config.execution)
        for deployment in self._deployments.values():
            deployment.pool.configure(config.pool)

    async def undeploy(self, artifact: Artifact) -> None:
        """End the idle instances of an artifact that is about to be deleted."""
        key = (artifact.name, artifact.version)
        self._preparing.pop(key, None)
        self.recorder.forget(artifact)
        if deployment := self._deployments.pop(key, None):
            deployment.pool.close("its artifact is deleted")
            await deployment.pool.wait_empty()

    def instances(self) -> list[InstanceInfo]:
        """Every live instance."""
        pooled = [info for d in self._deployments.values() for info in d.pool.describe()]
        return [*pooled, *map(describe_instance, self._single_use.values())]

    def instances_of(self, name: str, version: int) -> int:
        """How many instances of this artifact live in its pool."""
        deployment = self._deployments.get((name, version))
        return len(deployment.pool.live) if deployment else 0

    def instance_count(self) -> int:
        """How many instances live."""
        return sum(len(d.pool.live) for d in self._deployments.values()) + len(self._single_use)

    async def drain(self, grace_s: float) -> None:
        """Wait for what runs, at most ``grace_s`` seconds; then cancel it and wait for its end."""
        with trio.move_on_after(grace_s):
            for task in list(self._tasks.unfinished()):
                await task.wait_final()
        left = list(self._tasks.unfinished())
        if left:
            self._log.warning("cancelling %d tasks after a grace of %g s", len(left), grace_s)
        for task in left:
            task.cancel("the node is shutting down")
        for task in left:
            await task.wait_final()

    async def watch_deadlines(self) -> None:
        """Expire tasks that wait as records, for ever."""
        await self._deadlines.watch()

    async def close_pools(self) -> None:
        """End every instance, gracefully, side by side."""
        pools = [deployment.pool for deployment in self._deployments.values()]
        for pool in pools:
            pool.close("the node is shutting down")
        for pool in pools:
            await pool.wait_empty()

    def _new_id(self, runtime: str) -> RuntimeInstanceId:
        return RuntimeInstanceId(runtime_type=runtime, instance_id=f"i-{next(self._numbers)}")


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
        )
        background.start_soon(executor.watch_deadlines)
        yield executor
        await executor.close_pools()
