"""Things that end at a time, unless it is put off."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

import trio

__all__ = ["Deadlines"]

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Which of many things ends next, by trio's clock. One task at a time may wait."""

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._numbers = itertools.count()
        self._earlier = trio.Event()

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def set(self, key: K, seconds: float) -> None:
        """It ends in so many seconds from now, whatever was set before."""
        due = (trio.current_time() + seconds, next(self._numbers))
        self._due[key] = due
        heapq.heappush(self._heap, (*due, key))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._due):
            self._heap = [(*due, key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
        if self._heap[0][2] == key:
            self._earlier.set()

    def discard(self, key: K) -> None:
        """It does not end any more; nothing when it was not set."""
        self._due.pop(key, None)

    async def wait_next(self) -> K:
        """Wait until something ends and return it; it is no longer set then.

        **Cancellation**: safe, everything stays set.
        """
        while True:
            await trio.lowlevel.checkpoint()
            while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
                heapq.heappop(self._heap)
            if self._heap and self._heap[0][0] <= trio.current_time():
                key = heapq.heappop(self._heap)[2]
                del self._due[key]
                return key
            self._earlier = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._earlier.wait()
