"""Values of the memory store: small ones are bytes, large ones are sealed memory."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import attrs
import trio

from spear_core.api import ObjectStat, SealedFile
from spear_core.stores import SEALS, check_sealed

__all__ = ["SMALL", "MemoryObject", "MemoryValue", "MemoryValues", "NewValue", "write_all"]

SMALL = 64 << 10
"""Bytes up to which a value has no memory of its own."""

_PIECE = 16 << 20
"""Bytes in one call: Linux writes at most 2 GiB."""


class MemoryValue:
    """One value. It closes its descriptor when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_bytes", "fd", "size")

    def __init__(self, value: bytes, *, fd: int | None = None, size: int | None = None) -> None:
        self._bytes = value
        self.fd = fd
        self.size = len(value) if size is None else size

    @property
    def small(self) -> bytes | None:
        """The value, if it need not be copied."""
        return self._bytes if self.fd is None else None

    @contextmanager
    def shown(self) -> Iterator[tuple[memoryview, int | None]]:
        """The value, and a descriptor of its own that can be read only, for a block's duration."""
        if self.fd is None:
            data = memoryview(self._bytes)
            try:
                yield data, None
            finally:
                with suppress(BufferError):  # an array over it lives on
                    data.release()
            return
        descriptor = _reopened(self.fd)
        try:
            mapping = mmap.mmap(descriptor, self.size, prot=mmap.PROT_READ)
            data = memoryview(mapping)
            try:
                yield data, descriptor
            finally:
                with suppress(BufferError):
                    data.release()
                with suppress(BufferError):
                    mapping.close()
        finally:
            os.close(descriptor)

    def copied(self) -> bytes:
        """The value; for a large one in a thread."""
        if self.fd is None:
            return self._bytes
        with self.shown() as (data, _):
            return bytes(data)

    def sha256(self) -> str:
        """The same in hexadecimal; likewise."""
        with self.shown() as (data, _):
            return hashlib.sha256(data).hexdigest()


@attrs.frozen
class NewValue:
    """A value on its way."""

    value: MemoryValue
    digest: str


@attrs.frozen
class MemoryObject:
    """An object with its value."""

    stat: ObjectStat
    value: MemoryValue


def _reopened(fd: int) -> int:
    """A descriptor with a position of its own that cannot write."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # no /proc here; it is sealed all the same
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


class MemoryValues:
    """Makes values; large ones have a file descriptor each, up to a number of them.

    Beyond that they are bytes, and another process needs a copy.
    """

    def __init__(self, *, max_files: int) -> None:
        self._max_files = max_files
        self._open: set[int] = set()

    def adopt(self, sealed: SealedFile) -> MemoryValue:
        """That memory, without a copy if it is large. **Raises**
        :exc:`~spear_core.errors.InvalidRequestError`."""
        check_sealed(sealed)
        if sealed.size > SMALL:
            with suppress(OSError):  # no descriptors left in this process
                return self._owned(fcntl.fcntl(sealed.fd, fcntl.F_DUPFD_CLOEXEC, 0), sealed.size)
        return MemoryValue(_read(sealed.fd, sealed.size))

    def settled(self, value: MemoryValue) -> MemoryValue:
        """The value without its descriptor, if they are too many. Blocks for a large one."""
        if value.fd is not None and len(self._open) > self._max_files:
            return MemoryValue(value.copied())
        return value

    def make(self, value: memoryview) -> MemoryValue:
        """A copy. Blocks for a large one."""
        descriptor = self.begin() if len(value) > SMALL else None
        if descriptor is None:
            return MemoryValue(bytes(value))
        try:
            write_all(descriptor, value)
        except BaseException:
            os.close(descriptor)
            raise
        return self.sealed(descriptor, len(value))

    def begin(self) -> int | None:
        """New memory to be written to; ``None``: no descriptors are left."""
        if len(self._open) < self._max_files:
            with suppress(OSError):
                return os.memfd_create("spear-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        return None

    def sealed(self, descriptor: int, size: int) -> MemoryValue:
        """What was written to that memory, sealed; the descriptor is the value's from now on."""
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
        return self._owned(descriptor, size)

    def _owned(self, descriptor: int, size: int) -> MemoryValue:
        value = MemoryValue(b"", fd=descriptor, size=size)
        self._open.add(descriptor)
        weakref.finalize(value, self._close, descriptor, size)
        return value

    def _close(self, descriptor: int, size: int) -> None:
        """Give the memory back: a quarter of a millisecond for a mebibyte, when it is the last."""
        if size <= _PIECE:
            self._closed(descriptor)
        else:
            trio.lowlevel.start_thread_soon(partial(self._closed, descriptor), lambda result: None)

    def _closed(self, descriptor: int) -> None:
        self._open.discard(descriptor)  # before its number can be another's
        os.close(descriptor)


def write_all(descriptor: int, value: memoryview) -> None:
    """Append it. **Raises** :exc:`OSError` when there is no memory."""
    for start in range(0, len(value), _PIECE):
        piece = value[start : start + _PIECE]
        while piece:
            piece = piece[os.write(descriptor, piece) :]


def _read(fd: int, size: int) -> bytes:
    parts = []
    place = 0
    while place < size:
        part = os.pread(fd, min(_PIECE, size - place), place)
        parts.append(part)
        place += len(part)
    return b"".join(parts)
