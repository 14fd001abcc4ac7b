"""Writing an object of the store ``memory`` piece by piece."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from spear_core.api import ObjectStat, PutObject
from spear_core.builtins._memory_segment import Segment
from spear_core.builtins._memory_values import (
    SMALL,
    MemoryValue,
    MemoryValues,
    NewValue,
)
from spear_core.stores import PieceWriter, PipeTaker

if TYPE_CHECKING:
    from spear_core.builtins.memory_store import MemoryObjectStore

__all__ = ["MemoryWriter"]


class _Filling(PipeTaker):
    """A segment that is written from its beginning on."""

    def __init__(self, values: MemoryValues, segment: Segment) -> None:
        self._values = values
        self.segment = segment
        self._place = 0

    def append(self, piece: memoryview) -> None:
        self._values.fill(self.segment, self._place, piece)
        self._place += len(piece)

    def take(self, pipe: int, most: int) -> int:
        count = self.segment.splice(self._place, pipe, most)
        self._place += count
        return count

    def read_back(self, into: memoryview, at: int) -> int:
        return os.preadv(self.segment.fd, [into], at)


class MemoryWriter(PieceWriter):
    """Writes into a segment; into bytes where no descriptor is left."""

    def __init__(self, store: MemoryObjectStore, operation: PutObject, size: int | None) -> None:
        super().__init__(size=size, hashed=operation.hashed, small=SMALL, threads=store.threads)
        self._store = store
        self._operation = operation
        self._room = 0
        self._filling: _Filling | None = None
        self._pieces: list[bytes] = []
        self._begun = False
        if size is not None:
            self._take(size)

    def _dispose(self) -> None:
        self._store.reserved -= self._room
        self._room = 0
        self._pieces.clear()
        if self._filling is not None:
            self._store.values.memory.put_back(self._filling.segment)
            self._filling = None

    def _take(self, more: int) -> None:
        self._store.check_more(more, [self._operation.key])
        self._store.reserved += more
        self._room += more
        self._store.values.memory.trim()

    def _reserve(self, total: int) -> None:
        if total > self._room:
            self._take(total - self._room)

    def _append(self, piece: memoryview) -> None:
        self._begin()
        if self._filling is None:
            self._pieces.append(bytes(piece))
        else:
            self._filling.append(piece)

    def _taker(self) -> PipeTaker | None:
        self._begin()
        return self._filling

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            values = self._store.values
            if (segment := values.memory.take(self._announced)) is not None:
                self._filling = _Filling(values, segment)

    async def _publish(self, size: int, digest: str, small: bytes | None) -> ObjectStat:
        if small is not None:
            value = MemoryValue(small)
        elif (filling := self._filling) is not None:
            self._filling = None
            value = self._store.values.finish(filling.segment, size)
        else:
            value = MemoryValue(b"".join(self._pieces))
        self._store.reserved -= self._room
        self._room = 0
        new = {self._operation.key: NewValue(value, digest)}
        (stat,) = self._store.apply([self._operation], new)
        assert stat is not None
        return stat
