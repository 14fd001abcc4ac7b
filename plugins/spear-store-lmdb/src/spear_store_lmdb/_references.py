"""Who refers to which object: in a write transaction, by object and by holder."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ._environment import Environment
from ._transaction import Transaction

__all__ = ["References"]

_COUNT = struct.Struct(">I")


class References:
    """Two databases with several values for a key: ``refs`` has, for an object, each holder and
    its count; ``held``, for a holder with a name, its objects."""

    def __init__(self, environment: Environment) -> None:
        self._refs = environment["refs"]
        self._held = environment["held"]

    def of(self, txn: Transaction, key: bytes) -> Iterator[tuple[bytes, int]]:
        """Holder and count, by holder."""
        cursor = txn.cursor(db=self._refs)
        if cursor.set_key(key):
            for entry in cursor.iternext_dup():
                yield entry[: -_COUNT.size - 1], _COUNT.unpack(entry[-_COUNT.size :])[0]

    def count(self, txn: Transaction, key: bytes, holder: bytes) -> int:
        """How many of the references to that object are that holder's."""
        cursor = txn.cursor(db=self._refs)
        start = holder + b"\0"
        if cursor.set_range_dup(key, start) and cursor.key() == key:
            entry = cursor.value()
            if entry[: -_COUNT.size] == start:
                return int(_COUNT.unpack(entry[-_COUNT.size :])[0])
        return 0

    def set(self, txn: Transaction, key: bytes, holder: bytes, count: int) -> None:
        """The holder has so many references to the object from now on."""
        if before := self.count(txn, key, holder):
            txn.delete(key, holder + b"\0" + _COUNT.pack(before), db=self._refs)
        if count:
            txn.put(key, holder + b"\0" + _COUNT.pack(count), db=self._refs)
        if holder and count and not before:
            txn.put(holder, key, db=self._held)
        if holder and before and not count:
            txn.delete(holder, key, db=self._held)

    def clear(self, txn: Transaction, key: bytes) -> None:
        """Nobody refers to the object any more."""
        for holder, _ in list(self.of(txn, key)):
            self.set(txn, key, holder, 0)

    def held_by(self, txn: Transaction, holder: bytes) -> list[bytes]:
        """The objects that a holder refers to."""
        cursor = txn.cursor(db=self._held)
        return list(cursor.iternext_dup()) if cursor.set_key(holder) else []
