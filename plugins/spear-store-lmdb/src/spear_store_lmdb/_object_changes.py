"""What one write transaction does to objects. Runs on the writer's thread."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import attrs

from spear_core.api import (
    CheckObject,
    ObjectChange,
    ObjectChanges,
    ObjectOperation,
    ObjectStat,
    PutObject,
)
from spear_core.errors import InvalidRequestError, ObjectNotFoundError, StoreFullError
from spear_core.stores import Versions, check_object_key, object_as_expected, object_conflict

from ._environment import Environment, Transaction
from ._records import Record, pack, unpack, value_of
from ._references import References

__all__ = ["DATABASES", "Changes", "Ended", "Kept", "Prepared", "full"]

DATABASES = {
    "objects": False,
    "blobs": False,
    "expiry": False,
    "refs": True,
    "held": True,
    "silent": False,
    "deleted": False,
    "deletions": False,
}

_DUE = struct.Struct(">d")
_DELETED = struct.Struct("<QQ")
_ORDER = struct.Struct(">Q")

_DELETED_KEYS = 100_000
"""So many of the keys deleted last have their versions remembered."""


Kept: TypeAlias = tuple[Record, bytes]
"""A record, and its bytes with an inline value."""


@attrs.frozen
class Ended:
    """A version that a change has ended."""

    kept: Kept
    revision: int

    def tell(self, whom: Callable[..., None]) -> None:
        """Call a method of :class:`~spear_core.stores.Versions` with it."""
        stat = self.kept[0].stat
        whom(
            stat.key, stat.version, self.kept,
            written=stat.revision, ended=self.revision, size=stat.size,
        )  # fmt: skip


@attrs.frozen
class Prepared:
    """A value on its way: inline, or in a file already."""

    size: int
    sha256: str
    value: bytes = b""
    blob: str = ""


class Changes:
    """The changes of one call, within a transaction that may hold others' too.

    It checks everything before it changes anything.
    """

    def __init__(
        self, environment: Environment, txn: Transaction, versions: Versions[Kept]
    ) -> None:
        self._environment = environment
        self._txn = txn
        self._versions = versions
        self._references = References(environment)
        self._numbers: dict[bytes, int] = {}
        self._done: list[ObjectChange] = []
        self.ended: list[Ended] = []
        """Versions that are not current any more, once this is committed."""

    # ---- values

    def transact(
        self, operations: Sequence[ObjectOperation], prepared: dict[str, Prepared], limit: int
    ) -> tuple[ObjectStat | None, ...]:
        """See :meth:`spear_core.api.ObjectStore.transact`; ``prepared`` has the values by key."""
        found = {op.key: self._get(op.key) for op in operations}
        for operation in operations:
            record, _ = found[operation.key]
            stat = record.stat if record else None
            if operation.expect is not None and not object_as_expected(stat, operation.expect):
                raise object_conflict(operation.key, stat, operation.expect)
            if stat is None and operation.expect is None and not isinstance(operation, PutObject):
                raise _not_found(operation.key)
        self._check_room(found, prepared, limit)
        revision = self._number(b"revision") + 1
        after: list[ObjectStat | None] = []
        for operation in operations:
            record, raw = found[operation.key]
            if isinstance(operation, PutObject):
                old = (record, raw) if record else None
                after.append(self._put(operation, prepared[operation.key], old, revision))
            elif isinstance(operation, CheckObject):
                after.append(record.stat if record else None)
            else:
                if record is not None:
                    self._remove(record, raw)
                after.append(None)
        return tuple(after)

    def _check_room(
        self,
        found: dict[str, tuple[Record | None, bytes]],
        prepared: dict[str, Prepared],
        limit: int,
    ) -> None:
        used = self._number(b"used")
        more = sum(new.size for new in prepared.values())
        records = (found[key][0] for key in prepared)
        less = sum(record.stat.size for record in records if record)
        if used - less + more > limit:
            raise full(prepared, more, limit=limit, used=used)

    def _put(
        self, operation: PutObject, new: Prepared, kept: Kept | None, revision: int
    ) -> ObjectStat:
        now = time.time()
        old = kept[0] if kept else None
        version = old.stat.version if old else self._forget_deletion(operation.key.encode())
        stat = ObjectStat(
            key=operation.key,
            size=new.size,
            version=version + 1,
            revision=revision,
            sha256=new.sha256,
            created_at=old.stat.created_at if old else now,
            updated_at=now,
            content_type=operation.content_type,
            refs=old.stat.refs if old else 0,
            pinned=old.stat.pinned if old else False,
            expires_at=None if operation.ttl is None else now + operation.ttl,
        )
        if kept is not None:
            self._drop_value(*kept)
        self._add_number(b"used", new.size)
        key = operation.key.encode()
        if new.blob:
            self._txn.put(bytes.fromhex(new.blob), key, db=self._environment["blobs"])
        if stat.expires_at is not None:
            self._txn.put(_DUE.pack(stat.expires_at) + key, b"", db=self._environment["expiry"])
        self._store(Record(stat, new.blob), new.value)
        self._done.append(ObjectChange(key=operation.key, now=stat))
        return stat

    def _drop_value(self, old: Record, raw: bytes) -> None:
        """The version is not current any more: its file, its time to live, its room."""
        key = old.stat.key.encode()
        ended = Ended((old, raw), self._number(b"revision") + 1)
        ended.tell(self._versions.note)  # snapshots find it there as soon as it is committed
        self.ended.append(ended)
        if old.blob:
            self._txn.delete(bytes.fromhex(old.blob), db=self._environment["blobs"])
        if old.stat.expires_at is not None:
            self._txn.delete(_DUE.pack(old.stat.expires_at) + key, db=self._environment["expiry"])
        self._add_number(b"used", -old.stat.size)

    def _remove(self, old: Record, raw: bytes) -> None:
        key = old.stat.key.encode()
        self._drop_value(old, raw)
        self._txn.delete(key, db=self._environment["objects"])
        self._references.clear(self._txn, key)
        self._remember_deletion(key, old.stat.version)
        self._done.append(ObjectChange(key=old.stat.key, now=None))

    def _remember_deletion(self, key: bytes, version: int) -> None:
        order = self._add_number(b"deleted", 1)
        txn, deleted = self._txn, self._environment["deleted"]
        deletions = self._environment["deletions"]
        txn.put(key, _DELETED.pack(version, order), db=deleted)
        txn.put(_ORDER.pack(order), key, append=True, db=deletions)
        if txn.stat(deletions)["entries"] > _DELETED_KEYS:
            cursor = txn.cursor(db=deletions)
            cursor.first()
            forgotten = txn.pop(cursor.value(), db=deleted)
            assert forgotten is not None, "every deletion is in both"
            cursor.delete()
            floor = max(self._number(b"forgotten"), _DELETED.unpack(forgotten)[0])
            self._set_number(b"forgotten", floor)

    def _forget_deletion(self, key: bytes) -> int:
        """The last version that a key had, when there is no such object now."""
        found = self._txn.pop(key, db=self._environment["deleted"])
        if found is None:
            return self._number(b"forgotten")
        version, order = _DELETED.unpack(found)
        self._txn.delete(_ORDER.pack(order), db=self._environment["deletions"])
        return int(version)

    # ---- what keeps an object

    def add_ref(self, key: str, holder: bytes) -> ObjectStat:
        record, raw = self._there(key)
        count = self._references.count(self._txn, key.encode(), holder)
        self._references.set(self._txn, key.encode(), holder, count + 1)
        return self._change(record, raw, refs=record.stat.refs + 1)

    def remove_ref(self, key: str, holder: bytes) -> ObjectStat | None:
        self._there(key)
        count = self._references.count(self._txn, key.encode(), holder)
        if not count:
            whose = f" of {holder.decode()!r}" if holder else ""
            raise InvalidRequestError(f"object {key!r} has no reference{whose} to remove")
        return self._let_go(key, holder, count, 1)

    def _let_go(self, key: str, holder: bytes, has: int, less: int) -> ObjectStat | None:
        record, raw = self._there(key)
        self._references.set(self._txn, key.encode(), holder, has - less)
        refs = record.stat.refs - less
        if refs == 0 and not record.stat.pinned:
            self._remove(record, raw)
            return None
        return self._change(record, raw, refs=refs)

    def release(self, holder: bytes) -> int:
        self._txn.delete(holder, db=self._environment["silent"])
        total = 0
        for key in self._references.held_by(self._txn, holder):
            count = self._references.count(self._txn, key, holder)
            self._let_go(key.decode(), holder, count, count)
            total += count
        return total

    def pin(self, key: str) -> ObjectStat:
        record, raw = self._there(key)
        return self._change(record, raw, pinned=True)

    def unpin(self, key: str) -> ObjectStat | None:
        record, raw = self._there(key)
        if record.stat.pinned and record.stat.refs == 0:
            self._remove(record, raw)
            return None
        return self._change(record, raw, pinned=False)

    def collect_expired(self, limit: int) -> None:
        """Collect what has expired and nothing keeps, at most so many objects."""
        cursor = self._txn.cursor(db=self._environment["expiry"])
        due: list[bytes] = []
        for entry, _ in cursor:
            if len(due) == limit or _DUE.unpack_from(entry)[0] > time.time():
                break
            due.append(entry)
        for entry in due:
            self._txn.delete(entry, db=self._environment["expiry"])
            record, raw = self._get(entry[_DUE.size :].decode())
            if record and not record.stat.refs and not record.stat.pinned:
                self._remove(record, raw)

    # ---- parts

    def finish(self) -> ObjectChanges | None:
        """Give what was written or removed its revision, and write the counters."""
        revision = self._add_number(b"revision", 1) if self._done else 0
        for name, value in self._numbers.items():
            self._txn.put(name, b"%d" % value, db=self._environment["meta"])
        if not self._done:
            return None
        done = sorted(self._done, key=lambda change: change.key)
        return ObjectChanges(revision=revision, changes=tuple(done))

    def _get(self, key: str) -> tuple[Record | None, bytes]:
        raw = self._txn.get(key.encode(), db=self._environment["objects"])
        return (None, b"") if raw is None else (unpack(key, raw), raw)

    def _there(self, key: str) -> tuple[Record, bytes]:
        check_object_key(key)
        record, raw = self._get(key)
        if record is None:
            raise _not_found(key)
        return record, raw

    def _change(
        self, record: Record, raw: bytes, *, refs: int | None = None, pinned: bool | None = None
    ) -> ObjectStat:
        stat = attrs.evolve(
            record.stat,
            refs=record.stat.refs if refs is None else refs,
            pinned=record.stat.pinned if pinned is None else pinned,
        )
        self._store(attrs.evolve(record, stat=stat), b"" if record.blob else value_of(record, raw))
        return stat

    def _store(self, record: Record, value: bytes) -> None:
        key = record.stat.key.encode()
        self._txn.put(key, pack(record, value), db=self._environment["objects"])

    def _number(self, name: bytes) -> int:
        if name not in self._numbers:
            found = self._txn.get(name, db=self._environment["meta"])
            return int(found) if found is not None else 0
        return self._numbers[name]

    def _set_number(self, name: bytes, value: int) -> None:
        self._numbers[name] = value

    def _add_number(self, name: bytes, more: int) -> int:
        value = self._number(name) + more
        self._set_number(name, value)
        return value


def _not_found(key: str) -> ObjectNotFoundError:
    return ObjectNotFoundError(f"there is no object {key!r}")


def full(keys: Iterable[str], more: int, *, limit: int, used: int) -> StoreFullError:
    """What to raise when values of so many bytes do not fit."""
    return StoreFullError(
        f"writing {more} bytes to {', '.join(map(repr, keys))} would pass the store's "
        f"limit of {limit} bytes ({used} in use); delete objects, or raise "
        f"plugins.store-lmdb.objects_bytes"
    )
