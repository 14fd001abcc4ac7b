"""Values out of a pipe, in files: a full disk, a file system without splice, and the disk's head
start."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import ObjectStore
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, _new_blob, _writeback, open_lmdb_objects

MIB = 1 << 20


@asynccontextmanager
async def objects(path: Path, **config: Any) -> AsyncIterator[ObjectStore]:
    async with open_lmdb_objects(make_context(path), LmdbObjectsConfig(**config)) as store:
        yield store


async def put(store: ObjectStore, value: bytes) -> None:
    """Through a pipe, as ``k``."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)

    def fill() -> None:
        left = memoryview(value)
        while left:
            left = left[os.write(writing, left) :]
        os.close(writing)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        async with store.create("k", size=len(value)) as writer:
            assert writer.prefers_pipe
            await writer.write_from(reading, len(value))
            await writer.commit()
    finally:
        os.close(reading)
        thread.join()


FULL = """
import os, resource, signal, sys, threading, trio
from pathlib import Path
from spear_core.errors import StoreFullError
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, open_lmdb_objects

def pipe(size):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    def fill():
        try:
            left = size
            while left:
                left -= os.write(writing, bytes(min(left, 50_000)))
        except OSError:
            pass
        os.close(writing)
    threading.Thread(target=fill, daemon=True).start()
    return reading

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    context = make_context(Path(sys.argv[1]))
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    async with open_lmdb_objects(context, LmdbObjectsConfig()) as store:
        await store.put("k", b"before")
        for hashed in (True, False):
            resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, unlimited[1]))
            reading = pipe(9 << 20)
            try:
                async with store.create("k", size=9 << 20, hashed=hashed) as writer:
                    await writer.write_from(reading, 9 << 20)
                    await writer.commit()
            except StoreFullError as exc:
                assert "no room left" in exc.message, exc.message
            else:
                raise AssertionError("it was written")
            os.close(reading)
            assert await store.get("k") == (await store.stat("k"), b"before")
            assert (await store.usage()).bytes == 6
            blobs = context.state_dir / "objects" / "blobs"
            with trio.fail_after(60):  # a large file is removed by another thread
                while list(blobs.iterdir()):
                    await trio.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        reading = pipe(9 << 20)
        async with store.create("k") as writer:
            await writer.write_from(reading, 9 << 20)
            await writer.commit()
        os.close(reading)
        assert len((await store.get("k"))[1]) == 9 << 20
        assert (await store.check()).problems == ()
    print("fine")

trio.run(main)
"""


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    """Told, nothing changed, and it goes on when there is room again."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-3000:]


async def test_a_file_system_that_cannot_splice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def splice(*args: object, **rest: object) -> int:
        asked.append(args)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "splice", splice)
    value = os.urandom(5 * MIB)
    async with objects(tmp_path) as store:
        await put(store, value)
        assert (await store.get("k"))[1] == value
    assert len(asked) == 1


@pytest.mark.parametrize("durability", ["system", "process"])
@pytest.mark.parametrize("way", ["pipe", "at once"])
async def test_the_disk_begins_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, way: str
) -> None:
    """But only where the end waits for it."""
    told: list[tuple[int, int]] = []
    begin = _new_blob.begin_writeback

    def note(descriptor: int, start: int, length: int) -> None:
        assert os.fstat(descriptor).st_size >= start + length
        told.append((start, length))
        begin(descriptor, start, length)

    monkeypatch.setattr(_new_blob, "begin_writeback", note)
    value = os.urandom(17 * MIB)
    async with objects(tmp_path, objects_durability=durability) as store:
        await (put(store, value) if way == "pipe" else store.put("k", value))
        assert (await store.get("k"))[1] == value
    if durability == "process":
        assert told == []
        return
    assert len(told) >= 3
    place = 0
    for start, length in told:
        assert start == place
        place += length
    assert place <= len(value)


async def test_a_c_library_without_sync_file_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writeback, "_sync_file_range", lambda: None)
    async with objects(tmp_path) as store:
        await put(store, bytes(9 * MIB))
        assert (await store.stat("k")).size == 9 * MIB


async def test_what_is_put_meanwhile_does_not_wait(tmp_path: Path) -> None:
    """A pipe that brings nothing holds nothing up, however many there are."""
    ends = [os.pipe2(os.O_NONBLOCK) for _ in range(8)]
    async with objects(tmp_path) as store:

        async def stall(reading: int) -> None:
            async with store.create("stalled") as writer:
                await writer.write_from(reading, 2 * MIB)

        async with trio.open_nursery() as nursery:
            for reading, writing in ends:
                os.write(writing, b"a beginning")
                nursery.start_soon(stall, reading)
            with trio.fail_after(60):
                for _ in range(10):
                    await store.put("k", bytes(2 * MIB))
            nursery.cancel_scope.cancel()
        assert (await store.usage()).bytes == 2 * MIB
        assert (await store.check()).problems == ()
    for reading, writing in ends:
        os.close(reading)
        os.close(writing)
