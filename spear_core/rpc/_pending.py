"""A request under way and the task that waits for its answer."""

from __future__ import annotations

import trio

from spear_core.rpc._serving import Reply

__all__ = ["Pending"]


class Pending:
    """Woken directly by whoever reads the answer, at the price of one task switch."""

    __slots__ = ("_task", "answer")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self.answer: Reply | Exception | None = None

    def settle(self, answer: Reply | Exception) -> None:
        """The first answer counts."""
        if self.answer is None:
            self.answer = answer
            if self._task is not None:
                trio.lowlevel.reschedule(self._task)
                self._task = None

    async def wait(self) -> Reply:
        """Wait for the answer. **Raises** it when it is an error. For one task, once."""
        if self.answer is None:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        if isinstance(self.answer, Reply):
            return self.answer
        assert self.answer is not None
        raise self.answer

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
