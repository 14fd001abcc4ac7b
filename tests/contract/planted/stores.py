"""Object stores with one planted bug each, and the suite test that must catch it.

Run by ``test_mutants.py``, never by name. The docstring says what is wrong; the ``Sound…`` one is
without a bug and must pass everything.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    Capability,
    ObjectChange,
    ObjectChanges,
    ObjectOperation,
    ObjectPage,
    ObjectStat,
    ObjectStore,
    ObjectStoreSpec,
    ObjectView,
    ObjectWriter,
    PluginContext,
    PutObject,
    SealedFile,
    StoreUsage,
)
from spear_core.builtins.memory_store import MemoryObjectStore, MemoryStoreConfig
from spear_core.errors import (
    ObjectConflictError,
)
from spear_core.testing import (
    ObjectStoreContract,
)


class StoreMutant(ObjectStoreContract):
    patience = 2.0
    small_config = MemoryStoreConfig(memory_store_bytes=100_000)


def store_spec(cls: type[MemoryObjectStore]) -> ObjectStoreSpec[MemoryStoreConfig]:
    @asynccontextmanager
    async def open_toy(
        context: PluginContext, config: MemoryStoreConfig
    ) -> AsyncGenerator[ObjectStore, None]:
        store = cls(max_bytes=config.memory_store_bytes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.collect_expired)
            nursery.start_soon(store.release_silent)
            yield store
            nursery.cancel_scope.cancel()

    return ObjectStoreSpec(name="toy", open=open_toy, config_cls=MemoryStoreConfig)


class Lasting(MemoryObjectStore):
    """Lasts longer than the block that opened it, as on a disk."""

    opened_again = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.silences: dict[str, float] = {}

    async def keep_alive(self, holder: str, ttl: float) -> None:
        await super().keep_alive(holder, ttl)
        self.silences[holder] = ttl

    async def reopen(self) -> None:
        self.opened_again = True
        for holder, ttl in self.silences.items():
            await self.keep_alive(holder, ttl)

    async def work(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.collect_expired)
            nursery.start_soon(self.release_silent)


def lasting_spec(cls: type[Lasting], *, always: bool = True) -> ObjectStoreSpec[MemoryStoreConfig]:
    """Stores of one directory are one store.

    :param always: also when the block ended with an exception.
    """
    opened: dict[Path, Lasting] = {}

    @asynccontextmanager
    async def open_toy(
        context: PluginContext, config: MemoryStoreConfig
    ) -> AsyncGenerator[ObjectStore, None]:
        where = context.state_dir
        if (store := opened.pop(where, None)) is not None:
            await store.reopen()
        else:
            store = cls(max_bytes=config.memory_store_bytes)
        if always:
            opened[where] = store
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.work)
            yield store
            nursery.cancel_scope.cancel()
        opened[where] = store

    return ObjectStoreSpec(
        name="toy",
        open=open_toy,
        config_cls=MemoryStoreConfig,
        capabilities=frozenset({Capability.DURABLE}),
    )


class LastingMutant(ObjectStoreContract):
    durable = True
    shortest = 0.2


class TestSoundStore(ObjectStoreContract):
    spec = lasting_spec(Lasting)
    small_config = MemoryStoreConfig(memory_store_bytes=100_000)
    durable = True


class TestIgnoresExpect(StoreMutant):
    """A store that writes whatever version the writer has read."""

    caught_by = "test_expected_version_is_held_to"

    class Planted(MemoryObjectStore):
        def _check_expected(self, key: str, found: Any, expect: int | None) -> None:
            if expect == 0:
                super()._check_expected(key, found, expect)

    spec = store_spec(Planted)


class TestExpectZeroMeansAnything(StoreMutant):
    """A store that takes ``expect=0`` for "not given"."""

    caught_by = "test_expect_zero_means_must_not_exist"

    class Planted(MemoryObjectStore):
        def _check_expected(self, key: str, found: Any, expect: int | None) -> None:
            super()._check_expected(key, found, expect or None)

    spec = store_spec(Planted)


class TestConflictWithoutVersion(StoreMutant):
    """A store whose conflict does not say which version is current."""

    caught_by = "test_expected_version_is_held_to"

    class Planted(MemoryObjectStore):
        def _check_expected(self, key: str, found: Any, expect: int | None) -> None:
            try:
                super()._check_expected(key, found, expect)
            except ObjectConflictError as exc:
                raise ObjectConflictError(exc.message) from None

    spec = store_spec(Planted)


class TestChecksTooEarly(StoreMutant):
    """A store that compares the version, then waits, then writes."""

    caught_by = "test_one_of_many_writers_wins"

    class Planted(MemoryObjectStore):
        async def put(
            self, key: str, value: bytes, *, expect: int | None = None, content_type: str = "x/y"
        ) -> ObjectStat:
            self._check_expected(key, self._objects.get(key), expect)
            return await super().put(key, value, content_type=content_type)

    spec = store_spec(Planted)


class TestForgetsVersions(StoreMutant):
    """A store that begins at version 1 again after a delete."""

    caught_by = "test_versions_go_on_after_a_delete"

    class Planted(MemoryObjectStore):
        def _drop(self, key: str) -> None:
            super()._drop(key)
            self._last_versions.clear()

    spec = store_spec(Planted)


class TestWriteDropsReferences(StoreMutant):
    """A store whose overwrite begins without references."""

    caught_by = "test_a_write_keeps_references_and_pin"

    class Planted(MemoryObjectStore):
        async def put(self, key: str, value: bytes, **rest: Any) -> ObjectStat:
            await super().put(key, value, **rest)
            return self._change(key, refs=0)

    spec = store_spec(Planted)


class TestCollectsPinned(StoreMutant):
    """A store that collects a pinned object with its last reference."""

    caught_by = "test_pinned_objects_stay"

    class Planted(MemoryObjectStore):
        async def remove_ref(self, key: str) -> ObjectStat | None:
            self._change(key, pinned=False)
            return await super().remove_ref(key)

    spec = store_spec(Planted)


class TestUnpinCollectsReferenced(StoreMutant):
    """A store that collects what is unpinned, whatever refers to it."""

    caught_by = "test_unpinning_keeps_referenced_objects"

    class Planted(MemoryObjectStore):
        async def unpin(self, key: str) -> ObjectStat | None:
            await trio.lowlevel.checkpoint()
            self._find(key)
            self._drop(key)
            return None

    spec = store_spec(Planted)


class TestNegativeReferences(StoreMutant):
    """A store that collects an object that never had a reference."""

    caught_by = "test_no_reference_to_remove"

    class Planted(MemoryObjectStore):
        async def remove_ref(self, key: str) -> ObjectStat | None:
            if self._find(key).stat.refs == 0:
                self._drop(key)
                return None
            return await super().remove_ref(key)

    spec = store_spec(Planted)


class TestUnsortedList(StoreMutant):
    """A store that lists in the order of writing."""

    caught_by = "test_list_is_sorted_and_filtered"

    class Planted(MemoryObjectStore):
        async def list(self, prefix: str = "", **rest: Any) -> ObjectPage:
            page = await super().list(prefix, **rest)
            in_order = sorted(page.objects, key=lambda stat: stat.created_at)
            return attrs.evolve(page, objects=tuple(in_order))

    spec = store_spec(Planted)


class TestRepeatsAcrossPages(StoreMutant):
    """A store whose next page begins with the last object of this one."""

    caught_by = "test_list_pages"

    class Planted(MemoryObjectStore):
        async def list(
            self, prefix: str = "", *, after: str | None = None, limit: int = 1000
        ) -> ObjectPage:
            return await super().list(prefix, after=after and after[:-1], limit=limit)

    spec = store_spec(Planted)


class TestEndlessPages(StoreMutant):
    """A store that promises one more page when the last one is exactly full."""

    caught_by = "test_list_pages"

    class Planted(MemoryObjectStore):
        async def list(self, *args: Any, **rest: Any) -> ObjectPage:
            page = await super().list(*args, **rest)
            if len(page.objects) == rest.get("limit"):
                return attrs.evolve(page, next_key=page.objects[-1].key)
            return page

    spec = store_spec(Planted)


class TestEvicts(StoreMutant):
    """A store that makes room by throwing something out."""

    caught_by = "test_full_store_refuses"

    class Planted(MemoryObjectStore):
        async def put(self, key: str, value: bytes, **rest: Any) -> ObjectStat:
            while self._used + len(value) > self._max_bytes and self._keys:
                self._drop(self._keys[0])
            return await super().put(key, value, **rest)

    spec = store_spec(Planted)


class TestCountsOverwritesTwice(StoreMutant):
    """A store that never gives back the room of an overwritten value."""

    caught_by = "test_full_store_refuses"

    class Planted(MemoryObjectStore):
        async def put(self, key: str, value: bytes, **rest: Any) -> ObjectStat:
            old = self._objects.get(key)
            stat = await super().put(key, value, **rest)
            self._used += old.stat.size if old else 0
            return stat

    spec = store_spec(Planted)


class TestWritesThenWaits(StoreMutant):
    """A store that has written when it is cancelled."""

    caught_by = "test_cancelled_calls_change_nothing"

    class Planted(MemoryObjectStore):
        async def pin(self, key: str) -> ObjectStat:
            stat = self._change(key, pinned=True)
            await trio.lowlevel.checkpoint()
            return stat

    spec = store_spec(Planted)


class TestKeyErrors(StoreMutant):
    """A store that lets ``KeyError`` out."""

    caught_by = "test_unknown_keys_are_not_found"

    class Planted(MemoryObjectStore):
        def _find(self, key: str) -> Any:
            return self._objects[key]

    spec = store_spec(Planted)


class TestTransactsOneByOne(StoreMutant):
    """A store that does the operations of a transaction one after the other."""

    caught_by = "test_transaction_is_all_or_nothing"

    class Planted(MemoryObjectStore):
        async def transact(
            self, operations: Sequence[ObjectOperation]
        ) -> tuple[ObjectStat | None, ...]:
            return tuple([(await super(type(self), self).transact([o]))[0] for o in operations])

    spec = store_spec(Planted)


class TestHashOfNothingMatches(StoreMutant):
    """A store that takes an empty content hash for that of an object without one."""

    caught_by = "test_content_hash_is_held_to"

    class Planted(MemoryObjectStore):
        def _check_expected(self, key: str, found: Any, expect: int | str | None) -> None:
            if expect != "":
                super()._check_expected(key, found, expect)

    spec = store_spec(Planted)


class TestViewsAreCopies(StoreMutant):
    """A store whose views stay readable after their block."""

    caught_by = "test_views_show_one_version"

    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def open(self, key: str, **rest: Any) -> AsyncGenerator[ObjectView, None]:
            async with super().open(key, **rest) as view:
                yield attrs.evolve(view, data=memoryview(bytes(view.data)))

    spec = store_spec(Planted)


class TestViewsMayBeWritten(StoreMutant):
    """A store that gives its own memory away, writable."""

    caught_by = "test_views_show_one_version"

    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def open(self, key: str, **rest: Any) -> AsyncGenerator[ObjectView, None]:
            async with super().open(key, **rest) as view:
                with memoryview(bytearray(view.data)) as data:
                    yield attrs.evolve(view, data=data)

    spec = store_spec(Planted)


class TestOneHolderForAll(StoreMutant):
    """A store that removes whoever's reference comes first."""

    caught_by = "test_holders_are_told_apart"

    class Planted(MemoryObjectStore):
        async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
            names = list(self._references.of(key))
            return await super().remove_ref(key, holder=names[0] if names else holder)

    spec = store_spec(Planted)


class TestReleasesOneReference(StoreMutant):
    """A store that removes one reference of a dead holder from each object."""

    caught_by = "test_released_holder_keeps_nothing"

    class Planted(MemoryObjectStore):
        def _let_go(self, key: str, holder: str, count: int) -> ObjectStat | None:
            return super()._let_go(key, holder, min(count, 1))

    spec = store_spec(Planted)


class TestReleasesTheLiving(StoreMutant):
    """A store that releases a holder at its first deadline, whatever it said since."""

    caught_by = "test_silent_holder_is_released"

    class Planted(MemoryObjectStore):
        async def keep_alive(self, holder: str, ttl: float) -> None:
            if holder not in self._silent:
                await super().keep_alive(holder, ttl)
                self._silent.set(holder, ttl / 8)

    spec = store_spec(Planted)


class TestExpiresWhatIsHeld(StoreMutant):
    """A store that collects an object when its time is over, whoever needs it."""

    caught_by = "test_objects_expire"

    class Planted(MemoryObjectStore):
        async def collect_expired(self) -> None:
            while True:
                self._remove([await self._expiring.wait_next()])

    spec = store_spec(Planted)


class TestTimeToLiveStays(StoreMutant):
    """A store whose object keeps the time to live of an earlier version."""

    caught_by = "test_objects_expire"

    class Planted(MemoryObjectStore):
        def _write(self, operation: PutObject, value: Any, digest: str) -> ObjectStat:
            if operation.ttl is None and operation.key in self._expiring:
                operation = attrs.evolve(operation, ttl=0.1)
            return super()._write(operation, value, digest)

    spec = store_spec(Planted)


class TestReferencesAreNews(StoreMutant):
    """A store that tells watchers of references."""

    caught_by = "test_watch_gives_every_change_once"

    class Planted(MemoryObjectStore):
        def _change(self, key: str, **rest: Any) -> ObjectStat:
            stat = super()._change(key, **rest)
            self._publish([ObjectChange(key=key, now=stat)])
            return stat

    spec = store_spec(Planted)


class TestCollectsInSilence(StoreMutant):
    """A store that does not tell watchers what it collects."""

    caught_by = "test_watch_gives_every_change_once"

    class Planted(MemoryObjectStore):
        def _remove(self, keys: Sequence[str]) -> None:
            for key in keys:
                self._drop(key)

    spec = store_spec(Planted)


class TestWatchHidesTheGap(StoreMutant):
    """A store whose watch begins where its history does, whatever was asked for."""

    caught_by = "test_list_then_watch_has_no_gap"

    class Planted(MemoryObjectStore):
        def watch(
            self, prefix: str = "", *, start_revision: int | None = None
        ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[ObjectChanges]]:
            begin = None if start_revision is None else max(start_revision, 1)
            return super().watch(prefix, start_revision=begin)

    spec = store_spec(Planted)


class TestVersionIsForgotten(StoreMutant):
    """A store that gives the current version, whichever it is asked for."""

    caught_by = "test_versions_stay_while_they_are_shown"

    class Planted(MemoryObjectStore):
        def _version(self, key: str, version: int) -> Any:
            return self._find(key)

    spec = store_spec(Planted)


class TestKeepsEveryVersion(StoreMutant):
    """A store that never collects an old version."""

    caught_by = "test_versions_stay_while_they_are_shown"

    class Planted(MemoryObjectStore):
        def _supersede(self, old: Any) -> None:
            super()._supersede(old)
            self.__dict__.setdefault("every", {})[old.stat.key, old.stat.version] = old

        def _version(self, key: str, version: int) -> Any:
            found = self.__dict__.get("every", {}).get((key, version))
            return found or super()._version(key, version)

    spec = store_spec(Planted)


class TestSnapshotMoves(StoreMutant):
    """A store whose snapshot shows what is written after it."""

    caught_by = "test_snapshot_shows_one_revision"

    class Planted(MemoryObjectStore):
        def at(self, key: str, revision: int) -> Any:
            return self._objects.get(key)

    spec = store_spec(Planted)


class TestSnapshotForgetsTheDeleted(StoreMutant):
    """A store whose snapshot lists only what is still there."""

    caught_by = "test_snapshot_shows_one_revision"

    class Planted(MemoryObjectStore):
        def at(self, key: str, revision: int) -> Any:
            return super().at(key, revision) if key in self._objects else None

    spec = store_spec(Planted)


class TestWriterShowsTooEarly(StoreMutant):
    """A store in which a value that is being written can be seen."""

    caught_by = "test_created_piece_by_piece"

    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def create(self, key: str, **rest: Any) -> AsyncGenerator[ObjectWriter, None]:
            async with super().create(key, **rest) as writer:
                await self.put(key, b"")
                yield writer

    spec = store_spec(Planted)


class TestWriterCommitsByItself(StoreMutant):
    """A store that commits what was written when its block is left, whatever for."""

    caught_by = "test_created_piece_by_piece"

    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def create(self, key: str, **rest: Any) -> AsyncGenerator[ObjectWriter, None]:
            async with super().create(key, **rest) as writer:
                yield writer
                with suppress(trio.ClosedResourceError):
                    await writer.commit()

    spec = store_spec(Planted)


class TestWriterLooksTooEarly(StoreMutant):
    """A store that looks at ``expect`` when the writing begins, and not again."""

    caught_by = "test_created_as_expected"

    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def create(
            self, key: str, *, expect: int | str | None = None, **rest: Any
        ) -> AsyncGenerator[ObjectWriter, None]:
            self._check_expected(key, self._objects.get(key), expect)
            async with super().create(key, **rest) as writer:
                yield writer

    spec = store_spec(Planted)


class TestWriterIgnoresTheSize(StoreMutant):
    """A store that takes another number of bytes than were announced."""

    caught_by = "test_created_as_expected"

    class Planted(MemoryObjectStore):
        @asynccontextmanager
        async def create(
            self, key: str, *, size: int | None = None, **rest: Any
        ) -> AsyncGenerator[ObjectWriter, None]:
            async with super().create(key, **rest) as writer:
                yield writer

    spec = store_spec(Planted)


class TestWriterIsNotCounted(StoreMutant):
    """A store whose limit does not count what is being written."""

    caught_by = "test_created_within_the_limit"

    class Planted(MemoryObjectStore):
        def check_more(self, more: int, keys: Any) -> None:
            reserved, self.reserved = self.reserved, 0
            try:
                super().check_more(more, keys)
            finally:
                self.reserved = reserved

    spec = store_spec(Planted)


class TestTrustsTheSealer(StoreMutant):
    """A store that takes memory for sealed without looking."""

    caught_by = "test_sealed_memory_can_be_put"

    class Planted(MemoryObjectStore):
        async def put(self, key: str, value: Any, **rest: Any) -> ObjectStat:
            if isinstance(value, SealedFile):
                value = os.pread(value.fd, value.size, 0)
            return await super().put(key, value, **rest)

    spec = store_spec(Planted)


class TestBorrowsTheDescriptor(StoreMutant):
    """A store that looks at the caller's descriptor later on."""

    caught_by = "test_sealed_memory_can_be_put"

    class Planted(MemoryObjectStore):
        async def put(self, key: str, value: Any, **rest: Any) -> ObjectStat:
            await trio.sleep(0.01)
            return await super().put(key, value, **rest)

    spec = store_spec(Planted)


class TestObjectsLastUnsaid(StoreMutant):
    """An object store that lasts and does not declare DURABLE."""

    caught_by = "test_durable_is_declared"
    durable = True
    spec = store_spec(Lasting)


class TestObjectsLastUnseen(StoreMutant):
    """An object store that declares DURABLE and does not let it be tested."""

    caught_by = "test_durable_is_declared"
    spec = lasting_spec(Lasting)


class TestForgetsPins(LastingMutant):
    """A store whose pins are gone when it is opened again."""

    caught_by = "test_reopened_store_has_every_object"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            for stat in (await self.list()).objects:
                if stat.pinned and stat.refs:
                    await self.unpin(stat.key)

    spec = lasting_spec(Planted)


class TestForgetsWhoHolds(LastingMutant):
    """A store that knows how many references there are when it is opened again, and not whose."""

    caught_by = "test_reopened_store_has_every_object"

    class Planted(Lasting):
        async def reopen(self) -> None:
            for stat in (await self.list()).objects:
                for holder in await self.holders(stat.key):
                    for _ in range(holder.refs):
                        await self.add_ref(stat.key)
                        await self.remove_ref(stat.key, holder=holder.name)
            await super().reopen()

    spec = lasting_spec(Planted)


class TestLosesLargeValues(LastingMutant):
    """A store whose large values are empty files when it is opened again."""

    caught_by = "test_reopened_store_has_every_object"

    class Planted(Lasting):
        async def get(self, key: str, *, version: int | None = None) -> tuple[ObjectStat, bytes]:
            stat, value = await super().get(key, version=version)
            lost = self.opened_again and stat.size > 65_536
            return stat, bytes(stat.size) if lost else value

    spec = lasting_spec(Planted)


class TestForgetsVersionsOfDeleted(LastingMutant):
    """A store that begins at version 1 with what was deleted before it was opened."""

    caught_by = "test_reopened_store_counts_on"

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            self._last_versions.clear()

    spec = lasting_spec(Planted)


class TestForgetsHashes(LastingMutant):
    """A store that knows versions when it is opened again, but no content hashes."""

    caught_by = "test_reopened_store_counts_on"

    class Planted(Lasting):
        async def put(self, key: str, value: Any, **settings: Any) -> ObjectStat:
            if self.opened_again and isinstance(settings.get("expect"), str):
                current = (await self.stat(key)).version
                raise ObjectConflictError("it has no hash", current=current)
            return await super().put(key, value, **settings)

    spec = lasting_spec(Planted)


class TestObjectsWrittenWhenItIsClosed(LastingMutant):
    """A store that is on the disk only when its block has ended well."""

    caught_by = "test_reopened_store_has_what_was_returned"
    spec = lasting_spec(Lasting, always=False)


class TestKeepsRoomForTheUnfinished(LastingMutant):
    """A store in which what was being written when it ended takes room for ever."""

    caught_by = "test_reopened_store_has_what_was_returned"

    class Planted(Lasting):
        unfinished = 0

        @asynccontextmanager
        async def create(self, key: str, **settings: Any) -> AsyncGenerator[ObjectWriter, None]:
            try:
                async with super().create(key, **settings) as writer:
                    yield writer
            except BaseException:
                self.unfinished += 1_000_000
                raise

        async def usage(self) -> StoreUsage:
            usage = await super().usage()
            return attrs.evolve(usage, bytes=usage.bytes + self.unfinished)

    spec = lasting_spec(Planted)


class TestWatchBeginsAnew(LastingMutant):
    """A store whose watches of before begin in the present when it is opened again."""

    caught_by = "test_reopened_watch_has_no_gap"
    patience = 3.0

    class Planted(Lasting):
        async def reopen(self) -> None:
            await super().reopen()
            self.opened_at = (await self.list()).revision

        @asynccontextmanager
        async def watch(
            self, prefix: str = "", *, start_revision: int | None = None
        ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges], None]:
            if self.opened_again and start_revision is not None:
                start_revision = max(start_revision, self.opened_at + 1)
            async with super().watch(prefix, start_revision=start_revision) as watch:
                yield watch

    spec = lasting_spec(Planted)


class TestCollectsNothingOfBefore(LastingMutant):
    """A store that has forgotten what is due when it is opened again."""

    caught_by = "test_reopened_store_collects"
    patience = 3.0

    class Planted(Lasting):
        async def work(self) -> None:
            if not self.opened_again:
                await super().work()

    spec = lasting_spec(Planted)


class TestHoldersFallSilentWhileItIsClosed(LastingMutant):
    """A store that counts the time it was closed as a holder's silence."""

    caught_by = "test_reopened_store_collects"

    @pytest.mark.trio
    async def test_reopened_store_collects(self, tmp_path: Path, autojump_clock: Any) -> None:
        """In time that no pause of the machine adds to, which would hide the bug."""
        await super().test_reopened_store_collects(tmp_path)

    class Planted(Lasting):
        async def reopen(self) -> None:
            await trio.lowlevel.checkpoint()

    spec = lasting_spec(Planted)
