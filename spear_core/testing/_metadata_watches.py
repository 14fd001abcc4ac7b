"""What metadata stores promise to those who watch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import DeleteKey, KeyChange, KeyChanges, MetadataStore, PutKey
from spear_core.errors import CompactedError
from spear_core.testing._promise import promise

__all__ = ["MetadataWatches", "shown"]


def shown(got: list[KeyChanges]) -> list[list[tuple[bytes, bytes | None]]]:
    """Key and new value of each change, a list for each revision."""

    def value(change: KeyChange) -> bytes | None:
        return change.now.value if change.now else None

    return [[(change.key, value(change)) for change in changes.changes] for changes in got]


class MetadataWatches(ABC):
    """A part of :class:`~spear_core.testing.MetadataStoreContract`."""

    patience: float

    @abstractmethod
    def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AbstractAsyncContextManager[MetadataStore]:
        """The store, as a node opens it."""

    @promise
    async def test_watch_gives_every_change_once(self, tmp_path: Path) -> None:
        """``watch``: each revision that concerns the prefix, once, in order, as it was."""
        async with self.open_store(tmp_path) as store, store.watch(b"a/") as watch:
            one = await store.put(b"a/1", b"x")
            await store.put(b"b", b"not mine")
            two = (
                await store.transact(
                    [
                        PutKey(key=b"a/3", value=b"3"),
                        PutKey(key=b"b", value=b""),
                        DeleteKey(key=b"a/1"),
                        DeleteKey(key=b"a/none"),
                    ]
                )
            ).revision
            three = await store.put(b"a/1", b"y")
            got = [await watch.receive() for _ in range(3)]
            assert [c.revision for c in got] == [one, two, three]
            assert shown(got) == [[(b"a/1", b"x")], [(b"a/1", None), (b"a/3", b"3")],
                                   [(b"a/1", b"y")]]  # fmt: skip
            assert got[2].changes[0].now == await store.get(b"a/1")
            with trio.move_on_after(0.05) as scope:
                await watch.receive()
            assert scope.cancelled_caught, "nothing comes twice"

    @promise
    async def test_watch_from_a_revision(self, tmp_path: Path) -> None:
        """``watch(start_revision=…)``: that revision is the first; one to come is waited for."""
        async with self.open_store(tmp_path) as store:
            revisions = [await store.put(b"k", b"%d" % number) for number in range(5)]
            async with store.watch(start_revision=revisions[2]) as watch:
                got = [await watch.receive() for _ in range(3)]
                assert shown(got) == [[(b"k", b"2")], [(b"k", b"3")], [(b"k", b"4")]]
            async with store.watch(start_revision=revisions[4] + 2) as watch:
                await store.put(b"k", b"skipped")
                await store.put(b"k", b"wanted")
                assert shown([await watch.receive()]) == [[(b"k", b"wanted")]]

    @promise
    async def test_list_then_watch_has_no_gap(self, tmp_path: Path) -> None:
        """A watch from the revision after a page's sees every change since, beside writers."""
        async with self.open_store(tmp_path) as store:
            done = trio.Event()

            async def write() -> None:
                for number in range(300):
                    await store.put(b"k%d" % (number % 7), b"%d" % number)
                done.set()

            async def follow() -> None:
                page = await store.range(b"k")
                seen = {i.key: i for i in page.items}
                async with store.watch(b"k", start_revision=page.revision + 1) as watch:
                    while all(i.value != b"299" for i in seen.values()):
                        change = (await watch.receive()).changes[0]
                        assert change.now is not None
                        before = seen.get(change.key)
                        assert change.now.version == (before.version + 1 if before else 1)
                        seen[change.key] = change.now
                assert seen == {i.key: i for i in (await store.range(b"k")).items}

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                for _ in range(3):
                    await store.get(b"k0")
                    nursery.start_soon(follow)
            assert done.is_set()

    @promise
    async def test_cancelled_receive_takes_nothing(self, tmp_path: Path) -> None:
        """A ``receive`` that is cancelled has not taken the change it did not return."""
        async with self.open_store(tmp_path) as store, store.watch() as watch:
            await store.put(b"k", b"1")
            with trio.CancelScope() as scope:
                scope.cancel()
                await watch.receive()
            assert scope.cancelled_caught
            assert shown([await watch.receive()]) == [[(b"k", b"1")]]

    @promise
    async def test_a_change_wakes_the_watch(self, tmp_path: Path) -> None:
        """A ``receive`` that waits returns when a change is made; one of another key does not
        wake it for good."""
        async with self.open_store(tmp_path) as store, store.watch(b"k") as watch:
            got: list[KeyChanges] = []

            async def follow() -> None:
                got.append(await watch.receive())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()
                await store.put(b"other", b"")
                await trio.testing.wait_all_tasks_blocked()
                assert got == []
                await store.put(b"k", b"v")
            assert shown(got) == [[(b"k", b"v")]]

    @promise
    async def test_compaction_never_leaves_a_gap(self, tmp_path: Path) -> None:
        """A watch behind a compaction is told, on entering and in its middle; others go on."""
        async with self.open_store(tmp_path) as store:
            first = await store.put(b"k", b"1")
            async with (
                store.watch(start_revision=first) as behind,
                store.watch(start_revision=first) as ahead,
            ):
                assert shown([await behind.receive()]) == [[(b"k", b"1")]]
                await store.put(b"k", b"2")
                third = await store.put(b"k", b"3")
                got = [await ahead.receive() for _ in range(3)]
                await store.compact(third)
                for _ in range(2):
                    with pytest.raises(CompactedError) as caught:
                        await behind.receive()
                    assert caught.value.compacted == third
                await store.put(b"k", b"4")
                got.append(await ahead.receive())
                assert shown(got) == [[(b"k", b"%d" % n)] for n in (1, 2, 3, 4)]
            with pytest.raises(CompactedError):
                async with store.watch(start_revision=third - 1):
                    pass
            async with store.watch(start_revision=third + 1) as watch:
                assert shown([await watch.receive()]) == [[(b"k", b"4")]]

    @promise
    async def test_watch_is_closed_with_its_block(self, tmp_path: Path) -> None:
        """After the block, and for a task that waits when it ends: ``ClosedResourceError``."""
        async with self.open_store(tmp_path) as store:
            closed = []

            async def follow(watch: trio.abc.ReceiveChannel[KeyChanges]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await watch.receive()
                closed.append(True)

            async with trio.open_nursery() as nursery, store.watch() as watch:
                nursery.start_soon(follow, watch)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.ClosedResourceError):
                await watch.receive()
            assert closed == [True]
