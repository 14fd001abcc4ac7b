"""The contract suite for metadata stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from spear_core.api import (
    Compare,
    DeleteKey,
    KeyPage,
    KeyValue,
    MetadataChange,
    MetadataStore,
    MetadataStoreSpec,
    PutKey,
)
from spear_core.errors import (
    CompactedError,
    InvalidRequestError,
    LeaseNotFoundError,
    MetadataConflictError,
    StoreFullError,
)
from spear_core.testing._fakes import make_context
from spear_core.testing._metadata_reopened import MetadataReopened
from spear_core.testing._metadata_watches import MetadataWatches, shown
from spear_core.testing._promise import promise

__all__ = ["MetadataStoreContract"]


class MetadataStoreContract(MetadataWatches, MetadataReopened):
    """What every metadata store promises. Subclass it and set :attr:`spec`::

    class TestDisk(MetadataStoreContract):
        spec = SPEC
        durable = True
    """

    spec: ClassVar[MetadataStoreSpec[Any]]
    """The store under test."""
    config: ClassVar[Any] = None
    """Its configuration; ``None``: the defaults."""
    small_config: ClassVar[Any] = None
    """A configuration with a limit of about 100,000 bytes; ``None``: the limit is not tested."""
    durable: ClassVar[bool] = False
    """Whether everything is still there when the store is opened again on the same directory; so
    for one that declares ``Capability.DURABLE``."""
    lease_ttl: float = 1.0
    """Seconds: a lease long enough that a busy machine does not stand still for it."""
    patience: float = 60.0
    """Seconds after which a test that still waits has failed."""

    @asynccontextmanager
    async def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AsyncGenerator[MetadataStore, None]:
        """The store, empty at first, as a node opens it. Override it to open yours otherwise."""
        chosen = next((c for c in (config, self.config) if c is not None), None)
        chosen = self.spec.config_cls() if chosen is None else chosen
        async with self.spec.open(make_context(tmp_path), chosen) as store:
            yield store

    # ---- writing and reading

    @promise
    async def test_what_was_put_can_be_got(self, tmp_path: Path) -> None:
        """``put`` then ``get``: value, revisions and version; ``None`` for an unknown key."""
        async with self.open_store(tmp_path) as store:
            assert await store.get(b"k") is None
            first = await store.put(b"k", b"one")
            second = await store.put(b"k", b"")
            assert second == first + 1
            assert await store.get(b"k") == KeyValue(
                key=b"k", value=b"", create_revision=first, mod_revision=second, version=2
            )
            assert await store.get(b"other") is None

    @promise
    async def test_deleting_starts_a_key_anew(self, tmp_path: Path) -> None:
        """A key put again after a delete has a new ``create_revision`` and ``version`` 1; a delete
        of nothing moves no revision."""
        async with self.open_store(tmp_path) as store:
            await store.put(b"k", b"1")
            deleted = await store.delete(b"k")
            assert await store.get(b"k") is None
            assert await store.delete(b"k") == deleted
            put = await store.put(b"k", b"2")
            assert put == deleted + 1
            found = await store.get(b"k")
            assert found is not None
            assert (found.create_revision, found.mod_revision, found.version) == (put, put, 1)

    @promise
    async def test_every_byte_is_welcome(self, tmp_path: Path) -> None:
        """Keys of 1 to 400 bytes of any kind, values up to 1 MiB; others are refused."""
        keys = [bytes([n]) for n in range(256)] + [b"\0" * 400, b"\xff" * 400, b"a\0", b"a\0\0b"]
        async with self.open_store(tmp_path) as store:
            for start in range(0, len(keys), 100):
                part = keys[start : start + 100]
                await store.transact([PutKey(key=key, value=key[::-1]) for key in part])
            for key in keys:
                found = await store.get(key)
                assert found is not None
                assert (found.key, found.value) == (key, key[::-1])
            await store.put(b"big", bytes(range(256)) * 4096)
            found = await store.get(b"big")
            assert found is not None
            assert found.value == bytes(range(256)) * 4096
            for bad in (b"", b"x" * 401):
                with pytest.raises(InvalidRequestError):
                    await store.put(bad, b"")
                with pytest.raises(InvalidRequestError):
                    await store.get(bad)
            with pytest.raises(InvalidRequestError):
                await store.put(b"absent", bytes((1 << 20) + 1))
            assert await store.get(b"absent") is None

    @promise
    async def test_range_is_sorted_and_filtered(self, tmp_path: Path) -> None:
        """``range``: keys that begin with the prefix, ascending by bytes, each as ``get`` says."""
        keys = [b"b/2", b"a", b"b/10", b"b", b"c", b"b/\xff", b"b/\0", b"b0", b"B/1"]
        async with self.open_store(tmp_path) as store:
            for key in keys:
                revision = await store.put(key, key)
            page = await store.range(b"b/")
            assert [i.key for i in page.items] == [b"b/\0", b"b/10", b"b/2", b"b/\xff"]
            assert (page.next_key, page.revision) == (None, revision)
            assert page.items[1] == await store.get(b"b/10")
            assert [i.key for i in (await store.range()).items] == sorted(keys)
            assert (await store.range(b"nothing")).items == ()
            await store.put(b"\xff\xff", b"")
            assert [i.key for i in (await store.range(b"\xff")).items] == [b"\xff\xff"]

    @promise
    async def test_range_pages(self, tmp_path: Path) -> None:
        """``range``: at most ``limit``; ``next_key`` leads on and is ``None`` at the end."""
        async with self.open_store(tmp_path) as store:
            keys = [b"p/%03d" % number for number in range(10)]
            await store.transact([PutKey(key=key, value=b"") for key in [*keys, b"q", b"a"]])
            pages = await _pages(store, b"p/", limit=5)
            assert [i.key for page in pages for i in page.items] == keys
            assert [len(page.items) for page in pages] == [5, 5]
            assert [i.key for i in (await store.range(b"p/", after=b"p/0085")).items] == [b"p/009"]
            with pytest.raises(InvalidRequestError):
                await store.range(limit=0)

    @promise
    async def test_large_values_page_too(self, tmp_path: Path) -> None:
        """``range`` over large values ends, and gives each key once."""
        async with self.open_store(tmp_path) as store:
            for number in range(6):
                await store.put(b"%d" % number, bytes([number]) * (1 << 20))
            pages = await _pages(store, b"", limit=1000)
            values = [i.value[:1] for page in pages for i in page.items]
            assert values == [bytes([number]) for number in range(6)]

    # ---- transactions

    @promise
    async def test_transaction_is_one_revision(self, tmp_path: Path) -> None:
        """``transact``: all its changes at one revision, one after the last."""
        async with self.open_store(tmp_path) as store:
            await store.put(b"gone", b"")
            before = (await store.range()).revision
            result = await store.transact(
                [PutKey(key=b"b", value=b"2"), DeleteKey(key=b"gone"), PutKey(key=b"a", value=b"1")]
            )
            assert (result.succeeded, result.revision) == (True, before + 1)
            page = await store.range()
            assert page.revision == before + 1
            assert [(i.key, i.mod_revision) for i in page.items] == [
                (b"a", before + 1),
                (b"b", before + 1),
            ]

    @promise
    async def test_every_comparison_must_hold(self, tmp_path: Path) -> None:
        """``transact``: nothing changes, and no revision moves, unless every field given in every
        comparison holds; the result says what the keys held."""
        async with self.open_store(tmp_path) as store:
            made = await store.put(b"k", b"1")
            now = await store.put(b"k", b"2")
            found = await store.get(b"k")
            right = Compare(
                key=b"k", exists=True, value=b"2", mod_revision=now, create_revision=made
            )
            wrong = [
                Compare(key=b"k", exists=False),
                Compare(key=b"k", value=b"1"),
                Compare(key=b"k", value=b""),
                Compare(key=b"k", mod_revision=made),
                Compare(key=b"k", mod_revision=0),
                Compare(key=b"k", create_revision=now),
                Compare(key=b"absent", exists=True),
                Compare(key=b"absent", value=b""),
                Compare(key=b"absent", mod_revision=now),
            ]
            for compare in wrong:
                for compares in ([compare], [right, compare], [compare, right]):
                    result = await store.transact([PutKey(key=b"x", value=b"")], compares=compares)
                    assert (result.succeeded, result.revision) == (False, now), compare
                    held = {b"k": found, b"absent": None}
                    assert result.current == tuple(held[c.key] for c in compares)
            assert await store.get(b"x") is None
            absent = Compare(key=b"absent", exists=False, mod_revision=0, create_revision=0)
            result = await store.transact([PutKey(key=b"x", value=b"")], compares=[right, absent])
            assert (result.succeeded, result.revision) == (True, now + 1)
            assert result.current == (found, None)

    @promise
    async def test_transaction_of_nothing_reads(self, tmp_path: Path) -> None:
        """``transact`` without changes, or with deletes of nothing, moves no revision."""
        async with self.open_store(tmp_path) as store:
            revision = await store.put(b"k", b"v")
            read = await store.transact([], compares=[Compare(key=b"k")])
            assert (read.succeeded, read.revision) == (True, revision)
            assert read.current == (await store.get(b"k"),)
            deleted = await store.transact([DeleteKey(key=b"absent")])
            assert (deleted.succeeded, deleted.revision) == (True, revision)

    @promise
    async def test_bad_transactions_change_nothing(self, tmp_path: Path) -> None:
        """``transact`` refuses a key named twice, too many changes, an unknown lease, and one bad
        change among good ones; 128 changes are fine."""
        good = PutKey(key=b"good", value=b"")
        many = [PutKey(key=b"%d" % number, value=b"") for number in range(129)]
        async with self.open_store(tmp_path) as store:
            wrong: list[list[MetadataChange]] = [
                [good, PutKey(key=b"good", value=b"2")],
                [good, DeleteKey(key=b"good")],
                [good, PutKey(key=b"", value=b"")],
                [good, PutKey(key=b"x", value=bytes((1 << 20) + 1))],
                [*many],
            ]
            for bad in wrong:
                with pytest.raises(InvalidRequestError):
                    await store.transact(bad)
            with pytest.raises(LeaseNotFoundError):
                await store.transact([good, PutKey(key=b"x", value=b"", lease=12345)])
            assert (await store.range()).items == ()
            await store.transact(many[:128])
            assert len((await store.range()).items) == 128

    @promise
    async def test_increments_are_exact(self, tmp_path: Path) -> None:
        """Of tasks that compare and swap one key, none overwrites another's write."""
        async with self.open_store(tmp_path) as store:
            await store.put(b"n", b"0")

            async def increment() -> None:
                for _ in range(20):
                    while True:
                        found = await store.get(b"n")
                        assert found is not None
                        value = b"%d" % (int(found.value) + 1)
                        try:
                            await store.put(b"n", value, mod_revision=found.mod_revision)
                            break
                        except MetadataConflictError:
                            continue

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(increment)
            found = await store.get(b"n")
            assert found is not None
            assert (found.value, found.version) == (b"160", 161)

    @promise
    async def test_put_and_delete_hold_to_the_revision(self, tmp_path: Path) -> None:
        """``put`` and ``delete`` with ``mod_revision``: a conflict, with the current one, unless it
        is current; 0 means "must not exist"."""
        async with self.open_store(tmp_path) as store:
            made = await store.put(b"k", b"1", mod_revision=0)
            for wrong in (0, made + 1):
                with pytest.raises(MetadataConflictError) as caught:
                    await store.put(b"k", b"x", mod_revision=wrong)
                assert caught.value.current == made
                with pytest.raises(MetadataConflictError):
                    await store.delete(b"k", mod_revision=wrong)
            await store.delete(b"k", mod_revision=made)
            with pytest.raises(MetadataConflictError) as caught:
                await store.put(b"k", b"x", mod_revision=made)
            assert caught.value.current == 0

    # ---- history

    @promise
    async def test_the_past_can_be_read(self, tmp_path: Path) -> None:
        """``get`` and ``range`` at a revision: as it was then, deletes and leases included."""
        async with self.open_store(tmp_path) as store:
            was: dict[int, dict[bytes, bytes]] = {(await store.range()).revision: {}}
            state: dict[bytes, bytes] = {}
            for number in range(60):
                key = b"k%d" % (number * 7 % 5)
                if number % 4 == 3:
                    revision = await store.delete(key)
                    state = {k: v for k, v in state.items() if k != key}
                else:
                    revision = await store.put(key, b"%d" % number)
                    state = {**state, key: b"%d" % number}
                was[revision] = state
            for revision, then in was.items():
                page = await store.range(b"k", revision=revision)
                assert page.revision == revision
                assert {i.key: i.value for i in page.items} == then
                for key in (b"k0", b"k3"):
                    found = await store.get(key, revision=revision)
                    assert (found.value if found else None) == then.get(key)
            with pytest.raises(InvalidRequestError):
                await store.get(b"k0", revision=max(was) + 1)
            with pytest.raises(InvalidRequestError):
                await store.range(revision=max(was) + 1)

    @promise
    async def test_pages_at_a_revision_are_one_picture(self, tmp_path: Path) -> None:
        """Pages asked for at the first one's revision show nothing written since."""
        async with self.open_store(tmp_path) as store:
            for number in range(10):
                await store.put(b"%d" % number, b"old")
            page = await store.range(limit=3)
            await store.put(b"5", b"new")
            await store.delete(b"7")
            await store.put(b"55", b"new")
            got = list(page.items)
            while page.next_key is not None:
                page = await store.range(after=page.next_key, limit=3, revision=page.revision)
                got += page.items
            assert [i.key for i in got] == [b"%d" % number for number in range(10)]
            assert {i.value for i in got} == {b"old"}

    @promise
    async def test_compaction_forgets_the_past_alone(self, tmp_path: Path) -> None:
        """``compact``: what was before cannot be read, what was then and since can."""
        async with self.open_store(tmp_path) as store:
            first = await store.put(b"k", b"1")
            await store.put(b"gone", b"")
            await store.delete(b"gone")
            second = await store.put(b"k", b"2")
            third = await store.put(b"k", b"3")
            await store.compact(second)
            for read in (store.get(b"k", revision=first), store.range(revision=second - 1)):
                with pytest.raises(CompactedError) as caught:
                    await read
                assert caught.value.compacted == second
            found = await store.get(b"k", revision=second)
            assert found is not None
            assert (found.value, found.create_revision, found.version) == (b"2", first, 2)
            page = await store.range(revision=second)
            assert [(i.key, i.value) for i in page.items] == [(b"k", b"2")]
            now = await store.get(b"k")
            assert now is not None
            assert (now.value, now.mod_revision, now.version) == (b"3", third, 3)
            with pytest.raises(CompactedError):
                await store.compact(second)
            with pytest.raises(InvalidRequestError):
                await store.compact(third + 1)
            await store.compact(third)
            assert await store.get(b"k") == now

    # ---- leases

    @promise
    async def test_lease_ends_unless_renewed(self, tmp_path: Path) -> None:
        """A lease that is not renewed ends, not before its time, and its keys go in one revision;
        renewed, it stays."""
        async with self.open_store(tmp_path) as store:
            kept = await store.grant_lease(self.lease_ttl * 4 + 30)
            await store.put(b"kept", b"", lease=kept.id)
            while True:  # again, should the machine stand still for as long as the lease lasts
                begun = trio.current_time()
                lease = await store.grant_lease(self.lease_ttl)
                assert lease.ttl >= self.lease_ttl
                assert lease.id not in (0, kept.id)
                puts = [PutKey(key=b"%d" % n, value=b"", lease=lease.id) for n in range(3)]
                with suppress(LeaseNotFoundError):
                    written = await store.transact(puts)
                    found = await store.get(b"0")
                    if found is not None:
                        break
                assert trio.current_time() - begun >= lease.ttl * 0.99
            assert found.lease == lease.id
            async with store.watch(start_revision=written.revision + 1) as watch:
                while True:
                    with trio.move_on_after(self.lease_ttl / 2):
                        ended = await watch.receive()
                        break
                    assert (await store.keep_alive(kept.id)).ttl == kept.ttl
            assert trio.current_time() - begun >= lease.ttl * 0.99
            assert shown([ended]) == [[(b"0", None), (b"1", None), (b"2", None)]]
            assert [i.key for i in (await store.range()).items] == [b"kept"]
            for call in (store.keep_alive, store.revoke_lease):
                with pytest.raises(LeaseNotFoundError):
                    await call(lease.id)
            with pytest.raises(LeaseNotFoundError):
                await store.put(b"x", b"", lease=lease.id)

    @promise
    async def test_revoked_lease_takes_its_keys(self, tmp_path: Path) -> None:
        """``revoke_lease`` deletes the keys that have that lease then, and no others."""
        async with self.open_store(tmp_path) as store:
            lease, other = await store.grant_lease(60), await store.grant_lease(60)
            for key in (b"mine", b"freed", b"moved", b"gone"):
                await store.put(key, b"", lease=lease.id)
            await store.put(b"freed", b"")
            await store.put(b"moved", b"", lease=other.id)
            await store.delete(b"gone")
            before = await store.put(b"gone", b"again")
            await store.revoke_lease(lease.id)
            page = await store.range()
            assert page.revision == before + 1
            assert [i.key for i in page.items] == [b"freed", b"gone", b"moved"]
            with pytest.raises(LeaseNotFoundError):
                await store.revoke_lease(lease.id)
            empty = await store.grant_lease(60)
            await store.revoke_lease(empty.id)
            assert (await store.range()).revision == before + 1

    @promise
    async def test_a_lease_needs_a_time(self, tmp_path: Path) -> None:
        """``grant_lease`` raises ``InvalidRequestError`` unless ``ttl`` is above zero."""
        async with self.open_store(tmp_path) as store:
            for bad in (0, -1, float("nan"), float("inf")):
                with pytest.raises(InvalidRequestError):
                    await store.grant_lease(bad)

    # ---- limits, cancellation, life

    @promise
    async def test_full_store_refuses(self, tmp_path: Path) -> None:
        """``transact`` raises ``StoreFullError`` over the limit and changes nothing; deleting and
        compacting make room."""
        if self.small_config is None:
            pytest.skip("small_config is not set: the limit is not tested")
        async with self.open_store(tmp_path, self.small_config) as store:
            await store.put(b"kept", bytes(60_000))
            with pytest.raises(StoreFullError):
                await store.transact(
                    [PutKey(key=b"small", value=b""), PutKey(key=b"big", value=bytes(90_000))]
                )
            assert [i.key for i in (await store.range()).items] == [b"kept"]
            for _ in range(5):
                deleted = await store.delete(b"kept")
                await store.compact(deleted)
                await store.put(b"kept", bytes(60_000))

    @promise
    async def test_cancelled_calls_change_nothing(self, tmp_path: Path) -> None:
        """No method changes anything when it is cancelled."""
        async with self.open_store(tmp_path) as store:
            lease = await store.grant_lease(60)
            await store.put(b"k", b"1", lease=lease.id)
            before = await store.range()
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: store.put(b"k", b"2"),
                lambda: store.delete(b"k"),
                lambda: store.revoke_lease(lease.id),
                lambda: store.compact(before.revision),
            ]
            for call in calls:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught
            assert await store.range() == before
            await store.compact(before.revision)


async def _pages(store: MetadataStore, prefix: bytes, *, limit: int) -> list[KeyPage]:
    pages = [await store.range(prefix, limit=limit)]
    while (after := pages[-1].next_key) is not None:
        pages.append(await store.range(prefix, after=after, limit=limit))
    return pages
