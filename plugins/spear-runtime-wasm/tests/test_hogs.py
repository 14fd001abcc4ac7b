"""The worker threads, at the moments that are hard to hit from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from spear_runtime_wasm import _hogs
from spear_runtime_wasm._hogs import HogPool
from spear_runtime_wasm._host import get_host
from spear_runtime_wasm._slice import Meter


class Steered:
    """In place of a guest: each poll does what the test says, and answers whether it has ended."""

    def __init__(self, poll: Callable[[], bool]) -> None:
        self.poll = poll
        self.pending = None


@pytest.fixture
def pool() -> Iterator[HogPool]:
    made = HogPool(get_host(64).ticker, 2)
    yield made
    made.close()


async def run(pool: HogPool, poll: Callable[[], bool]) -> bool:
    guest: Any = Steered(poll)
    return await pool.run(guest, Meter())


async def test_a_job_that_ends(pool: HogPool) -> None:
    answers = iter([False, False, True])
    assert await run(pool, lambda: next(answers))


async def test_an_error_in_a_worker_comes_out_and_the_worker_goes_on(pool: HogPool) -> None:
    def fail() -> bool:
        raise MemoryError("on purpose")

    with pytest.raises(MemoryError, match="on purpose"):
        await run(pool, fail)
    assert await run(pool, lambda: True)


async def test_cancelling_a_job_that_has_just_come_back(pool: HogPool) -> None:
    """The worker is done and has asked for its task to be woken, which has not happened yet."""
    came_back = threading.Event()

    def end() -> bool:
        came_back.set()
        return True

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, pool, end)
            await trio.testing.wait_all_tasks_blocked()
            came_back.wait()
            time.sleep(0.05)  # noqa: ASYNC251 - the loop must not run while the job comes back
            scope.cancel()


async def test_cancelling_a_job_that_does_not_come_back_at_once(
    pool: HogPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slice goes on for longer than the trio thread is held up for it."""
    monkeypatch.setattr(_hogs, "HANDOVER", 0.001)
    entered, polls = threading.Event(), 0

    def slow() -> bool:
        nonlocal polls
        polls += 1
        entered.set()
        time.sleep(0.1)
        return False

    with trio.move_on_after(0.03) as scope:
        while True:
            assert not await run(pool, slow)
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    before = polls
    await trio.sleep(0.15)
    assert polls == before


async def test_cancelling_a_job_that_waits_for_a_worker(pool: HogPool) -> None:
    def work() -> bool:
        time.sleep(0.01)
        return False

    with trio.move_on_after(0.1):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(run, pool, work)
    assert not pool._jobs


async def test_two_workers_share_the_work(pool: HogPool) -> None:
    both = threading.Barrier(2, timeout=60)

    def meet() -> bool:
        both.wait()
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, pool, meet)
        nursery.start_soon(run, pool, meet)


async def test_workers_end_when_idle(pool: HogPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hogs, "IDLE", 0.02)
    assert await run(pool, lambda: True)
    with trio.fail_after(60):
        while pool._threads:  # noqa: ASYNC110 - a thread's end is no event of trio's
            await trio.sleep(0.01)
    assert await run(pool, lambda: True)


async def test_where_no_thread_can_be_started_a_job_is_sliced_where_it_is(
    pool: HogPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not await run(pool, lambda: True)
        assert not pool._jobs
    assert await run(pool, lambda: True)


async def test_without_workers_a_job_is_sliced_where_it_is() -> None:
    none = HogPool(get_host(64).ticker, 0)
    assert not await run(none, lambda: True)
    none.close()
