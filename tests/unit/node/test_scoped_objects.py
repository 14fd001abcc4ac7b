"""What a running task may touch, what it calls it, and what it hears of the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from spear_core.api import (
    CheckObject,
    DeleteObject,
    ObjectGrants,
    ObjectStore,
    PutObject,
)
from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.errors import InvalidRequestError, ObjectForbiddenError
from spear_core.node._scoped_objects import Scope, ScopedObjects

RESULT = ".spear/results/t-1"
GRANTS = ObjectGrants(read=("producer/frames/",), write=("shared/",))


class Node:
    """A store, and the task ``t-1`` of ``consumer``."""

    def __init__(self, grants: ObjectGrants = GRANTS) -> None:
        self.store: ObjectStore = MemoryObjectStore(max_bytes=1 << 20)
        self.holding = 0
        self.scoped = ScopedObjects(
            self._opened,
            Scope("consumer", grants, "t-1"),
            holder="task/t-1",
            holding=self._holding,
        )

    async def _opened(self) -> ObjectStore:
        await trio.lowlevel.checkpoint()
        return self.store

    @asynccontextmanager
    async def _holding(self) -> AsyncIterator[None]:
        self.holding += 1
        yield


async def test_its_own_names_are_below_its_artifacts() -> None:
    node = Node()
    stat = await node.scoped.put("frame", b"1")
    assert stat.key == "frame"
    assert [s.key for s in (await node.store.list()).objects] == ["consumer/frame"]
    assert (await node.scoped.stat("/consumer/frame")).key == "frame"
    assert await node.scoped.get("frame", version=1) == (stat, b"1")
    async with node.scoped.open("frame", version=1) as view:
        assert (view.stat, bytes(view.data)) == (stat, b"1")
    async with node.scoped.create("dir/part") as writer:
        await writer.write(b"23")
        assert (await writer.commit()).key == "dir/part"
    page = await node.scoped.list(limit=1)
    assert ([s.key for s in page.objects], page.next_key) == (["dir/part"], "dir/part")
    page = await node.scoped.list(after=page.next_key)
    assert ([s.key for s in page.objects], page.next_key) == (["frame"], None)


async def test_what_it_was_granted_has_a_slash_before_it() -> None:
    node = Node()
    await node.store.put("producer/frames/1", b"1")
    await node.store.put("producer/secret", b"2")
    assert (await node.scoped.get("/producer/frames/1"))[0].key == "/producer/frames/1"
    found = await node.scoped.list("/producer/frames/")
    assert [s.key for s in found.objects] == ["/producer/frames/1"]
    stat = await node.scoped.put("/shared/x", b"3")
    assert stat.key == "/shared/x"
    assert (await node.scoped.get("/shared/x"))[1] == b"3"
    assert (await node.scoped.pin("/shared/x")).pinned
    assert await node.scoped.unpin("/shared/x") is None


READS = ("stat", "get", "holders", "list")
WRITES = ("pin", "unpin", "add_ref", "remove_ref", "delete")


@pytest.mark.parametrize("method", [*READS, *WRITES])
@pytest.mark.parametrize(
    "key",
    [
        *("/producer/secret", "/producer/frame", "/consumer2/x", "/consumer", "/", "//consumer/x"),
        *("/.spear/results/t-2", "/.spear/results/t-11", "/.tasks/t-2/input", "/share"),
    ],
)
async def test_nothing_else_can_be_reached_and_it_hears_what_can(method: str, key: str) -> None:
    node = Node()
    with pytest.raises(ObjectForbiddenError, match="consumer may not") as refused:
        await getattr(node.scoped, method)(key)
    for prefix in ("'/consumer/'", "'/shared/'"):
        assert prefix in refused.value.message
    assert ("'/producer/frames/'" in refused.value.message) is (method in READS)


@pytest.mark.parametrize("key", ["/producer/frames/1", "/.spear/results/t-1"])
async def test_what_it_may_read_it_may_not_write(key: str) -> None:
    node = Node()
    await node.store.put(key[1:], b"1")
    await node.scoped.get(key)
    await node.scoped.transact([CheckObject(key=key, expect=1)])
    for method in WRITES:
        with pytest.raises(ObjectForbiddenError, match="may not write"):
            await getattr(node.scoped, method)(key)
    for operation in (PutObject(key=key, value=b""), DeleteObject(key=key)):
        with pytest.raises(ObjectForbiddenError):
            await node.scoped.transact([PutObject(key="own", value=b""), operation])
    with pytest.raises(ObjectForbiddenError):
        async with node.scoped.create(key):
            raise AssertionError
    assert [s.key for s in (await node.store.list()).objects] == [key[1:]]


async def test_a_grant_of_everything_leaves_out_the_nodes_own() -> None:
    node = Node(ObjectGrants(write=("",)))
    for key in ("producer/x", ".spear/results/t-2", "consumer/y"):
        await node.store.put(key, b"1")
    assert [s.key for s in (await node.scoped.list("/")).objects] == ["y", "/producer/x"]
    async with node.scoped.snapshot() as snapshot:
        assert [s.key for s in (await snapshot.list("/")).objects] == ["y", "/producer/x"]
    with pytest.raises(ObjectForbiddenError):
        await node.scoped.get("/.spear/results/t-2")
    with pytest.raises(ObjectForbiddenError):
        await node.scoped.put("/.spear/results/t-1", b"forged")
    await node.scoped.delete("/producer/x")
    with pytest.raises(ObjectForbiddenError):
        await node.scoped.list("/.spear/")


async def test_nobody_writes_what_no_caller_of_the_node_could_name() -> None:
    """Whatever was granted: it would be there for ever."""
    scoped = Node(ObjectGrants(write=("",))).scoped
    with pytest.raises(InvalidRequestError, match="one '/' before it: '/x'"):
        await scoped.put("//x", b"1")
    with pytest.raises(InvalidRequestError, match="one '/' before it: '/x'"):
        await scoped.stat("//x")
    assert (await scoped.list("/", after="//x")).objects == ()


async def test_references_are_in_its_tasks_name() -> None:
    node = Node()
    await node.scoped.put("x", b"1")
    assert (await node.scoped.add_ref("x")).refs == 1
    assert node.holding == 1
    (holder,) = await node.scoped.holders("x")
    assert (holder.name, holder.refs) == ("task/t-1", 1)
    with pytest.raises(InvalidRequestError, match="own name"):
        await node.scoped.add_ref("x", holder="somebody")
    with pytest.raises(InvalidRequestError, match="own name"):
        await node.scoped.remove_ref("x", holder="somebody")
    await node.store.add_ref("consumer/x", holder="somebody")
    assert (await node.scoped.remove_ref("x")) is not None
    with pytest.raises(InvalidRequestError):
        await node.scoped.remove_ref("x")  # the one that is left is not its own
    for refused in (node.scoped.release("somebody"), node.scoped.keep_alive("somebody", 1)):
        with pytest.raises(ObjectForbiddenError):
            await refused


async def test_a_snapshot_shows_what_the_task_may_see() -> None:
    node = Node()
    await node.scoped.put("x", b"1")
    await node.store.put("producer/frames/1", b"2")
    async with node.scoped.snapshot() as snapshot:
        await node.scoped.put("x", b"other")
        await node.store.delete("producer/frames/1")
        assert await snapshot.get("x") == (await snapshot.stat("x"), b"1")
        async with snapshot.open("/producer/frames/1") as view:
            assert (view.stat.key, bytes(view.data)) == ("/producer/frames/1", b"2")
        assert [s.key for s in (await snapshot.list()).objects] == ["x"]
        for refused in (snapshot.get("/a/b"), snapshot.stat("/a/b"), snapshot.list("/a/")):
            with pytest.raises(ObjectForbiddenError):
                await refused


async def test_a_watch_tells_in_the_tasks_own_words() -> None:
    node = Node()
    async with node.scoped.watch() as own, node.scoped.watch("/producer/frames/") as granted:
        await node.store.put("producer/secret", b"0")
        await node.store.put("producer/frames/1", b"1")
        await node.scoped.put("x", b"2")
        await node.scoped.delete("x")
        (change,) = (await own.receive()).changes
        assert change.key == "x"
        assert change.now is not None
        assert change.now.key == "x"
        (gone,) = (await own.receive()).changes
        assert (gone.key, gone.now) == ("x", None)
        (seen,) = (await granted.receive()).changes
        assert seen.key == "/producer/frames/1"
    with pytest.raises(ObjectForbiddenError):
        async with node.scoped.watch("/producer/"):
            raise AssertionError


async def test_a_key_of_its_own_that_begins_with_a_slash_is_written_out() -> None:
    """Else it would be read as a whole one."""
    node = Node()
    await node.store.put("consumer//x", b"1")
    (stat,) = (await node.scoped.list()).objects
    assert stat.key == "/consumer//x"
    assert (await node.scoped.get(stat.key))[1] == b"1"
