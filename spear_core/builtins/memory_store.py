"""The object store ``memory``: everything in this process, gone when it ends."""

from __future__ import annotations

import bisect
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import attrs
import trio

from spear_core.api import (
    OCTETS,
    CheckObject,
    ObjectChange,
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectSnapshot,
    ObjectStat,
    ObjectStore,
    ObjectView,
    ObjectWriter,
    PluginContext,
    PutObject,
    SealedFile,
    StoreUsage,
)
from spear_core.builtins._memory_references import MemoryReferences
from spear_core.builtins._memory_snapshot import MemorySnapshot, page_of
from spear_core.builtins._memory_values import (
    MemoryObject,
    MemoryValue,
    MemoryValues,
    NewValue,
)
from spear_core.builtins._memory_writer import MemoryWriter
from spear_core.builtins._recycled_memory import RecycledMemory
from spear_core.errors import InvalidRequestError, ObjectNotFoundError, StoreFullError
from spear_core.stores import (
    Deadlines,
    History,
    Versions,
    check_holder,
    check_limit,
    check_object_key,
    check_operations,
    check_size,
    check_ttl,
    object_as_expected,
    object_conflict,
    version_gone,
)

__all__ = ["MemoryObjectStore", "MemoryStoreConfig", "open_memory_store"]

_INLINE = 1 << 20
"""Values over a mebibyte (about a millisecond of sha256) are copied and hashed in a thread."""

_IDLE_S = 10.0
"""Memory that has waited for a value for so long, or up to twice that, is given back."""

_DELETED_KEYS = 100_000
"""So many of the keys deleted last have their versions remembered."""


@attrs.frozen(kw_only=True)
class MemoryStoreConfig:
    """Part of ``[plugins.builtins]``."""

    memory_store_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.gt(0))
    """Sum of the values; a write that would pass it is refused."""
    memory_store_files: int = attrs.field(default=256, validator=attrs.validators.ge(0))
    """Values over 64 KiB that have a file descriptor, so that other processes can map them;
    further ones are copied when another process needs them."""
    memory_recycle_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.ge(0))
    """Memory of values that are gone, kept for the next ones for ten to twenty seconds;
    together with the values never more than ``memory_store_bytes``. 0: none."""
    memory_snapshot_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.gt(0))
    """Old versions that snapshots may keep, beside; the oldest snapshot that needs more is
    ended."""


@asynccontextmanager
async def open_memory_store(
    context: PluginContext, config: MemoryStoreConfig
) -> AsyncGenerator[ObjectStore, None]:
    """An empty store that lives as long as the block."""
    store = MemoryObjectStore(
        max_bytes=config.memory_store_bytes,
        max_files=config.memory_store_files,
        max_kept=config.memory_snapshot_bytes,
        max_recycled=config.memory_recycle_bytes,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.collect_expired)
        nursery.start_soon(store.release_silent)
        nursery.start_soon(store.give_back)
        yield store
        nursery.cancel_scope.cancel()


class MemoryObjectStore(ObjectStore):
    """Objects in a dict. Evicts nothing: when it is full, it says so.

    Times to live and silent holders count only while :meth:`collect_expired` and
    :meth:`release_silent` run, and memory that waits for other values goes only while
    :meth:`give_back` does.

    :param max_bytes: limit for the sum of the current values; what only views still show is beside.
    :param max_files: how many values may have a descriptor. :param max_kept:
    :param max_recycled: see :class:`MemoryStoreConfig`.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_files: int = 256,
        max_kept: int = 256 << 20,
        max_recycled: int = 0,
    ) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self.reserved = 0
        self.values = MemoryValues(
            RecycledMemory(
                most_bytes=max_recycled,
                most_files=max_files,
                room=_room_of(weakref.ref(self)),
            )
        )
        self.versions: Versions[MemoryObject] = Versions(limit=max_kept)
        self.threads = trio.CapacityLimiter(4)
        self._objects: dict[str, MemoryObject] = {}
        self._keys: list[str] = []
        self._last_versions: dict[str, int] = {}
        self._forgotten_version = 0
        self._history = History(0, _of_keys)
        self._references = MemoryReferences()
        self._patience: dict[str, float] = {}
        self._expiring: Deadlines[str] = Deadlines()
        self._silent: Deadlines[str] = Deadlines()

    async def collect_expired(self) -> None:
        """Collect objects when their time is over, until cancelled."""
        while True:
            key = await self._expiring.wait_next()
            stat = self._objects[key].stat
            if not stat.refs and not stat.pinned:
                self._remove([key])

    async def release_silent(self) -> None:
        """Release holders that are silent for too long, until cancelled."""
        while True:
            self._release(await self._silent.wait_next())

    async def give_back(self) -> None:
        """Give memory back that no value has needed for a while, until cancelled."""
        await self.values.memory.sweep_idle(_IDLE_S)

    # ---- values

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        check_operations(operations)
        puts = [op for op in operations if isinstance(op, PutObject)]
        sealed = {
            op.key: self.values.adopt(op.value) for op in puts if isinstance(op.value, SealedFile)
        }
        await trio.lowlevel.checkpoint()
        values = {op.key: await self._prepare(op, sealed.get(op.key)) for op in puts}
        return self.apply(operations, values)

    async def _prepare(self, operation: PutObject, value: MemoryValue | None) -> NewValue:
        given = operation.value

        def work() -> NewValue:
            if isinstance(given, SealedFile):
                assert value is not None
                made = self.values.settled(value)
            else:
                with memoryview(given) as view, view.cast("B") as octets:
                    made = self.values.make(octets)
            return NewValue(made, made.sha256() if operation.hashed else "")

        size = given.size if isinstance(given, SealedFile) else memoryview(given).nbytes
        if size <= _INLINE:
            return work()
        made: list[NewValue] = []  # what a thread has returned it may keep for a while
        await trio.to_thread.run_sync(lambda: made.append(work()), limiter=self.threads)
        return made.pop()

    def apply(
        self, operations: Sequence[ObjectOperation], values: dict[str, NewValue]
    ) -> tuple[ObjectStat | None, ...]:
        for operation in operations:
            self._check_expected(operation.key, self._objects.get(operation.key), operation.expect)
            if not isinstance(operation, PutObject) and operation.expect is None:
                self._find(operation.key)
        self._check_room(values)
        changed = []
        for operation in operations:
            key = operation.key
            if isinstance(operation, PutObject):
                stat = self._write(operation, values[key].value, values[key].digest)
                changed.append(ObjectChange(key=key, now=stat))
            elif not isinstance(operation, CheckObject) and key in self._objects:
                self._drop(key)
                changed.append(ObjectChange(key=key, now=None))
        self._publish(changed)
        self.values.memory.trim()
        after = (self._objects.get(operation.key) for operation in operations)
        return tuple(found.stat if found else None for found in after)

    def _check_room(self, values: dict[str, NewValue]) -> None:
        more = sum(new.value.size for new in values.values())
        self.check_more(more, values)

    def check_more(self, more: int, keys: Collection[str]) -> None:
        """Whether values of so many bytes may take the place of what those keys have."""
        less = sum(self._objects[key].stat.size for key in keys if key in self._objects)
        used = self._used + self.reserved
        if used - less + more > self._max_bytes:
            raise StoreFullError(
                f"writing {more} bytes to {', '.join(map(repr, keys))} would pass the store's "
                f"limit of {self._max_bytes} bytes ({used} in use); delete objects, or raise "
                f"plugins.builtins.memory_store_bytes"
            )

    def _write(self, operation: PutObject, value: MemoryValue, digest: str) -> ObjectStat:
        key, now = operation.key, time.time()
        old = self._objects.get(key)
        before = old.stat.version if old else self._last_versions.pop(key, self._forgotten_version)
        stat = ObjectStat(
            key=key,
            size=value.size,
            version=before + 1,
            revision=self._history.revision + 1,
            sha256=digest,
            created_at=old.stat.created_at if old else now,
            updated_at=now,
            content_type=operation.content_type,
            refs=old.stat.refs if old else 0,
            pinned=old.stat.pinned if old else False,
            expires_at=None if operation.ttl is None else now + operation.ttl,
        )
        if old is None:
            bisect.insort(self._keys, key)
        else:
            self._supersede(old)
        self._objects[key] = MemoryObject(stat, value)
        self._used += value.size - (old.stat.size if old else 0)
        if operation.ttl is None:
            self._expiring.discard(key)
        else:
            self._expiring.set(key, operation.ttl)
        return stat

    def _supersede(self, old: MemoryObject) -> None:
        stat = old.stat
        self.versions.supersede(
            stat.key, stat.version, old,
            written=stat.revision, ended=self._history.revision + 1, size=stat.size,
        )  # fmt: skip

    @asynccontextmanager
    async def open(
        self, key: str, *, version: int | None = None
    ) -> AsyncGenerator[ObjectView, None]:
        await trio.lowlevel.checkpoint()
        with self.shown(self._find(key) if version is None else self._version(key, version)) as v:
            yield v

    @contextmanager
    def shown(self, found: MemoryObject) -> Iterator[ObjectView]:
        stat = found.stat
        with (
            self.versions.viewing(stat.key, stat.version, found),
            found.value.shown() as (data, fd),
        ):
            yield ObjectView(stat=stat, data=data, fd=fd, in_memory=True)

    async def get(self, key: str, *, version: int | None = None) -> tuple[ObjectStat, bytes]:
        await trio.lowlevel.checkpoint()
        found = self._find(key) if version is None else self._version(key, version)
        return await self.copied(found)

    async def copied(self, found: MemoryObject) -> tuple[ObjectStat, bytes]:
        if found.stat.size <= _INLINE or found.value.small is not None:
            return found.stat, found.value.copied()
        value = await trio.to_thread.run_sync(found.value.copied, limiter=self.threads)
        return found.stat, value

    def get_nowait(self, key: str) -> bytes:
        value = self._find(key).value
        if value.small is None and value.size > _INLINE:
            raise trio.WouldBlock
        return value.copied()

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[ObjectSnapshot, None]:
        await trio.lowlevel.checkpoint()
        picture = self.versions.open_picture(self._history.revision)
        try:
            yield MemorySnapshot(self, picture)
        finally:
            self.versions.close_picture(picture)

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
        writer = MemoryWriter(self, operation, size)
        try:
            yield writer
        finally:
            writer.close()

    async def usage(self) -> StoreUsage:
        await trio.lowlevel.checkpoint()
        return StoreUsage(
            objects=len(self._objects),
            bytes=self._used + self.reserved,
            limit_bytes=self._max_bytes,
        )

    async def stat(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._find(key).stat

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        check_limit(limit)
        await trio.lowlevel.checkpoint()
        found = (self._objects[key].stat for key in self.keys_from(prefix, after))
        return page_of(found, limit, self._history.revision)

    def keys_from(self, prefix: str, after: str | None) -> Iterator[str]:
        start = bisect.bisect_left(self._keys, prefix)
        if after is not None:
            start = max(start, bisect.bisect_right(self._keys, after))
        for place in range(start, len(self._keys)):
            if not self._keys[place].startswith(prefix):
                return
            yield self._keys[place]

    # ---- what keeps an object

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        check_holder(holder)
        await trio.lowlevel.checkpoint()
        stat = self._change(key, refs=self._find(key).stat.refs + 1)
        self._references.add(key, holder)
        return stat

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        check_holder(holder)
        await trio.lowlevel.checkpoint()
        self._find(key)
        if holder not in self._references.of(key):
            whose = f" of {holder!r}" if holder else ""
            raise InvalidRequestError(f"object {key!r} has no reference{whose} to remove")
        return self._let_go(key, holder, 1)

    def _let_go(self, key: str, holder: str, count: int) -> ObjectStat | None:
        self._references.remove(key, holder, count)
        stat = self._find(key).stat
        if stat.refs == count and not stat.pinned:
            self._remove([key])
            return None
        return self._change(key, refs=stat.refs - count)

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        await trio.lowlevel.checkpoint()
        self._find(key)
        return tuple(
            ObjectHolder(name=name, refs=refs, ttl=self._patience.get(name))
            for name, refs in sorted(self._references.of(key).items())
        )

    async def keep_alive(self, holder: str, ttl: float) -> None:
        check_holder(holder, named=True)
        check_ttl(ttl)
        await trio.lowlevel.checkpoint()
        self._patience[holder] = ttl
        self._silent.set(holder, ttl)

    async def release(self, holder: str) -> int:
        check_holder(holder, named=True)
        await trio.lowlevel.checkpoint()
        return self._release(holder)

    def _release(self, holder: str) -> int:
        self._silent.discard(holder)
        self._patience.pop(holder, None)
        count = 0
        for key in self._references.keys_of(holder):
            refs = self._references.of(key)[holder]
            self._let_go(key, holder, refs)
            count += refs
        return count

    async def pin(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._change(key, pinned=True)

    async def unpin(self, key: str) -> ObjectStat | None:
        await trio.lowlevel.checkpoint()
        stat = self._find(key).stat
        if stat.pinned and stat.refs == 0:
            self._remove([key])
            return None
        return self._change(key, pinned=False)

    # ---- history

    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[ObjectChanges]]:
        return self._history.watch(prefix, start_revision)

    def _publish(self, changed: Sequence[ObjectChange]) -> None:
        if changed:
            done = tuple(sorted(changed, key=lambda change: change.key))
            self._history.add(ObjectChanges(revision=self._history.revision + 1, changes=done))

    # ---- parts

    def _find(self, key: str) -> MemoryObject:
        try:
            return self._objects[key]
        except KeyError:
            check_object_key(key)
            raise ObjectNotFoundError(f"there is no object {key!r}") from None

    def _version(self, key: str, version: int) -> MemoryObject:
        found = self._objects.get(key)
        if found is not None and found.stat.version == version:
            return found
        old = self.versions.find(key, version)
        if old is None:
            check_object_key(key)
            raise version_gone(key, version, found.stat.version if found else None)
        return old

    def at(self, key: str, revision: int) -> MemoryObject | None:
        """What was current then, of a picture that is open."""
        found = self._objects.get(key)
        if found is not None and found.stat.revision <= revision:
            return found
        return self.versions.at(key, revision)

    def _change(
        self, key: str, *, refs: int | None = None, pinned: bool | None = None
    ) -> ObjectStat:
        found = self._find(key)
        stat = attrs.evolve(
            found.stat,
            refs=found.stat.refs if refs is None else refs,
            pinned=found.stat.pinned if pinned is None else pinned,
        )
        self._objects[key] = MemoryObject(stat, found.value)
        return stat

    def _remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)
        self._publish([ObjectChange(key=key, now=None) for key in keys])

    def _drop(self, key: str) -> None:
        self._supersede(self._objects[key])
        gone = self._objects.pop(key).stat
        del self._keys[bisect.bisect_left(self._keys, key)]
        self._used -= gone.size
        self._expiring.discard(key)
        self._references.drop(key)
        self._last_versions[key] = gone.version
        if len(self._last_versions) > _DELETED_KEYS:
            oldest = next(iter(self._last_versions))
            forgotten = self._last_versions.pop(oldest)
            self._forgotten_version = max(self._forgotten_version, forgotten)

    def room(self) -> int:
        """Bytes by which the values are below the limit; less than 0 while some replace others."""
        return self._max_bytes - self._used - self.reserved

    def _check_expected(
        self, key: str, found: MemoryObject | None, expect: int | str | None
    ) -> None:
        stat = found.stat if found else None
        if expect is not None and not object_as_expected(stat, expect):
            raise object_conflict(key, stat, expect)


def _room_of(store: weakref.ref[MemoryObjectStore]) -> Callable[[], int]:
    def room() -> int:
        found = store()
        return found.room() if found is not None else 0

    return room


def _of_keys(done: ObjectChanges, prefix: str) -> ObjectChanges | None:
    """A revision, as far as keys with that prefix are concerned."""
    changes = tuple(change for change in done.changes if change.key.startswith(prefix))
    return ObjectChanges(revision=done.revision, changes=changes) if changes else None
