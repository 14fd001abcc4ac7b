"""Files in use, of others, of the future, damaged; a full disk; a map that is too small."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import weakref
from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import pytest
import trio
import trio.testing

from spear_core.api import MetadataStore, ObjectStore, PutObject
from spear_core.errors import (
    ObjectConflictError,
    ObjectNotFoundError,
    StoreCorruptError,
    StoreFormatError,
    StoreFullError,
    StoreInUseError,
)
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    _environment,
    _folder,
    _transaction,
    open_lmdb_metadata,
    open_lmdb_objects,
)

LARGE = b"x" * 1_000_000


@asynccontextmanager
async def objects(path: Path) -> AsyncGenerator[ObjectStore, None]:
    async with open_lmdb_objects(make_context(path), LmdbObjectsConfig()) as store:
        yield store


@asynccontextmanager
async def metadata(path: Path) -> AsyncGenerator[MetadataStore, None]:
    async with open_lmdb_metadata(make_context(path), LmdbMetadataConfig()) as store:
        yield store


def folder(path: Path, kind: str = "objects") -> Path:
    """Where a store of that context lies."""
    return make_context(path).state_dir / kind


async def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    async with objects(tmp_path) as store:
        with pytest.raises(StoreInUseError, match="another process"):
            async with objects(tmp_path):
                pass
        await store.put("k", b"still fine")
    async with objects(tmp_path) as store:
        assert (await store.get("k"))[1] == b"still fine"


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with metadata(tmp_path) as store:
        await store.put(b"k", b"v")
    where = folder(tmp_path, "metadata")
    with lmdb.open(str(where), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"99", db=env.open_db(b"meta", txn))
    before = (where / "data.mdb").read_bytes()
    with pytest.raises(StoreFormatError, match=r"format 99.*upgrade"):
        async with metadata(tmp_path):
            pass
    assert (where / "data.mdb").read_bytes() == before


async def test_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    async with metadata(tmp_path):
        pass
    folder(tmp_path, "metadata").rename(folder(tmp_path))
    with pytest.raises(StoreFormatError, match="spear metadata"):
        async with objects(tmp_path):
            pass


async def test_a_foreign_environment_is_refused(tmp_path: Path) -> None:
    where = folder(tmp_path)
    where.mkdir(parents=True)
    with lmdb.open(str(where)) as env, env.begin(write=True) as txn:
        txn.put(b"somebody", b"else")
    with pytest.raises(StoreFormatError, match="not one of SPEAR's"):
        async with objects(tmp_path):
            pass
    with lmdb.open(str(where)) as env, env.begin() as txn:
        assert list(txn.cursor()) == [(b"somebody", b"else")]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """At once: nobody waits for the other end of a pipe."""
    folder(tmp_path).mkdir(parents=True)
    make(folder(tmp_path) / "data.mdb")
    with pytest.raises(StoreCorruptError, match="no regular file"):
        async with objects(tmp_path):
            pass


async def test_a_power_cut_takes_no_store_that_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of a new one are on the disk, up to the root; once, and none in another mode."""
    synced: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", noted)
    for durability in ("system", "process"):
        config = LmdbMetadataConfig(metadata_durability=durability)
        new = folder(tmp_path / durability, "metadata").resolve()
        for expected in ([new, *new.parents] if durability == "system" else [], []):
            synced.clear()
            async with open_lmdb_metadata(make_context(tmp_path / durability), config) as store:
                await store.put(b"key", b"value")
            assert synced == expected


async def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    where = folder(tmp_path)
    where.mkdir(parents=True)
    (where / "data.mdb").write_bytes(b"no database at all\n" * 1000)
    with pytest.raises(StoreCorruptError, match=r"data\.mdb is damaged"):
        async with objects(tmp_path):
            pass


@pytest.mark.parametrize("share", [0.3, 0.9])
async def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    async with objects(tmp_path) as store:
        for number in range(50):
            await store.put(f"{number}", bytes(10_000))
    data = folder(tmp_path) / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(int(data.stat().st_size * share) // 4096 * 4096)
    with pytest.raises(StoreCorruptError, match=r"cut off.*restore a backup"):
        async with objects(tmp_path):
            pass


async def test_a_large_value_that_is_cut_off_or_gone_is_said_to_be(tmp_path: Path) -> None:
    async with objects(tmp_path) as store:
        await store.put("cut", LARGE)
        (cut,) = (folder(tmp_path) / "blobs").iterdir()
        await store.put("gone", LARGE)
        (gone,) = set((folder(tmp_path) / "blobs").iterdir()) - {cut}
        await store.put("fine", LARGE)
        cut.chmod(0o600)
        with cut.open("r+b") as file:
            file.truncate(10)
        gone.unlink()
        with pytest.raises(StoreCorruptError, match=r"'cut'.*has 10 bytes instead of 1000000"):
            await store.get("cut")
        with pytest.raises(StoreCorruptError, match=r"'gone'.*is missing"):
            await store.get("gone")
        assert (await store.get("fine"))[1] == LARGE


async def test_files_of_a_crash_are_swept(tmp_path: Path) -> None:
    async with objects(tmp_path) as store:
        await store.put("k", LARGE)
    blobs = folder(tmp_path) / "blobs"
    (kept,) = blobs.iterdir()
    (blobs / ("0" * 32)).write_bytes(b"half")
    (blobs / "README").write_bytes(b"somebody's own")
    async with objects(tmp_path) as store:
        assert (await store.get("k"))[1] == LARGE
    assert {path.name for path in blobs.iterdir()} == {kept.name, "README"}


async def test_overwritten_and_refused_values_leave_no_file(tmp_path: Path) -> None:
    async with objects(tmp_path) as store:
        for _ in range(5):
            stat = await store.put("k", LARGE)
        for bad in (stat.version + 1, 0):
            with pytest.raises(Exception, match="'k'"):
                await store.put("k", LARGE, expect=bad)
        assert len(list((folder(tmp_path) / "blobs").iterdir())) == 1
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.put("k", LARGE)
        assert len(list((folder(tmp_path) / "blobs").iterdir())) == 1
        await store.delete("k")
        assert list((folder(tmp_path) / "blobs").iterdir()) == []


async def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_folder, "_FIRST_MAP", 256 << 10)
    values = {f"{number}": bytes([number]) * 50_000 for number in range(60)}
    async with objects(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for key, value in values.items():
                nursery.start_soon(store.put, key, value)
        assert {key: (await store.get(key))[1] for key in values} == values
    async with objects(tmp_path) as store:
        assert {key: (await store.get(key))[1] for key in values} == values


FULL = """
import resource, signal, sys, trio
from pathlib import Path
from spear_core.errors import StoreFullError
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, open_lmdb_objects

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    context = make_context(Path(sys.argv[1]))
    config = LmdbObjectsConfig(inline_bytes=int(sys.argv[2]))
    async with open_lmdb_objects(context, config) as store:
        for number in range(20):
            await store.put(f"before {number}", bytes(10_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        told = 0
        for _ in range(30):
            try:
                await store.put("large", bytes(500_000))
            except StoreFullError as exc:
                told += 1
                assert "no room left" in exc.message, exc.message
        assert told == 30, told
        for announced in (None, 500_000):
            try:
                async with store.create("large", size=announced) as writer:
                    for _ in range(50):
                        await writer.write(bytes(10_000))
                    await writer.commit()
            except StoreFullError as exc:
                assert "no room left" in exc.message, exc.message
            else:
                raise AssertionError("it was written")
        assert (await store.usage()).bytes == 200_000
        assert len((await store.list()).objects) == 20
        blobs = context.state_dir / "objects" / "blobs"
        assert not [path for path in blobs.iterdir() if path.stat().st_size > 20_000]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        async with store.create("large") as writer:
            await writer.write(bytes(500_000))
            await writer.commit()
        assert len((await store.get("large"))[1]) == 500_000
        assert (await store.check()).problems == ()
    async with open_lmdb_objects(context, LmdbObjectsConfig()) as store:
        assert len((await store.list()).objects) == 21
    print("fine")

trio.run(main)
"""


@pytest.mark.parametrize("inline", [0, 1 << 20], ids=["put", "commit"])
def test_a_full_disk(tmp_path: Path, inline: int) -> None:
    """In a file of a large value, and in the commit itself: told, nothing changed, and it goes on
    when there is room again."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(inline)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-3000:]


async def test_writes_of_one_moment_are_one_commit(tmp_path: Path) -> None:
    async with _environment.open_environment(
        tmp_path, kind="test", databases={"d": False}, durable=True
    ) as environment:
        gate = threading.Event()
        order: list[int] = []

        async def write(number: int) -> None:
            def work(txn: _transaction.Transaction) -> int:
                gate.wait(60)
                txn.put(b"%d" % number, b"", db=environment["d"])
                return number

            await environment.write(work, order.append)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 0)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(1, 100):
                nursery.start_soon(write, number)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        assert environment.batches <= 3
        assert sorted(order) == list(range(100))


async def test_a_job_with_a_bug_concerns_itself_only(tmp_path: Path) -> None:
    async with _environment.open_environment(
        tmp_path, kind="test", databases={"d": False}, durable=True
    ) as environment:
        told = []

        async def write(number: int) -> None:
            def work(txn: _transaction.Transaction) -> None:
                txn.put(b"%d" % number, b"", db=environment["d"])
                if number % 2:
                    raise ZeroDivisionError

            try:
                await environment.write(work)
            except ZeroDivisionError:
                told.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(write, number)
        assert sorted(told) == [1, 3, 5, 7, 9]
        with environment.reading() as txn:
            keys = [key for key, _ in txn.cursor(db=environment["d"])]
        assert keys == [b"0", b"2", b"4", b"6", b"8"]


@pytest.mark.parametrize("size", [100, 1_000_000])
async def test_a_value_that_is_refused_is_not_kept(tmp_path: Path, size: int) -> None:
    """Nor until the garbage collector comes by, which it seldom does in a node: who tries again and
    again against others would fill the memory."""
    refs = []

    async def refused(store: ObjectStore) -> None:
        value = array("B", bytes(size))
        refs.append(weakref.ref(value))
        try:
            await store.put("key", value, expect=7)
        except ObjectConflictError:
            return
        raise AssertionError("it was written")

    gc.collect()
    gc.disable()
    try:
        async with objects(tmp_path) as store:
            for _ in range(3):
                await refused(store)
            await store.put("other", b"")  # the writer's thread is done with the others
            await trio.testing.wait_all_tasks_blocked()
            assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


async def test_the_store_full_of_its_own_limit_says_which_setting(tmp_path: Path) -> None:
    config = LmdbObjectsConfig(objects_bytes=10)
    async with open_lmdb_objects(make_context(tmp_path), config) as store:
        with pytest.raises(StoreFullError, match=r"limit of 10 bytes.*store-lmdb\.objects_bytes"):
            await store.put("k", bytes(11))
        with pytest.raises(ObjectNotFoundError):
            await store.stat("k")


FLIPPED = """
import sys, trio
from pathlib import Path
from spear_core.errors import StoreCorruptError
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, open_lmdb_objects

def right(key):
    seed = int(key)
    return bytes([seed % 251]) * (10, 3000, 20_000)[seed % 3]

async def main():
    told = False
    try:
        async with open_lmdb_objects(make_context(Path(sys.argv[1])), LmdbObjectsConfig()) as store:
            for number in range(60):
                key = f"{number}"
                try:
                    assert (await store.get(key))[1] == right(key), "WRONG " + key
                    assert store.get_nowait(key) == right(key), "WRONG " + key
                except* StoreCorruptError:
                    told = True
            told = told or not (await store.check()).sound
    except* StoreCorruptError:
        told = True
    print("told" if told else "unharmed")

trio.run(main)
"""


async def test_flipped_bits_never_become_values(tmp_path: Path) -> None:
    """In every part of the file: a wrong value is never given. A bit of a record is always told;
    some of LMDB's own pages it can neither tell nor survive."""
    async with objects(tmp_path / "sound") as store:
        # in one transaction, so that no page has an older copy
        await store.transact(
            [
                PutObject(key=f"{n}", value=bytes([n % 251]) * (10, 3000, 20_000)[n % 3])
                for n in range(60)
            ]
        )
    sound = (folder(tmp_path / "sound") / "data.mdb").read_bytes()
    dice = random.Random(7)
    marks = [dice.randrange(8192, len(sound)) for _ in range(10)]
    values = [sound.index(bytes([number]) * 3000) + 17 for number in (1, 4, 40, 58)]
    for turn, place in enumerate(values + marks):
        path = tmp_path / f"{turn}"
        folder(path).mkdir(parents=True)
        harmed = bytearray(sound)
        harmed[place] ^= 1 << dice.randrange(8)
        (folder(path) / "data.mdb").write_bytes(harmed)
        done = await trio.run_process(
            [sys.executable, "-c", FLIPPED, str(path)],
            capture_stdout=True, capture_stderr=True, check=False,
        )  # fmt: skip
        said = done.stdout.decode()
        assert b"WRONG" not in done.stderr, done.stderr.decode()[-3000:]
        if place in values:
            assert said == "told\n", done.stderr.decode()[-3000:]
        else:
            assert said in ("told\n", "unharmed\n") or done.returncode < 0, done.stderr.decode()


def test_only_names_in_the_stores_own_file_system_are_synced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above it may be one that refuses, as those do that are never written to."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == shared.parent.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    synced: list[Path] = []
    monkeypatch.setattr(_folder, "sync", synced.append)
    with tempfile.TemporaryDirectory(dir=shared) as made:
        folder = Path(made, "a", "b")
        folder.mkdir(parents=True)
        _folder._sync_names(folder)
        assert synced == [folder, folder.parent, Path(made), shared]
