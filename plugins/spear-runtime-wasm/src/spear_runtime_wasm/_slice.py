"""One time slice of a guest: polled, timed, and kept apart from Ctrl-C."""

from __future__ import annotations

import trio

from ._ffi import Guest
from ._ticker import Poller, Ticker


class CpuLimitError(Exception):
    """The guest has used up its processor time."""


class Meter:
    """Processor time of one execution, and the most it may have."""

    __slots__ = ("limit", "urgent", "used")

    def __init__(self, limit: float | None = None) -> None:
        self.used = 0.0
        self.limit = limit
        self.urgent = False
        """Set by a host function that leaves something to be done on the trio thread."""

    @property
    def spent(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    def check(self) -> None:
        """Raises CpuLimitError when nothing is left."""
        if self.spent:
            raise CpuLimitError(f"its {self.limit:g} s of processor time are used up")


@trio.lowlevel.enable_ki_protection
def poll(ticker: Ticker, poller: Poller, guest: Guest, meter: Meter) -> bool:
    """One slice. A KeyboardInterrupt must not strike inside a callback from wasm."""
    poller.busy = True
    poller.polls += 1
    if ticker.asleep:
        ticker.wake()
    started = poller.clock()
    try:
        return guest.poll()
    finally:
        meter.used += poller.clock() - started
        poller.busy = False
