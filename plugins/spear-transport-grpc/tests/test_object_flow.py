"""Values that run: who is slow makes the other wait, and nothing piles up in between."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import ObjectReader, ObjectStat, ObjectStore, ObjectWriter
from spear_core.errors import NodeStoppingError, StoreCorruptError
from spear_core.node._objects import LocalObjects
from spear_transport_grpc import plugin

PIECE = 256 << 10
MOST_ON_THE_WAY = 8 << 20
"""Bytes of windows and buffers on both sides, of a value of any size."""
LONG = 64 << 20
A_WHILE_S = 1.0
"""In which a value that nobody holds back would have gone through."""
STAT = ObjectStat(
    key="k",
    size=LONG,
    version=1,
    revision=1,
    sha256="",
    created_at=0.0,
    updated_at=0.0,
    content_type="x",
    refs=0,
    pinned=False,
)


async def no_store() -> ObjectStore:
    raise AssertionError("nothing else is asked of it")


class Pipe(LocalObjects):
    """Takes and gives values without keeping them, at a pace that a test sets."""

    def __init__(self, size: int = LONG) -> None:
        super().__init__(no_store)
        self.stat = attrs.evolve(STAT, size=size)
        self.go = trio.Event()
        self.moved = 0
        self.left = trio.Event()
        self.committed = False
        self.fails_at = size

    @asynccontextmanager
    async def create(self, key: str, **settings: Any) -> AsyncGenerator[ObjectWriter]:
        try:
            yield PipeWriter(self)
        finally:
            self.left.set()

    @asynccontextmanager
    async def read(self, key: str, **settings: Any) -> AsyncGenerator[ObjectReader]:
        try:
            yield PipeReader(self)
        finally:
            self.left.set()


class PipeWriter(ObjectWriter):
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._pipe.go.wait()
        self._pipe.moved += len(data)

    async def commit(self) -> ObjectStat:
        self._pipe.committed = True
        return self._pipe.stat


class PipeReader(ObjectReader):
    def __init__(self, pipe: Pipe) -> None:
        self.stat = pipe.stat
        self._pipe = pipe

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._pipe.moved >= self.stat.size:
            raise trio.EndOfChannel
        if self._pipe.moved >= self._pipe.fails_at:
            raise StoreCorruptError("the disk is broken")
        self._pipe.moved += PIECE
        return bytes(PIECE)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
async def objects(tmp_path: Path, pipe: Pipe, serve: Callable[..., Any], table_node: Any) -> Any:
    node = table_node()
    node.objects = pipe
    async with serve(tmp_path, node) as url, plugin.connect(url) as api:
        yield api.objects


async def test_a_store_that_is_slow_makes_the_writer_wait(objects: Any, pipe: Pipe) -> None:
    sent = 0
    async with objects.create("k") as writer:

        async def send() -> None:
            nonlocal sent
            while sent < LONG:
                await writer.write(bytes(PIECE))
                sent += PIECE

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(A_WHILE_S)
            assert sent <= MOST_ON_THE_WAY
            pipe.go.set()
        assert await writer.commit() == STAT
    assert (pipe.moved, pipe.committed) == (LONG, True)


async def test_a_reader_that_is_slow_makes_the_node_wait(objects: Any, pipe: Pipe) -> None:
    async with objects.read("k") as reader:
        got = len(await reader.receive())
        await trio.sleep(A_WHILE_S)
        assert pipe.moved <= MOST_ON_THE_WAY
        async for piece in reader:
            got += len(piece)
    assert got == LONG


async def test_a_reader_that_leaves_ends_the_nodes_reading(objects: Any, pipe: Pipe) -> None:
    async with objects.read("k") as reader:
        await reader.receive()
        assert not pipe.left.is_set()
    with trio.fail_after(30):
        await pipe.left.wait()
    assert pipe.moved < LONG


async def test_a_writer_that_leaves_ends_the_nodes_writing(objects: Any, pipe: Pipe) -> None:
    async with objects.create("k") as writer:
        await writer.write(bytes(PIECE))
        assert not pipe.left.is_set()
    with trio.fail_after(30):
        await pipe.left.wait()
    assert not pipe.committed


async def test_what_breaks_in_the_middle_is_no_end(objects: Any, pipe: Pipe) -> None:
    pipe.fails_at = 4 * PIECE
    async with objects.read("k") as reader:
        for _ in range(4):
            await reader.receive()
        with pytest.raises(StoreCorruptError, match="the disk is broken"):
            await reader.receive()


async def test_watches_end_with_the_node(
    tmp_path: Path, serve: Callable[..., Any], table_node: Any
) -> None:
    class Watched(Pipe):
        @asynccontextmanager
        async def watch(self, prefix: str = "", *, start_revision: int | None = None) -> Any:
            sender, receiver = trio.open_memory_channel[Any](0)
            async with sender, receiver:
                yield receiver

    node = table_node()
    node.objects = Watched()
    closing = trio.Event()
    urls: list[str] = []
    served = trio.Event()

    async def run() -> None:
        async with serve(tmp_path, node) as url:
            urls.append(url)
            served.set()
            await closing.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await served.wait()
        async with plugin.connect(urls[0]) as api, api.objects.watch() as changes:
            closing.set()
            with pytest.raises(NodeStoppingError, match="watch again"):
                await changes.receive()


SIZE = 500 * PIECE * 4
"""Of a value that would show in the memory of a process."""


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


async def put_and_get(folder: Path, size: int) -> None:
    from conftest import TableNode, serve

    node = TableNode()
    node.objects = pipe = Pipe(size)
    pipe.go.set()
    async with serve(folder, node) as url, plugin.connect(url) as api:
        piece = bytes(PIECE)
        async with api.objects.create("k", size=size) as writer:
            for _ in range(size // PIECE):
                await writer.write(piece)
            await writer.commit()
        assert pipe.moved == size
        pipe.moved = 0
        async with api.objects.read("k") as reader:
            assert sum([len(piece) async for piece in reader]) == size


def measure(folder: Path) -> None:
    """Print by how much this process grows over a long value, after a short one."""
    trio.run(put_and_get, folder, 32 * PIECE)
    before = peak()
    trio.run(put_and_get, folder, SIZE)
    print(peak() - before)


def test_half_a_gigabyte_each_way_in_little_memory(tmp_path: Path) -> None:
    """Both ends are in one process: what piles up on either is seen."""
    here = Path(__file__).parent
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(here)!r});"
        f"import test_object_flow as flow; flow.measure(pathlib.Path({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 20
