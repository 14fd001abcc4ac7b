"""From the first format to the second: records have checksums now."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from ._transaction import Transaction

__all__ = ["metadata_from_1", "objects_from_1"]

_OLD_HEAD = struct.Struct("<QQQdddIB32s16sH")
_NEW_HEAD = struct.Struct("<QQQdddIB32s16sIH")

_OLD_KEY = 2


def objects_from_1(txn: Transaction, databases: Mapping[str, Any]) -> None:
    """A checksum of the value in the head, and one of the head after it."""

    def renewed(key: bytes, raw: bytes) -> bytes:
        *fields, length = _OLD_HEAD.unpack_from(raw)
        end = _OLD_HEAD.size + length
        value = raw[end:]
        head = (
            _NEW_HEAD.pack(*fields, zlib.crc32(value, zlib.crc32(key)), length)
            + raw[_OLD_HEAD.size : end]
        )
        checksum = zlib.crc32(head, zlib.crc32(key))
        return head + checksum.to_bytes(4, "little") + value

    _rewrite(txn, databases["objects"], renewed)


def metadata_from_1(txn: Transaction, databases: Mapping[str, Any]) -> None:
    """A checksum after each key's record, and after what the log remembers of one."""

    def summed(key: bytes, record: bytes) -> bytes:
        return record + zlib.crc32(record, zlib.crc32(key)).to_bytes(4, "little")

    def logged(place: bytes, raw: bytes) -> bytes:
        end = _OLD_KEY + int.from_bytes(raw[:_OLD_KEY], "big")
        return raw[:end] + (summed(raw[_OLD_KEY:end], raw[end:]) if raw[end:] else b"")

    _rewrite(txn, databases["keys"], summed)
    _rewrite(txn, databases["log"], logged)


def _rewrite(txn: Transaction, database: Any, renewed: Callable[[bytes, bytes], bytes]) -> None:
    cursor = txn.cursor(db=database)
    found = cursor.first()
    while found:
        key, raw = cursor.key(), cursor.value()
        cursor.put(key, renewed(key, raw))
        found = cursor.next()
