"""What durable object stores promise of the time after they were closed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from spear_core.api import (
    Capability,
    DeleteObject,
    ObjectChanges,
    ObjectStore,
    ObjectStoreSpec,
    PutObject,
)
from spear_core.errors import CompactedError, ObjectConflictError, ObjectNotFoundError
from spear_core.testing._promise import promise

__all__ = ["StoreReopened"]

_LARGE = 300_000


class StoreReopened(ABC):
    """A part of :class:`~spear_core.testing.ObjectStoreContract`.

    Inputs and results of tasks are objects: what a store has said that it has must be there after
    the node's next start, with what keeps it.
    """

    spec: ClassVar[ObjectStoreSpec[Any]]
    durable: ClassVar[bool]
    shortest: float
    patience: float

    @abstractmethod
    def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AbstractAsyncContextManager[ObjectStore]:
        """The store, as a node opens it."""

    def _needs_durable(self) -> None:
        if not self.durable:
            pytest.skip("durable is not set: this store forgets")

    def test_durable_is_declared(self) -> None:
        """``Capability.DURABLE`` is declared, and ``durable`` set here, or neither."""
        assert self.durable is (Capability.DURABLE in self.spec.capabilities)

    @promise
    async def test_reopened_store_has_every_object(self, tmp_path: Path) -> None:
        """Values of every size and origin, all that is known about them, holders and pins are as
        they were; what was deleted or collected is gone."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            values = {"empty": b"", "small": b"one", "large": b"x" * _LARGE, "two": b"2" * _LARGE}
            await store.put("two", b"1" * _LARGE)
            for key, value in values.items():
                await store.put(key, value, content_type=f"x/{key}", hashed=key != "large")
            async with store.create("pieces", ttl=1000) as writer:
                for piece in (b"a" * _LARGE, b"b" * _LARGE):
                    await writer.write(piece)
                await writer.commit()
            values["pieces"] = b"a" * _LARGE + b"b" * _LARGE
            for holder in ("", "me", "me", "you"):
                await store.add_ref("large", holder=holder)
            await store.keep_alive("you", 1000)
            await store.pin("large")
            await store.pin("small")
            for gone in ("deleted", "collected"):
                await store.put(gone, b"x" * _LARGE)
                await store.add_ref(gone)
            await store.delete("deleted")
            await store.remove_ref("collected")
            before = await store.list()
            holders, usage = await store.holders("large"), await store.usage()
        for _ in range(2):
            async with self.open_store(tmp_path) as store:
                assert await store.list() == before
                assert [stat.key for stat in before.objects] == sorted(values)
                for stat in before.objects:
                    found, value = await store.get(stat.key)
                    assert found == stat
                    assert _digest(value) == _digest(values[stat.key])
                assert set(await store.holders("large")) == set(holders)
                assert await store.usage() == usage
                for gone in ("deleted", "collected"):
                    with pytest.raises(ObjectNotFoundError):
                        await store.get(gone)

    @promise
    async def test_reopened_store_counts_on(self, tmp_path: Path) -> None:
        """Revisions and versions go on where they were, those of deleted objects too; what writers
        expect is compared with what was there."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            for value in (b"1", b"2"):
                await store.put("k", value)
                await store.put("gone", value)
            await store.delete("gone")
            revision = (await store.list()).revision
        async with self.open_store(tmp_path) as store:
            assert (await store.list()).revision == revision
            for expect in (0, 1, 3, hashlib.sha256(b"1").hexdigest()):
                with pytest.raises(ObjectConflictError) as caught:
                    await store.put("k", b"3", expect=expect)
                assert caught.value.current == 2
            third = await store.put("k", b"3", expect=hashlib.sha256(b"2").hexdigest())
            assert (third.version, third.revision) == (3, revision + 1)
            again = await store.put("gone", b"", expect=0)
            assert (again.version, again.revision) == (3, revision + 2)

    @promise
    async def test_reopened_store_has_what_was_returned(self, tmp_path: Path) -> None:
        """A method that has returned has written, however the store's block ends; a transaction on
        its way is there whole or not at all, and of a value that was being written nothing."""
        self._needs_durable()
        returned: dict[str, bytes] = {}

        async def write(store: ObjectStore, number: int) -> None:
            for turn in range(1000):
                key, value = f"{number}/{turn}", b"%d" % turn * (1 if turn % 8 else 100_000)
                await store.transact(
                    [PutObject(key=key, value=value), PutObject(key=f"copy/{key}", value=value)]
                )
                returned[key] = value
                if len(returned) == 60:
                    raise ZeroDivisionError

        async def write_until_one_fails() -> None:
            async with (
                self.open_store(tmp_path) as store,
                store.create("unfinished") as writer,
                trio.open_nursery() as nursery,
            ):
                await writer.write(b"x" * 3_000_000)
                for number in range(8):
                    nursery.start_soon(write, store, number)

        with pytest.raises(BaseExceptionGroup) as caught:
            await write_until_one_fails()
        assert caught.group_contains(ZeroDivisionError)
        async with self.open_store(tmp_path) as store:
            found = {stat.key: stat for stat in (await store.list(limit=20_000)).objects}
            for key, value in returned.items():
                assert (await store.get(key))[1] == value
            copies = {key.removeprefix("copy/") for key in found if key.startswith("copy/")}
            assert copies == {key for key in found if not key.startswith("copy/")}
            assert (await store.usage()).bytes == sum(stat.size for stat in found.values())
            assert "unfinished" not in found

    @promise
    async def test_reopened_watch_has_no_gap(self, tmp_path: Path) -> None:
        """A watch from a revision of before: all that was written since, or ``CompactedError``."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            first = await store.put("k", b"1")
            await store.put("other", b"")
            await store.transact([PutObject(key="k", value=b"2"), DeleteObject(key="other")])
            await store.delete("k")
            async with store.watch("k", start_revision=first.revision) as watch:
                everything = [await watch.receive() for _ in range(3)]
            last = (await store.list()).revision
        async with self.open_store(tmp_path) as store:
            news = await store.put("k", b"3")
            for start in range(first.revision, last + 2):
                expected = [changes for changes in everything if changes.revision >= start]
                got = await _watched(store, start, len(expected) + 1)
                if got is not None:
                    assert got[:-1] == expected
                    assert got[-1].revision == news.revision
            got = await _watched(store, last + 1, 1)
            assert got is not None, "from the present on there is always a watch"

    @promise
    async def test_reopened_store_collects(self, tmp_path: Path) -> None:
        """What is due is collected, also when its time was over while the store was closed; what
        is kept stays, and a holder may be silent for its whole time again."""
        self._needs_durable()
        async with self.open_store(tmp_path) as store:
            for key in ("dying", "silent", "counted", "pinned"):
                ttl = self.shortest / 2 if key == "dying" else None
                await store.put(key, b"x" * _LARGE, ttl=ttl)
            await store.pin("pinned")
            while True:  # again, should the machine stand still for as long as it lives
                await store.put("kept dying", b"x" * _LARGE, ttl=self.shortest / 2)
                with suppress(ObjectNotFoundError):
                    await store.pin("kept dying")
                    break
            for _ in range(2):
                await store.add_ref("counted")
            await store.add_ref("silent", holder="silent")
            await store.keep_alive("silent", self.shortest)
        await trio.sleep(self.shortest * 0.6)
        opened = trio.current_time()
        async with self.open_store(tmp_path) as store:
            await _wait_gone(store, "dying")
            assert await store.remove_ref("counted") is not None
            assert await store.remove_ref("counted") is None
            assert await store.unpin("pinned") is None
            await _wait_gone(store, "silent")
            assert trio.current_time() - opened >= self.shortest * 0.99
            assert [stat.key for stat in (await store.list()).objects] == ["kept dying"]
            assert (await store.usage()).bytes == _LARGE


async def _wait_gone(store: ObjectStore, key: str) -> None:
    async with store.watch(key) as watch:
        while (await store.list(key)).objects:
            await watch.receive()


async def _watched(store: ObjectStore, start: int, count: int) -> list[ObjectChanges] | None:
    """So many revisions of ``k`` from there on; ``None`` where the store says it has not all."""
    try:
        async with store.watch("k", start_revision=start) as watch:
            return [await watch.receive() for _ in range(count)]
    except CompactedError:
        return None


def _digest(value: bytes) -> str:
    """To compare large values by: what tells how they differ takes minutes for a megabyte."""
    return hashlib.sha256(value).hexdigest()
