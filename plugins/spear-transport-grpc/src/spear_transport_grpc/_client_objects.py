"""The client side of objects: ObjectApi over ``ObjectService``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import trio
from google.protobuf.message import Message

from spear_core.api import (
    OCTETS,
    ObjectApi,
    ObjectChanges,
    ObjectHolder,
    ObjectOperation,
    ObjectPage,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    PutObject,
    StoreUsage,
)
from spear_core.errors import InvalidRequestError, ProtocolError
from spear_transport_grpc._asking import Asking
from spear_transport_grpc._bridge import ClientCall, RpcError
from spear_transport_grpc._convert import converter
from spear_transport_grpc._object_messages import (
    check_transaction,
    expectation,
    filled,
    operation_to_message,
    state_from_message,
)
from spear_transport_grpc._protos.spear.v1 import object_pb2

__all__ = ["GrpcObjects"]

M = TypeVar("M", bound=Message)
_PIECE = 256 << 10
_MOST_AT_ONCE = 4 << 20
"""Bytes of a value that go in one message; more goes piece by piece."""
_MOST_LISTED = 10_000
_PUT = "ObjectService/PutObject"
_GET = "ObjectService/GetObject"
_WATCH = "ObjectService/WatchObjects"


class GrpcObjects(ObjectApi):
    """The objects of the node that ``asking`` reaches."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

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
        size = memoryview(value).nbytes
        if size <= _MOST_AT_ONCE:
            operation = PutObject(
                key=key,
                value=value,
                expect=expect,
                content_type=content_type,
                ttl=ttl,
                hashed=hashed,
            )
            (stat,) = await self.transact([operation])
            if stat is None:
                raise ProtocolError(f"the node at {self._asking.where} lost what was written")
            return stat
        async with self.create(
            key, expect=expect, content_type=content_type, ttl=ttl, hashed=hashed, size=size
        ) as writer:
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
        header = filled(
            object_pb2.PutObjectHeader,
            key=key,
            expect=expectation(expect),
            content_type="" if content_type == OCTETS else content_type,
            ttl=ttl,
            hashed=hashed,
            size=size,
        )
        async with self._asking.open(_PUT) as call:
            await call.send(object_pb2.PutObjectRequest(header=header).SerializeToString())
            await call.wait_accepted()
            writer = _Writer(call, self._asking)
            try:
                yield writer
            finally:
                writer.closed = True

    @asynccontextmanager
    async def read(
        self, key: str, *, version: int | None = None, offset: int = 0
    ) -> AsyncGenerator[ObjectReader]:
        request = filled(object_pb2.GetObjectRequest, key=key, version=version, offset=offset)
        async with self._asking.open(_GET) as call:
            await call.send(request.SerializeToString())
            await call.send_eof()
            first = self._asking.read(object_pb2.GetObjectResponse, await call.receive())
            stat = converter(ObjectStat).decode(first.stat)
            async with _Reader(call, self._asking, stat, stat.size - offset) as reader:
                yield reader

    async def transact(
        self, operations: Sequence[ObjectOperation]
    ) -> tuple[ObjectStat | None, ...]:
        messages = [operation_to_message(each) for each in operations]
        check_transaction(messages)
        request = filled(object_pb2.TransactObjectsRequest, operations=messages)
        answer = await self._ask("TransactObjects", request, object_pb2.TransactObjectsResponse)
        return tuple(map(state_from_message, answer.objects))

    async def stat(self, key: str) -> ObjectStat:
        request = filled(object_pb2.StatObjectRequest, key=key)
        return _stat(await self._ask("StatObject", request, object_pb2.ObjectStat))

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> ObjectPage:
        if not 1 <= limit <= _MOST_LISTED:  # 0 on the wire is the default
            raise InvalidRequestError(f"limit: must be 1 to {_MOST_LISTED}, not {limit}")
        request = filled(object_pb2.ListObjectsRequest, prefix=prefix, after=after, limit=limit)
        answer = await self._ask("ListObjects", request, object_pb2.ListObjectsResponse)
        return converter(ObjectPage).decode(answer)

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        request = filled(object_pb2.AddReferenceRequest, key=key, holder=holder)
        return _stat(await self._ask("AddReference", request, object_pb2.ObjectStat))

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        request = filled(object_pb2.RemoveReferenceRequest, key=key, holder=holder)
        answer = await self._ask("RemoveReference", request, object_pb2.ObjectState)
        return state_from_message(answer)

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        request = filled(object_pb2.ListHoldersRequest, key=key)
        answer = await self._ask("ListHolders", request, object_pb2.ListHoldersResponse)
        return [converter(ObjectHolder).decode(each) for each in answer.holders]

    async def pin(self, key: str) -> ObjectStat:
        request = filled(object_pb2.PinObjectRequest, key=key)
        return _stat(await self._ask("PinObject", request, object_pb2.ObjectStat))

    async def unpin(self, key: str) -> ObjectStat | None:
        request = filled(object_pb2.UnpinObjectRequest, key=key)
        return state_from_message(await self._ask("UnpinObject", request, object_pb2.ObjectState))

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        request = filled(object_pb2.DeleteObjectRequest, key=key, expect=expectation(expect))
        await self._ask("DeleteObject", request, object_pb2.DeleteObjectResponse)

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges]]:
        request = filled(
            object_pb2.WatchObjectsRequest, prefix=prefix, start_revision=start_revision
        )
        async with self._asking.open(_WATCH) as call:
            await call.send(request.SerializeToString())
            await call.send_eof()
            await call.wait_accepted()
            async with _Changes(call, self._asking) as changes:
                yield changes

    async def usage(self) -> StoreUsage:
        request = object_pb2.GetObjectUsageRequest()
        answer = await self._ask("GetObjectUsage", request, object_pb2.ObjectUsage)
        return converter(StoreUsage).decode(answer)

    async def _ask(self, method: str, request: Message, answer: type[M]) -> M:
        return await self._asking.ask(f"ObjectService/{method}", request, answer)


def _stat(message: object_pb2.ObjectStat) -> ObjectStat:
    return converter(ObjectStat).decode(message)


class _Reader(ObjectReader):
    """Pieces as the node sends them.

    :param left: bytes that are still to come.
    """

    def __init__(self, call: ClientCall, asking: Asking, stat: ObjectStat, left: int) -> None:
        self.stat = stat
        self._call = call
        self._asking = asking
        self._left = left
        self._closed = False

    async def receive(self) -> bytes:
        while True:
            data = await _received(self, self._call, self._asking, _GET)
            if data is None:
                break
            chunk = self._asking.read(object_pb2.GetObjectResponse, data).chunk
            if chunk:
                self._left -= len(chunk)
                return chunk
        if self._left:
            raise ProtocolError(
                f"the node at {self._asking.where} ended object {self.stat.key!r} with "
                f"{self._left} of its bytes outstanding"
            )
        raise trio.EndOfChannel

    @property
    def closed(self) -> bool:
        """It was closed here."""
        return self._closed

    async def aclose(self) -> None:
        self._closed = True
        self._call.cancel()
        await trio.lowlevel.checkpoint()


class _Changes(trio.abc.ReceiveChannel[ObjectChanges]):
    """A watch, as the node sends it."""

    def __init__(self, call: ClientCall, asking: Asking) -> None:
        self._call = call
        self._asking = asking
        self._closed = False

    @property
    def closed(self) -> bool:
        """It was closed here."""
        return self._closed

    async def receive(self) -> ObjectChanges:
        data = await _received(self, self._call, self._asking, _WATCH)
        message = self._asking.read(object_pb2.ObjectChanges, data)
        return converter(ObjectChanges).decode(message)

    async def aclose(self) -> None:
        self._closed = True
        self._call.cancel()
        await trio.lowlevel.checkpoint()


async def _received(
    end: _Reader | _Changes, call: ClientCall, asking: Asking, method: str
) -> bytes | None:
    """The next message; ``None`` when the call has ended well. **Raises** what ended it."""
    if end.closed:
        raise trio.ClosedResourceError
    try:
        return await call.receive()
    except RpcError as error:
        if end.closed:
            raise trio.ClosedResourceError from None
        raise asking.error(error, method) from error


class _Writer(ObjectWriter):
    """Sends what it is given, and says only with :meth:`commit` that this was all."""

    def __init__(self, call: ClientCall, asking: Asking) -> None:
        self._call = call
        self._asking = asking
        self._sent = 0
        self._busy = False
        self.closed = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        with self._use():
            whole = False
            try:
                for start in range(0, len(view), _PIECE):
                    chunk = bytes(view[start : start + _PIECE])
                    message = object_pb2.PutObjectRequest(chunk=chunk)
                    await self._call.send(message.SerializeToString())
                    self._sent += len(chunk)
                await trio.lowlevel.checkpoint_if_cancelled()
                whole = True
            except RpcError as error:
                raise self._asking.error(error, _PUT) from error
            finally:
                self.closed = self.closed or not whole  # nobody knows how much of it went

    async def commit(self) -> ObjectStat:
        with self._use():
            self.closed = True
            commit = object_pb2.PutObjectCommit(size=self._sent)
            try:
                message = object_pb2.PutObjectRequest(commit=commit)
                await self._call.send(message.SerializeToString())
                await self._call.send_eof()
                data = await self._call.receive()
            except RpcError as error:
                raise self._asking.error(error, _PUT) from error
            return _stat(self._asking.read(object_pb2.ObjectStat, data))

    @contextmanager
    def _use(self) -> Iterator[None]:
        if self._busy:
            raise trio.BusyResourceError("another task is writing this object")
        if self.closed:
            raise trio.ClosedResourceError
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
