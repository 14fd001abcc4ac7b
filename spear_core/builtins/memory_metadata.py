"""The metadata store ``memory``: everything in this process, gone when it ends."""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from spear_core.api import (
    Compare,
    KeyChange,
    KeyChanges,
    KeyPage,
    KeyValue,
    Lease,
    MetadataChange,
    MetadataStore,
    PluginContext,
    PutKey,
    TransactionResult,
)
from spear_core.errors import LeaseNotFoundError, StoreFullError
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

__all__ = ["MemoryMetadataConfig", "MemoryMetadataStore", "open_memory_metadata"]


@attrs.frozen(kw_only=True)
class MemoryMetadataConfig:
    """Part of ``[plugins.builtins]``."""

    memory_metadata_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.gt(0))
    """Sum of keys and values, those of the history too; a write that would pass it is refused."""
    memory_metadata_history: int = attrs.field(default=10_000, validator=attrs.validators.gt(0))
    """Revisions that can be read and watched from; older ones are compacted."""


@asynccontextmanager
async def open_memory_metadata(
    context: PluginContext, config: MemoryMetadataConfig
) -> AsyncGenerator[MetadataStore, None]:
    """An empty store that lives as long as the block."""
    store = MemoryMetadataStore(
        max_bytes=config.memory_metadata_bytes, max_history=config.memory_metadata_history
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()


class MemoryMetadataStore(MetadataStore):
    """Every key with its writes since the last compaction, oldest first.

    Leases end only while :meth:`run` does.
    """

    def __init__(self, *, max_bytes: int, max_history: int) -> None:
        self._max_bytes = max_bytes
        self._max_history = max_history
        self._used = 0
        self._revision = 0
        self._compacted = 0
        self._keys: list[bytes] = []
        self._writes: dict[bytes, list[tuple[int, KeyValue | None]]] = {}
        self._history: deque[KeyChanges] = deque()
        self._news = News()
        self._lease_ids = itertools.count(1)
        self._leases: dict[int, Lease] = {}
        self._leased: dict[int, set[bytes]] = {}
        self._deadlines: Deadlines[int] = Deadlines()

    async def run(self) -> None:
        """End leases when their time has come, until cancelled."""
        while True:
            self._end(await self._deadlines.wait_next())

    # ---- reading

    async def get(self, key: bytes, *, revision: int | None = None) -> KeyValue | None:
        check_metadata_key(key)
        await trio.lowlevel.checkpoint()
        return self._at(key, self._readable(revision))

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
        revision = self._readable(revision)
        start = bisect.bisect_left(self._keys, prefix)
        if after is not None:
            start = max(start, bisect.bisect_right(self._keys, after))
        items: list[KeyValue] = []
        for key in itertools.islice(self._keys, start, None):
            if not key.startswith(prefix):
                break
            if (found := self._at(key, revision)) is None:
                continue
            if len(items) == limit:
                return KeyPage(items=tuple(items), next_key=items[-1].key, revision=revision)
            items.append(found)
        return KeyPage(items=tuple(items), next_key=None, revision=revision)

    def _readable(self, revision: int | None) -> int:
        if revision is None:
            return self._revision
        past_revision(revision, compacted=self._compacted, current=self._revision)
        return revision

    def _at(self, key: bytes, revision: int) -> KeyValue | None:
        for written, value in reversed(self._writes.get(key, ())):
            if written <= revision:
                return value
        return None

    # ---- changing

    async def transact(
        self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
    ) -> TransactionResult:
        check_transaction(changes, compares)
        await trio.lowlevel.checkpoint()
        current = tuple(self._at(compare.key, self._revision) for compare in compares)
        held = all(map(compare_holds, compares, current))
        if held:
            self._check_leases(changes)
            self._check_room(changes)
            self._apply(changes)
        return TransactionResult(succeeded=held, revision=self._revision, current=current)

    def _check_leases(self, changes: Sequence[MetadataChange]) -> None:
        for change in changes:
            if isinstance(change, PutKey) and change.lease and change.lease not in self._leases:
                raise _no_lease(change.lease)

    def _check_room(self, changes: Sequence[MetadataChange]) -> None:
        more = sum(len(c.key) + len(c.value) for c in changes if isinstance(c, PutKey))
        if more and self._used + more > self._max_bytes:
            raise StoreFullError(
                f"writing {more} bytes would pass the metadata store's limit of "
                f"{self._max_bytes} bytes ({self._used} in use, with the history); compact it, "
                f"delete keys, or raise plugins.builtins.memory_metadata_bytes"
            )

    def _apply(self, changes: Sequence[MetadataChange]) -> None:
        revision = self._revision + 1
        done = []
        for change in sorted(changes, key=lambda change: change.key):
            before = self._at(change.key, revision)
            now = None
            if isinstance(change, PutKey):
                now = _written(change, before, revision)
            elif before is None:
                continue
            self._record(change.key, before, now, revision)
            done.append(KeyChange(key=change.key, now=now))
        if done:
            self._publish(revision, done)

    def _publish(self, revision: int, done: Sequence[KeyChange]) -> None:
        self._revision = revision
        self._history.append(KeyChanges(revision=revision, changes=tuple(done)))
        if len(self._history) > self._max_history:
            self._compact(revision - self._max_history + 1)
        self._news.tell()

    def _record(
        self, key: bytes, before: KeyValue | None, now: KeyValue | None, revision: int
    ) -> None:
        if key not in self._writes:
            bisect.insort(self._keys, key)
        self._writes.setdefault(key, []).append((revision, now))
        self._used += _size(key, now)
        if before is not None and before.lease in self._leased:
            self._leased[before.lease].discard(key)
        if now is not None and now.lease:
            self._leased[now.lease].add(key)

    # ---- history

    @asynccontextmanager
    async def watch(
        self, prefix: bytes = b"", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[KeyChanges], None]:
        await trio.lowlevel.checkpoint()
        start = self._revision + 1 if start_revision is None else start_revision
        self._next_change(prefix, start)
        channel = HistoryChannel(self._news, start, lambda place: self._next_change(prefix, place))
        try:
            yield channel
        finally:
            channel.close()

    def _next_change(self, prefix: bytes, place: int) -> tuple[KeyChanges | None, int]:
        past_revision(place, compacted=self._compacted, current=max(place, self._revision))
        first = self._history[0].revision if self._history else self._revision + 1
        for found in itertools.islice(self._history, max(0, place - first), None):
            changes = tuple(c for c in found.changes if c.key.startswith(prefix))
            if changes:
                return KeyChanges(revision=found.revision, changes=changes), found.revision + 1
        return None, max(place, self._revision + 1)

    async def compact(self, revision: int) -> None:
        await trio.lowlevel.checkpoint()
        past_revision(revision, compacted=self._compacted + 1, current=self._revision)
        self._compact(revision)
        self._news.tell()

    def _compact(self, revision: int) -> None:
        """Forget how things were before that revision; its own change stays."""
        self._compacted = revision
        touched = set()
        while self._history and self._history[0].revision < revision:
            touched |= {change.key for change in self._history.popleft().changes}
        if self._history and self._history[0].revision == revision:
            touched |= {change.key for change in self._history[0].changes}
        for key in touched:
            self._forget(key, revision)

    def _forget(self, key: bytes, revision: int) -> None:
        writes = self._writes[key]
        while len(writes) > 1 and writes[1][0] <= revision:
            self._used -= _size(key, writes.pop(0)[1])
        if writes[0][0] <= revision and writes[0][1] is None:
            self._used -= _size(key, writes.pop(0)[1])
        if not writes:
            del self._writes[key]
            del self._keys[bisect.bisect_left(self._keys, key)]

    # ---- leases

    async def grant_lease(self, ttl: float) -> Lease:
        check_ttl(ttl)
        await trio.lowlevel.checkpoint()
        lease = Lease(id=next(self._lease_ids), ttl=ttl)
        self._leases[lease.id] = lease
        self._leased[lease.id] = set()
        self._deadlines.set(lease.id, ttl)
        return lease

    async def keep_alive(self, lease_id: int) -> Lease:
        await trio.lowlevel.checkpoint()
        if lease_id not in self._leases:
            raise _no_lease(lease_id)
        self._deadlines.set(lease_id, self._leases[lease_id].ttl)
        return self._leases[lease_id]

    async def revoke_lease(self, lease_id: int) -> None:
        await trio.lowlevel.checkpoint()
        if lease_id not in self._leases:
            raise _no_lease(lease_id)
        self._end(lease_id)

    def _end(self, lease_id: int) -> None:
        self._deadlines.discard(lease_id)
        del self._leases[lease_id]
        revision = self._revision + 1
        done = []
        for key in sorted(self._leased.pop(lease_id)):
            self._record(key, self._at(key, revision), None, revision)
            done.append(KeyChange(key=key, now=None))
        if done:
            self._publish(revision, done)


def _written(change: PutKey, before: KeyValue | None, revision: int) -> KeyValue:
    return KeyValue(
        key=bytes(change.key),
        value=bytes(change.value),
        create_revision=before.create_revision if before else revision,
        mod_revision=revision,
        version=before.version + 1 if before else 1,
        lease=change.lease,
    )


def _size(key: bytes, value: KeyValue | None) -> int:
    return len(key) + (len(value.value) if value else 0)


def _no_lease(lease_id: int) -> LeaseNotFoundError:
    return LeaseNotFoundError(f"there is no lease {lease_id}: it has ended, or never was")
