"""A node's objects for its callers: as the store has them, less what is the node's own."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import CheckObject, DeleteObject, ObjectStore, ObjectView, PutObject
from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.errors import (
    InvalidRequestError,
    ObjectConflictError,
    ObjectForbiddenError,
    ObjectNotFoundError,
    StoreCorruptError,
)
from spear_core.node._objects import LocalObjects, ViewReader

OURS = ".spear/results/t-1"


@pytest.fixture
def store() -> ObjectStore:
    return MemoryObjectStore(max_bytes=64 << 20)


@pytest.fixture
def objects(store: ObjectStore) -> LocalObjects:
    async def opened() -> ObjectStore:
        await trio.lowlevel.checkpoint()
        return store

    return LocalObjects(opened)


async def test_a_value_goes_in_and_comes_out_whole_or_from_the_middle_on(
    objects: LocalObjects,
) -> None:
    value = os.urandom(1_000_000)
    stat = await objects.put("a/x", value, content_type="image/png")
    assert (stat.key, stat.size, stat.version, stat.content_type) == (
        "a/x", 1_000_000, 1, "image/png",
    )  # fmt: skip
    assert await objects.get("a/x") == (stat, value)
    async with objects.read("a/x", offset=999_990) as reader:
        assert reader.stat == stat
        assert [piece async for piece in reader] == [value[-10:]]
    async with objects.read("a/x", offset=1_000_000) as reader:
        assert [piece async for piece in reader] == []
    for offset in (-1, 1_000_001):
        with pytest.raises(InvalidRequestError, match="1000000 bytes"):
            async with objects.read("a/x", offset=offset):
                raise AssertionError


async def test_reading_goes_on_while_the_object_is_written_over_and_deleted(
    objects: LocalObjects,
) -> None:
    value = os.urandom(3_000_000)
    await objects.put("a/x", value)
    async with objects.read("a/x") as reader:
        first = await reader.receive()
        assert len(first) < len(value)
        await objects.put("a/x", b"other")
        assert await objects.get("a/x", version=1) == (reader.stat, value)
        await objects.delete("a/x")
        assert first + b"".join([piece async for piece in reader]) == value
    with pytest.raises(ObjectNotFoundError):
        await objects.stat("a/x")


async def test_a_reader_that_was_closed_or_outlived_its_block_gives_nothing(
    objects: LocalObjects,
) -> None:
    await objects.put("a/x", b"value")
    async with objects.read("a/x") as reader:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await reader.receive()


async def test_a_version_that_nobody_holds_any_more_is_gone(objects: LocalObjects) -> None:
    await objects.put("a/x", b"1")
    await objects.put("a/x", b"2")
    with pytest.raises(ObjectNotFoundError, match="version 1"):
        await objects.get("a/x", version=1)


async def test_piece_by_piece_and_nothing_without_a_commit(objects: LocalObjects) -> None:
    async with objects.create("a/x", expect=0) as writer:
        await writer.write(b"one ")
        await writer.write(b"two")
        with pytest.raises(ObjectNotFoundError):
            await objects.stat("a/x")
        stat = await writer.commit()
    assert await objects.get("a/x") == (stat, b"one two")
    async with objects.create("a/x") as writer:
        await writer.write(b"three")
    assert (await objects.stat("a/x")).version == 1
    assert (await objects.usage()).bytes == 7


async def test_references_pins_and_transactions_are_the_stores(objects: LocalObjects) -> None:
    await objects.transact([PutObject(key="a/x", value=b"1"), PutObject(key="a/y", value=b"2")])
    with pytest.raises(ObjectConflictError) as conflict:
        await objects.transact(
            [
                CheckObject(key="a/x", expect=7),
                DeleteObject(key="a/y"),
                PutObject(key="z", value=b""),
            ]
        )
    assert conflict.value.current == 1
    assert [stat.key for stat in (await objects.list("a/")).objects] == ["a/x", "a/y"]
    assert (await objects.add_ref("a/x", holder="me")).refs == 1
    assert [(h.name, h.refs) for h in await objects.holders("a/x")] == [("me", 1)]
    assert (await objects.pin("a/x")).pinned
    assert (await objects.remove_ref("a/x", holder="me")) is not None
    assert await objects.unpin("a/x") is None
    with pytest.raises(ObjectConflictError):
        await objects.delete("a/y", expect=5)


async def test_the_nodes_own_can_be_read_and_not_touched(
    objects: LocalObjects, store: ObjectStore
) -> None:
    await store.put(OURS, b"result")
    assert (await objects.get(OURS))[1] == b"result"
    assert (await objects.stat(OURS)).size == 6
    assert await objects.holders(OURS) == ()
    for touch in (
        objects.put(OURS, b"forged"),
        objects.transact([DeleteObject(key=OURS)]),
        objects.add_ref(OURS),
        objects.remove_ref(OURS),
        objects.pin(OURS),
        objects.unpin(OURS),
        objects.delete(OURS),
        objects.put(".hidden", b""),
    ):
        with pytest.raises(ObjectForbiddenError, match="node's own"):
            await touch
    with pytest.raises(ObjectForbiddenError):
        async with objects.create(OURS):
            raise AssertionError
    assert (await store.get(OURS))[1] == b"result"


async def test_keys_are_written_without_a_slash_before_them(objects: LocalObjects) -> None:
    with pytest.raises(InvalidRequestError, match="'a/x'"):
        await objects.put("/a/x", b"")
    with pytest.raises(InvalidRequestError):
        await objects.stat("/a/x")


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_the_nodes_own_are_listed_only_when_asked_for(
    objects: LocalObjects, store: ObjectStore, limit: int
) -> None:
    others = ["!before", "-", "/", "0", "a/x", "b"]
    for key in (*others, *(f".spear/results/t-{n}" for n in range(20)), ".tasks/t-1/input"):
        await store.put(key, b"")
    found: list[str] = []
    after = None
    while True:
        page = await objects.list(after=after, limit=limit)
        assert 1 <= len(page.objects) <= limit
        found += [stat.key for stat in page.objects]
        if page.next_key is None:
            break
        after = page.next_key
    assert found == others
    assert [stat.key for stat in (await objects.list(".tasks/")).objects] == [".tasks/t-1/input"]
    assert len((await objects.list(".spear/")).objects) == 20


@pytest.mark.parametrize("limit", [0, -1, 10_001])
async def test_a_page_has_a_limit(objects: LocalObjects, limit: int) -> None:
    with pytest.raises(InvalidRequestError, match="limit"):
        await objects.list(limit=limit)


async def test_a_watch_hears_of_what_others_write(
    objects: LocalObjects, store: ObjectStore
) -> None:
    async with objects.watch() as everything, objects.watch(".") as ours:
        await store.put(OURS, b"1")
        await objects.put("a/x", b"2")
        await store.transact([PutObject(key=OURS, value=b""), DeleteObject(key="a/x")])
        assert [c.key for c in (await everything.receive()).changes] == ["a/x"]
        last = await everything.receive()
        assert [(c.key, c.now) for c in last.changes] == [("a/x", None)]
        assert [c.key for c in (await ours.receive()).changes] == [OURS]
        assert [c.key for c in (await ours.receive()).changes] == [OURS]


@asynccontextmanager
async def view_of_file(content: bytes) -> AsyncIterator[tuple[ObjectView, Any]]:
    store = MemoryObjectStore(max_bytes=1 << 30)
    await store.put("x", content)
    async with store.open("x") as view:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            yield attrs.evolve(view, fd=file.fileno(), in_memory=False), file


async def test_what_is_in_memory_is_read_there() -> None:
    """Nobody asks for its file: a store does not use again what was lent."""
    content = os.urandom(1 << 20)
    store = MemoryObjectStore(max_bytes=1 << 30, max_recycled=1 << 30)
    await store.put("x", content)
    async with store.open("x") as view, ViewReader(view, 100) as reader:
        assert b"".join([piece async for piece in reader]) == content[100:]
    del view, reader
    await store.delete("x")
    assert store.values.memory.waiting == len(content)


@pytest.mark.parametrize("cached", [0, 1, 300_000, 1 << 20])
async def test_what_lies_on_the_disk_only_is_read_in_a_thread(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as ``cached`` the file is in memory, and the kernel says where that ends."""
    content, preadv, threads = os.urandom(1 << 20), os.preadv, 0
    run_sync = trio.to_thread.run_sync

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        assert flags == os.RWF_NOWAIT
        if offset >= cached:
            raise BlockingIOError
        return preadv(fd, [memoryview(buffers[0])[: cached - offset]], offset)

    async def count(*args: Any, **options: Any) -> Any:
        nonlocal threads
        threads += 1
        return await run_sync(*args, **options)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(trio.to_thread, "run_sync", count)
    async with view_of_file(content) as (view, _), ViewReader(view, 0) as reader:
        assert b"".join([piece async for piece in reader]) == content
    assert (threads == 0) is (cached == 1 << 20)


async def test_a_file_that_cannot_say_what_is_in_memory_is_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "not here")

    content = os.urandom(1 << 20)
    monkeypatch.setattr(os, "preadv", refuse)
    async with view_of_file(content) as (view, _), ViewReader(view, 100) as reader:
        assert b"".join([piece async for piece in reader]) == content[100:]


async def test_the_page_cache_as_it_is() -> None:
    content = os.urandom(1 << 20)
    async with view_of_file(content) as (view, file):
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        async with ViewReader(view, 100) as reader:
            assert b"".join([piece async for piece in reader]) == content[100:]
        async with ViewReader(view, 0) as reader:
            assert b"".join([piece async for piece in reader]) == content


async def test_a_file_that_is_cut_off_while_it_is_read_is_damage() -> None:
    content = os.urandom(1 << 20)
    async with view_of_file(content) as (view, file), ViewReader(view, 0) as reader:
        await reader.receive()
        file.truncate(300_000)
        with pytest.raises(StoreCorruptError, match="after 300000 bytes instead of 1048576"):
            _ = [piece async for piece in reader]
