"""The task that owns an instance from its beginning to its end."""

from __future__ import annotations

import math
from logging import Logger
from typing import Protocol

import trio

from spear_core.api import Instance, InstanceState, PoolConfig, Runtime
from spear_core.errors import InstanceStartError, SpearError
from spear_core.node._failures import as_spear_error
from spear_core.node._pooled_instance import PooledInstance
from spear_core.node._secrets import SpecMaker

__all__ = ["Keeper"]


class Pool(Protocol):
    """What a keeper asks of the pool, and tells it."""

    @property
    def config(self) -> PoolConfig:
        """What counts now."""
        ...

    def started(self, pooled: PooledInstance, instance: Instance) -> None:
        """It is there, and can be lent unless it was retired meanwhile."""

    def retire(
        self, pooled: PooledInstance, reason: str, state: InstanceState = InstanceState.TERMINATING
    ) -> None:
        """Lend it no more, and end it now."""

    def next_look(self, pooled: PooledInstance, now: float) -> float:
        """Seconds until the instance should be looked at again."""
        ...

    async def look(self, pooled: PooledInstance, instance: Instance) -> None:
        """See whether it is still needed and well."""

    def ended(self, pooled: PooledInstance, error: SpearError | None) -> None:
        """Nothing is left of it; ``error``: it ended, or did not start, because of that."""


class Keeper:
    """Makes instances, notices that they fail, and ends them; the pool decides when."""

    def __init__(self, pool: Pool, runtime: Runtime, make_spec: SpecMaker, log: Logger) -> None:
        self._pool = pool
        self._runtime = runtime
        self._make_spec = make_spec
        self._log = log

    async def keep(self, pooled: PooledInstance) -> None:
        """An instance's whole life."""
        error: SpearError | None = None
        limit = self._pool.config.start_timeout_ms / 1000
        try:
            pooled.starting.deadline = trio.current_time() + limit
            with pooled.starting:
                spec = self._make_spec(pooled.spec.id, pooled.spec.artifact)
                async with self._runtime.open_instance(spec) as instance:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    pooled.starting.deadline = math.inf
                    self._pool.started(pooled, instance)
                    try:
                        await self._watch(pooled, instance)
                    finally:
                        self._pool.retire(pooled, "ended")
                        if pooled.state is InstanceState.FAILED:
                            pooled.move(InstanceState.TERMINATING)
            if pooled.starting.cancelled_caught and not pooled.retired.is_set():
                error = InstanceStartError(
                    f"an instance of {pooled.spec.artifact.ref} did not start within {limit:g} s "
                    "(pool.start_timeout_ms)"
                )
        except Exception as raised:  # barrier: one instance
            error = as_spear_error(raised, f"instance {pooled.spec.id}", self._log)
        finally:
            self._pool.ended(pooled, error)

    async def _watch(self, pooled: PooledInstance, instance: Instance) -> None:
        """Return when the instance must end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_failure, pooled, instance)
            while not pooled.retired.is_set():
                wait_s = self._pool.next_look(pooled, trio.current_time())
                with trio.move_on_after(wait_s) as pooled.look:
                    await pooled.retired.wait()
                if pooled.look.cancelled_caught:
                    await self._pool.look(pooled, instance)
            nursery.cancel_scope.cancel()
        self._log.info("instance %s is retired: %s", pooled.spec.id, pooled.reason)

    async def _watch_failure(self, pooled: PooledInstance, instance: Instance) -> None:
        reason = await instance.wait_failed()
        if not pooled.retired.is_set():
            pooled.crashed = True
        self._pool.retire(pooled, reason, InstanceState.FAILED)

    async def check(self, pooled: PooledInstance, instance: Instance) -> None:
        """Retire it unless it says within the time for it that it is well."""
        limit = self._pool.config.health_check_timeout_ms / 1000
        reason = f"its health check did not answer within {limit:g} s"
        try:
            with trio.move_on_after(limit) as pooled.checking:
                await instance.check_health()
            if not pooled.checking.cancelled_caught or pooled.retired.is_set():
                return
        except SpearError as error:
            reason = f"its health check failed: {error}"
        pooled.crashed = True
        self._pool.retire(pooled, reason, InstanceState.FAILED)
