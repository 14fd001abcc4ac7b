"""What durable metadata stores promise of the time after they were closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from spear_core.api import (
    Capability,
    DeleteKey,
    KeyChanges,
    MetadataStore,
    MetadataStoreSpec,
    PutKey,
)
from spear_core.errors import CompactedError, LeaseNotFoundError
from spear_core.testing._promise import promise

__all__ = ["MetadataReopened"]


class MetadataReopened(ABC):
    """A part of :class:`~spear_core.testing.MetadataStoreContract`.

    A node has its tasks in a durable store: what it has said to a caller must be there after its
    next start, and nothing that had ended may come to life again.
    """

    spec: ClassVar[MetadataStoreSpec[Any]]
    durable: ClassVar[bool]
    lease_ttl: float
    patience: float

    @abstractmethod
    def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AbstractAsyncContextManager[MetadataStore]:
        """The store, as a node opens it."""

    def _needs_durable(self) -> None:
        if not self.durable:
            pytest.skip("durable is not set: this store forgets")

    def test_durable_is_declared(self) -> None:
        """``Capability.DURABLE`` is declared, and ``durable`` set here, or neither."""
        assert self.durable is (Capability.DURABLE in self.spec.capabilities)

    @promise
    async def test_reopened_store_has_every_record(self, tmp_path: Path) -> None:
        """Keys, values, revisions, versions and leases are as they were; what was deleted is
        gone."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            lease = await store.grant_lease(60)
            for number in range(200):
                await store.put(b"task/%03d" % (number % 70), b"%d" % number)
            await store.transact(
                [PutKey(key=b"a", value=b""), PutKey(key=b"l", value=b"x", lease=lease.id)]
            )
            await store.put(b"large", bytes(range(256)) * 4096)
            await store.transact([DeleteKey(key=b"task/007"), PutKey(key=b"a\0", value=b"\0")])
            before = await store.range()
        for _ in range(2):
            async with self.open_store(tmp_path) as store:
                assert await store.range() == before
                assert await store.get(b"task/007") is None
                found = await store.get(b"task/008")
                assert found is not None
                assert (found.value, found.version) == (b"148", 3)

    @promise
    async def test_reopened_store_counts_on(self, tmp_path: Path) -> None:
        """The revision goes on where it was, also when the last change was a delete, and when
        nothing is left; so do the versions of keys, and what compares with either."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            made = await store.put(b"k", b"1")
            last = await store.put(b"k", b"2")
        async with self.open_store(tmp_path) as store:
            last = await store.put(b"k", b"3", mod_revision=last)
            found = await store.get(b"k")
            assert found is not None
            assert (found.create_revision, found.mod_revision, found.version) == (made, made + 2, 3)
            last = await store.delete(b"k")
        async with self.open_store(tmp_path) as store:
            assert (await store.range()).revision == last
            await store.compact(last)
        async with self.open_store(tmp_path) as store:
            assert await store.put(b"k", b"again") == last + 1
            found = await store.get(b"k")
            assert found is not None
            assert (found.create_revision, found.version) == (last + 1, 1)

    @promise
    async def test_reopened_store_has_what_was_returned(self, tmp_path: Path) -> None:
        """A method that has returned has written, however the store's block ends; a transaction
        that was on its way is there whole, or not at all."""
        self._needs_durable()
        returned: set[bytes] = set()

        async def write(store: MetadataStore, number: int) -> None:
            for turn in range(1000):
                key = b"%d/%d" % (number, turn)
                await store.transact(
                    [PutKey(key=key, value=b""), PutKey(key=b"copy/" + key, value=b"")]
                )
                returned.add(key)
                if len(returned) == 100:
                    raise ZeroDivisionError

        async def write_until_one_fails() -> None:
            async with self.open_store(tmp_path) as store, trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(write, store, number)

        with pytest.raises(BaseExceptionGroup) as caught:
            await write_until_one_fails()
        assert caught.group_contains(ZeroDivisionError)
        async with self.open_store(tmp_path) as store:
            found = {item.key for item in (await store.range(limit=20_000)).items}
            assert not {key for key in returned if key not in found}, "it was returned"
            copies = {key.removeprefix(b"copy/") for key in found if key.startswith(b"copy/")}
            assert copies == {key for key in found if not key.startswith(b"copy/")}

    @promise
    async def test_reopened_history_has_no_gap(self, tmp_path: Path) -> None:
        """Reads and watches at an earlier revision: all as it was, or ``CompactedError``; what was
        compacted stays so."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            first = await store.put(b"k", b"0")
            for number in range(1, 10):
                await store.put(b"k", b"%d" % number)
                await store.put(b"other", b"")
            await store.delete(b"k")
            compacted = first + 3
            await store.compact(compacted)
            last = (await store.range()).revision
            async with store.watch(b"k", start_revision=compacted) as watch:
                everything = [await watch.receive() for _ in range(9)]
        async with self.open_store(tmp_path) as store:
            with pytest.raises(CompactedError):
                await store.get(b"k", revision=compacted - 1)
            with pytest.raises(CompactedError):
                async with store.watch(start_revision=compacted - 1):
                    pass
            news = await store.put(b"k", b"new")
            for start in range(compacted, last + 2):
                expected = [changes for changes in everything if changes.revision >= start]
                got = await _watched(store, start, len(expected) + 1)
                if got is None:
                    continue  # it says that it does not know any more
                assert got[:-1] == expected
                assert [(c.key, c.now) for c in got[-1].changes] == [(b"k", await store.get(b"k"))]
                assert got[-1].revision == news
                shown = [c.revision for c in everything if c.revision <= start]
                found = await store.get(b"k", revision=start)
                if shown and start < last:
                    assert found is not None
                    assert found.mod_revision == shown[-1]

    @promise
    async def test_reopened_leases_are_alive_or_dead(self, tmp_path: Path) -> None:
        """A lease that had ended is not alive again, nor is its number given to another; a living
        one has its whole time again, and then ends with its keys."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            kept = await store.grant_lease(60)
            revoked = await store.grant_lease(60)
            await store.put(b"k", b"", lease=kept.id)
            await store.put(b"revoked", b"", lease=revoked.id)
            await store.revoke_lease(revoked.id)
            living = await store.grant_lease(self.lease_ttl * 4)
            for key in (b"1", b"2"):
                await store.put(key, b"", lease=living.id)
            while True:  # again, should the machine stand still for as long as the lease lasts
                short = await store.grant_lease(self.lease_ttl)
                await store.keep_alive(living.id)
                with suppress(LeaseNotFoundError):
                    await store.put(b"short", b"", lease=short.id)
                    break
            async with store.watch(b"short") as watch:
                while (await store.get(b"short")) is not None:
                    with trio.move_on_after(self.lease_ttl / 2):
                        await watch.receive()
                    await store.keep_alive(living.id)
        await trio.sleep(self.lease_ttl / 4)
        opened = trio.current_time()
        async with self.open_store(tmp_path) as store:
            for dead in (short, revoked):
                with pytest.raises(LeaseNotFoundError):
                    await store.keep_alive(dead.id)
                with pytest.raises(LeaseNotFoundError):
                    await store.put(b"x", b"", lease=dead.id)
            now = await store.range()
            assert [item.key for item in now.items] == [b"1", b"2", b"k"]
            new = await store.grant_lease(60)
            assert new.id not in {short.id, living.id, kept.id, revoked.id}
            async with store.watch(start_revision=now.revision + 1) as watch:
                changes = (await watch.receive()).changes
            assert [(change.key, change.now) for change in changes] == [(b"1", None), (b"2", None)]
            assert trio.current_time() - opened >= living.ttl * 0.99
            with pytest.raises(LeaseNotFoundError):
                await store.keep_alive(living.id)
            assert await store.keep_alive(kept.id) == kept
            await store.revoke_lease(kept.id)
            assert (await store.range()).items == ()


async def _watched(store: MetadataStore, start: int, count: int) -> list[KeyChanges] | None:
    """So many revisions of ``k`` from there on; ``None`` where the store says it has not all."""
    try:
        async with store.watch(b"k", start_revision=start) as watch:
            return [await watch.receive() for _ in range(count)]
    except CompactedError:
        return None
