"""The node's objects, for its callers: ObjectApi over the node's store."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from spear_core.api import (
    NODE_OBJECTS,
    OCTETS,
    ObjectApi,
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectReader,
    ObjectStat,
    ObjectStore,
    ObjectView,
    ObjectWriter,
    PutObject,
    StoreUsage,
)
from spear_core.errors import InvalidRequestError, ObjectForbiddenError, StoreCorruptError
from spear_core.stores import check_object_key

__all__ = ["LocalObjects", "StoreSource", "ViewReader", "WithoutOurs", "list_without_ours"]

StoreSource = Callable[[], Awaitable[ObjectStore]]
"""Gives the node's object store, and opens it the first time."""

_PIECE = 256 << 10
_MOST_LISTED = 10_000
_AFTER_OURS = NODE_OBJECTS + "\U0010ffff"
_NOT_CACHED = getattr(os, "RWF_NOWAIT", 0)


class LocalObjects(ObjectApi):
    """What callers do with the objects in this process."""

    def __init__(self, store: StoreSource) -> None:
        self._store = store

    async def put(
        self,
        key: str,
        value: bytes | bytearray | memoryview,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
    ) -> ObjectStat:
        operation = PutObject(
            key=key, value=value, expect=expect, content_type=content_type, ttl=ttl, hashed=hashed
        )
        (stat,) = await self.transact([operation])
        assert stat is not None
        return stat

    @asynccontextmanager
    async def create(
        self,
        key: str,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
        size: int | None = None,
    ) -> AsyncGenerator[ObjectWriter]:
        _check_writable(key)
        store = await self._store()
        async with store.create(
            key, expect=expect, content_type=content_type, ttl=ttl, hashed=hashed, size=size
        ) as writer:
            yield writer

    @asynccontextmanager
    async def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AsyncGenerator[ObjectReader]:
        _check_key(key)
        store = await self._store()
        async with store.open(key, version=version) as view:
            if not 0 <= offset <= view.stat.size:
                raise InvalidRequestError(
                    f"offset {offset} is not within object {key!r}, whose version "
                    f"{view.stat.version} has {view.stat.size} bytes"
                )
            async with ViewReader(view, offset) as reader:
                yield reader

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        for operation in operations:
            _check_writable(operation.key)
        return await (await self._store()).transact(operations)

    async def stat(self, key: str) -> ObjectStat:
        _check_key(key)
        return await (await self._store()).stat(key)

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        if not 1 <= limit <= _MOST_LISTED:
            raise InvalidRequestError(f"limit: must be 1 to {_MOST_LISTED}, not {limit}")
        store = await self._store()
        if prefix.startswith(NODE_OBJECTS):
            return await store.list(prefix, after=after, limit=limit)
        return await list_without_ours(store.list, prefix, after=after, limit=limit)

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        _check_writable(key)
        return await (await self._store()).add_ref(key, holder=holder)

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        _check_writable(key)
        return await (await self._store()).remove_ref(key, holder=holder)

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        _check_key(key)
        return await (await self._store()).holders(key)

    async def pin(self, key: str) -> ObjectStat:
        _check_writable(key)
        return await (await self._store()).pin(key)

    async def unpin(self, key: str) -> ObjectStat | None:
        _check_writable(key)
        return await (await self._store()).unpin(key)

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        _check_writable(key)
        await (await self._store()).delete(key, expect=expect)

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges]]:
        store = await self._store()
        async with store.watch(prefix, start_revision=start_revision) as changes:
            yield changes if prefix.startswith(NODE_OBJECTS) else WithoutOurs(changes)

    async def usage(self) -> StoreUsage:
        return await (await self._store()).usage()


def _check_key(key: str) -> None:
    """What is wrong with a key for any store, the store says."""
    if key.startswith("/"):
        check_object_key(key.lstrip("/"))
        raise InvalidRequestError(
            f"key {key[:100]!r}: a caller of the node writes every key whole, without a '/' before "
            f"it: {key[:100].lstrip('/')!r}"
        )


def _check_writable(key: str) -> None:
    _check_key(key)
    if key.startswith(NODE_OBJECTS):
        raise ObjectForbiddenError(
            f"{key[:100]!r}: keys that begin with {NODE_OBJECTS!r} are the node's own and can only "
            "be read"
        )


async def list_without_ours(
    list_: Callable[..., Awaitable[ObjectPage]], prefix: str, *, after: str | None, limit: int
) -> ObjectPage:
    """A page as ``list_`` (of a store, a snapshot) gives it, with the node's own objects left
    out."""
    page = await list_(prefix, after=after, limit=limit)
    if not any(stat.key.startswith(NODE_OBJECTS) for stat in page.objects):
        return page
    before = [stat for stat in page.objects if stat.key < NODE_OBJECTS]
    behind = await list_(prefix, after=max(after or "", _AFTER_OURS), limit=limit - len(before))
    return ObjectPage(
        objects=(*before, *behind.objects), next_key=behind.next_key, revision=page.revision
    )


class ViewReader(ObjectReader):
    """Reads what a view shows; the view outlives it."""

    def __init__(self, view: ObjectView, offset: int) -> None:
        self.stat = view.stat
        self._view = view
        self._offset = offset
        self._open = True

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._open:
            raise trio.ClosedResourceError
        end = min(self._offset + _PIECE, self.stat.size)
        if self._offset >= end:
            raise trio.EndOfChannel
        if self._view.in_memory or self._view.fd is None:
            piece = bytes(self._view.data[self._offset : end])
        else:
            piece = await self._read_file(self._view.fd, end)
        self._offset += len(piece)
        return piece

    async def _read_file(self, fd: int, end: int) -> bytes:
        """The next piece, not through the view's map: what is touched there counts as the node's
        memory, and where somebody has cut off the file, that would end the node."""
        count = end - self._offset
        piece = _read_cached(fd, count, self._offset)
        if not piece:  # it lies on the disk only, and the node does not wait for that
            piece = await trio.to_thread.run_sync(os.pread, fd, count, self._offset)
        if not piece:
            raise StoreCorruptError(
                f"the file of object {self.stat.key!r} ends after {self._offset} bytes instead of "
                f"{self.stat.size}; restore a backup, or delete the object"
            )
        return piece

    async def aclose(self) -> None:
        self._open = False
        await trio.lowlevel.checkpoint()


def _read_cached(fd: int, count: int, offset: int) -> bytes:
    """What is in memory of that part of a file, from its beginning on."""
    if not _NOT_CACHED:
        return b""
    buffer = bytearray(count)
    try:
        found = os.preadv(fd, [buffer], offset, _NOT_CACHED)
    except BlockingIOError:
        return b""
    except OSError:  # not for this kind of file, which then is memory
        return os.pread(fd, count, offset)
    return bytes(memoryview(buffer)[:found])


class WithoutOurs(trio.abc.ReceiveChannel[ObjectChanges]):
    """A watch from which the node's own objects are left out."""

    def __init__(self, changes: trio.abc.ReceiveChannel[ObjectChanges]) -> None:
        self._changes = changes

    async def receive(self) -> ObjectChanges:
        while True:
            found = await self._changes.receive()
            left = tuple(c for c in found.changes if not c.key.startswith(NODE_OBJECTS))
            if left:
                return ObjectChanges(revision=found.revision, changes=left)

    async def aclose(self) -> None:
        await self._changes.aclose()
