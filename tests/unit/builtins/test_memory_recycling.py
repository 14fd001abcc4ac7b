"""The memory store uses memory again, and nobody can tell."""

from __future__ import annotations

import array
import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.builtins.memory_store import (
    MemoryObjectStore,
    MemoryStoreConfig,
    open_memory_store,
)
from spear_core.stores._copying import copy_to
from spear_core.testing import make_context

SIZE = 1_000_000
LIMIT = 20 << 20
COPY = "spear_core.builtins._memory_segment.copy_to"


def value(number: int, size: int = SIZE) -> bytes:
    return (b"%08d" % number) * (size // 8) + b"." * (size % 8)


def memory() -> set[int]:
    """The inodes of all memory of values that this process has."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if "spear-object" in os.readlink(entry):
                found.add(os.stat(entry).st_ino)
        except FileNotFoundError:
            pass
    return found


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """None is left of the test before; a thread may still be closing some."""
    gc.collect()
    until = time.monotonic() + 60
    while memory():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[MemoryObjectStore]:
    config = MemoryStoreConfig(memory_store_bytes=LIMIT, memory_recycle_bytes=LIMIT)
    async with open_memory_store(make_context(tmp_path), config) as opened:
        assert isinstance(opened, MemoryObjectStore)
        yield opened


async def overwrite(store: MemoryObjectStore, *, key: str = "k", size: int = SIZE) -> None:
    """Ten times, so that all memory that waits is used."""
    for number in range(10):
        await store.put(key, value(number, size), hashed=False)


async def test_values_take_turns_in_the_same_memory(store: MemoryObjectStore) -> None:
    await overwrite(store)
    used = memory()
    assert len(used) == 2
    for number in range(20):
        size = SIZE - 3 * number  # about the same is enough
        await store.put("k", value(number, size))
        async with store.open("k") as view:
            assert view.data == value(number, size)
        assert (await store.get("k"))[1] == value(number, size)
    assert memory() == used


async def test_written_in_pieces_they_do_too(store: MemoryObjectStore) -> None:
    """Where their size is known beforehand, and also when one was given up."""

    async def write(number: int, size: int | None, upto: int = SIZE) -> None:
        async with store.create("k", size=size) as writer:
            for start in range(0, upto, 300_001):
                await writer.write(value(number)[start : min(upto, start + 300_001)])
            if upto == SIZE:
                await writer.commit()

    for number in range(3):
        await write(number, SIZE)
    used = memory()
    assert len(used) == 2
    for number in range(20):
        await write(number, SIZE)
        await write(99, SIZE, upto=700_000)
        assert (await store.get("k"))[1] == value(number)
    assert memory() == used
    await write(7, None)
    assert (await store.get("k"))[1] == value(7)


async def test_not_while_somebody_sees_the_value(store: MemoryObjectStore) -> None:
    await store.put("k", value(77))
    async with store.open("k") as view:
        await overwrite(store)
        assert view.data == value(77)
        part = view.data[8:]
    await overwrite(store)
    derived = memoryview(part)[8:].cast("Q")
    del part
    await overwrite(store)
    assert derived == memoryview(array.array("Q", value(77)[16:]))
    used, waiting = memory(), store.values.memory.waiting
    del derived
    assert store.values.memory.waiting == waiting + SIZE
    await overwrite(store)
    assert memory() == used


async def test_not_while_a_snapshot_has_it(store: MemoryObjectStore) -> None:
    await store.put("k", value(77))
    async with store.snapshot() as snapshot:
        await overwrite(store)
        assert (await snapshot.get("k"))[1] == value(77)
        async with snapshot.open("k") as view:
            await overwrite(store)
            assert view.data == value(77)


async def test_not_what_another_process_has_had(store: MemoryObjectStore) -> None:
    """It maps the file, and closes it; then all in here is as if nobody had it."""
    await overwrite(store)  # so that it is memory that was used before
    await store.put("k", value(77))
    script = """
import hashlib, mmap, os, sys
fd = int(sys.argv[1])
assert os.fstat(fd).st_size == int(sys.argv[2])
mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
os.write(1, b"!")
sys.stdin.readline()
print(mapping[:8].decode(), mapping[-8:].decode(), len(set(mapping[:])))
"""
    async with store.open("k") as view:
        assert view.fd is not None
        lent = os.fstat(view.fd).st_ino
        child = await trio.lowlevel.open_process(
            [sys.executable, "-c", script, str(view.fd), str(SIZE)],
            pass_fds=[view.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert await child.stdout.receive_some(1) == b"!"
    await overwrite(store)
    assert lent not in memory()
    async with child.stdin, child.stdout:
        await child.stdin.send_all(b"\n")
        told = b"".join([part async for part in child.stdout])
    assert await child.wait() == 0
    assert told == b"00000077 00000077 2\n"


async def test_not_what_is_in_a_pipe(store: MemoryObjectStore) -> None:
    """Pages in a pipe have neither a file nor a mapping by which the kernel could tell."""
    await overwrite(store)
    await store.put("k", value(77))
    out, into = os.pipe()
    async with store.open("k") as view:
        assert view.fd is not None
        assert os.splice(view.fd, into, 4096, offset_src=8192) == 4096
    await overwrite(store)
    assert os.read(out, 4096) == value(77)[8192 : 8192 + 4096]
    os.close(out)
    os.close(into)


async def test_older_bytes_show_nowhere(store: MemoryObjectStore) -> None:
    await overwrite(store, size=SIZE)
    shorter = SIZE - 50_000
    await store.put("k", value(77, shorter))
    async with store.open("k") as view:
        assert len(view.data) == shorter
        assert view.fd is not None
        assert os.pread(view.fd, SIZE, 0) == value(77, shorter)
        assert os.fstat(view.fd).st_size == shorter


async def test_to_read_it_here_lends_nothing(store: MemoryObjectStore) -> None:
    """A descriptor is made when one is asked for, and it is the view's until its end."""
    await store.put("k", value(77))
    before = len(os.listdir("/proc/self/fd"))
    async with store.open("k") as view:
        assert view.in_memory
        assert len(os.listdir("/proc/self/fd")) == before
        fd = view.fd
        assert fd is not None
        assert view.fd == fd
        async with store.open("k") as second:
            assert second.fd not in (None, fd)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert attrs.evolve(view).fd is None


async def test_without_descriptors_a_view_has_none(
    store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    await store.put("k", value(77))
    async with store.open("k") as view:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", none_left)
            assert view.fd is None
        assert view.data == value(77)


async def test_it_never_takes_room_from_values(store: MemoryObjectStore) -> None:
    """Values and what waits are no more than the limit together."""
    waiting = store.values.memory
    for number in range(10):
        await store.put(f"k{number}", value(number))
    for number in range(10):
        await store.delete(f"k{number}")
    assert waiting.waiting == 10 * SIZE
    for number in (8, *range(2, 11)):
        await store.put("large", bytes(number * 2_000_000))
        assert (await store.usage()).bytes + waiting.waiting <= LIMIT
    await store.delete("large")
    for number in range(10):
        await store.put(f"k{number}", value(number))
    for number in range(5):
        await store.delete(f"k{number}")
    assert waiting.waiting == 5 * SIZE
    async with store.create("written", size=14_000_000) as writer:
        await writer.write(b"x")
        assert (await store.usage()).bytes + waiting.waiting <= LIMIT
        assert waiting.waiting == 1 * SIZE


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC])
async def test_where_there_is_no_memory_it_makes_do_without(
    store: MemoryObjectStore, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put, and a piece of a writer, are tried again with what waited given back."""
    pwrite, waiting = os.pwrite, store.values.memory

    def scarce(fd: int, piece: Any, place: int) -> int:
        if waiting.waiting:
            raise OSError(code, os.strerror(code))
        return pwrite(fd, piece[:100_000], place)

    await overwrite(store)
    monkeypatch.setattr(os, "pwrite", scarce)
    assert waiting.waiting
    await store.put("other", value(1, 3 * SIZE))
    assert (await store.get("other"))[1] == value(1, 3 * SIZE)
    monkeypatch.setattr(os, "pwrite", pwrite)
    await overwrite(store)
    monkeypatch.setattr(os, "pwrite", scarce)
    assert waiting.waiting
    async with store.create("written") as writer:
        await writer.write(value(2, 3 * SIZE))
        await writer.commit()
    assert (await store.get("written"))[1] == value(2, 3 * SIZE)


async def test_no_memory_at_all_is_an_error_that_leaves_nothing(
    store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(fd: int, piece: Any, place: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    await overwrite(store)
    monkeypatch.setattr(os, "pwrite", none_left)
    with pytest.raises(OSError, match="memory"):
        await store.put("other", value(1, 3 * SIZE))
    assert len(memory()) == 1
    assert (await store.list()).objects[0].key == "k"


async def test_a_put_cancelled_in_mid_copy_keeps_its_memory_until_the_copy_ends(
    store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 * SIZE  # so that it is copied in a thread
    await overwrite(store, size=size)
    begun, gate = threading.Event(), threading.Event()

    def slowly(target: int, source: memoryview, **rest: Any) -> None:
        begun.set()
        gate.wait(60)
        copy_to(target, source, **rest)

    monkeypatch.setattr(COPY, slowly)
    waiting = store.values.memory.waiting
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put, "k", value(5, size))
        await trio.to_thread.run_sync(begun.wait, 60)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert store.values.memory.waiting == waiting - size
            monkeypatch.setattr(COPY, copy_to)
            await overwrite(store, key="other", size=size)
            gate.set()
    assert (await store.get("other"))[1] == value(9, size)
    assert (await store.get("k"))[1] in (value(5, size), value(9, size))


async def test_it_is_given_back_when_nothing_is_put(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_memory_store(make_context(tmp_path), MemoryStoreConfig()) as store:
        await store.put("k", value(1))
        await store.delete("k")
        await trio.sleep(5)
        assert len(memory()) == 1
        await trio.sleep(20)
        assert not memory()


async def test_nothing_waits_where_it_is_turned_off(tmp_path: Path) -> None:
    config = MemoryStoreConfig(memory_recycle_bytes=0)
    async with open_memory_store(make_context(tmp_path), config) as store:
        await store.put("k", value(1))
        first = memory()
        await store.put("k", value(2))
        assert len(memory()) == 1
        assert memory() != first
        await store.delete("k")
        assert not memory()
