"""The reusable instances of one artifact.

A pool decides who uses which instance, how many there should be and when one must go. Each lives
in a background task of its own (:mod:`spear_core.node._keeper`).
"""

from __future__ import annotations

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
from spear_core.node._keeper import Keeper
from spear_core.node._pooled_instance import PooledInstance, describe_instance
from spear_core.node._scaling import (
    Arrivals,
    Load,
    Peak,
    Setbacks,
    demanded,
    effective_config,
    expected,
)
from spear_core.node._secrets import SpecMaker, without_secrets
from spear_core.node._selection import POLICIES

__all__ = ["InstancePool", "PooledInstance", "describe_instance"]

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
        self._background = background
        self._new_id = new_id
        self._log = log
        self._keeper = Keeper(self, runtime, make_spec, log)
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
        self._busy = 0
        self._peak = Peak()
        self._setbacks = Setbacks()
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
                self.retire(pooled, pooled.draining, pooled.draining_to)
        if pooled.state is InstanceState.TERMINATED and not pooled.outstanding:
            self._undecided -= 1
            self._learn(pooled)
            self._grow()
        elif self._waiting:
            self._grow()

    def _lend(self, pooled: PooledInstance, *, cold: bool) -> PooledInstance:
        self._lent += 1
        self._busy += 1
        if self._busy > self._peak.most:
            self._peak.most = self._busy
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

    @property
    def config(self) -> PoolConfig:
        """What counts now, of the node's settings and the artifact's."""
        return self._config

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
                    self.retire(pooled, reason)
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
                self.retire(pooled, "there are more than pool.max_instances")
        for pooled in self.live.values():
            self._look_in_time(pooled)
        self._grow()

    def _look_in_time(self, pooled: PooledInstance) -> None:
        """Have it looked at when that is due by what is so now."""
        if pooled.look is not None:
            now = trio.current_time()
            pooled.look.deadline = now + self.next_look(pooled, now)

    def close(self, reason: str) -> None:
        """Retire everything; an instance that is lent out goes when it comes back."""
        self._closed = True
        if self._holding is not None:
            self._holding.cancel()
        for pooled in list(self.live.values()):
            if not pooled.outstanding:
                self.retire(pooled, reason)
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
            if trio.current_time() >= self._setbacks.hold_until:
                needed = kept
            elif self._holding is None:
                self._holding = trio.CancelScope()
                self._background.start_soon(self._grow_later, self._holding)
        for _ in range(min(room, needed - alive)):
            self._start_one()

    async def _grow_later(self, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(self._setbacks.hold_until)
        self._holding = None
        self._grow()

    def _start_one(self) -> None:
        pooled = PooledInstance(InstanceSpec(id=self._new_id(), artifact=self._artifact))
        self.live[pooled.spec.id.instance_id] = pooled
        self._creating += 1
        self._background.start_soon(self._keeper.keep, pooled)

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

    def retire(
        self,
        pooled: PooledInstance,
        reason: str,
        state: InstanceState = InstanceState.TERMINATING,
    ) -> None:
        """Lend it no more, and end it now."""
        self._free.pop(pooled, None)
        pooled.retire(reason, state)

    # what keepers tell

    def started(self, pooled: PooledInstance, instance: Instance) -> None:
        """It is there, and can be lent unless it was retired meanwhile."""
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

    def ended(self, pooled: PooledInstance, error: SpearError | None) -> None:
        """Nothing is left of it; ``error``: it ended, or did not start, because of that."""
        del self.live[pooled.spec.id.instance_id]
        if pooled.instance is None:
            self._not_started(pooled, error)
        elif error is not None:
            pooled.crashed = True
            self._log.warning("instance %s ended badly: %s", pooled.spec.id, error)
        self.retire(pooled, "ended")
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
        lived_s = None if pooled.instance is None else now - pooled.ready_at
        died = pooled.crashed and not pooled.cancelled
        if self._setbacks.learn(lived_s, now, died=died) and self._config.min_instances:
            self._log.warning(
                "%s: its instances do not last (%d in a row); the next is kept warm in %g s",
                self._artifact.ref,
                self._setbacks.in_a_row,
                self._setbacks.hold_until - now,
            )

    # idle ones

    def next_look(self, pooled: PooledInstance, now: float) -> float:
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

    async def look(self, pooled: PooledInstance, instance: Instance) -> None:
        """Retire an instance that was idle for too long or is unwell; leave busy ones alone."""
        if pooled not in self._free or pooled.outstanding:
            return
        now = trio.current_time()
        most = self._peak.of_window(now, self._config.idle_timeout_ms / 1000, busy=self._busy)
        # a policy that gives every instance its turn leaves none idle for long
        surplus = self._alive() * self._concurrency >= most + self._concurrency
        if self._dispensable():
            if self._idle_left(pooled, now) <= _ROUNDING_S:
                self.retire(pooled, "it was idle (pool.idle_timeout_ms)")
                return
            if surplus:
                self.retire(pooled, "fewer have done for a while (pool.idle_timeout_ms)")
                return
        if self._check_left(pooled, now) > _ROUNDING_S:
            return  # it has worked meanwhile; who needs it now would be overtaken
        pooled.checked_at = now
        del self._free[pooled]
        self._checking += 1
        try:
            await self._keeper.check(pooled, instance)
        finally:
            self._checking -= 1
        if not pooled.retired.is_set():
            self._offer(pooled)
