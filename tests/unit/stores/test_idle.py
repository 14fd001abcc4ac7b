"""Giving back what has waited in vain."""

from __future__ import annotations

import trio
import trio.testing

from spear_core.stores import IdleSweep


async def test_looks_only_while_something_waits(autojump_clock: trio.testing.MockClock) -> None:
    idle, looks, left = IdleSweep(), [], [True, False]
    idle.waits()  # nobody runs it yet: no harm

    def sweep() -> bool:
        looks.append(trio.current_time() - start)
        return left.pop(0)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(idle.run, 10, sweep)
        await trio.sleep(100)
        assert looks == []
        await trio.to_thread.run_sync(idle.waits)
        await trio.sleep(100)
        assert looks == [110, 120]
        left += [False]
        idle.waits()
        await trio.sleep(100)
        assert looks == [110, 120, 210]
        nursery.cancel_scope.cancel()
    idle.waits()
