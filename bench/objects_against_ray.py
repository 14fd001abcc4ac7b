"""Putting and getting values through SPEAR's stores and through Ray's on this machine.

`nox -s bench_ray`, or with an interpreter that has both. Every put is of a numpy array,
without a hash, which is how Ray is fastest; every get ends with a view whose last byte was read.
Both put values into memory that earlier ones have had, as it is for anybody who goes on putting.
"put sealed" is what another process does: it fills memory of its own and seals it, and the store
takes that over. Ray and both stores take turns at each size, so that what else the machine does
meets all of them, and so do the floors: a copy of the value in memory; and of the kernel alone, in
the file system of the store on disk, `write` into a new file that takes the place of another,
`write` over what is in a file, and open, map and close of one. `--sizes` takes KiB; `--best` shows
the quickest of each instead of the p50, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import mmap
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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
MOST, LEAST, ROUNDS = 300, 15, 3
AT_ONCE = 16 << 20
"""Bytes of one `write`."""

WARM = 6
"""Puts before the ones that are measured, until values take turns in the same memory."""

ROOM = 4 << 30
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK

Times = dict[str, list[float]]
"""Seconds, by what was done."""


def p50(times: list[float]) -> float:
    return percentile(times, 50) * 1e6


def best(times: list[float]) -> float:
    return min(times) * 1e6


def turns(size: int) -> int:
    """How often in each round."""
    return max(LEAST, min(MOST, BYTES // size)) // ROUNDS


def value_of(size: int) -> Any:
    return numpy.frombuffer(os.urandom(size), dtype=numpy.uint8)


def timed(times: list[float], work: Callable[[], object], count: int) -> None:
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)


async def timed_async(
    times: list[float], work: Callable[[], Awaitable[object]], count: int
) -> None:
    for _ in range(count):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)


@contextmanager
def running_ray() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    import ray

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=ROOM,
    )
    try:
        yield ray
    finally:
        ray.shutdown()


def measure_ray(ray: Any, value: Any, found: Times) -> None:
    """What Ray takes; a value that was put is let go with its reference."""
    count = turns(value.nbytes)
    for _ in range(WARM):
        ray.get(ray.put(value))
    timed(found["put"], lambda: ray.put(value), count)
    ref = ray.put(value)
    timed(found["get"], lambda: ray.get(ref)[-1], count)


async def measure_store(store: ObjectStore, value: Any, found: Times) -> None:
    """What a store of ours takes; each put replaces the value before."""
    count = turns(value.nbytes)

    async def put() -> None:
        await store.put("k", memoryview(value), hashed=False)

    async def get() -> None:
        async with store.open("k") as view:
            assert view.data[-1] >= 0

    async def put_sealed() -> None:
        fd = os.memfd_create("bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            left = memoryview(value)
            while left:
                left = left[os.write(fd, left) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            await store.put("k", SealedFile(fd, value.nbytes), hashed=False)
        finally:
            os.close(fd)

    for _ in range(WARM):
        await put()
    await timed_async(found["put"], put, count)
    await timed_async(found["get"], get, count)
    await timed_async(found["put sealed"], put_sealed, count)
    await store.delete("k")


def measure_files(folder: Path, value: Any, found: Times) -> None:
    """What the kernel alone takes for files, in its page cache."""
    path = folder / "floor"
    data = memoryview(value)

    def write(descriptor: int) -> None:
        for start in range(0, len(data), AT_ONCE):
            os.pwrite(descriptor, data[start : start + AT_ONCE], start)

    def new() -> None:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            write(descriptor)
        finally:
            os.close(descriptor)

    def view() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with mmap.mmap(descriptor, len(data), prot=mmap.PROT_READ) as mapping:
                assert mapping[-1] >= 0
        finally:
            os.close(descriptor)

    timed(found["new file"], new, turns(len(data)))
    descriptor = os.open(path, os.O_RDWR)
    try:
        timed(found["over a file"], lambda: write(descriptor), turns(len(data)))
    finally:
        os.close(descriptor)
    timed(found["open and map"], view, turns(len(data)))
    path.unlink()


async def measure(ray: Any, sizes: list[int]) -> dict[int, dict[str, Times]]:
    """By size and by whose it is."""
    found: dict[int, dict[str, Times]] = {}
    with tempfile.TemporaryDirectory(prefix="spear-bench-") as name:
        context = make_context(Path(name))
        room = MemoryStoreConfig(memory_store_bytes=ROOM)
        disk = LmdbObjectsConfig(objects_durability="process")
        async with (
            open_memory_store(context, room) as memory,
            open_lmdb_objects(context, disk) as lmdb,
        ):
            for size in sizes:
                value = value_of(size)
                times = found[size] = {
                    whose: defaultdict(list) for whose in ("floors", "ray", "memory", "lmdb")
                }
                for _ in range(ROUNDS):
                    measure_ray(ray, value, times["ray"])
                    gc.collect()
                    await measure_store(memory, value, times["memory"])
                    await measure_store(lmdb, value, times["lmdb"])
                    timed(times["floors"]["a copy in memory"], value.copy, turns(size))
                    measure_files(Path(name), value, times["floors"])
    return found


def shown(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def main(sizes: list[int], one: Callable[[list[float]], float]) -> None:
    with Report(f"objects, {one.__name__}: SPEAR beside Ray (the floor)") as report:
        with running_ray() as ray:
            found = trio.run(measure, ray, sizes)
        for size, times in found.items():
            for what, seconds in times["floors"].items():
                report.row(f"{shown(size)}: {what}", one(seconds), "us")
            for what in ("put", "put sealed", "get"):
                floor = one(times["ray"][what.partition(" ")[0]])
                for name in ("memory", "lmdb"):
                    report.row(f"… {name}: {what}", one(times[name][what]), "us",
                               floor=floor, target=f"<= {floor:.2f}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES_KIB), metavar="KIB")
    parser.add_argument("--best", action="store_true", help="the quickest, not the p50")
    chosen = parser.parse_args()
    main([kib << 10 for kib in chosen.sizes], best if chosen.best else p50)
