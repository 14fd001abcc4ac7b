"""Objects, as callers of a node use them, whichever front door they come through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import trio

from spear_core.api._store import (
    OCTETS,
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectStat,
    ObjectWriter,
    StoreUsage,
)

__all__ = ["NODE_OBJECTS", "ObjectApi", "ObjectReader"]

NODE_OBJECTS = "."
"""Keys that begin so belong to the node (no artifact's name does): the results of tasks, above all.
Nobody else writes them."""


class ObjectReader(trio.abc.ReceiveChannel[bytes]):
    """One version of an object, piece by piece; made by :meth:`ObjectApi.read`.

    ``receive`` gives the next piece, of whatever size suits the path, and raises
    :exc:`trio.EndOfChannel` after the last one; never :exc:`trio.EndOfChannel` before, for what
    broke raises :exc:`~spear_core.errors.SpearError`. Cancelling it loses nothing.
    """

    stat: ObjectStat
    """Of the version that is read. To go on after a failure, read its ``version`` from ``offset``
    plus the bytes received."""


class ObjectApi(ABC):
    """What a node's callers do with its objects; :attr:`NodeApi.objects` gives it.

    Keys, versions, ``expect``, references and collection are those of
    :class:`~spear_core.api.ObjectStore`, and the methods that are called the same promise the same.
    A caller of the node is not scoped: it names keys whole, without a ``/`` before them
    (``producer/frame``), and may touch all of them, save that those of the node
    (:data:`NODE_OBJECTS`) can only be read, and are listed only to whoever asks for them.

    Every method may raise :exc:`~spear_core.errors.StoreError` when the store cannot be used, and
    through a front door :exc:`~spear_core.errors.NodeUnreachableError`. A method that raises
    anything else, or is cancelled before its answer was on the way, has changed nothing.
    """

    @abstractmethod
    async def put(
        self,
        key: str,
        value: bytes | bytearray | memoryview,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
    ) -> ObjectStat:
        """Write a new version. See :meth:`ObjectStore.put <spear_core.api.ObjectStore.put>`."""

    @abstractmethod
    def create(
        self,
        key: str,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
        size: int | None = None,
    ) -> AbstractAsyncContextManager[ObjectWriter]:
        """Write a new version piece by piece, however large.

        Nothing is to be seen of it before :meth:`ObjectWriter.commit
        <spear_core.api.ObjectWriter.commit>`, and nothing is left of it when the block ends
        without, by whatever: an error, a cancellation, a client that is gone. A writer that is
        quicker than the store waits. ``expect`` is looked at when it is committed.

        :param size: its bytes, if they are known: what cannot fit is refused on entering.

        **Raises** as :meth:`put`: on entering, in ``write`` (the store is full), in ``commit``.
        """

    @abstractmethod
    def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AbstractAsyncContextManager[ObjectReader]:
        """Read an object piece by piece, while the block lasts.

        All of it is of one version, also while others are written or it is deleted meanwhile. A
        reader that is slow makes the node wait, and costs it no memory.

        :param version: this one; it is there while it is the current one, or somebody holds it.
        :param offset: leave out so many bytes of the beginning.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError` on entering, also when the version
        is gone; :exc:`~spear_core.errors.InvalidRequestError` for an offset beyond its end.
        """

    async def get(self, key: str, *, version: int | None = None) -> tuple[ObjectStat, bytes]:
        """All of an object at once. **Raises** as :meth:`read`."""
        async with self.read(key, version=version) as reader:
            return reader.stat, b"".join([piece async for piece in reader])

    @abstractmethod
    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        """Do all of it in one revision, or nothing.

        See :meth:`ObjectStore.transact <spear_core.api.ObjectStore.transact>`. The values together
        are at most 32 MiB where it goes through a front door.
        """

    @abstractmethod
    async def stat(self, key: str) -> ObjectStat:
        """Everything but the value. **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        """Objects whose key begins with ``prefix`` and is greater than ``after``, at most ``limit``
        (1 to 10,000) of them."""

    @abstractmethod
    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more. **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`, and
        :exc:`~spear_core.errors.InvalidRequestError` when it has no reference to remove.
        """

    @abstractmethod
    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to the object, by name; those of a task are in the name of
        ``task/<task_id>``. **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def pin(self, key: str) -> ObjectStat:
        """Keep the object whatever its references. **Raises**
        :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object. **Raises**
        :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove the object whatever its references and pin.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`,
        :exc:`~spear_core.errors.ObjectConflictError`.
        """

    @abstractmethod
    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[ObjectChanges]]:
        """Every revision from ``start_revision`` on that wrote, deleted or collected an object with
        this prefix. See :meth:`ObjectStore.watch <spear_core.api.ObjectStore.watch>`.

        **Raises** :exc:`~spear_core.errors.CompactedError`, on entering or from ``receive``.
        """

    @abstractmethod
    async def usage(self) -> StoreUsage:
        """How much is in the store, and how much may be."""
