"""Ctrl-C and SIGTERM as a request to stop in order, rather than an exception anywhere."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from spear_core.cli._errors import InterruptedBySignalError

__all__ = ["Interrupt", "watch_interrupts"]


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """What a command puts its interruptible part into; made by :func:`watch_interrupts`."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        """The first signal cancels it. Enter it once."""
        self.number: int | None = None

    @property
    def happened(self) -> bool:
        """True once a signal has come."""
        return self.number is not None

    def check(self) -> None:
        """:raises InterruptedBySignalError: a signal has come."""
        if self.number is not None:
            raise InterruptedBySignalError(self.number)


@asynccontextmanager
async def watch_interrupts() -> AsyncIterator[Interrupt]:
    """The first SIGINT, SIGTERM or SIGHUP cancels ``scope``; a second one ends the command at once.

    A signal that whoever started us has had ignored (``nohup``, a job in the background of a
    script) stays ignored.
    """
    interrupt = Interrupt()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch, interrupt)
        yield interrupt
        nursery.cancel_scope.cancel()


async def _watch(interrupt: Interrupt, task_status: trio.TaskStatus[None]) -> None:
    wanted = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    if not wanted:
        task_status.started()
        return
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        interrupt.number = await anext(signals)
        interrupt.scope.cancel()
