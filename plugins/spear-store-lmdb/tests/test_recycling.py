"""Files that are used again: only those that nobody can see, and nobody ever sees another value."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from spear_core.api import ObjectStore, SealedFile, StoreMaintenance
from spear_core.stores import SEALS
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbObjectsConfig,
    _file_pages,
    _recycled_files,
    open_lmdb_objects,
)
from spear_store_lmdb._delayed import never_on_disk
from spear_store_lmdb._file_pages import FilePages, mapped_pages, write_over
from spear_store_lmdb._recycled_files import RecycledFiles

LEAST = 40_000
SIZE = 80_000
MIB = 1 << 20


@pytest.fixture(autouse=True, params=["written", "mapped"])
def small_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large ones, and as those are in huge pages or not, which nobody can choose."""
    monkeypatch.setattr(_recycled_files, "_LEAST", LEAST)
    monkeypatch.setattr(_recycled_files, "_SPARE", 1)
    faults = itertools.count() if request.param == "written" else itertools.repeat(0)
    monkeypatch.setattr(_file_pages, "_faults", lambda: next(faults) * 2)
    monkeypatch.setattr(_file_pages, "_HUGE", 2 * mmap.PAGESIZE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that never writes anything to a disk by itself, in the middle of
    a test."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as name:
        probe = Path(name, "probe")
        probe.write_bytes(b"x")
        fsync(probe)
        if not is_in_memory(probe):
            pytest.skip("no tmpfs here")
        probe.unlink()
        yield Path(name)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder on ext4, which may write at any moment: nothing is certain to be used again."""
    kinds = subprocess.run(
        ["stat", "--file-system", "--format=%T", tmp_path], capture_output=True, text=True
    )
    if "ext" not in kinds.stdout:
        pytest.skip("no ext4 here")
    probe = tmp_path / "probe"
    for _ in range(20):
        probe.write_bytes(bytes(SIZE))
        if is_in_memory(probe):
            probe.unlink()
            return tmp_path
        probe.unlink()
    pytest.skip("an ext4 that gives blocks at once")


def is_in_memory(path: Path) -> bool:
    with path.open("rb") as file:
        return never_on_disk(file.fileno(), path.stat().st_size)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Folder:
    """A folder of values, and the files in it that wait."""

    def __init__(self, path: Path, *, most_bytes: int = 10 * SIZE) -> None:
        self.path = path
        self.removed: list[str] = []
        self.files = RecycledFiles(path, most_bytes=most_bytes, remove=self._remove)

    def _remove(self, name: str) -> None:
        self.removed.append(name)
        (self.path / name).unlink()

    def write(self, name: str, value: bytes) -> int:
        """A new file; its inode."""
        (self.path / name).write_bytes(value)
        (self.path / name).chmod(0o400)
        self.files.written(name, len(value))
        return (self.path / name).stat().st_ino

    def fill(self, name: str, value: bytes) -> bool:
        return self.files.fill(name, memoryview(value))

    def waits(self, name: str, value: bytes = b"a" * SIZE) -> int:
        inode = self.write(name, value)
        assert self.files.put_back(name)
        return inode

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}


@pytest.fixture
def folder(place: Path) -> Folder:
    return Folder(place)


# ---- what may be used again


@pytest.mark.parametrize("size", [SIZE, SIZE - 1, SIZE + 1, SIZE - 8000, SIZE + 8000])
def test_a_file_gets_the_next_value(folder: Folder, size: int) -> None:
    inode = folder.waits("old")
    assert folder.files.has("old")
    value = os.urandom(size)
    assert folder.fill("new", value)
    assert folder.names == {"new"}
    assert (folder.path / "new").read_bytes() == value
    status = (folder.path / "new").stat()
    assert (status.st_ino, status.st_mode & 0o777) == (inode, 0o400)
    assert folder.files.waiting == 0
    assert not folder.files.has("old")
    assert not folder.files.has("new")
    assert folder.files.put_back("new"), "and again"


def test_copied_by_several_threads(folder: Folder) -> None:
    """Where it is mapped."""
    folder.files = RecycledFiles(folder.path, most_bytes=99 * MIB, remove=folder._remove)
    inode = folder.waits("old", bytes(9 * MIB))
    value = os.urandom(10 * MIB + 17)
    assert folder.fill("new", value)
    assert (folder.path / "new").read_bytes() == value
    assert (folder.path / "new").stat().st_ino == inode


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_a_value_of_quite_another_size_does_not(folder: Folder, size: int) -> None:
    folder.waits("old")
    assert not folder.fill("new", bytes(size))
    assert folder.names == {"old"}
    assert folder.files.has("old")


def test_sizes_that_change_from_value_to_value(folder: Folder) -> None:
    """Beyond the end of a file that was cut off, there are no pages to write to."""
    folder.waits("0", bytes(SIZE))
    for number, size in enumerate([72_000, 80_000, 88_000, 80_001, 85_000, 81_920, 81_919], 1):
        value = os.urandom(size)
        assert folder.fill(f"{number}", value)
        assert (folder.path / f"{number}").read_bytes() == value
        assert folder.files.put_back(f"{number}")


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{path}/")


@pytest.mark.parametrize("how", ["seen", "cleared", "closed", "swept", "too many"])
def test_no_mapping_is_left(
    folder: Folder, how: str, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.waits("0")
    assert folder.fill("1", bytes(SIZE))
    before = mappings(folder.path)
    assert before <= 1
    if how == "seen":
        folder.files.seen("1")
    elif how == "closed":
        folder.files.close()
    elif how == "too many":
        monkeypatch.setattr(_recycled_files, "_MOST_MAPPED", 1)
        folder.waits("2")
        assert folder.fill("3", bytes(SIZE))
        assert mappings(folder.path) == before
        folder.files.close()
    else:
        assert folder.files.put_back("1")
        assert mappings(folder.path) == before, "for the next value"
        if how == "cleared":
            folder.files.clear()
        else:
            folder.files._sweep()
            folder.files._sweep()
    assert mappings(folder.path) == 0


def test_a_large_mapping_is_given_up_by_another_thread(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_recycled_files, "_CLOSED_AT_ONCE", 1)
    threads: list[int] = []
    closed = threading.Event()

    def close(pages: FilePages) -> None:
        threads.append(threading.get_ident())
        pages._pages.close()
        closed.set()

    monkeypatch.setattr(FilePages, "close", close)
    folder.waits("0")
    assert folder.fill("1", bytes(SIZE))
    if mappings(folder.path):
        folder.files.seen("1")
        assert closed.wait(60)
        assert threads != [threading.get_ident()]
        assert mappings(folder.path) == 0


def test_the_last_one_is_the_first(folder: Folder) -> None:
    inodes = [folder.waits(name) for name in "abc"]
    assert folder.fill("new", bytes(SIZE))
    assert (folder.path / "new").stat().st_ino == inodes[2]
    assert folder.names == {"a", "b", "new"}


def test_nothing_of_the_value_before_is_left(folder: Folder) -> None:
    """Beyond its end neither, when a mapping shows the whole last page."""
    folder.waits("old", b"x" * (SIZE + 5000))
    assert folder.fill("new", bytes(SIZE - 500))
    content = (folder.path / "new").read_bytes()
    assert content == bytes(SIZE - 500)
    os.truncate(folder.path / "new", SIZE + 5000)
    assert (folder.path / "new").read_bytes() == bytes(SIZE + 5000)


# ---- what may not


def test_a_file_that_others_have_seen(folder: Folder) -> None:
    folder.write("old", bytes(SIZE))
    folder.files.seen("old")
    assert not folder.files.put_back("old")


def test_a_file_of_somebody_elses(folder: Folder) -> None:
    (folder.path / "old").write_bytes(bytes(SIZE))
    assert not folder.files.put_back("old")


def test_a_small_file(folder: Folder) -> None:
    folder.write("old", bytes(LEAST - 1))
    assert not folder.files.put_back("old")


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_file_with_another_name(folder: Folder, when: str) -> None:
    """As a backup gives it one."""
    value = os.urandom(SIZE)
    folder.write("old", value)
    if when == "before":
        os.link(folder.path / "old", folder.path / "backup")
        assert not folder.files.put_back("old")
    else:
        assert folder.files.put_back("old")
        os.link(folder.path / "old", folder.path / "backup")
        assert not folder.fill("new", bytes(SIZE))
        assert folder.names == {"backup"}
    assert (folder.path / "backup").read_bytes() == value


def test_a_file_that_is_gone(folder: Folder) -> None:
    folder.waits("old")
    (folder.path / "old").unlink()
    assert not folder.fill("new", bytes(SIZE))
    assert folder.names == set()
    folder.write("old", bytes(SIZE))
    (folder.path / "old").unlink()
    assert not folder.files.put_back("old")


def test_a_file_that_somebody_has_cut_off(folder: Folder) -> None:
    """To touch a page beyond its end would end the process."""
    folder.waits("old")
    os.truncate(folder.path / "old", 5000)
    assert not folder.fill("new", bytes(SIZE))
    assert folder.names == set()


@pytest.mark.parametrize("when", ["before", "while it waits", "while it is filled"])
def test_a_file_that_the_disk_has_seen(
    disk: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut there might be another value under a name than the one it was given."""
    folder = Folder(disk)
    write_over = _recycled_files.write_over

    def flush_and_write(descriptor: int, *rest: Any) -> None:
        os.fsync(descriptor)
        write_over(descriptor, *rest)

    if when == "before":
        folder.write("old", bytes(SIZE))
        fsync(disk / "old")
        assert not folder.files.put_back("old")
        return
    wait_on_disk(folder)
    if when == "while it waits":
        fsync(disk / "old")
    else:
        monkeypatch.setattr(_recycled_files, "write_over", flush_and_write)
    assert not folder.fill("new", bytes(SIZE))
    assert folder.names == set()


def wait_on_disk(folder: Folder) -> int:
    """The inode of a file that waits as ``old``."""
    for _ in range(20):
        inode = folder.write("old", os.urandom(SIZE))
        if folder.files.put_back("old"):
            return inode
        (folder.path / "old").unlink()
    pytest.fail("the disk was quicker each time")


def test_a_file_on_a_disk_gets_the_next_value(disk: Path) -> None:
    folder = Folder(disk)
    value = os.urandom(SIZE)
    for _ in range(20):
        inode = wait_on_disk(folder)
        if folder.fill("new", value):
            assert (disk / "new").read_bytes() == value
            assert (disk / "new").stat().st_ino == inode
            return
    pytest.fail("the disk was quicker each time")


@pytest.mark.parametrize("part", [0, SIZE // 2 // 4096, SIZE // 4096])
def test_a_part_of_a_file_on_the_disk(disk: Path, part: int) -> None:
    """Whichever part it is."""
    with (disk / "file").open("w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * 4096, part * 4096)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), bytes(part * 4096), 0)
        os.pwrite(file.fileno(), bytes(SIZE), (part + 1) * 4096)
        assert not never_on_disk(file.fileno(), (part + 1) * 4096 + SIZE)


@pytest.mark.parametrize("there", [0, SIZE // 2])
def test_a_hole_is_not_in_memory(disk: Path, there: int) -> None:
    """To fill it could find the disk full, which would end the process."""
    with (disk / "file").open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), SIZE)
        os.pwrite(file.fileno(), bytes(there), 0)
        assert not never_on_disk(file.fileno(), SIZE)


def test_where_it_cannot_be_told() -> None:
    reading, writing = os.pipe()
    assert not never_on_disk(reading, 0)
    os.close(reading)
    os.close(writing)


def test_a_disk_that_is_nearly_full(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recycled_files, "_SPARE", 8)
    fstatvfs = os.fstatvfs
    free = 7 * SIZE

    def nearly_full(descriptor: int) -> os.statvfs_result:
        values = list(fstatvfs(descriptor))
        values[4] = free // values[1]
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    folder.write("old", bytes(SIZE))
    assert not folder.files.put_back("old")
    free = 9 * SIZE
    folder.waits("another")


# ---- pages


@pytest.mark.parametrize("mapped", [16384, 40960, 81920])
@pytest.mark.parametrize("there", [40_000, 81_920, 90_000])
@pytest.mark.parametrize("size", [1, 40_000, 40_960, 81_921])
def test_written_over(place: Path, mapped: int, there: int, size: int) -> None:
    """Only where there are pages, whatever was mapped once."""
    value = os.urandom(size)
    with (place / "file").open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 100_000)
        pages = FilePages(mmap.mmap(file.fileno(), mapped))
        os.ftruncate(file.fileno(), there)
        write_over(file.fileno(), there, memoryview(value), pages)
        pages.close()
        assert (place / "file").read_bytes()[:size] == value


def test_only_huge_pages_are_mapped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with (place / "file").open("w+b", buffering=0) as file:
        file.write(bytes(6 * MIB))
        before = mappings(place)
        pages = mapped_pages(file.fileno(), 6 * MIB)
        if pages is not None:  # as this machine's tmpfs gives them
            assert pages.size == 6 * MIB
            pages.close()
        assert mappings(place) == before
        assert mapped_pages(file.fileno(), 2 * MIB - 1) is None


# ---- how much waits, and for how long


def test_no_more_waits_than_may(place: Path) -> None:
    folder = Folder(place, most_bytes=2 * SIZE)
    for name in "abc":
        folder.waits(name)
    assert (folder.removed, folder.files.waiting) == (["a"], 2 * SIZE)
    assert folder.names == {"b", "c"}
    folder.write("d", bytes(2 * SIZE + 1))
    assert not folder.files.put_back("d"), "more than all that may"


def test_nothing_waits_where_nothing_may(place: Path) -> None:
    folder = Folder(place, most_bytes=0)
    folder.write("a", bytes(SIZE))
    assert not folder.files.put_back("a")


def test_all_of_it_is_given_up(folder: Folder) -> None:
    assert not folder.files.clear()
    folder.waits("a")
    folder.waits("b")
    assert folder.files.clear()
    assert (folder.names, folder.files.waiting) == (set(), 0)
    assert not folder.fill("new", bytes(SIZE))


def test_few_are_remembered(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recycled_files, "_MOST_KNOWN", 2)
    for name in "abc":
        folder.write(name, bytes(SIZE))
    assert [folder.files.put_back(name) for name in "abc"] == [False, True, True]


async def test_what_nobody_needs_goes(
    folder: Folder, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(folder.files.sweep_idle, 10.0)
        await trio.sleep(100)
        folder.waits("a")
        await trio.sleep(9)
        folder.waits("b")
        assert folder.names == {"a", "b"}
        await trio.sleep(6)
        folder.waits("c")
        await trio.sleep(5.5)
        assert folder.names == {"c"}
        await trio.sleep(10)
        assert folder.names == set()
        folder.waits("d")
        await trio.sleep(20.5)
        assert folder.names == set()
        nursery.cancel_scope.cancel()


def test_many_threads_at_once(folder: Folder) -> None:
    """Every value is whole, and every file somebody's."""
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(40):
            name = f"{number} {turn}"
            value = bytes([number + 1, turn]) * (SIZE // 2)
            if not folder.fill(name, value):
                folder.write(name, value)
            if (folder.path / name).read_bytes() != value:
                wrong.append(name)
            if not folder.files.put_back(name):
                wrong.append(f"{name} is not put back")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(folder.names) <= 6


# ---- in a store


@asynccontextmanager
async def objects(path: Path, **config: Any) -> AsyncIterator[ObjectStore]:
    config = {"objects_durability": "process", **config}
    async with open_lmdb_objects(make_context(path), LmdbObjectsConfig(**config)) as store:
        yield store


def inodes(path: Path) -> set[int]:
    blobs = make_context(path).state_dir / "objects" / "blobs"
    return {file.stat().st_ino for file in blobs.iterdir()}


def value(number: int, size: int = SIZE) -> bytes:
    return bytes([number % 251]) * size


async def put(store: ObjectStore, number: int) -> None:
    await store.put("k", value(number), hashed=number % 2 == 0)


async def put_sealed(store: ObjectStore, number: int) -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, value(number))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        await store.put("k", SealedFile(fd, SIZE))
    finally:
        os.close(fd)


async def put_in_pieces(store: ObjectStore, number: int) -> None:
    async with store.create("k") as writer:
        await writer.write(value(number))
        await writer.commit()


@pytest.mark.parametrize("way", [put, put_sealed])
async def test_two_files_take_turns(place: Path, way: Callable[..., Any]) -> None:
    seen: set[int] = set()
    async with objects(place) as store:
        for number in range(10):
            await way(store, number)
            assert (await store.get("k"))[1] == value(number)
            seen |= inodes(place)
        assert len(seen) == 2
        await store.delete("k")
        assert len(inodes(place)) == 2
    assert inodes(place) == set()


async def test_what_was_written_in_pieces_is_used_again(place: Path) -> None:
    async with objects(place) as store:
        await put_in_pieces(store, 1)
        before = inodes(place)
        await store.delete("k")
        await put(store, 2)
        assert inodes(place) == before
        assert (await store.get("k"))[1] == value(2)


@pytest.mark.parametrize("config", [{"recycle_bytes": 0}, {"objects_durability": "system"}])
async def test_nothing_is_used_again(place: Path, config: dict[str, Any]) -> None:
    async with objects(place, **config) as store:
        for number in range(3):
            await put(store, number)
            assert len(inodes(place)) == 1
        await store.delete("k")
        assert inodes(place) == set()


async def overwrite(store: ObjectStore, count: int = 8) -> None:
    for number in range(100, 100 + count):
        await put(store, number)
        assert (await store.get("k"))[1] == value(number)


async def test_what_is_made_of_a_view_stays(place: Path) -> None:
    async with objects(place) as store:
        await put(store, 1)
        async with store.open("k") as view:
            part = view.data[5:]
            await overwrite(store)
            assert bytes(view.data) == value(1)
        await overwrite(store)
        assert bytes(part) == value(1)[5:]


async def test_what_was_lent_stays(place: Path) -> None:
    """By descriptor, by mapping, and as pages in a pipe, which nothing tells of."""
    reading, writing = os.pipe()
    async with objects(place) as store:
        await put(store, 1)
        async with store.open("k") as view:
            assert view.fd is not None
            lent = os.dup(view.fd)
        assert os.splice(lent, writing, 8192, offset_src=0) == 8192
        await overwrite(store)
        assert os.pread(lent, SIZE, 0) == value(1)
        os.close(lent)
        await overwrite(store)
        assert os.read(reading, 8192) == value(1, 8192)
    os.close(reading)
    os.close(writing)


async def test_what_a_snapshot_shows_stays(place: Path) -> None:
    async with objects(place) as store:
        await put(store, 1)
        async with store.snapshot() as snapshot:
            await overwrite(store)
            assert (await snapshot.get("k"))[1] == value(1)
            async with snapshot.open("k") as view:
                await overwrite(store)
                assert bytes(view.data) == value(1)
        await overwrite(store)


async def test_a_backup_stays_as_it_is(place: Path) -> None:
    """Made at any moment of many puts: each file of it is whole, and never changes."""
    async with objects(place / "store") as store:
        assert isinstance(store, StoreMaintenance)
        await put(store, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overwrite, store, 60)
            for number in range(8):
                await store.backup(place / f"backup {number}")
        copies = {}
        for number in range(8):
            (file,) = (place / f"backup {number}" / "blobs").iterdir()
            copies[file] = file.read_bytes()
            assert copies[file] == value(copies[file][0]), "whole"
        await overwrite(store, 20)
        assert {file: file.read_bytes() for file in copies} == copies


async def test_no_check_finds_anything(place: Path) -> None:
    """What waits belongs to nobody, and is no orphan."""
    async with objects(place) as store:
        assert isinstance(store, StoreMaintenance)
        await put(store, 1)
        await put(store, 2)
        assert len(inodes(place)) == 2
        assert (await store.check()).problems == ()
        assert (await store.check(repair=True)).problems == ()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overwrite, store, 60)
            for number in range(10):
                assert (await store.check(repair=number % 2 == 0)).problems == ()
        await overwrite(store)


async def test_what_waited_in_a_crash_is_removed(place: Path) -> None:
    async with objects(place) as store:
        await put(store, 1)
        await put(store, 2)
        with TemporaryDirectory(dir=place) as name:
            there = make_context(place).state_dir / "objects"
            copy = make_context(Path(name)).state_dir / "objects"
            await trio.to_thread.run_sync(shutil.copytree, there, copy)
            assert len(list((copy / "blobs").iterdir())) == 2
            async with objects(Path(name)) as crashed:
                assert (await crashed.get("k"))[1] == value(2)
                assert len(inodes(Path(name))) == 1


async def test_a_put_that_is_refused(place: Path) -> None:
    """Its file waits like another, and nothing of it is ever seen."""
    async with objects(place) as store:
        await put(store, 1)
        for number in range(5):
            with pytest.raises(Exception, match="is at version"):
                await store.put("k", value(50 + number), expect=17)
            assert (await store.get("k"))[1] == value(1)
        assert len(inodes(place)) == 2
        await overwrite(store)


# ---- on a full disk

FULL = """
import os, subprocess, sys, trio
from pathlib import Path
from spear_core.errors import StoreFullError
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, _recycled_files, open_lmdb_objects

where = Path(sys.argv[1])
mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=40m", "none", where], capture_output=True
)
if mounted.returncode:
    print("no mounts")
    sys.exit()
_recycled_files._SPARE = 1
MIB = 1 << 20

async def main():
    context = make_context(where)
    config = LmdbObjectsConfig(objects_durability="process")
    blobs = context.state_dir / "objects" / "blobs"

    async def wait(store):
        await store.put("waits", bytes(12 * MIB))
        await store.delete("waits")
        assert len(list(blobs.iterdir())) == 1

    async with open_lmdb_objects(context, config) as store:
        await wait(store)
        await store.put("a", bytes(30 * MIB))  # with its room
        await store.delete("a")
        await wait(store)
        async with store.create("b") as writer:
            for _ in range(30):
                await writer.write(bytes(MIB))
            await writer.commit()
        await store.delete("b")
        await wait(store)
        small = 0
        while list(blobs.iterdir()):
            await store.put(f"small {small}", bytes(60_000))
            small += 1
            assert small < 1000
        try:
            while True:
                await store.put(f"small {small}", bytes(60_000))
                small += 1
        except StoreFullError:
            pass
        assert small * 60_000 > 20 * MIB
        for number in range(small):
            assert await store.get(f"small {number}")
        assert (await store.check()).problems == ()
    print("fine")

trio.run(main)
"""


def test_what_waits_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stdout == "no mounts\n" or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-3000:]
