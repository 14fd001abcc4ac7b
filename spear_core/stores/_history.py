"""Watching: a place in a store's history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

__all__ = ["HistoryChannel", "News"]

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
