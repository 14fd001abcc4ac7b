"""Metadata stores with one planted bug each, and the suite test that must catch it.

Run by ``test_mutants.py``, never by name. The docstring says what is wrong; the ``Sound…`` one is
without a bug and must pass everything.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    Capability,
    Compare,
    KeyChange,
    KeyChanges,
    KeyPage,
    KeyValue,
    Lease,
    MetadataChange,
    MetadataStore,
    MetadataStoreSpec,
    PluginContext,
    TransactionResult,
)
from spear_core.builtins.memory_metadata import MemoryMetadataConfig, MemoryMetadataStore
from spear_core.errors import LeaseNotFoundError
from spear_core.testing import MetadataStoreContract


class MetadataMutant(MetadataStoreContract):
    patience = 2.0
    small_config = MemoryMetadataConfig(memory_metadata_bytes=100_000)


def metadata_spec(cls: type[MemoryMetadataStore]) -> MetadataStoreSpec[MemoryMetadataConfig]:
    @asynccontextmanager
    async def open_toy(
        context: PluginContext, config: MemoryMetadataConfig
    ) -> AsyncGenerator[MetadataStore, None]:
        store = cls(
            max_bytes=config.memory_metadata_bytes, max_history=config.memory_metadata_history
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            yield store
            nursery.cancel_scope.cancel()

    return MetadataStoreSpec(name="toy", open=open_toy, config_cls=MemoryMetadataConfig)


class Lasting(MemoryMetadataStore):
    """Lasts longer than the block that opened it, as on a disk."""

    def __init__(self, *, max_bytes: int, max_history: int) -> None:
        super().__init__(max_bytes=max_bytes, max_history=max_history)
        self.granted: list[Lease] = []

    async def grant_lease(self, ttl: float) -> Lease:
        lease = await super().grant_lease(ttl)
        self.granted.append(lease)
        return lease

    async def reopen(self) -> None:
        for lease in self.granted:
            with suppress(LeaseNotFoundError):
                await self.keep_alive(lease.id)


def lasting_spec(
    cls: type[Lasting], *, always: bool = True
) -> MetadataStoreSpec[MemoryMetadataConfig]:
    """Stores of one directory are one store.

    :param always: also when the block ended with an exception.
    """
    opened: dict[Path, Lasting] = {}

    @asynccontextmanager
    async def open_toy(
        context: PluginContext, config: MemoryMetadataConfig
    ) -> AsyncGenerator[MetadataStore, None]:
        where = context.state_dir
        if (store := opened.pop(where, None)) is not None:
            await store.reopen()
        else:
            store = cls(
                max_bytes=config.memory_metadata_bytes, max_history=config.memory_metadata_history
            )
        if always:
            opened[where] = store
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            yield store
            nursery.cancel_scope.cancel()
        opened[where] = store

    return MetadataStoreSpec(
        name="toy",
        open=open_toy,
        config_cls=MemoryMetadataConfig,
        capabilities=frozenset({Capability.DURABLE}),
    )


class LastingMutant(MetadataStoreContract):
    durable = True
    lease_ttl = 0.2


class TestSoundMetadata(MetadataStoreContract):
    spec = lasting_spec(Lasting)
    small_config = MemoryMetadataConfig(memory_metadata_bytes=100_000)
    durable = True


class TestComparesFirstOnly(MetadataMutant):
    """A metadata store that looks at the first comparison only."""

    caught_by = "test_every_comparison_must_hold"

    class Planted(MemoryMetadataStore):
        async def transact(
            self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
        ) -> TransactionResult:
            result = await super().transact(changes, compares=compares[:1])
            current = tuple([await self.get(compare.key) for compare in compares])
            return attrs.evolve(result, current=current)

    spec = metadata_spec(Planted)


class TestComparesTooEarly(MetadataMutant):
    """A metadata store that compares, then waits, then writes."""

    caught_by = "test_increments_are_exact"

    class Planted(MemoryMetadataStore):
        async def transact(
            self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
        ) -> TransactionResult:
            result = await super().transact([], compares=compares)
            return await super().transact(changes) if result.succeeded else result

    spec = metadata_spec(Planted)


class TestRevisionForEachChange(MetadataMutant):
    """A metadata store that makes the changes of a transaction one after the other."""

    caught_by = "test_transaction_is_one_revision"

    class Planted(MemoryMetadataStore):
        def _apply(self, changes: Sequence[MetadataChange]) -> None:
            for change in changes:
                super()._apply([change])

    spec = metadata_spec(Planted)


class TestDeleteOfNothingCounts(MetadataMutant):
    """A metadata store whose revision moves on with a delete of nothing."""

    caught_by = "test_deleting_starts_a_key_anew"

    class Planted(MemoryMetadataStore):
        def _apply(self, changes: Sequence[MetadataChange]) -> None:
            before = self._revision
            super()._apply(changes)
            if changes and self._revision == before:
                self._publish(before + 1, [])

    spec = metadata_spec(Planted)


class TestRemembersDeletedKeys(MetadataMutant):
    """A metadata store whose key, deleted and put again, goes on counting."""

    caught_by = "test_deleting_starts_a_key_anew"

    class Planted(MemoryMetadataStore):
        def _record(
            self, key: bytes, before: KeyValue | None, now: KeyValue | None, revision: int
        ) -> None:
            ever = [value for _, value in self._writes.get(key, ()) if value]
            if now is not None and before is None and ever:
                now = attrs.evolve(now, version=ever[-1].version + 1)
            super()._record(key, before, now, revision)

    spec = metadata_spec(Planted)


class TestPagesOfNow(MetadataMutant):
    """A metadata store whose pages show what is there when they are asked for."""

    caught_by = "test_pages_at_a_revision_are_one_picture"

    class Planted(MemoryMetadataStore):
        async def range(
            self,
            prefix: bytes = b"",
            *,
            after: bytes | None = None,
            limit: int = 1000,
            revision: int | None = None,
        ) -> KeyPage:
            page = await super().range(prefix, after=after, limit=limit)
            return page if revision is None else attrs.evolve(page, revision=revision)

    spec = metadata_spec(Planted)


class TestCompactsTooMuch(MetadataMutant):
    """A metadata store that compacts the revision it was asked to keep."""

    caught_by = "test_compaction_forgets_the_past_alone"

    class Planted(MemoryMetadataStore):
        def _compact(self, revision: int) -> None:
            super()._compact(min(revision + 1, self._revision))

    spec = metadata_spec(Planted)


class TestCompactsNothing(MetadataMutant):
    """A metadata store that goes on showing what it has compacted."""

    caught_by = "test_compaction_forgets_the_past_alone"

    class Planted(MemoryMetadataStore):
        def _compact(self, revision: int) -> None:
            pass

    spec = metadata_spec(Planted)


class TestWatchSkipsTheGap(MetadataMutant):
    """A metadata store whose watch goes on after a gap as if nothing had been there."""

    caught_by = "test_compaction_never_leaves_a_gap"

    class Planted(MemoryMetadataStore):
        def _next_change(self, prefix: bytes, place: int) -> tuple[KeyChanges | None, int]:
            return super()._next_change(prefix, max(place, self._compacted))

    spec = metadata_spec(Planted)


class TestWatchRepeats(MetadataMutant):
    """A metadata store whose watch gives the last change once more."""

    caught_by = "test_watch_gives_every_change_once"

    class Planted(MemoryMetadataStore):
        def _next_change(self, prefix: bytes, place: int) -> tuple[KeyChanges | None, int]:
            found, after = super()._next_change(prefix, place)
            return found, after - 1 if found and found.revision == self._revision else after

    spec = metadata_spec(Planted)


class TestWatchFromNow(MetadataMutant):
    """A metadata store whose watch begins now, wherever it is asked to."""

    caught_by = "test_watch_from_a_revision"

    class Planted(MemoryMetadataStore):
        @asynccontextmanager
        async def watch(
            self, prefix: bytes = b"", *, start_revision: int | None = None
        ) -> AsyncGenerator[trio.abc.ReceiveChannel[KeyChanges], None]:
            async with super().watch(prefix) as channel:
                yield channel

    spec = metadata_spec(Planted)


class TestWatchLosesCancelled(MetadataMutant):
    """A metadata store whose watch loses what a cancelled ``receive`` had taken."""

    caught_by = "test_cancelled_receive_takes_nothing"

    class Planted(MemoryMetadataStore):
        @asynccontextmanager
        async def watch(
            self, prefix: bytes = b"", *, start_revision: int | None = None
        ) -> AsyncGenerator[trio.abc.ReceiveChannel[KeyChanges], None]:
            async with super().watch(prefix, start_revision=start_revision) as channel:
                receive = channel.receive

                async def lossy() -> Any:
                    item = None
                    with trio.move_on_after(0.3, shield=True):
                        item = await receive()
                    await trio.lowlevel.checkpoint()
                    return item

                channel.receive = lossy  # type: ignore[method-assign]
                yield channel

    spec = metadata_spec(Planted)


class TestWatchOfEverything(MetadataMutant):
    """A metadata store whose watch gives the whole of a transaction, whatever the prefix."""

    caught_by = "test_watch_gives_every_change_once"

    class Planted(MemoryMetadataStore):
        def _next_change(self, prefix: bytes, place: int) -> tuple[KeyChanges | None, int]:
            found, after = super()._next_change(prefix, place)
            if found is not None:
                found = next(h for h in self._history if h.revision == found.revision)
            return found, after

    spec = metadata_spec(Planted)


class TestLeaseEndsTooEarly(MetadataMutant):
    """A metadata store whose leases end in a tenth of their time."""

    caught_by = "test_lease_ends_unless_renewed"

    @pytest.mark.trio
    async def test_lease_ends_unless_renewed(self, tmp_path: Path, autojump_clock: Any) -> None:
        """In time that no pause of the machine adds to, which would hide the bug."""
        await super().test_lease_ends_unless_renewed(tmp_path)

    class Planted(MemoryMetadataStore):
        async def grant_lease(self, ttl: float) -> Lease:
            lease = await super().grant_lease(ttl)
            self._deadlines.set(lease.id, ttl / 10)
            return lease

    spec = metadata_spec(Planted)


class TestLeaseKeepsItsKeys(MetadataMutant):
    """A metadata store whose leases end and leave their keys."""

    caught_by = "test_revoked_lease_takes_its_keys"

    class Planted(MemoryMetadataStore):
        def _end(self, lease_id: int) -> None:
            self._leased[lease_id].clear()
            super()._end(lease_id)

    spec = metadata_spec(Planted)


class TestLeaseTakesMovedKeys(MetadataMutant):
    """A metadata store whose lease takes every key that ever had it."""

    caught_by = "test_revoked_lease_takes_its_keys"

    class Planted(MemoryMetadataStore):
        def _record(
            self, key: bytes, before: KeyValue | None, now: KeyValue | None, revision: int
        ) -> None:
            if before is not None and now is not None:
                before = attrs.evolve(before, lease=0)
            super()._record(key, before, now, revision)

    spec = metadata_spec(Planted)


class TestLeaseKeyByKey(MetadataMutant):
    """A metadata store that deletes the keys of a lease one after the other."""

    caught_by = "test_lease_ends_unless_renewed"

    class Planted(MemoryMetadataStore):
        def _publish(self, revision: int, done: Sequence[KeyChange]) -> None:
            if all(change.now is None for change in done):
                for number, change in enumerate(done):
                    super()._publish(revision + number, [change])
            else:
                super()._publish(revision, done)

    spec = metadata_spec(Planted)


class TestWritesWhenFull(MetadataMutant):
    """A metadata store that writes what fits of a transaction, and then says that it is full."""

    caught_by = "test_full_store_refuses"

    class Planted(MemoryMetadataStore):
        def _check_room(self, changes: Sequence[MetadataChange]) -> None:
            self._apply(changes[:1])
            super()._check_room(changes[1:])

    spec = metadata_spec(Planted)


class TestWritesWhenCancelled(MetadataMutant):
    """A metadata store that has written when it is cancelled."""

    caught_by = "test_cancelled_calls_change_nothing"

    class Planted(MemoryMetadataStore):
        async def transact(
            self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
        ) -> TransactionResult:
            with trio.CancelScope(shield=True):
                result = await super().transact(changes, compares=compares)
            await trio.lowlevel.checkpoint()
            return result

    spec = metadata_spec(Planted)


class TestLastsUnsaid(MetadataMutant):
    """A metadata store that lasts and does not declare DURABLE."""

    caught_by = "test_durable_is_declared"
    durable = True
    spec = metadata_spec(Lasting)


class TestLastsUnseen(MetadataMutant):
    """A metadata store that declares DURABLE and does not let it be tested."""

    caught_by = "test_durable_is_declared"
    spec = lasting_spec(Lasting)


class TestForgetsVersionsOfKeys(LastingMutant):
    """A metadata store whose keys have version 1 when it is opened again."""

    caught_by = "test_reopened_store_has_every_record"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            for writes in self._writes.values():
                writes[:] = [(r, now and attrs.evolve(now, version=1)) for r, now in writes]

    spec = lasting_spec(Planted)


class TestBringsBackDeletedKeys(LastingMutant):
    """A metadata store whose deletes are undone when it is opened again."""

    caught_by = "test_reopened_store_has_every_record"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            for writes in self._writes.values():
                writes[:] = [(r, now) for r, now in writes if now is not None]

    spec = lasting_spec(Planted)


class TestCountsFromWhatIsLeft(LastingMutant):
    """A metadata store that takes the newest key's revision for its own when it is opened again."""

    caught_by = "test_reopened_store_counts_on"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            items = (await self.range(limit=1_000_000)).items
            self._revision = max((item.mod_revision for item in items), default=0)

    spec = lasting_spec(Planted)


class TestWritesWhenItIsClosed(LastingMutant):
    """A metadata store that is on the disk only when its block has ended well."""

    caught_by = "test_reopened_store_has_what_was_returned"
    spec = lasting_spec(Lasting, always=False)


class TestLastsByHalf(LastingMutant):
    """A metadata store of whose transactions a sudden end leaves a part."""

    caught_by = "test_reopened_store_has_what_was_returned"

    class Planted(Lasting):
        async def transact(
            self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
        ) -> TransactionResult:
            result = await super().transact(changes[:1], compares=compares)
            return await super().transact(changes[1:]) if result.succeeded else result

    spec = lasting_spec(Planted)


class TestForgetsHistorySilently(LastingMutant):
    """A metadata store without a history when it is opened again, whose watches do not say so."""

    caught_by = "test_reopened_history_has_no_gap"
    patience = 3.0

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            self._history.clear()

    spec = lasting_spec(Planted)


class TestForgetsThatItHasCompacted(LastingMutant):
    """A metadata store that takes what it has for the whole history when it is opened again."""

    caught_by = "test_reopened_history_has_no_gap"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            self._compacted = 0

    spec = lasting_spec(Planted)


class TestRaisesTheDead(LastingMutant):
    """A metadata store in which leases that had ended are alive when it is opened again."""

    caught_by = "test_reopened_leases_are_alive_or_dead"

    class Planted(Lasting):
        async def reopen(self) -> None:
            for lease in self.granted:
                self._leases[lease.id] = lease
                self._leased.setdefault(lease.id, set())
            await super().reopen()

    spec = lasting_spec(Planted)


class TestGivesLeasesNumbersAgain(LastingMutant):
    """A metadata store that numbers leases from 1 whenever it is opened."""

    caught_by = "test_reopened_leases_are_alive_or_dead"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            self._lease_ids = itertools.count(1)

    spec = lasting_spec(Planted)


class TestLeasesEndWhileItIsClosed(LastingMutant):
    """A metadata store whose leases get older while nobody can renew them."""

    caught_by = "test_reopened_leases_are_alive_or_dead"

    @pytest.mark.trio
    async def test_reopened_leases_are_alive_or_dead(
        self, tmp_path: Path, autojump_clock: Any
    ) -> None:
        """In time that no pause of the machine adds to, which would hide the bug."""
        await super().test_reopened_leases_are_alive_or_dead(tmp_path)

    class Planted(Lasting):
        async def reopen(self) -> None:
            await trio.lowlevel.checkpoint()

    spec = lasting_spec(Planted)


class TestLeasesOutliveTheirTime(LastingMutant):
    """A metadata store whose leases have no end any more once it was opened again."""

    caught_by = "test_reopened_leases_are_alive_or_dead"
    patience = 3.0

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            for lease in self.granted:
                self._deadlines.discard(lease.id)

    spec = lasting_spec(Planted)
