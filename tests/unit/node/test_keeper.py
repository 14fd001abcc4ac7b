"""An instance's life: its start, what ends it, and what the pool is told."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import (
    Artifact,
    Instance,
    InstanceSpec,
    InstanceState,
    PoolConfig,
    RuntimeInstanceId,
)
from spear_core.errors import InstanceError, InstanceStartError, SpearError
from spear_core.node._keeper import Keeper
from spear_core.node._pooled_instance import PooledInstance
from spear_core.node._secrets import without_secrets

Clock = trio.testing.MockClock


class NotedPool:
    """A pool of nothing that takes note of what it is told."""

    config = PoolConfig(start_timeout_ms=1_000, health_check_timeout_ms=2_000)

    def __init__(self) -> None:
        self.look_every = math.inf
        self.looks = 0
        self.ready = trio.Event()
        self.end: list[SpearError | None] = []

    def started(self, pooled: PooledInstance, instance: Instance) -> None:
        pooled.instance = instance
        if not pooled.retired.is_set():
            pooled.move(InstanceState.READY)
        self.ready.set()

    def retire(
        self, pooled: PooledInstance, reason: str, state: InstanceState = InstanceState.TERMINATING
    ) -> None:
        pooled.retire(reason, state)

    def next_look(self, pooled: PooledInstance, now: float) -> float:
        return self.look_every

    async def look(self, pooled: PooledInstance, instance: Instance) -> None:
        self.looks += 1

    def ended(self, pooled: PooledInstance, error: SpearError | None) -> None:
        self.end.append(error)


@pytest.fixture
async def pool() -> NotedPool:
    return NotedPool()


@pytest.fixture
def keeper(pool: NotedPool, runtime: Any) -> Keeper:
    return Keeper(pool, runtime, without_secrets, logging.getLogger("spear.test"))


@pytest.fixture
def pooled(tmp_path: Path) -> PooledInstance:
    artifact = Artifact(
        name="f", version=1, digest="0", runtime="r", shape="s", path=tmp_path / "f", filename="f"
    )
    identity = RuntimeInstanceId(runtime_type="r", instance_id="i-1")
    return PooledInstance(InstanceSpec(id=identity, artifact=artifact))


@pytest.fixture
def kept(
    keeper: Keeper, pool: NotedPool, pooled: PooledInstance
) -> Callable[..., AsyncIterator[None]]:
    @asynccontextmanager
    async def keeping() -> AsyncIterator[None]:
        """A ready instance; the keeper ends by itself, or the test waits for ever."""
        with trio.fail_after(3_600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.keep, pooled)
                await pool.ready.wait()
                yield

    return keeping


async def test_it_lives_until_it_is_retired(
    kept: Any, pool: NotedPool, pooled: PooledInstance, runtime: Any
) -> None:
    async with kept():
        assert runtime.live == 1
        await trio.testing.wait_all_tasks_blocked()
        assert pool.end == []
        pooled.retire("enough")
    assert runtime.live == 0
    assert pool.end == [None]
    assert (pooled.reason, pooled.crashed) == ("enough", False)


async def test_its_own_failure_ends_it(
    kept: Any, pool: NotedPool, pooled: PooledInstance, runtime: Any
) -> None:
    async with kept():
        runtime.opened[0].failed.set()
    assert pool.end == [None]
    assert (pooled.reason, pooled.crashed) == ("it was shot", True)
    assert runtime.live == 0


async def test_the_pool_has_a_look_when_it_is_time(
    kept: Any, pool: NotedPool, pooled: PooledInstance, autojump_clock: Clock
) -> None:
    pool.look_every = 10.0
    async with kept():
        await trio.sleep(35)
        assert pool.looks == 3
        pooled.retire("enough")


async def test_a_start_that_takes_too_long_is_given_up(
    keeper: Keeper, pool: NotedPool, pooled: PooledInstance, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.start_delay = 5
    await keeper.keep(pooled)
    assert trio.current_time() == pytest.approx(1, abs=0.1)
    (error,) = pool.end
    assert isinstance(error, InstanceStartError)
    assert "did not start within 1 s" in str(error)
    assert runtime.opened == []


async def test_a_start_that_is_not_wanted_any_more_is_no_error(
    keeper: Keeper, pool: NotedPool, pooled: PooledInstance, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.start_delay = 0.5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep, pooled)
        await trio.sleep(0.1)
        pooled.retire("enough")
    assert pool.end == [None]
    assert runtime.opened == []


async def test_what_a_start_raises_is_told(
    keeper: Keeper, pool: NotedPool, pooled: PooledInstance, runtime: Any
) -> None:
    runtime.open_error = InstanceStartError("no such luck")
    await keeper.keep(pooled)
    assert pool.end == [runtime.open_error]


async def test_cancelling_the_keeper_ends_the_instance(
    keeper: Keeper, pool: NotedPool, pooled: PooledInstance, runtime: Any
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep, pooled)
        await pool.ready.wait()
        nursery.cancel_scope.cancel()
    assert runtime.live == 0
    assert pool.end == [None]


async def raise_unwell() -> None:
    raise InstanceError("unwell")


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        (raise_unwell, "its health check failed: unwell"),
        (trio.sleep_forever, "its health check did not answer within 2 s"),
    ],
)
async def test_one_that_is_unwell_is_retired(
    kept: Any,
    keeper: Keeper,
    pooled: PooledInstance,
    runtime: Any,
    autojump_clock: Clock,
    health: Any,
    reason: str,
) -> None:
    async with kept():
        await keeper.check(pooled, pooled.running)
        assert not pooled.retired.is_set()
        runtime.health = health
        await keeper.check(pooled, pooled.running)
    assert (pooled.reason, pooled.crashed) == (reason, True)


async def test_who_is_retired_during_its_check_keeps_the_first_reason(
    kept: Any, keeper: Keeper, pooled: PooledInstance, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.health = trio.sleep_forever
    async with kept():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.check, pooled, pooled.running)
            await trio.sleep(1)
            pooled.retire("enough")
        assert trio.current_time() == pytest.approx(1, abs=0.1)
    assert (pooled.reason, pooled.crashed) == ("enough", False)
