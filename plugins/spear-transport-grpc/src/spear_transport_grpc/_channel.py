"""The channel ``grpc``: messages of one instance over one call of ChannelService."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import trio
from google.protobuf.message import DecodeError

from spear_core.api import Channel, ChannelStatistics, Message
from spear_core.errors import ChannelBrokenError, ChannelClosedError, ProtocolError
from spear_transport_grpc._bridge import ClientCall, RpcError, ServerCall
from spear_transport_grpc._protos.spear.v1 import channel_pb2

__all__ = ["CallerPath", "GrpcChannel", "HandlerPath"]

_HELD = 256 << 10
"""Bytes that wait here for a reader; beyond it the other side's sends wait."""
_LONGEST_HEAD = 0xFFFF


class Path(ABC):
    """One side of a call."""

    says_end: bool
    """The other side says that it closes; else the call's status does."""

    @abstractmethod
    async def send(self, data: bytes) -> bool:
        """Send one message; false when the call is over."""

    @abstractmethod
    async def receive(self) -> bytes | None:
        """The next one; ``None`` after the last. **Raises** :exc:`RpcError`."""


class HandlerPath(Path):
    """The side that was called."""

    says_end = True

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    async def send(self, data: bytes) -> bool:
        return await self._call.offer(data)

    async def receive(self) -> bytes | None:
        return await self._call.receive()


class CallerPath(Path):
    """The side that called."""

    says_end = False

    def __init__(self, call: ClientCall) -> None:
        self._call = call

    async def send(self, data: bytes) -> bool:
        try:
            await self._call.send(data)
        except RpcError:
            return False
        return True

    async def receive(self) -> bytes | None:
        return await self._call.receive()


_END = channel_pb2.Frame(end=True).SerializeToString()
"""What the connecting side says last."""


class GrpcChannel(Channel):
    """Messages over a call whose task runs :meth:`run`.

    It reads ahead a little, so that the end of the other side is noticed while nobody receives.
    """

    def __init__(self, path: Path, *, max_message: int) -> None:
        self._path = path
        self._max_message = max_message
        self._inbox: deque[channel_pb2.Frame] = deque()
        self._held = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        self._waiting: set[trio.CancelScope] = set()
        self._closing = trio.Event()
        self._ended = False
        self._broken = ""
        self._malformed = ""
        self._receiving = False
        self._sent = self._received = self._bytes_sent = self._bytes_received = 0

    async def run(self) -> None:
        """Take messages off the call until either side closes."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_closed, nursery.cancel_scope)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            if not self._ended and not self._closing.is_set():
                self._broken = self._broken or "the other side vanished"
            self._ended = True
            self._wake()

    async def _end_when_closed(self, scope: trio.CancelScope) -> None:
        await self._closing.wait()
        scope.cancel()

    async def _read(self) -> None:
        try:
            while (data := await self._path.receive()) is not None:
                frame = channel_pb2.Frame.FromString(data)
                if frame.end:
                    self._ended = True
                    return
                self._inbox.append(frame)
                self._held += len(data)
                self._changed.unpark()
                while self._held > _HELD:
                    await self._room.park()
        except RpcError as error:
            self._broken = f"the other side is gone ({error.details or error.code.name})"
        except DecodeError as error:
            self._malformed = f"what came is no message: {error}"
        if not self._path.says_end:
            self._ended = True

    def _wake(self) -> None:
        self._changed.unpark_all()
        for scope in self._waiting:
            scope.cancel()

    async def send(self, message: Message) -> None:
        payload = bytes(message.payload)
        size = len(message.head) + len(payload)
        if message.fd is not None:
            raise ValueError("no file descriptors can pass through this kind of channel")
        if len(message.head) > _LONGEST_HEAD:
            raise ValueError(f"a head has at most {_LONGEST_HEAD} bytes, not {len(message.head)}")
        frame = channel_pb2.Frame(
            kind=message.kind,
            id=message.id,
            flags=message.flags,
            head=message.head,
            payload=payload,
        ).SerializeToString()
        if len(frame) > self._max_message:
            raise ValueError(
                f"a message has at most {self._max_message} bytes here, this one {len(frame)}"
            )
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_writable()
        sent = False
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                async with self._turn:
                    self._check_writable()
                    sent = await self._path.send(frame)
            finally:
                self._waiting.discard(scope)
        if not sent:
            self._check_writable()
            self._broken = self._broken or "the other side is gone"
            raise ChannelBrokenError(self._broken)
        self._sent += 1
        self._bytes_sent += size

    async def say_end(self) -> None:
        """The last word of the connecting side, after what is being sent."""
        async with self._turn:
            await self._path.send(_END)

    def _check_writable(self) -> None:
        if self._closing.is_set():
            raise ChannelClosedError("this side has closed the channel")
        if self._ended:
            raise ChannelBrokenError(self._broken or "the other side has closed the channel")

    async def receive(self) -> Message:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self._inbox or self._closing.is_set():
                self._check_readable()
                await self._changed.park()
        finally:
            self._receiving = False
        frame = self._inbox.popleft()
        self._held -= frame.ByteSize()
        self._room.unpark_all()
        self._received += 1
        self._bytes_received += len(frame.head) + len(frame.payload)
        return Message(frame.kind, frame.id, frame.flags, frame.head, frame.payload)

    def _check_readable(self) -> None:
        if self._closing.is_set():
            raise ChannelClosedError("this side has closed the channel")
        if self._malformed:
            raise ProtocolError(self._malformed)
        if self._broken:
            raise ChannelBrokenError(self._broken)
        if self._ended:
            raise trio.EndOfChannel

    async def aclose(self) -> None:
        self._closing.set()
        self._wake()
        await trio.lowlevel.checkpoint()

    @property
    def is_connected(self) -> bool:
        return not self._ended and not self._closing.is_set()

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            messages_sent=self._sent,
            messages_received=self._received,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
        )
