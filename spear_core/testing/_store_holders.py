"""What object stores promise of what keeps an object: references, pins, times to live."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import ObjectChanges, ObjectHolder, ObjectStore
from spear_core.errors import InvalidRequestError, ObjectNotFoundError
from spear_core.testing._promise import promise

__all__ = ["StoreHolders", "shown"]


def shown(changes: ObjectChanges) -> list[tuple[str, int | None]]:
    """Key and new version of each change."""
    return [(c.key, c.now.version if c.now else None) for c in changes.changes]


class StoreHolders(ABC):
    """A part of :class:`~spear_core.testing.ObjectStoreContract`."""

    shortest: float
    patience: float

    @abstractmethod
    def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AbstractAsyncContextManager[ObjectStore]:
        """The store, as a node opens it."""

    @promise
    async def test_holders_are_told_apart(self, tmp_path: Path) -> None:
        """``add_ref(holder=…)``: ``holders`` says who has how many; nobody removes another's."""
        async with self.open_store(tmp_path) as store:
            await store.put("k", b"")
            for holder in ("b", "a", "b", "", "ab"):
                stat = await store.add_ref("k", holder=holder)
            assert stat.refs == 5
            assert tuple(await store.holders("k")) == tuple(
                ObjectHolder(name=name, refs=refs, ttl=None)
                for name, refs in (("", 1), ("a", 1), ("ab", 1), ("b", 2))
            )
            await store.remove_ref("k", holder="a")
            for other in ("a", "c"):
                with pytest.raises(InvalidRequestError):
                    await store.remove_ref("k", holder=other)
            assert [h.name for h in await store.holders("k")] == ["", "ab", "b"]
            for bad in ("x" * 201, "a\0b", "\ud800"):
                with pytest.raises(InvalidRequestError):
                    await store.add_ref("k", holder=bad)
            await store.put("k", b"2")
            assert (await store.stat("k")).refs == 4
            await store.delete("k")
            await store.put("k", b"3")
            assert tuple(await store.holders("k")) == ()
            assert await store.release("b") == 0
            with pytest.raises(ObjectNotFoundError):
                await store.holders("absent")

    @promise
    async def test_released_holder_keeps_nothing(self, tmp_path: Path) -> None:
        """``release``: all references of that holder go, and what nothing keeps is collected."""
        async with self.open_store(tmp_path) as store:
            for key in ("alone", "shared", "pinned"):
                await store.put(key, b"")
                await store.add_ref(key, holder="dead")
            await store.add_ref("alone", holder="dead")
            await store.add_ref("shared", holder="alive")
            await store.pin("pinned")
            assert await store.release("dead") == 4
            assert await store.release("dead") == 0
            left = (await store.list()).objects
            assert [(s.key, s.refs) for s in left] == [("pinned", 0), ("shared", 1)]
            with pytest.raises(InvalidRequestError):
                await store.release("")

    @promise
    async def test_silent_holder_is_released(self, tmp_path: Path) -> None:
        """``keep_alive``: a holder who does not call again in time is released, not earlier; one
        who does keeps its objects."""
        async with self.open_store(tmp_path) as store:
            for name in ("dead", "alive"):
                await store.put(name, b"")
                await store.add_ref(name, holder=name)
            before = (await store.list()).revision
            begun = trio.current_time()
            await store.keep_alive("alive", self.shortest * 4 + 30)
            await store.keep_alive("dead", self.shortest)
            found = [h.ttl for h in await _holders(store, "dead")]
            assert found == [self.shortest] or trio.current_time() - begun >= self.shortest * 0.99
            async with store.watch(start_revision=before + 1) as watch:
                while True:
                    with trio.move_on_after(self.shortest / 2):
                        assert shown(await watch.receive()) == [("dead", None)]
                        break
                    await store.keep_alive("alive", self.shortest * 4 + 30)
            assert trio.current_time() - begun >= self.shortest * 0.99
            assert [s.key for s in (await store.list()).objects] == ["alive"]

    @promise
    async def test_objects_expire(self, tmp_path: Path) -> None:
        """``ttl``: collected when it is over, unless something keeps the object then; a write
        without one takes it away."""
        async with self.open_store(tmp_path) as store:
            for key, keep in (("held", store.add_ref), ("pinned", store.pin)):
                while True:  # again, should the machine stand still for as long as it lives
                    await store.put(key, b"", ttl=self.shortest)
                    with suppress(ObjectNotFoundError):
                        await keep(key)
                        break
            await store.put("renewed", b"", ttl=self.shortest)
            assert (await store.put("renewed", b"")).expires_at is None
            stat = await store.put("expires", b"", ttl=self.shortest)
            assert stat.expires_at is not None
            assert stat.expires_at == pytest.approx(time.time() + self.shortest, abs=60)
            async with store.watch(start_revision=stat.revision + 1) as watch:
                assert shown(await watch.receive()) == [("expires", None)]
                await store.put("later", b"", ttl=self.shortest)
                assert [shown(await watch.receive()) for _ in range(2)][1] == [("later", None)]
            left = (await store.list()).objects
            assert [s.key for s in left] == ["held", "pinned", "renewed"]
            assert await store.remove_ref("held") is None
            with pytest.raises(InvalidRequestError):
                await store.put("k", b"", ttl=0)

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


async def _holders(store: ObjectStore, key: str) -> tuple[ObjectHolder, ...]:
    """Who holds it; nobody where it is no more."""
    try:
        return tuple(await store.holders(key))
    except ObjectNotFoundError:
        return ()
