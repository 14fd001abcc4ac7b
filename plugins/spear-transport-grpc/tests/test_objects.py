"""Objects of a real store, from the client through gRPC and back."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
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
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store
from spear_core.errors import (
    CompactedError,
    InvalidRequestError,
    ObjectConflictError,
    ObjectForbiddenError,
    ObjectNotFoundError,
    StoreFullError,
)
from spear_core.node._objects import LocalObjects
from spear_core.testing import make_context
from spear_transport_grpc import plugin
from spear_transport_grpc._bridge import ClientCall, RpcError, StatusCode, open_channel
from spear_transport_grpc._errors import status_to_error
from spear_transport_grpc._protos.spear.v1 import object_pb2

LARGE = bytes(range(256)) * (20 << 10) + b"and a little more"
"""Over 5 MiB: more than goes in one message."""
LIMIT = 64 << 20
Request = object_pb2.PutObjectRequest


@attrs.frozen
class Store:
    """A node's store, and a client of the node."""

    kept: ObjectStore
    objects: ObjectApi
    url: str

    async def wait_empty(self) -> None:
        """Nothing is there, and nothing is being written."""
        with trio.fail_after(30):
            while True:
                usage = await self.kept.usage()
                if not usage.objects and not usage.bytes:
                    return
                await trio.sleep(0.01)


@pytest.fixture
async def store(tmp_path: Path, serve: Callable[..., Any], table_node: Any) -> AsyncIterator[Store]:
    context = make_context(tmp_path / "store")
    config = MemoryStoreConfig(memory_store_bytes=LIMIT)
    async with open_memory_store(context, config) as kept:

        async def source() -> ObjectStore:
            return kept

        node = table_node()
        node.objects = LocalObjects(source)
        async with serve(tmp_path, node) as url, plugin.connect(url) as api:
            yield Store(kept, api.objects, url)


async def _write(
    store: Store, *pieces: bytes, size: int | None = None, then: Exception | None = None
) -> None:
    """Write the object ``k``, and commit it, or raise ``then``."""
    async with store.objects.create("k", size=size) as writer:
        for piece in pieces:
            await writer.write(piece)
        if then is not None:
            raise then
        await writer.commit()


async def text(objects: ObjectApi, key: str, **more: Any) -> bytes:
    return (await objects.get(key, **more))[1]


@pytest.mark.parametrize("value", [b"", b"small", LARGE], ids=["empty", "small", "large"])
async def test_what_was_put_is_got(store: Store, value: bytes) -> None:
    stat = await store.objects.put("a/b", bytearray(value), content_type="text/x", ttl=1e6)
    assert stat == await store.kept.stat("a/b")
    assert (stat.size, stat.content_type) == (len(value), "text/x")
    assert stat.sha256 == hashlib.sha256(value).hexdigest()
    assert stat.expires_at is not None
    assert await store.objects.get("a/b") == (stat, value)
    assert await store.objects.stat("a/b") == stat
    unhashed = await store.objects.put("a/b", value, hashed=False)
    assert (unhashed.sha256, unhashed.version, unhashed.expires_at) == ("", 2, None)


@pytest.mark.parametrize("value", [b"small", LARGE], ids=["small", "large"])
async def test_a_conflict_says_what_the_object_is(store: Store, value: bytes) -> None:
    await store.objects.put("k", b"one", expect=0)
    await store.objects.put("k", value, expect=1)
    two = await store.objects.put("k", value, expect=hashlib.sha256(value).hexdigest())
    assert two.version == 3
    for expect in (0, 2, "ab" * 32):
        with pytest.raises(ObjectConflictError) as caught:
            await store.objects.put("k", value, expect=expect)
        assert (caught.value.current, caught.value.retryable) == (3, True)
    with pytest.raises(ObjectConflictError) as caught:
        await store.objects.put("new", value, expect=5)
    assert caught.value.current == 0
    assert (await store.objects.stat("k")).version == 3


async def test_foreign_clients_read_the_current_version_in_the_details(store: Store) -> None:
    with pytest.raises(ObjectConflictError) as caught:
        await store.objects.put("new", b"", expect=5)
    cause = caught.value.__cause__
    assert isinstance(cause, RpcError)
    ((_, details),) = cause.trailing
    assert cause.code is StatusCode.ABORTED
    assert b"\x0a\x07current\x12\x010" in details  # type: ignore[operator]


async def test_errors_are_the_stores_own(store: Store) -> None:
    objects = store.objects
    for method in (objects.stat, objects.get, objects.pin, objects.holders, objects.delete):
        with pytest.raises(ObjectNotFoundError, match="nothing"):
            await method("nothing")  # type: ignore[operator]
    with pytest.raises(ObjectForbiddenError, match="the node's own"):
        await objects.put(".spear/x", b"")
    with pytest.raises(ObjectForbiddenError, match="the node's own"):
        async with objects.create(".spear/x"):
            pytest.fail("it was let in")
    with pytest.raises(InvalidRequestError, match="key"):
        await objects.put("/k", b"")
    with pytest.raises(InvalidRequestError):
        await objects.stat("\udc80")
    for limit in (0, -1, 10_001, 1 << 40):
        with pytest.raises(InvalidRequestError, match=f"limit: must be 1 to 10000, not {limit}"):
            await objects.list(limit=limit)
    for expect in (1 << 70, 1.5, b"1", "\udc80"):
        with pytest.raises(InvalidRequestError, match="neither a version of an object nor a sha"):
            await objects.put("k", b"", expect=expect)  # type: ignore[arg-type]
    for options in ({"ttl": "1"}, {"content_type": "\udc80"}, {"hashed": "no"}):
        with pytest.raises(InvalidRequestError, match="PutObjectOperation"):
            await objects.put("k", b"", **options)  # type: ignore[arg-type]
    for operation in (PutObject(key="\udc80", value=b""), DeleteObject(key="\udc80")):
        with pytest.raises(InvalidRequestError, match="surrogates not allowed"):
            await objects.transact([operation])
    await objects.put("k", b"123")
    with pytest.raises(InvalidRequestError, match="offset 4 is not within"):
        async with objects.read("k", offset=4):
            pytest.fail("it was let in")


async def test_what_has_no_room_is_refused_before_it_is_sent(store: Store) -> None:
    with pytest.raises(StoreFullError):
        async with store.objects.create("k", size=LIMIT + 1):
            pytest.fail("it was let in")
    with pytest.raises(StoreFullError):
        await _write(store, *[LARGE] * (LIMIT // len(LARGE) + 2))
    await store.wait_empty()


async def test_a_reader_has_one_version_whatever_is_written(store: Store) -> None:
    first = await store.objects.put("k", LARGE)
    async with store.objects.read("k") as reader:
        got = await reader.receive()
        await store.objects.put("k", b"other")
        assert await text(store.objects, "k", version=1) == LARGE  # the reader holds it
        await store.objects.delete("k")
        async for piece in reader:
            got += piece
        assert (reader.stat, got) == (first, LARGE)
    with trio.fail_after(30):
        while True:  # the node lets go of it when it hears that we have left
            try:
                await store.objects.get("k", version=1)
            except ObjectNotFoundError:
                break


@pytest.mark.parametrize("offset", [0, 1, 256 << 10, (4 << 20) + 3, len(LARGE) - 1, len(LARGE)])
async def test_a_read_goes_on_where_it_broke_off(store: Store, offset: int) -> None:
    await store.objects.put("k", LARGE)
    async with store.objects.read("k", version=1, offset=offset) as reader:
        assert reader.stat.size == len(LARGE)
        assert b"".join([piece async for piece in reader]) == LARGE[offset:]
        with pytest.raises(trio.EndOfChannel):
            await reader.receive()
        await reader.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await reader.receive()


async def test_listings_come_in_pages(store: Store) -> None:
    for number in range(5):
        await store.objects.put(f"k/{number}", b"x" * number)
    await store.objects.put("other", b"")
    page = await store.objects.list("k/", limit=3)
    assert page == await store.kept.list("k/", limit=3)
    rest = await store.objects.list("k/", after=page.next_key)
    assert [stat.key for stat in rest.objects] == ["k/3", "k/4"]
    assert rest.next_key is None
    usage = await store.objects.usage()
    assert (usage.objects, usage.bytes, usage.limit_bytes) == (6, 10, LIMIT)


async def test_references_and_pins(store: Store) -> None:
    objects = store.objects
    await objects.put("k", b"v")
    assert (await objects.add_ref("k", holder="me")).refs == 1
    assert (await objects.add_ref("k")).refs == 2
    assert [(h.name, h.refs, h.ttl) for h in await objects.holders("k")] == [
        ("", 1, None),
        ("me", 1, None),
    ]
    assert (await objects.pin("k")).pinned
    left = await objects.remove_ref("k", holder="me")
    assert left is not None
    assert left.refs == 1
    with pytest.raises(InvalidRequestError):
        await objects.remove_ref("k", holder="me")
    unpinned = await objects.unpin("k")
    assert unpinned is not None
    assert not unpinned.pinned
    assert await objects.remove_ref("k") is None
    await objects.put("k", b"v")
    await objects.pin("k")
    assert await objects.unpin("k") is None
    with pytest.raises(ObjectNotFoundError):
        await objects.stat("k")


async def test_a_transaction_is_done_wholly_or_not_at_all(store: Store) -> None:
    await store.objects.put("a", b"1")
    operations = (
        PutObject(key="b", value=memoryview(b"2"), content_type="t/x", ttl=9.0, hashed=False),
        DeleteObject(key="a", expect=1),
        CheckObject(key="c", expect=0),
    )
    put, deleted, checked = await store.objects.transact(operations)
    assert put == await store.kept.stat("b")
    assert (put.content_type, put.sha256) == ("t/x", "")
    assert (deleted, checked) == (None, None)
    with pytest.raises(ObjectConflictError) as caught:
        await store.objects.transact(
            [PutObject(key="x", value=b""), CheckObject(key="b", expect="ab" * 32)]
        )
    assert caught.value.current == 1
    with pytest.raises(ObjectNotFoundError):
        await store.objects.stat("x")
    for bad, message in (
        (PutObject(key="x", value=bytes((32 << 20) + 1)), "at most 33554432"),
        (PutObject(key="x", value=SealedFile(0, 1)), "a file cannot be put"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            await store.objects.transact([bad])


async def test_a_watch_tells_of_every_change(store: Store) -> None:
    before = (await store.objects.put("k/1", b"")).revision
    async with store.objects.watch("k/", start_revision=before) as changes:
        await store.objects.put("other", b"")
        await store.objects.put("k/2", b"")
        await store.objects.delete("k/1")
        found = [await changes.receive() for _ in range(3)]
    assert [[(c.key, c.now is not None) for c in each.changes] for each in found] == [
        [("k/1", True)],
        [("k/2", True)],
        [("k/1", False)],
    ]
    assert found[1].changes[0].now == await store.kept.stat("k/2")
    with pytest.raises(trio.ClosedResourceError):
        await changes.receive()


async def test_a_watch_has_begun_when_its_block_is_entered(store: Store) -> None:
    async with store.objects.watch() as changes:
        stat = await store.kept.put("k", b"")
        with trio.fail_after(30):
            found = await changes.receive()
    assert found.revision == stat.revision


async def test_a_watch_of_what_is_forgotten_is_refused(store: Store) -> None:
    for number in range(10_002):
        await store.kept.put("k", b"%d" % number)
    with pytest.raises(CompactedError) as caught:
        async with store.objects.watch(start_revision=1):
            pytest.fail("it was let in")
    assert caught.value.compacted > 1


# ---- what is not committed


async def test_nothing_is_left_of_a_write_without_its_commit(store: Store) -> None:
    async with store.objects.create("k", size=len(LARGE)) as writer:
        await writer.write(LARGE)
    with pytest.raises(trio.ClosedResourceError):
        await writer.write(b"more")
    with pytest.raises(LookupError):
        await _write(store, LARGE, then=LookupError())
    with trio.move_on_after(30) as scope:
        async with store.objects.create("k") as writer:
            await writer.write(LARGE)
            scope.cancel()
            await writer.commit()
    await store.wait_empty()


async def test_another_size_than_announced_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequestError, match="3"):
        await _write(store, b"four", size=3)
    with pytest.raises(InvalidRequestError, match="5"):
        await _write(store, b"four", size=5)
    await store.wait_empty()


HEADER = Request(header=object_pb2.PutObjectHeader(key="k"))
CHUNK = Request(chunk=b"1234")
COMMIT = Request(commit=object_pb2.PutObjectCommit(size=4))
GOOD = hashlib.sha256(b"1234").hexdigest()
HASHED = Request(header=object_pb2.PutObjectHeader(key="k", sha256=GOOD.upper()))
MISHASHED = Request(header=object_pb2.PutObjectHeader(key="k", sha256="ab" * 32))
NO_EXPECTATION = object_pb2.PutObjectHeader(key="k", expect=object_pb2.ObjectExpectation())


async def _send(call: ClientCall, *messages: Request) -> None:
    for message in messages:
        await call.send(message.SerializeToString())


async def _put_raw(url: str, *messages: Request) -> object_pb2.ObjectStat:
    async with (
        open_channel(f"unix:{url.removeprefix('grpc+unix://')}") as channel,
        channel.open_call("/spear.v1.ObjectService/PutObject") as call,
    ):
        await _send(call, *messages)
        await call.send_eof()
        data = await call.receive()
        assert data is not None
        return object_pb2.ObjectStat.FromString(data)


async def test_a_write_message_by_message(store: Store) -> None:
    stat = await _put_raw(store.url, HASHED, CHUNK, COMMIT)
    assert (stat.key, stat.version, stat.sha256) == ("k", 1, GOOD)
    assert await store.kept.get("k") == (await store.kept.stat("k"), b"1234")
    assert (await _put_raw(store.url, HEADER, CHUNK, Request(), COMMIT)).version == 2


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ((), "PutObjectRequest is missing"),
        ((CHUNK,), "header: the first message"),
        ((Request(header=NO_EXPECTATION),), "expect: it names neither"),
        ((HEADER, CHUNK), "commit: the call ended without it, after 4 bytes"),
        ((HEADER, CHUNK, HEADER, COMMIT), "header: a write has one, and 'k' is another"),
        ((HEADER, CHUNK, CHUNK, COMMIT), "commit.size: 4 bytes were sent, it says, but 8 came"),
        ((HEADER, CHUNK, COMMIT, CHUNK), "commit: it is the last message"),
        ((MISHASHED, CHUNK, COMMIT), "what came has " + GOOD),
        ((HEADER, Request(chunk=bytes((16 << 20) + 1))), "chunk: a piece has at most"),
    ],
)
async def test_a_write_that_is_not_clean_leaves_nothing(
    store: Store, messages: tuple[Request, ...], why: str
) -> None:
    with pytest.raises(RpcError) as caught:
        await _put_raw(store.url, *messages)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    assert why in str(status_to_error(caught.value, ""))
    await store.wait_empty()


async def test_a_client_that_vanishes_leaves_nothing(store: Store) -> None:
    async with (
        open_channel(f"unix:{store.url.removeprefix('grpc+unix://')}") as channel,
        channel.open_call("/spear.v1.ObjectService/PutObject") as call,
    ):
        await _send(call, HEADER)
        await call.wait_accepted()
        assert (await store.kept.usage()).objects == 0
        await _send(call, CHUNK)
        call.cancel()
    await store.wait_empty()


async def test_the_deadline_of_a_write_ends_it(store: Store) -> None:
    with trio.move_on_after(0.3) as scope:
        async with store.objects.create("k") as writer:
            await writer.write(LARGE)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    await store.wait_empty()


async def test_two_tasks_cannot_write_one_object(store: Store) -> None:
    async with store.objects.create("k") as writer, trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, bytes(20 << 20))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await writer.write(b"x")
        with pytest.raises(trio.BusyResourceError):
            await writer.commit()
