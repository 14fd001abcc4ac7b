"""Every method of ObjectApi through the local socket, there and back, and what goes wrong on the
way."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import (
    CheckObject,
    DeleteObject,
    ObjectApi,
    ObjectStore,
    PutObject,
    SealedFile,
)
from spear_core.builtins.local_socket import connect
from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.errors import (
    CompactedError,
    InvalidRequestError,
    ObjectConflictError,
    ObjectForbiddenError,
    ObjectNotFoundError,
    StoreFullError,
)
from spear_core.node._objects import LocalObjects

ROOM = 40 << 20
OpenDoor = Callable[..., AbstractAsyncContextManager[str]]


class Node:
    """A node of which only the objects are asked, and its store."""

    def __init__(self) -> None:
        self.store: ObjectStore = MemoryObjectStore(max_bytes=ROOM)
        self.objects: ObjectApi = LocalObjects(self._opened)

    async def _opened(self) -> ObjectStore:
        await trio.lowlevel.checkpoint()
        return self.store


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def dial(open_door: OpenDoor, node: Node) -> Callable[[], AbstractAsyncContextManager[ObjectApi]]:
    """The node's objects as a client has them."""

    @asynccontextmanager
    async def open_it() -> AsyncIterator[ObjectApi]:
        async with open_door(node) as url, connect(url) as api:
            yield api.objects

    return open_it


async def test_every_method(dial: Any, node: Node) -> None:
    async with dial() as objects:
        stat = await objects.put(
            "a/x", b"1", expect=0, content_type="text/plain", ttl=60.0, hashed=False
        )
        assert stat == await node.store.stat("a/x")
        assert (stat.content_type, stat.sha256, stat.expires_at is None) == (
            "text/plain",
            "",
            False,
        )
        assert await objects.put("a/y", b"", expect=0) == await node.store.stat("a/y")
        assert await objects.stat("a/x") == stat
        assert await objects.get("a/x") == (stat, b"1")
        assert await objects.get("a/y") == (await objects.stat("a/y"), b"")
        assert await objects.list() == await node.store.list()
        assert [s.key for s in (await objects.list("a/", after="a/x", limit=1)).objects] == ["a/y"]
        assert (await objects.add_ref("a/x", holder="me")).refs == 1
        assert await objects.holders("a/x") == await node.store.holders("a/x")
        assert (await objects.pin("a/x")).pinned
        assert (await objects.remove_ref("a/x", holder="me")).refs == 0
        await objects.add_ref("a/x")
        assert not (await objects.unpin("a/x")).pinned
        assert await objects.remove_ref("a/x") is None
        assert await objects.unpin("a/y") is not None
        await objects.pin("a/y")
        assert await objects.unpin("a/y") is None
        await objects.put("a/z", b"3")
        assert await objects.usage() == await node.store.usage()
        assert await objects.delete("a/z", expect=1) is None
        assert (await node.store.list()).objects == ()


async def test_transactions(dial: Any, node: Node) -> None:
    async with dial() as objects:
        await objects.put("check", b"")
        await objects.put("gone", b"")
        put = PutObject(
            key="x", value=memoryview(b"12"), expect=0, content_type="a/b", ttl=9.0, hashed=False
        )
        done = await objects.transact(
            [put, DeleteObject(key="gone", expect=1), CheckObject(key="check", expect=1)]
        )
        assert done == (await node.store.stat("x"), None, await node.store.stat("check"))
        assert (done[0].content_type, done[0].sha256) == ("a/b", "")
        assert await objects.transact([]) == ()
        with pytest.raises(ObjectConflictError):
            await objects.transact([PutObject(key="y", value=b"1"), put])
        with pytest.raises(InvalidRequestError, match="33554433 bytes"):
            await objects.transact([PutObject(key="y", value=bytes((32 << 20) + 1))])
        with pytest.raises(InvalidRequestError, match="file"):
            await objects.transact([PutObject(key="y", value=SealedFile(fd=0, size=1))])
        assert [s.key for s in (await objects.list()).objects] == ["check", "x"]


async def test_errors_come_whole(dial: Any, node: Node) -> None:
    async with dial() as objects:
        await objects.put("x", b"1")
        await objects.put("x", b"2")
        with pytest.raises(ObjectConflictError, match="version 2") as conflict:
            await objects.put("x", b"3", expect=1)
        assert (conflict.value.current, conflict.value.retryable) == (2, True)
        with pytest.raises(ObjectNotFoundError, match="'nobody'"):
            await objects.stat("nobody")
        with pytest.raises(ObjectNotFoundError, match="'nobody'"):
            async with objects.read("nobody"):
                raise AssertionError
        with pytest.raises(ObjectNotFoundError, match="version 1"):
            await objects.get("x", version=1)
        with pytest.raises(InvalidRequestError, match="offset"):
            async with objects.read("x", offset=2):
                raise AssertionError
        with pytest.raises(ObjectForbiddenError):
            async with objects.create(".x"):
                raise AssertionError
        for number in range(12_000):
            await node.store.put("x", b"%d" % number, hashed=False)
        with pytest.raises(CompactedError) as compacted:
            async with objects.watch(start_revision=1):
                raise AssertionError
        assert compacted.value.compacted > 1


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 262_144, 262_145, 5_000_000, 20_000_000])
async def test_values_of_every_size_go_both_ways(dial: Any, size: int) -> None:
    value = random.Random(size).randbytes(size)
    async with dial() as objects:
        stat = await objects.put("x", value)
        assert (stat.size, stat.version) == (size, 1)
        async with objects.create("y", size=size) as writer:
            for start in range(0, size, 777_777):
                await writer.write(value[start : start + 777_777])
            assert (await writer.commit()).sha256 == stat.sha256
        assert await objects.get("x") == (stat, value)
        offset = size * 2 // 3
        async with objects.read("y", version=1, offset=offset) as reader:
            assert b"".join([piece async for piece in reader]) == value[offset:]


async def test_a_slow_reader_stops_the_node_and_a_deleted_object_is_read_to_its_end(
    dial: Any, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = os.urandom(8 << 20)
    await node.store.put("x", value)
    given = 0

    class Counting(LocalObjects):
        @asynccontextmanager
        async def read(self, key: str, **options: Any) -> Any:
            async with super().read(key, **options) as reader:
                receive = reader.receive

                async def count() -> bytes:
                    nonlocal given
                    piece = await receive()
                    given += len(piece)
                    return piece

                monkeypatch.setattr(reader, "receive", count)
                yield reader

    node.objects = Counting(node._opened)
    async with dial() as objects, objects.read("x") as reader:
        parts = [await reader.receive()]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert given < 2 << 20  # a window and the buffers of a socket, whatever the object's size
        await objects.delete("x")
        with pytest.raises(ObjectNotFoundError):
            await objects.stat("x")
        parts += [piece async for piece in reader]
        assert b"".join(parts) == value


async def test_a_slow_store_stops_the_client(dial: Any, node: Node) -> None:
    class Slow(LocalObjects):
        @asynccontextmanager
        async def create(self, key: str, **options: Any) -> Any:
            async with super().create(key, **options) as writer:
                await go.wait()
                yield writer

    go = trio.Event()
    node.objects = Slow(node._opened)
    async with dial() as objects:
        with trio.move_on_after(0.1) as patience:
            async with objects.create("x"):
                raise AssertionError  # the node has not said that it takes anything
        assert patience.cancelled_caught
        go.set()
        async with objects.create("x") as writer:
            await writer.write(b"1")
            await writer.commit()


async def test_a_block_that_ends_without_a_commit_leaves_nothing(dial: Any, node: Node) -> None:
    async with dial() as objects:
        async with objects.create("x") as writer:
            await writer.write(bytes(1_000_000))
        with pytest.raises(trio.ClosedResourceError):
            await writer.write(b"more")
        with pytest.raises(trio.ClosedResourceError):
            await writer.commit()
        await nothing_is_left(node)
        async with objects.create("x") as writer:
            await writer.write(b"1")
            await writer.commit()
            with pytest.raises(trio.ClosedResourceError):
                await writer.commit()
        assert await objects.get("x") == (await objects.stat("x"), b"1")


async def nothing_is_left(node: Node) -> None:
    """Soon: who leaves does not wait for the other side."""
    with trio.fail_after(60):
        while (await node.store.usage()).bytes:  # noqa: ASYNC110 - another task does it
            await trio.sleep(0.01)
    assert (await node.store.list()).objects == ()


async def test_a_client_that_vanishes_in_mid_put_leaves_nothing(
    open_door: OpenDoor, node: Node
) -> None:
    async with open_door(node) as url:
        with pytest.raises(ZeroDivisionError):
            await _vanish(url, node)
        await nothing_is_left(node)


async def _vanish(url: str, node: Node) -> None:
    async with connect(url) as api, api.objects.create("x") as writer:
        await writer.write(bytes(1_000_000))
        with trio.fail_after(60):
            while not (await node.store.usage()).bytes:  # noqa: ASYNC110 - another task does it
                await trio.sleep(0.01)
        raise ZeroDivisionError


async def test_a_store_that_is_full_in_mid_stream_says_so(dial: Any, node: Node) -> None:
    async with dial() as objects:
        with pytest.raises(StoreFullError, match="limit"):
            await _fill(objects)
        await nothing_is_left(node)
        with pytest.raises(StoreFullError):
            async with objects.create("x", size=ROOM + 1):
                raise AssertionError
        with pytest.raises(StoreFullError):
            await objects.put("x", bytes(ROOM + 1))
        await nothing_is_left(node)


async def _fill(objects: ObjectApi) -> None:
    async with objects.create("x") as writer:
        for _ in range(2 * ROOM >> 20):
            await writer.write(bytes(1 << 20))


async def test_another_size_than_was_announced(dial: Any, node: Node) -> None:
    async with dial() as objects:
        async with objects.create("x", size=10) as writer:
            await writer.write(bytes(9))
            with pytest.raises(InvalidRequestError):
                await writer.commit()
        async with objects.create("x", size=10) as writer:
            with pytest.raises(InvalidRequestError):
                await _write_and_commit(writer, bytes(11))
        await nothing_is_left(node)


async def _write_and_commit(writer: Any, data: bytes) -> None:
    await writer.write(data)
    await writer.commit()


async def test_a_conflict_is_seen_at_the_commit(dial: Any, node: Node) -> None:
    async with dial() as objects, objects.create("x", expect=0) as writer:
        await writer.write(b"late")
        await objects.put("x", b"first")
        with pytest.raises(ObjectConflictError) as conflict:
            await writer.commit()
        assert conflict.value.current == 1
    assert (await node.store.get("x"))[1] == b"first"


async def test_a_cancelled_write_ends_its_writer(dial: Any, node: Node) -> None:
    class Stuck(LocalObjects):
        @asynccontextmanager
        async def create(self, key: str, **options: Any) -> Any:
            async with super().create(key, **options) as writer:

                class Waiting(type(writer)):  # type: ignore[misc]
                    async def write(self, data: Any) -> None:
                        begun.set()
                        await trio.sleep_forever()

                writer.__class__ = Waiting
                yield writer

    begun = trio.Event()
    node.objects = Stuck(node._opened)
    async with dial() as objects, objects.create("x") as writer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.write, bytes(4 << 20))
            await begun.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await writer.commit()


async def test_a_watch(dial: Any, node: Node) -> None:
    async with dial() as objects:
        await objects.put("a/x", b"1")
        async with objects.watch("a/", start_revision=1) as changes:
            assert (await changes.receive()).changes[0].now == await objects.stat("a/x")
            await objects.put("b", b"")
            await objects.delete("a/x")
            found = await changes.receive()
            assert [(c.key, c.now) for c in found.changes] == [("a/x", None)]
            with trio.move_on_after(0.05) as patience:
                await changes.receive()
            assert patience.cancelled_caught
            await objects.put("a/x", b"2")
            assert (await changes.receive()).changes[0].now.version == 2


async def test_arguments_that_are_none(open_door: OpenDoor, node: Node) -> None:
    async with open_door(node) as url, connect(url) as api:
        ask: Any = api.objects._ask  # type: ignore[attr-defined]
        for method, args, payload in (
            ("objects.nothing", {}, b""),
            ("objects.stat", {}, b""),
            ("objects.put", {}, b""),
            ("objects.stat", {"key": 1}, b""),
            ("objects.stat", {"key": "x", "more": 1}, b""),
            ("objects.list", {"limit": "many"}, b""),
            ("objects.transact", {}, b"\xc1"),
            ("objects.transact", {}, b"\x91\x82\xa2do\xa4burn\xa3key\xa1x"),
            ("objects.transact", {"key": "x"}, b"\x90"),
        ):
            with pytest.raises(InvalidRequestError):
                await ask(method, args, payload)
        opening: Any = api.objects._open_stream  # type: ignore[attr-defined]
        for method in ("objects.nothing", "objects.read", "objects.create"):
            async with opening(method, {}) as stream:
                with pytest.raises(InvalidRequestError):
                    await stream.receive()
