"""Snapshots of the object store ``memory``."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from spear_core.api import ObjectPage, ObjectSnapshot, ObjectStat, ObjectView
from spear_core.builtins._memory_values import MemoryObject
from spear_core.errors import ObjectNotFoundError
from spear_core.stores import Picture, check_limit, check_object_key

if TYPE_CHECKING:
    from spear_core.builtins.memory_store import MemoryObjectStore

__all__ = ["MemorySnapshot", "page_of"]


def page_of(found: Iterator[ObjectStat], limit: int, revision: int) -> ObjectPage:
    """The first so many, and where to go on."""
    objects = tuple(itertools.islice(found, limit))
    more = next(found, None) is not None
    return ObjectPage(
        objects=objects, next_key=objects[-1].key if more else None, revision=revision
    )


class MemorySnapshot(ObjectSnapshot):
    """All objects as they were at the revision of a picture."""

    def __init__(self, store: MemoryObjectStore, picture: Picture) -> None:
        self._store = store
        self._picture = picture
        self.revision = picture.revision

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[ObjectView, None]:
        await trio.lowlevel.checkpoint()
        with self._store.shown(self._find(key)) as view:
            yield view

    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        await trio.lowlevel.checkpoint()
        return await self._store.copied(self._find(key))

    async def stat(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._find(key).stat

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        check_limit(limit)
        await trio.lowlevel.checkpoint()
        self._picture.check()
        return page_of(self._listed(prefix, after), limit, self.revision)

    def _listed(self, prefix: str, after: str | None) -> Iterator[ObjectStat]:
        store = self._store
        keys = heapq.merge(store.keys_from(prefix, after), store.versions.keys(prefix, after))
        for key, _ in itertools.groupby(keys):
            if (found := store.at(key, self.revision)) is not None:
                yield found.stat

    def _find(self, key: str) -> MemoryObject:
        self._picture.check()
        found = self._store.at(key, self.revision)
        if found is None:
            check_object_key(key)
            raise ObjectNotFoundError(f"there was no object {key!r} at revision {self.revision}")
        return found
