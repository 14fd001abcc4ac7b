"""A quiet function beside a noisy one that has a thousand times its load.

Both wait 5 ms in their guest, on a node with eight slots. The noisy one keeps 2,000 tasks in the
queue; the quiet one is called every 10 ms. Floor: the quiet one alone.

First with a runtime that does nothing, then with wasm guests. "The loop was busy" is the processor
time of single passes of trio's scheduler beside the noisy one: for so long, nobody else ran.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import trio
from _noop import NoopRuntime, open_noop_node
from _report import Report, percentile

from spear_core.api import (
    ArtifactUpload,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    NodeApi,
    PoolConfig,
    SpearletConfig,
)
from spear_core.config import load_config
from spear_core.node import open_node
from spear_core.plugins import load_plugins

CALLS = 400
COLLECT_EVERY = (20_000, 20, 50)
BACKLOG = 2_000
FUNCTIONS = ("quiet", "noisy")
CONFIG = SpearletConfig(
    execution=ExecutionConfig(
        max_concurrent_tasks=8, max_queued_tasks=100_000, shutdown_grace_ms=0
    ),
    pool=PoolConfig(max_instances=8),
)
SLEEPER = b"""(module (import "spear" "sleep_ms" (func $sleep (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $sleep (i32.const 5))))"""


class Passes(trio.abc.Instrument):
    """Milliseconds of processor time of each pass of the loop."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._began = time.thread_time()

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self.times.append((time.thread_time() - self._began) * 1e3)


async def work(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep(0.005)
    return ExecutionResponse.completed(b"")


@asynccontextmanager
async def open_wasm_node() -> AsyncIterator[NodeApi]:
    """With Python's collector as `spear node` has it."""
    plugins = load_plugins(["builtins", "runtime-wasm"])
    settings = attrs.evolve(load_config(None, plugins), spearlet=CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        async with open_node(settings, plugins, state_dir=Path(folder), serve=False) as node:
            for name in FUNCTIONS:
                code = SLEEPER + name.encode().join((b"\n;; ", b"\n"))
                await node.api.deploy(
                    ArtifactUpload(name=name, filename=f"{name}.wat", content=code)
                )
            usual = gc.get_threshold()
            gc.freeze()
            gc.set_threshold(*COLLECT_EVERY)
            yield node.api
            gc.set_threshold(*usual)
            gc.unfreeze()


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


async def measure(
    report: Report, guests: str, node: AbstractAsyncContextManager[NodeApi], *, target: str
) -> None:
    submitted = [0.0]
    async with node as api:
        await quiet(api)
        alone = await quiet(api)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_noise, api, submitted)
            while (await api.status()).queued < BACKLOG * 0.9:  # noqa: ASYNC110 - as a caller sees it
                await trio.sleep(0.01)
            await trio.sleep(1)
            began, before = time.perf_counter(), submitted[0]
            passes = Passes()
            trio.lowlevel.add_instrument(passes)
            beside = await quiet(api)
            trio.lowlevel.remove_instrument(passes)
            rate = (submitted[0] - before) / (time.perf_counter() - began)
            waiting = (await api.status()).queued
            nursery.cancel_scope.cancel()
    ratio = percentile(beside, 99) / percentile(alone, 99)
    report.row(f"quiet {guests}, p50", percentile(beside, 50), "ms", floor=percentile(alone, 50))
    report.row("… p99", percentile(beside, 99), "ms", floor=percentile(alone, 99))
    report.row("… p99 beside the noisy one / alone", ratio, "x", target=target)
    report.row("the loop was busy, p99", percentile(passes.times, 99), "ms")
    report.row("… longest", max(passes.times), "ms")
    report.row("noisy meanwhile", rate, "/s")
    report.row("waiting meanwhile", waiting, "tasks")


async def measure_all(report: Report) -> None:
    noop = open_noop_node(NoopRuntime(work=work), CONFIG, functions=FUNCTIONS)
    await measure(report, "function, no runtime", noop, target="<= 3")
    await measure(report, "wasm guest", open_wasm_node(), target="<= 3")


def main() -> None:
    with Report("fairness: a quiet function beside a noisy one") as report:
        trio.run(measure_all, report)


if __name__ == "__main__":
    main()
