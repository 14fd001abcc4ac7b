"""What is in an object's record, and how it is written."""

from __future__ import annotations

import struct
import zlib

import attrs

from spear_core.api import ObjectStat
from spear_core.errors import StoreCorruptError

__all__ = ["RESIDUE", "Record", "inline_value", "pack", "unpack", "value_of"]

_HEAD = struct.Struct("<QQQdddIB32s16sIH")
"""Version, revision, size, created, updated, expires (0: never), references, flags, sha256, blob,
checksum of the value (if it is inline), and the length of the content type, which follows; then a
checksum of the key and all this; then the value, if it is inline."""

_FLAGS = struct.calcsize("<QQQdddI")
_SUM = struct.calcsize("<QQQdddIB32s16s")
_LENGTH = _SUM + 4
"""Where in the head these are."""

_PINNED, _INLINE, _HASHED = 1, 2, 4

RESIDUE = 0x2144DF1C
"""CRC-32 of whatever ends with its own CRC-32, little-endian."""


@attrs.frozen
class Record:
    """An object without its value."""

    stat: ObjectStat
    blob: str = ""
    """The name of the file with its value; empty when the value is inline."""


def pack(record: Record, value: bytes = b"") -> bytes:
    """The bytes of a record; ``value`` for one without a blob."""
    stat = record.stat
    kind = stat.content_type.encode()
    flags = _PINNED * stat.pinned | _INLINE * (not record.blob) | _HASHED * bool(stat.sha256)
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
        bytes.fromhex(record.blob),
        zlib.crc32(value),
        len(kind),
    )
    checksum = zlib.crc32(kind, zlib.crc32(head, zlib.crc32(stat.key.encode())))
    return b"".join((head, kind, checksum.to_bytes(4, "little"), value))


def unpack(key: str, raw: bytes | memoryview) -> Record:
    """The record in these bytes; the value is not looked at. **Raises**
    :exc:`~spear_core.errors.StoreCorruptError`."""
    try:
        (
            version,
            revision,
            size,
            created,
            updated,
            expires,
            refs,
            flags,
            digest,
            blob,
            _,
            length,
        ) = _HEAD.unpack_from(raw)
    except struct.error as exc:
        raise _damaged(key) from exc
    end = _HEAD.size + length + 4
    if zlib.crc32(raw[:end], zlib.crc32(key.encode())) != RESIDUE:
        raise _damaged(key)
    inline = flags & _INLINE
    if inline and len(raw) != end + size:
        raise _damaged(key)
    stat = ObjectStat(
        key=key,
        size=size,
        version=version,
        revision=revision,
        sha256=digest.hex() if flags & _HASHED else "",
        created_at=created,
        updated_at=updated,
        content_type=str(raw[_HEAD.size : end - 4], "utf-8"),
        refs=refs,
        pinned=bool(flags & _PINNED),
        expires_at=expires or None,
    )
    return Record(stat, "" if inline else blob.hex())


def value_of(record: Record, raw: bytes) -> bytes:
    """The value that is inline in these bytes. **Raises**
    :exc:`~spear_core.errors.StoreCorruptError`."""
    value = raw[len(raw) - record.stat.size :]
    if zlib.crc32(value) != int.from_bytes(raw[_SUM:_LENGTH], "little"):
        raise _damaged(record.stat.key)
    return value


def inline_value(key: bytes, raw: bytes) -> bytes | None:
    """The value that is inline in these bytes, by itself; ``None``: it is elsewhere. **Raises**
    likewise."""
    try:
        end = _HEAD.size + raw[_LENGTH] + (raw[_LENGTH + 1] << 8) + 4
        if zlib.crc32(raw[:end], zlib.crc32(key)) == RESIDUE:
            if not raw[_FLAGS] & _INLINE:
                return None
            value = raw[end:]
            if zlib.crc32(value) == int.from_bytes(raw[_SUM:_LENGTH], "little"):
                return value
    except IndexError:
        pass
    raise _damaged(key.decode(errors="replace"))


def _damaged(key: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"the record of object {key!r} is damaged (its checksum differs); `spear fsck --repair` "
        f"removes it, or restore a backup"
    )
