"""The deadlines of tasks that wait as records: one timer for all of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import trio

from spear_core.node._task import Task

__all__ = ["Deadlines"]

_COMPACT_FROM = 256


class Deadlines:
    """Tells on time which tasks have waited too long.

    :param expire: called for each whose deadline has passed while it waited.
    """

    def __init__(self, expire: Callable[[Task], None]) -> None:
        self._expire = expire
        self._heap: list[tuple[float, str, Task]] = []
        self._waiting = 0
        self._sleep = trio.CancelScope()

    def add(self, task: Task) -> None:
        """A task waits; :meth:`discard` follows when it does no more."""
        self._waiting += 1
        heapq.heappush(self._heap, (task.deadline, task.id, task))
        if len(self._heap) > _COMPACT_FROM + 2 * self._waiting:
            self._heap = [entry for entry in self._heap if entry[2].is_record]
            heapq.heapify(self._heap)
        self._sleep.deadline = self._heap[0][0]

    def discard(self) -> None:
        """One that was added waits no more; its entry is cleared away in time."""
        self._waiting -= 1

    async def watch(self) -> None:
        """Expire tasks for ever."""
        while True:
            with trio.CancelScope(deadline=self._next()) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                task = heapq.heappop(self._heap)[2]
                if task.is_record:
                    self._expire(task)

    def _next(self) -> float:
        while self._heap and not self._heap[0][2].is_record:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf
