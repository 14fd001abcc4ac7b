"""Watching: a store's last revisions, and places in its history."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import trio

from spear_core.stores._checks import past_revision

__all__ = ["History", "HistoryChannel", "News"]

_LIMIT = 10_000
"""Revisions that a watch can begin at."""


class _Revision(Protocol):
    @property
    def revision(self) -> int: ...


R = TypeVar("R", bound=_Revision)
T = TypeVar("T")


class News:
    """Wakes those who wait for a store to change."""

    def __init__(self) -> None:
        self._next: trio.Event | None = None

    def tell(self) -> None:
        """The store has changed."""
        if self._next is not None:
            self._next.set()
            self._next = None

    async def wait(self) -> None:
        """Until the store changes next."""
        if self._next is None:
            self._next = trio.Event()
        await self._next.wait()


class HistoryChannel(trio.abc.ReceiveChannel[T], Generic[T]):
    """A watch: the store's history read on from a place, so that nothing is lost or repeated.

    :param start: the first revision to look at.
    :param read: given a revision, the item of the next one from there that is of interest (or
        ``None``), and the revision to look at after it. It reads what is there and waits for
        nothing.
    """

    def __init__(self, news: News, start: int, read: Callable[[int], tuple[T | None, int]]) -> None:
        self._news = news
        self._place = start
        self._read = read
        self._closed = False

    async def receive(self) -> T:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this watch is closed")
            item, self._place = self._read(self._place)
            if item is not None:
                return item
            await self._news.wait()

    def close(self) -> None:
        """Give nothing more; a task that receives is told."""
        if not self._closed:
            self._closed = True
            self._news.tell()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class History(Generic[R, T]):
    """The last revisions of a store, in memory, for those who watch.

    :param revision: the store's last one. :param seen: what the watcher of a prefix is told of a
        revision; ``None``: nothing.
    """

    def __init__(self, revision: int, seen: Callable[[R, str], T | None]) -> None:
        self.revision = revision
        self._seen = seen
        self._kept: deque[R] = deque(maxlen=_LIMIT)
        self._news = News()

    def add(self, done: R) -> None:
        """The store has changed."""
        self.revision = done.revision
        self._kept.append(done)
        self._news.tell()

    @asynccontextmanager
    async def watch(
        self, prefix: str, start_revision: int | None
    ) -> AsyncGenerator[HistoryChannel[T], None]:
        """As :meth:`spear_core.api.ObjectStore.watch`."""
        await trio.lowlevel.checkpoint()
        start = self.revision + 1 if start_revision is None else start_revision
        self._next(prefix, start)
        channel = HistoryChannel(self._news, start, lambda place: self._next(prefix, place))
        try:
            yield channel
        finally:
            channel.close()

    def _next(self, prefix: str, place: int) -> tuple[T | None, int]:
        oldest = self._kept[0].revision if self._kept else self.revision + 1
        past_revision(place, compacted=oldest, current=max(place, self.revision))
        for found in itertools.islice(self._kept, place - oldest, None):
            if (seen := self._seen(found, prefix)) is not None:
                return seen, found.revision + 1
        return None, max(place, self.revision + 1)
