"""The object store ``lmdb``."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import TypeVar

import attrs
import lmdb
import trio

from spear_core.api import (
    OCTETS,
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectSnapshot,
    ObjectStat,
    ObjectStore,
    ObjectView,
    ObjectWriter,
    PutObject,
    StoreBackup,
    StoreMaintenance,
    StoreReport,
    StoreUsage,
)
from spear_core.errors import StoreError, StoreFullError
from spear_core.stores import (
    Deadlines,
    History,
    Picture,
    Versions,
    check_holder,
    check_limit,
    check_operations,
    check_size,
    check_ttl,
)

from ._blobs import Blobs, opened_blobs
from ._config import LmdbObjectsConfig
from ._environment import Environment, open_environment
from ._format1 import objects_from_1
from ._new_values import NewValues, held_source
from ._object_changes import DATABASES, Changes, Done, Prepared, full
from ._object_maintenance import (
    backup_objects,
    check_objects,
    foreign,
    orphans,
    remove_orphans,
    repair_objects,
    stray_files,
)
from ._object_reader import ObjectReader
from ._object_snapshot import Snapshot, page_of
from ._object_writer import Writer
from ._records import Record, blob_of, stat_of, unpack
from ._references import References
from ._transaction import Transaction
from ._verified import VerifiedValues

__all__ = ["LmdbObjectStore", "open_objects"]

T = TypeVar("T")

_EXPIRED_AT_ONCE = 100
_LONGEST_SLEEP = 60.0
"""Seconds. Times to live are by the wall clock, which may be set meanwhile."""

_AGAIN = 1.0
"""Seconds until another attempt at what the disk did not let us do."""

_DUE = struct.Struct(">d")
_TTL = struct.Struct("<d")


@asynccontextmanager
async def open_objects(
    folder: Path, config: LmdbObjectsConfig, log: logging.Logger, *, checking: bool = False
) -> AsyncGenerator[ObjectStore, None]:
    """The store of a folder, made if there is none. Removes files that a crash has left.

    :param checking: remove nothing, what has expired neither.
    """
    durable = config.objects_durability == "system"
    async with open_environment(
        folder,
        kind="objects",
        databases=DATABASES,
        durable=durable,
        migrations={1: objects_from_1},
        log=log,
    ) as environment:
        with opened_blobs(
            folder / "blobs",
            durable=durable,
            recycle_bytes=config.recycle_bytes,
            later=environment.later,
        ) as blobs:
            store = LmdbObjectStore(environment, blobs, config, log)
            if checking:
                yield store
                return
            store.sweep()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.collect_expired)
                nursery.start_soon(store.release_silent)
                nursery.start_soon(blobs.give_back)
                yield store
                nursery.cancel_scope.cancel()


class LmdbObjectStore(ObjectStore, StoreMaintenance):
    """Objects in an environment, with their large values in files.

    Times to live and silent holders count only while :meth:`collect_expired` and
    :meth:`release_silent` run.
    """

    def __init__(
        self, environment: Environment, blobs: Blobs, config: LmdbObjectsConfig, log: logging.Logger
    ) -> None:
        self._environment = environment
        self._begin = environment.reading
        self._objects = environment["objects"]
        self.blobs = blobs
        self.config = config
        self._log = log
        self.versions: Versions[bytes] = Versions(limit=config.snapshot_bytes, drop=self._drop)
        self.reader = ObjectReader(environment, self.versions)
        self.reserved = 0
        self.threads = trio.CapacityLimiter(4)
        self._values = NewValues(blobs, inline_bytes=config.inline_bytes, threads=self.threads)
        self._references = References(environment)
        self._verified = VerifiedValues()
        self._sooner = trio.Event()
        self._silent: Deadlines[str] = Deadlines()
        with environment.reading() as txn:
            self._history = History(self.reader.revision(txn), Done.changes)
            for holder, ttl in txn.cursor(db=environment["silent"]):
                if len(ttl) == _TTL.size:  # else a check tells
                    self._silent.set(holder.decode(), _TTL.unpack(ttl)[0])

    @property
    def batches(self) -> int:
        """Commits so far; each is one flush to disk at most."""
        return self._environment.batches

    def sweep(self) -> None:
        """Remove the files that a crash has left."""
        with self._environment.reading() as txn:
            known = self._environment["blobs"]

            def is_known(name: str) -> bool:
                try:
                    return txn.get(bytes.fromhex(name), db=known) is not None
                except ValueError:
                    return True  # none of ours

            if removed := self.blobs.sweep(is_known):
                self._log.info("removed %s files of objects that were never written", removed)

    # ---- values

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        check_operations(operations)
        prepared: dict[str, Prepared] = {}
        for operation in operations:
            if isinstance(operation, PutObject):
                if (new := self._values.inline(operation)) is None:
                    return await self._transact_files(operations)
                prepared[operation.key] = new
        return await self.apply(operations, prepared)

    async def _transact_files(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        prepared: dict[str, Prepared] = {}
        done = False
        with ExitStack() as held:
            puts = [
                (operation, held.enter_context(held_source(operation.value)))
                for operation in operations
                if isinstance(operation, PutObject)
            ]
            try:
                for operation, source in puts:
                    prepared[operation.key] = await self._values.prepare(operation, source)
                stats = await self.apply(operations, prepared)
                done = True
                return stats
            finally:
                for new in prepared.values():
                    if new.blob and not done:
                        self.blobs.remove(new.blob)

    async def apply(
        self,
        operations: Sequence[ObjectOperation],
        prepared: dict[str, Prepared],
        *,
        room: int = 0,
    ) -> tuple[ObjectStat | None, ...]:
        """:param room: bytes that are reserved for just these values."""
        limit = self.config.objects_bytes - self.reserved + room
        stats = await self._change(lambda c: c.transact(operations, prepared, limit))
        for new in prepared.values():
            if new.blob:
                self.blobs.settle(new.blob)
        return stats

    @asynccontextmanager
    async def create(
        self,
        key: str,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
        size: int | None = None,
    ) -> AsyncGenerator[ObjectWriter, None]:
        operation = PutObject(
            key=key, value=b"", expect=expect, content_type=content_type, ttl=ttl, hashed=hashed
        )
        check_operations([operation])
        check_size(size)
        await trio.lowlevel.checkpoint()
        writer = Writer(self, operation, size)
        try:
            yield writer
        finally:
            writer.close()

    def check_more(self, more: int, key: str) -> None:
        """Whether a value of so many bytes may take the place of what the key has."""
        with self._environment.reading() as txn:
            used = int(txn.get(b"used", b"0", db=self._environment["meta"])) + self.reserved
            raw = txn.get(key.encode(), db=self._objects)
        less = unpack(key, raw).stat.size if raw is not None else 0
        limit = self.config.objects_bytes
        if used - less + more > limit:
            raise full([key], more, limit=limit, used=used)

    async def usage(self) -> StoreUsage:
        await trio.lowlevel.checkpoint()
        with self._environment.reading() as txn:
            used = int(txn.get(b"used", b"0", db=self._environment["meta"]))
            objects = txn.stat(self._objects)["entries"]
        limit = self.config.objects_bytes
        return StoreUsage(objects=objects, bytes=used + self.reserved, limit_bytes=limit)

    @asynccontextmanager
    async def open(
        self, key: str, *, version: int | None = None
    ) -> AsyncGenerator[ObjectView, None]:
        await trio.lowlevel.checkpoint()
        with self.shown(*self.reader.find(key, version)) as view:
            yield view

    @contextmanager
    def shown(self, record: Record, raw: bytes) -> Iterator[ObjectView]:
        stat = record.stat
        with self.versions.viewing(stat.key, stat.version, raw):
            if record.blob:
                with self.blobs.mapped(record.blob, stat) as view:
                    yield view
                return
            data = self._verified.view(stat.key.encode(), raw)
            assert data is not None, "it is inline"
            try:
                yield ObjectView(stat=stat, data=data)
            finally:
                with suppress(BufferError):  # an array over it lives on
                    data.release()

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[ObjectSnapshot, None]:
        opened: list[Picture] = []

        def work(txn: Transaction) -> None:
            # between two writes, so that the next one knows of it; more than once, perhaps
            revision = self._environment.numbers.get(txn, b"revision")
            opened.append(self.versions.open_picture(revision))

        try:
            await self._environment.write(work)
            yield Snapshot(self, opened[-1])
        finally:
            for picture in opened:
                self.versions.close_picture(picture)

    async def get(self, key: str, *, version: int | None = None) -> tuple[ObjectStat, bytes]:
        await trio.lowlevel.checkpoint()
        return await self.copied(*self.reader.find(key, version))

    async def copied(self, record: Record, raw: bytes) -> tuple[ObjectStat, bytes]:
        if not record.blob:
            value = self._verified.value(record.stat.key.encode(), raw)
            assert value is not None, "it is inline"
            return record.stat, value
        with self.shown(record, raw) as view:
            # the thread ends before the block does
            value = await trio.to_thread.run_sync(bytes, view.data, limiter=self.threads)
        return record.stat, value

    def get_nowait(self, key: str) -> bytes:
        try:
            encoded = key.encode()
            with self._begin() as txn:
                raw = txn.get(encoded, db=self._objects)
            value = None if raw is None else self._verified.value(encoded, raw)
        except (lmdb.Error, UnicodeEncodeError, IndexError, struct.error):
            value = None
        if value is None:
            self.reader.read(key)  # says what is wrong, if anything is
            raise trio.WouldBlock
        return value

    async def stat(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return stat_of(key, self.reader.raw(key))

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        check_limit(limit)
        await trio.lowlevel.checkpoint()
        with self.reader.walking(prefix, after) as (walk, revision):
            found = (stat_of(name, raw, key) for name, key, raw in walk)
            return page_of(found, limit, revision)

    # ---- what keeps an object

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        name = check_holder(holder)
        return await self._change(lambda changes: changes.add_ref(key, name))

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        name = check_holder(holder)
        return await self._change(lambda changes: changes.remove_ref(key, name))

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        await trio.lowlevel.checkpoint()
        self.reader.read(key)
        silent = self._environment["silent"]
        with self._environment.reading() as txn:
            found = []
            for name, refs in self._references.of(txn, key.encode()):
                ttl = txn.get(name, db=silent) if name else None
                seconds = None if ttl is None else _TTL.unpack(ttl)[0]
                found.append(ObjectHolder(name=name.decode(), refs=refs, ttl=seconds))
        return tuple(sorted(found, key=lambda holder: holder.name))

    async def keep_alive(self, holder: str, ttl: float) -> None:
        name = check_holder(holder, named=True)
        check_ttl(ttl)
        silent, told = self._environment["silent"], _TTL.pack(ttl)
        with self._environment.reading() as txn:
            known = holder in self._silent and txn.get(name, db=silent) == told
        if known:  # as nearly always: nothing to write
            await trio.lowlevel.checkpoint()
            self._silent.set(holder, ttl)
            return

        def work(txn: Transaction) -> None:
            txn.put(name, told, db=silent)

        await self._environment.write(work, lambda result: self._silent.set(holder, ttl))

    async def release(self, holder: str) -> int:
        name = check_holder(holder, named=True)
        count = await self._change(lambda changes: changes.release(name))
        self._silent.discard(holder)
        return count

    async def pin(self, key: str) -> ObjectStat:
        return await self._change(lambda changes: changes.pin(key))

    async def unpin(self, key: str) -> ObjectStat | None:
        return await self._change(lambda changes: changes.unpin(key))

    # ---- in the background

    async def collect_expired(self) -> None:
        """Collect objects when their time is over, until cancelled."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_after(self._next_expiry()):
                await self._sooner.wait()
                continue
            try:
                await self._change(lambda changes: changes.collect_expired(_EXPIRED_AT_ONCE))
            except StoreError as exc:
                self._log.error("expired objects cannot be collected yet: %s", exc)
                await trio.sleep(_AGAIN)

    def _next_expiry(self) -> float:
        """Seconds until the next object expires."""
        with self._environment.reading() as txn:
            cursor = txn.cursor(db=self._environment["expiry"])
            if not cursor.first():
                return _LONGEST_SLEEP
            due: float = _DUE.unpack_from(cursor.key())[0]
        return min(max(0.0, due - time.time()), _LONGEST_SLEEP)

    async def release_silent(self) -> None:
        """Release holders that are silent for too long, until cancelled."""
        while True:
            holder = await self._silent.wait_next()
            try:
                await self.release(holder)
            except StoreError as exc:
                self._log.error("silent holder %r cannot be released yet: %s", holder, exc)
                self._silent.set(holder, _AGAIN)

    # ---- for operators

    async def backup(self, directory: Path) -> StoreBackup:
        await trio.lowlevel.checkpoint()
        return await backup_objects(self._environment, self.blobs, directory)

    async def check(self, *, repair: bool = False) -> StoreReport:
        await trio.lowlevel.checkpoint()
        report, damaged = await check_objects(self._environment, self.blobs)
        if repair and report.problems:
            report = attrs.evolve(await self._repair(damaged), bytes=report.bytes)
        names = await trio.to_thread.run_sync(self.blobs.names, limiter=self.threads)
        strays = await stray_files(names, self.reader, self.blobs, self._history)
        if repair:
            remove_orphans(self.blobs, strays)
        others = await trio.to_thread.run_sync(self.blobs.foreign, limiter=self.threads)
        problems = (*report.problems, *orphans(strays, repaired=repair), *foreign(others))
        return attrs.evolve(report, problems=problems)

    async def _repair(self, damaged: Mapping[str, str]) -> StoreReport:
        def work(txn: Transaction) -> tuple[StoreReport, Done | None, int]:
            self._environment.numbers.write(txn)
            report, removed = repair_objects(txn, self._environment, self.blobs, damaged)
            return report, removed, self.reader.revision(txn)

        def after(result: tuple[StoreReport, Done | None, int]) -> None:
            _, removed, self._history.revision = result
            if removed is not None:
                self._history.add(removed)

        report, _, _ = await self._environment.write(work, after)
        return report

    # ---- history

    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[ObjectChanges]]:
        return self._history.watch(prefix, start_revision)

    # ---- parts

    def _drop(self, raw: bytes) -> None:
        """Nobody can see that version any more."""
        if blob := blob_of(raw):
            self.blobs.remove(blob)

    async def _change(self, what: Callable[[Changes], T]) -> T:
        """Do it in a transaction, then tell those who watch and remove what nobody needs."""

        def work(txn: Transaction) -> tuple[T, Changes, Done | None]:
            changes = Changes(self._environment, txn, self.versions, self._references)
            result = what(changes)
            return result, changes, changes.finish()

        def after(result: tuple[T, Changes, Done | None]) -> None:
            _, changes, done = result
            for ended in changes.ended:
                if not self.versions.idle:
                    ended.tell(self.versions.supersede)
                elif blob := ended.head.blob_name:
                    self.blobs.remove(blob)
            if done is not None:
                self._history.add(done)
                if any(now is not None and now.expires_at for _, now in done.objects):
                    self._sooner.set()

        try:
            result, _, _ = await self._environment.write(work, after)
        except StoreFullError as exc:
            # not a limit, but the disk, on which files may wait for other values
            if exc.__cause__ is None or not self.blobs.make_room():
                raise
            result, _, _ = await self._environment.write(work, after)
        return result
