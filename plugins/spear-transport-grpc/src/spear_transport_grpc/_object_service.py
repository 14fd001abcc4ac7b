"""``ObjectService``: the node's objects for callers in any language."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
from google.protobuf.message import Message

from spear_core.api import (
    MAX_CHUNK,
    NodeApi,
    ObjectApi,
    ObjectChanges,
    ObjectHolder,
    ObjectPage,
    ObjectStat,
    ObjectWriter,
    StoreUsage,
)
from spear_core.errors import InvalidRequestError, NodeStoppingError
from spear_transport_grpc._bridge import Method, ServerCall
from spear_transport_grpc._convert import converter
from spear_transport_grpc._handlers import parsed, streaming, unary
from spear_transport_grpc._object_messages import (
    check_transaction,
    expected,
    operation_from_message,
    state_to_message,
    write_settings,
)
from spear_transport_grpc._protos.spear.v1 import object_pb2

__all__ = ["ObjectServices"]

V = TypeVar("V")
_DEFAULT_LIMIT = 1000
_PIECE = 1 << 20
"""The longest piece of a value that is sent: clients take messages of 4 MiB if nobody tells them
otherwise."""
_HASHED_AT_ONCE = 64 << 10
"""Bytes beyond which computing a hash is left to a thread."""


class ObjectServices:
    """Every method over the objects of one node.

    :param leaving: set when the front door closes: watches end then.
    """

    def __init__(self, node: NodeApi, leaving: trio.Event) -> None:
        self._node = node
        self._leaving = leaving

    @property
    def _objects(self) -> ObjectApi:
        return self._node.objects

    def methods(self) -> Mapping[str, Method]:
        """``/package.Service/Method`` → how it is done."""
        questions: tuple[tuple[str, type[Message], Callable[..., Awaitable[Message]]], ...] = (
            ("StatObject", object_pb2.StatObjectRequest, self._stat),
            ("ListObjects", object_pb2.ListObjectsRequest, self._list),
            ("TransactObjects", object_pb2.TransactObjectsRequest, self._transact),
            ("AddReference", object_pb2.AddReferenceRequest, self._add_reference),
            ("RemoveReference", object_pb2.RemoveReferenceRequest, self._remove_reference),
            ("ListHolders", object_pb2.ListHoldersRequest, self._holders),
            ("PinObject", object_pb2.PinObjectRequest, self._pin),
            ("UnpinObject", object_pb2.UnpinObjectRequest, self._unpin),
            ("DeleteObject", object_pb2.DeleteObjectRequest, self._delete),
            ("GetObjectUsage", object_pb2.GetObjectUsageRequest, self._usage),
        )
        streams = (
            ("PutObject", self._put),
            ("GetObject", self._get),
            ("WatchObjects", self._watch),
        )
        return {
            **{f"/spear.v1.ObjectService/{name}": unary(cls, do) for name, cls, do in questions},
            **{f"/spear.v1.ObjectService/{name}": streaming(do) for name, do in streams},
        }

    # ---- values

    async def _put(self, call: ServerCall) -> None:
        first = parsed(object_pb2.PutObjectRequest, await call.receive())
        if not first.HasField("header"):
            raise InvalidRequestError("header: the first message of a write says what it is")
        header = first.header
        size = header.size if header.HasField("size") else None
        async with self._objects.create(header.key, size=size, **write_settings(header)) as writer:
            call.accept()
            await _take(call, writer, header.sha256)
            stat = await writer.commit()
        await call.send(_encoded(ObjectStat, stat).SerializeToString())

    async def _get(self, call: ServerCall) -> None:
        request = parsed(object_pb2.GetObjectRequest, await call.receive())
        version = request.version if request.HasField("version") else None
        part = object_pb2.GetObjectResponse
        async with self._objects.read(
            request.key, version=version, offset=request.offset
        ) as reader:
            stat = converter(ObjectStat).encode(reader.stat)
            await call.send(part(stat=stat).SerializeToString())
            async for piece in reader:
                for start in range(0, len(piece), _PIECE):
                    chunk = piece[start : start + _PIECE]
                    await call.send(part(chunk=chunk).SerializeToString())

    async def _transact(
        self, message: object_pb2.TransactObjectsRequest, call: ServerCall
    ) -> Message:
        check_transaction(message.operations)
        operations = [operation_from_message(each) for each in message.operations]
        states = await self._objects.transact(operations)
        return object_pb2.TransactObjectsResponse(objects=map(state_to_message, states))

    async def _watch(self, call: ServerCall) -> None:
        request = parsed(object_pb2.WatchObjectsRequest, await call.receive())
        start = request.start_revision if request.HasField("start_revision") else None
        async with self._objects.watch(request.prefix, start_revision=start) as changes:
            call.accept()
            async with _until(self._leaving):
                async for found in changes:
                    await call.send(_encoded(ObjectChanges, found).SerializeToString())

    # ---- everything else

    async def _stat(self, message: object_pb2.StatObjectRequest, call: ServerCall) -> Message:
        return _encoded(ObjectStat, await self._objects.stat(message.key))

    async def _list(self, message: object_pb2.ListObjectsRequest, call: ServerCall) -> Message:
        page = await self._objects.list(
            message.prefix,
            after=message.after if message.HasField("after") else None,
            limit=message.limit or _DEFAULT_LIMIT,
        )
        return _encoded(ObjectPage, page)

    async def _add_reference(
        self, message: object_pb2.AddReferenceRequest, call: ServerCall
    ) -> Message:
        stat = await self._objects.add_ref(message.key, holder=message.holder)
        return _encoded(ObjectStat, stat)

    async def _remove_reference(
        self, message: object_pb2.RemoveReferenceRequest, call: ServerCall
    ) -> Message:
        left = await self._objects.remove_ref(message.key, holder=message.holder)
        return state_to_message(left)

    async def _holders(self, message: object_pb2.ListHoldersRequest, call: ServerCall) -> Message:
        found = await self._objects.holders(message.key)
        encode = converter(ObjectHolder).encode
        return object_pb2.ListHoldersResponse(holders=map(encode, found))

    async def _pin(self, message: object_pb2.PinObjectRequest, call: ServerCall) -> Message:
        return _encoded(ObjectStat, await self._objects.pin(message.key))

    async def _unpin(self, message: object_pb2.UnpinObjectRequest, call: ServerCall) -> Message:
        return state_to_message(await self._objects.unpin(message.key))

    async def _delete(self, message: object_pb2.DeleteObjectRequest, call: ServerCall) -> Message:
        await self._objects.delete(message.key, expect=expected(message))
        return object_pb2.DeleteObjectResponse()

    async def _usage(self, message: object_pb2.GetObjectUsageRequest, call: ServerCall) -> Message:
        return _encoded(StoreUsage, await self._objects.usage())


async def _take(call: ServerCall, writer: ObjectWriter, sha256: str) -> None:
    """Write what the client sends, and return when it has committed all of it.

    **Raises** :exc:`InvalidRequestError` when it has not, or not what it announced.
    """
    digest = hashlib.sha256() if sha256 else None
    came = 0
    while True:
        data = await call.receive()
        if data is None:
            raise InvalidRequestError(
                f"commit: the call ended without it, after {came} bytes; nothing was written"
            )
        message = parsed(object_pb2.PutObjectRequest, data)
        if message.HasField("commit"):
            break
        if message.HasField("header"):
            raise InvalidRequestError(
                f"header: a write has one, and {message.header.key[:100]!r} is another; each "
                "object is a call of its own"
            )
        chunk = message.chunk
        if len(chunk) > MAX_CHUNK:
            raise InvalidRequestError(
                f"chunk: a piece has at most {MAX_CHUNK} bytes, this one {len(chunk)}"
            )
        came += len(chunk)
        await writer.write(chunk)
        if digest is not None:
            await _update(digest, chunk)
    if message.commit.size != came:
        raise InvalidRequestError(
            f"commit.size: {message.commit.size} bytes were sent, it says, but {came} came; "
            "nothing was written"
        )
    if digest is not None and digest.hexdigest() != sha256.lower():
        raise InvalidRequestError(
            f"sha256: {sha256[:100]!r} was announced, but what came has {digest.hexdigest()}; "
            "nothing was written"
        )
    if await call.receive() is not None:
        raise InvalidRequestError("commit: it is the last message, and another came after it")


async def _update(digest: Any, chunk: bytes) -> None:
    if len(chunk) > _HASHED_AT_ONCE:
        await trio.to_thread.run_sync(digest.update, chunk)
    else:
        digest.update(chunk)


@asynccontextmanager
async def _until(leaving: trio.Event) -> AsyncGenerator[None]:
    """Cancel the block when the front door closes. **Raises** :exc:`NodeStoppingError` then."""

    async def wait(scope: trio.CancelScope) -> None:
        await leaving.wait()
        scope.cancel()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, nursery.cancel_scope)
        try:
            yield
        except Exception as error:  # barrier: carried past the nursery, as it is
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if leaving.is_set():
        raise NodeStoppingError("the node is shutting down; watch again when it is back")


def _encoded(cls: type[V], value: V) -> Message:
    message: Message = converter(cls).encode(value)
    return message
