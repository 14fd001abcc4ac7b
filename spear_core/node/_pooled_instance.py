"""An instance and what its pool knows about it."""

from __future__ import annotations

import time

import attrs
import trio

from spear_core.api import Instance, InstanceInfo, InstanceSpec, InstanceState

__all__ = ["PooledInstance", "describe_instance"]

_S = InstanceState
_NEXT = {
    _S.CREATING: {_S.READY, _S.FAILED, _S.TERMINATING},
    _S.READY: {_S.RUNNING, _S.FAILED, _S.TERMINATING},
    _S.RUNNING: {_S.READY, _S.FAILED, _S.TERMINATING},
    _S.FAILED: {_S.TERMINATING},
    _S.TERMINATING: {_S.TERMINATED},
    _S.TERMINATED: set(),
}
_SHARE = 0.2
"""Of the newest execution in the average."""


@attrs.define(eq=False)
class PooledInstance:
    """An instance and what the pool knows about it. Times are on trio's clock."""

    spec: InstanceSpec
    created_at: float = attrs.field(factory=time.time)
    """On the wall clock."""
    state: InstanceState = InstanceState.CREATING
    executions: int = 0
    """How often it has been lent."""
    cold: bool = False
    """Whether it was made for the task that it was lent to last."""
    outstanding: int = 0
    last_lent: int = 0
    work_s: float = 0.0
    ready_at: float = 0.0
    idle_since: float = 0.0
    checked_at: float = 0.0
    """When its health was last checked."""
    mean_s: float = 0.0
    """What an execution on it takes, the newest counting most; 0: none has ended."""
    draining: str = ""
    """Why it takes no more executions and goes when the last has ended; empty: it does not."""
    draining_to: InstanceState = InstanceState.TERMINATING
    crashed: bool = False
    """It ended, or did not begin, by no wish of ours."""
    cancelled: bool = False
    """An execution on it was, and it could not go on after that."""
    instance: Instance | None = None
    starting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """What it starts in; of no effect from ``READY`` on."""
    look: trio.CancelScope | None = None
    """What its keeper waits in for the next look at it."""
    checking: trio.CancelScope | None = None
    """What its health check runs in."""
    retired: trio.Event = attrs.field(factory=trio.Event)
    reason: str = ""
    _work: float = attrs.field(default=0.0, init=False)
    """Executions × seconds since the last one ended: with one at a time, how long it took."""
    _changed_at: float = attrs.field(default=0.0, init=False)

    def move(self, to: InstanceState) -> None:
        """Change the state."""
        assert to in _NEXT[self.state], f"{self.spec.id}: {self.state} → {to}"
        self.state = to

    def retire(self, reason: str, state: InstanceState = InstanceState.TERMINATING) -> None:
        """Tell the keeper to end it; the first reason counts."""
        if not self.retired.is_set():
            self.reason = reason
            self.move(state)
            self.retired.set()
            if self.instance is None:
                self.starting.cancel()
            if self.checking is not None:
                self.checking.cancel()

    def taken(self, now: float, *, number: int, typical_s: float) -> None:
        """An execution was given to it, the pool's lending of this number."""
        self._work += self.outstanding * (now - self._changed_at)
        self._changed_at = now
        self.outstanding += 1
        self.executions += 1
        self.last_lent = number
        self.work_s += self.mean_s or typical_s
        if self.state is InstanceState.READY:
            self.state = InstanceState.RUNNING

    def given_back(self, now: float) -> None:
        """One of its executions has ended."""
        work = self._work + self.outstanding * (now - self._changed_at)
        self._changed_at = now
        self._work = 0.0
        self.mean_s = self.mean_s + _SHARE * (work - self.mean_s) if self.mean_s else work
        self.outstanding -= 1
        if not self.outstanding and self.state is InstanceState.RUNNING:
            self.state = InstanceState.READY
            self.idle_since = now

    @property
    def takes_more(self) -> bool:
        """Whether it will take executions, now or when it has started or has room again."""
        return not self.draining and not self.retired.is_set()

    @property
    def running(self) -> Instance:
        """The live instance; there is one from ``READY`` on."""
        assert self.instance is not None
        return self.instance


def describe_instance(pooled: PooledInstance, *, concurrency: int = 1) -> InstanceInfo:
    """An instance, as listings show it."""
    statistics = pooled.instance.statistics() if pooled.instance else None
    idle = pooled.state is InstanceState.READY
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
        outstanding=pooled.outstanding,
        concurrency=concurrency,
        idle_s=trio.current_time() - pooled.idle_since if idle else None,
    )
