"""What object stores promise of versions, snapshots, and values that come in other ways."""

from __future__ import annotations

import fcntl
import hashlib
import os
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from spear_core.api import DeleteObject, ObjectStore, PutObject, SealedFile
from spear_core.errors import (
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
    StoreFullError,
)
from spear_core.testing._promise import promise

__all__ = ["StoreVersions"]


class StoreVersions(ABC):
    """A part of :class:`~spear_core.testing.ObjectStoreContract`."""

    small_config: ClassVar[Any]
    patience: float

    @abstractmethod
    def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AbstractAsyncContextManager[ObjectStore]:
        """The store, as a node opens it."""

    # ---- versions and snapshots

    @promise
    async def test_versions_stay_while_they_are_shown(self, tmp_path: Path) -> None:
        """``open(version=…)``: the current version, or one that an open view shows; else
        ``ObjectNotFoundError``, which says where the object is."""
        for size in (10, 300_000):
            async with self.open_store(tmp_path / str(size)) as store:
                await store.put("k", b"1" * size)
                async with store.open("k") as view:
                    await store.put("k", b"2" * size)
                    await store.put("k", b"3" * size)
                    for version in (1, 3):
                        stat, value = await store.get("k", version=version)
                        assert (stat.version, value) == (version, b"%d" % version * size)
                    for gone in (0, 2, 4):
                        with pytest.raises(ObjectNotFoundError, match=r"at (version )?3$"):
                            await store.get("k", version=gone)
                    async with store.open("k", version=1) as again:
                        assert again.stat == view.stat
                        if again.fd is not None:
                            assert os.pread(again.fd, size + 1, 0) == b"1" * size
                        await store.delete("k")
                        assert (await store.get("k", version=1))[1] == b"1" * size
                        with pytest.raises(ObjectNotFoundError):
                            await store.get("k", version=3)
                with pytest.raises(ObjectNotFoundError):
                    await store.get("k", version=1)
                with pytest.raises(ObjectNotFoundError):
                    await store.get("never", version=1)

    @promise
    async def test_snapshot_shows_one_revision(self, tmp_path: Path) -> None:
        """``snapshot``: every object as it was when the block began, whatever is written, deleted
        or made meanwhile; its versions can be opened as such; gone when nobody shows them."""
        large = 300_000
        async with self.open_store(tmp_path) as store:
            before = {}
            for key, value in (("a", b"1"), ("b", b"1" * large), ("c", b""), ("p/1", b"1")):
                before[key] = (await store.put(key, value), value)
            async with store.snapshot() as snapshot:
                revision = (await store.list()).revision
                assert snapshot.revision == revision
                await store.transact([PutObject(key="a", value=b"2"), DeleteObject(key="c")])
                for value in (b"2", b"3"):
                    await store.put("b", value * large)
                await store.delete("p/1")
                await store.put("p/1", b"again")
                await store.put("new", b"")
                await store.add_ref("a")
                await store.remove_ref("a")  # collects it
                assert {key: await snapshot.get(key) for key in before} == before
                assert [await snapshot.stat(key) for key in before] == [
                    s for s, _ in before.values()
                ]
                page = await snapshot.list(limit=3)
                assert [s.key for s in page.objects] == ["a", "b", "c"]
                assert (page.next_key, page.revision) == ("c", revision)
                assert [s.key for s in (await snapshot.list(after="c")).objects] == ["p/1"]
                assert [s.version for s in (await snapshot.list("p")).objects] == [1]
                assert (await store.get("b", version=1))[1] == b"1" * large
                with pytest.raises(ObjectNotFoundError):
                    await store.get("b", version=2)
                for call in (snapshot.stat, snapshot.get):
                    with pytest.raises(ObjectNotFoundError):
                        await call("new")
                async with store.snapshot() as later, snapshot.open("b") as view:
                    assert [s.key for s in (await later.list()).objects] == ["b", "new", "p/1"]
                    assert await later.get("b") == await store.get("b")
                    await store.delete("b")
                    assert (await later.get("b"))[1] == b"3" * large
                    assert (view.stat, view.data.tobytes()) == before["b"]
            with pytest.raises(trio.ClosedResourceError):
                await snapshot.stat("a")
            for version in (1, 3):
                with pytest.raises(ObjectNotFoundError):
                    await store.get("b", version=version)

    # ---- piece by piece

    @promise
    async def test_created_piece_by_piece(self, tmp_path: Path) -> None:
        """``create``: the pieces in their order, as if they had been put at once; nothing to be
        seen before ``commit``, nothing left without it, and no more to be written after it."""
        async with self.open_store(tmp_path) as store:
            for number, sizes in enumerate(
                ([], [5], [3, 0, 4], [70_000] * 3, [1_500_000, 7, 700_000])
            ):
                key = f"k{number}"
                pieces = [bytes([65 + place]) * size for place, size in enumerate(sizes)]
                whole = b"".join(pieces)
                async with store.create(key, content_type="x/y", ttl=1000) as writer:
                    for piece in pieces:
                        mine = bytearray(piece)
                        await writer.write(memoryview(mine))
                        mine[:] = bytes(len(mine))
                    with pytest.raises(ObjectNotFoundError):
                        await store.stat(key)
                    stat = await writer.commit()
                    for call in (lambda: writer.write(b"more"), lambda: writer.commit()):
                        with pytest.raises(trio.ClosedResourceError):
                            await call()
                assert await store.get(key) == (stat, whole)
                assert stat.sha256 == hashlib.sha256(whole).hexdigest()
                assert (stat.version, stat.size, stat.content_type) == (1, len(whole), "x/y")
                assert stat.expires_at is not None
            used = await store.usage()
            async with store.create("k3") as writer:
                await writer.write(bytes(2_000_000))
            with pytest.raises(trio.ClosedResourceError):
                await writer.write(b"")
            assert (await store.stat("k3")).version == 1
            assert await store.usage() == used
            async with store.create("k3", hashed=False, size=3) as writer:
                await writer.write(b"123")
                second = await writer.commit()
            assert (second.version, second.sha256, second.expires_at) == (2, "", None)
            for bad in ("", "a" * 401):
                with pytest.raises(InvalidRequestError):
                    async with store.create(bad):
                        pass

    @promise
    async def test_created_as_expected(self, tmp_path: Path) -> None:
        """``create(expect=…)``: looked at when it is committed; what was announced as ``size`` is
        what has to be written."""
        async with self.open_store(tmp_path) as store:
            async with store.create("k", expect=0) as first, store.create("k", expect=0) as second:
                for writer in (first, second):
                    await writer.write(b"x" * 100_000)
                await first.commit()
                with pytest.raises(ObjectConflictError) as caught:
                    await second.commit()
                assert caught.value.current == 1
                with pytest.raises(trio.ClosedResourceError):
                    await second.commit()
            async with store.create("k", size=4) as writer:
                await writer.write(b"123")
                with pytest.raises(InvalidRequestError, match="size"):
                    await writer.commit()
            async with store.create("k", size=4) as writer:
                await writer.write(b"123")
                with pytest.raises(InvalidRequestError, match="size"):
                    await writer.write(b"45")
                with pytest.raises(trio.ClosedResourceError):
                    await writer.commit()
            assert (await store.stat("k")).version == 1

    @promise
    async def test_created_within_the_limit(self, tmp_path: Path) -> None:
        """``create`` raises ``StoreFullError``: on entering when ``size`` says so, else with the
        piece that is too much; what others are writing counts; a block that was left does not."""
        if self.small_config is None:
            pytest.skip("small_config is not set: the limit is not tested")
        async with self.open_store(tmp_path, self.small_config) as store:
            await store.put("kept", bytes(60_000))
            with pytest.raises(StoreFullError):
                async with store.create("new", size=90_000):
                    pytest.fail("it was let in")
            async with store.create("new") as writer:
                await writer.write(bytes(20_000))
                with pytest.raises(StoreFullError):
                    await writer.write(bytes(70_000))
                with pytest.raises(trio.ClosedResourceError):
                    await writer.commit()
            async with store.create("new", size=35_000) as writer:
                assert (await store.usage()).bytes == 95_000
                with pytest.raises(StoreFullError):
                    await store.put("more", bytes(30_000))
                async with store.create("more") as other:
                    with pytest.raises(StoreFullError):
                        await other.write(bytes(30_000))
                await writer.write(bytes(35_000))
                await writer.commit()
            usage = await store.usage()
            assert (usage.objects, usage.bytes, usage.limit_bytes) == (2, 95_000, 100_000)
            async with store.create("kept") as writer:
                await writer.write(bytes(60_000))
                await writer.commit()
            assert (await store.usage()).bytes == 95_000

    @promise
    async def test_sealed_memory_can_be_put(self, tmp_path: Path) -> None:
        """``put`` of a ``SealedFile``: its content, whatever becomes of the caller's descriptor;
        ``InvalidRequestError`` when a seal is missing, or the size is another."""
        async with self.open_store(tmp_path) as store:
            for number, size in enumerate((0, 100, 300_000, 3_000_000)):
                value = os.urandom(size)
                fd = _sealed(value)
                call = store.put(f"k{number}", SealedFile(fd, size))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: call)  # noqa: B023
                    await trio.testing.wait_all_tasks_blocked()
                    os.close(fd)
                stat, got = await store.get(f"k{number}")
                assert got == value
                assert stat.size == size
                assert stat.sha256 == hashlib.sha256(value).hexdigest()
                async with store.open(f"k{number}") as view:
                    assert view.data.tobytes() == value
            for missing in ("F_SEAL_WRITE", "F_SEAL_GROW", "F_SEAL_SHRINK"):
                fd = _sealed(b"x" * 100_000, without=getattr(fcntl, missing))
                with pytest.raises(InvalidRequestError, match=missing):
                    await store.put("bad", SealedFile(fd, 100_000))
                os.close(fd)
            fd = _sealed(b"x" * 100_000)
            for wrong in (99_999, 100_001):
                with pytest.raises(InvalidRequestError, match="100000"):
                    await store.put("bad", SealedFile(fd, wrong))
            os.close(fd)
            with (
                (tmp_path / "plain").open("wb+") as plain,
                pytest.raises(InvalidRequestError, match="sealed"),
            ):
                await store.put("bad", SealedFile(plain.fileno(), 0))
            with pytest.raises(ObjectNotFoundError):
                await store.stat("bad")


def _sealed(value: bytes, *, without: int = 0) -> int:
    """A memfd with that value and all seals but those."""
    fd = os.memfd_create("contract", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, value)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals & ~without)
    return fd
