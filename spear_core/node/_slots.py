"""Tasks that wait for their slots, and leave them while they wait for something else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from spear_core.node._run_queue import RunQueue
from spear_core.node._task import Task
from spear_core.node._turns import Turn

__all__ = ["Slots"]


class Slots(RunQueue):
    """The run queue, for tasks that run in trio."""

    async def hold(self, task: Task) -> None:
        """Wait for a slot, unless the task has one. **Cancellation**: none is taken."""
        turn = task.turn
        if not self.holds(turn) and not self.take(turn):
            await self._wait(turn, self.release)

    async def hold_again(self, task: Task) -> None:
        """Come back to a slot that was left. **Cancellation**: none is taken."""
        if not self.come_back(task.turn):
            await self._wait(task.turn, self.give_up)

    async def _wait(self, turn: Turn, leave: Callable[[Turn], None]) -> None:
        turn.wake, turn.waker = trio.lowlevel.reschedule, trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            leave(turn)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @asynccontextmanager
    async def paused(self, task: Task) -> AsyncIterator[None]:
        """Leave the task's slot to others while the block lasts: it waits for another task.

        Several such waits of one task may overlap; the last to end takes the slot again, so a task
        that only waits can't keep those it waits for from running. **Cancellation**: no slot is
        taken.
        """
        if task.state.is_final:  # it ends just now
            yield
            return
        task.pauses += 1
        if self.holds(task.turn):
            self.leave(task.turn)
        try:
            yield
        finally:
            task.pauses -= 1
            if not task.pauses:
                await self._resume(task)

    async def _resume(self, task: Task) -> None:
        """Have the slot again, whichever of several calls of one task takes it."""
        while not task.state.is_final and not self.holds(task.turn):
            if task.resumed is not None:
                await task.resumed.wait()
                continue
            resumed = task.resumed = trio.Event()
            try:
                await self.hold_again(task)
            finally:
                task.resumed = None
                resumed.set()
