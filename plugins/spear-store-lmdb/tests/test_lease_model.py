"""Leases and a watch that follows, against a model, in memory and on disk."""

from __future__ import annotations

import tempfile
from typing import Any

import attrs
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_model import opener, stores

from spear_core.api import KeyChanges, MetadataStore, PutKey
from spear_core.errors import LeaseNotFoundError

KEYS = [b"a", b"b"]
LONG = 1000.0
"""Seconds of a lease that ends only when it is told to."""
PATIENCE_S = 30.0
keys = st.sampled_from(KEYS)
which = st.integers(0, 1)
"""The number of a lease, in the order in which they were granted; one that never was is none."""
steps = st.lists(
    st.one_of(
        st.just(("grant",)),
        st.tuples(st.just("put"), st.lists(keys, min_size=1, unique=True), st.none() | which),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("revoke"), which),
        st.tuples(st.just("read")),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


@attrs.define
class Model:
    """What is there, and what each revision has done."""

    revision: int
    seen: int
    granted: list[int] = attrs.field(factory=list)
    alive: set[int] = attrs.field(factory=set)
    now: dict[bytes, tuple[bytes, int]] = attrs.field(factory=dict)
    changes: dict[int, dict[bytes, bytes | None]] = attrs.field(factory=dict)

    def put(self, names: list[bytes], lease: int) -> bytes:
        self.revision += 1
        value = b"%d" % self.revision
        self.now |= dict.fromkeys(names, (value, lease))
        self.changes[self.revision] = dict.fromkeys(names, value)
        return value

    def remove(self, names: list[bytes]) -> None:
        if names:
            self.revision += 1
            self.changes[self.revision] = dict.fromkeys(names)
        self.now = {key: found for key, found in self.now.items() if key not in names}

    def revoke(self, lease: int) -> None:
        self.alive.discard(lease)
        self.remove([key for key, (_, its) in self.now.items() if its == lease])


class Walk:
    """One run of the steps, on a store and on the model of it."""

    def __init__(self, store: MetadataStore, model: Model) -> None:
        self.store = store
        self.model = model

    async def grant(self) -> None:
        lease = await self.store.grant_lease(LONG)
        assert lease.id not in {0, *self.model.granted}
        self.model.granted.append(lease.id)
        self.model.alive.add(lease.id)

    def _lease(self, number: int) -> int:
        granted = self.model.granted
        return granted[number] if number < len(granted) else 987_654

    async def put(self, names: list[bytes], number: int | None) -> None:
        lease = 0 if number is None else self._lease(number)
        if lease and lease not in self.model.alive:
            with pytest.raises(LeaseNotFoundError):
                await self.store.transact([PutKey(key=k, value=b"", lease=lease) for k in names])
            return
        value = self.model.put(names, lease)
        await self.store.transact([PutKey(key=k, value=value, lease=lease) for k in names])

    async def delete(self, key: bytes) -> None:
        self.model.remove([key] if key in self.model.now else [])
        assert await self.store.delete(key) == self.model.revision

    async def revoke(self, number: int) -> None:
        lease = self._lease(number)
        if lease not in self.model.alive:
            for call in (self.store.revoke_lease, self.store.keep_alive):
                with pytest.raises(LeaseNotFoundError):
                    await call(lease)
            return
        self.model.revoke(lease)
        await self.store.revoke_lease(lease)

    async def same(self) -> None:
        page = await self.store.range()
        assert page.revision == self.model.revision
        found = {item.key: (item.value, item.lease) for item in page.items}
        assert found == self.model.now

    async def read(self, watch: trio.abc.ReceiveChannel[KeyChanges]) -> None:
        """The watch gives all that it has not given yet."""
        for revision in range(self.model.seen + 1, self.model.revision + 1):
            with trio.fail_after(PATIENCE_S):
                got = await watch.receive()
            assert got.revision == revision
            given = {change.key: change.now.value if change.now else None for change in got.changes}
            assert given == self.model.changes[revision]
            assert [change.key for change in got.changes] == sorted(given)
            self.model.seen = revision


async def walk(opened: Any, steps: list[Any]) -> None:
    pending = list(steps)
    model: Model | None = None
    while True:
        async with opened() as store:
            if model is None:
                revision = (await store.range()).revision
                model = Model(revision, revision)
            one = Walk(store, model)
            await one.same()
            async with store.watch(start_revision=model.seen + 1) as watch:
                while pending and pending[0] != ("reopen",):
                    name, *arguments = pending.pop(0)
                    await (one.read(watch) if name == "read" else getattr(one, name)(*arguments))
                    await one.same()
                if not pending:
                    await one.read(watch)
                    for lease in model.alive:
                        await store.keep_alive(lease)
                    return
                pending.pop(0)


@pytest.mark.parametrize("spec", stores("metadata"))
@settings(max_examples=40, deadline=None)
@given(steps=steps)
@example(  # keys that had it no longer go with a lease
    steps=[
        ("grant",),
        ("put", [b"a", b"b"], 0),
        ("put", [b"a"], None),
        ("delete", b"b"),
        ("put", [b"b"], None),
        ("reopen",),
        ("revoke", 0),
    ]
)
@example(  # ended, closed, and alive no more
    steps=[("grant",), ("put", [b"a"], 0), ("revoke", 0), ("reopen",), ("grant",), ("revoke", 0)]
)
def test_leases_and_a_watch(spec: Any, steps: list[Any]) -> None:
    durable = spec.name != "memory"
    kept = [step for step in steps if durable or step != ("reopen",)]
    with tempfile.TemporaryDirectory() as folder:
        trio.run(walk, opener(spec, folder), kept)
