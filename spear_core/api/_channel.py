"""Channels between a node and one instance, and the transports that make them."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import attrs
import trio

from spear_core.api._descriptor import OwnedFd
from spear_core.api._plugin import PluginContext
from spear_core.api._runtime import Capability
from spear_core.errors import ChannelBrokenError

__all__ = [
    "Channel",
    "ChannelListener",
    "ChannelStatistics",
    "LocalChannel",
    "Message",
    "MessageFlag",
    "MessageKind",
    "Transport",
    "TransportSpec",
]

C = TypeVar("C")


class MessageKind(enum.IntEnum):
    """What a message is for. The numbers are the wire's (``docs/wire-format.md``)."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    RESPONSE = 4
    DATA = 5
    CREDIT = 6
    CANCEL = 7
    PING = 8
    PONG = 9
    GOAWAY = 10
    NOTICE = 11
    """A message that wants no answer, such as a log entry."""


class MessageFlag(enum.IntEnum):
    """What is special about a message. Combinations are plain numbers: the operators of an
    ``IntFlag`` cost more than moving a small message."""

    NONE = 0
    END_STREAM = 1
    """The sender sends no more on this id."""
    MORE = 2
    """The payload goes on in DATA messages with the same id."""
    ERROR = 4
    """The head describes an error."""
    STREAM = 8
    """A REQUEST that opens a stream in both directions."""
    FD = 16
    """A file descriptor comes with the frame; set by a channel that passes them, by it alone."""
    CRITICAL = 128
    """A receiver that does not know the kind closes the channel instead of ignoring it."""


@attrs.frozen(eq=True)
class Message:
    """What a channel carries. A transport moves it and never looks into head or payload."""

    kind: int
    """A :class:`MessageKind`; a number unknown to this version passes through unchanged."""
    id: int = 0
    """Odd when the node began the exchange, even when the instance did, 0 for the connection."""
    flags: int = 0
    head: bytes = b""
    """Small and structured: a msgpack map of at most 65535 bytes (``spear_core.rpc.codec``)."""
    payload: bytes | bytearray | memoryview = b""
    """Raw bytes, never re-encoded. The receiver owns what it gets."""
    fd: OwnedFd | None = attrs.field(default=None, eq=False)
    """A file that goes to the other process with the message, on a channel that
    :attr:`Channel.passes_fds`. What is sent stays the sender's to close; the receiver has a
    descriptor of its own."""


@attrs.frozen(kw_only=True)
class ChannelStatistics:
    """Counters since the channel was made. Bytes are heads and payloads, without framing."""

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Channel(trio.abc.AsyncResource):
    """A message path between two ends: ordered, whole messages, in both directions.

    Any number of tasks may send at the same time; one task receives.
    """

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Hand one message to the transport, whole or not at all.

        Waits while the peer does not read (backpressure). **Raises**
        :exc:`~spear_core.errors.ChannelClosedError` after :meth:`aclose` on this side,
        :exc:`~spear_core.errors.ChannelBrokenError` when the peer is gone, :exc:`ValueError` for a
        message over the transport's size limit, or with a file descriptor where none can pass.
        **Cancellation**: the message was sent whole or not at all, and the channel stays usable.
        """

    async def send_many(self, messages: Sequence[Message]) -> None:
        """:meth:`send` for several, in order: cheaper than one by one where a channel can do so.

        **Cancellation**: each was sent whole or not at all, and none after one that was not.
        """
        for message in messages:
            await self.send(message)

    @abstractmethod
    async def receive(self) -> Message:
        """Wait for the next message.

        **Raises** :exc:`trio.EndOfChannel` at a clean end,
        :exc:`~spear_core.errors.ChannelBrokenError` when the peer vanished in the middle of a
        message, :exc:`~spear_core.errors.ProtocolError` for bytes that are no message,
        :exc:`~spear_core.errors.ChannelClosedError` after :meth:`aclose` on this side, also when
        it was already waiting, :exc:`trio.BusyResourceError` when another task is receiving.
        **Cancellation**: no message is lost.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close both directions; waiting calls on this side raise ``ChannelClosedError``.

        The peer receives what was sent before, then ``EndOfChannel``. Closing twice is fine.
        **Cancellation**: closes all the same.
        """

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """False once either side has closed or the path is known to be broken."""

    @abstractmethod
    def statistics(self) -> ChannelStatistics:
        """Counters since the channel was made."""

    @property
    def can_pass_fds(self) -> bool:
        """Whether file descriptors could go along here, once both ends have agreed on it."""
        return False

    @property
    def passes_fds(self) -> bool:
        """Whether they do: :meth:`pass_fds` was called on this end."""
        return False

    def pass_fds(self) -> None:
        """From now on send and take a message's :attr:`Message.fd`; call it on both ends, once
        they have agreed (``docs/wire-format.md``). Before that, what a peer sends along is dropped.

        At most one comes with a message. It arrives with its message or not at all, and one that
        does not belong to a message breaks the channel. **Raises** :exc:`ValueError` where
        :attr:`can_pass_fds` is false.
        """
        raise ValueError("no file descriptors can pass through this kind of channel")

    async def request_response(self, request: Message) -> Message:
        """Send ``request`` and wait for the RESPONSE with the same id.

        For a channel with nobody else receiving from it: messages of other ids that arrive
        meanwhile are dropped. Anything busier uses :class:`spear_core.rpc.Session`. **Raises** as
        :meth:`send` and :meth:`receive`, and :exc:`~spear_core.errors.ChannelBrokenError` when the
        channel ends before the answer. **Cancellation**: the request may have been sent.
        """
        await self.send(request)
        while True:
            try:
                message = await self.receive()
            except trio.EndOfChannel:
                raise ChannelBrokenError("the channel ended before the answer came") from None
            if message.kind == MessageKind.RESPONSE and message.id == request.id:
                return message


class LocalChannel(Channel):
    """One end of a channel whose two ends live in this process."""

    @abstractmethod
    def serve(self, handler: Callable[[Message], Awaitable[Message]]) -> None:
        """Answer the peer's ``request_response`` by calling ``handler`` in the caller's own task.

        No task switch, and cancelling the caller cancels the handler. From now on
        :meth:`Channel.receive` on this end sees no REQUEST that came that way.
        """


class ChannelListener(trio.abc.AsyncResource):
    """Accepts connections at one address."""

    address: str
    """Where a peer connects, with everything filled in (a port that was 0)."""

    @abstractmethod
    async def accept(self) -> Channel:
        """Wait for the next connection.

        **Raises** :exc:`~spear_core.errors.ChannelClosedError` after :meth:`aclose`.
        **Cancellation**: no connection is lost.
        """


class Transport(ABC):
    """Makes channels of one kind."""

    @abstractmethod
    def new_address(self, name: str) -> str:
        """An address on this machine for a listener of this name (an instance's id).

        Two names give two addresses. Does no I/O that blocks.
        """

    @abstractmethod
    async def connect(self, address: str) -> Channel:
        """Connect to a listener.

        **Raises** :exc:`~spear_core.errors.ChannelError` when nobody listens there or the address
        is malformed (the message says which). **Cancellation**: nothing stays open.
        """

    @abstractmethod
    def listen(self, address: str) -> AbstractAsyncContextManager[ChannelListener]:
        """Listen while the block lasts.

        The listener is ready when the block is entered. Leaving it frees the address; accepted
        channels live on. **Raises** :exc:`~spear_core.errors.ChannelError` when the address cannot
        be used, with the reason.
        """


@attrs.frozen(kw_only=True)
class TransportSpec(Generic[C]):
    """Declares a transport; returned by the hook ``spear_transports``."""

    name: str
    """What a runtime asks for, and the scheme of its addresses: ``unix``, ``tcp``."""
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[Transport]]
    config_cls: type[C]
    capabilities: frozenset[Capability] = frozenset()
    api: int = 1


AnyTransportSpec = TransportSpec[Any]
