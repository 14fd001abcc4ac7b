"""The reusable instances of one artifact.

An instance's life is one background task, its keeper, which owns ``open_instance`` from beginning
to end. The rest of the pool only decides who uses which instance and when one must go.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from logging import Logger

import attrs
import outcome
import trio

from spear_core.api import (
    Artifact,
    Instance,
    InstanceInfo,
    InstanceSpec,
    InstanceState,
    PoolConfig,
    Runtime,
    RuntimeInstanceId,
)
from spear_core.errors import InstanceError, InstanceStartError, SpearError
from spear_core.node._background import Background
from spear_core.node._failures import as_spear_error
from spear_core.node._secrets import SpecMaker, without_secrets

__all__ = ["InstancePool", "PooledInstance", "describe_instance"]

_HEALTH_CHECK_S = 5.0
"""How long an idle instance may take to say that it is well."""


@attrs.define(eq=False)
class PooledInstance:
    """An instance and what the pool knows about it."""

    spec: InstanceSpec
    created_at: float = attrs.field(factory=time.time)
    state: InstanceState = InstanceState.CREATING
    executions: int = 0
    idle_since: float = 0.0
    """On trio's clock."""
    instance: Instance | None = None
    starting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """What it starts in; of no effect from ``READY`` on."""
    retired: trio.Event = attrs.field(factory=trio.Event)
    reason: str = ""

    def retire(self, reason: str, state: InstanceState = InstanceState.TERMINATING) -> None:
        """Tell the keeper to end it; the first reason counts."""
        if not self.retired.is_set():
            self.reason = reason
            self.state = state
            self.retired.set()
            if self.instance is None:
                self.starting.cancel()

    @property
    def running(self) -> Instance:
        """The live instance; there is one from ``READY`` on."""
        assert self.instance is not None
        return self.instance


def describe_instance(pooled: PooledInstance) -> InstanceInfo:
    """An instance, as listings show it."""
    statistics = pooled.instance.statistics() if pooled.instance else None
    return InstanceInfo(
        instance_id=pooled.spec.id.instance_id,
        runtime=pooled.spec.id.runtime_type,
        artifact=pooled.spec.artifact.ref,
        state=pooled.state,
        created_at=pooled.created_at,
        executions=pooled.executions,
        pid=statistics.pid if statistics else None,
        cpu_seconds=statistics.cpu_seconds if statistics else None,
        memory_bytes=statistics.memory_bytes if statistics else None,
    )


class InstancePool:
    """Lends instances of one artifact; makes, checks and retires them."""

    def __init__(
        self,
        artifact: Artifact,
        runtime: Runtime,
        config: PoolConfig,
        *,
        background: Background,
        new_id: Callable[[], RuntimeInstanceId],
        log: Logger,
        make_spec: SpecMaker = without_secrets,
    ) -> None:
        self._artifact = artifact
        self._runtime = runtime
        self._config = config
        self._background = background
        self._new_id = new_id
        self._log = log
        self._make_spec = make_spec
        self.live: dict[str, PooledInstance] = {}
        self._idle: list[PooledInstance] = []
        self._waiting: OrderedDict[trio.lowlevel.Task, None] = OrderedDict()
        self._creating = 0
        self._closed = False
        self._empty: trio.Event | None = None

    def take_idle(self) -> PooledInstance | None:
        """An idle instance, if there is one."""
        return self._lend(self._idle.pop()) if self._idle else None

    async def acquire(self) -> PooledInstance:
        """An idle instance, or a new one, or the next that becomes free.

        :raises InstanceStartError: a new one was needed and could not be made.
        :raises InstanceError: the pool is closed.

        **Cancellation**: none is taken.
        """
        if self._closed:
            raise InstanceError(f"{self._artifact.ref}: its pool is closed")
        if (idle := self.take_idle()) is not None:
            return idle
        task = trio.lowlevel.current_task()
        self._waiting[task] = None
        self._grow()

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[task]
            return trio.lowlevel.Abort.SUCCEEDED

        pooled: PooledInstance = await trio.lowlevel.wait_task_rescheduled(abort)
        return pooled

    def release(self, pooled: PooledInstance, *, broken: str | None = None) -> None:
        """Give an instance back. :param broken: why it must not be used again, if so."""
        if broken is not None:
            pooled.retire(broken, InstanceState.FAILED)
        most = self._config.max_executions_per_instance
        if most and pooled.executions >= most:
            pooled.retire(f"it has served {pooled.executions} executions")
        if self._closed:
            pooled.retire("the pool is closing")
        if not pooled.retired.is_set():
            self._offer(pooled)

    def close(self, reason: str) -> None:
        """Retire everything; an instance that is lent out goes when it comes back."""
        self._closed = True
        for pooled in list(self.live.values()):
            if pooled.state is not InstanceState.RUNNING:
                pooled.retire(reason)
        self._idle.clear()
        while self._waiting:
            self._fail_next(InstanceError(f"{self._artifact.ref}: {reason}"))

    async def wait_empty(self) -> None:
        """Wait until no instance is left; of use after :meth:`close`."""
        if self.live:
            self._empty = trio.Event()
            await self._empty.wait()

    def _lend(self, pooled: PooledInstance) -> PooledInstance:
        pooled.state = InstanceState.RUNNING
        pooled.executions += 1
        return pooled

    def _offer(self, pooled: PooledInstance) -> None:
        if self._waiting:
            task, _ = self._waiting.popitem(last=False)
            trio.lowlevel.reschedule(task, outcome.Value(self._lend(pooled)))
            return
        pooled.state = InstanceState.READY
        pooled.idle_since = trio.current_time()
        self._idle.append(pooled)

    def _fail_next(self, error: SpearError) -> None:
        if self._waiting:
            task, _ = self._waiting.popitem(last=False)
            trio.lowlevel.reschedule(task, outcome.Error(error))

    def _grow(self) -> None:
        """Start as many keepers as there are tasks that wait, within ``max_instances``."""
        while (
            not self._closed
            and self._creating < len(self._waiting)
            and len(self.live) < self._config.max_instances
        ):
            pooled = PooledInstance(InstanceSpec(id=self._new_id(), artifact=self._artifact))
            self.live[pooled.spec.id.instance_id] = pooled
            self._creating += 1
            self._background.start_soon(self._keep, pooled)

    async def _keep(self, pooled: PooledInstance) -> None:
        """An instance's whole life."""
        error: SpearError | None = None
        limit = self._config.start_timeout_ms / 1000
        try:
            pooled.starting.deadline = trio.current_time() + limit
            with pooled.starting:
                spec = self._make_spec(pooled.spec.id, self._artifact)
                async with self._runtime.open_instance(spec) as instance:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    pooled.starting.deadline = math.inf
                    self._started(pooled, instance)
                    try:
                        await self._watch(pooled, instance)
                    finally:
                        self._withdraw(pooled)
            if pooled.starting.cancelled_caught and not pooled.retired.is_set():
                error = InstanceStartError(
                    f"an instance of {self._artifact.ref} did not start within {limit:g} s "
                    "(pool.start_timeout_ms)"
                )
        except Exception as raised:  # barrier: one instance
            error = as_spear_error(raised, f"instance {pooled.spec.id}", self._log)
        finally:
            self._ended(pooled, error)

    def _started(self, pooled: PooledInstance, instance: Instance) -> None:
        self._creating -= 1
        pooled.instance = instance
        if not pooled.retired.is_set():
            self._offer(pooled)

    def _ended(self, pooled: PooledInstance, error: SpearError | None) -> None:
        del self.live[pooled.spec.id.instance_id]
        if pooled.instance is None:
            self._creating -= 1
            self._fail_next(
                error or InstanceStartError(f"{self._artifact.ref}: {pooled.reason or 'stopped'}")
            )
        elif error is not None:
            self._log.warning("instance %s ended badly: %s", pooled.spec.id, error)
        pooled.retire("ended")
        pooled.state = InstanceState.TERMINATED
        self._grow()
        if not self.live and self._empty is not None:
            self._empty.set()

    async def _watch(self, pooled: PooledInstance, instance: Instance) -> None:
        """Return when the instance must end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_failure, pooled, instance)
            while not pooled.retired.is_set():
                with trio.move_on_after(self._next_look(pooled)) as look:
                    await pooled.retired.wait()
                if look.cancelled_caught:
                    await self._look(pooled, instance)
            nursery.cancel_scope.cancel()
        self._log.info("instance %s is retired: %s", pooled.spec.id, pooled.reason)

    def _withdraw(self, pooled: PooledInstance) -> None:
        """Lend it no more; its end may take a while."""
        pooled.retire("ended")
        with contextlib.suppress(ValueError):
            self._idle.remove(pooled)

    async def _watch_failure(self, pooled: PooledInstance, instance: Instance) -> None:
        pooled.retire(await instance.wait_failed(), InstanceState.FAILED)
        self._withdraw(pooled)

    def _next_look(self, pooled: PooledInstance) -> float:
        """Seconds until the instance should be checked again."""
        interval = self._config.health_check_interval_ms / 1000
        if pooled.state is not InstanceState.READY:
            return interval
        left = pooled.idle_since + self._config.idle_timeout_ms / 1000 - trio.current_time()
        return max(0.0, min(interval, left))

    async def _look(self, pooled: PooledInstance, instance: Instance) -> None:
        """Retire an instance that was idle for too long or is unwell; leave busy ones alone."""
        if pooled.state is not InstanceState.READY or pooled not in self._idle:
            return
        self._idle.remove(pooled)
        if trio.current_time() - pooled.idle_since >= self._config.idle_timeout_ms / 1000:
            pooled.retire("it was idle (pool.idle_timeout_ms)")
            return
        idle_since = pooled.idle_since
        try:
            with trio.fail_after(_HEALTH_CHECK_S):
                await instance.check_health()
        except trio.TooSlowError:
            pooled.retire("its health check did not answer", InstanceState.FAILED)
        except SpearError as error:
            pooled.retire(f"its health check failed: {error}", InstanceState.FAILED)
        if not pooled.retired.is_set():
            self._offer(pooled)
            pooled.idle_since = idle_since
