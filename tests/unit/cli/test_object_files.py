"""Objects to files and back: whatever ends a transfer, nothing is there by half."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing

from spear_core.api import ObjectStore
from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.cli._object_files import Put, get_into_file
from spear_core.cli._partial_file import Part, part_name
from spear_core.cli._terminal import OutputFailedError
from spear_core.errors import NodeUnreachableError, ObjectNotFoundError, StoreCorruptError
from spear_core.node._objects import LocalObjects

VALUE = os.urandom(2_000_000)


class Api:
    """As much of a node as a transfer needs."""

    is_connected = True

    def __init__(self, objects: Any = None) -> None:
        self.store: ObjectStore = MemoryObjectStore(max_bytes=64 << 20)
        self.objects = (objects or LocalObjects)(self._opened)

    async def _opened(self) -> ObjectStore:
        await trio.lowlevel.checkpoint()
        return self.store


class Halting(LocalObjects):
    """Reads that stop after the first piece, and commits that wait until they may."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.reached = trio.Event()
        self.go = trio.Event()

    @asynccontextmanager
    async def read(self, key: str, **options: Any) -> Any:
        async with super().read(key, **options) as reader:
            receive, given = reader.receive, 0

            async def halting() -> bytes:
                nonlocal given
                if given:
                    self.reached.set()
                    await self.go.wait()
                given += 1
                return await receive()

            reader.receive = halting  # type: ignore[method-assign]
            yield reader

    @asynccontextmanager
    async def create(self, key: str, **options: Any) -> Any:
        async with super().create(key, **options) as writer:
            commit = writer.commit

            async def halting() -> Any:
                self.reached.set()
                await self.go.wait()
                return await commit()

            writer.commit = halting  # type: ignore[method-assign]
            yield writer


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


async def cut_off(api: Any, work: Callable[[], Any]) -> None:
    """Cancel ``work`` where it halts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await api.objects.reached.wait()
        nursery.cancel_scope.cancel()
    api.objects.reached = trio.Event()


async def test_a_get_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    api: Any = Api(Halting)
    await api.store.put("x", VALUE)
    path = tmp_path / "copy"
    path.write_text("before")
    await cut_off(api, lambda: get_into_file(api, "x", path))
    assert names(tmp_path) == ["copy"]
    assert path.read_text() == "before"


async def test_a_get_that_is_to_be_resumed_goes_on_where_it_was(tmp_path: Path) -> None:
    api: Any = Api(Halting)
    stat = await api.store.put("x", VALUE)
    path = tmp_path / "copy"
    await cut_off(api, lambda: get_into_file(api, "x", path, resume=True))
    part = tmp_path / names(tmp_path)[0]
    first = part.stat().st_size
    assert 0 < first < len(VALUE)
    await cut_off(api, lambda: get_into_file(api, "x", path, resume=True))
    assert first < part.stat().st_size < len(VALUE)
    api.objects.go.set()
    assert await get_into_file(api, "x", path, resume=True) == stat
    assert names(tmp_path) == ["copy"]
    assert path.read_bytes() == VALUE


async def test_a_version_that_is_gone_cannot_be_resumed(tmp_path: Path) -> None:
    api: Any = Api(Halting)
    await api.store.put("x", VALUE)
    path = tmp_path / "copy"
    await cut_off(api, lambda: get_into_file(api, "x", path, resume=True))
    await api.store.put("x", b"other")
    api.objects.go.set()
    with pytest.raises(ObjectNotFoundError):
        await get_into_file(api, "x", path, version=1, resume=True)
    await get_into_file(api, "x", path, resume=True)
    assert path.read_bytes() == b"other"
    assert names(tmp_path) == ["copy"]


async def test_two_that_resume_one_file_do_not_mix_it_up(tmp_path: Path) -> None:
    api: Any = Api(Halting)
    await api.store.put("x", VALUE)
    path = tmp_path / "copy"
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def first() -> None:
            await get_into_file(api, "x", path, resume=True)

        await api.objects.reached.wait()
        with pytest.raises(click.UsageError, match=r"\.part is being written by another"):
            await get_into_file(api, "x", path, resume=True)
        api.objects.go.set()
    assert path.read_bytes() == VALUE
    assert names(tmp_path) == ["copy"]


@pytest.mark.parametrize("hashed", [True, False])
async def test_a_part_of_another_object_is_not_taken(tmp_path: Path, hashed: bool) -> None:
    """Though that has a version 1 as well, and may have no checksum that would show it."""
    api: Any = Api(Halting)
    await api.store.put("x", VALUE, hashed=hashed)
    await api.store.put("y", VALUE[::-1], hashed=hashed)
    path = tmp_path / "copy"
    await cut_off(api, lambda: get_into_file(api, "x", path, resume=True))
    assert len(names(tmp_path)) == 1
    api.objects.go.set()
    await get_into_file(api, "y", path, resume=True)
    assert path.read_bytes() == VALUE[::-1]
    assert names(tmp_path) == ["copy"]


async def test_a_part_of_the_same_version_in_a_store_that_began_anew_is_not_taken(
    tmp_path: Path,
) -> None:
    path, api = tmp_path / "copy", None
    for value in (VALUE, VALUE[::-1]):
        api = Api(Halting)
        await api.store.put("x", value, hashed=False)
        if value is VALUE:
            await cut_off(api, lambda api=api: get_into_file(api, "x", path, resume=True))
    assert api is not None
    api.objects.go.set()
    await get_into_file(api, "x", path, resume=True)  # type: ignore[arg-type]
    assert path.read_bytes() == VALUE[::-1]


async def test_a_part_that_is_longer_than_the_object_is_begun_anew(tmp_path: Path) -> None:
    api: Any = Api()
    stat = await api.store.put("x", b"short")
    (tmp_path / part_name(tmp_path / "copy", stat)).write_bytes(b"longer than that")
    await get_into_file(api, "x", tmp_path / "copy", resume=True)
    assert (tmp_path / "copy").read_bytes() == b"short"
    assert names(tmp_path) == ["copy"]


async def test_a_damaged_part_is_not_kept(tmp_path: Path) -> None:
    api: Any = Api()
    stat = await api.store.put("x", b"as it was stored")
    (tmp_path / part_name(tmp_path / "copy", stat)).write_bytes(b"AS")
    with pytest.raises(StoreCorruptError, match="sha256"):
        await get_into_file(api, "x", tmp_path / "copy", resume=True)
    assert names(tmp_path) == []


async def test_a_file_keeps_its_mode_and_a_link_where_it_leads(tmp_path: Path) -> None:
    api: Any = Api()
    await api.store.put("x", b"secret")
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    await get_into_file(api, "x", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"secret"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["file", "link"]


async def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """``-o /dev/null``, as root, would leave a machine without."""
    api: Any = Api()
    await api.store.put("x", VALUE)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(click.UsageError, match=rf"{name} is no regular file; .* > "):
            await get_into_file(api, "x", tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


async def test_a_disk_that_is_full_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Part, digest: Any, piece: bytes) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            write(attrs.evolve(self, file=file), digest, piece)

    write = Part.write
    monkeypatch.setattr(Part, "write", full)
    api: Any = Api()
    await api.store.put("x", b"1")
    with pytest.raises(OutputFailedError, match="copy cannot be written: No space left"):
        await get_into_file(api, "x", tmp_path / "copy")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "folder", "folder/"])
async def test_a_directory_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    api: Any = Api()
    await api.store.put("x", b"1")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.UsageError, match="is a directory"):
        await get_into_file(api, "x", Path(name))
    assert names(tmp_path) == ["folder"]


async def test_what_is_not_as_it_was_stored_is_not_kept(tmp_path: Path) -> None:
    class Flipping(LocalObjects):
        @asynccontextmanager
        async def read(self, key: str, **options: Any) -> Any:
            async with super().read(key, **options) as reader:
                receive = reader.receive

                async def flipped() -> bytes:
                    piece = bytearray(await receive())
                    piece[-1] ^= 1
                    return bytes(piece)

                reader.receive = flipped  # type: ignore[method-assign]
                yield reader

    api: Any = Api(Flipping)
    await api.store.put("x", VALUE)
    for resume in (False, True):
        with pytest.raises(StoreCorruptError, match="sha256"):
            await get_into_file(api, "x", tmp_path / "copy", resume=resume)
        assert names(tmp_path) == []
    await api.store.put("x", VALUE, hashed=False)  # then nobody can tell
    await get_into_file(api, "x", tmp_path / "copy")


async def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    api: Any = Api()
    await api.store.put("x", b"")
    path = tmp_path / "nothing" / "copy"
    with pytest.raises(click.UsageError, match=rf"{path} cannot be written"):
        await get_into_file(api, "x", path)


@pytest.mark.parametrize("size", [0, 1, 64 << 10, 2_000_000])
async def test_files_of_every_size(tmp_path: Path, size: int) -> None:
    api: Any = Api()
    (tmp_path / "file").write_bytes(VALUE[:size])
    put = Put(api, "x", str(tmp_path / "file"))
    await put.run()
    assert put.stat == await api.store.stat("x")
    await get_into_file(api, "x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == VALUE[:size]


async def test_a_file_that_says_it_is_empty_is_read_all_the_same() -> None:
    api: Any = Api()
    put = Put(api, "x", "/proc/self/status")
    await put.run()
    assert (await api.objects.get("x"))[1].startswith(b"Name:")


async def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    class Changing(LocalObjects):
        to = 0

        @asynccontextmanager
        async def create(self, key: str, **options: Any) -> Any:
            os.truncate(tmp_path / "file", self.to)
            async with super().create(key, **options) as writer:
                yield writer

    api: Any = Api(Changing)
    (tmp_path / "file").write_bytes(VALUE)
    api.objects.to = len(VALUE) + 1
    await Put(api, "x", str(tmp_path / "file")).run()
    assert (await api.objects.get("x"))[1] == VALUE
    api.objects.to = len(VALUE)
    with pytest.raises(click.UsageError, match=r"file has become 1 bytes shorter .* x was not wri"):
        await Put(api, "x", str(tmp_path / "file")).run()
    assert (await api.store.stat("x")).version == 1


async def test_a_put_that_is_cancelled_as_it_commits_knows_how_it_ended(tmp_path: Path) -> None:
    api: Any = Api(Halting)
    (tmp_path / "file").write_bytes(b"1")
    put = Put(api, "x", str(tmp_path / "file"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put.run)
        await api.objects.reached.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        api.objects.go.set()
    assert put.stat is not None
    assert put.stat == await api.store.stat("x")


async def test_a_commit_that_is_never_answered_is_not_waited_for_for_ever(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    api: Any = Api(Halting)
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(NodeUnreachableError, match="objects stat x"):
        await Put(api, "x", str(tmp_path / "file")).run()


async def test_a_node_that_goes_while_the_source_is_silent_is_noticed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    api: Any = Api()
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def go() -> None:
                await trio.sleep(10)
                os.write(descriptor, b"still there")
                await trio.sleep(10)
                api.is_connected = False

            with pytest.raises(NodeUnreachableError, match="x was not written"):
                await Put(api, "x", str(tmp_path / "pipe")).run()
    finally:
        os.close(descriptor)
    assert (await api.store.usage()).bytes == 0


async def test_a_put_that_is_cancelled_before_has_written_nothing(tmp_path: Path) -> None:
    api: Any = Api(Halting)
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        put = Put(api, "x", str(tmp_path / "pipe"))
        with trio.move_on_after(0.1) as patience:
            await put.run()
        assert patience.cancelled_caught
    finally:
        os.close(descriptor)
    assert (put.stat, put.committing) == (None, False)
    assert (await api.store.usage()).bytes == 0
