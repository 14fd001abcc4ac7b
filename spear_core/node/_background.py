"""Background services that end when their block ends, and not before.

Under a cancel from outside, trio cancels everything at once, and a service would be gone while
what stands on it is still closing. A service started here is shielded; leaving the block, in
whatever way, cancels it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVarTuple

import trio

from spear_core.node._log_context import working_on

__all__ = ["Background", "open_background"]

Ts = TypeVarTuple("Ts")
_log = logging.getLogger("spear")


class Background:
    """Starts services; made by :func:`open_background`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self.stopped = False
        """Whether what is started now would be cancelled at once."""

    def start_soon(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Run ``function(*args)`` until it returns or the block ends."""
        self._nursery.start_soon(self._run, function, args)

    async def _run(self, function: Callable[[*Ts], Awaitable[object]], args: tuple[*Ts]) -> None:
        working_on.set(None)
        try:
            await self._shielded(function, args)
        except Exception:  # barrier: a service that is cancelled takes no other one along
            if not self.stopped:
                raise
            _log.exception("a background service ended badly")

    async def _shielded(
        self, function: Callable[[*Ts], Awaitable[object]], args: tuple[*Ts]
    ) -> None:
        with trio.CancelScope(shield=True) as scope:
            if self.stopped:
                scope.cancel()
            self._scopes.add(scope)
            try:
                await function(*args)
            finally:
                self._scopes.discard(scope)

    def stop(self) -> None:
        """Cancel every service, now and from now on."""
        self.stopped = True
        for scope in self._scopes:
            scope.cancel()


@asynccontextmanager
async def open_background() -> AsyncIterator[Background]:
    """Services started on the yielded object run until the block ends; then they are cancelled."""
    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        try:
            yield background
        finally:
            background.stop()
