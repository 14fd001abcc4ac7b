"""The objects that one running task may touch, under the names it knows them by."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import trio

from spear_core.api import (
    NODE_OBJECTS,
    OCTETS,
    CheckObject,
    ObjectChange,
    ObjectChanges,
    ObjectGrants,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectSnapshot,
    ObjectStat,
    ObjectStore,
    ObjectView,
    ObjectWriter,
    StoreUsage,
)
from spear_core.errors import InvalidRequestError, ObjectForbiddenError
from spear_core.node._objects import StoreSource, WithoutOurs, list_without_ours

__all__ = ["Scope", "ScopedObjects"]

_NAMED = 10
"""So many grants a refusal names."""


@attrs.frozen
class Scope:
    """Which keys a task of an artifact may touch, and what it calls them."""

    artifact: str
    """Its name, without a version."""
    grants: ObjectGrants
    task_id: str

    def whole(self, key: str) -> str:
        """The key in the store for one that the task has written."""
        return key[1:] if key.startswith("/") else f"{self.artifact}/{key}"

    def own(self, key: str) -> str:
        """What the task would write for a key in the store."""
        rest = key.removeprefix(f"{self.artifact}/")
        return f"/{key}" if rest == key or rest.startswith("/") else rest

    def readable(self, key: str) -> str:
        """The whole key. :raises ObjectForbiddenError: it may not read that."""
        whole = self.whole(key)
        if not self._allows(whole, (*self.grants.read, *self.grants.write)) and not (
            whole.startswith(NODE_OBJECTS) and whole.endswith(f"/{self.task_id}")
        ):
            raise self._forbidden("read", key, (*self.grants.read, *self.grants.write))
        return whole

    def writable(self, key: str) -> str:
        """The whole key. :raises ObjectForbiddenError: it may not write that."""
        whole = self.whole(key)
        if not self._allows(whole, self.grants.write):
            raise self._forbidden("write", key, self.grants.write)
        return whole

    def _allows(self, whole: str, grants: Sequence[str]) -> bool:
        if whole.startswith(f"{self.artifact}/"):
            return True
        if whole.startswith(NODE_OBJECTS) or not any(map(whole.startswith, grants)):
            return False
        if whole.startswith("/"):  # no caller of the node could name it, and so nobody delete it
            raise InvalidRequestError(
                f"key {'/' + whole[:100]!r}: one that is written out whole has one '/' before it: "
                f"{'/' + whole[:100].lstrip('/')!r}"
            )
        return True

    def _forbidden(self, verb: str, key: str, grants: Sequence[str]) -> ObjectForbiddenError:
        allowed = [f"{self.artifact}/", *dict.fromkeys(grants)][:_NAMED]
        return ObjectForbiddenError(
            f"{self.artifact} may not {verb} {key[:400]!r}: it may {verb} what begins with "
            f"{', '.join(repr(f'/{prefix}') for prefix in allowed)}; its spear.toml grants more "
            f"([objects] {verb} = [...])"
        )


class ScopedObjects(ObjectStore):
    """The node's store as far as one task may see it.

    :param holder: in whose name it takes references.
    :param holding: a block in which it takes one; who gives it releases the holder afterwards.
    """

    def __init__(
        self,
        store: StoreSource,
        scope: Scope,
        *,
        holder: str,
        holding: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._store = store
        self._scope = scope
        self._holder = holder
        self._holding = holding

    # ---- values

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        ours = [self._operation(operation) for operation in operations]
        stats = await (await self._store()).transact(ours)
        return tuple(stat and self._stat(stat) for stat in stats)

    def _operation(self, operation: ObjectOperation) -> ObjectOperation:
        allowed = self._scope.writable
        if isinstance(operation, CheckObject):
            allowed = self._scope.readable
        return attrs.evolve(operation, key=allowed(operation.key))

    @asynccontextmanager
    async def open(self, key: str, *, version: int | None = None) -> AsyncGenerator[ObjectView]:
        whole = self._scope.readable(key)
        async with (await self._store()).open(whole, version=version) as view:
            yield attrs.evolve(view, stat=self._stat(view.stat))

    @asynccontextmanager
    async def create(
        self,
        key: str,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
        size: int | None = None,
    ) -> AsyncGenerator[ObjectWriter]:
        whole = self._scope.writable(key)
        async with (await self._store()).create(
            whole, expect=expect, content_type=content_type, ttl=ttl, hashed=hashed, size=size
        ) as writer:
            yield _ScopedWriter(writer, self._stat)

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[ObjectSnapshot]:
        async with (await self._store()).snapshot() as snapshot:
            yield _ScopedSnapshot(snapshot, self._scope)

    async def get(self, key: str, *, version: int | None = None) -> tuple[ObjectStat, bytes]:
        stat, value = await (await self._store()).get(self._scope.readable(key), version=version)
        return self._stat(stat), value

    async def stat(self, key: str) -> ObjectStat:
        return self._stat(await (await self._store()).stat(self._scope.readable(key)))

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        whole = self._scope.readable(prefix)
        after = None if after is None else self._scope.whole(after)
        store = await self._store()
        page = await list_without_ours(store.list, whole, after=after, limit=limit)
        return _scoped_page(page, self._scope)

    # ---- what keeps an object

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        whole = self._scope.writable(key)
        self._check_holder(holder)
        store = await self._store()
        async with self._holding():
            return self._stat(await store.add_ref(whole, holder=self._holder))

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        whole = self._scope.writable(key)
        self._check_holder(holder)
        stat = await (await self._store()).remove_ref(whole, holder=self._holder)
        return stat and self._stat(stat)

    def _check_holder(self, holder: str) -> None:
        if holder not in ("", self._holder):
            raise InvalidRequestError(
                f"holder: the references of a running task are in its own name, {self._holder!r}"
            )

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        return await (await self._store()).holders(self._scope.readable(key))

    async def keep_alive(self, holder: str, ttl: float) -> None:
        raise self._not_its_own("keep_alive")

    async def release(self, holder: str) -> int:
        raise self._not_its_own("release")

    def _not_its_own(self, method: str) -> ObjectForbiddenError:
        return ObjectForbiddenError(
            f"{method}: the node does that for a task, which is the holder of its references"
        )

    async def pin(self, key: str) -> ObjectStat:
        return self._stat(await (await self._store()).pin(self._scope.writable(key)))

    async def unpin(self, key: str) -> ObjectStat | None:
        stat = await (await self._store()).unpin(self._scope.writable(key))
        return stat and self._stat(stat)

    # ---- the rest

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges]]:
        whole = self._scope.readable(prefix)
        store = await self._store()
        async with store.watch(whole, start_revision=start_revision) as changes:
            yield _ScopedChanges(WithoutOurs(changes), self._scope)

    async def usage(self) -> StoreUsage:
        return await (await self._store()).usage()

    def _stat(self, stat: ObjectStat) -> ObjectStat:
        return _scoped_stat(stat, self._scope)


def _scoped_stat(stat: ObjectStat, scope: Scope) -> ObjectStat:
    return attrs.evolve(stat, key=scope.own(stat.key))


def _scoped_page(page: ObjectPage, scope: Scope) -> ObjectPage:
    return ObjectPage(
        objects=tuple(_scoped_stat(stat, scope) for stat in page.objects),
        next_key=None if page.next_key is None else scope.own(page.next_key),
        revision=page.revision,
    )


class _ScopedWriter(ObjectWriter):
    def __init__(self, writer: ObjectWriter, named: Callable[[ObjectStat], ObjectStat]) -> None:
        self._writer = writer
        self._named = named
        self.prefers_pipe = writer.prefers_pipe

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._writer.write(data)

    async def write_from(self, pipe: int, size: int) -> None:
        await self._writer.write_from(pipe, size)

    async def commit(self) -> ObjectStat:
        return self._named(await self._writer.commit())


class _ScopedSnapshot(ObjectSnapshot):
    def __init__(self, snapshot: ObjectSnapshot, scope: Scope) -> None:
        self._snapshot = snapshot
        self._scope = scope
        self.revision = snapshot.revision

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[ObjectView]:
        async with self._snapshot.open(self._scope.readable(key)) as view:
            yield attrs.evolve(view, stat=_scoped_stat(view.stat, self._scope))

    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        stat, value = await self._snapshot.get(self._scope.readable(key))
        return _scoped_stat(stat, self._scope), value

    async def stat(self, key: str) -> ObjectStat:
        return _scoped_stat(await self._snapshot.stat(self._scope.readable(key)), self._scope)

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        whole = self._scope.readable(prefix)
        after = None if after is None else self._scope.whole(after)
        page = await list_without_ours(self._snapshot.list, whole, after=after, limit=limit)
        return _scoped_page(page, self._scope)


class _ScopedChanges(trio.abc.ReceiveChannel[ObjectChanges]):
    def __init__(self, changes: trio.abc.ReceiveChannel[ObjectChanges], scope: Scope) -> None:
        self._changes = changes
        self._scope = scope

    async def receive(self) -> ObjectChanges:
        found = await self._changes.receive()
        changes = (
            ObjectChange(
                key=self._scope.own(change.key),
                now=change.now and _scoped_stat(change.now, self._scope),
            )
            for change in found.changes
        )
        return ObjectChanges(revision=found.revision, changes=tuple(changes))

    async def aclose(self) -> None:
        await self._changes.aclose()
