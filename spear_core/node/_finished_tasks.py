"""Tasks that have ended, and which of them are still remembered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter

import trio

from spear_core.api import TaskConfig
from spear_core.node._task import Task

__all__ = ["FinishedTasks"]

_TIDY_S = 30.0
"""How exactly the age of finished tasks is looked at."""


class FinishedTasks:
    """Final tasks in the order of their ends: the newest of them within the limits.

    :param forget: called with each that goes.
    :param keep_s: 0: whatever their age.
    """

    def __init__(
        self, forget: Callable[[Task], None], *, keep: int, keep_bytes: int, keep_s: float = 0.0
    ) -> None:
        self._forget = forget
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._keep_s = keep_s
        self._tasks: deque[Task] = deque()
        self._bytes = 0

    @property
    def most(self) -> int:
        """How many are kept."""
        return self._keep

    def add(self, task: Task) -> None:
        """One has ended just now."""
        task.ended_up = _up()
        self._append(task)
        self._trim()

    def restore(self, tasks: Iterable[Task]) -> None:
        """Some had ended in an earlier run of the node, in whatever order."""
        up, wall = _up(), time.time()
        for task in sorted(tasks, key=attrgetter("completed_at")):
            # Only the clock can tell what was before; one in the future has ended just now.
            task.ended_up = up - max(0.0, wall - (task.completed_at or 0.0))
            task.log.offer()
            self._append(task)
        self._expire()
        self._trim()

    def reconfigure(self, config: TaskConfig) -> None:
        """Take other limits, also for what has finished already."""
        self._keep = config.keep_finished
        self._keep_bytes = config.keep_finished_bytes
        self._keep_s = config.keep_finished_ms / 1000
        self._trim()

    async def keep_tidy(self) -> None:
        """Forget what is too old, for ever."""
        while True:
            await trio.sleep(_TIDY_S)
            self._expire()

    def _append(self, task: Task) -> None:
        self._tasks.append(task)
        self._bytes += _kept_bytes(task)

    def _expire(self) -> None:
        if self._keep_s:
            oldest = _up() - self._keep_s
            while self._tasks and self._tasks[0].ended_up < oldest:
                self._forget_oldest()

    def _trim(self) -> None:
        while self._tasks and (len(self._tasks) > self._keep or self._bytes > self._keep_bytes):
            if len(self._tasks) == 1 and self._keep:
                break  # the newest is kept, however large its result
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = self._tasks.popleft()
        self._bytes -= _kept_bytes(oldest)
        self._forget(oldest)


def _up() -> float:
    """Seconds since the machine was started, also those that it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _kept_bytes(task: Task) -> int:
    return len(task.result.output) + task.result.object_size if task.result else 0
