"""What one write transaction does to objects. Runs on the writer's thread."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import attrs

from spear_core.api import (
    CheckObject,
    ObjectChange,
    ObjectChanges,
    ObjectOperation,
    ObjectStat,
    PutObject,
)
from spear_core.errors import (
    InvalidRequestError,
    ObjectNotFoundError,
    StoreCorruptError,
    StoreFullError,
)
from spear_core.stores import Versions, check_object_key, object_as_expected, object_conflict

from ._environment import Environment
from ._records import Head, head_of, pack, unpack, value_of
from ._references import References
from ._transaction import Transaction

__all__ = ["DATABASES", "Changes", "Done", "Ended", "Prepared", "full"]

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


class Ended(NamedTuple):
    """A version that a change has ended."""

    key: str
    head: Head
    raw: bytes
    revision: int

    def tell(self, whom: Callable[..., None]) -> None:
        """Call a method of :class:`~spear_core.stores.Versions` with it."""
        head = self.head
        whom(
            self.key, head.version, self.raw,
            written=head.revision, ended=self.revision, size=head.size,
        )  # fmt: skip


class Prepared(NamedTuple):
    """A value on its way: inline, or in a file already."""

    size: int
    sha256: str
    value: bytes = b""
    blob: str = ""


class Found(NamedTuple):
    """A record that is there."""

    key: str
    head: Head
    raw: bytes


class Done(NamedTuple):
    """What one revision did; not every one is ever looked at."""

    revision: int
    objects: list[tuple[str, ObjectStat | None]]

    def changes(self, prefix: str) -> ObjectChanges | None:
        """It, as far as keys with that prefix are concerned."""
        found = sorted(
            (ObjectChange(key=key, now=now) for key, now in self.objects if key.startswith(prefix)),
            key=lambda change: change.key,
        )
        return ObjectChanges(revision=self.revision, changes=tuple(found)) if found else None


class Changes:
    """The changes of one call, within a transaction that may hold others' too.

    It checks everything before it changes anything.
    """

    __slots__ = (
        "_done",
        "_environment",
        "_objects",
        "_references",
        "_revision",
        "_txn",
        "_versions",
        "ended",
    )

    def __init__(
        self,
        environment: Environment,
        txn: Transaction,
        versions: Versions[bytes],
        references: References,
    ) -> None:
        self._environment = environment
        self._objects = environment["objects"]
        self._txn = txn
        self._versions = versions
        self._references = references
        self._revision = environment.numbers.get(txn, b"revision") + 1
        self._done: list[tuple[str, ObjectStat | None]] = []
        self.ended: list[Ended] = []
        """Versions that are not current any more, once this is committed."""

    # ---- values

    def transact(
        self, operations: Sequence[ObjectOperation], prepared: dict[str, Prepared], limit: int
    ) -> tuple[ObjectStat | None, ...]:
        """See :meth:`spear_core.api.ObjectStore.transact`; ``prepared`` has the values by key."""
        found: dict[str, Found | None] = {}
        for operation in operations:
            found[operation.key] = here = self._find(operation.key)
            if operation.expect is not None:
                stat = None if here is None else unpack(operation.key, here.raw).stat
                if not object_as_expected(stat, operation.expect):
                    raise object_conflict(operation.key, stat, operation.expect)
            elif here is None and not isinstance(operation, PutObject):
                raise _not_found(operation.key)
        self._check_room(found, prepared, limit)
        after: list[ObjectStat | None] = []
        for operation in operations:
            here = found[operation.key]
            if isinstance(operation, PutObject):
                after.append(self._put(operation, prepared[operation.key], here))
            elif isinstance(operation, CheckObject):
                after.append(None if here is None else unpack(operation.key, here.raw).stat)
            else:
                if here is not None:
                    self._remove(here)
                after.append(None)
        return tuple(after)

    def _check_room(
        self, found: dict[str, Found | None], prepared: dict[str, Prepared], limit: int
    ) -> None:
        used = self._number(b"used")
        more = less = 0
        for key, new in prepared.items():
            here = found[key]
            more += new.size
            less += here.head.size if here is not None else 0
        if used - less + more > limit:
            raise full(prepared, more, limit=limit, used=used)

    def _put(self, operation: PutObject, new: Prepared, here: Found | None) -> ObjectStat:
        now = time.time()
        key = operation.key.encode()
        head = here.head if here is not None else None
        stat = ObjectStat(
            key=operation.key,
            size=new.size,
            version=(head.version if head is not None else self._forget_deletion(key)) + 1,
            revision=self._revision,
            sha256=new.sha256,
            created_at=head.created_at if head is not None else now,
            updated_at=now,
            content_type=operation.content_type,
            refs=head.refs if head is not None else 0,
            pinned=head.pinned if head is not None else False,
            expires_at=None if operation.ttl is None else now + operation.ttl,
        )
        if here is not None:
            self._drop_value(here)
        self._add_number(b"used", new.size)
        if new.blob:
            self._txn.put(bytes.fromhex(new.blob), key, db=self._environment["blobs"])
        if stat.expires_at is not None:
            self._txn.put(_DUE.pack(stat.expires_at) + key, b"", db=self._environment["expiry"])
        self._txn.put(key, pack(stat, new.blob, new.value), db=self._objects)
        self._done.append((operation.key, stat))
        return stat

    def _drop_value(self, here: Found) -> None:
        """The version is not current any more: its file, its time to live, its room."""
        head = here.head
        ended = Ended(here.key, head, here.raw, self._revision)
        if not self._versions.idle:
            ended.tell(self._versions.note)  # snapshots find it there as soon as it is committed
        self.ended.append(ended)
        if blob := head.blob_name:
            self._txn.delete(bytes.fromhex(blob), db=self._environment["blobs"])
        if head.expires_at:
            entry = _DUE.pack(head.expires_at) + here.key.encode()
            self._txn.delete(entry, db=self._environment["expiry"])
        self._add_number(b"used", -head.size)

    def _remove(self, here: Found) -> None:
        key = here.key.encode()
        self._drop_value(here)
        self._txn.delete(key, db=self._objects)
        self._references.clear(self._txn, key)
        self._remember_deletion(key, here.head.version)
        self._done.append((here.key, None))

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
        here = self._there(key)
        count = self._references.count(self._txn, key.encode(), holder)
        self._references.set(self._txn, key.encode(), holder, count + 1)
        return self._change(here, refs=here.head.refs + 1)

    def remove_ref(self, key: str, holder: bytes) -> ObjectStat | None:
        here = self._there(key)
        count = self._references.count(self._txn, key.encode(), holder)
        if not count:
            whose = f" of {holder.decode()!r}" if holder else ""
            raise InvalidRequestError(f"object {key!r} has no reference{whose} to remove")
        return self._let_go(here, holder, count, 1)

    def _let_go(self, here: Found, holder: bytes, has: int, less: int) -> ObjectStat | None:
        self._references.set(self._txn, here.key.encode(), holder, has - less)
        refs = here.head.refs - less
        if refs == 0 and not here.head.pinned:
            self._remove(here)
            return None
        return self._change(here, refs=refs)

    def release(self, holder: bytes) -> int:
        self._txn.delete(holder, db=self._environment["silent"])
        total = 0
        for key in self._references.held_by(self._txn, holder):
            count = self._references.count(self._txn, key, holder)
            self._let_go(self._there(key.decode()), holder, count, count)
            total += count
        return total

    def pin(self, key: str) -> ObjectStat:
        return self._change(self._there(key), pinned=True)

    def unpin(self, key: str) -> ObjectStat | None:
        here = self._there(key)
        if here.head.pinned and here.head.refs == 0:
            self._remove(here)
            return None
        return self._change(here, pinned=False)

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
            with suppress(StoreCorruptError):  # a check tells; the others need not wait for it
                here = self._find(entry[_DUE.size :].decode())
                if here and not here.head.refs and not here.head.pinned:
                    self._remove(here)

    # ---- parts

    def finish(self) -> Done | None:
        """Give what was written or removed its revision."""
        if not self._done:
            return None
        self._environment.numbers.set(b"revision", self._revision)
        return Done(self._revision, self._done)

    def _find(self, key: str) -> Found | None:
        encoded = key.encode()
        raw = self._txn.get(encoded, db=self._objects)
        return None if raw is None else Found(key, head_of(encoded, raw), raw)

    def _there(self, key: str) -> Found:
        check_object_key(key)
        here = self._find(key)
        if here is None:
            raise _not_found(key)
        return here

    def _change(
        self, here: Found, *, refs: int | None = None, pinned: bool | None = None
    ) -> ObjectStat:
        record = unpack(here.key, here.raw)
        stat = attrs.evolve(
            record.stat,
            refs=record.stat.refs if refs is None else refs,
            pinned=record.stat.pinned if pinned is None else pinned,
        )
        value = b"" if record.blob else value_of(record, here.raw)
        self._txn.put(here.key.encode(), pack(stat, record.blob, value), db=self._objects)
        return stat

    def _number(self, name: bytes) -> int:
        return self._environment.numbers.get(self._txn, name)

    def _set_number(self, name: bytes, value: int) -> None:
        self._environment.numbers.set(name, value)

    def _add_number(self, name: bytes, more: int) -> int:
        value = self._environment.numbers.get(self._txn, name) + more
        self._environment.numbers.set(name, value)
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
