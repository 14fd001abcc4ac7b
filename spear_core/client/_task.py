"""A task on a node."""

from __future__ import annotations

from collections import deque

from spear_core.api import LogEntry, TaskInfo
from spear_core.client._calls import Result, result_of
from spear_core.client._line import Line
from spear_core.client._objects import with_output

__all__ = ["LogReader", "RemoteTask"]


class RemoteTask:
    """A task that somebody else runs; holds nothing open."""

    def __init__(self, line: Line, task_id: str) -> None:
        self._line = line
        self.task_id = task_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id}>"

    async def wait(self) -> Result:
        """Wait for its end and give its result.

        **Raises** :exc:`~spear_core.errors.TaskFailedError`,
        :exc:`~spear_core.errors.TaskTimeoutError`, :exc:`~spear_core.errors.TaskCancelledError`,
        :exc:`~spear_core.errors.TaskNotFoundError`. **Cancellation**: leaves the task alone.
        """
        return result_of(await with_output(self._line, await self._ask(wait=True)))

    async def status(self) -> TaskInfo:
        """How it is, now."""
        return await self._ask(wait=False)

    async def _ask(self, *, wait: bool) -> TaskInfo:
        return await self._line.ask(
            lambda api: api.get_task(self.task_id, wait=wait), repeatable=True
        )

    async def cancel(self, reason: str = "") -> TaskInfo:
        """Cancel it and wait until nothing of it runs; a final one stays as it is."""
        return await self._line.ask(
            lambda api: api.cancel_task(self.task_id, reason=reason), repeatable=True
        )

    def logs(self, *, follow: bool = False) -> LogReader:
        """Its log, from the start: ``async for entry in task.logs(): …``.

        :param follow: go on until the task is final; otherwise only what is there.
        """
        return LogReader(self._line, self.task_id, follow=follow)


class LogReader:
    """Entries of one task's log, in order; may be left at any time."""

    def __init__(self, line: Line, task_id: str, *, follow: bool) -> None:
        self._line = line
        self._task_id = task_id
        self._follow = follow
        self._cursor = 0
        self._entries: deque[LogEntry] = deque()
        self._finished = False

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> LogEntry:
        """The next entry. **Raises** as :meth:`NodeApi.read_log <spear_core.api.NodeApi.read_log>`.
        **Cancellation**: nothing is lost."""
        while not self._entries:
            if self._finished:
                raise StopAsyncIteration
            chunk = await self._line.ask(
                lambda api: api.read_log(self._task_id, cursor=self._cursor, wait=self._follow),
                repeatable=True,
            )
            self._entries.extend(chunk.entries)
            self._cursor = chunk.cursor
            self._finished = chunk.finished or not (self._follow or chunk.entries)
        return self._entries.popleft()
