"""What the memory store does beyond the contract of stores."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from spear_core.api import ObjectWriter, SealedFile, StoreUsage
from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.errors import (
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
    SnapshotExpiredError,
    StoreFullError,
)


async def test_full_says_what_to_do() -> None:
    store = MemoryObjectStore(max_bytes=10)
    await store.put("k", b"12345678")
    with pytest.raises(StoreFullError, match=r"'new'.*10 bytes \(8 in use\).*memory_store_bytes"):
        await store.put("new", b"123")
    await store.put("exact", b"12")


async def test_conflicts_say_what_is_there() -> None:
    store = MemoryObjectStore(max_bytes=10)
    with pytest.raises(ObjectConflictError, match="'k' does not exist, not at version 3"):
        await store.put("k", b"", expect=3)
    await store.put("k", b"")
    with pytest.raises(ObjectConflictError, match="exists already, at version 1"):
        await store.put("k", b"", expect=0)


async def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="limit"):
        await MemoryObjectStore(max_bytes=10).list(limit=0)


LARGE = bytes(range(256)) * 1000


def files_open() -> int:
    gc.collect()  # what an earlier test left to it must not go in the middle of this one
    return len(list(Path("/proc/self/fd").iterdir()))


def sealed(value: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, value)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


async def test_large_values_can_be_mapped_by_another_process() -> None:
    store = MemoryObjectStore(max_bytes=1 << 20)
    await store.put("k", LARGE)
    script = (
        "import hashlib, mmap, sys; fd = int(sys.argv[1]); "
        "print(hashlib.sha256(mmap.mmap(fd, 0, prot=mmap.PROT_READ)).hexdigest())"
    )
    async with store.open("k") as view:
        assert view.fd is not None
        done = await trio.run_process(
            [sys.executable, "-c", script, str(view.fd)], capture_stdout=True, pass_fds=[view.fd]
        )
        with pytest.raises(PermissionError):
            mmap.mmap(view.fd, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    assert done.stdout.decode().strip() == view.stat.sha256
    await store.put("small", b"x" * 65_536)
    async with store.open("small") as view:
        assert view.fd is None


async def test_sealed_memory_is_adopted_without_a_copy() -> None:
    store = MemoryObjectStore(max_bytes=1 << 20)
    fd = sealed(LARGE)
    await store.put("k", SealedFile(fd, len(LARGE)), hashed=False)
    async with store.open("k") as view:
        assert view.fd is not None
        ours, theirs = os.fstat(view.fd), os.fstat(fd)
        assert (ours.st_ino, ours.st_dev) == (theirs.st_ino, theirs.st_dev)
    os.close(fd)


async def test_descriptors_are_bounded_and_given_back() -> None:
    """Beyond ``max_files`` values are bytes; overwritten and deleted ones keep nothing."""
    store = MemoryObjectStore(max_bytes=1 << 30, max_files=3)
    before = files_open()
    for turn in range(3):
        for number in range(8):
            fd = sealed(LARGE)
            value = LARGE if number % 2 else SealedFile(fd, len(LARGE))
            await store.put(f"k{number}", value)
            os.close(fd)
        async with store.create("written") as writer:
            await writer.write(LARGE * 8)
            await writer.commit()
        assert files_open() - before <= 3, turn
        for number in range(8):
            assert (await store.get(f"k{number}"))[1] == LARGE
        assert (await store.get("written"))[1] == LARGE * 8
    for stat in (await store.list()).objects:
        await store.delete(stat.key)
    assert files_open() == before


async def test_a_process_without_descriptors_keeps_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    store = MemoryObjectStore(max_bytes=1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", none_left)
        await store.put("k", LARGE)
        async with store.create("l") as writer:
            await writer.write(LARGE)
            await writer.commit()
    for key in ("k", "l"):
        async with store.open(key) as view:
            assert view.data == LARGE
            assert view.fd is None


async def test_a_snapshot_that_needs_too_much_is_ended() -> None:
    store = MemoryObjectStore(max_bytes=1 << 20, max_kept=20_000)
    for number in range(4):
        await store.put(f"k{number}", bytes(8_000))
    async with store.snapshot() as old:
        await store.put("k0", b"")
        assert (await old.stat("k0")).size == 8_000
        async with store.snapshot() as young:
            await store.put("k1", b"")
            await store.delete("k2")
            with pytest.raises(SnapshotExpiredError, match="revision 4 was ended"):
                await old.stat("k0")
            assert (await young.stat("k2")).size == 8_000
            with pytest.raises(ObjectNotFoundError):
                await store.get("k0", version=1)


@asynccontextmanager
async def mid_write(store: MemoryObjectStore, key: str) -> AsyncGenerator[ObjectWriter, None]:
    """A writer into which another task is writing, in a thread that waits for the block's end."""
    gate = threading.Event()
    async with trio.open_nursery() as nursery, store.create(key) as writer:
        append = writer._append  # type: ignore[attr-defined]

        def late(piece: memoryview) -> None:
            gate.wait(60)
            append(piece)

        writer._append = late  # type: ignore[attr-defined]
        nursery.start_soon(writer.write, bytes(2_000_000))
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield writer
        finally:
            gate.set()


async def test_two_tasks_cannot_write_into_one_writer() -> None:
    store = MemoryObjectStore(max_bytes=1 << 24)
    async with mid_write(store, "k") as writer:
        with pytest.raises(trio.BusyResourceError):
            await writer.write(b"x")
        with pytest.raises(trio.BusyResourceError):
            await writer.commit()


async def test_a_writer_left_in_mid_write_is_disposed_of_afterwards() -> None:
    """The thread that writes keeps its memory until it has ended."""
    store = MemoryObjectStore(max_bytes=1 << 24)
    before = files_open()
    async with mid_write(store, "k") as writer:
        assert (await store.usage()).bytes == 2_000_000
    assert await store.usage() == StoreUsage(objects=0, bytes=0, limit_bytes=1 << 24)
    assert files_open() == before
    with pytest.raises(trio.ClosedResourceError):
        await writer.commit()


async def test_much_memory_is_given_back_in_a_thread() -> None:
    store = MemoryObjectStore(max_bytes=1 << 26, max_files=1)
    before = files_open()
    await store.put("k", bytes(17 << 20), hashed=False)
    assert files_open() == before + 1
    await store.delete("k")
    with trio.fail_after(60):
        while files_open() > before:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
    await store.put("k", bytes(17 << 20), hashed=False)
    async with store.open("k") as view:
        assert view.fd is not None, "there is room for a descriptor again"
