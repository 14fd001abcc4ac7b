"""A quiet function beside a noisy one that has a thousand times its load.

Both wait 5 ms in their guest, on a node with eight slots. The noisy one keeps 2,000 tasks in the
queue; the quiet one is called every 10 ms. Floor: the quiet one alone.
"""

from __future__ import annotations

import time

import trio
from _noop import NoopRuntime, open_noop_node
from _report import Report, percentile

from spear_core.api import (
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    NodeApi,
    PoolConfig,
    SpearletConfig,
)

CALLS = 400
BACKLOG = 2_000
CONFIG = SpearletConfig(
    execution=ExecutionConfig(
        max_concurrent_tasks=8, max_queued_tasks=100_000, shutdown_grace_ms=0
    ),
    pool=PoolConfig(max_instances=8),
)


async def work(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep(0.005)
    return ExecutionResponse.completed(b"")


async def quiet(api: NodeApi) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        response = await api.invoke(InvokeRequest(function="quiet"))
        assert response.success
        times.append((time.perf_counter() - started) * 1e3)
        await trio.sleep(0.01)
    return times


async def make_noise(api: NodeApi, done: list[float]) -> None:
    """Keep the queue full."""
    request = InvokeRequest(function="noisy", mode=ExecutionMode.ASYNC)
    while True:
        while (await api.status()).queued < BACKLOG:
            await api.invoke(request)
            done[0] += 1
        await trio.sleep(0.1)


async def measure(report: Report) -> None:
    submitted = [0.0]
    async with open_noop_node(NoopRuntime(work=work), CONFIG, functions=("quiet", "noisy")) as api:
        await quiet(api)
        alone = await quiet(api)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_noise, api, submitted)
            await trio.sleep(1)
            began, before = time.perf_counter(), submitted[0]
            beside = await quiet(api)
            rate = (submitted[0] - before) / (time.perf_counter() - began)
            waiting = (await api.status()).queued
            nursery.cancel_scope.cancel()
    ratio = percentile(beside, 99) / percentile(alone, 99)
    report.row("quiet, p50", percentile(beside, 50), "ms", floor=percentile(alone, 50))
    report.row("quiet, p99", percentile(beside, 99), "ms", floor=percentile(alone, 99))
    report.row("… p99 beside the noisy one / alone", ratio, "x", target="<= 3")
    report.row("noisy meanwhile", rate, "/s")
    report.row("waiting meanwhile", waiting, "tasks")


def main() -> None:
    with Report("fairness: a quiet function beside a noisy one") as report:
        trio.run(measure, report)


if __name__ == "__main__":
    main()
