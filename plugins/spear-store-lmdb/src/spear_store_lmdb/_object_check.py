"""What has to be true of an object store: of records, indexes, counts and files."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from spear_core.errors import SpearError, StoreCorruptError
from spear_core.stores import check_object_key

from ._blobs import Blobs
from ._checking import Check
from ._records import Record, pack, unpack, value_of
from ._transaction import Transaction

__all__ = ["ObjectCheck"]

_DUE = struct.Struct(">d")
_DELETED = struct.Struct("<QQ")
_ORDER = struct.Struct(">Q")
_COUNT = struct.Struct(">I")
_TTL = struct.Struct("<d")

_PIECE = 1 << 20


class ObjectCheck(Check):
    """One check of an object store.

    :param deep: read the files, and compare them with their hashes.
    :param damaged: files that are known not to be what they were, by object.
    """

    def __init__(
        self,
        txn: Transaction,
        databases: Mapping[str, Any],
        pause: Callable[[], None],
        *,
        blobs: Blobs,
        deep: bool,
        damaged: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(txn, databases, pause)
        self._blobs = blobs
        self._deep = deep
        self.damaged = dict(damaged or {})
        self.removed: list[str] = []
        """Objects that a repair has removed."""

    def look(self) -> None:
        self._look_at_objects()
        self._look_at_blobs()
        self._look_at_references()
        self._look_at_expiry()
        self._look_at_deletions()

    # ---- objects

    def _look_at_objects(self) -> None:
        used = revision = 0
        for key, raw in self.txn.cursor(db=self.databases["objects"]):
            self.go_on()
            self.records += 1
            record = self._readable(key, raw)
            if record is None:
                continue
            used += record.stat.size
            revision = max(revision, record.stat.revision)
            self._look_at_value(key, record)
            self._look_at_indexes(key, raw, record)
        self.check_number(b"used", exact=used)
        self.check_number(b"revision", least=revision)

    def _readable(self, key: bytes, raw: bytes) -> Record | None:
        try:
            name = key.decode()
            check_object_key(name)
            record = unpack(name, raw)
            if not record.blob:
                value_of(record, raw)
                self.bytes += record.stat.size
        except (SpearError, UnicodeDecodeError):
            self._lost(key, "its record is damaged: the checksum differs")
            return None
        return record

    def _lost(self, key: bytes, what: str) -> None:
        def fix() -> None:
            self.delete("objects", key)
            # no version may be there twice, and nobody knows which one this was
            floor = self.number(b"revision")
            if floor > self.number(b"forgotten"):
                self.put("meta", b"forgotten", b"%d" % floor)
            self.removed.append(key.decode(errors="replace"))

        self.found(f"object {_shown(key)}", what, fix, lost=True)

    def _look_at_value(self, key: bytes, record: Record) -> None:
        if not record.blob:
            return
        name, stat = record.blob, record.stat
        try:
            if self._deep:
                digest = self._read(record)
                if stat.sha256 and digest != stat.sha256:
                    self.damaged[stat.key] = name
            else:
                self._blobs.check(name, stat)
        except StoreCorruptError as exc:
            self._lost(key, exc.message)
            return
        if self.damaged.get(stat.key) == name:
            where = self._blobs.path(name)
            self._lost(key, f"its file {where} is damaged: the hash differs")

    def _read(self, record: Record) -> str:
        """The hash of a file's content."""
        digest = hashlib.sha256()
        for piece in self._blobs.pieces(record.blob, record.stat, _PIECE):
            self._pause()
            if record.stat.sha256:
                digest.update(piece)
            self.bytes += len(piece)
        return digest.hexdigest()

    def _look_at_indexes(self, key: bytes, raw: bytes, record: Record) -> None:
        where, stat = f"object {_shown(key)}", record.stat
        if record.blob and self.get("blobs", bytes.fromhex(record.blob)) != key:
            self.found(
                where,
                "its file is not in the index of files",
                lambda: self.put("blobs", bytes.fromhex(record.blob), key),
            )
        refs = sum(count for _, count in self._references(key))
        if refs != stat.refs:
            right = attrs.evolve(stat, refs=refs)
            value = b"" if record.blob else value_of(record, raw)
            self.found(
                where,
                f"has {stat.refs} references, and its holders have {refs}",
                lambda: self.put("objects", key, pack(right, record.blob, value)),
            )
        due = stat.expires_at
        if due is not None and due > time.time():
            entry = _DUE.pack(due) + key
            if self.get("expiry", entry) is None:
                self.found(
                    where,
                    "has a time to live that is in no index",
                    lambda: self.put("expiry", entry, b""),
                )
        if self.get("deleted", key) is not None:
            self.found(where, "is there and deleted", lambda: self.delete("deleted", key))

    # ---- what leads to objects

    def _look_at_blobs(self) -> None:
        for name, key in self.txn.cursor(db=self.databases["blobs"]):
            self.go_on()
            record = self._record(key)
            if record is None or record.blob != name.hex():
                self.found(
                    f"the file {name.hex()}",
                    f"is said to be that of object {_shown(key)}, which has another",
                    lambda name=name: self.delete("blobs", name),  # type: ignore[misc]
                )

    def _references(self, key: bytes) -> list[tuple[bytes, int]]:
        cursor = self.txn.cursor(db=self.databases["refs"])
        entries = list(cursor.iternext_dup()) if cursor.set_key(key) else []
        return [
            (entry[: -_COUNT.size - 1], _COUNT.unpack(entry[-_COUNT.size :])[0])
            for entry in entries
            if len(entry) > _COUNT.size
        ]

    def _look_at_references(self) -> None:
        cursor = self.txn.cursor(db=self.databases["refs"])
        found = cursor.first()
        while found:
            self.go_on()
            key, entry = cursor.key(), cursor.value()
            holder = entry[: -_COUNT.size - 1]
            if len(entry) <= _COUNT.size or self._record(key) is None:
                self.found(
                    f"a reference of {_shown(holder)}",
                    f"is to object {_shown(key)}, which is not there",
                    lambda key=key, entry=entry: self.delete("refs", key, entry),  # type: ignore[misc]
                )
            elif holder and not self._has("held", holder, key):
                self.found(
                    f"a reference of {_shown(holder)}",
                    f"to object {_shown(key)} is in no index",
                    lambda key=key, holder=holder: self.put("held", holder, key),  # type: ignore[misc]
                )
            found = cursor.next()
        for holder, key in self.txn.cursor(db=self.databases["held"]):
            self.go_on()
            if not any(name == holder for name, _ in self._references(key)):
                self.found(
                    f"holder {_shown(holder)}",
                    f"is said to have object {_shown(key)}, and has no reference to it",
                    lambda key=key, holder=holder: self.delete("held", holder, key),  # type: ignore[misc]
                )
        for holder, ttl in self.txn.cursor(db=self.databases["silent"]):
            if len(ttl) != _TTL.size:
                self.found(
                    f"holder {_shown(holder)}",
                    "may be silent for a time that is none",
                    lambda holder=holder: self.delete("silent", holder),  # type: ignore[misc]
                )

    def _has(self, name: str, key: bytes, value: bytes) -> bool:
        cursor = self.txn.cursor(db=self.databases[name])
        return cursor.set_range_dup(key, value) and cursor.key() == key and cursor.value() == value

    def _look_at_expiry(self) -> None:
        for entry, _ in self.txn.cursor(db=self.databases["expiry"]):
            self.go_on()
            record = self._record(entry[_DUE.size :]) if len(entry) > _DUE.size else None
            due = record.stat.expires_at if record else None
            if due is None or _DUE.pack(due) != entry[: _DUE.size]:
                self.found(
                    f"a time to live of object {_shown(entry[_DUE.size :])}",
                    "is not the object's",
                    lambda entry=entry: self.delete("expiry", entry),  # type: ignore[misc]
                )

    def _look_at_deletions(self) -> None:
        """``deleted`` has version and order by key, ``deletions`` the key by order."""
        latest = 0
        for key, raw in self.txn.cursor(db=self.databases["deleted"]):
            self.go_on()
            if len(raw) != _DELETED.size:
                self.found(
                    f"the deletion of {_shown(key)}",
                    "is damaged",
                    lambda key=key: self.delete("deleted", key),  # type: ignore[misc]
                )
                continue
            order = _DELETED.unpack(raw)[1]
            latest = max(latest, order)
            if self.get("deletions", _ORDER.pack(order)) != key:
                self.found(
                    f"the deletion of {_shown(key)}",
                    "is in no order",
                    lambda key=key, order=order: self.put("deletions", _ORDER.pack(order), key),  # type: ignore[misc]
                )
        for place, key in self.txn.cursor(db=self.databases["deletions"]):
            self.go_on()
            known = self.get("deleted", key)
            if known is None or len(known) != _DELETED.size or known[8:] != place[::-1]:
                self.found(
                    f"the deletion of {_shown(key)}",
                    "is remembered in the order, and not by itself",
                    lambda place=place: self.delete("deletions", place),  # type: ignore[misc]
                )
        self.check_number(b"deleted", least=latest)

    def _record(self, key: bytes) -> Record | None:
        raw = self.get("objects", key) if 0 < len(key) <= 500 else None
        try:
            return None if raw is None else unpack(key.decode(), raw)
        except (StoreCorruptError, UnicodeDecodeError):
            return None


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="replace"))
