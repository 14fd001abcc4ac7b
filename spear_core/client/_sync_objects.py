"""A node's objects for programs without an event loop: the same as in :mod:`spear_core.client`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
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
from spear_core.client._objects import Object, PutOptions
from spear_core.client._sync_wait import Block, outcome
from spear_core.client._thread import TrioThread

__all__ = ["ObjectReading", "ObjectWatching", "ObjectWriting", "Objects"]

T = TypeVar("T")


class Objects:
    """A node's objects. See :class:`spear_core.client.Objects` for every method."""

    def __init__(self, objects: client.Objects, thread: TrioThread) -> None:
        self._objects = objects
        self._thread = thread

    def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        return outcome(self._thread.start(work))

    def put(
        self, key: str, data: bytes | bytearray | memoryview | str, **options: Unpack[PutOptions]
    ) -> ObjectStat:
        """Write a new version; text goes as UTF-8."""
        return self._do(lambda: self._objects.put(key, data, **options))

    def get(self, key: str, *, version: int | None = None) -> Object:
        """All of the current version, or of this one."""
        return self._do(lambda: self._objects.get(key, version=version))

    def transact(self, operations: Sequence[ObjectOperation]) -> tuple[ObjectStat | None, ...]:
        """Do all of it, or nothing."""
        return self._do(lambda: self._objects.transact(operations))

    def stat(self, key: str) -> ObjectStat:
        """Everything but the value."""
        return self._do(lambda: self._objects.stat(key))

    def list(self, prefix: str = "", *, after: str | None = None, limit: int = 1000) -> ObjectPage:
        """A page of the objects whose key begins so."""
        return self._do(lambda: self._objects.list(prefix, after=after, limit=limit))

    def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more."""
        return self._do(lambda: self._objects.add_ref(key, holder=holder))

    def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object."""
        return self._do(lambda: self._objects.remove_ref(key, holder=holder))

    def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to it."""
        return self._do(lambda: self._objects.holders(key))

    def pin(self, key: str) -> ObjectStat:
        """Keep it whatever its references."""
        return self._do(lambda: self._objects.pin(key))

    def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object."""
        return self._do(lambda: self._objects.unpin(key))

    def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove it whatever its references and pin."""
        self._do(lambda: self._objects.delete(key, expect=expect))

    def usage(self) -> StoreUsage:
        """How much is in the store."""
        return self._do(lambda: self._objects.usage())

    def create(
        self, key: str, *, size: int | None = None, **options: Unpack[PutOptions]
    ) -> AbstractContextManager[ObjectWriting]:
        """Write a new version piece by piece; without ``commit``, nothing is left."""
        return Block(
            lambda: self._objects.create(key, size=size, **options), self._thread, ObjectWriting
        )

    def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AbstractContextManager[ObjectReading]:
        """Read piece by piece: ``for piece in reader``."""
        return Block(
            lambda: self._objects.read(key, version=version, offset=offset),
            self._thread,
            ObjectReading,
        )

    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractContextManager[ObjectWatching]:
        """Every change from now, or from that revision on: ``for changes in watch``."""
        return Block(
            lambda: self._objects.watch(prefix, start_revision=start_revision),
            self._thread,
            ObjectWatching,
        )


class ObjectReading:
    """One version of an object, piece by piece, in order."""

    def __init__(self, source: ObjectReader, thread: TrioThread) -> None:
        self._source = source
        self._thread = thread

    @property
    def stat(self) -> ObjectStat:
        """Of the version that is read."""
        return self._source.stat

    def __iter__(self) -> ObjectReading:
        return self

    def __next__(self) -> bytes:
        found = outcome(self._thread.start(self._receive))
        if found is None:
            raise StopIteration
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

    def __iter__(self) -> ObjectWatching:
        return self

    def __next__(self) -> ObjectChanges:
        found = outcome(self._thread.start(self._receive))
        if found is None:
            raise StopIteration
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

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a piece; waits while the node takes no more."""
        outcome(self._thread.start(lambda: self._writer.write(data)))

    def commit(self) -> ObjectStat:
        """Make what was written the new version."""
        return outcome(self._thread.start(self._writer.commit))
