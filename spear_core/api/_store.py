"""Object stores: what running code shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import attrs

from spear_core.api._plugin import PluginContext
from spear_core.api._runtime import Capability

__all__ = ["ObjectPage", "ObjectStat", "ObjectStore", "ObjectStoreSpec"]

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class ObjectStat:
    """What a store knows about one object."""

    key: str
    size: int
    """Bytes."""
    version: int
    """1 for a new key; one more with every write, also after a delete and a new put."""
    sha256: str
    created_at: float
    """Seconds since the Unix epoch: the first write of this key."""
    updated_at: float
    """Likewise: the current version."""
    content_type: str
    refs: int
    pinned: bool


@attrs.frozen(kw_only=True)
class ObjectPage:
    """A part of a listing."""

    objects: tuple[ObjectStat, ...]
    """Ascending by key."""
    next_key: str | None
    """Where the next page starts (``after``); ``None`` at the end."""


class ObjectStore(ABC):
    """Mutable, versioned objects with optimistic concurrency, reference counts and pins.

    Keys are non-empty text of at most 400 bytes in UTF-8. An object is collected when its
    reference count goes from one to zero while it is not pinned, or when it is unpinned at zero;
    one that never had a reference stays until it is deleted. No method changes anything when it
    raises or is cancelled.
    """

    @abstractmethod
    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expect: int | None = None,
        content_type: str = "application/octet-stream",
    ) -> ObjectStat:
        """Write a new version.

        References and the pin stay as they are. **Raises**
        :exc:`~spear_core.errors.ObjectConflictError` (with the current version) when ``expect`` is
        not the current version, ``expect=0`` meaning "must not exist";
        :exc:`~spear_core.errors.StoreFullError` when the store's limit would be passed;
        :exc:`~spear_core.errors.InvalidRequestError` for a bad key.
        """

    @abstractmethod
    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        """The current version. **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

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
    async def add_ref(self, key: str) -> ObjectStat:
        """One reference more. **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`."""

    @abstractmethod
    async def remove_ref(self, key: str) -> ObjectStat | None:
        """One reference less; ``None`` when that collected the object.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`, and
        :exc:`~spear_core.errors.InvalidRequestError` when there is no reference to remove.
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
    async def delete(self, key: str, *, expect: int | None = None) -> None:
        """Remove the object whatever its references and pin.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`, and
        :exc:`~spear_core.errors.ObjectConflictError` when ``expect`` is not the current version.
        """


@attrs.frozen(kw_only=True)
class ObjectStoreSpec(Generic[C]):
    """Declares an object store; returned by the hook ``spear_object_stores``."""

    name: str
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[ObjectStore]]
    config_cls: type[C]
    priority: int = 0
    """The installed store with the highest number is the default; ``memory`` has 0."""
    capabilities: frozenset[Capability] = frozenset()
    api: int = 1


AnyObjectStoreSpec = ObjectStoreSpec[Any]
