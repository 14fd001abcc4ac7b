"""Writing a value piece by piece: what every store's writer does in the same way."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from spear_core.api import ObjectStat, ObjectWriter
from spear_core.errors import InvalidRequestError
from spear_core.stores._piping import PipeTaker, take_all

__all__ = ["PieceWriter"]

_PIECE = 1 << 20
"""Bytes that are collected before they are worth a thread."""


class PieceWriter(ObjectWriter):
    """Counts, hashes, collects small pieces, and closes at the first error.

    :param size: how much will be written, if that was announced.
    :param hashed: whether ``sha256`` is wanted.
    :param small: what is no larger at the end is never appended, but given to :meth:`_publish`.
    """

    def __init__(
        self, *, size: int | None, hashed: bool, small: int, threads: trio.CapacityLimiter
    ) -> None:
        self._announced = size
        self._hash = hashlib.sha256() if hashed else None
        self._small = small
        self._threads = threads
        self._written = 0
        self._pending = bytearray()
        self._appended = False
        self._closed = False
        self._busy = False

    @abstractmethod
    def _reserve(self, total: int) -> None:
        """It will have so many bytes at least. **Raises**
        :exc:`~spear_core.errors.StoreFullError`."""

    @abstractmethod
    def _append(self, piece: memoryview) -> None:
        """Keep it. Blocks; in a worker thread."""

    @abstractmethod
    async def _publish(self, size: int, digest: str, small: bytes | None) -> ObjectStat:
        """Make it the new version; ``small`` is the value, if nothing of it was appended."""

    @abstractmethod
    def _dispose(self) -> None:
        """Give up what is held: files, room. Nothing to do when it was published, or a second
        time."""

    def _taker(self) -> PipeTaker | None:
        """What takes a larger value out of a pipe, behind what was appended; ``None``: it is read
        from the pipe and appended. Does not block for long."""
        return None

    def close(self) -> None:
        """Neither write nor commit any more."""
        self._closed = True
        if not self._busy:  # else a thread may be writing; it disposes when that has ended
            self._dispose()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._used(), memoryview(data) as view, view.cast("B") as piece:
            await trio.lowlevel.checkpoint()
            self._count(len(piece))
            if len(self._pending) + len(piece) < _PIECE:
                self._pending += piece
                return
            await trio.to_thread.run_sync(self._put_away, piece, limiter=self._threads)

    async def write_from(self, pipe: int, size: int) -> None:
        if size < _PIECE:
            await super().write_from(pipe, size)
            return
        with self._used():
            await trio.lowlevel.checkpoint()
            at = self._written
            self._count(size)
            if self._pending:
                await trio.to_thread.run_sync(
                    self._put_away, memoryview(b""), limiter=self._threads
                )
            taker = self._taker()
            if taker is not None:
                self._appended = True
                await take_all(
                    taker, pipe, at=at, size=size, digest=self._hash, threads=self._threads
                )
                return
            self._written = at
        await super().write_from(pipe, size)

    def _count(self, more: int) -> None:
        total = self._written + more
        if self._announced is not None and total > self._announced:
            raise InvalidRequestError(
                f"size: {self._announced} bytes were announced, and now there are {total}"
            )
        self._reserve(total)
        self._written = total

    async def commit(self) -> ObjectStat:
        with self._used():
            await trio.lowlevel.checkpoint()
            if self._announced is not None and self._written < self._announced:
                raise InvalidRequestError(
                    f"size: {self._announced} bytes were announced, and {self._written} written"
                )
            small = None
            if self._written <= self._small and not self._appended:
                small = bytes(self._pending)
                if self._hash is not None:
                    self._hash.update(small)
            else:
                await trio.to_thread.run_sync(
                    self._put_away, memoryview(b""), limiter=self._threads
                )
            digest = self._hash.hexdigest() if self._hash is not None else ""
            stat = await self._publish(self._written, digest, small)
            self.close()
            return stat

    def _put_away(self, piece: memoryview) -> None:
        """What is pending, and this. In a worker thread."""
        self._appended = True
        for part in (memoryview(self._pending), piece):
            with part:
                if len(part):
                    self._append(part)
                    if self._hash is not None:
                        self._hash.update(part)
        self._pending = bytearray()

    @contextmanager
    def _used(self) -> Iterator[None]:
        if self._closed:
            raise trio.ClosedResourceError("this writer is closed: committed, failed, or left")
        if self._busy:
            raise trio.BusyResourceError("another task is using this writer")
        self._busy = True
        try:
            yield
        except BaseException:
            self._closed = True
            raise
        finally:
            self._busy = False
            self._dispose_if_closed()

    def _dispose_if_closed(self) -> None:
        if self._closed:
            self._dispose()
