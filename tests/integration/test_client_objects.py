"""Objects through the client's three faces, against a real node in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from spear_core.api import CheckObject, DeleteObject, PutObject
from spear_core.client import aio, connect, sync
from spear_core.errors import (
    NodeUnreachableError,
    ObjectConflictError,
    ObjectNotFoundError,
    TaskFailedError,
)

FUNCTIONS = b"""
from spear_sdk import FunctionError, function


@function
def size(data: bytes) -> str:
    return str(len(data))


@function
def fill(count: str) -> bytes:
    return b"x" * int(count)
"""
MEMORY = '[stores]\nobjects = "memory"\nmetadata = "memory"\n'
VALUE = bytes(range(256)) * 20_000


async def test_on_trio(node: Any) -> None:
    async with connect(node.url) as client:
        objects = client.objects
        stat = await objects.put("trio/x", VALUE, expect=0)
        assert (await objects.get("trio/x", version=1)).data == VALUE
        assert (await objects.put("trio/text", "héllo")).content_type == "text/plain; charset=utf-8"
        assert (await objects.get("trio/text")).text == "héllo"
        async with objects.create("trio/y", size=len(VALUE)) as writer:
            await writer.write(VALUE)
            assert (await writer.commit()).sha256 == stat.sha256
        async with objects.read("trio/y", offset=100) as reader:
            assert b"".join([piece async for piece in reader]) == VALUE[100:]
        async with objects.watch("trio/") as changes:
            await objects.delete("trio/y")
            assert (await changes.receive()).changes[0].key == "trio/y"
        assert [s.key for s in (await objects.list("trio/")).objects] == ["trio/text", "trio/x"]
        await objects.add_ref("trio/x", holder="me")
        assert [h.name for h in await objects.holders("trio/x")] == ["me"]
        assert (await objects.pin("trio/x")).pinned
        assert (await objects.remove_ref("trio/x", holder="me")) is not None
        assert await objects.unpin("trio/x") is None
        with pytest.raises(ObjectConflictError) as conflict:
            await objects.transact(
                [CheckObject(key="trio/text", expect=2), DeleteObject(key="trio/z")]
            )
        assert conflict.value.current == 1
        await objects.transact([DeleteObject(key="trio/text"), PutObject(key="trio/z", value=b"z")])
        assert (await objects.stat("trio/z")).size == 1
        assert (await objects.usage()).objects >= 1


async def test_inputs_and_outputs(node: Any) -> None:
    async with connect(node.url) as client:
        await client.deploy(FUNCTIONS, name="o", filename="o.py")
        await client.objects.put("o/in", VALUE)
        assert (await client.invoke("o:size", input_object="o/in")).text == str(len(VALUE))
        large = await client.invoke("o:fill", "3000000")
        assert large.output == b"x" * 3_000_000
        assert large.task.result is not None
        assert (await client.objects.stat(large.task.result.object_key)).size == 3_000_000
        submitted = await client.submit("o:fill", "3000000")
        assert (await submitted.wait()).output == b"x" * 3_000_000
        with pytest.raises(TaskFailedError):
            await client.invoke("o:fill", "-")


def test_without_an_event_loop(node: Any) -> None:
    with sync.connect(node.url) as client:
        objects = client.objects
        assert objects.put("sync/x", VALUE).size == len(VALUE)
        assert objects.get("sync/x").data == VALUE
        with objects.create("sync/y") as writer:
            writer.write(b"one ")
            writer.write(b"two")
            assert writer.commit().key == "sync/y"
        with objects.create("sync/none") as writer:
            writer.write(b"one")
        with objects.read("sync/y", offset=4) as reader:
            assert (reader.stat.size, b"".join(reader)) == (7, b"two")
        with objects.watch("sync/") as watch:
            objects.delete("sync/x", expect=1)
            assert next(watch).changes[0].key == "sync/x"
        with pytest.raises(ObjectNotFoundError):
            objects.stat("sync/none")
        assert objects.add_ref("sync/y", holder="me").refs == 1
        assert objects.holders("sync/y")[0].name == "me"
        assert objects.pin("sync/y").pinned
        assert objects.remove_ref("sync/y", holder="me") is not None
        assert [s.key for s in objects.list("sync/").objects] == ["sync/y"]
        assert objects.unpin("sync/y") is None
        assert objects.transact([PutObject(key="sync/z", value=b"")])[0] is not None
        assert objects.usage().objects >= 1
    assert [t for t in threading.enumerate() if t.name == "spear-client"] == []


def test_on_asyncio(node: Any) -> None:
    async def main() -> None:
        async with aio.connect(node.url) as client:
            objects = client.objects
            await asyncio.gather(*(objects.put(f"aio/{n}", b"%d" % n) for n in range(20)))
            found = await asyncio.gather(*(objects.get(f"aio/{n}") for n in range(20)))
            assert [each.data for each in found] == [b"%d" % n for n in range(20)]
            async with objects.create("aio/y") as writer:
                await writer.write(VALUE)
                assert (await writer.commit()).size == len(VALUE)
            async with objects.create("aio/none") as writer:
                await writer.write(VALUE)
            async with objects.read("aio/y") as reader:
                assert b"".join([piece async for piece in reader]) == VALUE
            async with objects.watch("aio/") as watch:
                await objects.delete("aio/y")
                assert (await anext(watch)).changes[0].now is None
            with pytest.raises(ObjectNotFoundError):
                await objects.stat("aio/none")
            assert (await objects.add_ref("aio/1", holder="me")).refs == 1
            assert (await objects.holders("aio/1"))[0].name == "me"
            assert (await objects.pin("aio/1")).pinned
            assert await objects.remove_ref("aio/1", holder="me") is not None
            assert await objects.unpin("aio/1") is None
            assert len((await objects.list("aio/")).objects) == 19
            assert (await objects.transact([DeleteObject(key="aio/2")])) == (None,)
            assert (await objects.usage()).objects >= 1

    asyncio.run(main())


async def test_a_node_that_is_killed_while_an_object_is_read(
    start_node: Callable[..., Any],
) -> None:
    first = start_node(MEMORY)
    async with connect(state_dir=first.state) as client:
        await client.objects.put("x", os.urandom(8 << 20))
        async with client.objects.read("x") as reader:
            pieces = [await reader.receive()]
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(60)
            with pytest.raises(NodeUnreachableError, match="middle"):
                await _rest(reader, pieces)
        assert sum(map(len, pieces)) < 8 << 20
        start_node(MEMORY)
        with pytest.raises(ObjectNotFoundError):  # on a new connection, from a store in memory
            await client.objects.stat("x")


async def _rest(reader: Any, pieces: list[bytes]) -> None:
    with trio.fail_after(60):
        async for piece in reader:
            pieces.append(piece)
