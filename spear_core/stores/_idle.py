"""Giving back what has waited for somebody to need it, and nobody did."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

__all__ = ["IdleSweep"]


class IdleSweep:
    """Has what waits looked at now and then; nothing happens, and no time passes, while nothing
    does."""

    def __init__(self) -> None:
        self._tell: Callable[[], object] | None = None

    def waits(self) -> None:
        """Something waits. May be called in any thread, and while nobody runs it."""
        if (tell := self._tell) is not None:
            tell()

    async def run(self, seconds: float, sweep: Callable[[], bool]) -> None:
        """Call ``sweep`` so often for as long as it says that anything is left, until cancelled."""
        token = trio.lowlevel.current_trio_token()
        some = trio.Event()

        def tell() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(some.set, idempotent=True)

        self._tell = tell
        try:
            while True:
                await some.wait()
                some = trio.Event()
                await trio.sleep(seconds)
                while sweep():  # noqa: ASYNC110 - time is what it waits for
                    await trio.sleep(seconds)
        finally:
            self._tell = None
