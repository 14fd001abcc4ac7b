"""Instances that take several executions at the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
import trio.testing

from spear_core.api import InstanceState
from spear_core.errors import InstanceStartError
from spear_core.node._pool import InstancePool

PoolMaker = Callable[..., AbstractAsyncContextManager[InstancePool]]


async def test_one_instance_serves_several_and_then_another_is_made(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(concurrency=3) as pool:
        lent = [await pool.acquire() for _ in range(7)]
        assert [lent.count(p) for p in dict.fromkeys(lent)] == [3, 3, 1]
        assert len(runtime.opened) == 3


async def test_those_that_wait_together_share_a_start(open_pool: PoolMaker, runtime: Any) -> None:
    async with open_pool(concurrency=4, max_instances=8) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(pool.acquire)
        assert len(runtime.opened) == 2


async def test_it_is_ready_again_when_the_last_has_ended(open_pool: PoolMaker) -> None:
    async with open_pool(concurrency=2) as pool:
        pooled = await pool.acquire()
        assert await pool.acquire() is pooled
        pool.release(pooled)
        assert pooled.state is InstanceState.RUNNING
        pool.release(pooled)
        assert pooled.state is InstanceState.READY


async def test_a_broken_one_ends_after_its_other_executions(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(concurrency=2) as pool:
        pooled = await pool.acquire()
        await pool.acquire()
        pool.release(pooled, broken="it is broken")
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.live == 1
        assert await pool.acquire() is not pooled
        pool.release(pooled)
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.closed == ["i-1"]


async def test_one_that_is_fit_goes_on_after_a_cancelled_execution(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(concurrency=2) as pool:
        pooled = await pool.acquire()
        await pool.acquire()
        runtime.opened[0].fit = lambda: True
        pool.release(pooled, broken="cancelled")
        assert await pool.acquire() is pooled
        assert len(runtime.opened) == 1


async def test_it_takes_no_more_than_its_executions_and_ends_after_the_last(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(concurrency=2, max_executions_per_instance=3) as pool:
        first = await pool.acquire()
        await pool.acquire()
        pool.release(first)
        assert await pool.acquire() is first
        pool.release(first)
        assert await pool.acquire() is not first
        assert runtime.live == 2
        pool.release(first)
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.closed == ["i-1"]


async def test_a_start_fails_for_as_many_as_it_had_room_for(
    open_pool: PoolMaker, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """Two starts for four; the one that fails takes two along, the other serves two."""
    open_whole = runtime.open_instance

    @asynccontextmanager
    async def open_badly(spec: Any) -> AsyncIterator[Any]:
        if spec.id.instance_id == "i-1":
            raise InstanceStartError("no luck")
        await trio.sleep(1)
        async with open_whole(spec) as instance:
            yield instance

    runtime.open_instance = open_badly
    ended: list[str] = []

    async def one() -> None:
        try:
            await pool.acquire()
        except InstanceStartError:
            ended.append("failed")
        else:
            ended.append("served")

    async with open_pool(concurrency=2) as pool, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sorted(ended) == ["failed", "failed", "served", "served"]


async def test_all_that_it_had_hear_nothing_when_it_dies_but_it_is_lent_no_more(
    open_pool: PoolMaker, runtime: Any
) -> None:
    async with open_pool(concurrency=4) as pool:
        pooled = await pool.acquire()
        await pool.acquire()
        runtime.opened[0].failed.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await pool.acquire() is not pooled
        pool.release(pooled, broken="lost")
        pool.release(pooled, broken="lost")
        assert pooled.state is InstanceState.TERMINATED
