"""The hostcalls ``objects.*``: running code reads and writes objects (``docs/objects.md``).

A large value goes as a file descriptor where the caller's channel passes them, and is then in
memory once, whoever maps it.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
import trio

from spear_core.api import (
    CheckObject,
    DeleteObject,
    HostcallContext,
    HostcallProvider,
    HostcallValue,
    ObjectOperation,
    ObjectStat,
    ObjectStore,
    ObjectView,
    ObjectWriter,
    OwnedFd,
    PluginContext,
    PutObject,
    SealedFile,
)
from spear_core.builtins._call_payload import pack, unpack
from spear_core.builtins._guest_pipes import open_guest_pipe, takes_pipes
from spear_core.builtins._lent_files import LentFiles, open_lent_files
from spear_core.builtins._object_heads import (
    DeleteHead,
    HandleHead,
    KeyHead,
    ListHead,
    OpenHead,
    PutHead,
    ReadHead,
    TransactHead,
    WriteHead,
)
from spear_core.builtins._open_objects import IDLE_S, OpenObjects
from spear_core.errors import (
    InvalidRequestError,
    ResourceExhaustedError,
    SpearError,
    StoreError,
    StoreFullError,
)

__all__ = ["NAMES", "ObjectsConfig", "open_objects"]

T = TypeVar("T")

_INLINE = 64 << 10
"""Up to this size a value goes in the answer itself, which is quicker than a file."""
_MOST_IN_ONE = 4 << 20
"""A larger value that cannot go as a file is read piece by piece; no piece is larger."""
_MOST_LISTED = 1000


@attrs.frozen(kw_only=True)
class ObjectsConfig:
    """These hostcalls have no settings."""


@attrs.frozen
class _ObjectCall:
    """One call. It has more methods than a class should: one for each hostcall."""

    caller: HostcallContext
    objects: ObjectStore
    opened: OpenObjects
    files: LentFiles
    name: str
    payload: bytes

    def _unpack(self, head_type: type[T]) -> tuple[T, memoryview]:
        return unpack(self.name, self.payload, head_type)

    def _head(self, head_type: type[T]) -> T:
        return self._unpack(head_type)[0]

    # ---- whole values

    async def put(self) -> HostcallValue:
        head, rest = self._unpack(PutHead)
        value: memoryview | SealedFile = rest
        if (fd := self.caller.fd) is not None:
            if len(rest) or head.size is None:
                raise InvalidRequestError("objects.put: a file has a size, and no bytes beside it")
            _check_memory(fd)
            await self._check_fits(head.size)
            value = SealedFile(fd=fd.fileno(), size=head.size)
        operation = PutObject(
            key=head.key,
            value=value,
            expect=head.expect,
            content_type=head.content_type,
            ttl=head.ttl,
            hashed=head.hashed,
        )
        return _stat((await self.objects.transact([operation]))[0])

    async def _check_fits(self, size: int) -> None:
        """**Raises** :exc:`StoreFullError` for memory that is mostly holes and claims to be vast:
        to read it, as hashing does, would fill it."""
        limit = (await self.objects.usage()).limit_bytes
        if size > limit:
            raise StoreFullError(f"{size} bytes are more than the store may hold, {limit}")

    async def get(self) -> HostcallValue:
        head = self._head(OpenHead)
        async with self.objects.open(head.key, version=head.version) as view:
            size = view.stat.size
            if self.caller.takes_fd and size > _INLINE and view.fd is not None:
                return HostcallValue(pack({"stat": view.stat}), await self.files.lend(view))
            if size > _MOST_IN_ONE:
                return HostcallValue(pack({"stat": view.stat, "whole": False}))
            value = await _piece(view, 0, size)
            return HostcallValue(pack({"stat": view.stat}, value))

    async def transact(self) -> HostcallValue:
        head, rest = self._unpack(TransactHead)
        stats = await self.objects.transact(_operations(head, rest))
        return HostcallValue(pack({"stats": stats}))

    # ---- piece by piece

    async def open(self) -> HostcallValue:
        head = self._head(OpenHead)
        opening = self.objects.open(head.key, version=head.version)
        handle, view = await self.opened.add(self.caller, ObjectView, opening)
        if not self.caller.takes_fd or view.fd is None:
            return HostcallValue(pack({"stat": view.stat, "handle": handle}))
        try:
            return HostcallValue(pack({"stat": view.stat}), await self.files.lend(view))
        finally:
            await self.opened.close(self.caller, handle)

    async def read(self) -> HostcallValue:
        head = self._head(ReadHead)
        if head.offset < 0 or not 0 <= head.length <= _MOST_IN_ONE:
            raise InvalidRequestError(f"objects.read: from 0 on, {_MOST_IN_ONE} bytes at most")
        async with self.opened.use(self.caller, head.handle, ObjectView) as view:
            return HostcallValue(await _piece(view, head.offset, head.length))

    async def create(self) -> HostcallValue:
        head = self._head(PutHead)
        opening = self.objects.create(
            head.key,
            expect=head.expect,
            content_type=head.content_type,
            ttl=head.ttl,
            hashed=head.hashed,
            size=head.size,
        )
        handle, writer = await self.opened.add(self.caller, _WRITER, opening)
        if self.caller.takes_fd and writer.prefers_pipe and takes_pipes():
            return HostcallValue(pack({"handle": handle, "pipe": True}))
        return HostcallValue(pack({"handle": handle}))

    async def write(self) -> HostcallValue:
        head, rest = self._unpack(WriteHead)
        try:
            async with self.opened.use(self.caller, head.handle, _WRITER) as writer:
                if self.caller.fd is None:
                    await writer.write(rest)
                else:
                    await self._write_from(writer, self.caller.fd, head.size, rest)
        except (StoreError, InvalidRequestError, ResourceExhaustedError):
            await self.opened.drop(self.caller, head.handle)  # it takes no more
            raise
        return HostcallValue(pack({}))

    async def _write_from(
        self, writer: ObjectWriter, fd: OwnedFd, size: int | None, rest: memoryview
    ) -> None:
        if len(rest) or size is None or size < 1:
            raise InvalidRequestError("objects.write: a pipe has a size, and no bytes beside it")
        failed: SpearError | None = None
        with open_guest_pipe(fd) as pipe, trio.move_on_after(IDLE_S) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_end, patience)
                try:
                    await writer.write_from(pipe, size)
                except SpearError as exc:
                    failed = exc
                nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            raise InvalidRequestError(
                f"objects.write: {size} bytes did not come through the pipe in {IDLE_S:g} "
                f"seconds, or before the task ended"
            )
        if failed is not None:
            raise failed

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        """A call may outlive its execution, for as long as the guest's process lives."""
        await (self.caller.wait_ended or trio.sleep_forever)()
        scope.cancel()

    async def commit(self) -> HostcallValue:
        head = self._head(HandleHead)
        try:
            async with self.opened.use(self.caller, head.handle, _WRITER) as writer:
                return _stat(await writer.commit())
        finally:
            await self.opened.drop(self.caller, head.handle)

    async def close(self) -> HostcallValue:
        await self.opened.close(self.caller, self._head(HandleHead).handle)
        return HostcallValue(pack({}))

    # ---- all but values

    async def stat(self) -> HostcallValue:
        return _stat(await self.objects.stat(self._head(KeyHead).key))

    async def list(self) -> HostcallValue:
        head = self._head(ListHead)
        limit = min(head.limit, _MOST_LISTED)
        return HostcallValue(
            pack(await self.objects.list(head.prefix, after=head.after, limit=limit))
        )

    async def delete(self) -> HostcallValue:
        head = self._head(DeleteHead)
        await self.objects.delete(head.key, expect=head.expect)
        return _stat(None)

    async def add_ref(self) -> HostcallValue:
        return _stat(await self.objects.add_ref(self._head(KeyHead).key))

    async def remove_ref(self) -> HostcallValue:
        return _stat(await self.objects.remove_ref(self._head(KeyHead).key))

    async def pin(self) -> HostcallValue:
        return _stat(await self.objects.pin(self._head(KeyHead).key))

    async def unpin(self) -> HostcallValue:
        return _stat(await self.objects.unpin(self._head(KeyHead).key))


_WRITER: type[ObjectWriter] = ObjectWriter  # type: ignore[type-abstract]
_METHODS: Mapping[str, Callable[[_ObjectCall], Awaitable[HostcallValue]]] = {
    f"objects.{method.__name__}": method
    for method in (
        _ObjectCall.add_ref,
        _ObjectCall.close,
        _ObjectCall.commit,
        _ObjectCall.create,
        _ObjectCall.delete,
        _ObjectCall.get,
        _ObjectCall.list,
        _ObjectCall.open,
        _ObjectCall.pin,
        _ObjectCall.put,
        _ObjectCall.read,
        _ObjectCall.remove_ref,
        _ObjectCall.stat,
        _ObjectCall.transact,
        _ObjectCall.unpin,
        _ObjectCall.write,
    )
}
NAMES = frozenset(_METHODS)


class _Objects(HostcallProvider):
    def __init__(self, opened: OpenObjects, files: LentFiles) -> None:
        self._opened = opened
        self._files = files

    async def call(self, caller: HostcallContext, name: str, payload: bytes) -> HostcallValue:
        if caller.objects is None:
            raise SpearError("there are no objects for running code here", code="unimplemented")
        call = _ObjectCall(caller, caller.objects, self._opened, self._files, name, payload)
        return await _METHODS[name](call)


def _stat(found: ObjectStat | None) -> HostcallValue:
    return HostcallValue(pack({"stat": found}))


def _operations(head: TransactHead, values: memoryview) -> list[ObjectOperation]:
    """What the head asks for; the values of its puts are one after the other."""
    operations: list[ObjectOperation] = []
    for asked in head.operations:
        if asked.op == "put":
            if not 0 <= asked.size <= len(values):
                raise InvalidRequestError(f"objects.transact: no {asked.size} bytes are left")
            operations.append(
                PutObject(
                    key=asked.key,
                    value=values[: asked.size],
                    expect=asked.expect,
                    content_type=asked.content_type,
                    ttl=asked.ttl,
                    hashed=asked.hashed,
                )
            )
            values = values[asked.size :]
        elif asked.op == "delete":
            operations.append(DeleteObject(key=asked.key, expect=asked.expect))
        elif asked.expect is None:
            raise InvalidRequestError("objects.transact: a check has something it expects")
        else:
            operations.append(CheckObject(key=asked.key, expect=asked.expect))
    if len(values):
        raise InvalidRequestError(f"objects.transact: {len(values)} bytes belong to no put")
    return operations


def _check_memory(fd: OwnedFd) -> None:
    """**Raises** :exc:`InvalidRequestError` unless it is memory with pages of the usual size.

    To touch a huge page that the machine does not have would end the node; and a file elsewhere
    could make it wait. That nobody can change it any more, the store sees to.
    """
    file = os.fstat(fd.fileno())
    if not stat.S_ISREG(file.st_mode) or os.fstatvfs(fd.fileno()).f_bsize != mmap.PAGESIZE:
        raise InvalidRequestError("objects.put: the file is no memory made with memfd_create")


async def _piece(view: ObjectView, offset: int, length: int) -> bytes:
    """A copy of a part; in a thread where it may have to come from a disk."""
    data = view.data[offset : offset + length]
    if len(data) <= _INLINE:
        return bytes(data)
    return await trio.to_thread.run_sync(bytes, data)


@asynccontextmanager
async def open_objects(
    context: PluginContext, config: ObjectsConfig
) -> AsyncIterator[HostcallProvider]:
    """Answer ``objects.*``; what guests leave open is closed with the block."""
    with open_lent_files() as files:
        async with trio.open_nursery() as nursery:
            yield _Objects(OpenObjects(nursery), files)
            nursery.cancel_scope.cancel()
