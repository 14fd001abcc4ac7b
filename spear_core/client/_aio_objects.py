"""A node's objects for programs on asyncio: the same as in :mod:`spear_core.client`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
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
from spear_core.client._aio_wait import AioFace, AioPieces, block
from spear_core.client._face import following
from spear_core.client._objects import Object, PutOptions

__all__ = ["ObjectReading", "ObjectWatching", "ObjectWriting", "Objects"]

T = TypeVar("T")


class Objects(AioFace[client.Objects]):
    """A node's objects. See :class:`spear_core.client.Objects` for every method."""

    async def put(
        self, key: str, data: bytes | bytearray | memoryview | str, **options: Unpack[PutOptions]
    ) -> ObjectStat:
        """Write a new version; text goes as UTF-8."""
        return await self._do(lambda: self._inner.put(key, data, **options))

    async def get(self, key: str, *, version: int | None = None) -> Object:
        """All of the current version, or of this one."""
        return await self._do(lambda: self._inner.get(key, version=version))

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        """Do all of it, or nothing."""
        return await self._do(lambda: self._inner.transact(operations))

    async def stat(self, key: str) -> ObjectStat:
        """Everything but the value."""
        return await self._do(lambda: self._inner.stat(key))

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        """A page of the objects whose key begins so."""
        return await self._do(lambda: self._inner.list(prefix, after=after, limit=limit))

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more."""
        return await self._do(lambda: self._inner.add_ref(key, holder=holder))

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object."""
        return await self._do(lambda: self._inner.remove_ref(key, holder=holder))

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to it."""
        return await self._do(lambda: self._inner.holders(key))

    async def pin(self, key: str) -> ObjectStat:
        """Keep it whatever its references."""
        return await self._do(lambda: self._inner.pin(key))

    async def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object."""
        return await self._do(lambda: self._inner.unpin(key))

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove it whatever its references and pin."""
        await self._do(lambda: self._inner.delete(key, expect=expect))

    async def usage(self) -> StoreUsage:
        """How much is in the store."""
        return await self._do(lambda: self._inner.usage())

    def create(
        self, key: str, *, size: int | None = None, **options: Unpack[PutOptions]
    ) -> AbstractAsyncContextManager[ObjectWriting]:
        """Write a new version piece by piece; without ``commit``, nothing is left."""
        return block(
            lambda: self._inner.create(key, size=size, **options), self._thread, ObjectWriting
        )

    def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AbstractAsyncContextManager[ObjectReading]:
        """Read piece by piece: ``async for piece in reader``."""
        return block(
            lambda: self._inner.read(key, version=version, offset=offset),
            self._thread,
            ObjectReading,
        )

    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[ObjectWatching]:
        """Every change from now, or from that revision on: ``async for changes in watch``."""
        return block(
            lambda: self._inner.watch(prefix, start_revision=start_revision),
            self._thread,
            ObjectWatching,
        )


class ObjectReading(AioPieces[ObjectReader, bytes]):
    """One version of an object, piece by piece, in order."""

    @property
    def stat(self) -> ObjectStat:
        """Of the version that is read."""
        return self._inner.stat

    async def _next(self) -> bytes | None:
        return await following(self._inner)


class ObjectWatching(AioPieces[trio.abc.ReceiveChannel[ObjectChanges], ObjectChanges]):
    """Changes, in order."""

    async def _next(self) -> ObjectChanges | None:
        return await following(self._inner)


class ObjectWriting(AioFace[ObjectWriter]):
    """A version that is written piece by piece."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a piece; waits while the node takes no more."""
        await self._do(lambda: self._inner.write(data))

    async def commit(self) -> ObjectStat:
        """Make what was written the new version."""
        return await self._do(self._inner.commit)
