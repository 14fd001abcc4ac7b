"""Files that stay mapped for a while, so that the next reader need not open and map them again."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["MappedFile", "MappedFiles", "WrongSizeError"]

_MOST = 64
"""Mappings that stay. Python's has a descriptor, so there are as many of these."""


class WrongSizeError(Exception):
    """A file is smaller or larger than it has to be."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class MappedFile:
    """A mapping; made by :meth:`MappedFiles.hold`."""

    __slots__ = ("content", "dropped", "holders", "identity")

    def __init__(self, content: mmap.mmap, identity: tuple[int, int, int]) -> None:
        self.content = content
        self.identity = identity
        self.holders = 0
        self.dropped = False

    def close(self) -> bool:
        """Whether nobody sees it any more."""
        if self.holders:
            return False
        try:
            self.content.close()
        except BufferError:  # what was made from a view keeps it
            return False
        return True


class MappedFiles:
    """The mappings of the files that were read last. For one thread.

    A file that is removed has to be dropped here, or its pages stay.

    :param outlived: called with the name of a file that somebody may go on seeing, who knows for
        how long. :param most: mappings that stay when nobody uses them.
    """

    def __init__(self, outlived: Callable[[str], None], *, most: int = _MOST) -> None:
        self._outlived = outlived
        self._most = most
        self._kept: OrderedDict[str, MappedFile] = OrderedDict()

    def hold(self, name: str, path: str, size: int) -> MappedFile:
        """What is in a file of that size, until :meth:`release`.

        **Raises** :exc:`OSError` and :exc:`WrongSizeError`.
        """
        # each time, for a page beyond the end of a file that was cut off would be a SIGBUS
        identity = _identity(os.stat(path), size)
        found = self._kept.get(name)
        if found is not None and found.identity == identity:
            self._kept.move_to_end(name)
        else:
            self.drop(name)
            found = self._kept[name] = _mapped(path, size)
            if len(self._kept) > self._most:
                self.drop(next(iter(self._kept)))
        found.holders += 1
        return found

    def release(self, held: MappedFile) -> None:
        """It is not needed any more."""
        held.holders -= 1
        if held.dropped:
            held.close()

    def drop(self, name: str) -> None:
        """Map that file no longer than it is held or seen."""
        found = self._kept.pop(name, None)
        if found is not None:
            found.dropped = True
            if not found.close():
                self._outlived(name)

    def close(self) -> None:
        """Drop all."""
        for name in list(self._kept):
            self.drop(name)


def _mapped(path: str, size: int) -> MappedFile:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        identity = _identity(os.fstat(descriptor), size)
        return MappedFile(mmap.mmap(descriptor, size, prot=mmap.PROT_READ), identity)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result, size: int) -> tuple[int, int, int]:
    """Which file it is."""
    if status.st_size != size:
        raise WrongSizeError(status.st_size)
    return status.st_dev, status.st_ino, size
