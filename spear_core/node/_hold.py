"""Keeping what is being copied: whoever deletes waits, or deletes later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = ["DeletionHold"]


class DeletionHold:
    """For as long as somebody holds it, what a record names, or has just named, stays.

    Whoever deletes does so after the record that named it has gone, and after :meth:`passed`. Then
    a copy of the records that is made while this is held has everything that it names beside it.
    """

    def __init__(self) -> None:
        self._holders = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Nothing is deleted that :meth:`passed` has not let through before the block."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._waiting.unpark_all()

    async def passed(self) -> None:
        """Wait until nobody holds it. Not a checkpoint when nobody does."""
        while self._holders:
            await self._waiting.park()
