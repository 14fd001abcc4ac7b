"""Writing over a file whose pages are in memory, with several threads."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource

from spear_core.stores import copy_to

__all__ = ["FilePages", "mapped_pages", "write_over"]

_HUGE = 2 << 20
"""Bytes of a huge page; where it is another size, nothing is mapped."""

_AT_ONCE = 16 << 20
"""Bytes in one call: Linux writes at most 2 GiB."""


class FilePages:
    """The first bytes of a file, mapped by huge pages, to be written over again and again."""

    def __init__(self, pages: mmap.mmap) -> None:
        self._pages = pages
        self.size = len(pages)

    def fill(self, value: memoryview) -> None:
        """Write from the beginning on; no more than there is room for."""
        start = ctypes.c_ubyte.from_buffer(self._pages)
        try:
            copy_to(ctypes.addressof(start), value)
        finally:
            del start  # else the mapping could not be closed

    def close(self) -> None:
        """Give up the mapping. Blocks: a millisecond or so for 64 MiB."""
        self._pages.close()


def mapped_pages(descriptor: int, size: int) -> FilePages | None:
    """What of a file of that size is in huge pages, if that is all but the last of it.

    In a smaller page the first write through a mapping costs more than to copy a hundred of them,
    so ``None``: only ``write`` is quick. What is in the file is lost.

    **Raises** :exc:`OSError`.
    """
    size = size // _HUGE * _HUGE
    if not size:
        return None
    pages = mmap.mmap(descriptor, size)
    allowed = _faults()
    for place in range(0, size, _HUGE):
        pages[place] = pages[place + mmap.PAGESIZE] = 0
        allowed += 1
        if _faults() > allowed:
            pages.close()
            return None
    return FilePages(pages)


def _faults() -> int:
    """Page faults of this thread so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def write_over(descriptor: int, size: int, value: memoryview, pages: FilePages | None) -> None:
    """Write a value into a file of that size. Blocks.

    :param pages: of that file; those beyond its end are not touched, which would be a SIGBUS.

    **Raises** :exc:`OSError`.
    """
    at = 0
    if pages is not None:
        at = min(pages.size, size // _HUGE * _HUGE, len(value) // _HUGE * _HUGE)
        pages.fill(value[:at])
    while at < len(value):
        at += os.pwrite(descriptor, value[at : at + _AT_ONCE], at)
