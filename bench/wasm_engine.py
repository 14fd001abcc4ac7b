"""The WASM engine layer: a new instance for each call, 1 KiB in and 1 KiB out.

Floors: for our engine layer the same C calls from Python with nothing around them; for the whole
`execute` our engine layer. Beside them, what the same work costs through wasmtime's own wrapper.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import wasmtime
from _report import Report, percentile
from _wasm import ECHO, REQUEST, open_bench_runtime, spec_of

from spear_runtime_wasm._ffi import Guest, GuestLimits, load_library
from spear_runtime_wasm._module import LoadedModule
from spear_runtime_wasm._store import Machine

ROUNDS = 15
CALLS = 400
LIMITS = GuestLimits(128 << 20, 100_000)


def best(work: Callable[[], object]) -> float:
    """Microseconds of one call, in the best of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            work()
        rounds.append(time.perf_counter() - started)
    return min(rounds) / CALLS * 1e6


def bare_calls(machine: Machine, module: LoadedModule) -> Callable[[], object]:
    """The C calls of one execution, without a class, a check or a copy more than they need."""
    import ctypes

    lib, engine, pre = load_library(), machine.engine.ptr, module.pre
    frame = ctypes.create_string_buffer(1024)
    base = ctypes.addressof(frame)
    inst, mem, alloc, handle = base, base + 32, base + 64, base + 96
    args, result, trap, error = base + 128, base + 256, base + 512, base + 520
    first = ctypes.c_int32.from_address(args + 8)
    second = ctypes.c_int32.from_address(args + 40)
    small = ctypes.c_int32.from_address(result + 8)
    large = ctypes.c_int64.from_address(result + 8)
    payload = REQUEST.payload

    def run(future: int) -> None:
        lib.call_future_poll(future)
        lib.call_future_delete(future)

    def work(keep: object = frame) -> bytes:
        store = lib.store_new(engine, None, None)
        context = lib.store_context(store)
        lib.store_limiter(store, LIMITS.memory_bytes, LIMITS.table_elements, 1, -1, 1)
        lib.context_epoch_deadline_async_yield_and_update(context, 1)
        lib.context_set_epoch_deadline(context, 1)
        run(lib.instance_pre_instantiate_async(pre, context, inst, trap, error))
        lib.instance_export_get(context, inst, b"memory", 6, mem)
        lib.instance_export_get(context, inst, b"spear_alloc", 11, alloc)
        lib.instance_export_get(context, inst, b"handle", 6, handle)
        start = lib.memory_data(context, mem + 8)
        first.value = len(payload)
        run(lib.func_call_async(context, alloc + 8, args, 1, result, 1, trap, error))
        first.value, second.value = small.value, len(payload)
        ctypes.memmove(start + small.value, payload, len(payload))
        run(lib.func_call_async(context, handle + 8, args, 2, result, 1, trap, error))
        output = ctypes.string_at(start + (large.value >> 32), large.value & 0xFFFFFFFF)
        lib.store_delete(store)
        return output

    assert work() == payload
    return work


def engine_layer(machine: Machine, module: LoadedModule) -> Callable[[], object]:
    """Store, instance, two calls, memory in and out, everything dropped again."""
    entry, payload = module.entry(""), REQUEST.payload

    def work() -> bytes:
        guest = Guest(machine.engine, LIMITS)
        guest.begin_instantiate(module.pre)
        guest.poll()
        guest.finish()
        guest.find_exports(entry.exports, memory=entry.memory)
        guest.begin_call(entry.alloc, (len(payload),), results=1)
        guest.poll()
        guest.finish()
        pointer = guest.result_i32
        guest.write(pointer, payload)
        guest.begin_call(0, (pointer, len(payload)), results=1)
        guest.poll()
        guest.finish()
        result = guest.result_i64
        output = guest.read(result >> 32, result & 0xFFFFFFFF)
        guest.close()
        return output

    assert work() == payload
    return work


def wasmtime_wrapper() -> Callable[[], object]:
    """The same through the public classes of the `wasmtime` package, with its defaults."""
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, ECHO.decode())
    pre = wasmtime.Linker(engine).instantiate_pre(module)
    payload = REQUEST.payload

    def work() -> bytes:
        store = wasmtime.Store(engine)
        store.set_limits(memory_size=LIMITS.memory_bytes)
        exports: Any = pre.instantiate(store).exports(store)
        memory = exports["memory"]
        pointer = exports["spear_alloc"](store, len(payload))
        memory.write(store, payload, pointer)
        result = exports["handle"](store, pointer, len(payload))
        output = bytes(memory.read(store, result >> 32, (result >> 32) + (result & 0xFFFFFFFF)))
        store.close()
        return output

    assert work() == payload
    return work


async def latencies(work: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Microseconds of each of so many calls, one after the other."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        await work()
        found.append((time.perf_counter() - started) * 1e6)
    return found


async def main() -> None:
    async with open_bench_runtime() as bench:
        spec = spec_of(await bench.prepare(ECHO))
        store = bench.runtime._store
        module = store.get(spec.artifact.digest)
        assert module is not None
        with Report("WASM engine, a new instance for each call, 1 KiB in and out") as report:
            bare = best(bare_calls(store.machine, module))
            report.row("bare C calls from Python", bare, "us")
            ours = best(engine_layer(store.machine, module))
            report.row("engine layer", ours, "us", floor=bare, target="<= 15")
            report.row("wasmtime wrapper", best(wasmtime_wrapper()), "us", floor=bare)

            async def once() -> None:
                async with bench.runtime.open_instance(spec) as instance:
                    await instance.execute(REQUEST)

            await latencies(once, 200)
            found = await latencies(once, 4000)
            p50 = percentile(found, 50)
            report.row("open_instance + execute, p50", p50, "us", floor=ours, target="<= 40")
            report.row("open_instance + execute, p99", percentile(found, 99), "us", floor=ours)
            rate = len(found) / sum(found) * 1e6
            report.row("executions, one at a time", rate, "/s")


if __name__ == "__main__":
    trio.run(main)
