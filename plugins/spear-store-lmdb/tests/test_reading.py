"""What is kept for the next reader: mappings of files, and inline values that were found sound."""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import ObjectStat, ObjectStore, StoreMaintenance
from spear_core.errors import ObjectNotFoundError, StoreCorruptError
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbObjectsConfig,
    _object_reader,
    _objects,
    _records,
    open_lmdb_objects,
)
from spear_store_lmdb._mapped_files import MappedFiles, WrongSizeError
from spear_store_lmdb._records import pack
from spear_store_lmdb._verified import VerifiedValues

MIB = 1 << 20


@asynccontextmanager
async def objects(path: Path, **config: Any) -> AsyncIterator[ObjectStore]:
    async with open_lmdb_objects(make_context(path), LmdbObjectsConfig(**config)) as store:
        yield store


def maps_of(folder: Path) -> list[str]:
    """Which files below a folder this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if f"{folder}/" in line and "data.mdb" not in line
            and "lock.mdb" not in line]  # fmt: skip


def descriptors_of(folder: Path) -> int:
    """Descriptors of this process of files below a folder that are values."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        found += target.startswith(f"{folder}/") and "/blobs/" in target
    return found


class Files:
    """Some files, and what is kept of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outlived: list[str] = []
        self.maps = MappedFiles(self.outlived.append, most=2)

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def read(self, name: str, size: int) -> bytes:
        held = self.maps.hold(name, str(self.folder / name), size)
        try:
            return bytes(held.content)
        finally:
            self.maps.release(held)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    files.maps.close()
    assert maps_of(tmp_path) == []


def test_a_file_is_mapped_once(files: Files, tmp_path: Path) -> None:
    files.write("a", b"content")
    assert files.read("a", 7) == b"content"
    (before,) = maps_of(tmp_path)
    assert files.read("a", 7) == b"content"
    assert maps_of(tmp_path) == [before]


def test_the_oldest_mapping_goes(files: Files, tmp_path: Path) -> None:
    for name in "abc":
        files.write(name, b"x")
    files.read("a", 1)
    files.read("b", 1)
    files.read("a", 1)
    files.read("c", 1)
    assert sorted(line[-1] for line in maps_of(tmp_path)) == ["a", "c"]


def test_another_file_of_that_name(files: Files) -> None:
    """As when somebody has put one back from elsewhere."""
    files.write("a", b"before")
    assert files.read("a", 6) == b"before"
    files.write("b", b"after!")
    (files.folder / "b").rename(files.folder / "a")
    assert files.read("a", 6) == b"after!"


def test_a_file_that_was_cut_off_meanwhile(files: Files) -> None:
    files.write("a", bytes(10_000))
    files.read("a", 10_000)
    os.truncate(files.folder / "a", 5000)
    with pytest.raises(WrongSizeError) as caught:
        files.read("a", 10_000)
    assert caught.value.size == 5000


def test_a_file_that_is_gone(files: Files) -> None:
    files.write("a", b"x")
    files.read("a", 1)
    (files.folder / "a").unlink()
    with pytest.raises(FileNotFoundError):
        files.read("a", 1)


def test_dropped_while_it_is_held(files: Files, tmp_path: Path) -> None:
    files.write("a", b"content")
    held = files.maps.hold("a", str(tmp_path / "a"), 7)
    files.maps.drop("a")
    assert bytes(held.content) == b"content"
    assert files.outlived == ["a"], "nobody can say for how long"
    files.maps.release(held)
    assert maps_of(tmp_path) == []


def test_dropped_while_something_made_of_it_lives(files: Files, tmp_path: Path) -> None:
    files.write("a", b"content")
    held = files.maps.hold("a", str(tmp_path / "a"), 7)
    part = memoryview(held.content)[2:4]
    files.maps.release(held)
    files.maps.drop("a")
    assert files.outlived == ["a"]
    del held
    assert bytes(part) == b"nt"
    part.release()
    assert maps_of(tmp_path) == []


def test_dropped_when_nobody_sees_it(files: Files, tmp_path: Path) -> None:
    files.write("a", b"content")
    files.read("a", 7)
    files.maps.drop("a")
    assert (maps_of(tmp_path), files.outlived) == ([], [])


async def test_what_is_removed_is_not_kept(tmp_path: Path) -> None:
    """Its room would not come free."""
    async with objects(tmp_path) as store:
        for _ in range(3):
            await store.put("k", os.urandom(MIB))
            async with store.open("k") as view:
                assert view.data[-1] >= 0
            assert len(maps_of(tmp_path)) == 1
        await store.delete("k")
        assert maps_of(tmp_path) == []
        await store.put("k", os.urandom(MIB))
        async with store.open("k"):
            pass
    assert (maps_of(tmp_path), descriptors_of(tmp_path)) == ([], 0)


async def test_only_who_asks_gets_a_descriptor(tmp_path: Path) -> None:
    value = os.urandom(MIB)
    async with objects(tmp_path) as store:
        await store.put("k", value)
        async with store.open("k") as view:
            before = descriptors_of(tmp_path)
            fd = view.fd
            assert fd is not None
            assert view.fd == fd
            assert descriptors_of(tmp_path) == before + 1
            assert os.pread(fd, MIB, 0) == value
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
            os.lseek(fd, 17, os.SEEK_SET)
            async with store.open("k") as other:
                assert other.fd is not None
                assert os.lseek(other.fd, 0, os.SEEK_CUR) == 0, "a position of its own"
        assert view.fd is None
        assert descriptors_of(tmp_path) == before


async def test_a_mapped_file_is_cut_off(tmp_path: Path) -> None:
    """The node tells, and goes on."""
    async with objects(tmp_path) as store:
        await store.put("k", bytes(MIB))
        async with store.open("k"):
            pass
        (blob,) = (make_context(tmp_path).state_dir / "objects" / "blobs").iterdir()
        os.truncate(blob, 5000)
        with pytest.raises(StoreCorruptError, match="has 5000 bytes instead of 1048576"):
            async with store.open("k"):
                pass
        await store.delete("k")


# ---- records


async def test_a_record_is_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it was read before it changed, and however few are kept."""
    monkeypatch.setattr(_object_reader, "_MOST_KNOWN", 2)
    async with objects(tmp_path, inline_bytes=100) as store:
        for version in range(1, 4):
            for key in "abc":
                value = bytes([version]) * (50 if key == "a" else 200)
                await store.put(key, value)
            await store.pin("a")
            for _ in range(2):
                for key in "abc":
                    stat, value = await store.get(key)
                    assert stat == await store.stat(key)
                    assert (stat.version, value[0], stat.pinned) == (version, version, key == "a")
                    assert len(store.reader._known) <= 2  # type: ignore[attr-defined]
        await store.delete("a")
        with pytest.raises(ObjectNotFoundError):
            await store.get("a")


async def test_no_more_bytes_of_records_are_kept_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_object_reader, "_MOST_BYTES", 100_000)
    async with objects(tmp_path) as store:
        for number in range(20):
            await store.put(f"{number % 3}", bytes([number]) * 30_000)
            assert (await store.get(f"{number % 3}"))[1] == bytes([number]) * 30_000
            known = store.reader._known  # type: ignore[attr-defined]
            assert sum(len(raw) for _, raw in known.values()) <= 100_000


# ---- values in records


def record(key: str, value: bytes, version: int = 1) -> bytes:
    stat = ObjectStat(
        key=key, size=len(value), version=version, revision=1, sha256="", created_at=1.0,
        updated_at=1.0, content_type="a/b", refs=0, pinned=False, expires_at=None,
    )  # fmt: skip
    return pack(stat, "", value)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what was summed."""
    summed: list[int] = []

    class Zlib:
        @staticmethod
        def crc32(data: bytes, seed: int = 0) -> int:
            summed.append(len(data))
            return zlib.crc32(data, seed)

    monkeypatch.setattr(_records, "zlib", Zlib)
    return summed


def test_summed_once(sums: list[int]) -> None:
    verified = VerifiedValues()
    value = os.urandom(50_000)
    raw = record("k", value)
    sums.clear()
    for _ in range(3):
        assert verified.view(b"k", raw) == value
        assert verified.value(b"k", bytes(bytearray(raw))) == value
    assert sums.count(50_000) == 1


@pytest.mark.parametrize("size", [100, 50_000])
def test_every_flipped_bit_is_seen(size: int) -> None:
    verified = VerifiedValues()
    raw = record("k", bytes(size))
    for read in (verified.view, verified.value):
        assert read(b"k", raw) == bytes(size)
        for place in (len(raw) - 1, len(raw) - size, len(raw) - size // 2):
            damaged = bytearray(raw)
            damaged[place] ^= 1
            for _ in range(2):  # what is damaged is not kept
                with pytest.raises(StoreCorruptError):
                    read(b"k", bytes(damaged))
        assert read(b"k", raw) == bytes(size)


def test_another_version_is_summed(sums: list[int]) -> None:
    verified = VerifiedValues()
    for version in range(1, 4):
        raw = record("k", bytes([version]) * 50_000, version)
        sums.clear()
        assert verified.value(b"k", raw) == bytes([version]) * 50_000
        assert 50_000 in sums


def test_the_record_of_another_key_is_summed() -> None:
    verified = VerifiedValues()
    raw = record("k", bytes(50_000))
    verified.view(b"k", raw)
    with pytest.raises(StoreCorruptError):
        verified.view(b"l", raw)


def test_no_more_is_kept_than_allowed(sums: list[int]) -> None:
    verified = VerifiedValues(most=120_000)
    raws = {key: record(key, bytes(50_000)) for key in "abc"}

    def summed(key: str) -> bool:
        sums.clear()
        assert verified.view(key.encode(), raws[key]) == bytes(50_000)
        return 50_000 in sums

    assert [summed(key) for key in "aba"] == [True, True, False]
    assert [summed(key) for key in "cab"] == [True, False, True], "b was the oldest"
    assert verified._bytes <= 120_000


def test_one_record_that_is_more_than_is_kept() -> None:
    verified = VerifiedValues(most=10_000)
    raw = record("k", bytes(50_000))
    assert verified.view(b"k", raw) == bytes(50_000)
    assert (verified._bytes, len(verified._records)) == (0, 0)


def test_no_inline_value() -> None:
    stat = _records.stat_of("k", record("k", b""))
    raw = pack(stat, "ab" * 16)
    assert VerifiedValues().view(b"k", raw) is None
    assert VerifiedValues().value(b"k", raw) is None


async def test_a_value_that_goes_bad_between_two_reads(tmp_path: Path) -> None:
    """It is compared with what lies in the file, not taken from memory."""
    value = os.urandom(60_000)
    async with objects(tmp_path) as store:
        assert isinstance(store, StoreMaintenance)
        assert isinstance(store, _objects.LmdbObjectStore)
        await store.put("k", value)
        for _ in range(2):
            assert store.get_nowait("k") == value
            assert (await store.get("k"))[1] == value
        data = make_context(tmp_path).state_dir / "objects" / "data.mdb"
        content = data.read_bytes()
        with data.open("r+b") as file:
            place = content.index(value[30_000:30_100])
            file.seek(place)
            file.write(bytes([content[place] ^ 1]))
        with pytest.raises(StoreCorruptError):
            store.get_nowait("k")
        with pytest.raises(StoreCorruptError):
            await store.get("k")
        with pytest.raises(StoreCorruptError):
            async with store.open("k"):
                pass
        await store.delete("k")
