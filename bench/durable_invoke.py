"""What it costs that a task is on disk: a wasm echo of 1 KiB through the local socket, by nodes
that differ in nothing else.

Floor: the same with tasks in memory. Beside it, what a small commit takes LMDB alone: a call that
is alone waits for one or two, and with many in flight they share it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import lmdb
import trio
from _node import NodeProcess, run_node
from _report import Report, percentile
from _wasm import ECHO

from spear_core.api import ArtifactUpload, ExecutionMode, InvokeRequest, NodeApi

CALLS = 2_000
ROUNDS = 3
IN_FLIGHT = 64
SYNC = InvokeRequest(function="echo", payload=b"x" * 1024)
ASYNC = InvokeRequest(function="echo", payload=b"x" * 1024, mode=ExecutionMode.ASYNC)
CONFIGS = {
    "in memory": '[tasks]\ndurable = "off"\n',
    "on disk": '[tasks]\ndurable = "on"\n',
    "on disk, not awaiting it": (
        '[tasks]\ndurable = "on"\n[plugins.store-lmdb]\nmetadata_durability = "process"\n'
    ),
}
Call = Callable[[], Awaitable[object]]


async def latency(call: Call) -> float:
    """Milliseconds, the median of calls one after the other."""
    times = []
    for _ in range(CALLS // 4):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e3)
    return percentile(times, 50)


async def rate(call: Call) -> float:
    """Calls per second with many in flight."""

    async def caller() -> None:
        for _ in range(CALLS // IN_FLIGHT):
            await call()

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(caller)
    return CALLS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - started)


async def measure(node: NodeProcess) -> dict[str, float]:
    """The best of some rounds."""
    async with node.connect() as api:
        await api.deploy(ArtifactUpload(name="echo", filename="echo.wat", content=ECHO))
        await api.invoke(SYNC)
        calls: dict[str, Call] = {
            "sync": lambda: api.invoke(SYNC),
            "async and wait": lambda: submitted(api),
        }
        figures = {}
        for name, call in calls.items():
            alone = [await latency(call) for _ in range(ROUNDS)]
            many = [await rate(call) for _ in range(ROUNDS)]
            figures[f"{name}, one at a time"] = min(alone)
            figures[f"{name}, {IN_FLIGHT} in flight"] = max(many)
    return figures


async def submitted(api: NodeApi) -> None:
    """A task in the background, and its result."""
    task_id = (await api.invoke(ASYNC)).task.task_id
    await api.get_task(task_id, wait=True)


def flush() -> float:
    """Milliseconds of a commit of 1 KiB with LMDB alone."""
    times = []
    with tempfile.TemporaryDirectory(prefix="spear-bench-") as folder:
        environment = lmdb.open(str(Path(folder)), map_size=64 << 20)
        for number in range(500):
            started = time.perf_counter()
            with environment.begin(write=True) as transaction:
                transaction.put(b"%d" % number, b"x" * 1024)
            times.append((time.perf_counter() - started) * 1e3)
        environment.close()
    return percentile(times, 50)


def main() -> None:
    with Report("tasks on disk") as report:
        report.row("a commit of 1 KiB, LMDB alone", flush(), "ms")
        floors: dict[str, float] = {}
        for name, config in CONFIGS.items():
            with run_node(config=config) as node:
                figures = trio.run(measure, node)
            for what, value in figures.items():
                unit = "ms" if what.endswith("time") else "/s"
                report.row(f"{name}: {what}", value, unit, floor=floors.get(what))
            floors = floors or figures


if __name__ == "__main__":
    main()
