"""Having the kernel begin to write to the disk, which Python has no call for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["begin_writeback"]

_WRITE = 2  # SYNC_FILE_RANGE_WRITE


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):  # not in this C library
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call: Callable[[int, int, int, int], int] = found
    return call


def begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Let the disk work on this part of a file already (``man 2 sync_file_range``).

    It promises nothing: ``fdatasync`` is still to be called, and has less to wait for. Blocks while
    the disk has very much to do. An error is told by ``fdatasync``, too.
    """
    if (call := _sync_file_range()) is not None:
        call(descriptor, start, length, _WRITE)
