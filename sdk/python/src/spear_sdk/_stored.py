"""Objects as a function sees them: what is known of one, and its value where it lies."""

from __future__ import annotations

import errno
import mmap
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from spear_sdk._frames import Descriptor

_NO_FD: dict[str, Any] = {} if sys.version_info < (3, 13) else {"trackfd": False}

_COMPARED = 1 << 20
"""Bytes of two values that are compared at a time."""

__all__ = ["InlineObject", "MappedObject", "ObjectStat", "StoredObject", "mapped"]


class ObjectStat:
    """What the node knows about one version of an object."""

    key: str
    """As this artifact writes it."""
    size: int
    """Bytes."""
    version: int
    """1 for a new key, and one more with every write."""
    revision: int
    """The store's count of changes when it was written."""
    sha256: str
    """In hexadecimal; empty when it was put with ``hashed=False``."""
    created_at: float
    """Seconds since the Unix epoch: the first write of the key."""
    updated_at: float
    """Likewise: this version."""
    content_type: str
    refs: int
    pinned: bool
    expires_at: float | None
    """Seconds since the Unix epoch after which it is collected, if nothing keeps it then."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def __repr__(self) -> str:
        return f"<ObjectStat {self.key!r}, version {self.version}, {self.size} bytes>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectStat):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # it compares by value


class StoredObject:
    """One version of an object, read-only: whatever takes bytes takes it as it is.

    ``memoryview(value)``, ``numpy.frombuffer(value)``, ``value[10:20]``, ``len(value)``,
    ``file.write(value)``. A large one is not copied: it is mapped from the node's memory, for as
    long as this or anything made from it exists, and does not change when somebody writes a new
    version. It has a file descriptor of this process until then (before Python 3.13).
    """

    stat: ObjectStat

    @property
    def key(self) -> str:
        """Its key."""
        return self.stat.key

    @property
    def version(self) -> int:
        """Which version it is: ``put(…, expect=value.version)`` writes only over this one."""
        return self.stat.version

    @property
    def data(self) -> memoryview:
        """The value."""
        return memoryview(self)  # type: ignore[arg-type]  # both subclasses are buffers

    def __repr__(self) -> str:
        return f"<StoredObject {self.key!r}, version {self.version}, {self.stat.size} bytes>"


class InlineObject(StoredObject, bytes):
    """A small one, copied."""

    def __new__(cls, value: bytes | memoryview, stat: ObjectStat) -> InlineObject:
        self = bytes.__new__(cls, value)
        self.stat = stat
        return self

    __repr__ = StoredObject.__repr__


class MappedObject(StoredObject, mmap.mmap):
    """A large one. Unmapped with the last reference; numpy arrays over it are such references."""

    def __new__(cls, fd: int, stat: ObjectStat) -> MappedObject:
        self = mmap.mmap.__new__(cls, fd, stat.size, access=mmap.ACCESS_READ, **_NO_FD)
        self.stat = stat
        return self

    __repr__ = StoredObject.__repr__

    def __eq__(self, other: object) -> bool:
        """By value, as a small one does: which of them it is must not matter."""
        if not isinstance(other, (bytes, bytearray, memoryview, MappedObject)):
            return NotImplemented
        theirs = memoryview(other).cast("B")
        return len(theirs) == len(self) and all(
            self[at : at + _COMPARED] == theirs[at : at + _COMPARED]
            for at in range(0, len(self), _COMPARED)
        )

    __hash__ = None  # type: ignore[assignment]  # that would be to read all of it


def mapped(file: Descriptor, stat: ObjectStat) -> StoredObject:
    """The value in that file, which is closed.

    Raises: MemoryError when the limit of memory of this process leaves no room to map it.
    """
    try:
        found = os.fstat(file.number).st_size
        if found != stat.size:
            raise OSError(errno.EIO, f"the file has {found} bytes, not {stat.size}")
        return MappedObject(file.number, stat)
    except OSError as exc:
        if exc.errno != errno.ENOMEM:
            raise
        raise MemoryError(
            f"no room to map {stat.key!r}, {stat.size} bytes; objects.open reads it piece by piece"
        ) from exc
    finally:
        file.close()
