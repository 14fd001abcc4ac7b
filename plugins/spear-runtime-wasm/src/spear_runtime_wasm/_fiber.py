"""Running a guest's future to its end on the trio thread, without keeping others waiting.

A guest that waits costs nothing until its answer is there. One that computes is interrupted by
the ticker after each time slice and other tasks get their turn; after `PATIENCE` slices in a row
it goes on in a worker thread (see `_hogs`), so that the node's loop stays free. Cancellation takes
effect between two slices.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from ._execution import Execution
from ._ffi import Guest
from ._slice import poll
from ._ticker import Ticker

if TYPE_CHECKING:
    from ._hogs import HogPool

PATIENCE = 8
"""Time slices that a guest may compute on the trio thread before it is moved to a worker."""

Wait = Callable[[], Awaitable[int]]
"""What a waiting host function leaves in `Guest.pending`: the work, and then the i32 answer."""


class FiberDriver:
    """Polls guests from the trio thread; one for each trio run."""

    def __init__(self, ticker: Ticker, hogs: HogPool) -> None:
        self._ticker = ticker
        self._hogs = hogs
        self._poller = ticker.add_poller(time.perf_counter)

    def close(self) -> None:
        self._ticker.remove_poller(self._poller)

    async def run(self, guest: Guest, execution: Execution) -> None:
        """Run the future that was just begun until it has ended, and collect its end.

        **Raises** as `Guest.finish` does, CpuLimitError, and what the awaited host work raises.
        **Cancellation**: between two slices; the guest is left suspended and must be closed.
        """
        meter, slices = execution.meter, 0
        while not poll(self._ticker, self._poller, guest, meter):
            while (pending := guest.pending) is None:
                execution.between_slices()
                slices += 1
                if slices <= PATIENCE:
                    await trio.lowlevel.checkpoint()
                    break
                await trio.lowlevel.checkpoint_if_cancelled()
                if await self._hogs.run(guest, meter):
                    guest.finish()
                    return
            else:
                execution.between_slices()
                slices = 0
                if not execution.has_waited:
                    execution.has_waited = True
                    await trio.lowlevel.checkpoint()  # Capability.PROMPT
                guest.answer(await pending())  # type: ignore[operator]
        guest.finish()
