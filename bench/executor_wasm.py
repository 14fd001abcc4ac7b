"""A wasm function through the executor, in process: queue, task, fresh instance, result, log.

Floor: `execute` on an instance opened by hand, with no node around it. Beside it, the node's own
share when tasks are many: throughput with one caller and with 64.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from _report import Report, percentile
from _wasm import ECHO, REQUEST, open_bench_runtime, spec_of

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi
from spear_core.config import load_config
from spear_core.node import open_node
from spear_core.plugins import load_plugins

CALLS = 6_000
ROUNDS = 3
CALL = InvokeRequest(function="echo", payload=REQUEST.payload)


@asynccontextmanager
async def open_echo_node() -> AsyncIterator[NodeApi]:
    """A node that serves nobody, with the echo module deployed and compiled."""
    plugins = load_plugins(["builtins", "runtime-wasm"])
    settings = load_config(None, plugins)
    with tempfile.TemporaryDirectory() as folder:
        async with open_node(settings, plugins, state_dir=Path(folder), serve=False) as node:
            upload = ArtifactUpload(name="echo", filename="echo.wat", content=ECHO)
            await node.api.deploy(upload)
            await node.api.invoke(CALL)
            yield node.api


async def one_by_one(api: NodeApi) -> list[float]:
    """Microseconds of each call."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        response = await api.invoke(CALL)
        times.append((time.perf_counter() - started) * 1e6)
    assert response.task.result is not None
    assert response.task.result.output == CALL.payload
    return times


async def side_by_side(api: NodeApi, callers: int) -> float:
    """Calls per second with this many callers."""

    async def caller() -> None:
        for _ in range(CALLS // callers):
            await api.invoke(CALL)

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(caller)
    return CALLS / (time.perf_counter() - started)


async def bare_runtime() -> list[float]:
    """Microseconds of `open_instance` and `execute` without a node."""
    times = []
    async with open_bench_runtime() as bench:
        artifact = await bench.prepare(ECHO)
        for _ in range(CALLS):
            started = time.perf_counter()
            async with bench.runtime.open_instance(spec_of(artifact)) as instance:
                await instance.execute(REQUEST)
            times.append((time.perf_counter() - started) * 1e6)
    return times


async def measure(report: Report) -> None:
    floors = [await bare_runtime() for _ in range(ROUNDS)]
    async with open_echo_node() as api:
        rounds = [await one_by_one(api) for _ in range(ROUNDS)]
        singles = [CALLS / (sum(times) / 1e6) for times in rounds]
        many = [await side_by_side(api, 64) for _ in range(ROUNDS)]
    middle = [min(percentile(times, p) for times in rounds) for p in (50, 99)]
    floor = [min(percentile(times, p) for times in floors) for p in (50, 99)]
    report.row("wasm call through the executor, p50", middle[0], "us", floor=floor[0],
               target="<= 120")  # fmt: skip
    report.row("… p99", middle[1], "us", floor=floor[1])
    report.row("… one caller", max(singles), "/s", floor=1e6 / floor[0], target=">= 8,000")
    report.row("… 64 callers", max(many), "/s", floor=1e6 / floor[0], target=">= 8,000")


def main() -> None:
    with Report("wasm through the executor: fresh instance, 1 KiB in and out") as report:
        trio.run(measure, report)


if __name__ == "__main__":
    main()
