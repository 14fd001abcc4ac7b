"""A node's objects for programs on asyncio: the same as in :mod:`spear_core.client`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, Unpack

import trio

from spear_core import client
from spear_core.api import (
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    StoreUsage,
)
from spear_core.client._aio_wait import finished, outcome
from spear_core.client._objects import Object, PutOptions
from spear_core.client._thread import TrioThread

__all__ = ["ObjectReading", "ObjectWatching", "ObjectWriting", "Objects"]

T = TypeVar("T")


class Objects:
    """A node's objects. See :class:`spear_core.client.Objects` for every method."""

    def __init__(self, objects: client.Objects, thread: TrioThread) -> None:
        self._objects = objects
        self._thread = thread

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        return await outcome(self._thread.start(work))

    async def put(
        self, key: str, data: bytes | bytearray | memoryview | str, **options: Unpack[PutOptions]
    ) -> ObjectStat:
        """Write a new version; text goes as UTF-8."""
        return await self._do(lambda: self._objects.put(key, data, **options))

    async def get(self, key: str, *, version: int | None = None) -> Object:
        """All of the current version, or of this one."""
        return await self._do(lambda: self._objects.get(key, version=version))

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        """Do all of it, or nothing."""
        return await self._do(lambda: self._objects.transact(operations))

    async def stat(self, key: str) -> ObjectStat:
        """Everything but the value."""
        return await self._do(lambda: self._objects.stat(key))

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        """A page of the objects whose key begins so."""
        return await self._do(lambda: self._objects.list(prefix, after=after, limit=limit))

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more."""
        return await self._do(lambda: self._objects.add_ref(key, holder=holder))

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object."""
        return await self._do(lambda: self._objects.remove_ref(key, holder=holder))

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to it."""
        return await self._do(lambda: self._objects.holders(key))

    async def pin(self, key: str) -> ObjectStat:
        """Keep it whatever its references."""
        return await self._do(lambda: self._objects.pin(key))

    async def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object."""
        return await self._do(lambda: self._objects.unpin(key))

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove it whatever its references and pin."""
        await self._do(lambda: self._objects.delete(key, expect=expect))

    async def usage(self) -> StoreUsage:
        """How much is in the store."""
        return await self._do(lambda: self._objects.usage())

    @asynccontextmanager
    async def create(
        self, key: str, *, size: int | None = None, **options: Unpack[PutOptions]
    ) -> AsyncIterator[ObjectWriting]:
        """Write a new version piece by piece; without ``commit``, nothing is left."""
        held = await outcome(self._thread.hold(self._objects.create(key, size=size, **options)))
        try:
            yield ObjectWriting(held.value, self._thread)
        finally:
            await finished(held.leave())

    @asynccontextmanager
    async def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AsyncIterator[ObjectReading]:
        """Read piece by piece: ``async for piece in reader``."""
        held = await outcome(
            self._thread.hold(self._objects.read(key, version=version, offset=offset))
        )
        try:
            yield ObjectReading(held.value, self._thread)
        finally:
            await finished(held.leave())

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncIterator[ObjectWatching]:
        """Every change from now, or from that revision on: ``async for changes in watch``."""
        held = await outcome(
            self._thread.hold(self._objects.watch(prefix, start_revision=start_revision))
        )
        try:
            yield ObjectWatching(held.value, self._thread)
        finally:
            await finished(held.leave())


class ObjectReading:
    """One version of an object, piece by piece, in order."""

    def __init__(self, source: ObjectReader, thread: TrioThread) -> None:
        self._source = source
        self._thread = thread

    @property
    def stat(self) -> ObjectStat:
        """Of the version that is read."""
        return self._source.stat

    def __aiter__(self) -> ObjectReading:
        return self

    async def __anext__(self) -> bytes:
        found = await outcome(self._thread.start(self._receive))
        if found is None:
            raise StopAsyncIteration
        return found

    async def _receive(self) -> bytes | None:
        try:
            return await self._source.receive()
        except trio.EndOfChannel:
            return None


class ObjectWatching:
    """Changes, in order."""

    def __init__(self, source: trio.abc.ReceiveChannel[ObjectChanges], thread: TrioThread) -> None:
        self._source = source
        self._thread = thread

    def __aiter__(self) -> ObjectWatching:
        return self

    async def __anext__(self) -> ObjectChanges:
        found = await outcome(self._thread.start(self._receive))
        if found is None:
            raise StopAsyncIteration
        return found

    async def _receive(self) -> ObjectChanges | None:
        try:
            return await self._source.receive()
        except trio.EndOfChannel:
            return None


class ObjectWriting:
    """A version that is written piece by piece."""

    def __init__(self, writer: ObjectWriter, thread: TrioThread) -> None:
        self._writer = writer
        self._thread = thread

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a piece; waits while the node takes no more."""
        await outcome(self._thread.start(lambda: self._writer.write(data)))

    async def commit(self) -> ObjectStat:
        """Make what was written the new version."""
        return await outcome(self._thread.start(self._writer.commit))
