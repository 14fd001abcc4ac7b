"""The contract suite for object stores."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from spear_core.api import (
    CheckObject,
    DeleteObject,
    ObjectChanges,
    ObjectOperation,
    ObjectStat,
    ObjectStore,
    ObjectStoreSpec,
    PutObject,
)
from spear_core.errors import (
    CompactedError,
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
    StoreFullError,
)
from spear_core.testing._fakes import make_context
from spear_core.testing._promise import promise
from spear_core.testing._store_holders import StoreHolders, shown
from spear_core.testing._store_pipes import StorePipes
from spear_core.testing._store_reopened import StoreReopened
from spear_core.testing._store_versions import StoreVersions

__all__ = ["ObjectStoreContract"]


class ObjectStoreContract(StoreVersions, StorePipes, StoreHolders, StoreReopened):
    """What every object store promises. Subclass it and set :attr:`spec`::

    class TestDisk(ObjectStoreContract):
        spec = SPEC
        small_config = DiskConfig(max_bytes=100_000)
    """

    spec: ClassVar[ObjectStoreSpec[Any]]
    """The store under test."""
    config: ClassVar[Any] = None
    """Its configuration; ``None``: the defaults."""
    small_config: ClassVar[Any] = None
    """A configuration with a limit of about 100,000 bytes; ``None``: the limit is not tested."""
    durable: ClassVar[bool] = False
    """Whether objects are still there when the store is opened again on the same directory; so for
    one that declares ``Capability.DURABLE``."""
    shortest: float = 1.0
    """Seconds to live, or to be silent: so many that a busy machine does not stand still for
    them."""
    patience: float = 60.0
    """Seconds after which a test that still waits has failed."""

    @asynccontextmanager
    async def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AsyncGenerator[ObjectStore, None]:
        """The store, as a node opens it. Override it to open yours in another way."""
        chosen = next((c for c in (config, self.config) if c is not None), None)
        chosen = self.spec.config_cls() if chosen is None else chosen
        async with self.spec.open(make_context(tmp_path), chosen) as store:
            yield store

    # ---- writing and reading

    @promise
    async def test_what_was_put_can_be_got(self, tmp_path: Path) -> None:
        """``put`` then ``get``: the same bytes, with size, sha256, content type and times."""
        async with self.open_store(tmp_path) as store:
            for value in (b"", b"x", bytes(range(256)) * 5000):
                begun = time.time()
                put = await store.put(f"k{len(value)}", value, content_type="text/x")
                stat, got = await store.get(f"k{len(value)}")
                assert got == value
                assert stat == put
                with suppress(trio.WouldBlock):
                    assert store.get_nowait(f"k{len(value)}") == value
                assert (stat.key, stat.size, stat.version) == (f"k{len(value)}", len(value), 1)
                assert stat.sha256 == hashlib.sha256(value).hexdigest()
                assert (stat.content_type, stat.refs, stat.pinned) == ("text/x", 0, False)
                assert begun - 1 <= stat.created_at <= stat.updated_at <= time.time() + 1

    @promise
    async def test_stat_is_what_get_says(self, tmp_path: Path) -> None:
        """``stat``: everything but the value."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"value")
            stat, _ = await store.get("k")
            assert await store.stat("k") == stat
            assert stat.content_type == "application/octet-stream"

    @promise
    async def test_every_write_is_a_new_version(self, tmp_path: Path) -> None:
        """``put`` over an object: the next version, the new value, the first ``created_at``."""
        async with self.open_store(tmp_path) as store:
            first = await store.put("k", b"one")
            second = await store.put("k", b"one")
            third = await store.put("k", b"three", content_type="text/plain")
            stat, value = await store.get("k")
            assert [s.version for s in (first, second, third)] == [1, 2, 3]
            assert (stat, value) == (third, b"three")
            assert stat.created_at == first.created_at
            assert first.updated_at <= second.updated_at <= third.updated_at
            assert stat.content_type == "text/plain"

    @promise
    async def test_versions_go_on_after_a_delete(self, tmp_path: Path) -> None:
        """``ObjectStat.version``: one more with every write, also after a delete and a new put."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1")
            await store.put("k", b"2")
            await store.delete("k")
            assert (await store.put("k", b"3")).version == 3
            await store.add_ref("k")
            assert await store.remove_ref("k") is None
            assert (await store.put("k", b"4", expect=0)).version == 4
            assert (await store.put("other", b"")).version == 1

    @promise
    async def test_a_write_keeps_references_and_pin(self, tmp_path: Path) -> None:
        """``put``: references and the pin stay as they are."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1")
            await store.add_ref("k")
            await store.pin("k")
            stat = await store.put("k", b"2")
            assert (stat.refs, stat.pinned) == (1, True)

    @promise
    async def test_keys_are_checked(self, tmp_path: Path) -> None:
        """``put`` raises ``InvalidRequestError`` for a key that is empty, over 400 bytes in UTF-8,
        or that UTF-8 cannot express; every other text is a key."""
        async with self.open_store(tmp_path) as store:
            for bad in ("", "a" * 401, "é" * 201, "\ud800"):
                with pytest.raises(InvalidRequestError):
                    await store.put(bad, b"")
            good = ["a" * 400, "é" * 200, "a/b", "../x", "with space", "new\nline", "\0", "日本"]
            for number, key in enumerate(good):
                await store.put(key, b"%d" % number)
            assert [int((await store.get(key))[1]) for key in good] == list(range(len(good)))

    @promise
    async def test_unknown_keys_are_not_found(self, tmp_path: Path) -> None:
        """Every method but ``put`` and ``list`` raises ``ObjectNotFoundError``."""
        async with self.open_store(tmp_path) as store:
            await store.put("there", b"")
            calls: list[Callable[[str], Awaitable[object]]] = [
                store.get,
                store.stat,
                store.add_ref,
                store.remove_ref,
                store.pin,
                store.unpin,
                store.delete,
            ]
            for call in calls:
                with pytest.raises(ObjectNotFoundError):
                    await call("absent")
            with pytest.raises((ObjectNotFoundError, trio.WouldBlock)):
                store.get_nowait("absent")

    # ---- optimistic concurrency

    @promise
    async def test_expected_version_is_held_to(self, tmp_path: Path) -> None:
        """``put(expect=…)``: a conflict, with the current version, unless it is current."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1")
            await store.put("k", b"2", expect=1)
            for wrong in (1, 3):
                with pytest.raises(ObjectConflictError) as caught:
                    await store.put("k", b"x", expect=wrong)
                assert caught.value.current == 2
            stat, value = await store.get("k")
            assert (stat.version, value) == (2, b"2")

    @promise
    async def test_expect_zero_means_must_not_exist(self, tmp_path: Path) -> None:
        """``put(expect=0)``: a conflict when the key exists; ``expect=1`` when it does not."""
        async with self.open_store(tmp_path) as store:
            assert (await store.put("k", b"1", expect=0)).version == 1
            with pytest.raises(ObjectConflictError) as caught:
                await store.put("k", b"2", expect=0)
            assert caught.value.current == 1
            with pytest.raises(ObjectConflictError) as caught:
                await store.put("absent", b"2", expect=1)
            assert caught.value.current == 0
            await store.delete("k")
            with pytest.raises(ObjectConflictError):
                await store.put("k", b"3", expect=1)

    @promise
    async def test_delete_holds_to_the_expected_version(self, tmp_path: Path) -> None:
        """``delete(expect=…)``: a conflict unless it is current."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1")
            await store.put("k", b"2")
            with pytest.raises(ObjectConflictError) as caught:
                await store.delete("k", expect=1)
            assert caught.value.current == 2
            await store.delete("absent", expect=0)
            await store.delete("k", expect=2)
            with pytest.raises(ObjectNotFoundError):
                await store.get("k")

    @promise
    async def test_one_of_many_writers_wins(self, tmp_path: Path) -> None:
        """Of writers that name the same version, exactly one succeeds."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"0")
            won: list[int] = []

            async def write(number: int) -> None:
                try:
                    await store.put("k", bytes([number]) * (3 << 20), expect=1)
                except ObjectConflictError:
                    return
                won.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(write, number)
            stat, value = await store.get("k")
            assert len(won) == 1
            assert stat.version == 2
            assert value == bytes(won) * (3 << 20)

    @promise
    async def test_content_hash_is_held_to(self, tmp_path: Path) -> None:
        """``expect`` with a ``sha256``: a conflict unless the content is that; never true of an
        object that was put without a hash, or is not there."""
        async with self.open_store(tmp_path) as store:
            one = await store.put("k", b"1")
            two = await store.put("k", b"2", expect=one.sha256)
            for call in (
                lambda: store.put("k", b"x", expect=one.sha256),
                lambda: store.delete("k", expect=one.sha256),
                lambda: store.put("absent", b"x", expect=one.sha256),
            ):
                with pytest.raises(ObjectConflictError):
                    await call()
            assert await store.get("k") == (two, b"2")
            bare = await store.put("k", b"3" * 100_000, hashed=False)
            assert bare.sha256 == ""
            with pytest.raises(ObjectConflictError):
                await store.put("k", b"x", expect="")
            await store.delete("k", expect=bare.version)

    @promise
    async def test_transaction_is_all_or_nothing(self, tmp_path: Path) -> None:
        """``transact``: everything at one revision, or nothing when one part cannot be."""
        async with self.open_store(tmp_path) as store:
            await store.put("a", b"1")
            await store.put("b", b"1")
            before = await store.list()
            good = [PutObject(key="a", value=b"2"), PutObject(key="new", value=bytes(200_000))]
            bad: list[tuple[type[Exception], ObjectOperation]] = [
                (ObjectConflictError, PutObject(key="b", value=b"", expect=0)),
                (ObjectConflictError, CheckObject(key="b", expect=2)),
                (ObjectConflictError, DeleteObject(key="b", expect=7)),
                (ObjectNotFoundError, DeleteObject(key="absent")),
                (InvalidRequestError, PutObject(key="", value=b"")),
                (InvalidRequestError, DeleteObject(key="a")),
            ]
            for error, operation in bad:
                for operations in ([*good, operation], [operation, *good]):
                    with pytest.raises(error):
                        await store.transact(operations)
                    assert await store.list() == before
            done = await store.transact(
                [*good, DeleteObject(key="b", expect=1), CheckObject(key="c", expect=0)]
            )
            assert done[2:] == (None, None)
            assert [stat and (stat.key, stat.version) for stat in done[:2]] == [
                ("a", 2),
                ("new", 1),
            ]
            page = await store.list()
            assert page.objects == done[:2]
            assert {stat.revision for stat in page.objects} == {page.revision}

    # ---- views

    @promise
    async def test_views_show_one_version(self, tmp_path: Path) -> None:
        """``open``: the bytes, read-only, as they were when the block began, whatever is written
        or deleted meanwhile; released after it."""
        for size in (0, 10, 3 << 20):
            async with self.open_store(tmp_path / str(size)) as store:
                first = await store.put("k", b"1" * size)
                async with store.open("k") as old:
                    await store.put("k", b"2" * size)
                    async with store.open("k") as new:
                        assert new.data.tobytes() == b"2" * size
                        await store.delete("k")
                        for number in range(5):
                            await store.put(f"other {number}", b"x" * size)
                        assert new.data.tobytes() == b"2" * size
                    assert (old.stat, old.data.tobytes()) == (first, b"1" * size)
                    assert old.data.readonly
                    if old.fd is not None:
                        with pytest.raises(OSError, match="Bad file descriptor"):
                            os.pwrite(old.fd, b"x", 0)
                        assert os.pread(old.fd, size + 1, 0) == b"1" * size
                with pytest.raises(ValueError, match="released"):
                    old.data.tobytes()

    @promise
    async def test_parts_of_a_view_outlive_it(self, tmp_path: Path) -> None:
        """What was made from a view's ``data`` goes on showing that version after the block, and
        after the store is closed."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1" * 1_000_000)
            async with store.open("k") as view:
                part = view.data[500_000:]
                array = pickle.PickleBuffer(view.data)
            await store.put("k", b"2" * 1_000_000)
            await store.delete("k")
            assert part.tobytes() == b"1" * 500_000
        assert part.tobytes() == b"1" * 500_000
        assert memoryview(array)[:3].tobytes() == b"111"

    # ---- listing

    @promise
    async def test_list_is_sorted_and_filtered(self, tmp_path: Path) -> None:
        """``list``: keys that begin with ``prefix``, ascending, each as ``stat`` says."""
        async with self.open_store(tmp_path) as store:
            for key in ("b/2", "a", "b/10", "b", "c", "b/é", "B/1"):
                await store.put(key, key.encode())
            page = await store.list("b/")
            assert [s.key for s in page.objects] == ["b/10", "b/2", "b/é"]
            assert page.next_key is None
            assert page.objects[0] == await store.stat("b/10")
            everything = [s.key for s in (await store.list()).objects]
            assert everything == ["B/1", "a", "b", "b/10", "b/2", "b/é", "c"]
            assert (await store.list("nothing")).objects == ()

    @promise
    async def test_list_pages(self, tmp_path: Path) -> None:
        """``list``: at most ``limit``; ``next_key`` leads on and is ``None`` at the end."""
        async with self.open_store(tmp_path) as store:
            keys = [f"p/{number:03}" for number in range(10)]
            for key in [*keys, "q"]:
                await store.put(key, b"")
            got: list[ObjectStat] = []
            after: str | None = None
            sizes = []
            while True:
                page = await store.list("p/", after=after, limit=5)
                got += page.objects
                sizes.append(len(page.objects))
                after = page.next_key
                if after is None:
                    break
            assert [s.key for s in got] == keys
            assert sizes == [5, 5]
            assert [s.key for s in (await store.list("p/", after="p/0085")).objects] == ["p/009"]

    # ---- watching

    @promise
    async def test_watch_gives_every_change_once(self, tmp_path: Path) -> None:
        """``watch``: each revision that concerns the prefix, once, in order; references and pins
        make none; closed with its block."""
        async with self.open_store(tmp_path) as store, store.watch("a/") as watch:
            one = await store.put("a/1", b"1")
            await store.put("b", b"")
            await store.add_ref("a/1")
            await store.pin("a/1")
            done = await store.transact(
                [PutObject(key="a/2", value=b""), DeleteObject(key="b"), DeleteObject(key="a/1")]
            )
            await store.add_ref("a/2")
            await store.remove_ref("a/2")
            got = [await watch.receive() for _ in range(3)]
            assert got[0] == ObjectChanges(revision=one.revision, changes=got[0].changes)
            assert got[0].changes[0].now == one
            assert [shown(changes) for changes in got] == [
                [("a/1", 1)],
                [("a/1", None), ("a/2", 1)],
                [("a/2", None)],
            ]
            assert done[0] is not None
            assert got[1].revision == done[0].revision
            with trio.CancelScope() as scope:
                scope.cancel()
                await watch.receive()
            await store.put("a/3", b"")
            assert shown(await watch.receive()) == [("a/3", 1)]
        with pytest.raises(trio.ClosedResourceError):
            await watch.receive()

    @promise
    async def test_list_then_watch_has_no_gap(self, tmp_path: Path) -> None:
        """``watch(start_revision=…)``: from the revision after a page's nothing is missed; history
        that is not there is said to be gone."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1")
            page = await store.list()
            await store.put("k", b"2")
            await store.delete("k")
            async with store.watch(start_revision=page.revision + 1) as watch:
                assert [shown(await watch.receive()) for _ in range(2)] == [
                    [("k", 2)],
                    [("k", None)],
                ]
            with pytest.raises(CompactedError):
                async with store.watch(start_revision=-1):
                    pass

    # ---- limits, cancellation, life

    @promise
    async def test_full_store_refuses(self, tmp_path: Path) -> None:
        """``put`` raises ``StoreFullError`` over the limit, changes nothing, and evicts nothing."""
        if self.small_config is None:
            pytest.skip("small_config is not set: the limit is not tested")
        async with self.open_store(tmp_path, self.small_config) as store:
            await store.put("kept", bytes(60_000))
            with pytest.raises(StoreFullError):
                await store.put("more", bytes(90_000))
            with pytest.raises(StoreFullError):
                await store.put("kept", bytes(200_000))
            stat, value = await store.get("kept")
            assert (stat.version, len(value)) == (1, 60_000)
            with pytest.raises(ObjectNotFoundError):
                await store.stat("more")
            for _ in range(5):
                await store.put("kept", bytes(60_000))
            await store.delete("kept")
            await store.put("more", bytes(60_000))

    @promise
    async def test_cancelled_calls_change_nothing(self, tmp_path: Path) -> None:
        """No method changes anything when it is cancelled."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"1")
            before = await store.add_ref("k")
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: store.put("k", b"2"),
                lambda: store.put("new", b"2"),
                lambda: store.add_ref("k"),
                lambda: store.remove_ref("k"),
                lambda: store.pin("k"),
                lambda: store.delete("k"),
                lambda: store.add_ref("k", holder="h"),
                lambda: store.transact([DeleteObject(key="k"), PutObject(key="n", value=b"")]),
            ]
            for call in calls:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught
            assert await store.get("k") == (before, b"1")
            assert [s.key for s in (await store.list()).objects] == ["k"]

    @promise
    async def test_values_are_the_stores_own(self, tmp_path: Path) -> None:
        """What a caller does to its buffer after ``put`` does not reach the store."""
        async with self.open_store(tmp_path) as store:
            mine = bytearray(b"before")
            await store.put("k", mine)
            mine[:] = b"after!"
            assert (await store.get("k"))[1] == b"before"
