"""Entering a cancel scope only from the first wait on."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from spear_core._late_scope import run_in_scope


class Scopes:
    """Makes scopes, and keeps them."""

    def __init__(self, timeout_s: float = 60) -> None:
        self.timeout_s = timeout_s
        self.made: list[trio.CancelScope] = []

    def open(self) -> trio.CancelScope:
        self.made.append(trio.move_on_after(self.timeout_s))
        return self.made[-1]


async def test_what_never_waits_needs_no_scope() -> None:
    scopes, done = Scopes(), []

    async def work() -> None:
        done.append(1)

    await run_in_scope(work(), scopes.open)
    assert (done, scopes.made) == ([1], [])


@pytest.mark.parametrize("waits", [0, 1, 3])
async def test_an_exception_comes_through(waits: int) -> None:
    scopes = Scopes()

    async def work() -> None:
        for _ in range(waits):
            await trio.lowlevel.checkpoint()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_in_scope(work(), scopes.open)
    assert len(scopes.made) == min(waits, 1)


async def test_what_waits_gets_what_it_waits_for() -> None:
    scopes, heard = Scopes(), []
    sender, receiver = trio.open_memory_channel[int](0)

    async def work() -> None:
        async for item in receiver:
            heard.append(item)
        with trio.move_on_after(0):
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_scope, work(), scopes.open)
        async with sender:
            for item in range(3):
                await sender.send(item)
    assert heard == [0, 1, 2]
    assert len(scopes.made) == 1


async def test_the_scope_ends_it_by_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    scopes, unwound = Scopes(timeout_s=5), []

    async def work() -> None:
        try:
            await trio.lowlevel.checkpoint()
            await trio.sleep(10)
        finally:
            unwound.append(trio.current_time())

    start = trio.current_time()
    await run_in_scope(work(), scopes.open)
    assert scopes.made[0].cancelled_caught
    assert unwound == [start + 5]


async def test_a_scope_that_is_cancelled_already_ends_the_first_wait() -> None:
    scopes = Scopes(timeout_s=0)

    async def work() -> None:
        await trio.lowlevel.checkpoint()
        pytest.fail("it went on")

    await run_in_scope(work(), scopes.open)
    assert scopes.made[0].cancelled_caught


async def test_a_cancellation_from_outside_goes_through() -> None:
    scopes = Scopes()
    with trio.move_on_after(0) as outside:
        forever = trio.sleep_forever()  # noqa: ASYNC105 - awaited there
        await run_in_scope(forever, scopes.open)
    assert outside.cancelled_caught
    assert not scopes.made[0].cancelled_caught


async def test_who_breaks_the_rule_hears_of_it() -> None:
    async def work() -> None:
        with trio.CancelScope():
            await trio.lowlevel.checkpoint()

    with pytest.raises(RuntimeError, match="Cancel scope stack corrupted"):
        await run_in_scope(work(), Scopes().open)
