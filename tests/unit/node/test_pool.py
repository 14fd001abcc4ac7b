"""The instance pool, with a steered runtime and the autojump clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import InstanceState
from spear_core.errors import InstanceError, InstanceLostError, InstanceStartError
from spear_core.node._pool import InstancePool

PoolMaker = Callable[..., Any]


async def test_an_instance_is_reused(open_pool: PoolMaker, runtime: Any) -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        pool.release(first)
        second = await pool.acquire()
        assert second is first
        assert first.executions == 2
        assert len(runtime.opened) == 1
    assert runtime.live == 0


async def test_the_pool_grows_to_its_maximum_and_then_waits(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(max_instances=2) as pool:
        first, _second = await pool.acquire(), await pool.acquire()
        with trio.move_on_after(1) as waiting:
            await pool.acquire()
        assert waiting.cancelled_caught
        assert len(runtime.opened) == 2
        async with trio.open_nursery() as nursery:
            got = []

            async def take() -> None:
                got.append(await pool.acquire())

            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            pool.release(first)
        assert got == [first]


async def test_a_broken_instance_is_retired_and_replaced_for_the_next_in_line(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(max_instances=1) as pool:
        first = await pool.acquire()
        async with trio.open_nursery() as nursery:
            got = []

            async def take() -> None:
                got.append(await pool.acquire())

            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            pool.release(first, broken="it is broken")
        assert got != [first]
        assert first.state is InstanceState.TERMINATED
        assert runtime.closed == ["i-1"]


async def test_an_idle_instance_that_dies_is_not_lent(open_pool: PoolMaker, runtime: Any) -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        pool.release(first)
        runtime.opened[0].failed.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not pool.live
        assert await pool.acquire() is not first


async def test_every_waiter_hears_that_instances_cannot_start(
    open_pool: PoolMaker, runtime: Any
) -> None:
    runtime.open_error = InstanceStartError("no luck")
    failures = 0

    async def take() -> None:
        nonlocal failures
        with pytest.raises(InstanceStartError, match="no luck"):
            await pool.acquire()
        failures += 1

    async with open_pool(max_instances=2) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(take)
        assert failures == 5
        assert not pool.live
        runtime.open_error = None
        assert await pool.acquire()


async def test_a_start_that_takes_too_long_fails(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.start_delay = 100
    async with open_pool(start_timeout_ms=1000) as pool:
        with pytest.raises(InstanceStartError, match="within 1 s"):
            await pool.acquire()
        assert trio.current_time() < 2


async def test_a_cancelled_waiter_leaves_its_instance_to_others(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.start_delay = 2
    async with open_pool() as pool:
        with trio.move_on_after(1):
            await pool.acquire()
        await trio.sleep(2)
        runtime.start_delay = 100
        with trio.fail_after(1):
            await pool.acquire()
        assert len(runtime.opened) == 1


async def test_idle_instances_go_after_their_timeout(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(idle_timeout_ms=10_000, health_check_interval_ms=4_000) as pool:
        pool.release(await pool.acquire())
        await trio.sleep(9)
        assert pool.live
        assert runtime.opened[0].health_checks == 2
        await trio.sleep(2)
        assert not pool.live


async def test_a_busy_instance_is_neither_checked_nor_timed_out(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(idle_timeout_ms=1_000, health_check_interval_ms=1_000) as pool:
        await pool.acquire()
        await trio.sleep(10)
        assert pool.live
        assert runtime.opened[0].health_checks == 0


async def test_one_that_works_now_and_then_needs_no_check(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """While it is checked it is nobody's, so whoever comes just then would be overtaken."""
    async with open_pool(min_instances=1, health_check_interval_ms=4_000) as pool:
        for _ in range(20):
            await trio.sleep(3)
            pool.release(await pool.acquire())
        assert runtime.opened[0].health_checks == 0
        await trio.sleep(3.9)
        assert runtime.opened[0].health_checks == 0
        await trio.sleep(0.2)
        assert runtime.opened[0].health_checks == 1
        await trio.sleep(4)
        assert runtime.opened[0].health_checks == 2


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_an_unwell_idle_instance_is_retired(
    how: str, open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def unwell() -> None:
        if how == "hangs":
            await trio.sleep_forever()
        raise InstanceLostError("not well")

    runtime.health = unwell
    async with open_pool(health_check_interval_ms=1_000) as pool:
        pool.release(await pool.acquire())
        await trio.sleep(1.5 if how == "raises" else 7)
        assert not pool.live


async def test_an_instance_serves_so_many_executions_and_no_more(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(max_executions_per_instance=2) as pool:
        for _ in range(4):
            pool.release(await pool.acquire())
        await trio.testing.wait_all_tasks_blocked()
        assert len(runtime.opened) == 2
        assert not pool.live


async def test_closing_ends_idle_ones_now_lent_ones_later_and_waiters_at_once(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async def wait_in_vain(pool: InstancePool) -> None:
        with pytest.raises(InstanceError, match="we close"):
            await pool.acquire()

    async with open_pool(max_instances=1) as pool:
        lent = await pool.acquire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain, pool)
            await trio.testing.wait_all_tasks_blocked()
            pool.close("we close")
        assert list(pool.live.values()) == [lent]
        pool.release(lent)
        await pool.wait_empty()
        assert runtime.live == 0
        with pytest.raises(InstanceError, match="closed"):
            await pool.acquire()


async def test_closing_ends_idle_ones(open_pool: PoolMaker, runtime: Any) -> None:
    async with open_pool() as pool:
        pool.release(await pool.acquire())
        pool.close("we close")
        await pool.wait_empty()
        assert runtime.live == 0


async def test_closing_does_not_wait_for_an_instance_that_starts(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.start_delay = 50
    async with open_pool() as pool, trio.open_nursery() as nursery:

        async def take() -> None:
            with pytest.raises(InstanceError, match="closing time"):
                await pool.acquire()

        nursery.start_soon(take)
        await trio.sleep(1)
        pool.close("closing time")
        await pool.wait_empty()
        assert trio.current_time() < 2
    assert runtime.opened == []


async def test_an_instance_whose_runtime_broke_is_not_lent_while_it_ends(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    open_whole = runtime.open_instance
    breaking = trio.Event()

    async def break_down() -> None:
        await breaking.wait()
        raise InstanceLostError("its runtime lost it")

    @asynccontextmanager
    async def open_fragile(spec: Any) -> AsyncIterator[Any]:
        async with trio.open_nursery() as nursery, open_whole(spec) as instance:
            if not breaking.is_set():
                nursery.start_soon(break_down)
            try:
                yield instance
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)

    runtime.open_instance = open_fragile
    async with open_pool() as pool:
        first = await pool.acquire()
        pool.release(first)
        breaking.set()
        await trio.sleep(1)
        second = await pool.acquire()
        assert second is not first
        pool.release(second)
