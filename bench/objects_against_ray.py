"""Putting and getting values through SPEAR's stores and through Ray's on this machine.

`nox -s bench_ray`, or with an interpreter that has both. Every put is of a numpy array,
without a hash, which is how Ray is fastest; every get ends with a view whose last byte was read.
Both put values into memory that earlier ones have had, as it is for anybody who goes on putting.
"put sealed" is what another process does: it fills memory of its own and seals it, and the store
takes that over. Ray is stopped before SPEAR is measured, so that neither disturbs the other; a copy
of the value in memory is measured with both. `--sizes` takes KiB.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy
import trio
from _report import Report, percentile

from spear_core.api import ObjectStore, SealedFile
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, open_lmdb_objects

SIZES_KIB = (1, 64, 1024, 16 << 10, 64 << 10, 256 << 10)
BYTES = 1 << 30
"""Of values that are put, about, for each size; but no more times than…"""
MOST, LEAST = 300, 15

ROOM = 4 << 30
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK

Times = dict[str, dict[int, float]]
"""p50 in µs, by what was done and the size."""


def turns(size: int) -> int:
    return max(LEAST, min(MOST, BYTES // size))


def p50(times: list[float]) -> float:
    return percentile(times, 50) * 1e6


def value_of(size: int) -> Any:
    return numpy.frombuffer(os.urandom(size), dtype=numpy.uint8)


def timed(work: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return p50(times)


async def timed_async(work: Callable[[], Awaitable[object]], count: int) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return p50(times)


def measure_ray(sizes: list[int]) -> Times:
    """What Ray takes; a value that was put is let go with its reference."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=ROOM,
    )
    found: Times = {"copy": {}, "put": {}, "get": {}}
    try:
        for size in sizes:
            value, count = value_of(size), turns(size)
            found["copy"][size] = timed(value.copy, count)
            ray.get(ray.put(value))
            found["put"][size] = timed(lambda value=value: ray.put(value), count)  # type: ignore[misc]
            ref = ray.put(value)
            found["get"][size] = timed(lambda ref=ref: ray.get(ref)[-1], count)  # type: ignore[misc]
            del ref
            gc.collect()
    finally:
        ray.shutdown()
    return found


async def measure_store(store: ObjectStore, sizes: list[int]) -> Times:
    """What a store of ours takes; each put replaces the value before."""
    found: Times = {"copy": {}, "put": {}, "get": {}, "put sealed": {}}
    for size in sizes:
        value, count = value_of(size), turns(size)
        found["copy"][size] = timed(value.copy, count)

        async def put(value: Any = value) -> None:
            await store.put("k", memoryview(value), hashed=False)

        async def get() -> None:
            async with store.open("k") as view:
                assert view.data[-1] >= 0

        async def put_sealed(value: Any = value, size: int = size) -> None:
            fd = os.memfd_create("bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                left = memoryview(value)
                while left:
                    left = left[os.write(fd, left) :]
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
                await store.put("k", SealedFile(fd, size), hashed=False)
            finally:
                os.close(fd)

        await put()
        found["put"][size] = await timed_async(put, count)
        found["get"][size] = await timed_async(get, count)
        found["put sealed"][size] = await timed_async(put_sealed, count)
        await store.delete("k")
    return found


async def measure_spear(sizes: list[int]) -> dict[str, Times]:
    room = MemoryStoreConfig(memory_store_bytes=ROOM)
    with tempfile.TemporaryDirectory(prefix="spear-bench-") as name:
        context = make_context(Path(name))
        async with open_memory_store(context, room) as store:
            memory = await measure_store(store, sizes)
        config = LmdbObjectsConfig(objects_durability="process")
        async with open_lmdb_objects(context, config) as store:
            lmdb = await measure_store(store, sizes)
    return {"memory": memory, "lmdb": lmdb}


def shown(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def main(sizes: list[int]) -> None:
    with Report("objects, p50: SPEAR beside Ray (the floor)") as report:
        ray = measure_ray(sizes)
        spear = trio.run(measure_spear, sizes)
        for size in sizes:
            copies = [ray["copy"][size], *(times["copy"][size] for times in spear.values())]
            report.row(f"{shown(size)}: a copy in memory", min(copies), "us")
            for what in ("put", "put sealed", "get"):
                floor = ray[what.partition(" ")[0]][size]
                for name, times in spear.items():
                    report.row(f"… {name}: {what}", times[what][size], "us",
                               floor=floor, target=f"<= {floor:.2f}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES_KIB), metavar="KIB")
    main([kib << 10 for kib in parser.parse_args().sizes])
