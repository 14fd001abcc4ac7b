"""Object stores: what running code shares."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from spear_core.api._plugin import PluginContext
from spear_core.api._runtime import Capability
from spear_core.errors import InvalidRequestError

__all__ = [
    "OCTETS",
    "CheckObject",
    "DeleteObject",
    "ObjectChange",
    "ObjectChanges",
    "ObjectHolder",
    "ObjectOperation",
    "ObjectPage",
    "ObjectSnapshot",
    "ObjectStat",
    "ObjectStore",
    "ObjectStoreSpec",
    "ObjectView",
    "ObjectWriter",
    "PutObject",
    "SealedFile",
    "StoreUsage",
]

C = TypeVar("C")

OCTETS = "application/octet-stream"
"""The content type of an object whose writer did not name one."""

_PIPE = 1 << 20
"""Bytes that a pipe holds at most, unless the administrator allows more (``man 7 pipe``)."""


@attrs.frozen(kw_only=True)
class ObjectStat:
    """What a store knows about one object."""

    key: str
    size: int
    """Bytes."""
    version: int
    """1 for a new key, one more with every write. A key that was deleted goes on from where it
    was; a store that has forgotten which keys were deleted begins higher rather than give a key
    one version twice."""
    revision: int
    """The store's revision that wrote this version."""
    sha256: str
    """In hexadecimal; empty when the writer did not want it (``hashed=False``)."""
    created_at: float
    """Seconds since the Unix epoch: the first write of this key."""
    updated_at: float
    """Likewise: the current version."""
    content_type: str
    refs: int
    pinned: bool
    expires_at: float | None = None
    """Seconds since the Unix epoch after which it is collected, if nothing keeps it then."""


@attrs.frozen(kw_only=True)
class ObjectPage:
    """A part of a listing."""

    objects: tuple[ObjectStat, ...]
    """Ascending by key, as UTF-8 sorts."""
    next_key: str | None
    """Where the next page starts (``after``); ``None`` at the end."""
    revision: int
    """The store's revision that this page shows: watch from the one after it."""


@attrs.frozen
class SealedFile:
    """A value that lies in memory which nobody can change any more, to be put without a copy.

    It is a memfd (``os.memfd_create`` with ``MFD_ALLOW_SEALING``) that has been sealed with
    ``F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK``. A store duplicates the descriptor, or copies
    what is in it, when it is called and before it awaits anything; the caller keeps its own.
    """

    fd: int
    size: int
    """Bytes; all that is in the file."""


@attrs.frozen(kw_only=True)
class PutObject:
    """Write a new version. See :meth:`ObjectStore.put`."""

    key: str
    value: bytes | bytearray | memoryview | SealedFile
    expect: int | str | None = None
    content_type: str = OCTETS
    ttl: float | None = None
    hashed: bool = True


@attrs.frozen(kw_only=True)
class DeleteObject:
    """Remove an object. See :meth:`ObjectStore.delete`."""

    key: str
    expect: int | str | None = None


@attrs.frozen(kw_only=True)
class CheckObject:
    """Change nothing, but let the transaction fail unless the object is as expected."""

    key: str
    expect: int | str


ObjectOperation: TypeAlias = PutObject | DeleteObject | CheckObject


@attrs.frozen(kw_only=True)
class ObjectChange:
    """What one revision did to one object."""

    key: str
    now: ObjectStat | None
    """``None``: deleted, or collected."""


@attrs.frozen(kw_only=True)
class ObjectChanges:
    """What one revision did to the objects that a watch is for."""

    revision: int
    changes: tuple[ObjectChange, ...]
    """Ascending by key."""


@attrs.frozen(kw_only=True)
class ObjectHolder:
    """Somebody who has references to an object."""

    name: str
    """Empty: whoever did not say."""
    refs: int
    ttl: float | None
    """Seconds it may be silent (:meth:`ObjectStore.keep_alive`); ``None``: for ever."""


@attrs.frozen(kw_only=True, eq=False)
class ObjectView:
    """One version of an object, readable where it lies, for as long as a block lasts."""

    stat: ObjectStat
    data: memoryview
    """Read-only. It is released with the block: use after that is a ``ValueError``. What was made
    from it (a slice, an array) and still exists then keeps the memory, and goes on showing this
    version."""
    _fd: int | Callable[[], int | None] | None = attrs.field(default=None, alias="fd")
    in_memory: bool = False
    """Whether to read ``data`` never waits for a disk."""

    @property
    def fd(self) -> int | None:
        """A file, open for reading, that holds the value and nothing else, to be handed to another
        process; closed with the block. ``None``: this store, or so small an object, has none.

        Ask only to hand it over, or where ``in_memory`` is false: a store may make it when it is
        asked first (then ``fd`` was given as a function), and treat as lent what it belongs to.
        """
        return self._fd() if callable(self._fd) else self._fd


class ObjectWriter(ABC):
    """A new version that is written piece by piece; made by :meth:`ObjectStore.create`.

    One task at a time uses it, else :exc:`trio.BusyResourceError`. After :meth:`commit`, or when
    its block is over, its methods raise :exc:`trio.ClosedResourceError`.
    """

    prefers_pipe: bool = False
    """Whether a large value comes cheaper through :meth:`write_from` than it could be put as a
    :class:`SealedFile`."""

    @abstractmethod
    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a piece. What the caller does to ``data`` afterwards does not reach the store.

        **Raises** :exc:`~spear_core.errors.StoreFullError` when the store's limit, or the disk,
        does not allow so much, and :exc:`~spear_core.errors.InvalidRequestError` when it is more
        than the ``size`` that was announced. The writer is closed then, and when this is
        cancelled.
        """

    async def write_from(self, pipe: int, size: int) -> None:
        """Append the next ``size`` bytes (≥ 1) that come out of a pipe.

        :param pipe: its end for reading, in an open file that nobody else has (another process
            that shares it could make it blocking) and that does not block. It stays open; nothing
            beyond those bytes is taken out of it.

        **Raises** as :meth:`write`, without a look into the pipe where the limit is known
        beforehand; and :exc:`~spear_core.errors.InvalidRequestError` when the pipe ends before.
        The writer is not to be used after that, nor when this was cancelled. It waits for as long
        as others have the pipe open for writing and write nothing.
        """
        room = memoryview(bytearray(min(size, _PIPE)))
        left = size
        while left:
            await trio.lowlevel.wait_readable(pipe)
            try:
                count = os.readv(pipe, [room[:left]])
            except BlockingIOError:
                continue
            if not count:
                raise InvalidRequestError(
                    f"size: the pipe ended after {size - left} of {size} bytes"
                )
            await self.write(room[:count])
            left -= count

    @abstractmethod
    async def commit(self) -> ObjectStat:
        """Make what was written the new version, as :meth:`ObjectStore.put` does.

        **Raises** what ``put`` raises, ``expect`` being looked at now, and
        :exc:`~spear_core.errors.InvalidRequestError` when less was written than announced. The
        writer is closed in every case.
        """


class ObjectSnapshot(ABC):
    """All objects as they were at one revision; made by :meth:`ObjectStore.snapshot`.

    References and pins have no history: ``refs`` and ``pinned`` are those of now, or of when the
    version was written over or deleted. Every method may raise
    :exc:`~spear_core.errors.SnapshotExpiredError`: the store had to keep more for it than it can
    afford, and has ended it. Views that are open go on. After its block, every method raises
    :exc:`trio.ClosedResourceError`.
    """

    revision: int

    @abstractmethod
    def open(self, key: str) -> AbstractAsyncContextManager[ObjectView]:
        """As :meth:`ObjectStore.open`."""

    @abstractmethod
    async def stat(self, key: str) -> ObjectStat:
        """As :meth:`ObjectStore.stat`."""

    @abstractmethod
    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        """As :meth:`ObjectStore.list`; all pages are of one picture."""

    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        """As :meth:`ObjectStore.get`."""
        async with self.open(key) as view:
            return view.stat, bytes(view.data)


@attrs.frozen(kw_only=True)
class StoreUsage:
    """How much is in a store of objects."""

    objects: int
    bytes: int
    """Sum of the current values, and of what is being written into :class:`ObjectWriter`."""
    limit_bytes: int
    """What ``bytes`` may be at most."""


class ObjectStore(ABC):
    """Mutable, versioned objects with optimistic concurrency, reference counts and pins.

    Keys are non-empty text of at most 400 bytes in UTF-8. An object is collected when its
    reference count goes to zero while it is not pinned, when it is unpinned at zero, or when its
    time to live is over while nothing keeps it; one that never had a reference and has no such
    time stays until it is deleted. Nothing else is evicted.

    Where a method takes ``expect``, it is the version, or the content hash (``sha256``), that the
    object must have now; ``0``: it must not exist; ``None``: whatever it is.

    An old version stays for as long as it can be seen: while a view of it is open, or a snapshot
    of a revision at which it was current. Then it is collected.

    No method changes anything when it raises or is cancelled.
    """

    @abstractmethod
    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        """Do all of it in one revision, or nothing; at most 128 operations, each on another key.

        Returns what each object is afterwards, in their order, ``None`` for one that is not there.
        No other change comes in between. **Raises** what :meth:`put` and :meth:`delete` raise, and
        :exc:`~spear_core.errors.InvalidRequestError` when two operations name one key.
        """

    @abstractmethod
    def open(
        self, key: str, *, version: int | None = None
    ) -> AbstractAsyncContextManager[ObjectView]:
        """The current version, or the one that is named, without a copy where the store can.

        What the view shows never changes: later writes make new versions elsewhere, and a deleted
        object's view stays readable. A durable store keeps the space until the block ends.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError` on entering: there is no such
        object, or the version is gone (nothing shows it any more), or never was.
        """

    @abstractmethod
    def snapshot(self) -> AbstractAsyncContextManager[ObjectSnapshot]:
        """All objects as they are now, for as long as the block lasts.

        What is written over or deleted meanwhile is kept for it, within a limit of the store.
        """

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
        """Write a new version piece by piece: for values that are larger than memory allows.

        Nothing is to be seen before :meth:`ObjectWriter.commit`. A block that is left without it
        leaves nothing behind.

        :param size: how many bytes it will be, if that is known: a store that has no room for them
            says so on entering. It has to be exact. The rest is as in :meth:`put`.

        **Raises** on entering :exc:`~spear_core.errors.StoreFullError`, and
        :exc:`~spear_core.errors.InvalidRequestError` for a bad key or parameter.
        """

    @abstractmethod
    async def usage(self) -> StoreUsage:
        """How many objects there are, and how much room is left."""

    @abstractmethod
    async def stat(self, key: str) -> ObjectStat:
        """Everything but the value. **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        """Objects whose key begins with ``prefix`` and is greater than ``after``, at most
        ``limit`` (≥ 1) of them."""

    @abstractmethod
    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        """One reference more, in the name of ``holder`` (at most 200 bytes of UTF-8, no NUL).

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`.
        """

    @abstractmethod
    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        """One reference of that holder less; ``None`` when that collected the object.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`, and
        :exc:`~spear_core.errors.InvalidRequestError` when it has no reference to remove.
        """

    @abstractmethod
    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        """Who has references to the object, by name. **Raises**
        :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def keep_alive(self, holder: str, ttl: float) -> None:
        """From now on the holder is silent for ``ttl`` seconds (> 0) at most, else it is released.

        Call it again and again; a holder for whom it was never called is never released by itself.
        A durable store that was closed gives every holder its whole time again when it is opened.
        """

    @abstractmethod
    async def release(self, holder: str) -> int:
        """Remove every reference of a holder, and return how many there were.

        What nothing keeps then is collected. The holder need not exist, but must have a name.
        """

    @abstractmethod
    async def pin(self, key: str) -> ObjectStat:
        """Keep the object whatever its references. **Raises**
        :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; ``None`` when that collected the object (it was pinned and has no
        references). **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[ObjectChanges]]:
        """Every revision from ``start_revision`` on that wrote, deleted or collected an object with
        this prefix; references and pins make no revision.

        As :meth:`MetadataStore.watch <spear_core.api.MetadataStore.watch>` in everything else,
        :exc:`~spear_core.errors.CompactedError` included: a store keeps some thousand revisions of
        history, and may have none from before it was opened.
        """

    async def put(
        self,
        key: str,
        value: bytes | bytearray | memoryview | SealedFile,
        *,
        expect: int | str | None = None,
        content_type: str = OCTETS,
        ttl: float | None = None,
        hashed: bool = True,
    ) -> ObjectStat:
        """Write a new version. References and the pin stay as they are.

        :param ttl: seconds until it is collected, if nothing keeps it then; ``None``: never, also
            if the version before had one.
        :param hashed: compute ``sha256``. It takes longer than all the rest for a large value.
        :param content_type: at most 200 bytes in UTF-8.

        **Raises** :exc:`~spear_core.errors.ObjectConflictError` (with the current version) when
        the object is not what ``expect`` says; :exc:`~spear_core.errors.StoreFullError` when the
        store's limit would be passed; :exc:`~spear_core.errors.InvalidRequestError` for a bad key,
        and for a :class:`SealedFile` that is not sealed, or has another size.
        """
        operation = PutObject(
            key=key, value=value, expect=expect, content_type=content_type, ttl=ttl, hashed=hashed
        )
        (stat,) = await self.transact([operation])
        assert stat is not None
        return stat

    async def get(self, key: str, *, version: int | None = None) -> tuple[ObjectStat, bytes]:
        """A copy of the current version, or of the one that is named, as :meth:`open`. **Raises**
        :exc:`~spear_core.errors.ObjectNotFoundError`."""
        async with self.open(key, version=version) as view:
            return view.stat, bytes(view.data)

    def get_nowait(self, key: str) -> bytes:
        """The current value alone, now. **Raises** ``trio.WouldBlock`` where that needs waiting
        (for a large value, or in a store far away: then use :meth:`get`), and
        :exc:`~spear_core.errors.ObjectNotFoundError`."""
        raise trio.WouldBlock

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove the object whatever its references and pin.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`, and
        :exc:`~spear_core.errors.ObjectConflictError` when it is not what ``expect`` says.
        """
        await self.transact([DeleteObject(key=key, expect=expect)])


@attrs.frozen(kw_only=True)
class ObjectStoreSpec(Generic[C]):
    """Declares an object store; returned by the hook ``spear_object_stores``."""

    name: str
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[ObjectStore]]
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


AnyObjectStoreSpec = ObjectStoreSpec[Any]
