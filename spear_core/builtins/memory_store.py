"""The object store ``memory``: everything in this process, gone when it ends."""

from __future__ import annotations

import bisect
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio

from spear_core.api import ObjectPage, ObjectStat, ObjectStore, PluginContext
from spear_core.errors import (
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
    StoreFullError,
)

__all__ = ["MemoryObjectStore", "MemoryStoreConfig", "open_memory_store"]

_HASH_INLINE = 1 << 20
"""Values over a mebibyte (about a millisecond of sha256) are hashed in a thread."""

_MAX_KEY = 400


@attrs.frozen(kw_only=True)
class MemoryStoreConfig:
    """Part of ``[plugins.builtins]``."""

    memory_store_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.gt(0))
    """Sum of the values; a write that would pass it is refused."""


@asynccontextmanager
async def open_memory_store(
    context: PluginContext, config: MemoryStoreConfig
) -> AsyncGenerator[ObjectStore, None]:
    """An empty store that lives as long as the block."""
    await trio.lowlevel.checkpoint()
    yield MemoryObjectStore(max_bytes=config.memory_store_bytes)


@attrs.frozen
class _Object:
    stat: ObjectStat
    value: bytes


class MemoryObjectStore(ObjectStore):
    """Objects in a dict. Evicts nothing: when it is full, it says so.

    The last version of a deleted key is remembered for as long as the store lives.

    :param max_bytes: limit for the sum of the values.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self._objects: dict[str, _Object] = {}
        self._keys: list[str] = []
        self._last_versions: dict[str, int] = {}

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expect: int | None = None,
        content_type: str = "application/octet-stream",
    ) -> ObjectStat:
        _check_key(key)
        value = bytes(value)
        await trio.lowlevel.checkpoint()
        if len(value) > _HASH_INLINE:
            digest = await trio.to_thread.run_sync(_sha256, value)
        else:
            digest = _sha256(value)
        old = self._objects.get(key)
        self._check_expected(key, old, expect)
        used = self._used - (old.stat.size if old else 0) + len(value)
        if used > self._max_bytes:
            raise StoreFullError(
                f"writing {len(value)} bytes to {key!r} would pass the store's limit of "
                f"{self._max_bytes} bytes ({self._used} in use); delete objects, or raise "
                f"plugins.builtins.memory_store_bytes"
            )
        now = time.time()
        version = (old.stat.version if old else self._last_versions.pop(key, 0)) + 1
        stat = ObjectStat(
            key=key,
            size=len(value),
            version=version,
            sha256=digest,
            created_at=old.stat.created_at if old else now,
            updated_at=now,
            content_type=content_type,
            refs=old.stat.refs if old else 0,
            pinned=old.stat.pinned if old else False,
        )
        if old is None:
            bisect.insort(self._keys, key)
        self._objects[key] = _Object(stat, value)
        self._used = used
        return stat

    async def get(self, key: str) -> tuple[ObjectStat, bytes]:
        await trio.lowlevel.checkpoint()
        found = self._find(key)
        return found.stat, found.value

    async def stat(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._find(key).stat

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        if limit < 1:
            raise InvalidRequestError(f"limit must be at least 1, not {limit}")
        await trio.lowlevel.checkpoint()
        start = bisect.bisect_left(self._keys, prefix)
        if after is not None:
            start = max(start, bisect.bisect_right(self._keys, after))
        keys = self._keys[start : start + limit + 1]
        matching = [key for key in keys if key.startswith(prefix)]
        page = tuple(self._objects[key].stat for key in matching[:limit])
        return ObjectPage(objects=page, next_key=page[-1].key if len(matching) > limit else None)

    async def add_ref(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._change(key, refs=self._find(key).stat.refs + 1)

    async def remove_ref(self, key: str) -> ObjectStat | None:
        await trio.lowlevel.checkpoint()
        stat = self._find(key).stat
        if stat.refs == 0:
            raise InvalidRequestError(f"object {key!r} has no reference to remove")
        if stat.refs == 1 and not stat.pinned:
            self._drop(key)
            return None
        return self._change(key, refs=stat.refs - 1)

    async def pin(self, key: str) -> ObjectStat:
        await trio.lowlevel.checkpoint()
        return self._change(key, pinned=True)

    async def unpin(self, key: str) -> ObjectStat | None:
        await trio.lowlevel.checkpoint()
        stat = self._find(key).stat
        if stat.pinned and stat.refs == 0:
            self._drop(key)
            return None
        return self._change(key, pinned=False)

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._check_expected(key, self._find(key), expect)
        self._drop(key)

    def _find(self, key: str) -> _Object:
        try:
            return self._objects[key]
        except KeyError:
            raise ObjectNotFoundError(f"there is no object {key!r}") from None

    def _change(
        self, key: str, *, refs: int | None = None, pinned: bool | None = None
    ) -> ObjectStat:
        found = self._find(key)
        stat = attrs.evolve(
            found.stat,
            refs=found.stat.refs if refs is None else refs,
            pinned=found.stat.pinned if pinned is None else pinned,
        )
        self._objects[key] = _Object(stat, found.value)
        return stat

    def _drop(self, key: str) -> None:
        gone = self._objects.pop(key).stat
        del self._keys[bisect.bisect_left(self._keys, key)]
        self._used -= gone.size
        self._last_versions[key] = gone.version

    def _check_expected(self, key: str, found: _Object | None, expect: int | None) -> None:
        current = found.stat.version if found else 0
        if expect is not None and expect != current:
            state = f"is at version {current}" if current else "does not exist"
            raise ObjectConflictError(
                f"object {key!r} {state}, not at version {expect}; read it again and retry"
                if expect
                else f"object {key!r} exists already, at version {current}",
                current=current,
            )


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _check_key(key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError("key: must be text that UTF-8 can express") from None
    if not 0 < size <= _MAX_KEY:
        raise InvalidRequestError(f"key: must have 1 to {_MAX_KEY} bytes in UTF-8, not {size}")
