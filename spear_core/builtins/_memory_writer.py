"""Writing an object of the store ``memory`` piece by piece."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from spear_core.api import ObjectStat, PutObject
from spear_core.builtins._memory_values import SMALL, MemoryValue, NewValue, write_all
from spear_core.stores import PieceWriter

if TYPE_CHECKING:
    from spear_core.builtins.memory_store import MemoryObjectStore

__all__ = ["MemoryWriter"]


class MemoryWriter(PieceWriter):
    """Writes into memory that is sealed at the end; into bytes where no descriptor is left."""

    def __init__(self, store: MemoryObjectStore, operation: PutObject, size: int | None) -> None:
        super().__init__(size=size, hashed=operation.hashed, small=SMALL, threads=store.threads)
        self._store = store
        self._operation = operation
        self._room = 0
        self._file: int | None = None
        self._pieces: list[bytes] = []
        self._begun = False
        if size is not None:
            self._take(size)

    def _dispose(self) -> None:
        self._store.reserved -= self._room
        self._room = 0
        self._pieces.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take(self, more: int) -> None:
        self._store.check_more(more, [self._operation.key])
        self._store.reserved += more
        self._room += more

    def _reserve(self, total: int) -> None:
        if total > self._room:
            self._take(total - self._room)

    def _append(self, piece: memoryview) -> None:
        if not self._begun:
            self._begun = True
            self._file = self._store.values.begin()
        if self._file is None:
            self._pieces.append(bytes(piece))
        else:
            write_all(self._file, piece)

    async def _publish(self, size: int, digest: str, small: bytes | None) -> ObjectStat:
        if small is not None:
            value = MemoryValue(small)
        elif self._file is not None:
            value = self._store.values.sealed(self._file, size)
            self._file = None
        else:
            value = MemoryValue(b"".join(self._pieces))
        self._store.reserved -= self._room
        self._room = 0
        new = {self._operation.key: NewValue(value, digest)}
        (stat,) = self._store.apply([self._operation], new)
        assert stat is not None
        return stat
