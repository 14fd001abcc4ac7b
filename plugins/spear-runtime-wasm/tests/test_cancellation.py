"""Cancelled means that the guest no longer runs, whatever it was doing."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from typing import Any

import pytest
import trio

from spear_core.api import ExecutionStatus
from spear_runtime_wasm._fiber import PATIENCE
from spear_runtime_wasm._ticker import PERIOD

LATE = 30.0
"""Seconds that are too many on any machine; `bench/wasm_kill.py` measures the real ones."""
HELD_UP = 0.5
"""Seconds that the node's loop usually takes much less than for one turn."""
LOOP = '(module (func (export "_start") (loop (br 0))))'
SLEEP = """(module (import "spear" "sleep_ms" (func $sleep (param i32)))
  (func (export "_start") (call $sleep (i32.const {ms}))))"""
POLL = """(module
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i64.store (i32.const 24) (i64.const {ns}))
    (i32.store (i32.const 16) (i32.const 1))
    (if (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200))
      (then unreachable))
    (if (i32.ne (i32.load (i32.const 200)) (i32.const 1)) (then unreachable))))"""
CHATTY_LOOP = """(module (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "still here")
  (func (export "_start") (local $i i32) (loop
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (if (i32.eqz (i32.rem_u (local.get $i) (i32.const 3000000)))
      (then (drop (call $log (i32.const 2) (i32.const 0) (i32.const 10)))))
    (br 0))))"""


def has_worker() -> bool:
    return "spear-wasm-worker-0" in {thread.name for thread in threading.enumerate()}


async def stopped_after(guests: Any, code: str, seconds: float) -> float:
    """Seconds between the deadline and the return."""
    await guests.runtime.prepare(guests.make_artifact(code))
    deadline = trio.current_time() + seconds
    with trio.CancelScope(deadline=deadline) as scope:
        await guests.run(code)
    late = trio.current_time() - deadline
    assert scope.cancelled_caught
    return late


async def test_a_loop_on_the_trio_thread(guests: Any) -> None:
    assert await stopped_after(guests, LOOP, PERIOD * PATIENCE / 4) < LATE


async def test_a_loop_that_has_moved_to_a_worker(guests: Any) -> None:
    assert await stopped_after(guests, LOOP, 0.2) < LATE


async def test_statistics_of_a_guest_that_computes(guests: Any) -> None:
    async with guests.open(LOOP) as instance, trio.open_nursery() as nursery:
        nursery.start_soon(instance.execute, guests.request())
        with trio.fail_after(60):
            while (instance.statistics().cpu_seconds or 0) < 0.05:  # noqa: ASYNC110 - no event
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert instance.statistics().executions == 1


@pytest.mark.alone
async def test_the_loop_of_the_node_stays_free_while_a_guest_computes(guests: Any) -> None:
    await guests.runtime.prepare(guests.make_artifact(LOOP))
    turns = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guests.run, LOOP)
        with trio.fail_after(60):
            while not has_worker():  # noqa: ASYNC110 - a thread's start is no event of trio's
                await trio.sleep(0.01)
            before = time.process_time()
            # until the guest has gone on meanwhile, however seldom it gets a processor
            while len(turns) < 40 or time.process_time() - before < 0.02:
                started = time.perf_counter()
                await trio.lowlevel.checkpoint()
                turns.append(time.perf_counter() - started)
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    # half of them: a machine that stands still for a moment holds up one or two
    assert statistics.median(turns) < HELD_UP


async def test_more_loops_than_workers_take_turns_and_all_stop(guests: Any) -> None:
    await guests.runtime.prepare(guests.make_artifact(LOOP))
    with trio.move_on_after(0.3) as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(guests.run, LOOP)
    assert scope.cancelled_caught


@pytest.mark.alone
async def test_cancelling_at_any_moment_of_the_way_to_a_worker_and_back(guests: Any) -> None:
    """Guests that end, and are cancelled, at about the same time, on purpose."""
    finite = """(module (func (export "_start") (local $n i32) (loop
      (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1)))
        (i32.const 30000000))))))"""
    await guests.runtime.prepare(guests.make_artifact(finite))
    ends = Counter[bool]()

    async def some(first: int) -> None:
        for number in range(first, 40, 4):
            with trio.move_on_after(0.001 + number * 0.001) as scope:
                response = await guests.run(finite)
                assert response.error is None
            ends[scope.cancelled_caught] += 1

    async with trio.open_nursery() as nursery:
        for first in range(4):
            nursery.start_soon(some, first)
    assert ends.total() == 40
    assert ends[True]


async def test_the_log_of_a_computing_guest_arrives_meanwhile(guests: Any, log: Any) -> None:
    await guests.runtime.prepare(guests.make_artifact(CHATTY_LOOP))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guests.run, CHATTY_LOOP)
        with trio.fail_after(60):
            while len(log.lines) < 5:  # noqa: ASYNC110 - the log is no channel
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert log.lines[0] == ("e1", "still here", "info", "guest")


async def test_cancelling_writes_one_warning(guests: Any, log: Any) -> None:
    await stopped_after(guests, LOOP, 0.2)
    assert [entry[2] for entry in log.lines] == ["warn"]


async def test_a_guest_asleep(guests: Any) -> None:
    assert await stopped_after(guests, SLEEP.format(ms=60_000), 0.05) < LATE


async def test_a_guest_asleep_in_wasi(guests: Any) -> None:
    assert await stopped_after(guests, POLL.format(ns=60_000_000_000), 0.05) < LATE


async def test_sleeping_takes_its_time_and_no_thread(guests: Any, autojump_clock: Any) -> None:
    started = trio.current_time()
    response = await guests.run(SLEEP.format(ms=3_600_000))
    assert response.status is ExecutionStatus.COMPLETED
    assert trio.current_time() - started >= 3600
    response = await guests.run(POLL.format(ns=7_200_000_000_000))
    assert response.status is ExecutionStatus.COMPLETED
    assert trio.current_time() - started >= 3600 + 7200


async def test_an_instance_that_was_cancelled_leaves_nothing_behind(guests: Any) -> None:
    """The next execution gets a store of its own."""
    code = SLEEP.format(ms=60_000).replace(
        '(func (export "_start")', '(func (export "quick")) (func (export "_start")'
    )
    async with guests.open(code) as instance:
        with trio.move_on_after(0.02):
            await instance.execute(guests.request())
        response = await instance.execute(guests.request(entry="quick"))
    assert response.status is ExecutionStatus.COMPLETED


async def test_an_execution_in_a_cancelled_scope_does_not_begin(guests: Any) -> None:
    async with guests.open('(module (func (export "_start")))') as instance:
        with trio.CancelScope() as scope:
            scope.cancel()
            await instance.execute(guests.request())
        assert scope.cancelled_caught
        assert instance.statistics().executions == 0
