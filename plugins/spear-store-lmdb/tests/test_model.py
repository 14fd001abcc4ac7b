"""Both kinds of store against a model that is too simple to be wrong, in memory and on disk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spear_core.api import (
    CheckObject,
    Compare,
    DeleteKey,
    DeleteObject,
    KeyChanges,
    MetadataStore,
    ObjectStore,
    PutKey,
    PutObject,
    StoreMaintenance,
)
from spear_core.builtins import plugin as builtins
from spear_core.errors import ObjectNotFoundError, SpearError
from spear_core.testing import make_context
from spear_store_lmdb import plugin

KEYS = ["a", "a/1", "a/2", "b", "\0", "ü"]
keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"1", b"22", b"x" * 70_000])
few = st.sampled_from(KEYS[:2])  # so that calls meet
holders = st.sampled_from(["", "h"])
expected = st.none() | st.integers(0, 4)

Opened = Callable[[], AbstractAsyncContextManager[Any]]


def stores(kind: str) -> list[Any]:
    found = [getattr(owner, f"spear_{kind}_stores")() for owner in (builtins, plugin)]
    return [pytest.param(spec, id=spec.name) for (spec,) in found]


def opener(spec: Any, folder: str) -> Opened:
    return lambda: spec.open(make_context(Path(folder)), spec.config_cls())


# ---- objects


@attrs.define
class Thing:
    value: bytes
    version: int
    refs: dict[str, int] = attrs.field(factory=dict)
    pinned: bool = False

    @property
    def kept(self) -> bool:
        return self.pinned or bool(self.refs)


class ObjectModel:
    """What an object store should be after the same calls; ``None`` for a call that fails."""

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.versions: dict[str, int] = {}

    def _as_expected(self, key: str, expect: int | None) -> bool:
        current = self.things[key].version if key in self.things else 0
        return expect is None or expect == current

    def create(self, key: str, pieces: list[bytes], expect: int | None) -> bool:
        return self.transact([("put", key, b"".join(pieces), expect)])

    def transact(self, operations: list[tuple[str, str, bytes, int | None]]) -> bool:
        names = [key for _, key, _, _ in operations]
        for kind, key, _, expect in operations:
            if not self._as_expected(key, expect):
                return False
            if kind == "delete" and expect is None and key not in self.things:
                return False
        if len(set(names)) < len(names):
            return False
        for kind, key, value, _ in operations:
            if kind == "put":
                old = self.things.get(key)
                self.versions[key] = self.versions.get(key, 0) + 1
                thing = attrs.evolve(old) if old else Thing(b"", 0)
                thing.value, thing.version = value, self.versions[key]
                self.things[key] = thing
            elif kind == "delete":
                self.things.pop(key, None)
        return True

    def add_ref(self, key: str, holder: str) -> bool:
        if key not in self.things:
            return False
        refs = self.things[key].refs
        refs[holder] = refs.get(holder, 0) + 1
        return True

    def remove_ref(self, key: str, holder: str) -> bool:
        if key not in self.things or holder not in self.things[key].refs:
            return False
        thing = self.things[key]
        thing.refs[holder] -= 1
        if not thing.refs[holder]:
            del thing.refs[holder]
        if not thing.kept:
            del self.things[key]
        return True

    def release(self, holder: str) -> bool:
        if not holder:
            return False
        for key, thing in list(self.things.items()):
            if thing.refs.pop(holder, 0) and not thing.kept:
                del self.things[key]
        return True

    def pin(self, key: str) -> bool:
        if key in self.things:
            self.things[key].pinned = True
        return key in self.things

    def unpin(self, key: str) -> bool:
        if key not in self.things:
            return False
        thing = self.things[key]
        was, thing.pinned = thing.pinned, False
        if was and not thing.kept:
            del self.things[key]
        return True


operation = st.tuples(
    st.sampled_from(["put", "delete", "check"]), few | keys, values, expected
).map(lambda op: (*op[:3], op[3] or 0) if op[0] == "check" else op)
object_steps = st.lists(
    st.one_of(
        st.tuples(st.just("transact"), st.lists(operation, min_size=1, max_size=3)),
        st.tuples(st.just("add_ref"), few, holders),
        st.tuples(st.just("remove_ref"), few, holders),
        st.tuples(st.just("release"), holders),
        st.tuples(st.just("pin"), few),
        st.tuples(st.just("unpin"), few),
        st.tuples(st.just("create"), few, st.lists(values, max_size=3), expected),
        st.tuples(st.just("abandon"), few, st.lists(values, max_size=3)),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("forget"), st.integers(0, 2)),
        st.tuples(st.just("view"), few),
        st.tuples(st.just("unview"), st.integers(0, 2)),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


async def call_objects(store: ObjectStore, step: tuple[Any, ...]) -> bool:
    """Whether it succeeded."""
    name, *arguments = step
    if name == "transact":
        operations: list[Any] = []
        for kind, key, value, expect in arguments[0]:
            if kind == "put":
                operations.append(PutObject(key=key, value=value, expect=expect))
            else:
                cls = DeleteObject if kind == "delete" else CheckObject
                operations.append(cls(key=key, expect=expect))
        arguments = [operations]
    named = {}
    if name in ("add_ref", "remove_ref"):
        named = {"holder": arguments.pop()}
    try:
        await getattr(store, name)(*arguments, **named)
    except SpearError:
        return False
    return True


async def same_objects(store: ObjectStore, model: ObjectModel) -> None:
    page = await store.list()
    assert [stat.key for stat in page.objects] == sorted(model.things)
    for stat in page.objects:
        thing = model.things[stat.key]
        assert (stat.version, stat.pinned) == (thing.version, thing.pinned)
        assert stat.refs == sum(thing.refs.values())
        assert {h.name: h.refs for h in await store.holders(stat.key)} == thing.refs
        assert stat.sha256 == hashlib.sha256(thing.value).hexdigest()
        assert await store.get(stat.key) == (stat, thing.value)
    usage = await store.usage()
    assert (usage.objects, usage.bytes) == (
        len(model.things),
        sum(len(thing.value) for thing in model.things.values()),
    )
    limited = await store.list("a", limit=2)
    wanted = [key for key in sorted(model.things) if key.startswith("a")]
    assert [stat.key for stat in limited.objects] == wanted[:2]
    assert (limited.next_key is None) == (len(wanted) <= 2)


async def create_object(
    store: ObjectStore, key: str, pieces: list[bytes], expect: int | None
) -> bool:
    """Whether it succeeded."""
    async with store.create(key, expect=expect) as writer:
        for piece in pieces:
            await writer.write(piece)
        try:
            await writer.commit()
        except SpearError:
            return False
    return True


async def abandon_object(store: ObjectStore, key: str, pieces: list[bytes]) -> None:
    async with store.create(key) as writer:
        for piece in pieces:
            await writer.write(piece)


@attrs.define
class Seen:
    """Something that is held open, how to let it go, and what it has to show."""

    held: Any
    stack: AsyncExitStack
    shown: dict[str, tuple[int, bytes]]


class Watched:
    """Snapshots and views that are open while other things happen."""

    def __init__(self, store: ObjectStore, model: ObjectModel) -> None:
        self.store = store
        self.model = model
        self.snapshots: list[Seen] = []
        self.views: list[Seen] = []

    async def snapshot(self) -> None:
        shown = {key: (thing.version, thing.value) for key, thing in self.model.things.items()}
        stack = AsyncExitStack()
        held = await stack.enter_async_context(self.store.snapshot())
        self.snapshots.append(Seen(held, stack, shown))

    async def view(self, key: str) -> None:
        stack = AsyncExitStack()
        try:
            held = await stack.enter_async_context(self.store.open(key))
        except SpearError:
            assert key not in self.model.things
            return
        thing = self.model.things[key]
        self.views.append(Seen(held, stack, {key: (thing.version, thing.value)}))

    async def forget(self, place: int) -> None:
        if place < len(self.snapshots):
            await self.snapshots.pop(place).stack.aclose()

    async def unview(self, place: int) -> None:
        if place < len(self.views):
            await self.views.pop(place).stack.aclose()

    async def close(self) -> None:
        for seen in self.snapshots + self.views:
            await seen.stack.aclose()

    async def as_ever(self) -> None:
        """Everything shows what it showed, and these versions alone can be seen."""
        for seen in self.views:
            ((_, (version, value)),) = seen.shown.items()
            assert (seen.held.stat.version, seen.held.data.tobytes()) == (version, value)
        for seen in self.snapshots:
            page = await seen.held.list()
            assert {stat.key: stat.version for stat in page.objects} == {
                key: version for key, (version, _) in seen.shown.items()
            }
            assert [stat.key for stat in page.objects] == sorted(seen.shown)
            for stat in page.objects:
                assert await seen.held.get(stat.key) == (stat, seen.shown[stat.key][1])
        visible = {
            (key, version): value
            for seen in self.snapshots + self.views
            for key, (version, value) in seen.shown.items()
        }
        for key, thing in self.model.things.items():
            visible[key, thing.version] = thing.value
        for key in KEYS[:2]:
            for version in range(1, self.model.versions.get(key, 0) + 1):
                try:
                    _, value = await self.store.get(key, version=version)
                except ObjectNotFoundError:
                    assert (key, version) not in visible
                else:
                    assert visible[key, version] == value


async def take_step(watched: Watched, step: tuple[Any, ...]) -> None:
    name, *arguments = step
    if name in ("snapshot", "forget", "view", "unview"):
        await getattr(watched, name)(*arguments)
    elif name == "abandon":
        await abandon_object(watched.store, *arguments)
    else:
        wanted = getattr(watched.model, name)(*arguments)
        if name == "create":
            assert await create_object(watched.store, *arguments) == wanted, step
        else:
            assert await call_objects(watched.store, step) == wanted, step


async def all_in_order(store: ObjectStore) -> None:
    """Nothing is left of what nobody can see: in the store's own accounts, and on disk."""
    if isinstance(store, StoreMaintenance):
        assert (await store.check()).problems == ()


async def objects_as_the_model(opened: Opened, steps: list[Any], *, durable: bool) -> None:
    model = ObjectModel()
    pending = list(steps)
    while True:
        async with opened() as store:
            watched = Watched(store, model)
            await same_objects(store, model)
            try:
                while pending:
                    step = pending.pop(0)
                    if step == ("reopen",):
                        if durable:
                            break
                        continue
                    await take_step(watched, step)
                    await same_objects(store, model)
                    await watched.as_ever()
                else:
                    await all_in_order(store)
                    return
            finally:
                await watched.close()
            await all_in_order(store)


@pytest.mark.parametrize("spec", stores("object"))
@settings(max_examples=150, deadline=None)
@given(steps=object_steps)
@example(  # a holder whose object went and came again has nothing to do with the new one
    steps=[
        ("transact", [("put", "a", b"1", None)]),
        ("add_ref", "a", "h"),
        ("remove_ref", "a", "h"),
        ("transact", [("put", "a", b"2", None)]),
        ("release", "h"),
    ]
)
@example(  # an old version in a file, seen by a view, by a snapshot, by both, by nobody
    steps=[
        ("transact", [("put", "a", b"x" * 70_000, None), ("put", "a/1", b"x" * 70_000, None)]),
        ("view", "a"),
        ("snapshot",),
        ("create", "a", [b"1"], None),
        ("transact", [("delete", "a/1", b"", None)]),
        ("forget", 0),
        ("snapshot",),
        ("unview", 0),
        ("transact", [("put", "a", b"x" * 70_000, None)]),
        ("view", "a"),
        ("transact", [("delete", "a", b"", None)]),
        ("abandon", "a", [b"22"]),
        ("unview", 0),
    ]
)
def test_objects(spec: Any, steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        durable = spec.name != "memory"
        run = lambda: objects_as_the_model(opener(spec, folder), steps, durable=durable)  # noqa: E731
        trio.run(run)


# ---- metadata

change = st.tuples(st.sampled_from(["put", "delete"]), keys, values)
metadata_steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("transact"),
            st.lists(change, max_size=3, unique_by=lambda c: c[1]),
            st.lists(st.tuples(keys, expected), max_size=2),
        ),
        st.tuples(st.just("compact"), st.integers(0, 20)),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


class MetadataModel:
    """Every state there ever was, by revision."""

    def __init__(self, revision: int) -> None:
        self.revision = self.first = self.compacted = revision
        self.was: dict[int, dict[bytes, tuple[bytes, int, int, int]]] = {revision: {}}

    def transact(self, changes: list[Any], compares: list[Any]) -> bool:
        now = dict(self.was[self.revision])
        for key, nth in compares:
            # the nth revision that wrote anything; none of them: it must not exist
            mod = now[key.encode()][2] if key.encode() in now else 0
            if nth is not None and mod != (self.first + nth if nth else 0):
                return False
        changed = False
        for kind, name, value in changes:
            key, old = name.encode(), now.get(name.encode())
            if kind == "put":
                made, version = (old[1], old[3] + 1) if old else (self.revision + 1, 1)
                now[key] = (value, made, self.revision + 1, version)
                changed = True
            elif old:
                del now[key]
                changed = True
        if changed:
            self.revision += 1
            self.was[self.revision] = now
        return True


async def same_metadata(store: MetadataStore, model: MetadataModel, revision: int) -> None:
    page = await store.range(revision=revision)
    found = {i.key: (i.value, i.create_revision, i.mod_revision, i.version) for i in page.items}
    assert found == model.was[revision]
    assert list(found) == sorted(found)
    for key in KEYS[:3]:
        item = await store.get(key.encode(), revision=revision)
        assert (item.value if item else None) == model.was[revision].get(key.encode(), [None])[0]


async def same_history(store: MetadataStore, model: MetadataModel, start: int) -> None:
    """A watch from there gives the way from each state to the next."""
    async with store.watch(b"a", start_revision=start) as watch:
        for revision in range(start, model.revision + 1):
            before, after = model.was[revision - 1], model.was[revision]
            wanted = {
                key: after.get(key, (None,))[0]
                for key in before.keys() | after.keys()
                if key.startswith(b"a") and before.get(key) != after.get(key)
            }
            if wanted:
                got: KeyChanges = await watch.receive()
                assert got.revision == revision
                assert {c.key: c.now.value if c.now else None for c in got.changes} == wanted


async def metadata_as_the_model(opened: Opened, steps: list[Any], *, durable: bool) -> None:
    pending = list(steps)
    model: MetadataModel | None = None
    while True:
        async with opened() as store:
            model = model or MetadataModel((await store.range()).revision)
            while pending:
                step = pending.pop(0)
                if step == ("reopen",):
                    if durable:
                        break
                elif step[0] == "compact":
                    revision = model.first + step[1]
                    if model.compacted < revision <= model.revision:
                        await store.compact(revision)
                        model.compacted = revision
                else:
                    await one_transaction(store, model, *step[1:])
            else:
                for revision in range(model.compacted, model.revision + 1):
                    await same_metadata(store, model, revision)
                await same_history(store, model, model.compacted + 1)
                return


async def one_transaction(
    store: MetadataStore, model: MetadataModel, changes: list[Any], compares: list[Any]
) -> None:
    asked = [
        Compare(
            key=key.encode(),
            mod_revision=None if nth is None else (model.first + nth if nth else 0),
        )
        for key, nth in compares
    ]
    wanted = model.transact(changes, compares)
    result = await store.transact(
        [
            PutKey(key=key.encode(), value=value) if kind == "put" else DeleteKey(key=key.encode())
            for kind, key, value in changes
        ],
        compares=asked,
    )
    assert (result.succeeded, result.revision) == (wanted, model.revision)
    await same_metadata(store, model, model.revision)


@pytest.mark.parametrize("spec", stores("metadata"))
@settings(max_examples=60, deadline=None)
@given(steps=metadata_steps)
def test_metadata(spec: Any, steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        durable = spec.name != "memory"
        run = lambda: metadata_as_the_model(opener(spec, folder), steps, durable=durable)  # noqa: E731
        trio.run(run)
