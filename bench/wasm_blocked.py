"""A thousand WASM guests blocked in a hostcall at the same time, on one thread.

Each sleeps `SLEEPS` times for `MILLISECONDS`; the floor of the wall time is that sum, the floor of
the memory is what as many bare trio tasks take that sleep.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Awaitable, Callable

import trio
from _report import Report
from _wasm import REQUEST, open_bench_runtime, spec_of

GUESTS = 1000
SLEEPS = 5
MILLISECONDS = 100
SLEEPER = f"""(module (import "spear" "sleep_ms" (func $sleep (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32) (loop
    (call $sleep (i32.const {MILLISECONDS}))
    (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1)))
      (i32.const {SLEEPS}))))))""".encode()


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def crowd(work: Callable[[], Awaitable[object]]) -> tuple[float, float, int]:
    """Seconds for all, bytes of each while they are blocked, threads in use then."""
    gc.collect()
    before = resident()
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(GUESTS):
            nursery.start_soon(work)
        await trio.sleep(SLEEPS * MILLISECONDS / 1000 * 0.6)
        each, threads = (resident() - before) / GUESTS, threading.active_count()
    return trio.current_time() - started, each, threads


async def sleep_only() -> None:
    for _ in range(SLEEPS):
        await trio.sleep(MILLISECONDS / 1000)


async def main() -> None:
    async with open_bench_runtime() as bench:
        spec = spec_of(await bench.prepare(SLEEPER))

        async def guest() -> None:
            async with bench.runtime.open_instance(spec) as instance:
                response = await instance.execute(REQUEST)
            assert response.error is None, response.error

        await guest()
        bare_seconds, bare, threads_before = await crowd(sleep_only)
        seconds, each, threads = await crowd(guest)
        with Report(f"{GUESTS} WASM guests blocked in a hostcall") as report:
            ideal = SLEEPS * MILLISECONDS / 1000
            report.row("wall time of bare trio tasks", bare_seconds, "s", floor=ideal)
            report.row("wall time", seconds, "s", floor=ideal, target=f"<= {ideal * 1.5}")
            report.row("memory of each, first time", each / 1024, "KiB", floor=bare / 1024,
                       target="<= 40")  # fmt: skip
            report.row("threads more than without guests", threads - threads_before, "",
                       target="<= 1")  # fmt: skip


if __name__ == "__main__":
    trio.run(main)
