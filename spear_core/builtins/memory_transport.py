"""The transport ``memory``: channels whose two ends live in this process."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property

import attrs
import trio

from spear_core.api import (
    Channel,
    ChannelListener,
    ChannelStatistics,
    LocalChannel,
    Message,
    PluginContext,
    Transport,
)
from spear_core.errors import ChannelBrokenError, ChannelClosedError, ChannelError

__all__ = ["MemoryTransport", "MemoryTransportConfig", "local_pair", "open_memory_transport"]

_BUFFERED = 64
"""Messages that may lie between the two ends before a sender waits."""
_SCHEME = "memory://"


@attrs.frozen(kw_only=True)
class MemoryTransportConfig:
    """The transport has no settings."""


class MemoryChannel(LocalChannel):
    """One end of a pair; made by :func:`local_pair`."""

    _peer: MemoryChannel

    def __init__(self) -> None:
        self._inbox: deque[Message] = deque()
        self._handler: Callable[[Message], Awaitable[Message]] | None = None
        self._closed = False
        self._receiving = False
        self._sent = self._received = self._bytes_sent = self._bytes_received = 0

    # Made when somebody first sends or receives: a pair is opened for each wasm execution, and its
    # calls go straight to the handler.

    @cached_property
    def _arrived(self) -> trio.lowlevel.ParkingLot:
        return trio.lowlevel.ParkingLot()

    @cached_property
    def _room(self) -> trio.lowlevel.ParkingLot:
        return trio.lowlevel.ParkingLot()

    def serve(self, handler: Callable[[Message], Awaitable[Message]]) -> None:
        self._handler = handler

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if message.fd is not None:
            raise ValueError("no file descriptors can pass through this kind of channel")
        inbox = self._peer._inbox
        if len(inbox) < _BUFFERED and not self._room:
            self._deliver(message)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        while len(inbox) >= _BUFFERED:
            await self._room.park()
            self._check_open()
        self._deliver(message)

    def _deliver(self, message: Message) -> None:
        self._count_sent(message)
        if not isinstance(message.payload, bytes):
            message = attrs.evolve(message, payload=bytes(message.payload))
        self._peer._inbox.append(message)
        self._peer._arrived.unpark()

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosedError("this side has closed the channel")
        if self._peer._closed:
            raise ChannelBrokenError("the other side has closed the channel")

    async def receive(self) -> Message:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        await trio.lowlevel.checkpoint()
        self._receiving = True
        try:
            while not self._closed and not self._inbox:
                if self._peer._closed:
                    raise trio.EndOfChannel
                await self._arrived.park()
        finally:
            self._receiving = False
        if self._closed:
            raise ChannelClosedError("this side has closed the channel")
        message = self._inbox.popleft()
        self._peer._room.unpark()
        self._count_received(message)
        return message

    async def request_response(self, request: Message) -> Message:
        handler = self._peer._handler
        if handler is None:
            return await super().request_response(request)
        self._check_open()
        self._count_sent(request)
        self._peer._count_received(request)
        response = await handler(request)
        self._peer._count_sent(response)
        self._count_received(response)
        return response

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            for end in (self, self._peer):
                end._arrived.unpark_all()
                end._room.unpark_all()
        await trio.lowlevel.checkpoint()

    @property
    def is_connected(self) -> bool:
        return not (self._closed or self._peer._closed)

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            messages_sent=self._sent,
            messages_received=self._received,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
        )

    def _count_sent(self, message: Message) -> None:
        self._sent += 1
        self._bytes_sent += len(message.head) + len(message.payload)

    def _count_received(self, message: Message) -> None:
        self._received += 1
        self._bytes_received += len(message.head) + len(message.payload)


def local_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Both ends of a new channel."""
    one, other = MemoryChannel(), MemoryChannel()
    one._peer, other._peer = other, one
    return one, other


class MemoryListener(ChannelListener):
    """Accepts connections to one name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._closed = False
        self._connections: deque[MemoryChannel] = deque()
        self._arrived = trio.lowlevel.ParkingLot()

    def connect(self) -> MemoryChannel:
        """A new connection's far end."""
        near, far = local_pair()
        self._connections.append(near)
        self._arrived.unpark()
        return far

    async def accept(self) -> Channel:
        await trio.lowlevel.checkpoint()
        while not self._closed and not self._connections:
            await self._arrived.park()
        if self._closed:
            raise ChannelClosedError(f"the listener at {self.address} is closed")
        return self._connections.popleft()

    async def aclose(self) -> None:
        self._closed = True
        self._arrived.unpark_all()
        while self._connections:
            await self._connections.popleft().aclose()
        await trio.lowlevel.checkpoint()


class MemoryTransport(Transport):
    """Listeners by name, within one process."""

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryListener] = {}
        self._numbers = itertools.count(1)

    def new_address(self, name: str) -> str:
        return f"{_SCHEME}{name}.{next(self._numbers)}"

    async def connect(self, address: str) -> Channel:
        await trio.lowlevel.checkpoint()
        _check(address)
        listener = self._listeners.get(address)
        if listener is None:
            raise ChannelError(f"nobody listens at {address}")
        return listener.connect()

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        _check(address)
        if address in self._listeners:
            raise ChannelError(f"somebody listens at {address} already")
        listener = self._listeners[address] = MemoryListener(address)
        try:
            yield listener
        finally:
            del self._listeners[address]
            await listener.aclose()


def _check(address: str) -> None:
    if not address.startswith(_SCHEME) or len(address) == len(_SCHEME):
        raise ChannelError(f"{address!r} is no address of the form {_SCHEME}name")


@asynccontextmanager
async def open_memory_transport(
    context: PluginContext, config: MemoryTransportConfig
) -> AsyncIterator[Transport]:
    """The transport for one node."""
    yield MemoryTransport()
