"""Runs tasks: a slot, an instance, one execution, a final state."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
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
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
    SpearletConfig,
    TaskResult,
    TaskState,
)
from spear_core.errors import ResourceExhaustedError, SpearError
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import Background, open_background
from spear_core.node._failures import as_spear_error
from spear_core.node._metrics import ExecutionRecorder
from spear_core.node._pool import InstancePool, PooledInstance, describe_instance
from spear_core.node._secrets import Secrets
from spear_core.node._slots import Slot, Slots
from spear_core.node._tasks import Task, TaskTable
from spear_core.plugins import Owned

__all__ = ["Executor", "RuntimeSource", "open_executor"]


class RuntimeSource(Protocol):
    """Where the executor gets runtimes."""

    async def runtime(self, name: str) -> Runtime:
        """The open runtime of this name. :raises RuntimeFault: it cannot be had."""

    def declared_runtime(self, name: str) -> Owned[RuntimeSpec[Any]]:
        """Its declaration. :raises RuntimeNotFoundError: no plugin has it."""


@attrs.define(eq=False)
class _Deployment:
    """An artifact that runs here: its runtime, ready, and its instances."""

    artifact: Artifact
    runtime: Runtime
    pool: InstancePool


@attrs.define(eq=False)
class _HeldSlot:
    """The slot of a task that runs, and for how many calls of others it waits."""

    slot: Slot
    pauses: int = 0


_Key = tuple[str, int]


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
        self.slots = Slots(
            limit=config.execution.max_concurrent_tasks,
            max_queued=config.execution.max_queued_tasks,
        )
        self.recorder = ExecutionRecorder(histograms=config.execution.enable_metrics)
        self._deployments: dict[_Key, _Deployment] = {}
        self._preparing: dict[_Key, trio.Lock] = {}
        self._warm: frozenset[_Key] = frozenset()
        self._single_use: dict[str, PooledInstance] = {}
        self._held: dict[str, _HeldSlot] = {}
        self._numbers = itertools.count(1)

    def admit(self, artifact: Artifact) -> None:
        """Reserve a place for one task of this artifact, to be followed by :meth:`run`.

        :raises ResourceExhaustedError: the queue is full.
        """
        try:
            self.slots.admit(typical_s=self.recorder.average_s)
        except ResourceExhaustedError:
            self.recorder.rejected()
            raise
        self._artifacts.use(artifact)
        self.recorder.admitted(artifact)

    def estimate_s(self, artifact: Artifact, default: float) -> float:
        """Seconds that an execution of this artifact has taken on average."""
        average = self.recorder.average_of(artifact)
        return default if average is None else average

    def start(self, task: Task) -> None:
        """Run an admitted task in the background."""
        self._background.start_soon(self.run, task)

    async def run(self, task: Task) -> None:
        """Run an admitted task to its final state.

        **Cancellation**: the task ends as cancelled, and nothing of it runs.
        """
        slot = Slot(self.slots)
        self._held[task.id] = _HeldSlot(slot)
        try:
            with task.scope:
                try:
                    await slot.take()
                    await self._execute(task, slot)
                finally:
                    slot.leave()
        except Exception as error:  # barrier: one task
            self._finish_with_error(task, as_spear_error(error, f"task {task.id}", self._log))
        finally:
            del self._held[task.id]
            if not task.state.is_final:
                self._finish_stopped(task)
            self.slots.leave()
            self._artifacts.unuse(task.artifact)
            self._count(task)
            self._tasks.retire(task)

    @asynccontextmanager
    async def paused(self, task: Task) -> AsyncIterator[None]:
        """Leave the task's slot to others while the block lasts: it waits for another task.

        Several such waits of one task may overlap; the last to end takes the slot again, so a task
        that only waits can't keep those it waits for from running. **Cancellation**: no slot is
        taken.
        """
        held = self._held.get(task.id)
        if held is None:  # it ends just now
            yield
            return
        held.pauses += 1
        held.slot.leave()
        try:
            yield
        finally:
            held.pauses -= 1
            if not held.pauses:
                await held.slot.take()

    def _count(self, task: Task) -> None:
        result = task.result
        self.recorder.ended(
            task.artifact,
            task.state,
            execution_s=task.execution_s,
            usage=result.usage if result else None,
            error_code=result.error.code if result and result.error else "",
        )

    def _finish_with_error(self, task: Task, error: SpearError) -> None:
        if task.state.is_final:
            self._log.warning("after task %s had ended: %s", task.id, error)
            return
        info = ErrorInfo(code=error.code, message=error.message, kind=type(error).__name__)
        info = self._secrets.strike_error(task.artifact, info)
        task.finish(TaskState.FAILED, TaskResult(error=info, node_id=self._node_id))

    def _finish_stopped(self, task: Task) -> None:
        """The task's scope or its caller's was cancelled: on request, or by the deadline.

        What an outer cancellation raises may be a group, out of an instance's nursery; so it is the
        task's own scope that tells the two apart.
        """
        if task.cancel_reason is None and not task.scope.cancelled_caught:
            task.cancel_reason = "its caller went away"
        if task.cancel_reason is not None:
            info = ErrorInfo(
                code="cancelled", message=f"the task was cancelled: {task.cancel_reason}"
            )
            state = TaskState.CANCELLED
        else:
            where = "running" if task.state is TaskState.RUNNING else "waiting for its turn"
            info = ErrorInfo(
                code="deadline_exceeded",
                message=f"the task's deadline passed while it was {where}",
            )
            state = TaskState.TIMEOUT
        task.finish(state, TaskResult(error=info, node_id=self._node_id))

    async def _execute(self, task: Task, slot: Slot) -> None:
        """Run one execution."""
        artifact = task.artifact
        deployment = self._deployments.get((artifact.name, artifact.version))
        if deployment is None:
            deployment = await self.deployment(artifact)
        if artifact.reuse:
            pooled = await self._borrow(deployment.pool, slot)
            with self._lent(deployment.pool, pooled):
                await self._execute_on(task, pooled.running, cold=pooled.executions == 1)
            return
        spec = self._secrets.instance_spec(self._new_id(artifact.runtime), artifact)
        async with deployment.runtime.open_instance(spec) as instance:
            with self._single(spec, instance):
                await self._execute_on(task, instance, cold=True)

    async def _borrow(self, pool: InstancePool, slot: Slot) -> PooledInstance:
        """An instance; who waits for one keeps no slot from tasks that could run."""
        if (idle := pool.take_idle()) is not None:
            return idle
        slot.leave()
        pooled = await pool.acquire()
        try:
            await slot.take()
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
        self.recorder.started(task.artifact, queue_s=started - task.waiting_since, cold=cold)
        try:
            response = await task.execute(
                instance,
                ExecutionRequest(
                    execution_id=task.execution_id,
                    task_id=task.id,
                    entry=task.entry,
                    payload=task.payload,
                    content_type=task.content_type,
                    deadline_s=task.scope.deadline - trio.current_time(),
                    trace=task.trace,
                    context=task.context,
                ),
            )
        finally:
            elapsed = task.execution_s = time.perf_counter() - started
        self._finish(task, response, instance.id.instance_id, elapsed)

    def _finish(
        self, task: Task, response: ExecutionResponse, instance_id: str, elapsed: float
    ) -> None:
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
            instance_id=instance_id,
            node_id=self._node_id,
            usage=response.usage,
        )
        task.finish(TaskState.COMPLETED if completed else TaskState.FAILED, result)

    async def deployment(self, artifact: Artifact) -> _Deployment:
        """Get an artifact ready to run: once per life of the node.

        :raises ArtifactError: its code is corrupt or refused. :raises RuntimeFault: no runtime.
        """
        key = (artifact.name, artifact.version)
        async with self._preparing.setdefault(key, trio.Lock()):
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
        yield executor
        await executor.close_pools()
