"""Views, snapshots and streams that last, while what they show is written over or deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from spear_core.api import ObjectStore, PutObject
from spear_core.errors import ObjectNotFoundError, SnapshotExpiredError, StoreFullError
from spear_core.testing import make_context
from spear_store_lmdb import LmdbObjectsConfig, open_lmdb_objects

TIMES = 10_000


@asynccontextmanager
async def objects(path: Path, **config: int) -> AsyncGenerator[ObjectStore, None]:
    chosen = LmdbObjectsConfig(objects_durability="process", **config)  # type: ignore[arg-type]
    async with open_lmdb_objects(make_context(path), chosen) as store:
        yield store


def on_disk(path: Path) -> int:
    """Bytes of all the store's files."""
    folder = make_context(path).state_dir / "objects"
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("size", [1000, 60_000, 70_000], ids=["inline", "much inline", "file"])
async def test_held_while_the_key_is_written_over_10000_times(tmp_path: Path, size: int) -> None:
    """A view and a snapshot keep one version: the files stay as small as with a few writes."""
    times = TIMES if size < 50_000 else TIMES // 5
    async with objects(tmp_path) as store:
        first = await store.put("k", b"1" * size)
        async with store.open("k") as view, store.snapshot() as snapshot:
            for number in range(0, times, 100):
                async with trio.open_nursery() as nursery:
                    for turn in range(number, number + 100):
                        operation = PutObject(
                            key="k", value=b"%d" % (turn % 10) * size, hashed=False
                        )
                        nursery.start_soon(store.transact, [operation])
            assert (await store.stat("k")).version == times + 1
            assert (view.stat, view.data.tobytes()) == (first, b"1" * size)
            assert await snapshot.get("k") == (first, b"1" * size)
            assert on_disk(tmp_path) < (8 << 20) + 110 * size
        with pytest.raises(ObjectNotFoundError, match="version 1 of object 'k' is gone"):
            await store.get("k", version=1)


@pytest.mark.parametrize("size", [5_000, 100_000], ids=["inline", "file"])
async def test_a_snapshot_that_needs_too_much_is_ended(tmp_path: Path, size: int) -> None:
    """And says so; a younger one that needs less goes on, and so does a view of the old one."""
    async with objects(tmp_path, snapshot_bytes=20 * size) as store:
        for number in range(40):
            await store.put(f"k{number:02}", b"1" * size)
        async with store.snapshot() as old:
            async with old.open("k00") as view:
                for number in range(10):
                    await store.put(f"k{number:02}", b"2" * size)
                assert (await old.get("k09"))[1] == b"1" * size
                async with store.snapshot() as young:
                    for number in range(30):
                        await store.put(f"k{number:02}", b"3" * size, hashed=False)
                        await store.put(f"k{number:02}", b"4" * size, hashed=False)
                    for call in (old.stat, old.get):
                        with pytest.raises(SnapshotExpiredError, match="take a new one"):
                            await call("k00")
                    with pytest.raises(SnapshotExpiredError):
                        await old.list()
                    assert view.data.tobytes() == b"1" * size
                    assert young.revision > old.revision
            with pytest.raises(ObjectNotFoundError):
                await store.get("k00", version=1)
        async with store.snapshot() as fresh:
            assert (await fresh.get("k00"))[1] == b"4" * size


async def test_deleted_while_it_is_streamed(tmp_path: Path) -> None:
    """Whoever reads it piece by piece goes on to its end; the space is free after that, where it
    does not wait for another value."""
    async with objects(tmp_path, recycle_bytes=0) as store:
        piece = bytes(range(256)) * 4096
        async with store.create("k") as writer:
            for _ in range(24):
                await writer.write(piece)
            await writer.commit()
        before = on_disk(tmp_path)
        async with store.open("k") as view:
            got = 0
            while got < view.stat.size:
                assert view.data[got : got + len(piece)] == piece
                got += len(piece)
                if got == len(piece):
                    await store.delete("k")
                    await store.put("k", b"new")
        await store.put("l", b"")  # what is large is removed before the next write is answered
        assert before - on_disk(tmp_path) > 23 << 20
        assert (await store.get("k"))[1] == b"new"


async def test_what_waits_for_another_value_is_free_after_a_while(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with objects(tmp_path) as store:
        await store.put("k", bytes(24 << 20))
        before = on_disk(tmp_path)
        await store.delete("k")
        await trio.sleep(20.1)
        await store.put("l", b"")
        assert before - on_disk(tmp_path) > 23 << 20


async def test_written_over_while_it_is_created(tmp_path: Path) -> None:
    """What is being created, abandoned or killed by its own limit leaves no file."""
    async with objects(tmp_path, objects_bytes=5_000_000) as store:
        blobs = make_context(tmp_path).state_dir / "objects" / "blobs"
        async with store.create("k") as writer:
            await writer.write(bytes(3_000_000))
            await store.put("k", bytes(1_000_000))
        with trio.CancelScope() as scope:
            async with store.create("k") as writer:
                await writer.write(bytes(2_000_000))
                scope.cancel()
                await writer.commit()
        assert scope.cancelled_caught
        async with store.create("k") as writer:
            for _ in range(5):
                await writer.write(bytes(1_000_000))
            with pytest.raises(StoreFullError, match="limit of 5000000"):
                await writer.write(bytes(1_000_000))
        assert len(list(blobs.iterdir())) == 1
        usage = await store.usage()
        assert (usage.objects, usage.bytes) == (1, 1_000_000)
