"""How much runs at once, and how much may wait."""

from __future__ import annotations

import trio

from spear_core.api import ExecutionConfig
from spear_core.errors import ResourceExhaustedError

__all__ = ["Slot", "Slots"]


class Slots:
    """A fixed number of execution slots with a bounded queue, first come, first served.

    Whoever leaves its slot to wait for something else comes before those who never had one.
    """

    def __init__(self, *, limit: int, max_queued: int) -> None:
        self.limit = limit
        self.max_queued = max_queued
        self.running = 0
        self._admitted = 0
        self._queue = trio.lowlevel.ParkingLot()
        self._returning = trio.lowlevel.ParkingLot()

    def reconfigure(self, config: ExecutionConfig) -> None:
        """Take new limits; a lower one takes effect as tasks end."""
        self.limit = config.max_concurrent_tasks
        self.max_queued = config.max_queued_tasks
        for line in (self._returning, self._queue):
            while line and self.running < self.limit:
                line.unpark()
                self.running += 1

    @property
    def queued(self) -> int:
        """Admitted, but without a slot yet."""
        return self._admitted - self.running

    def admit(self, *, typical_s: float) -> None:
        """Take a place in the queue, or refuse at once.

        :param typical_s: how long an execution takes here, for the hint in the refusal.
        :raises ResourceExhaustedError: everything is taken.
        """
        if self._admitted >= self.limit + self.max_queued:
            retry_after = max(0.01, typical_s * self.max_queued / self.limit)
            raise ResourceExhaustedError(
                f"the node is full: {self.running} tasks run and {self.queued} wait "
                f"(execution.max_concurrent_tasks, execution.max_queued_tasks); "
                f"try again in {retry_after:.2g} s",
                retry_after=retry_after,
            )
        self._admitted += 1

    def leave(self) -> None:
        """Give the place back, at the end or without ever having had a slot."""
        self._admitted -= 1

    async def acquire(self, *, again: bool) -> None:
        """Wait for a slot, or ``again`` for one. **Cancellation**: none is taken."""
        if self.running < self.limit:
            self.running += 1
        else:
            await (self._returning if again else self._queue).park()

    def release(self) -> None:
        """Hand the slot to the next in line."""
        for line in (self._returning, self._queue):
            if line and self.running <= self.limit:
                line.unpark()
                return
        self.running -= 1


class Slot:
    """One task's slot, which it may leave to others for a while."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._held = False
        self._again = False

    async def take(self) -> None:
        """Wait for a slot unless it is held. **Cancellation**: none is taken."""
        if not self._held:
            await self._slots.acquire(again=self._again)
            self._held = self._again = True

    def leave(self) -> None:
        """Let others have it; fine without one."""
        if self._held:
            self._held = False
            self._slots.release()
