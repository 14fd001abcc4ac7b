"""A piece of memory that has a file descriptor, and holds one value at a time."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

from spear_core.stores import SEALS
from spear_core.stores._copying import Window, copy_to

__all__ = ["Segment", "room_for"]

_F_SEAL_FUTURE_WRITE = 0x10
"""``linux/fcntl.h``, since Linux 5.1: nobody can write any more but by a mapping that exists."""
_MAP_FIXED, _PROT_NONE = 0x10, 0
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_COLLAPSE = 25
"""``linux/mman.h``, since Linux 6.1: make huge pages of what is there."""
_HUGE = 2 << 20
"""Bytes of a huge page; where it is larger, that does nothing."""
_AT_ONCE = 16 << 20
"""Bytes in one call: Linux writes at most 2 GiB."""

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def room_for(size: int) -> int:
    """Bytes of the smallest segment that a value of so many (≥ 1) fits into.

    There are eight sizes between a power of two and the next, so at most an eighth is not used,
    and values of about the same size can follow each other in the same memory.
    """
    step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


class Segment:
    """A memfd, and its pages in this process.

    Its mapping is made with ``mmap`` itself: Python's would have a second descriptor. Reading and
    writing is by one mapping, whose page tables thus exist already for whoever reads a value that
    was written by it. Others get the file only sealed, by :meth:`lend`; after that nothing here
    writes to it again.
    """

    __slots__ = ("_address", "_filled", "_touched", "_values", "fd", "lent", "room", "size")

    def __init__(self, fd: int, *, size: int = 0, sealed: bool = False) -> None:
        """:param fd: of a memfd, from now on the segment's. :param size: of the value in it.
        :param sealed: whether it is so already, and by somebody else."""
        self.fd = fd
        self.size = size
        self.room = 0
        """Bytes that are mapped, or 0."""
        self.lent = sealed
        self._filled = size
        self._touched = 0
        self._values = 0
        self._address = 0

    @classmethod
    def new(cls) -> Segment:
        """**Raises** :exc:`OSError` when this process has no descriptors left."""
        return cls(os.memfd_create("spear-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))

    @property
    def pages(self) -> int:
        """Bytes of memory that it has, about."""
        return self._filled

    def write(self, place: int, piece: memoryview) -> None:
        """Write there, where everything before was written already. Blocks for a large one.

        Where there are pages, by the mapping; new ones by ``write``, which gets them more quickly
        than page faults do and can say that there are none. May be repeated when it failed.

        **Raises** :exc:`OSError` when there is no memory.
        """
        if place == 0 and self._values == 2:
            self._collapse()
        known = max(0, min(len(piece), self._filled - place)) if self._address else 0
        if known:
            copy_to(self._address + place, piece[:known], touched=place + known <= self._touched)
            self._touched = max(self._touched, place + known)
        at = known
        while at < len(piece):
            at += os.pwrite(self.fd, piece[at : at + _AT_ONCE], place + at)
        self._filled = max(self._filled, place + len(piece))

    def _collapse(self) -> None:
        """Make huge pages of it, if the kernel can: to copy there takes two thirds of the time
        then, and to give it up next to none. That takes as long as to get the memory did, so it is
        for a segment that has proved to be used again and again."""
        _madvise(self._address, self._filled // _HUGE * _HUGE, _MADV_COLLAPSE)

    def splice(self, place: int, pipe: int, most: int) -> int:
        """Write there what is in a pipe, at most so much: how many bytes.

        **Raises** :exc:`BlockingIOError` when there is nothing in it.
        """
        count = os.splice(pipe, self.fd, most, offset_dst=place, flags=os.SPLICE_F_NONBLOCK)
        self._filled = max(self._filled, place + count)
        return count

    def show(self, size: int) -> ctypes.Array[ctypes.c_ubyte]:
        """A window on the value that is in it now, of so many bytes.

        After the first call only values have room that need no more than that one's
        :func:`room <room_for>`.

        The segment has to live for as long as the window does, and what is made from it.

        **Raises** :exc:`OSError` when there are no mappings left.
        """
        self.size = size
        self._values += 1
        if not self._address:
            room = room_for(size)
            if self.lent:  # sealed, so it cannot be mapped otherwise on every kernel
                self._map(room, mmap.PROT_READ, mmap.MAP_PRIVATE)
            else:
                self._map(room, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED)
        assert size <= self.room  # behind it, there may be anything
        return Window.from_address(self._address)

    def _map(self, room: int, protection: int, flags: int) -> None:
        at = self._address
        if flags & _MAP_FIXED and not at:
            at = _free_addresses(room)
        address = _mmap(at or None, room, protection, flags, self.fd, 0)
        if address == _MAP_FAILED:
            error = _last_error()
            if at and not self._address:
                _munmap(at, room)
            raise error
        self._address, self.room = address, room

    def lend(self) -> int:
        """A descriptor with a position of its own, of a file that has just the value and that
        nobody can change. **Raises** :exc:`OSError`."""
        if not self.lent:
            os.ftruncate(self.fd, self.size)  # older values' bytes may be behind it
            self._filled = self.size
            self._seal()
            self.lent = True
        try:
            return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # no /proc here; it is sealed all the same
            return fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 0)

    def _seal(self) -> None:
        """Only the mapping, which is not used for that any more, could still change it."""
        seals = SEALS & ~fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        try:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals | _F_SEAL_FUTURE_WRITE)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            # Linux 5.0 or older: make the mapping one that only reads, under its readers' eyes.
            self._map(self.room, mmap.PROT_READ, mmap.MAP_PRIVATE | _MAP_FIXED)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_WRITE)

    def close(self) -> None:
        """Give it up; nobody has a window on it any more. Blocks: a quarter of a millisecond or
        more for a mebibyte that nobody else has."""
        if self._address:
            _munmap(self._address, self.room)
            self._address = 0
        os.close(self.fd)


def _free_addresses(size: int) -> int:
    """Where so much can be mapped, beginning where a huge page can. It is reserved.

    **Raises** :exc:`OSError`.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = _mmap(None, size + _HUGE, _PROT_NONE, flags, -1, 0)
    if start == _MAP_FAILED:
        raise _last_error()
    assert start is not None
    place = -(-start // _HUGE) * _HUGE
    if place > start:
        _munmap(start, place - start)
    if start + _HUGE > place:
        _munmap(place + size, start + _HUGE - place)
    return int(place)


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
