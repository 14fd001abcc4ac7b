"""Metadata stores: small durable state, in order, with revisions.

The model is etcd's (v3), so that a store over etcd keeps the same promises: one revision for the
whole store, which every change moves on; reads at a revision; transactions that compare and then
change; watches over the history; leases. What etcd has beyond that is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from spear_core.api._plugin import PluginContext
from spear_core.api._runtime import Capability
from spear_core.errors import MetadataConflictError

__all__ = [
    "Compare",
    "DeleteKey",
    "KeyChange",
    "KeyChanges",
    "KeyPage",
    "KeyValue",
    "Lease",
    "MetadataChange",
    "MetadataStore",
    "MetadataStoreSpec",
    "PutKey",
    "TransactionResult",
]

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class KeyValue:
    """One key as it was after one revision."""

    key: bytes
    value: bytes
    create_revision: int
    """The revision that made it; a delete and a new put make it anew."""
    mod_revision: int
    """The revision that last wrote it."""
    version: int
    """Writes since it was made: 1 for the first."""
    lease: int = 0
    """The lease it goes with; 0: none."""


@attrs.frozen(kw_only=True)
class KeyPage:
    """A part of a range."""

    items: tuple[KeyValue, ...]
    """Ascending by key, compared byte by byte."""
    next_key: bytes | None
    """Where the next page starts (``after``); ``None`` at the end."""
    revision: int
    """The store's revision that this page shows. Ask for the next page at this revision, and for a
    watch from the one after it: then nothing is missed and nothing comes twice."""


@attrs.frozen(kw_only=True)
class Compare:
    """What a key must be for a transaction to go ahead; every field that is given must hold."""

    key: bytes
    exists: bool | None = None
    value: bytes | None = None
    """Equal to the current value; never true of a key that does not exist."""
    mod_revision: int | None = None
    """0: the key must not exist."""
    create_revision: int | None = None
    """Likewise. The fence of a leader: true for as long as its own key has not been made anew."""


@attrs.frozen(kw_only=True)
class PutKey:
    """Write a key."""

    key: bytes
    value: bytes
    lease: int = 0
    """The key is deleted when this lease ends. 0: with none, also if it had one."""


@attrs.frozen(kw_only=True)
class DeleteKey:
    """Delete a key; nothing when it does not exist."""

    key: bytes


MetadataChange: TypeAlias = PutKey | DeleteKey


@attrs.frozen(kw_only=True)
class TransactionResult:
    """What became of a transaction."""

    succeeded: bool
    """Whether every comparison held; if not, nothing has changed."""
    revision: int
    """The store's revision after it. Moved on by one if the transaction changed anything."""
    current: tuple[KeyValue | None, ...]
    """What the keys of the comparisons held when they were compared, in their order."""


@attrs.frozen(kw_only=True)
class KeyChange:
    """What one revision did to one key."""

    key: bytes
    now: KeyValue | None
    """``None``: deleted."""


@attrs.frozen(kw_only=True)
class KeyChanges:
    """What one revision did to the keys that a watch is for: all of it, or the part that
    concerns them."""

    revision: int
    changes: tuple[KeyChange, ...]
    """Ascending by key."""


@attrs.frozen(kw_only=True)
class Lease:
    """A promise to be alive, renewed again and again by whoever made it."""

    id: int
    """Not 0, and no other lease of the store has it, also after that one has ended."""
    ttl: float
    """Seconds from the last renewal to its end; at least what was asked for."""


class MetadataStore(ABC):
    """An ordered map from bytes to bytes with one revision for all of it.

    Keys have 1 to 400 bytes, values at most 1 MiB, a transaction at most 128 changes. Every method
    raises :exc:`~spear_core.errors.InvalidRequestError` where one of these is passed. The revision
    never goes back, also over a restart of a durable store. What a method returned or a watch gave
    is there to stay: a durable store has it on disk by then.

    The past can be read, from the last compaction on. A store may compact its history by itself,
    always the oldest of it; what exists now is never compacted.

    **Cancellation**: a method that is cancelled has changed nothing, but where the store is far
    away (then its documentation says so).
    """

    @abstractmethod
    async def get(self, key: bytes, *, revision: int | None = None) -> KeyValue | None:
        """The key as it is, or as it was after ``revision``; ``None`` when it did not exist.

        Sees every change that was returned to anybody before. **Raises**
        :exc:`~spear_core.errors.CompactedError` when that revision's history is gone, and
        :exc:`~spear_core.errors.InvalidRequestError` for a revision that is still to come.
        """

    @abstractmethod
    async def range(
        self,
        prefix: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = 1000,
        revision: int | None = None,
    ) -> KeyPage:
        """Keys that begin with ``prefix`` and are greater than ``after``, at most ``limit`` (≥ 1).

        May give fewer than ``limit`` where values are large, but at least one if there is one;
        ``next_key`` alone says whether that was all. **Raises** as :meth:`get` does.
        """

    @abstractmethod
    async def transact(
        self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
    ) -> TransactionResult:
        """Compare, and if everything holds, make all changes in one revision; else none.

        No other change comes in between. Without ``changes`` it is a consistent read of several
        keys. **Raises** :exc:`~spear_core.errors.LeaseNotFoundError` for a lease that has ended,
        :exc:`~spear_core.errors.StoreFullError`, and
        :exc:`~spear_core.errors.InvalidRequestError` when two changes name one key; nothing has
        changed then.
        """

    @abstractmethod
    def watch(
        self, prefix: bytes = b"", *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[KeyChanges]]:
        """Every revision from ``start_revision`` on that changed a key with this prefix.

        ``None``: from the next one. Each comes once, whole, in order, and not before it can be
        read. A watch holds a place in the history, not a queue: one that is not read costs nothing,
        and when history that it has yet to give is compacted, ``receive`` **raises**
        :exc:`~spear_core.errors.CompactedError` instead of leaving a gap. So does entering the
        block, for a ``start_revision`` before the compacted one.

        **Cancellation**: a cancelled ``receive`` has taken nothing. The channel is closed when the
        block ends.
        """

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget how things were before ``revision``.

        **Raises** :exc:`~spear_core.errors.CompactedError` when that has happened already, and
        :exc:`~spear_core.errors.InvalidRequestError` for a revision that is still to come.
        """

    @abstractmethod
    async def grant_lease(self, ttl: float) -> Lease:
        """A new lease that ends ``ttl`` seconds (> 0) after it was last renewed.

        The keys put with it are deleted then, all in one revision, a little later perhaps but
        never earlier. A durable store that was closed gives every lease its whole time again when
        it is opened.
        """

    @abstractmethod
    async def keep_alive(self, lease_id: int) -> Lease:
        """Renew a lease. **Raises** :exc:`~spear_core.errors.LeaseNotFoundError` when it has
        ended."""

    @abstractmethod
    async def revoke_lease(self, lease_id: int) -> None:
        """End a lease now. **Raises** :exc:`~spear_core.errors.LeaseNotFoundError` when it has
        ended."""

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, mod_revision: int | None = None
    ) -> int:
        """Write one key and return the revision.

        **Raises** as :meth:`transact` does, and
        :exc:`~spear_core.errors.MetadataConflictError` when ``mod_revision`` is given and is not
        the key's (0: it must not exist).
        """
        return await self._change_one(PutKey(key=key, value=value, lease=lease), mod_revision)

    async def delete(self, key: bytes, *, mod_revision: int | None = None) -> int:
        """Delete one key, if it exists, and return the store's revision. **Raises** as
        :meth:`put` does."""
        return await self._change_one(DeleteKey(key=key), mod_revision)

    async def _change_one(self, change: MetadataChange, mod_revision: int | None) -> int:
        compares = []
        if mod_revision is not None:
            compares = [Compare(key=change.key, mod_revision=mod_revision)]
        result = await self.transact([change], compares=compares)
        if result.succeeded:
            return result.revision
        (found,) = result.current
        current = found.mod_revision if found else 0
        state = f"was written at revision {current}" if found else "does not exist"
        raise MetadataConflictError(
            f"key {change.key!r} {state}, not at {mod_revision}; read it again and retry",
            current=current,
        )


@attrs.frozen(kw_only=True)
class MetadataStoreSpec(Generic[C]):
    """Declares a metadata store; returned by the hook ``spear_metadata_stores``."""

    name: str
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[MetadataStore]]
    config_cls: type[C]
    priority: int = 0
    """The installed store with the highest number is the default; ``memory`` has 0."""
    capabilities: frozenset[Capability] = frozenset()
    restore: Callable[[PluginContext, Path], Awaitable[None]] | None = None
    """Put the content of a backup (:meth:`StoreMaintenance.backup
    <spear_core.api.StoreMaintenance.backup>`) where ``open`` with that context will find it. The
    store is not open. **Raises** :exc:`~spear_core.errors.StoreInUseError` when it is, or when
    something is there already, :exc:`~spear_core.errors.StoreCorruptError` and
    :exc:`~spear_core.errors.StoreFormatError` when the directory is no such backup; nothing has
    changed then. ``None``: this store has no backups."""
    api: int = 1


AnyMetadataStoreSpec = MetadataStoreSpec[Any]
