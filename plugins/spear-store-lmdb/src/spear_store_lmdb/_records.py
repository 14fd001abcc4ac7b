"""What is in an object's record, and how it is written."""

from __future__ import annotations

import struct

import attrs

from spear_core.api import ObjectStat
from spear_core.errors import StoreCorruptError

__all__ = ["Record", "inline_value", "pack", "unpack", "value_of"]

_HEAD = struct.Struct("<QQQdddIB32s16sH")
"""Version, revision, size, created, updated, expires (0: never), references, flags, sha256, blob,
and the length of the content type, which follows; then the value, if it is inline."""

_FLAGS = struct.calcsize("<QQQdddI")
_LENGTH = struct.calcsize("<QQQdddIB32s16s")
"""Where in the head these are."""

_PINNED, _INLINE, _HASHED = 1, 2, 4


@attrs.frozen
class Record:
    """An object without its value."""

    stat: ObjectStat
    blob: str = ""
    """The name of the file with its value; empty when the value is inline."""


def pack(record: Record, value: bytes | memoryview = b"") -> bytes:
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
        len(kind),
    )
    return b"".join((head, kind, value))


def unpack(key: str, raw: bytes) -> Record:
    """The record in these bytes. **Raises** :exc:`~spear_core.errors.StoreCorruptError`."""
    try:
        (version, revision, size, created, updated, expires, refs, flags, digest, blob, length) = (
            _HEAD.unpack_from(raw)
        )
        kind = str(raw[_HEAD.size : _HEAD.size + length], "utf-8")
    except (struct.error, UnicodeDecodeError) as exc:
        raise _damaged(key) from exc
    inline = flags & _INLINE
    if inline and len(raw) != _HEAD.size + length + size:
        raise _damaged(key)
    stat = ObjectStat(
        key=key,
        size=size,
        version=version,
        revision=revision,
        sha256=digest.hex() if flags & _HASHED else "",
        created_at=created,
        updated_at=updated,
        content_type=kind,
        refs=refs,
        pinned=bool(flags & _PINNED),
        expires_at=expires or None,
    )
    return Record(stat, "" if inline else blob.hex())


def value_of(record: Record, raw: bytes) -> bytes:
    """The value that is inline in these bytes."""
    return raw[len(raw) - record.stat.size :]


def inline_value(raw: bytes) -> bytes | None:
    """The value that is inline in these bytes, by itself; ``None``: it is elsewhere."""
    if not raw[_FLAGS] & _INLINE:
        return None
    return raw[_HEAD.size + raw[_LENGTH] + (raw[_LENGTH + 1] << 8) :]


def _damaged(key: str) -> StoreCorruptError:
    return StoreCorruptError(f"the record of object {key!r} is damaged; restore a backup")
