"""The reusable instances of one artifact.

An instance's life is one background task, its keeper, which owns ``open_instance`` from beginning
to end. The rest of the pool only decides who uses which instance, how many there should be and
when one must go.
"""

from __future__ import annotations

import math
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
from spear_core.node._pooled_instance import PooledInstance, describe_instance
from spear_core.node._scaling import (
    Arrivals,
    Load,
    backoff_s,
    demanded,
    effective_config,
    expected,
)
from spear_core.node._secrets import SpecMaker, without_secrets
from spear_core.node._selection import POLICIES

__all__ = ["InstancePool", "PooledInstance", "describe_instance"]

_STABLE_S = 10.0
"""One that dies sooner after its start counts as an attempt that failed."""
_ROUNDING_S = 1e-3
"""When the time for a look has come, so has whatever is due within this."""
_LAST_IDLE_MS = 1_000
"""How long one stays idle in a pool that winds down: its last tasks may come one after another."""


class InstancePool:
    """Lends instances of one artifact; makes, checks and retires them.

    Who waits is served in the order of coming. While somebody waits, no instance has room.

    :param concurrency: executions that one instance takes at the same time.
    """

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
        concurrency: int = 1,
    ) -> None:
        self._artifact = artifact
        self._runtime = runtime
        self._background = background
        self._new_id = new_id
        self._log = log
        self._make_spec = make_spec
        self._concurrency = concurrency
        self._node_config = config
        self._warm = False
        self._winding_down = False
        self._take_config()
        self.live: dict[str, PooledInstance] = {}
        self._free: dict[PooledInstance, None] = {}
        """Those with room, in the order in which they last came free."""
        self._waiting: OrderedDict[trio.lowlevel.Task, None] = OrderedDict()
        self._creating = 0
        self._checking = 0
        self._undecided = 0
        """Instances that have ended while somebody had them, who has not said yet why."""
        self._lent = 0
        self._mean_s = 0.0
        self._arrivals = Arrivals()
        self._busy = self._most_busy = 0
        self._most_busy_before: float = math.inf
        self._window_began = -math.inf
        self._failures = 0
        self._hold_until = -math.inf
        self._holding: trio.CancelScope | None = None
        self._closed = False
        self._empty = trio.Event()

    # lending

    def take_idle(self) -> PooledInstance | None:
        """An instance that has room now, if there is one; it is a warm one."""
        return self._lend(self._select(self._free), cold=False) if self._free else None

    async def acquire(self) -> PooledInstance:
        """An instance that has room, or a new one, or the next that has.

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

    def release(
        self, pooled: PooledInstance, *, broken: str | None = None, cancelled: bool = False
    ) -> None:
        """Give an instance back, once for each time it was lent.

        :param broken: why it must not be used again, if so. One that has other executions, too,
            ends after the last of them, or goes on if it says that it can (:meth:`Instance.fit`).
        :param cancelled: that is so because the execution was cancelled, and no fault of its own.
        """
        pooled.given_back(trio.current_time())
        self._busy -= 1
        self._mean_s += 0.1 * (pooled.mean_s - self._mean_s)
        if broken is not None and not (self._concurrency > 1 and pooled.running.fit()):
            pooled.cancelled |= cancelled
            self._drain(pooled, broken, InstanceState.FAILED)
        elif self._closed:
            self._drain(pooled, "the pool is closing")
        elif len(self.live) > self._config.max_instances < self._alive():
            self._drain(pooled, "there are more than pool.max_instances")
        if not pooled.retired.is_set():
            if not pooled.draining:
                self._offer(pooled)
                return
            if not pooled.outstanding:
                self._retire(pooled, pooled.draining, pooled.draining_to)
        if pooled.state is InstanceState.TERMINATED and not pooled.outstanding:
            self._undecided -= 1
            self._learn(pooled)
            self._grow()
        elif self._waiting:
            self._grow()

    def _lend(self, pooled: PooledInstance, *, cold: bool) -> PooledInstance:
        self._lent += 1
        self._busy += 1
        if self._busy > self._most_busy:
            self._most_busy = self._busy
        pooled.cold = cold
        pooled.taken(trio.current_time(), number=self._lent, typical_s=self._mean_s)
        if pooled.outstanding >= self._concurrency:
            self._free.pop(pooled, None)
        most = self._config.max_executions_per_instance
        if most and pooled.executions >= most:
            self._drain(pooled, f"it has served {pooled.executions} executions")
        return pooled

    def _offer(self, pooled: PooledInstance, *, cold: bool = False) -> None:
        """It has room: for those that wait, first."""
        self._free.pop(pooled, None)
        while pooled.outstanding < self._concurrency and pooled.takes_more:
            if not self._waiting:
                self._free[pooled] = None
                if self._winding_down:
                    self._look_in_time(pooled)
                return
            task, _ = self._waiting.popitem(last=False)
            trio.lowlevel.reschedule(task, outcome.Value(self._lend(pooled, cold=cold)))

    def _fail_next(self, error: SpearError) -> None:
        task, _ = self._waiting.popitem(last=False)
        trio.lowlevel.reschedule(task, outcome.Error(error))

    # limits

    def configure(self, config: PoolConfig) -> None:
        """Take new settings of the node; what runs goes on, and too many end as they come free."""
        self._node_config = config
        self._apply()

    def keep_warm(self, warm: bool) -> None:
        """Whether to keep ``min_instances`` from now on; at first it does not."""
        if warm is not self._warm:
            self._warm = warm
            self._apply()

    def wind_down(self, reason: str) -> None:
        """Only what is queued already comes any more; an empty ``reason`` takes that back.

        Idle instances end now, the others soon after nobody needs them.
        """
        self._winding_down = bool(reason)
        if reason:
            for pooled in list(self._free):
                if not pooled.outstanding:
                    self._retire(pooled, reason)
        self._apply()

    def _take_config(self) -> None:
        warm = self._warm and not self._winding_down
        self._config = effective_config(self._node_config, self._artifact.pool, warm=warm)
        if self._winding_down:
            soon = min(self._config.idle_timeout_ms, _LAST_IDLE_MS)
            self._config = attrs.evolve(self._config, idle_timeout_ms=soon)
        self._select = POLICIES[self._config.selection]

    def _apply(self) -> None:
        self._take_config()
        for pooled in list(self._free):
            if self._alive() > self._config.max_instances and not pooled.outstanding:
                self._retire(pooled, "there are more than pool.max_instances")
        for pooled in self.live.values():
            self._look_in_time(pooled)
        self._grow()

    def _look_in_time(self, pooled: PooledInstance) -> None:
        """Have it looked at when that is due by what is so now."""
        if pooled.look is not None:
            now = trio.current_time()
            pooled.look.deadline = now + self._next_look(pooled, now)

    def close(self, reason: str) -> None:
        """Retire everything; an instance that is lent out goes when it comes back."""
        self._closed = True
        if self._holding is not None:
            self._holding.cancel()
        for pooled in list(self.live.values()):
            if not pooled.outstanding:
                self._retire(pooled, reason)
        self._free.clear()
        while self._waiting:
            self._fail_next(InstanceError(f"{self._artifact.ref}: {reason}"))
        if not self.live:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no instance is left; of use after :meth:`close`."""
        await self._empty.wait()

    def describe(self) -> list[InstanceInfo]:
        """Its instances, as listings show them."""
        return [describe_instance(p, concurrency=self._concurrency) for p in self.live.values()]

    # size

    def _alive(self) -> int:
        """Instances that take executions or will."""
        return sum(pooled.takes_more for pooled in self.live.values())

    def _load(self) -> Load:
        taking = [pooled for pooled in self.live.values() if pooled.takes_more]
        return Load(
            waiting=len(self._waiting),
            busy=sum(pooled.outstanding for pooled in taking),
            arrival_rate=self._arrivals.rate(self._lent + len(self._waiting), trio.current_time()),
            execution_s=self._mean_s,
            concurrency=self._concurrency,
        )

    def _grow(self) -> None:
        """Start what is missing within ``max_instances``: at once for tasks that wait, after a
        pause for what is kept warm when that has failed before."""
        room = self._config.max_instances - len(self.live)
        if self._closed or self._background.stopped or room <= 0:
            return
        load, alive = self._load(), self._alive()
        needed = demanded(load) + self._checking if self._waiting else 0
        kept = max(self._config.min_instances, expected(load) if self._waiting else 0)
        if kept > max(needed, alive) and not self._undecided:
            if trio.current_time() >= self._hold_until:
                needed = kept
            elif self._holding is None:
                self._holding = trio.CancelScope()
                self._background.start_soon(self._grow_later, self._holding)
        for _ in range(min(room, needed - alive)):
            self._start_one()

    async def _grow_later(self, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(self._hold_until)
        self._holding = None
        self._grow()

    def _start_one(self) -> None:
        pooled = PooledInstance(InstanceSpec(id=self._new_id(), artifact=self._artifact))
        self.live[pooled.spec.id.instance_id] = pooled
        self._creating += 1
        self._background.start_soon(self._keep, pooled)

    def _drain(
        self,
        pooled: PooledInstance,
        reason: str,
        state: InstanceState = InstanceState.TERMINATING,
    ) -> None:
        """Lend it no more and, when it comes back, let it go."""
        self._free.pop(pooled, None)
        if not pooled.draining:
            pooled.draining, pooled.draining_to = reason, state

    def _retire(
        self,
        pooled: PooledInstance,
        reason: str,
        state: InstanceState = InstanceState.TERMINATING,
    ) -> None:
        """Lend it no more, and end it now."""
        self._free.pop(pooled, None)
        pooled.retire(reason, state)

    # an instance's life

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
                        self._retire(pooled, "ended")
                        if pooled.state is InstanceState.FAILED:
                            pooled.move(InstanceState.TERMINATING)
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
        if pooled.retired.is_set():
            return
        pooled.move(InstanceState.READY)
        pooled.ready_at = pooled.idle_since = trio.current_time()
        pooled.work_s = min(
            (p.work_s for p in self.live.values() if p.takes_more and p.executions), default=0.0
        )
        self._offer(pooled, cold=True)

    def _ended(self, pooled: PooledInstance, error: SpearError | None) -> None:
        del self.live[pooled.spec.id.instance_id]
        if pooled.instance is None:
            self._not_started(pooled, error)
        elif error is not None:
            pooled.crashed = True
            self._log.warning("instance %s ended badly: %s", pooled.spec.id, error)
        self._retire(pooled, "ended")
        if pooled.state is InstanceState.FAILED:
            pooled.move(InstanceState.TERMINATING)
        pooled.move(InstanceState.TERMINATED)
        if pooled.outstanding:
            self._undecided += 1
        else:
            self._learn(pooled)
        self._grow()
        if self._closed and not self.live:
            self._empty.set()

    def _not_started(self, pooled: PooledInstance, error: SpearError | None) -> None:
        """Tell those that it was for, as many as the others that start have no room for."""
        before, after = (
            min(len(self._waiting), starting * self._concurrency)
            for starting in (self._creating, self._creating - 1)
        )
        self._creating -= 1
        if error is not None:
            pooled.crashed = True
            pooled.retire(error.message, InstanceState.FAILED)
            if after == before:
                self._log.warning("instance %s did not start: %s", pooled.spec.id, error)
        for _ in range(before - after):
            self._fail_next(
                error or InstanceStartError(f"{self._artifact.ref}: {pooled.reason or 'stopped'}")
            )

    def _learn(self, pooled: PooledInstance) -> None:
        """Pause longer each time before what is kept warm is started again and does not last.

        One that is gone with an execution that was cancelled says nothing about that.
        """
        now = trio.current_time()
        if pooled.instance is not None and now - pooled.ready_at >= _STABLE_S:
            self._failures = 0
        elif pooled.crashed and not pooled.cancelled:
            self._failures += 1
        else:
            return
        self._hold_until = now + backoff_s(self._failures)
        if self._failures and self._config.min_instances:
            self._log.warning(
                "%s: its instances do not last (%d in a row); the next is kept warm in %g s",
                self._artifact.ref,
                self._failures,
                backoff_s(self._failures),
            )

    async def _watch(self, pooled: PooledInstance, instance: Instance) -> None:
        """Return when the instance must end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_failure, pooled, instance)
            while not pooled.retired.is_set():
                wait_s = self._next_look(pooled, trio.current_time())
                with trio.move_on_after(wait_s) as pooled.look:
                    await pooled.retired.wait()
                if pooled.look.cancelled_caught:
                    await self._look(pooled, instance)
            nursery.cancel_scope.cancel()
        self._log.info("instance %s is retired: %s", pooled.spec.id, pooled.reason)

    async def _watch_failure(self, pooled: PooledInstance, instance: Instance) -> None:
        reason = await instance.wait_failed()
        if not pooled.retired.is_set():
            pooled.crashed = True
        self._retire(pooled, reason, InstanceState.FAILED)

    # idle ones

    def _next_look(self, pooled: PooledInstance, now: float) -> float:
        """Seconds until the instance should be looked at again."""
        interval = self._config.health_check_interval_ms / 1000
        if pooled not in self._free or pooled.outstanding:
            return interval
        left = self._check_left(pooled, now)
        if self._dispensable():
            left = min(left, self._idle_left(pooled, now))
        return max(0.0, left)

    def _check_left(self, pooled: PooledInstance, now: float) -> float:
        """Seconds until its health should be checked: an execution that has ended shows it, too."""
        interval = self._config.health_check_interval_ms / 1000
        return max(pooled.idle_since, pooled.checked_at) + interval - now

    def _idle_left(self, pooled: PooledInstance, now: float) -> float:
        """Seconds until it has been idle for too long."""
        return pooled.idle_since + self._config.idle_timeout_ms / 1000 - now

    def _dispensable(self) -> bool:
        """Whether there would be enough with one less."""
        ready = sum(p.takes_more and p.instance is not None for p in self.live.values())
        return ready > self._config.min_instances

    def _surplus(self, now: float) -> bool:
        """Whether there are more than were busy at once in the last idle timeout: a policy that
        gives every instance its turn leaves none idle for long."""
        if now - self._window_began >= self._config.idle_timeout_ms / 1000:
            first = self._window_began == -math.inf
            self._most_busy_before = math.inf if first else self._most_busy
            self._most_busy, self._window_began = self._busy, now
        most = max(self._most_busy_before, self._most_busy)
        return self._alive() * self._concurrency >= most + self._concurrency

    async def _look(self, pooled: PooledInstance, instance: Instance) -> None:
        """Retire an instance that was idle for too long or is unwell; leave busy ones alone."""
        if pooled not in self._free or pooled.outstanding:
            return
        now = trio.current_time()
        surplus = self._surplus(now)
        if self._dispensable():
            if self._idle_left(pooled, now) <= _ROUNDING_S:
                self._retire(pooled, "it was idle (pool.idle_timeout_ms)")
                return
            if surplus:
                self._retire(pooled, "fewer have done for a while (pool.idle_timeout_ms)")
                return
        if self._check_left(pooled, now) > _ROUNDING_S:
            return  # it has worked meanwhile; who needs it now would be overtaken
        pooled.checked_at = now
        del self._free[pooled]
        self._checking += 1
        try:
            await self._check(pooled, instance)
        finally:
            self._checking -= 1
        if not pooled.retired.is_set():
            self._offer(pooled)

    async def _check(self, pooled: PooledInstance, instance: Instance) -> None:
        limit = self._config.health_check_timeout_ms / 1000
        reason = f"its health check did not answer within {limit:g} s"
        try:
            with trio.move_on_after(limit) as pooled.checking:
                await instance.check_health()
            if not pooled.checking.cancelled_caught or pooled.retired.is_set():
                return
        except SpearError as error:
            reason = f"its health check failed: {error}"
        pooled.crashed = True
        self._retire(pooled, reason, InstanceState.FAILED)
