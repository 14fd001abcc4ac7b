"""The file of a large value while it is written."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from spear_core.errors import StoreCorruptError
from spear_core.stores import PipeTaker

from ._writeback import begin_writeback

if TYPE_CHECKING:
    from ._blobs import Blobs

__all__ = ["NewBlob"]

_READ = 1 << 20

_BEGIN = 4 << 20
"""Bytes of which the disk is told at once, so that there is less to wait for at the end."""


class NewBlob(PipeTaker):
    """A file that is being written. All of it blocks; one thread at a time."""

    def __init__(self, blobs: Blobs, name: str, *, durable: bool) -> None:
        self.name = name
        self._blobs = blobs
        self._durable = durable
        self._splices = True
        self._size = self._begun = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(blobs.path(name), flags, 0o400)

    def append(self, value: memoryview) -> None:
        """**Raises** :exc:`~spear_core.errors.StoreFullError`."""
        try:
            for start in range(0, len(value), _BEGIN):
                piece = value[start : start + _BEGIN]
                self._write_all(piece)
                self._written(len(piece))
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc

    def take(self, pipe: int, most: int) -> int:
        try:
            count = self._take(pipe, most)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc
        self._written(count)
        return count

    def _take(self, pipe: int, most: int) -> int:
        if self._splices:
            try:  # straight into the file's pages, with no memory of ours in between
                return os.splice(pipe, self._descriptor, most, flags=os.SPLICE_F_NONBLOCK)
            except OSError as exc:
                if self._blobs.makes_room(exc):
                    return self._take(pipe, most)
                if exc.errno != errno.EINVAL:
                    raise
                self._splices = False  # not on this file system
        piece = os.read(pipe, min(most, _READ))
        self._write_all(memoryview(piece))
        return len(piece)

    def _write_all(self, piece: memoryview) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except OSError as exc:
                if not self._blobs.makes_room(exc):
                    raise

    def _written(self, more: int) -> None:
        self._size += more
        if self._durable and self._size - self._begun >= _BEGIN:
            begin_writeback(self._descriptor, self._begun, self._size - self._begun)
            self._begun = self._size

    def read_back(self, into: memoryview, at: int) -> int:
        try:
            if count := os.preadv(self._descriptor, [into], at):
                return count
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc
        raise StoreCorruptError(f"the new file {self._blobs.path(self.name)} was cut off")

    def finish(self) -> None:
        """All of it is written: have it on the disk itself, if that is wanted, and close it."""
        try:
            if self._durable:
                os.fdatasync(self._descriptor)
            self._close()
            if self._durable:
                self._blobs.sync_folder()
            self._blobs.written(self.name, self._size)
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc

    def discard(self) -> None:
        """Remove it."""
        self._close()
        self._blobs.remove(self.name)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
