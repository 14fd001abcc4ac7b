"""What is in an object's record, and how it is written."""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import attrs

from spear_core.api import ObjectStat
from spear_core.errors import StoreCorruptError

__all__ = [
    "RESIDUE",
    "Head",
    "Record",
    "blob_of",
    "head_of",
    "inline_value",
    "inline_view",
    "pack",
    "stat_of",
    "unpack",
    "value_of",
]

_HEAD = struct.Struct("<QQQdddIB32s16sIH")
"""Version, revision, size, created, updated, expires (0: never), references, flags, sha256, blob,
checksum of the key and the value (if it is inline), and the length of the content type, which
follows; then a checksum of the key and all this; then the value, if it is inline."""

_FLAGS = struct.calcsize("<QQQdddI")
_SUM = struct.calcsize("<QQQdddIB32s16s")
"""Where in the head these are."""

_LAST = struct.Struct("<IH")
"""What is at ``_SUM``: the checksum of the value, the length of the content type."""

_HEAD_AND_SUM = _HEAD.size + 4

_PINNED, _INLINE, _HASHED = 1, 2, 4

RESIDUE = 0x2144DF1C
"""CRC-32 of whatever ends with its own CRC-32, little-endian."""


class Head(NamedTuple):
    """The first part of a record, as it lies there."""

    version: int
    revision: int
    size: int
    created_at: float
    updated_at: float
    expires_at: float
    refs: int
    flags: int
    sha256: bytes
    blob: bytes
    checksum: int
    length: int

    @property
    def blob_name(self) -> str:
        """The name of the file with the value; empty when the value is inline."""
        return "" if self.flags & _INLINE else self.blob.hex()

    @property
    def pinned(self) -> bool:
        """Whether the object is pinned."""
        return bool(self.flags & _PINNED)


@attrs.frozen
class Record:
    """An object without its value."""

    stat: ObjectStat
    blob: str = ""
    """The name of the file with its value; empty when the value is inline."""


def pack(stat: ObjectStat, blob: str, value: bytes = b"") -> bytes:
    """The bytes of a record; ``value`` for one without a blob."""
    kind = stat.content_type.encode()
    flags = _PINNED * stat.pinned | _INLINE * (not blob) | _HASHED * bool(stat.sha256)
    seed = zlib.crc32(stat.key.encode())
    head = _HEAD.pack(
        stat.version,
        stat.revision,
        stat.size,
        stat.created_at,
        stat.updated_at,
        stat.expires_at or 0.0,
        stat.refs,
        flags,
        bytes.fromhex(stat.sha256),
        bytes.fromhex(blob),
        zlib.crc32(value, seed),
        len(kind),
    )
    checksum = zlib.crc32(kind, zlib.crc32(head, seed))
    return b"".join((head, kind, checksum.to_bytes(4, "little"), value))


def head_of(key: bytes, raw: bytes | memoryview) -> Head:
    """The head of the record in these bytes; the value is not looked at. **Raises**
    :exc:`~spear_core.errors.StoreCorruptError`."""
    return Head._make(_checked(key, raw))


def stat_of(name: str, raw: bytes | memoryview, key: bytes | None = None) -> ObjectStat:
    """What is known of an object, likewise. :param key: the name in UTF-8, where it is at hand."""
    fields = _checked(name.encode() if key is None else key, raw)
    version, revision, size, created, updated, expires, refs, flags, digest, _, _, length = fields
    return ObjectStat(
        key=name,
        size=size,
        version=version,
        revision=revision,
        sha256=digest.hex() if flags & _HASHED else "",
        created_at=created,
        updated_at=updated,
        content_type=str(raw[_HEAD.size : _HEAD.size + length], "utf-8"),
        refs=refs,
        pinned=flags & _PINNED != 0,
        expires_at=expires or None,
    )


def unpack(key: str, raw: bytes | memoryview) -> Record:
    """The whole record, likewise."""
    return Record(stat_of(key, raw), blob_of(raw))


def _checked(key: bytes, raw: bytes | memoryview) -> tuple[Any, ...]:
    try:
        fields = _HEAD.unpack_from(raw)
    except struct.error as exc:
        raise _damaged(key) from exc
    end = _HEAD_AND_SUM + fields[-1]
    if zlib.crc32(raw[:end], zlib.crc32(key)) != RESIDUE:
        raise _damaged(key)
    if fields[7] & _INLINE and len(raw) != end + fields[2]:
        raise _damaged(key)
    return fields


def blob_of(raw: bytes | memoryview) -> str:
    """The name of the file with the value, in a record that is known to be sound; empty when the
    value is inline."""
    return "" if raw[_FLAGS] & _INLINE else bytes(raw[_SUM - 16 : _SUM]).hex()


def value_of(record: Record, raw: bytes) -> bytes:
    """The value that is inline in these bytes. **Raises**
    :exc:`~spear_core.errors.StoreCorruptError`."""
    key = record.stat.key.encode()
    value = inline_value(key, raw)
    if value is None:
        raise _damaged(key)
    return value


def inline_value(key: bytes, raw: bytes) -> bytes | None:
    """The value that is inline in these bytes, by itself; ``None``: it is elsewhere. **Raises**
    likewise.

    The head is not checked, for this has to be quick: when what is looked at here is wrong, so is
    the checksum of what it leads to.
    """
    if not raw[_FLAGS] & _INLINE:
        return None
    checksum, length = _LAST.unpack_from(raw, _SUM)
    value = raw[_HEAD_AND_SUM + length :]
    if zlib.crc32(value, zlib.crc32(key)) != checksum:
        raise _damaged(key)
    return value


def inline_view(key: bytes, raw: bytes, *, verified: bool = False) -> memoryview | None:
    """The same, but a view of these bytes. :param verified: whether they are known to be sound."""
    if not raw[_FLAGS] & _INLINE:
        return None
    checksum, length = _LAST.unpack_from(raw, _SUM)
    value = memoryview(raw)[_HEAD_AND_SUM + length :]
    if not verified and zlib.crc32(value, zlib.crc32(key)) != checksum:
        raise _damaged(key)
    return value


def _damaged(key: bytes) -> StoreCorruptError:
    name = key.decode(errors="replace")
    return StoreCorruptError(
        f"the record of object {name!r} is damaged (its checksum differs); `spear fsck --repair` "
        f"removes it, or restore a backup"
    )
