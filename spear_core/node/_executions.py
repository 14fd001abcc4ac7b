"""One execution: an instance, the guest's answer, and what it tells of the artifact's health."""

from __future__ import annotations

import time
from logging import Logger

import trio

from spear_core.api import Artifact, ExecutionRequest, Instance, SpearletConfig, TaskState
from spear_core.errors import ChannelError, InstanceError, SpearError
from spear_core.node._circuits import Circuits
from spear_core.node._deployments import Deployments
from spear_core.node._failures import as_spear_error
from spear_core.node._metrics import ExecutionRecorder
from spear_core.node._pool import InstancePool, PooledInstance
from spear_core.node._results import Results
from spear_core.node._runtime_health import RuntimeHealth
from spear_core.node._secrets import Secrets
from spear_core.node._slots import Slots
from spear_core.node._task import Task
from spear_core.node._task_objects import TaskObjects

__all__ = ["Executions"]


class Executions:
    """Executes tasks that hold their slot.

    :param objects: where large outputs go; ``None``: the node has no objects.
    """

    def __init__(
        self,
        deployments: Deployments,
        slots: Slots,
        results: Results,
        recorder: ExecutionRecorder,
        config: SpearletConfig,
        *,
        health: RuntimeHealth,
        secrets: Secrets,
        objects: TaskObjects | None,
        log: Logger,
    ) -> None:
        self._deployments = deployments
        self._slots = slots
        self._results = results
        self._recorder = recorder
        self._health = health
        self._secrets = secrets
        self._objects = objects
        self._log = log
        clock = trio.lowlevel.current_clock().current_time
        self._circuits = Circuits(config.execution, clock=clock)

    def check(self, artifact: Artifact) -> None:
        """Refuse an artifact that would not be executed at present.

        :raises CircuitOpenError: its instances keep breaking.
        :raises RuntimeUnavailableError: its runtime is unwell.
        """
        self._circuits.check(artifact)
        self._health.check(artifact.runtime)

    def reconfigure(self, config: SpearletConfig) -> None:
        """Take new limits."""
        self._circuits.reconfigure(config.execution)

    async def execute(self, task: Task) -> None:
        """Once, watched by the artifact's circuit. **Raises** why nothing came of it."""
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
        deployment = await self._deployments.get(artifact)
        if artifact.reuse:
            await self._execute_on_lent(task, deployment.pool)
            return
        spec = self._deployments.single_use(artifact)
        async with deployment.runtime.open_instance(spec) as instance:
            self._deployments.show(spec, instance)
            try:
                await self._execute_on(task, instance, cold=True)
            finally:
                self._deployments.hide(spec)

    async def _execute_on_lent(self, task: Task, pool: InstancePool) -> None:
        """On an instance of the pool, given back as broken if the execution did not end by
        itself."""
        pooled = await self._borrow(pool, task)
        try:
            await self._execute_on(task, pooled.running, cold=pooled.cold)
        except SpearError as error:
            pool.release(pooled, broken=str(error))
            raise
        except BaseException as error:
            why = f"its execution ended by {type(error).__name__}"
            pool.release(pooled, broken=why, cancelled=not isinstance(error, Exception))
            raise
        pool.release(pooled)

    async def _borrow(self, pool: InstancePool, task: Task) -> PooledInstance:
        """An instance; who waits for one keeps no slot from tasks that could run."""
        if (idle := pool.take_idle()) is not None:
            return idle
        self._slots.leave(task.turn)
        pooled = await pool.acquire()
        try:
            await self._slots.hold_again(task)
        except trio.Cancelled:
            pool.release(pooled)
            raise
        return pooled

    async def _execute_on(self, task: Task, instance: Instance, *, cold: bool) -> None:
        if task.record is not None:
            await task.record.begin()
        task.move(TaskState.RUNNING)
        started = time.perf_counter()
        task.queue_s = max(0.0, started - task.waiting_since)
        task.cold = cold
        task.instance_id = instance.id.instance_id
        self._recorder.started(task.artifact, queue_s=task.queue_s, cold=cold)
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
        kept = None
        if (
            self._objects is not None
            and len(response.payload) > self._objects.most_inline
            and len(response.payload) <= self._results.most_output(task)
        ):
            await trio.lowlevel.checkpoint()  # see run_in_scope: a store may enter a scope
            kept = await self._objects.keep_output(task, response)
        self._results.finish(task, response, elapsed, kept)
