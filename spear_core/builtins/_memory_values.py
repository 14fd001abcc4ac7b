"""Values of the memory store: small ones are bytes, large ones are in memory with a descriptor."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import attrs

from spear_core.api import ObjectStat, SealedFile
from spear_core.builtins._memory_segment import Segment
from spear_core.builtins._recycled_memory import RecycledMemory
from spear_core.stores import check_sealed

__all__ = ["SMALL", "MemoryObject", "MemoryValue", "MemoryValues", "NewValue"]

SMALL = 64 << 10
"""Bytes up to which a value has no memory of its own."""

_PIECE = 16 << 20
"""Bytes in one call: Linux reads at most 2 GiB."""


class MemoryValue:
    """One value: bytes, or a view of a segment's window, which others may have views of, too."""

    __slots__ = ("_data", "_segment", "size")

    def __init__(self, data: bytes | memoryview, segment: Segment | None = None) -> None:
        self._data = data
        self._segment = segment
        self.size = len(data)

    @property
    def small(self) -> bytes | None:
        """The value, if it need not be copied."""
        return self._data if isinstance(self._data, bytes) else None

    @contextmanager
    def shown(self) -> Iterator[tuple[memoryview, Callable[[], int | None] | None]]:
        """The value, and what opens a descriptor of it, for a block's duration."""
        data = memoryview(self._data)
        file = None if self._segment is None else _File(self._segment)
        try:
            yield data, None if file is None else file.opened
        finally:
            with suppress(BufferError):  # an array over it lives on
                data.release()
            if file is not None:
                file.close()

    def copied(self) -> bytes:
        """The value; for a large one in a thread."""
        return bytes(self._data)

    def sha256(self) -> str:
        """The same in hexadecimal; likewise."""
        return hashlib.sha256(self._data).hexdigest()


class _File:
    """A descriptor with a position of its own that cannot write, opened when it is asked for:
    what was lent is not used again, and opening it takes longer than all else."""

    __slots__ = ("_fd", "_segment")

    def __init__(self, segment: Segment) -> None:
        self._segment: Segment | None = segment
        self._fd: int | None = None

    def opened(self) -> int | None:
        """``None``: no descriptors are left, or it is closed."""
        if self._fd is None and self._segment is not None:
            with suppress(OSError):
                self._fd = self._segment.lend()
        return self._fd

    def close(self) -> None:
        self._segment = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


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


@attrs.frozen
class MemoryValues:
    """Makes values; large ones are in segments, up to a number of them.

    Beyond that they are bytes, and another process needs a copy.
    """

    memory: RecycledMemory

    def adopt(self, sealed: SealedFile) -> MemoryValue:
        """That memory, without a copy if it is large. **Raises**
        :exc:`~spear_core.errors.InvalidRequestError`."""
        check_sealed(sealed)
        if sealed.size > SMALL:
            with suppress(OSError):  # no descriptors left in this process
                fd = fcntl.fcntl(sealed.fd, fcntl.F_DUPFD_CLOEXEC, 0)
                return self.finish(self.memory.adopt(fd, sealed.size), sealed.size)
        return MemoryValue(_read(sealed.fd, sealed.size))

    def settled(self, value: MemoryValue) -> MemoryValue:
        """The value without its descriptor, if they are too many. Blocks for a large one."""
        if value.small is None and self.memory.too_many():
            return MemoryValue(value.copied())
        return value

    def make(self, value: memoryview) -> MemoryValue:
        """A copy. Blocks for a large one. **Raises** :exc:`OSError` when there is no memory."""
        size = len(value)
        segment = self.memory.take(size) if size > SMALL else None
        if segment is None:
            return MemoryValue(bytes(value))
        try:
            self.fill(segment, 0, value)
        except BaseException:
            self.memory.put_back(segment)
            raise
        return self.finish(segment, size)

    def fill(self, segment: Segment, place: int, piece: memoryview) -> None:
        """:meth:`Segment.write`; where there is no memory, once more without what waits for
        other values. **Raises** :exc:`OSError`."""
        try:
            segment.write(place, piece)
        except OSError as exc:
            if exc.errno not in (errno.ENOMEM, errno.ENOSPC) or not self.memory.clear():
                raise
            segment.write(place, piece)

    def finish(self, segment: Segment, size: int) -> MemoryValue:
        """The value that is in that segment, which is given back with the last view of it.

        **Raises** :exc:`OSError`, and has given it back then.
        """
        try:
            window = segment.show(size)
        except BaseException:
            self.memory.put_back(segment)
            raise
        weakref.finalize(window, self.memory.put_back, segment).atexit = False
        return MemoryValue(memoryview(window).cast("B")[:size].toreadonly(), segment)


def _read(fd: int, size: int) -> bytes:
    parts = []
    place = 0
    while place < size:
        part = os.pread(fd, min(_PIECE, size - place), place)
        parts.append(part)
        place += len(part)
    return b"".join(parts)
