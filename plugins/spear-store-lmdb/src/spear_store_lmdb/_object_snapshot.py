"""Snapshots of an object store."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from operator import itemgetter
from typing import TYPE_CHECKING

import trio

from spear_core.api import ObjectPage, ObjectSnapshot, ObjectStat, ObjectView
from spear_core.errors import ObjectNotFoundError
from spear_core.stores import Picture, check_limit

from ._records import Record, stat_of, unpack

if TYPE_CHECKING:
    from ._objects import LmdbObjectStore

__all__ = ["Snapshot", "page_of"]


def page_of(found: Iterator[ObjectStat], limit: int, revision: int) -> ObjectPage:
    """The first so many, and where to go on."""
    objects = tuple(itertools.islice(found, limit))
    more = next(found, None) is not None
    return ObjectPage(
        objects=objects, next_key=objects[-1].key if more else None, revision=revision
    )


class Snapshot(ObjectSnapshot):
    """Records that are newer than the picture are looked up among the old versions: what a commit
    has changed is there before the commit is, so it is asked after LMDB."""

    def __init__(self, store: LmdbObjectStore, picture: Picture) -> None:
        self._store = store
        self._picture = picture
        self.revision = picture.revision

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[ObjectView, None]:
        await trio.lowlevel.checkpoint()
        with self._store.shown(*self._find(key)) as view:
            yield view

    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        await trio.lowlevel.checkpoint()
        return await self._store.copied(*self._find(key))

    async def stat(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._find(key)[0].stat

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        check_limit(limit)
        await trio.lowlevel.checkpoint()
        self._picture.check()
        with self._store.reader.walking(prefix, after) as (walk, _):
            old = self._store.versions.keys(prefix, after)
            return page_of(self._listed(walk, old), limit, self.revision)

    def _listed(
        self, now: Iterator[tuple[str, bytes, memoryview]], past: Iterator[str]
    ) -> Iterator[ObjectStat]:
        old = ((name, b"", memoryview(b"")) for name in past)
        # a key of both comes from LMDB first: the merge is stable
        for name, entries in itertools.groupby(
            heapq.merge(now, old, key=itemgetter(0)), key=itemgetter(0)
        ):
            _, key, raw = next(entries)
            stat = stat_of(name, raw, key) if key else None
            if stat is not None and stat.revision <= self.revision:
                yield stat
            elif (kept := self._store.versions.at(name, self.revision)) is not None:
                yield stat_of(name, kept)

    def _find(self, key: str) -> tuple[Record, bytes]:
        self._picture.check()
        raw = b""
        with suppress(ObjectNotFoundError):
            raw = self._store.reader.raw(key)
        if raw and (record := unpack(key, raw)).stat.revision <= self.revision:
            return record, raw
        kept = self._store.versions.at(key, self.revision)
        if kept is None:
            raise ObjectNotFoundError(f"there was no object {key!r} at revision {self.revision}")
        return unpack(key, kept), kept
