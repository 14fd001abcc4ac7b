"""The object store ``lmdb``."""

from __future__ import annotations

import hashlib
import itertools
import logging
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import lmdb
import trio

from spear_core.api import (
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectStat,
    ObjectStore,
    ObjectView,
    PutObject,
)
from spear_core.errors import ObjectNotFoundError, StoreError
from spear_core.stores import (
    Deadlines,
    HistoryChannel,
    News,
    check_holder,
    check_limit,
    check_object_key,
    check_operations,
    check_ttl,
    past_revision,
)

from ._blobs import Blobs
from ._config import LmdbObjectsConfig
from ._environment import Environment, Transaction, open_environment
from ._object_changes import DATABASES, Changes, Prepared
from ._records import Record, inline_value, unpack, value_of
from ._references import References

__all__ = ["LmdbObjectStore", "open_objects"]

T = TypeVar("T")

_HISTORY = 10_000
"""Revisions that a watch can begin at; they are kept in memory only."""

_EXPIRED_AT_ONCE = 100
_LONGEST_SLEEP = 60.0
"""Seconds. Times to live are by the wall clock, which may be set meanwhile."""

_AGAIN = 1.0
"""Seconds until another attempt at what the disk did not let us do."""

_DUE = struct.Struct(">d")
_TTL = struct.Struct("<d")


@asynccontextmanager
async def open_objects(
    folder: Path, config: LmdbObjectsConfig, log: logging.Logger
) -> AsyncGenerator[ObjectStore, None]:
    """The store of a folder, made if there is none. Removes files that a crash has left."""
    durable = config.objects_durability == "system"
    async with open_environment(
        folder, kind="objects", databases=DATABASES, durable=durable
    ) as environment:
        blobs = Blobs(folder / "blobs", durable=durable)
        store = LmdbObjectStore(environment, blobs, config, log)
        store.sweep()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.collect_expired)
            nursery.start_soon(store.release_silent)
            yield store
            nursery.cancel_scope.cancel()


class LmdbObjectStore(ObjectStore):
    """Objects in an environment, with their large values in files.

    Times to live and silent holders count only while :meth:`collect_expired` and
    :meth:`release_silent` run.
    """

    def __init__(
        self, environment: Environment, blobs: Blobs, config: LmdbObjectsConfig, log: logging.Logger
    ) -> None:
        self._environment = environment
        self._objects = environment["objects"]
        self._blobs = blobs
        self._config = config
        self._log = log
        self._threads = trio.CapacityLimiter(4)
        self._references = References(environment)
        self._history: deque[ObjectChanges] = deque(maxlen=_HISTORY)
        self._news = News()
        self._sooner = trio.Event()
        self._silent: Deadlines[str] = Deadlines()
        with environment.reading() as txn:
            self._revision = self._read_revision(txn)
            for holder, ttl in txn.cursor(db=environment["silent"]):
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

            if removed := self._blobs.sweep(is_known):
                self._log.info("removed %s files of objects that were never written", removed)

    # ---- values

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        check_operations(operations)
        prepared: dict[str, Prepared] = {}
        done = False
        try:
            for operation in operations:
                if isinstance(operation, PutObject):
                    prepared[operation.key] = await self._prepare(operation)
            limit = self._config.objects_bytes
            stats = await self._change(lambda c: c.transact(operations, prepared, limit))
            done = True
            return stats
        finally:
            for new in prepared.values():
                if new.blob and not done:
                    self._blobs.remove(new.blob)

    async def _prepare(self, operation: PutObject) -> Prepared:
        view = memoryview(operation.value).cast("B")
        if len(view) > self._config.inline_bytes:
            # a thread that cannot be stopped: when it is done, a cancelled caller is told
            name, digest = await trio.to_thread.run_sync(
                lambda: self._blobs.write(view, hashed=operation.hashed), limiter=self._threads
            )
            return Prepared(size=len(view), sha256=digest, blob=name)
        value = bytes(view)
        digest = hashlib.sha256(value).hexdigest() if operation.hashed else ""
        return Prepared(size=len(value), sha256=digest, value=value)

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[ObjectView, None]:
        await trio.lowlevel.checkpoint()
        record, raw = self._read(key)
        if record.blob:
            with self._blobs.mapped(record.blob, record.stat) as view:
                yield view
            return
        data = memoryview(value_of(record, raw))
        try:
            yield ObjectView(stat=record.stat, data=data)
        finally:
            data.release()

    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        await trio.lowlevel.checkpoint()
        record, raw = self._read(key)
        if not record.blob:
            return record.stat, value_of(record, raw)
        with self._blobs.mapped(record.blob, record.stat) as view:
            # the thread ends before the block does
            value = await trio.to_thread.run_sync(bytes, view.data, limiter=self._threads)
        return record.stat, value

    def get_nowait(self, key: str) -> bytes:
        value = inline_value(self._raw(key))
        if value is None:
            raise trio.WouldBlock
        return value

    async def stat(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._read(key)[0].stat

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        check_limit(limit)
        await trio.lowlevel.checkpoint()
        first = prefix.encode("utf-8", "surrogatepass")
        start = first if after is None else max(first, after.encode("utf-8", "surrogatepass"))
        objects: list[ObjectStat] = []
        next_key = None
        with self._environment.reading() as txn:
            cursor = txn.cursor(db=self._environment["objects"])
            found = cursor.set_range(start) if start else cursor.first()
            while found and (key := cursor.key()).startswith(first):
                name = key.decode()
                if name != after:
                    if len(objects) == limit:
                        next_key = objects[-1].key
                        break
                    objects.append(unpack(name, cursor.value()).stat)
                found = cursor.next()
            revision = self._read_revision(txn)
        return ObjectPage(objects=tuple(objects), next_key=next_key, revision=revision)

    # ---- what keeps an object

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        name = check_holder(holder)
        return await self._change(lambda changes: changes.add_ref(key, name))

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        name = check_holder(holder)
        return await self._change(lambda changes: changes.remove_ref(key, name))

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        await trio.lowlevel.checkpoint()
        self._read(key)
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

    # ---- history

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges], None]:
        await trio.lowlevel.checkpoint()
        start = self._revision + 1 if start_revision is None else start_revision
        self._next_change(prefix, start)
        channel = HistoryChannel(self._news, start, lambda place: self._next_change(prefix, place))
        try:
            yield channel
        finally:
            channel.close()

    def _next_change(self, prefix: str, place: int) -> tuple[ObjectChanges | None, int]:
        oldest = self._history[0].revision if self._history else self._revision + 1
        past_revision(place, compacted=oldest, current=max(place, self._revision))
        for found in itertools.islice(self._history, place - oldest, None):
            changes = tuple(c for c in found.changes if c.key.startswith(prefix))
            if changes:
                return ObjectChanges(revision=found.revision, changes=changes), found.revision + 1
        return None, max(place, self._revision + 1)

    # ---- parts

    def _read_revision(self, txn: Transaction) -> int:
        return int(txn.get(b"revision", b"0", db=self._environment["meta"]))

    def _raw(self, key: str) -> bytes:
        try:
            with self._environment.reading() as txn:
                raw = txn.get(key.encode(), db=self._objects)
        except (UnicodeEncodeError, lmdb.BadValsizeError):
            raw = None
        if raw is None:
            check_object_key(key)
            raise ObjectNotFoundError(f"there is no object {key!r}")
        return raw

    def _read(self, key: str) -> tuple[Record, bytes]:
        raw = self._raw(key)
        return unpack(key, raw), raw

    async def _change(self, what: Callable[[Changes], T]) -> T:
        """Do it in a transaction, then tell those who watch and remove what nobody needs."""

        def work(txn: Transaction) -> tuple[T, Changes, ObjectChanges | None]:
            changes = Changes(self._environment, txn)
            result = what(changes)
            return result, changes, changes.finish()

        def after(result: tuple[T, Changes, ObjectChanges | None]) -> None:
            _, changes, done = result
            for name in changes.unused:
                self._blobs.remove(name)
            if done is not None:
                self._revision = done.revision
                self._history.append(done)
                self._news.tell()
                if any(change.now and change.now.expires_at for change in done.changes):
                    self._sooner.set()

        result, _, _ = await self._environment.write(work, after)
        return result
