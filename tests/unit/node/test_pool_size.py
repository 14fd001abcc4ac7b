"""How many instances a pool keeps: warm-up, scaling, limits, changes of the limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import InstanceState, PoolConfig, PoolSettings
from spear_core.errors import InstanceStartError
from spear_core.node._pool import InstancePool, PooledInstance

PoolMaker = Callable[..., AbstractAsyncContextManager[InstancePool]]
Clock = trio.testing.MockClock


async def take(pool: InstancePool, many: int) -> list[PooledInstance]:
    taken: list[PooledInstance] = []

    async def one() -> None:
        taken.append(await pool.acquire())

    async with trio.open_nursery() as nursery:
        for _ in range(many):
            nursery.start_soon(one)
    return taken


async def test_so_many_are_warm_before_anybody_asks(open_pool: PoolMaker, runtime: Any) -> None:
    async with open_pool(min_instances=3) as pool:
        await trio.testing.wait_all_tasks_blocked()
        assert len(runtime.opened) == 3
        assert {p.state for p in pool.live.values()} == {InstanceState.READY}
        taken = await pool.acquire()
        assert not taken.cold
        assert len(runtime.opened) == 3
    assert runtime.live == 0


async def test_who_waited_for_the_start_has_a_cold_one(open_pool: PoolMaker) -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        assert first.cold
        pool.release(first)
        second = await pool.acquire()
        assert second is first
        assert not second.cold


async def test_idle_ones_go_down_to_the_minimum(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    async with open_pool(min_instances=2, idle_timeout_ms=10_000) as pool:
        for pooled in await take(pool, 5):
            pool.release(pooled)
        assert len(pool.live) == 5
        await trio.sleep(100)
        assert len(pool.live) == 2
        assert len(runtime.opened) == 5


async def test_one_that_died_is_replaced(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    async with open_pool(min_instances=1) as pool:
        await trio.sleep(60)
        runtime.opened[0].failed.set()
        await trio.sleep(0.1)
        assert len(runtime.opened) == 2
        assert len(pool.live) == 1


async def test_one_that_has_served_its_executions_is_replaced(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(min_instances=1, max_executions_per_instance=1) as pool:
        for _ in range(3):
            pool.release(await pool.acquire())
            await trio.testing.wait_all_tasks_blocked()
        assert len(runtime.opened) == 4
        assert [p.state for p in pool.live.values()] == [InstanceState.READY]


@pytest.mark.parametrize("how", ["cannot start", "dies at once"])
async def test_a_crash_loop_does_not_spin(
    how: str, open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    starts: list[float] = []
    open_whole = runtime.open_instance

    def open_and_fail(spec: Any) -> Any:
        starts.append(trio.current_time())
        if how == "cannot start":
            runtime.open_error = InstanceStartError("no luck")
        return open_whole(spec)

    async def shoot() -> None:
        while True:
            for instance in runtime.opened:
                instance.failed.set()
            await trio.sleep(0.01)

    runtime.open_instance = open_and_fail
    async with trio.open_nursery() as nursery, open_pool(min_instances=1):
        if how == "dies at once":
            nursery.start_soon(shoot)
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert pauses[:4] == pytest.approx([0.5, 1, 2, 4], abs=0.05)
    assert max(pauses) == pytest.approx(60, abs=0.05)
    assert len(starts) <= 14


@pytest.mark.parametrize(("cancelled", "gone_first"), [(True, True), (True, False), (False, True)])
async def test_one_that_is_killed_with_its_execution_has_not_crashed(
    cancelled: bool, gone_first: bool, open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    """Whether the pool hears of the worker's end first, or of its execution's."""
    async with open_pool(min_instances=1) as pool:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            pooled = await pool.acquire()
            if gone_first:
                runtime.opened[-1].failed.set()
                await trio.testing.wait_all_tasks_blocked()
                assert pooled.state is InstanceState.TERMINATED
            else:
                pooled.instance.failed.set()
            pool.release(pooled, broken="its execution ended", cancelled=cancelled)
            before = trio.current_time()
            while not [p for p in pool.live.values() if p is not pooled and p.instance]:  # noqa: ASYNC110
                await trio.sleep(0.05)
            paused = trio.current_time() - before
            assert (paused < 0.1) is cancelled
            await trio.testing.wait_all_tasks_blocked()
            assert len(pool.live) == 1


async def test_who_asks_during_a_pause_gets_an_attempt_of_its_own(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.open_error = InstanceStartError("no luck")
    async with open_pool(min_instances=1) as pool:
        await trio.sleep(40)
        before = trio.current_time()
        with pytest.raises(InstanceStartError):
            await pool.acquire()
        runtime.open_error = None
        pool.release(await pool.acquire())
        assert trio.current_time() == before
        assert len(pool.live) == 1


async def test_a_start_that_fails_for_nobody_is_nobodys_error(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.start_delay = 1
    async with open_pool(max_instances=2) as pool:
        lent = await pool.acquire()
        async with trio.open_nursery() as nursery:
            got: list[PooledInstance] = []

            async def second() -> None:
                got.append(await pool.acquire())

            nursery.start_soon(second)
            await trio.sleep(0.5)
            pool.release(lent)  # which serves the one that waited
            runtime.open_error = InstanceStartError("no luck")
            await trio.sleep(1)
        assert got == [lent]
        assert list(pool.live.values()) == [lent]


async def test_a_pool_that_gives_everyone_a_turn_shrinks_too(
    open_pool: PoolMaker, autojump_clock: Clock
) -> None:
    config = {"idle_timeout_ms": 60_000, "health_check_interval_ms": 1_000}
    async with open_pool(selection="round_robin", **config) as pool:
        for pooled in await take(pool, 4):
            pool.release(pooled)
        used = set()
        for _ in range(120):
            pooled = await pool.acquire()
            used.add(pooled)
            await trio.sleep(1)
            pool.release(pooled)
            await trio.sleep(0.5)
        assert len(used) == 4
        for _ in range(120):
            pooled = await pool.acquire()
            await trio.sleep(1)
            pool.release(pooled)
            await trio.sleep(0.5)
        assert len(pool.live) == 1


async def test_more_is_started_ahead_for_what_comes(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    """Eight a second that take half a second each: five are wanted, though four are busy."""
    async with open_pool(max_instances=20) as pool:

        async def one() -> None:
            pooled = await pool.acquire()
            await trio.sleep(0.5)
            pool.release(pooled)

        async with trio.open_nursery() as nursery:
            for _ in range(8 * 25):
                nursery.start_soon(one)
                await trio.sleep(1 / 8)
        assert len(pool.live) <= 5
        runtime.opened[0].failed.set()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            await pool.acquire()
        nothing_free = len(pool.live)
        await take(pool, 1)
        assert len(pool.live) > nothing_free


async def test_an_artifacts_own_limits_hold(
    open_pool: PoolMaker, add_artifact: Any, runtime: Any, autojump_clock: Clock
) -> None:
    artifact = await add_artifact("own", pool=PoolSettings(min_instances=1, max_instances=1))
    async with open_pool(artifact=artifact, max_instances=5) as pool:
        await pool.acquire()
        with trio.move_on_after(1) as waiting:
            await pool.acquire()
        assert waiting.cancelled_caught
        assert len(runtime.opened) == 1


async def test_lower_limits_take_effect_as_things_end(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    async with open_pool(max_instances=4) as pool:
        busy = await take(pool, 4)
        pool.release(busy.pop())
        pool.configure(PoolConfig(max_instances=1))
        await trio.testing.wait_all_tasks_blocked()
        assert len(pool.live) == 3
        assert {p.state for p in pool.live.values()} == {InstanceState.RUNNING}
        for pooled in busy:
            pool.release(pooled)
            await trio.testing.wait_all_tasks_blocked()
        assert len(pool.live) == 1
        assert runtime.live == 1


async def test_higher_limits_help_those_that_wait(open_pool: PoolMaker, runtime: Any) -> None:
    async with open_pool(max_instances=1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(take, pool, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert len(runtime.opened) == 1
        pool.configure(PoolConfig(max_instances=3, min_instances=3))
        await trio.testing.wait_all_tasks_blocked()
        assert len(runtime.opened) == 3


async def test_a_new_idle_timeout_holds_for_what_is_idle_already(
    open_pool: PoolMaker, autojump_clock: Clock
) -> None:
    async with open_pool(idle_timeout_ms=10**9, health_check_interval_ms=10**9) as pool:
        pool.release(await pool.acquire())
        await trio.sleep(100)
        assert pool.live
        pool.configure(PoolConfig(idle_timeout_ms=50_000))
        await trio.sleep(1)
        assert not pool.live


async def test_a_version_that_is_no_longer_kept_warm_goes_after_its_idle_timeout(
    open_pool: PoolMaker, autojump_clock: Clock
) -> None:
    async with open_pool(min_instances=2, idle_timeout_ms=10_000) as pool:
        await trio.sleep(100)
        assert len(pool.live) == 2
        pool.keep_warm(False)
        await trio.sleep(20)
        assert not pool.live


async def test_a_check_that_hangs_is_bounded_and_its_instance_replaced(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.health = trio.sleep_forever
    config = {"health_check_interval_ms": 20_000, "health_check_timeout_ms": 300}
    async with open_pool(min_instances=1, **config) as pool:
        await trio.sleep(20.1)
        with trio.fail_after(0.1):  # nobody waits for the check
            pool.release(await pool.acquire())
        await trio.sleep(0.25)
        assert runtime.closed == ["i-1"]
        assert len(pool.live) == 1


async def test_closing_does_not_wait_for_a_check_that_hangs(
    open_pool: PoolMaker, runtime: Any, autojump_clock: Clock
) -> None:
    runtime.health = trio.sleep_forever
    async with open_pool(min_instances=1, health_check_interval_ms=1_000) as pool:
        await trio.sleep(1.5)
        pool.close("we close")
        await pool.wait_empty()
        assert trio.current_time() < 2
