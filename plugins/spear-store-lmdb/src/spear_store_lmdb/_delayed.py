"""Whether the disk has seen anything of a file, which Python has no call for."""

from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Callable
from functools import cache

__all__ = ["never_on_disk"]

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP
_DELAYED = 4  # FIEMAP_EXTENT_DELALLOC
_HEAD = struct.Struct("=QQIIII")
"""``struct fiemap``: start, length, flags, extents found, extents that have room here, nothing."""
_EXTENT = struct.Struct("=QQQQQIIII")
"""``struct fiemap_extent``: start, where on the disk, length, nothing, nothing, flags, nothing."""

_EXT4, _TMPFS = 0xEF53, 0x01021994
"""``linux/magic.h``."""


def never_on_disk(descriptor: int, size: int) -> bool:
    """Whether a file has all its bytes, and only in memory: no block of the disk was ever given to
    any of them.

    It once said so only where a file system writes the names of files no later than the places of
    blocks that were given afterwards: ext4 (``man 5 ext4``: ``delalloc``), and tmpfs, of which
    nothing is ever on a disk. For others, and where it cannot be told, it says false.
    """
    kind = _kind(descriptor)
    if kind == _TMPFS:
        return True
    if kind != _EXT4:
        return False
    request = bytearray(_HEAD.pack(0, size, 0, 0, 1, 0) + bytes(_EXTENT.size))
    try:
        fcntl.ioctl(descriptor, _FIEMAP, request)
    except OSError:
        return False
    if not _HEAD.unpack_from(request)[3]:
        return False
    start, _, length, _, _, flags, *_ = _EXTENT.unpack_from(request, _HEAD.size)
    return bool(flags & _DELAYED) and start == 0 and length >= size


@cache
def _fstatfs() -> Callable[[int, ctypes.Array[ctypes.c_long]], int] | None:
    try:
        found = ctypes.CDLL(None).fstatfs
    except (OSError, AttributeError):  # not in this C library
        return None
    call: Callable[[int, ctypes.Array[ctypes.c_long]], int] = found
    return call


def _kind(descriptor: int) -> int:
    """The number of its file system, the first field of ``struct statfs``."""
    answer = (ctypes.c_long * 64)()
    if (call := _fstatfs()) is None or call(descriptor, answer):
        return 0
    return int(answer[0])
