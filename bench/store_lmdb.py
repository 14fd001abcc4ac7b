"""The LMDB stores beside raw LMDB and raw memory.

Floors, in this run: of a get, LMDB's own with a transaction around it; of a durable put, one LMDB
transaction with a flush for each batch of 64, which is what group commit could do at best; of
64 MiB, a copy of it in memory, and `write` into a new file of the same file system, with and
without waiting for the disk. `--objects N` says how many objects the large store has (default
1,000,000).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import trio
from _report import Report, percentile

from spear_core.api import PutObject
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, _objects, open_lmdb_objects

SMALL = 1024
GETS = 200
TURNS = 300
WRITERS = 64
WRITES = 10
PUT_TURNS = 100
LARGE = 64 << 20
ROUNDS = 5


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the quickest of some rounds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


async def best_async(work: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return min(times)


def anonymous_memory() -> float:
    """MiB of this process that are no file's."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024


@contextmanager
def raw_gets(folder: Path) -> Iterator[Callable[[], None]]:
    """Gets of a kibibyte, each in a transaction of its own."""
    with lmdb.open(str(folder), map_size=1 << 30, max_dbs=1, sync=False) as env:
        db = env.open_db(b"values")
        with env.begin(write=True, db=db) as txn:
            for number in range(1000):
                txn.put(b"k/%06d" % number, os.urandom(SMALL))

        def work() -> None:
            for number in range(GETS):
                with env.begin(db=db) as txn:
                    txn.get(b"k/%06d" % (number * 7919 % 1000))

        yield work


@contextmanager
def raw_puts(folder: Path) -> Iterator[Callable[[], None]]:
    """Durable puts of a kibibyte, 64 to a transaction."""
    with lmdb.open(str(folder), map_size=1 << 30) as env:
        value = os.urandom(SMALL)

        def work() -> None:
            for _ in range(WRITES):
                with env.begin(write=True) as txn:
                    for writer in range(WRITERS):
                        txn.put(b"k/%06d" % writer, value)

        yield work


async def gets(report: Report, folder: Path) -> None:
    """In turns with the floor, so that other work on the machine disturbs both."""
    async with open_lmdb_objects(make_context(folder / "gets"), LmdbObjectsConfig()) as store:
        keys = [f"k/{number:06}" for number in range(1000)]
        for start in range(0, 1000, 100):
            await store.transact(
                [PutObject(key=key, value=os.urandom(SMALL)) for key in keys[start : start + 100]]
            )

        def now() -> None:
            for number in range(GETS):
                store.get_nowait(keys[number * 7919 % 1000])

        async def waiting() -> None:
            for number in range(GETS):
                await store.get(keys[number * 7919 % 1000])

        async def checkpoints() -> None:
            for _ in range(GETS):
                await trio.lowlevel.checkpoint()

        times: dict[str, list[float]] = {"raw": [], "now": [], "waiting": [], "checkpoints": []}
        with raw_gets(folder / "raw gets") as raw:
            for _ in range(TURNS):
                times["raw"].append(best(raw, 1))
                times["now"].append(best(now, 1))
                times["waiting"].append(await best_async(waiting, 1))
                times["checkpoints"].append(await best_async(checkpoints, 1))
        us = {name: min(found) / GETS * 1e6 for name, found in times.items()}
        report.row("get_nowait of 1 KiB", us["now"], "us",
                   floor=us["raw"], target=f"<= {3 * us['raw']:.2f}")  # fmt: skip
        report.row("get of 1 KiB, with its checkpoint", us["waiting"], "us",
                   floor=us["raw"] + us["checkpoints"])  # fmt: skip


async def puts(report: Report, folder: Path) -> None:
    """In turns with the floor, too."""
    async with open_lmdb_objects(make_context(folder / "puts"), LmdbObjectsConfig()) as store:
        assert isinstance(store, _objects.LmdbObjectStore)
        value = os.urandom(SMALL)
        times: list[float] = []

        async def write(number: int) -> None:
            for _ in range(WRITES):
                started = time.perf_counter()
                await store.put(f"k/{number:06}", value)
                times.append(time.perf_counter() - started)

        async def everybody() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(WRITERS):
                    nursery.start_soon(write, number)

        before = store.batches
        floors, ours, busy = [], [], []
        with raw_puts(folder / "raw puts") as raw:
            for _ in range(PUT_TURNS):
                floors.append(best(raw, 1))
                started = time.process_time()
                ours.append(await best_async(everybody, 1))
                busy.append(time.process_time() - started)
        writes = WRITERS * WRITES
        report.row("durable puts of 1 KiB, 64 writers", writes / min(ours), "/s",
                   floor=writes / min(floors), target=">= 20,000")  # fmt: skip
        report.row("… cpu for one, of both threads", min(busy) / writes * 1e6, "us")
        report.row("… p50", percentile(times, 50) * 1e3, "ms")
        report.row("… p99", percentile(times, 99) * 1e3, "ms")
        report.row("… writes in a commit", PUT_TURNS * writes / (store.batches - before), "")


def written(folder: Path, value: bytes, *, durable: bool) -> Callable[[], None]:
    """What the kernel and the disk take for a new file."""
    path = folder / "raw file"

    def work() -> None:
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            left = memoryview(value)
            while left:
                left = left[file.write(left[: 16 << 20]) :]
            if durable:
                os.fdatasync(file.fileno())

    return work


async def large(report: Report, folder: Path) -> None:
    value = os.urandom(LARGE)
    copy = best(lambda: bytearray(value)) * 1e3
    hashing = best(lambda: hashlib.sha256(value), 3) * 1e3
    config = LmdbObjectsConfig(objects_durability="process")
    async with open_lmdb_objects(make_context(folder / "large"), config) as store:
        bare = await best_async(lambda: store.put("k", value, hashed=False)) * 1e3
        report.row("put of 64 MiB, no hash, process durability", bare, "ms",
                   floor=copy, target=f"<= {1.3 * copy:.1f}")  # fmt: skip
        new = best(written(folder, value, durable=False)) * 1e3
        report.row("… (floor: write into a new file)", bare, "ms", floor=new)
        hashed = await best_async(lambda: store.put("k", value), 3) * 1e3
        report.row("put of 64 MiB, hashed, process durability", hashed, "ms",
                   floor=copy + hashing, target=f"<= {1.3 * copy + hashing:.1f}")  # fmt: skip

        async def view() -> None:
            async with store.open("k") as found:
                assert found.data[-1] == value[-1]

        report.row("64 MiB to a usable view", await best_async(view, 20) * 1e3, "ms",
                   target="<= 1")  # fmt: skip
    async with open_lmdb_objects(make_context(folder / "l"), LmdbObjectsConfig()) as store:
        durable = await best_async(lambda: store.put("k", value, hashed=False), 3) * 1e3
        disk = best(written(folder, value, durable=True), 3) * 1e3
        report.row("put of 64 MiB, no hash, on the disk itself", durable, "ms", floor=copy)
        report.row("… (floor: write and fdatasync)", durable, "ms", floor=disk)


async def many(report: Report, folder: Path, count: int) -> None:
    context = make_context(folder / "many")
    config = LmdbObjectsConfig(objects_durability="process")
    async with open_lmdb_objects(context, config) as store:
        for start in range(0, count, 128):
            await store.transact(
                [
                    PutObject(key=f"p{number // 1000:05}/{number:08}", value=b"x" * 100)
                    for number in range(start, min(start + 128, count))
                ]
            )
    started = time.perf_counter()
    async with open_lmdb_objects(context, config) as store:
        report.row(f"open with {count:,} objects", time.perf_counter() - started, "s",
                   target="<= 1")  # fmt: skip

        async def listing() -> None:
            page = await store.list(f"p{count // 2000:05}/", limit=1000)
            assert len(page.objects) == 1000

        report.row("list of 1,000 of them by prefix", await best_async(listing) * 1e3, "ms",
                   target="<= 10")  # fmt: skip
        before = anonymous_memory()
        after, seen = None, 0
        started = time.perf_counter()
        while seen == 0 or after is not None:
            page = await store.list(after=after, limit=1000)
            after, seen = page.next_key, seen + len(page.objects)
        assert seen == count
        report.row("list all of them", time.perf_counter() - started, "s")
        async with store.snapshot() as snapshot:
            for number in range(0, count, count // 1000):
                await store.put(f"p{number // 1000:05}/{number:08}", b"y" * 100)
            started = time.perf_counter()
            page = await snapshot.list(f"p{count // 2000:05}/", limit=1000)
            assert len(page.objects) == 1000
            report.row("… 1,000 of a snapshot", (time.perf_counter() - started) * 1e3, "ms")
        report.row("… memory that took", anonymous_memory() - before, "MiB", target="<= 20")


async def main(count: int) -> None:
    with (
        Report("LMDB stores") as report,
        tempfile.TemporaryDirectory(prefix="spear-bench-") as name,
    ):
        folder = Path(name)
        await gets(report, folder)
        await puts(report, folder)
        await large(report, folder)
        await many(report, folder, count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--objects", type=int, default=1_000_000)
    trio.run(main, parser.parse_args().objects)
