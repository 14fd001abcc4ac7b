"""Object stores that do something wrong with a pipe. See ``stores.py``."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from spear_core.api import ObjectStat, ObjectStore, ObjectStoreSpec, ObjectWriter, PluginContext
from spear_core.builtins.memory_store import MemoryObjectStore, MemoryStoreConfig
from spear_core.errors import InvalidRequestError
from spear_core.testing import ObjectStoreContract


class Wrong(ObjectWriter):
    """A writer around a right one."""

    def __init__(self, writer: ObjectWriter, store: MemoryObjectStore) -> None:
        self.writer = writer
        self.store = store

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self.writer.write(data)

    async def write_from(self, pipe: int, size: int) -> None:
        await self.writer.write_from(pipe, size)

    async def commit(self) -> ObjectStat:
        return await self.writer.commit()


def spec_of(writer_cls: type[Wrong]) -> ObjectStoreSpec[MemoryStoreConfig]:
    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def create(self, key: str, **rest: Any) -> AsyncGenerator[ObjectWriter, None]:
            async with super().create(key, **rest) as writer:
                yield writer_cls(writer, self)

    @asynccontextmanager
    async def open_toy(
        context: PluginContext, config: MemoryStoreConfig
    ) -> AsyncGenerator[ObjectStore, None]:
        yield Planted(max_bytes=config.memory_store_bytes)

    return ObjectStoreSpec(name="toy", open=open_toy, config_cls=MemoryStoreConfig)


class PipeMutant(ObjectStoreContract):
    patience = 3.0
    small_config = MemoryStoreConfig(memory_store_bytes=100_000)


async def piece_of(pipe: int, most: int) -> bytes:
    await trio.lowlevel.wait_readable(pipe)
    return os.read(pipe, most)


class TestEmptiesThePipe(PipeMutant):
    """A store that takes more out of a pipe than was its value's."""

    caught_by = "test_written_from_a_pipe"

    class Planted(Wrong):
        async def write_from(self, pipe: int, size: int) -> None:
            await super().write_from(pipe, size)
            with suppress(BlockingIOError):
                os.read(pipe, 100)

    spec = spec_of(Planted)


class TestPipesOvertake(PipeMutant):
    """A store that keeps what comes out of a pipe before what was written earlier."""

    caught_by = "test_written_from_a_pipe"

    class Planted(Wrong):
        kept = b""

        async def write(self, data: bytes | bytearray | memoryview) -> None:
            self.kept += bytes(data)

        async def commit(self) -> ObjectStat:
            await self.writer.write(self.kept)
            return await super().commit()

    spec = spec_of(Planted)


class TestTakesHalfAValue(PipeMutant):
    """A store that is content with what came out of a pipe that ended early."""

    caught_by = "test_pipe_that_ends_early"

    class Planted(Wrong):
        async def write_from(self, pipe: int, size: int) -> None:
            with suppress(InvalidRequestError):
                await super().write_from(pipe, size)

    spec = spec_of(Planted)


class TestReadsBeforeItLooks(PipeMutant):
    """A store that reads a pipe before it asks whether there is room."""

    caught_by = "test_pipe_within_the_limit"

    class Planted(Wrong):
        async def write_from(self, pipe: int, size: int) -> None:
            left = size
            while left and (piece := await piece_of(pipe, left)):
                left -= len(piece)
                await self.write(piece)

    spec = spec_of(Planted)


class TestKeepsRoomForTheCancelled(PipeMutant):
    """A store that goes on counting a value that nobody waits for any more."""

    caught_by = "test_pipe_within_the_limit"

    class Planted(Wrong):
        async def write_from(self, pipe: int, size: int) -> None:
            try:
                await super().write_from(pipe, size)
            except BaseException:
                self.store.reserved += size
                raise

    spec = spec_of(Planted)
