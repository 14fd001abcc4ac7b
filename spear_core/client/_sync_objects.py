"""A node's objects for programs without an event loop: the same as in :mod:`spear_core.client`."""

from __future__ import annotations

from collections.abc import Sequence
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
from spear_core.client._face import following
from spear_core.client._objects import Object, PutOptions
from spear_core.client._sync_wait import Block, SyncFace, SyncPieces

__all__ = ["ObjectReading", "ObjectWatching", "ObjectWriting", "Objects"]

T = TypeVar("T")


class Objects(SyncFace[client.Objects]):
    """A node's objects. See :class:`spear_core.client.Objects` for every method."""

    def put(
        self, key: str, data: bytes | bytearray | memoryview | str, **options: Unpack[PutOptions]
    ) -> ObjectStat:
        """Write a new version; text goes as UTF-8."""
        return self._do(lambda: self._inner.put(key, data, **options))

    def get(self, key: str, *, version: int | None = None) -> Object:
        """All of the current version, or of this one."""
        return self._do(lambda: self._inner.get(key, version=version))

    def transact(self, operations: Sequence[ObjectOperation]) -> tuple[ObjectStat | None, ...]:
        """Do all of it, or nothing."""
        return self._do(lambda: self._inner.transact(operations))

    def stat(self, key: str) -> ObjectStat:
        """Everything but the value."""
        return self._do(lambda: self._inner.stat(key))

    def list(self, prefix: str = "", *, after: str | None = None, limit: int = 1000) -> ObjectPage:
        """A page of the objects whose key begins so."""
        return self._do(lambda: self._inner.list(prefix, after=after, limit=limit))

    def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more."""
        return self._do(lambda: self._inner.add_ref(key, holder=holder))

    def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object."""
        return self._do(lambda: self._inner.remove_ref(key, holder=holder))

    def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to it."""
        return self._do(lambda: self._inner.holders(key))

    def pin(self, key: str) -> ObjectStat:
        """Keep it whatever its references."""
        return self._do(lambda: self._inner.pin(key))

    def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object."""
        return self._do(lambda: self._inner.unpin(key))

    def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove it whatever its references and pin."""
        self._do(lambda: self._inner.delete(key, expect=expect))

    def usage(self) -> StoreUsage:
        """How much is in the store."""
        return self._do(lambda: self._inner.usage())

    def create(
        self, key: str, *, size: int | None = None, **options: Unpack[PutOptions]
    ) -> AbstractContextManager[ObjectWriting]:
        """Write a new version piece by piece; without ``commit``, nothing is left."""
        return Block(
            lambda: self._inner.create(key, size=size, **options), self._thread, ObjectWriting
        )

    def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AbstractContextManager[ObjectReading]:
        """Read piece by piece: ``for piece in reader``."""
        return Block(
            lambda: self._inner.read(key, version=version, offset=offset),
            self._thread,
            ObjectReading,
        )

    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractContextManager[ObjectWatching]:
        """Every change from now, or from that revision on: ``for changes in watch``."""
        return Block(
            lambda: self._inner.watch(prefix, start_revision=start_revision),
            self._thread,
            ObjectWatching,
        )


class ObjectReading(SyncPieces[ObjectReader, bytes]):
    """One version of an object, piece by piece, in order."""

    @property
    def stat(self) -> ObjectStat:
        """Of the version that is read."""
        return self._inner.stat

    async def _next(self) -> bytes | None:
        return await following(self._inner)


class ObjectWatching(SyncPieces[trio.abc.ReceiveChannel[ObjectChanges], ObjectChanges]):
    """Changes, in order."""

    async def _next(self) -> ObjectChanges | None:
        return await following(self._inner)


class ObjectWriting(SyncFace[ObjectWriter]):
    """A version that is written piece by piece."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a piece; waits while the node takes no more."""
        self._do(lambda: self._inner.write(data))

    def commit(self) -> ObjectStat:
        """Make what was written the new version."""
        return self._do(self._inner.commit)
