"""How late an endless loop is stopped, while a hundred other guests go on.

The others compute a little and sleep a little, for ever. The floor is what a bare trio task is
late at its own deadline in the same company.
"""

from __future__ import annotations

import trio
from _report import Report, percentile
from _wasm import LOOP, REQUEST, open_bench_runtime, spec_of

from spear_core.api import InstanceSpec
from spear_runtime_wasm._runtime import WasmRuntime

OTHERS = 100
KILLS = 40
BUSY = b"""(module (import "spear" "sleep_ms" (func $sleep (param i32)))
  (func (export "_start") (local $n i32) (loop
    (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1)))
      (i32.const 20000))))
    (call $sleep (i32.const 20))))"""


async def lateness(seconds: float, runtime: WasmRuntime | None, spec: InstanceSpec) -> float:
    """Milliseconds from the deadline to the moment the guest (or a bare sleep) is gone."""
    deadline = trio.current_time() + seconds
    with trio.CancelScope(deadline=deadline):
        if runtime is None:
            await trio.sleep_forever()
        else:
            async with runtime.open_instance(spec) as instance:
                await instance.execute(REQUEST)
    return (trio.current_time() - deadline) * 1e3


async def main() -> None:
    async with open_bench_runtime() as bench:
        runtime = bench.runtime
        loop, busy = spec_of(await bench.prepare(LOOP)), spec_of(await bench.prepare(BUSY))
        rounds = 0

        async def other() -> None:
            nonlocal rounds
            while True:
                async with runtime.open_instance(busy) as instance:
                    response = await instance.execute(REQUEST)
                assert response.error is None, response.error
                rounds += 1

        async with trio.open_nursery() as nursery:
            for _ in range(OTHERS):
                nursery.start_soon(other)
            await trio.sleep(0.2)
            bare = [await lateness(0.03, None, loop) for _ in range(KILLS)]
            before, started = rounds, trio.current_time()
            short = [await lateness(0.005, runtime, loop) for _ in range(KILLS)]
            moved = [await lateness(0.05, runtime, loop) for _ in range(KILLS)]
            rate = (rounds - before) / (trio.current_time() - started)
            nursery.cancel_scope.cancel()
        with Report(f"Stopping an endless loop among {OTHERS} other WASM guests") as report:
            for name, found in (("in its first slices", short), ("in a worker thread", moved)):
                p50, floor = percentile(found, 50), percentile(bare, 50)
                report.row(f"{name}: late by, p50", p50, "ms", floor=floor, target="<= 5")
                worst = percentile(found, 95)
                report.row(f"{name}: p95", worst, "ms", floor=percentile(bare, 95))
            report.row("executions of the others meanwhile", rate, "/s")


if __name__ == "__main__":
    trio.run(main)
