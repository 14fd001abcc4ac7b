"""The node's own work for an execution: `NodeApi.invoke` to its answer, and nothing to execute.

Everything is in it: resolving, limits, queue, task table, pool, deadline, metrics, retention.
Floor: a bare trio nursery's start of one task that is awaited.
"""

from __future__ import annotations

import time

import trio
from _noop import NoopRuntime, open_noop_node
from _report import Report, percentile

from spear_core.api import ExecutionMode, InvokeRequest, NodeApi, SpearletConfig

CALLS = 10_000
ROUNDS = 3
CALL = InvokeRequest(function="f", payload=b"x" * 1024)


async def bare() -> list[float]:
    """Microseconds to start a task and wait for it."""
    times = []
    async with trio.open_nursery() as nursery:

        async def work(done: trio.Event) -> None:
            await trio.lowlevel.checkpoint()
            done.set()

        for _ in range(CALLS):
            started = time.perf_counter()
            done = trio.Event()
            nursery.start_soon(work, done)
            await done.wait()
            times.append((time.perf_counter() - started) * 1e6)
    return times


async def one_by_one(api: NodeApi) -> list[float]:
    """Microseconds of each call."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await api.invoke(CALL)
        times.append((time.perf_counter() - started) * 1e6)
    return times


async def side_by_side(api: NodeApi, callers: int) -> float:
    """Calls per second of cpu with this many callers."""

    async def caller() -> None:
        for _ in range(CALLS // callers):
            await api.invoke(CALL)

    started = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(caller)
    return CALLS / (time.process_time() - started)


async def in_background(api: NodeApi) -> float:
    """Calls per second of cpu, accepted first and then waited for."""
    request = InvokeRequest(function="f", payload=CALL.payload, mode=ExecutionMode.ASYNC)
    started = time.process_time()
    for _ in range(CALLS // 500):
        ids = [(await api.invoke(request)).task.task_id for _ in range(500)]
        for task_id in ids:
            await api.get_task(task_id, wait=True)
    return CALLS / (time.process_time() - started)


async def measure(report: Report) -> None:
    floors = [await bare() for _ in range(ROUNDS)]
    async with open_noop_node(NoopRuntime(), SpearletConfig()) as api:
        await one_by_one(api)
        rounds = [await one_by_one(api) for _ in range(ROUNDS)]
        single = max([await side_by_side(api, 1) for _ in range(ROUNDS)])
        many = max([await side_by_side(api, 64) for _ in range(ROUNDS)])
        queued = max([await in_background(api) for _ in range(ROUNDS)])
    floor = [min(percentile(times, p) for times in floors) for p in (50, 99)]
    middle = [min(percentile(times, p) for times in rounds) for p in (50, 99)]
    report.row("an execution of nothing, p50", middle[0], "us", floor=floor[0])
    report.row("… p99", middle[1], "us", floor=floor[1])
    report.row(
        "… one caller, per second of cpu", single, "/s", floor=1e6 / floor[0], target=">= 8,000"
    )
    report.row("… 64 callers, likewise", many, "/s", floor=1e6 / floor[0], target=">= 8,000")
    report.row("… async, 500 at a time, likewise", queued, "/s", floor=1e6 / floor[0])


def main() -> None:
    with Report("bookkeeping: executions of nothing, in process") as report:
        trio.run(measure, report)


if __name__ == "__main__":
    main()
