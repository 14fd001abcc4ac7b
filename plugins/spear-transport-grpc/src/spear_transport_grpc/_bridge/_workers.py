"""Tasks that handle one call after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

__all__ = ["Workers"]

J = TypeVar("J")
_KEPT = 128
"""Tasks that stay for the next call. A new one, with its scope, costs as much as a small call."""


class _Worker(Generic[J]):
    __slots__ = ("job", "task")

    def __init__(self, job: J) -> None:
        self.job: J | None = job
        self.task: trio.lowlevel.Task | None = None


class Workers(Generic[J]):
    """Runs ``serve`` for each job, in a task and a cancel scope that no other job has meanwhile.

    :param serve: must not raise. It gets the scope; who cancels it ends this job alone.
    """

    def __init__(
        self, nursery: trio.Nursery, serve: Callable[[J, trio.CancelScope], Awaitable[None]]
    ) -> None:
        self._nursery = nursery
        self._serve = serve
        self._idle: list[_Worker[J]] = []
        self._dismissed = False

    def start(self, job: J) -> None:
        """Begin a job; never waits."""
        if self._idle:
            worker = self._idle.pop()
            worker.job = job
            self._wake(worker)
        else:
            self._nursery.start_soon(self._work, _Worker(job))

    def dismiss(self) -> None:
        """Let idle tasks end, and busy ones after their job."""
        self._dismissed = True
        while self._idle:
            self._wake(self._idle.pop())

    @staticmethod
    def _wake(worker: _Worker[J]) -> None:
        assert worker.task is not None
        task, worker.task = worker.task, None
        trio.lowlevel.reschedule(task)

    async def _work(self, worker: _Worker[J]) -> None:
        with trio.CancelScope() as scope:
            while worker.job is not None:
                job, worker.job = worker.job, None
                await self._serve(job, scope)
                del job  # before it waits: what belongs to a call goes with it
                if self._dismissed or scope.cancel_called or len(self._idle) >= _KEPT:
                    return
                await self._rest(worker)

    async def _rest(self, worker: _Worker[J]) -> None:
        """Wait for the next job, or for none."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        worker.task = trio.lowlevel.current_task()
        self._idle.append(worker)
        await trio.lowlevel.wait_task_rescheduled(abort)
