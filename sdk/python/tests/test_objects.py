"""``ctx.objects``, with the objects of the test kit and with a node's answers."""

from __future__ import annotations

import array
import gc
import os
from collections.abc import Iterator

import numpy
import pytest

from spear_sdk import (
    Check,
    Context,
    Delete,
    HostcallError,
    ObjectConflictError,
    ObjectNotFoundError,
    Put,
    StoredObject,
    StoreFullError,
    TaskCancelledError,
    function,
)
from spear_sdk._errors import hostcall_error
from spear_sdk._frames import Descriptor
from spear_sdk._object_steps import MOST_IN_ONE, bytes_of
from spear_sdk._stored import MappedObject, ObjectStat, mapped
from spear_sdk.testing import FakeContext, run


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_put_get_stat_list_delete() -> None:
    objects = FakeContext(objects={"given": b"value"}).objects
    first = objects.put("a/1", b"one", content_type="text/plain")
    assert (first.key, first.version, first.size, first.content_type) == ("a/1", 1, 3, "text/plain")
    assert objects.put("a/1", bytearray(b"two"), expect=first.version).version == 2
    got = objects.get("a/1")
    assert isinstance(got, StoredObject)
    assert (bytes(got), got.version, got.key, len(got), got[1:]) == (b"two", 2, "a/1", 3, b"wo")
    assert got.data.readonly
    assert objects.stat("/test/a/1") == objects.stat("a/1") == got.stat
    objects.put("a/2", b"")
    assert [stat.key for stat in objects.list()] == ["a/1", "a/2", "given"]
    assert [stat.key for stat in objects.list("a/", limit=1)] == ["a/1"]
    assert [stat.key for stat in objects.list("a/", after="a/1")] == ["a/2"]
    objects.delete("a/1", expect=2)
    with pytest.raises(ObjectNotFoundError) as caught:
        objects.get("a/1")
    assert caught.value.code == "not_found"
    assert objects.put("a/1", b"again").version == 3


def test_conflicts_say_what_is_current() -> None:
    objects = FakeContext().objects
    stat = objects.put("k", b"1", expect=0)
    for expect in (0, 7, "0" * 64):
        with pytest.raises(ObjectConflictError) as caught:
            objects.put("k", b"2", expect=expect)
        assert caught.value.current == 1
    objects.put("k", b"2", expect=stat.sha256)
    with pytest.raises(ObjectConflictError):
        objects.delete("k", expect=1)


def test_references_and_pins() -> None:
    objects = FakeContext(objects={"k": b"1"}).objects
    assert objects.add_ref("k").refs == 1
    assert objects.pin("k").pinned
    left = objects.remove_ref("k")
    assert left is not None
    assert left.refs == 0
    assert objects.unpin("k") is None
    with pytest.raises(ObjectNotFoundError):
        objects.pin("k")


def test_transactions() -> None:
    context = FakeContext(objects={"a": b"1", "b": b"2"})
    put, gone, checked = context.objects.transact(
        Put("a", b"more", expect=1), Delete("b"), Check("c", 0)
    )
    assert put is not None
    assert (put.version, gone, checked) == (2, None, None)
    with pytest.raises(ObjectConflictError):
        context.objects.transact(Put("a", b"no"), Put("d", b"no"), Check("a", 1))
    assert context.stored == {"a": b"more"}


def test_piece_by_piece() -> None:
    context = FakeContext()
    with context.objects.create("k", content_type="text/plain") as writer:
        assert writer.write(b"abc") == 3
        writer.write(bytes(MOST_IN_ONE + 5))
        assert "k" not in context.stored
    assert writer.stat is not None
    assert (writer.stat.size, writer.stat.content_type) == (MOST_IN_ONE + 8, "text/plain")
    with context.objects.open("k") as reader:
        assert reader.stat == writer.stat
        assert (reader.read(2), reader.tell()) == (b"ab", 2)
        reader.seek(MOST_IN_ONE)
        assert reader.read() == bytes(8)
        assert reader.read(10) == b""
        reader.seek(0)
        assert sum(map(len, reader)) == MOST_IN_ONE + 8
    with pytest.raises(ValueError, match="not open"):
        reader.read()
    with pytest.raises(ValueError, match="not open"):
        writer.write(b"late")


def test_a_block_that_fails_writes_nothing() -> None:
    context = FakeContext()

    def fail() -> None:
        with context.objects.create("k") as writer:
            writer.write(b"abc")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert context.stored == {}


def test_a_large_value_where_no_file_can_go() -> None:
    context = FakeContext()
    value = os.urandom(2 * MOST_IN_ONE + 77)
    assert context.objects.put("k", value, expect=0).size == len(value)
    assert context.stored["k"] == value
    assert bytes(context.objects.get("k")) == value


async def shares(ctx: Context) -> list[object]:
    objects = ctx.objects
    await objects.aput("k", array.array("i", [1, 2, 3]))
    numbers = list(memoryview(await objects.aget("k")).cast("i"))
    async with objects.create("w") as writer:
        await writer.awrite(b"piece")
    async with objects.open("w") as reader:
        pieces = [piece.decode() async for piece in reader]
    await objects.aadd_ref("k")
    await objects.apin("k")
    await objects.aremove_ref("k")
    await objects.aunpin("k")
    await objects.atransact(Put("t", b""), Delete("w"))
    keys = [stat.key for stat in await objects.alist()]
    await objects.adelete("t", expect=(await objects.astat("t")).version)
    return [numbers, pieces, keys]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_functions(backend: str) -> None:
    context = FakeContext()
    fn = function(backend=backend)(shares)
    assert run(fn, context=context).json() == [[1, 2, 3], ["piece"], ["t"]]
    assert context.stored == {}


def test_a_cancelled_task_asks_for_nothing_more() -> None:
    context = FakeContext()
    context.cancel()
    with pytest.raises(TaskCancelledError):
        context.objects.put("k", b"x")
    assert context.stored == {}


def test_any_buffer_is_bytes() -> None:
    grid = memoryview(bytearray(range(12))).cast("B", (3, 4))
    for data, expected in [
        (b"abc", b"abc"),
        (array.array("d", [1.5]), array.array("d", [1.5]).tobytes()),
        (grid, bytes(range(12))),
        (memoryview(b"abcdef")[::2], b"ace"),
        (array.array("d"), b""),
    ]:
        assert bytes_of(data) == expected
    numbers = array.array("q", [1, 2])
    view = bytes_of(numbers)
    numbers[0] = 7
    assert view[0] == 7  # no copy
    view.release()
    for wrong in ("text", 7, None, [1]):
        with pytest.raises(TypeError, match="bytes"):
            bytes_of(wrong)


def test_errors_have_their_own_classes() -> None:
    head = {"message": "m", "code": "resource_exhausted", "retryable": False}
    full = hostcall_error(head | {"name": "StoreFullError"})
    assert isinstance(full, StoreFullError)
    assert (str(full), full.code, full.name) == ("m", "resource_exhausted", "StoreFullError")
    assert type(hostcall_error(head | {"name": "NoSuchName"})) is HostcallError


# ---- what is mapped


def file_of(value: bytes) -> Descriptor:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, value)
    return Descriptor(fd)


def test_a_mapped_object_lives_as_long_as_anything_made_from_it() -> None:
    value = os.urandom(200_000)
    file = file_of(value)
    got = mapped(file, ObjectStat(key="k", size=len(value), version=3))
    assert file.number == -1
    assert isinstance(got, MappedObject)
    view = memoryview(got)[1000:]
    assert (got.version, view.readonly, repr(got)) == (
        3,
        True,
        "<StoredObject 'k', version 3, 200000 bytes>",
    )
    with pytest.raises(BufferError):
        got.close()
    del got
    gc.collect()
    assert view == value[1000:]
    view.release()


@pytest.mark.parametrize("size", [1, (1 << 20) - 1, (1 << 20) + 1])
def test_it_is_equal_to_what_has_its_bytes_as_a_small_one_is(size: int) -> None:
    value = os.urandom(size)
    got = mapped(file_of(value), ObjectStat(key="k", size=size, version=1))
    other = mapped(file_of(value), ObjectStat(key="other", size=size, version=2))
    for same in (value, bytearray(value), memoryview(value), got, other):
        assert got == same
        assert same == got
    for different in (value[:-1] + bytes([value[-1] ^ 1]), value + b"0", value[:-1], "text", None):
        assert got != different
    with pytest.raises(TypeError, match="unhashable"):
        hash(got)


def test_a_function_may_return_it() -> None:
    @function
    def give(ctx: Context) -> object:
        value = bytes(100_000)
        return mapped(file_of(value), ObjectStat(key="k", size=len(value), version=1))

    assert run(give).output == bytes(100_000)


def test_a_file_that_is_not_as_large_as_it_says() -> None:
    with pytest.raises(OSError, match="not 11"):
        mapped(file_of(b"1234567890"), ObjectStat(key="k", size=11, version=1))


def test_numpy_maps_it_without_a_copy() -> None:
    value = numpy.arange(100_000, dtype="float64")
    file = file_of(value.tobytes())
    numbers = numpy.frombuffer(mapped(file, ObjectStat(key="k", size=800_000)), dtype="float64")
    gc.collect()
    assert (numbers == value).all()
    assert not numbers.flags.writeable
    assert bytes_of(value).nbytes == 800_000
