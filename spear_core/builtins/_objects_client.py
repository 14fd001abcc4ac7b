"""ObjectApi on the wire (``docs/wire-format.md``), the client's side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import trio

from spear_core.api import (
    OCTETS,
    CheckObject,
    DeleteObject,
    ObjectApi,
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    SealedFile,
    StoreUsage,
)
from spear_core.builtins._node_streams import gone
from spear_core.builtins._objects_wire import PREFIX, PackedOperation
from spear_core.errors import ChannelBrokenError, ChannelClosedError, InvalidRequestError
from spear_core.rpc import Reply, Stream
from spear_core.rpc.codec import decode_head, encode_head

__all__ = ["ObjectsClient"]

T = TypeVar("T")
Ask = Callable[[str, dict[str, Any], bytes | bytearray | memoryview], Awaitable[Reply]]
OpenStream = Callable[[str, dict[str, Any]], AbstractAsyncContextManager[Stream]]

_PIECE = 256 << 10
_MOST_AT_ONCE = 4 << 20
"""Bytes of a value that go as one payload; more goes as a stream."""
_MOST_TRANSACTED = 32 << 20


class ObjectsClient(ObjectApi):
    """The objects of a node on the other side of ``ask(method, args, payload)``."""

    def __init__(self, ask: Ask, open_stream: OpenStream) -> None:
        self._ask = ask
        self._open_stream = open_stream

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
        settings = _settings(expect, content_type, ttl, hashed)
        size = memoryview(value).nbytes
        if size <= _MOST_AT_ONCE:
            return await self._call("put", ObjectStat, {"key": key, **settings}, value)
        async with self.create(key, **settings, size=size) as writer:
            await writer.write(value)
            return await writer.commit()

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
        args = {"key": key, **_settings(expect, content_type, ttl, hashed)}
        if size is not None:
            args["size"] = size
        async with self._stream("create", args) as stream:
            await _receive(stream)
            writer = _Writer(stream)
            try:
                yield writer
            finally:
                writer.closed = True

    @asynccontextmanager
    async def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AsyncGenerator[ObjectReader]:
        args = {"key": key, "version": version, "offset": offset}
        async with self._stream("read", args) as stream:
            stat = decode_head(await _receive(stream), ObjectStat)
            async with _Reader(stat, stream) as reader:
                yield reader

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        packed = [_packed(operation) for operation in operations]
        if (size := sum(len(each.value) for each in packed)) > _MOST_TRANSACTED:
            raise InvalidRequestError(
                f"the values of this transaction have {size} bytes; through a front door at most "
                f"{_MOST_TRANSACTED} are allowed"
            )
        payload = encode_head(packed)
        return await self._call("transact", tuple[ObjectStat | None, ...], {}, payload)

    async def stat(self, key: str) -> ObjectStat:
        return await self._call("stat", ObjectStat, {"key": key})

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        args = {"prefix": prefix, "after": after, "limit": limit}
        return await self._call("list", ObjectPage, args)

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        return await self._call("add_ref", ObjectStat, {"key": key, "holder": holder})

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        return await self._optional("remove_ref", {"key": key, "holder": holder})

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        return await self._call("holders", tuple[ObjectHolder, ...], {"key": key})

    async def pin(self, key: str) -> ObjectStat:
        return await self._call("pin", ObjectStat, {"key": key})

    async def unpin(self, key: str) -> ObjectStat | None:
        return await self._optional("unpin", {"key": key})

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        await self._ask(f"{PREFIX}delete", {"key": key, "expect": expect}, b"")

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges]]:
        args = {"prefix": prefix, "start_revision": start_revision}
        async with self._stream("watch", args) as stream:
            await _receive(stream)
            async with _Changes(stream) as changes:
                yield changes

    async def usage(self) -> StoreUsage:
        return await self._call("usage", StoreUsage, {})

    async def _call(
        self,
        method: str,
        type_: type[T],
        args: dict[str, Any],
        payload: bytes | bytearray | memoryview = b"",
    ) -> T:
        reply = await self._ask(f"{PREFIX}{method}", args, payload)
        return decode_head(bytes(reply.payload), type_)

    async def _optional(self, method: str, args: dict[str, Any]) -> ObjectStat | None:
        reply = await self._ask(f"{PREFIX}{method}", args, b"")
        (found,) = decode_head(b"\x91" + bytes(reply.payload), tuple[ObjectStat | None])
        return found

    @asynccontextmanager
    async def _stream(self, method: str, args: dict[str, Any]) -> AsyncGenerator[Stream]:
        try:
            async with self._open_stream(f"{PREFIX}{method}", args) as stream:
                yield stream
        except ChannelBrokenError as error:
            raise gone(error) from error


def _settings(
    expect: int | str | None, content_type: str, ttl: float | None, hashed: bool
) -> dict[str, Any]:
    """The arguments of a write, without those at their default."""
    given: dict[str, Any] = {}
    if expect is not None:
        given["expect"] = expect
    if content_type != OCTETS:
        given["content_type"] = content_type
    if ttl is not None:
        given["ttl"] = ttl
    if not hashed:
        given["hashed"] = False
    return given


def _packed(operation: ObjectOperation) -> PackedOperation:
    if isinstance(operation, DeleteObject):
        return PackedOperation("delete", operation.key, operation.expect)
    if isinstance(operation, CheckObject):
        return PackedOperation("check", operation.key, operation.expect)
    if isinstance(operation.value, SealedFile):
        raise InvalidRequestError(
            f"{operation.key[:100]!r}: a file cannot be put through a front door; send its bytes"
        )
    return PackedOperation(
        "put",
        operation.key,
        operation.expect,
        bytes(operation.value),
        operation.content_type,
        operation.ttl,
        operation.hashed,
    )


async def _receive(stream: Stream) -> bytes:
    """The next message, or what the node raised. :raises trio.EndOfChannel: there is none."""
    try:
        return await stream.receive()
    except ChannelBrokenError as error:
        raise gone(error) from error


class _Reader(ObjectReader):
    """Pieces as the node sends them."""

    def __init__(self, stat: ObjectStat, stream: Stream) -> None:
        self.stat = stat
        self._stream = stream

    async def receive(self) -> bytes:
        try:
            return await _receive(self._stream)
        except trio.EndOfChannel:
            await _result(self._stream)
            raise
        except ChannelClosedError:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Changes(trio.abc.ReceiveChannel[ObjectChanges]):
    """A watch, as the node sends it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def receive(self) -> ObjectChanges:
        try:
            return decode_head(await _receive(self._stream), ObjectChanges)
        except ChannelClosedError:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Writer(ObjectWriter):
    """Sends what it is given, and the end only with :meth:`commit`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.closed = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check_open()
        try:
            for start in range(0, len(view), _PIECE):
                await self._stream.send(view[start : start + _PIECE])
            await trio.lowlevel.checkpoint()
        except ChannelClosedError:  # the node has taken enough, and says why
            await _result(self._stream)
            raise
        except ChannelBrokenError as error:
            raise gone(error) from error
        except trio.Cancelled:  # nobody knows how much of it went
            self.closed = True
            raise

    async def commit(self) -> ObjectStat:
        self._check_open()
        self.closed = True
        try:
            await self._stream.send_eof()
        except ChannelClosedError:
            pass  # its answer says why
        except ChannelBrokenError as error:
            raise gone(error) from error
        reply = await _result(self._stream)
        return decode_head(bytes(reply.payload), ObjectStat)

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError


async def _result(stream: Stream) -> Reply:
    """The node's answer. **Raises** what the node raised."""
    try:
        return await stream.result()
    except ChannelBrokenError as error:
        raise gone(error) from error
