"""The objects of a node, as a program that uses it sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypedDict, Unpack

import attrs
import trio

from spear_core.api import (
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    StoreUsage,
    TaskInfo,
)
from spear_core.client._line import Line

__all__ = ["Object", "Objects", "PutOptions", "with_output"]


class PutOptions(TypedDict, total=False):
    """How an object is written; see :meth:`spear_core.api.ObjectStore.put`."""

    expect: int | str | None
    content_type: str
    ttl: float | None
    hashed: bool


@attrs.frozen
class Object:
    """One version of an object, whole."""

    stat: ObjectStat
    data: bytes

    @property
    def text(self) -> str:
        """It as UTF-8. :raises UnicodeDecodeError: it is not."""
        return self.data.decode()


class Objects:
    """A node's objects; :attr:`spear_core.client.Node.objects`.

    Every method raises what :class:`~spear_core.api.ObjectApi` says. What only looks is asked once
    more when the connection is lost; a write never is, for nobody knows whether it was made: with
    ``expect`` you can do it again safely.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    async def put(
        self, key: str, data: bytes | bytearray | memoryview | str, **options: Unpack[PutOptions]
    ) -> ObjectStat:
        """Write a new version; text goes as UTF-8."""
        if isinstance(data, str):
            options = {"content_type": "text/plain; charset=utf-8", **options}
            data = data.encode()
        value = data
        return await self._line.ask(
            lambda api: api.objects.put(key, value, **options), repeatable=False
        )

    async def get(self, key: str, *, version: int | None = None) -> Object:
        """All of the current version, or of this one."""
        stat, data = await self._line.ask(
            lambda api: api.objects.get(key, version=version), repeatable=True
        )
        return Object(stat, data)

    @asynccontextmanager
    async def create(
        self, key: str, *, size: int | None = None, **options: Unpack[PutOptions]
    ) -> AsyncIterator[ObjectWriter]:
        """Write a new version piece by piece; a block that ends without ``commit`` leaves
        nothing."""
        async with (
            self._line.borrow() as api,
            api.objects.create(key, size=size, **options) as writer,
        ):
            yield writer

    @asynccontextmanager
    async def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AsyncIterator[ObjectReader]:
        """Read piece by piece: ``async for piece in reader``."""
        async with (
            self._line.borrow() as api,
            api.objects.read(key, version=version, offset=offset) as reader,
        ):
            yield reader

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        """Do all of it, or nothing."""
        return await self._line.ask(lambda api: api.objects.transact(operations), repeatable=False)

    async def stat(self, key: str) -> ObjectStat:
        """Everything but the value."""
        return await self._line.ask(lambda api: api.objects.stat(key), repeatable=True)

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        """A page of the objects whose key begins so."""
        return await self._line.ask(
            lambda api: api.objects.list(prefix, after=after, limit=limit), repeatable=True
        )

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more."""
        return await self._line.ask(
            lambda api: api.objects.add_ref(key, holder=holder), repeatable=False
        )

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object."""
        return await self._line.ask(
            lambda api: api.objects.remove_ref(key, holder=holder), repeatable=False
        )

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to it."""
        return await self._line.ask(lambda api: api.objects.holders(key), repeatable=True)

    async def pin(self, key: str) -> ObjectStat:
        """Keep it whatever its references."""
        return await self._line.ask(lambda api: api.objects.pin(key), repeatable=True)

    async def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object."""
        return await self._line.ask(lambda api: api.objects.unpin(key), repeatable=False)

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove it whatever its references and pin."""
        await self._line.ask(lambda api: api.objects.delete(key, expect=expect), repeatable=False)

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncIterator[trio.abc.ReceiveChannel[ObjectChanges]]:
        """Every change of an object whose key begins so, from now or from that revision on."""
        async with (
            self._line.borrow() as api,
            api.objects.watch(prefix, start_revision=start_revision) as changes,
        ):
            yield changes

    async def usage(self) -> StoreUsage:
        """How much is in the store."""
        return await self._line.ask(lambda api: api.objects.usage(), repeatable=True)


async def with_output(line: Line, task: TaskInfo) -> TaskInfo:
    """The task with its output in it, also where that is an object of the node's.

    **Raises** :exc:`~spear_core.errors.ObjectNotFoundError` when the node has just forgotten it.
    """
    result = task.result
    if result is None or not result.object_key or result.output:
        return task
    output = (await Objects(line).get(result.object_key)).data
    return attrs.evolve(task, result=attrs.evolve(result, output=output))
