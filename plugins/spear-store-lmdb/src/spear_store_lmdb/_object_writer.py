"""Writing an object piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from spear_core.api import ObjectStat, PutObject
from spear_core.stores import PieceWriter, PipeTaker

from ._new_blob import NewBlob
from ._object_changes import Prepared

if TYPE_CHECKING:
    from ._objects import LmdbObjectStore

__all__ = ["Writer"]


class Writer(PieceWriter):
    """Writes into a file; a small value goes into the record."""

    prefers_pipe = True

    def __init__(self, store: LmdbObjectStore, operation: PutObject, size: int | None) -> None:
        super().__init__(
            size=size,
            hashed=operation.hashed,
            small=store.config.inline_bytes,
            threads=store.threads,
        )
        self._store = store
        self._operation = operation
        self._room = 0
        self._blob: NewBlob | None = None
        if size is not None:
            self._reserve(size)

    def _dispose(self) -> None:
        self._store.reserved -= self._room
        self._room = 0
        if self._blob is not None:
            self._blob.discard()
            self._blob = None

    def _reserve(self, total: int) -> None:
        more = total - self._room
        if more > 0:
            self._store.check_more(more, self._operation.key)
            self._store.reserved += more
            self._room += more

    def _append(self, piece: memoryview) -> None:
        self._begun().append(piece)

    def _taker(self) -> PipeTaker:
        return self._begun()

    def _begun(self) -> NewBlob:
        if self._blob is None:
            self._blob = self._store.blobs.begin()
        return self._blob

    async def _publish(self, size: int, digest: str, small: bytes | None) -> ObjectStat:
        if small is not None:
            new = Prepared(size=size, sha256=digest, value=small)
        else:
            assert self._blob is not None, "what is not small was appended"
            await trio.to_thread.run_sync(self._blob.finish, limiter=self._store.threads)
            new = Prepared(size=size, sha256=digest, blob=self._blob.name)
        (stat,) = await self._store.apply(
            [self._operation], {self._operation.key: new}, room=self._room
        )
        self._blob = None
        assert stat is not None
        return stat
