"""The metadata store ``lmdb``.

What is, is in ``keys``. Every change of a revision has an entry in ``log`` with the key and what it
was before, and ``past`` says for each key which entries there are: so the value at a revision is
that of the first entry after it, or what is now.
"""

from __future__ import annotations

import heapq
import logging
import struct
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from spear_core.api import (
    Compare,
    DeleteKey,
    KeyChange,
    KeyChanges,
    KeyPage,
    KeyValue,
    Lease,
    MetadataChange,
    MetadataStore,
    PutKey,
    StoreBackup,
    StoreMaintenance,
    StoreReport,
    TransactionResult,
)
from spear_core.errors import (
    LeaseNotFoundError,
    StoreError,
    StoreFullError,
)
from spear_core.stores import (
    Deadlines,
    HistoryChannel,
    News,
    check_limit,
    check_metadata_key,
    check_transaction,
    check_ttl,
    compare_holds,
    past_revision,
)

from ._config import LmdbMetadataConfig
from ._environment import Environment, open_environment
from ._format1 import metadata_from_1
from ._metadata_maintenance import backup_metadata, check_metadata
from ._metadata_records import NUMBER, PLACE, logged, record_of, value_of
from ._transaction import Transaction

__all__ = ["LmdbMetadataStore", "open_metadata"]

_TTL = struct.Struct("<d")

_PAGE_BYTES = 4 << 20
"""A page of a range ends when its values pass this: reads are on trio's thread."""

_AGAIN = 1.0
"""Seconds until another attempt to end a lease that could not be ended."""

_DATABASES = {"keys": False, "log": False, "past": True, "leases": False, "leased": True}


@asynccontextmanager
async def open_metadata(
    folder: Path, config: LmdbMetadataConfig, log: logging.Logger
) -> AsyncGenerator[MetadataStore, None]:
    """The store of a folder, made if there is none."""
    async with open_environment(
        folder,
        kind="metadata",
        databases=_DATABASES,
        durable=config.metadata_durability == "system",
        migrations={1: metadata_from_1},
        log=log,
    ) as environment:
        store = LmdbMetadataStore(environment, config, log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            yield store
            nursery.cancel_scope.cancel()


class LmdbMetadataStore(MetadataStore, StoreMaintenance):
    """Keys in an environment. Leases end only while :meth:`run` does."""

    def __init__(
        self, environment: Environment, config: LmdbMetadataConfig, log: logging.Logger
    ) -> None:
        self._environment = environment
        self._max_bytes = config.metadata_bytes
        self._max_history = config.metadata_history
        self._log = log
        self._news = News()
        self._leases: dict[int, Lease] = {}
        self._deadlines: Deadlines[int] = Deadlines()
        with environment.reading() as txn:
            for key, value in txn.cursor(db=environment["leases"]):
                (lease_id,), (ttl,) = NUMBER.unpack(key), _TTL.unpack(value)
                self._granted(Lease(id=lease_id, ttl=ttl))

    async def run(self) -> None:
        """End leases when their time has come, until cancelled."""
        while True:
            lease_id = await self._deadlines.wait_next()
            lease = self._leases.pop(lease_id)
            try:
                await self._end(lease_id)
            except StoreError as exc:
                self._log.error("lease %s cannot be ended yet: %s", lease_id, exc)
                self._leases[lease_id] = lease
                self._deadlines.set(lease_id, _AGAIN)

    # ---- reading

    async def get(self, key: bytes, *, revision: int | None = None) -> KeyValue | None:
        check_metadata_key(key)
        await trio.lowlevel.checkpoint()
        with self._environment.reading() as txn:
            return self._at(txn, key, self._readable(txn, revision))

    async def range(
        self,
        prefix: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = 1000,
        revision: int | None = None,
    ) -> KeyPage:
        check_limit(limit)
        await trio.lowlevel.checkpoint()
        items: list[KeyValue] = []
        room = _PAGE_BYTES
        with self._environment.reading() as txn:
            revision = self._readable(txn, revision)
            for key in self._keys(
                txn, prefix, after, past=revision < self._number(txn, b"revision")
            ):
                if (found := self._at(txn, key, revision)) is None:
                    continue
                if len(items) == limit or room <= 0:
                    return KeyPage(items=tuple(items), next_key=items[-1].key, revision=revision)
                items.append(found)
                room -= len(found.value)
        return KeyPage(items=tuple(items), next_key=None, revision=revision)

    def _keys(
        self, txn: Transaction, prefix: bytes, after: bytes | None, *, past: bool
    ) -> Iterator[bytes]:
        """Keys that exist, and those that have a past too, each once, ascending."""
        names = ("keys", "past") if past else ("keys",)
        last = None
        for key in heapq.merge(*(self._walk(txn, name, prefix, after) for name in names)):
            if key != last:
                yield key
            last = key

    def _walk(
        self, txn: Transaction, name: str, prefix: bytes, after: bytes | None
    ) -> Iterator[bytes]:
        cursor = txn.cursor(db=self._environment[name])
        start = prefix if after is None else max(prefix, after)
        found = cursor.set_range(start) if start else cursor.first()
        if found and after is not None and cursor.key() == after:
            found = cursor.next_nodup()
        while found and (key := cursor.key()).startswith(prefix):
            yield key
            found = cursor.next_nodup()

    def _number(self, txn: Transaction, name: bytes) -> int:
        found = txn.get(name, db=self._environment["meta"])
        return int(found) if found is not None else 0

    def _set_number(self, txn: Transaction, name: bytes, value: int) -> None:
        txn.put(name, b"%d" % value, db=self._environment["meta"])

    def _readable(self, txn: Transaction, revision: int | None) -> int:
        current = self._number(txn, b"revision")
        if revision is None:
            return current
        past_revision(revision, compacted=self._number(txn, b"compacted"), current=current)
        return revision

    def _at(self, txn: Transaction, key: bytes, revision: int) -> KeyValue | None:
        """The key as it was after a revision that is not compacted."""
        cursor = txn.cursor(db=self._environment["past"])
        if cursor.set_range_dup(key, PLACE.pack(revision + 1, 0)) and cursor.key() == key:
            _, before = logged(txn.get(cursor.value(), db=self._environment["log"]))
            return before
        return value_of(key, txn.get(key, db=self._environment["keys"]))

    # ---- changing

    async def transact(
        self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
    ) -> TransactionResult:
        check_transaction(changes, compares)

        def work(txn: Transaction) -> TransactionResult:
            keys = self._environment["keys"]
            current = tuple(value_of(c.key, txn.get(c.key, db=keys)) for c in compares)
            held = all(map(compare_holds, compares, current))
            if held:
                self._check_leases(txn, changes)
                self._check_room(txn, changes)
                self._apply(txn, changes)
            revision = self._number(txn, b"revision")
            return TransactionResult(succeeded=held, revision=revision, current=current)

        return await self._environment.write(work, lambda result: self._news.tell())

    def _check_leases(self, txn: Transaction, changes: Sequence[MetadataChange]) -> None:
        for change in changes:
            if isinstance(change, PutKey) and change.lease:
                self._check_lease(txn, change.lease)

    def _check_lease(self, txn: Transaction, lease_id: int) -> None:
        known = 0 < lease_id < 1 << 64
        if not known or txn.get(NUMBER.pack(lease_id), db=self._environment["leases"]) is None:
            raise _no_lease(lease_id)

    def _check_room(self, txn: Transaction, changes: Sequence[MetadataChange]) -> None:
        more = sum(2 * len(c.key) + len(c.value) for c in changes if isinstance(c, PutKey))
        used = self._number(txn, b"used")
        if more and used + more > self._max_bytes:
            raise StoreFullError(
                f"writing {more} bytes would pass the metadata store's limit of {self._max_bytes} "
                f"bytes ({used} in use, with the history); compact it, delete keys, or raise "
                f"plugins.store-lmdb.metadata_bytes"
            )

    def _apply(self, txn: Transaction, changes: Sequence[MetadataChange]) -> None:
        """Make the changes at the next revision, if they are any."""
        revision = self._number(txn, b"revision") + 1
        used = 0
        number = 0
        for change in sorted(changes, key=lambda change: change.key):
            key = bytes(change.key)
            raw = txn.get(key, db=self._environment["keys"])
            before = value_of(key, raw)
            if isinstance(change, PutKey):
                used += self._write(txn, change, before, revision)
            elif before is None:
                continue
            else:
                txn.delete(key, db=self._environment["keys"])
            if before is not None and before.lease:
                self._unlease(txn, before, change)
            place = PLACE.pack(revision, number)
            txn.put(place, len(key).to_bytes(2, "big") + key + (raw or b""), append=True,
                    db=self._environment["log"])  # fmt: skip
            txn.put(key, place, db=self._environment["past"])
            used += len(key)
            number += 1
        if number:
            self._set_number(txn, b"revision", revision)
            self._set_number(txn, b"used", self._number(txn, b"used") + used)
            if revision - self._number(txn, b"compacted") >= self._max_history:
                self._compact(txn, revision - self._max_history + 1)

    def _write(
        self, txn: Transaction, change: PutKey, before: KeyValue | None, revision: int
    ) -> int:
        """Put the record of a key; how many bytes more are in use."""
        created = before.create_revision if before else revision
        version = before.version + 1 if before else 1
        key = bytes(change.key)
        item = KeyValue(
            key=key,
            value=change.value,
            create_revision=created,
            mod_revision=revision,
            version=version,
            lease=change.lease,
        )
        txn.put(key, record_of(item), db=self._environment["keys"])
        if change.lease:
            txn.put(NUMBER.pack(change.lease), key, db=self._environment["leased"])
        return len(key) + len(change.value)

    def _unlease(self, txn: Transaction, before: KeyValue, change: MetadataChange) -> None:
        if not (isinstance(change, PutKey) and change.lease == before.lease):
            leased = self._environment["leased"]
            txn.delete(NUMBER.pack(before.lease), before.key, db=leased)

    # ---- history

    @asynccontextmanager
    async def watch(
        self, prefix: bytes = b"", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[KeyChanges], None]:
        await trio.lowlevel.checkpoint()
        start = start_revision
        if start is None:
            with self._environment.reading() as txn:
                start = self._number(txn, b"revision") + 1
        self._next_change(prefix, start)
        channel = HistoryChannel(self._news, start, lambda place: self._next_change(prefix, place))
        try:
            yield channel
        finally:
            channel.close()

    def _next_change(self, prefix: bytes, place: int) -> tuple[KeyChanges | None, int]:
        with self._environment.reading() as txn:
            current = self._number(txn, b"revision")
            compacted = self._number(txn, b"compacted")
            past_revision(place, compacted=compacted, current=max(place, current))
            changes: list[KeyChange] = []
            revision = 0
            cursor = txn.cursor(db=self._environment["log"])
            found = cursor.set_range(PLACE.pack(place, 0))
            while found:
                at, _ = PLACE.unpack(cursor.key())
                if changes and at != revision:
                    break
                key, _ = logged(cursor.value())
                if key.startswith(prefix):
                    revision = at
                    changes.append(KeyChange(key=key, now=self._at(txn, key, at)))
                found = cursor.next()
        if changes:
            return KeyChanges(revision=revision, changes=tuple(changes)), revision + 1
        return None, max(place, current + 1)

    async def compact(self, revision: int) -> None:
        def work(txn: Transaction) -> None:
            oldest = self._number(txn, b"compacted") + 1
            past_revision(revision, compacted=oldest, current=self._number(txn, b"revision"))
            self._compact(txn, revision)

        await self._environment.write(work, lambda result: self._news.tell())

    def _compact(self, txn: Transaction, revision: int) -> None:
        """Forget how things were before that revision, but not which keys it changed."""
        freed = 0
        cursor = txn.cursor(db=self._environment["log"])
        found = cursor.first()
        while found:
            place = cursor.key()
            at, _ = PLACE.unpack(place)
            if at > revision:
                break
            key, before = logged(cursor.value())
            size = len(before.value) + len(key) if before else 0
            txn.delete(key, place, db=self._environment["past"])
            if at < revision:
                freed += size + len(key)
                found = cursor.delete()
            else:
                freed += size
                cursor.put(place, len(key).to_bytes(2, "big") + key)
                found = cursor.next()
        self._set_number(txn, b"used", self._number(txn, b"used") - freed)
        self._set_number(txn, b"compacted", revision)

    # ---- for operators

    async def backup(self, directory: Path) -> StoreBackup:
        await trio.lowlevel.checkpoint()
        return await backup_metadata(self._environment, directory)

    async def check(self, *, repair: bool = False) -> StoreReport:
        await trio.lowlevel.checkpoint()
        return await check_metadata(self._environment, repair=repair)

    # ---- leases

    async def grant_lease(self, ttl: float) -> Lease:
        check_ttl(ttl)

        def work(txn: Transaction) -> Lease:
            lease = Lease(id=self._number(txn, b"leases") + 1, ttl=ttl)
            self._set_number(txn, b"leases", lease.id)
            txn.put(NUMBER.pack(lease.id), _TTL.pack(ttl), db=self._environment["leases"])
            return lease

        return await self._environment.write(work, self._granted)

    def _granted(self, lease: Lease) -> None:
        self._leases[lease.id] = lease
        self._deadlines.set(lease.id, lease.ttl)

    async def keep_alive(self, lease_id: int) -> Lease:
        await trio.lowlevel.checkpoint()
        if lease_id not in self._leases:
            raise _no_lease(lease_id)
        self._deadlines.set(lease_id, self._leases[lease_id].ttl)
        return self._leases[lease_id]

    async def revoke_lease(self, lease_id: int) -> None:
        await self._end(lease_id)

    async def _end(self, lease_id: int) -> None:
        def work(txn: Transaction) -> None:
            self._check_lease(txn, lease_id)
            name = NUMBER.pack(lease_id)
            cursor = txn.cursor(db=self._environment["leased"])
            keys = list(cursor.iternext_dup()) if cursor.set_key(name) else []
            txn.delete(name, db=self._environment["leases"])
            self._apply(txn, [DeleteKey(key=key) for key in keys])

        await self._environment.write(work, lambda result: self._ended(lease_id))

    def _ended(self, lease_id: int) -> None:
        self._leases.pop(lease_id, None)
        self._deadlines.discard(lease_id)
        self._news.tell()


def _no_lease(lease_id: int) -> LeaseNotFoundError:
    return LeaseNotFoundError(f"there is no lease {lease_id}: it has ended, or never was")
