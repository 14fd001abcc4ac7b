"""What is in a metadata key's record, and in the log."""

from __future__ import annotations

import struct
import zlib

from spear_core.api import KeyValue
from spear_core.errors import StoreCorruptError

from ._records import RESIDUE

__all__ = ["NUMBER", "PLACE", "logged", "record_of", "value_of"]

_RECORD = struct.Struct("<QQQQ")
"""Create and mod revision, version, lease; the value follows, and a checksum of the key and all
this."""

PLACE = struct.Struct(">QI")
"""Revision, number within it: sorts as the log does."""

NUMBER = struct.Struct(">Q")


def record_of(item: KeyValue) -> bytes:
    """The bytes of a record."""
    record = (
        _RECORD.pack(item.create_revision, item.mod_revision, item.version, item.lease) + item.value
    )
    return record + zlib.crc32(record, zlib.crc32(item.key)).to_bytes(4, "little")


def value_of(key: bytes, raw: bytes | None) -> KeyValue | None:
    """The key with its value. **Raises** :exc:`~spear_core.errors.StoreCorruptError`."""
    if not raw:
        return None
    if zlib.crc32(raw, zlib.crc32(key)) != RESIDUE:
        raise StoreCorruptError(
            f"the record of metadata key {key!r} is damaged (its checksum differs); restore a "
            f"backup"
        )
    created, modified, version, lease = _RECORD.unpack_from(raw)
    return KeyValue(
        key=key,
        value=raw[_RECORD.size : -4],
        create_revision=created,
        mod_revision=modified,
        version=version,
        lease=lease,
    )


def logged(raw: bytes | None) -> tuple[bytes, KeyValue | None]:
    """The key of an entry in the log, and what it was before."""
    assert raw is not None, "every entry of the past is in the log"
    end = 2 + int.from_bytes(raw[:2], "big")
    key = raw[2:end]
    return key, value_of(key, raw[end:])
