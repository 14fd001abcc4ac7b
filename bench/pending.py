"""100,000 pending tasks through `NodeApi.invoke`: what one costs, and in what order they run.

The only runtime is one that does nothing, in this process. Floor of a submission: making the
request and one trio checkpoint.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import attrs
import trio
import trio.testing
from _noop import NoopRuntime, open_noop_node
from _report import Report, percentile

from spear_core.api import (
    ExecutionConfig,
    ExecutionMode,
    InvokeRequest,
    NodeApi,
    SpearletConfig,
    TaskConfig,
)

TASKS = 100_000
CONFIG = SpearletConfig(
    execution=ExecutionConfig(
        max_concurrent_tasks=1,
        max_queued_tasks=TASKS + 10,
        max_queued_per_artifact=TASKS + 10,
        task_timeout_ms=3_600_000,
    ),
    tasks=TaskConfig(keep_finished=10),
)


def resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def floor() -> list[float]:
    """Microseconds of a request that goes nowhere."""
    times = []
    for number in range(10_000):
        started = time.perf_counter()
        InvokeRequest(function="f", payload=b"%d" % number, mode=ExecutionMode.ASYNC)
        await trio.lowlevel.checkpoint()
        times.append((time.perf_counter() - started) * 1e6)
    return times


async def measure(report: Report) -> None:
    bare = await floor()
    gate = trio.Event()
    order: list[bytes] = []
    runtime = NoopRuntime(order=order, gate=gate)
    async with open_noop_node(runtime, CONFIG) as api:
        plug = InvokeRequest(function="f", mode=ExecutionMode.ASYNC)
        await api.invoke(plug)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        before = resident()
        times = []
        used = time.process_time()
        for number in range(TASKS):
            started = time.perf_counter()
            await api.invoke(attrs.evolve(plug, payload=b"%d" % number))
            times.append((time.perf_counter() - started) * 1e6)
        used = (time.process_time() - used) / TASKS * 1e6
        gc.collect()
        each = (resident() - before) / TASKS / 1024
        began = time.perf_counter()
        gate.set()
        while (await api.status()).queued:  # noqa: ASYNC110 - as a caller would see it
            await trio.sleep(0.02)
        drained = TASKS / (time.perf_counter() - began)
        cancelled = await cancelling(api, runtime, plug)
    in_order = order[1 : TASKS + 1] == [b"%d" % number for number in range(TASKS)]
    report.row("submit, mean of cpu time", used, "us", target="<= 100")
    report.row("submit, p50", percentile(times, 50), "us", floor=percentile(bare, 50))
    report.row("submit, p99", percentile(times, 99), "us", floor=percentile(bare, 99))
    report.row("memory of each that waits (RSS)", each, "KiB", target="<= 3")
    report.row("out of order", 0.0 if in_order else 1.0, "", target="<= 0")
    report.row("drained with one slot", drained, "/s")
    report.row("cancel one of 10,000 that wait, mean", cancelled, "us")


async def cancelling(api: NodeApi, runtime: NoopRuntime, plug: InvokeRequest) -> float:
    """Microseconds to cancel a task that waits among many, in an order that is nobody's."""
    runtime.gate = trio.Event()
    await api.invoke(plug)
    await trio.testing.wait_all_tasks_blocked()
    ids = [(await api.invoke(plug)).task.task_id for _ in range(10_000)]
    ids.sort()
    began = time.perf_counter()
    for task_id in ids:
        await api.cancel_task(task_id)
    elapsed = time.perf_counter() - began
    runtime.gate.set()
    return elapsed / len(ids) * 1e6


def main() -> None:
    with Report("the queue: 100,000 pending tasks") as report:
        trio.run(measure, report)


if __name__ == "__main__":
    main()
