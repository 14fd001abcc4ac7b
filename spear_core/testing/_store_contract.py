"""The contract suite for object stores."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from spear_core.api import ObjectStat, ObjectStore, ObjectStoreSpec
from spear_core.errors import (
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
    StoreFullError,
)
from spear_core.testing._fakes import make_context
from spear_core.testing._promise import promise

__all__ = ["ObjectStoreContract"]


class ObjectStoreContract:
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
    """Whether objects are still there when the store is opened again on the same directory."""
    patience: float = 10.0
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

    # ---- references, pins, deleting

    @promise
    async def test_last_reference_collects(self, tmp_path: Path) -> None:
        """``remove_ref``: collected when the count goes from one to zero, and not before."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"")
            assert (await store.add_ref("k")).refs == 1
            assert (await store.add_ref("k")).refs == 2
            left = await store.remove_ref("k")
            assert left is not None
            assert left.refs == 1
            assert await store.remove_ref("k") is None
            with pytest.raises(ObjectNotFoundError):
                await store.get("k")

    @promise
    async def test_no_reference_to_remove(self, tmp_path: Path) -> None:
        """``remove_ref`` raises ``InvalidRequestError`` at zero; the object stays."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"")
            with pytest.raises(InvalidRequestError):
                await store.remove_ref("k")
            assert (await store.stat("k")).refs == 0

    @promise
    async def test_pinned_objects_stay(self, tmp_path: Path) -> None:
        """A pinned object is not collected with its last reference, but when it is unpinned."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"")
            await store.add_ref("k")
            assert (await store.pin("k")).pinned
            left = await store.remove_ref("k")
            assert left is not None
            assert (left.refs, left.pinned) == (0, True)
            assert await store.unpin("k") is None
            with pytest.raises(ObjectNotFoundError):
                await store.stat("k")

    @promise
    async def test_unpinning_keeps_referenced_objects(self, tmp_path: Path) -> None:
        """``unpin``: an object with references stays; so does one that was not pinned."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"")
            never_pinned = await store.unpin("k")
            assert never_pinned is not None
            await store.add_ref("k")
            await store.pin("k")
            await store.pin("k")
            left = await store.unpin("k")
            assert left is not None
            assert (left.refs, left.pinned) == (1, False)
            assert (await store.stat("k")).pinned is False

    @promise
    async def test_delete_removes_whatever_holds_it(self, tmp_path: Path) -> None:
        """``delete``: whatever its references and pin, which a new put does not inherit."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"")
            await store.add_ref("k")
            await store.pin("k")
            await store.delete("k")
            with pytest.raises(ObjectNotFoundError):
                await store.stat("k")
            stat = await store.put("k", b"")
            assert (stat.refs, stat.pinned) == (0, False)

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
            await store.put("k", mine)  # type: ignore[arg-type]  # as callers do all the same
            mine[:] = b"after!"
            assert (await store.get("k"))[1] == b"before"

    @promise
    async def test_durable_store_keeps_everything(self, tmp_path: Path) -> None:
        """Opened again on the same directory, a durable store has objects, versions, references
        and pins as they were."""
        if not self.durable:
            pytest.skip("durable is not set: this store forgets")
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"value")
            await store.add_ref("k")
            stat = await store.pin("k")
            await store.put("gone", b"")
            await store.delete("gone")
        async with self.open_store(tmp_path) as store:
            assert await store.get("k") == (stat, b"value")
            assert (await store.put("gone", b"")).version == 2
