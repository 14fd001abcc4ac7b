"""What the peer asks of a session: which of it is taken, who answers it, and how."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from spear_core.api import Channel, Message, MessageFlag, MessageKind, OwnedFd
from spear_core.errors import (
    ChannelClosedError,
    NodeStoppingError,
    ProtocolError,
    ResourceExhaustedError,
    SpearError,
)
from spear_core.rpc._payloads import PayloadSender
from spear_core.rpc._serving import Answer, Call, Job, Reply, Servants
from spear_core.rpc._stream import Stream
from spear_core.rpc.codec import RequestHead, decode_head

__all__ = ["Handler", "PeerRequests", "SessionLimits", "StreamHandler"]

Handler = Callable[[Call], Awaitable[Reply]]
StreamHandler = Callable[[Call, Stream], Awaitable[Reply]]


@attrs.frozen(kw_only=True)
class SessionLimits:
    """What one peer may ask of this side."""

    max_message: int = 64 << 20
    """Bytes of one payload."""
    max_assembling: int = 512 << 20
    """Bytes of all payloads of which only a part is here."""
    max_requests: int = 16_384
    """The peer's requests under way at the same time, streams included."""
    max_streams: int = 256
    """The peer's streams under way at the same time; each may hold 256 KiB."""
    max_fds: int = 64
    """Files that came with the peer's requests under way."""


class PeerRequests:
    """The peer's requests and streams under way.

    :param streams: of both sides, by id; those of the peer are put there while they last.
    """

    def __init__(
        self,
        channel: Channel,
        sender: PayloadSender,
        *,
        handler: Handler | None,
        on_stream: StreamHandler | None,
        limits: SessionLimits,
        streams: dict[int, Stream],
        new_stream: Callable[[int], Stream],
    ) -> None:
        self._sender = sender
        self._handler = handler
        self._on_stream = on_stream
        self._limits = limits
        self._streams = streams
        self._new_stream = new_stream
        self._servants = Servants(self._respond, channel.send_many)
        self._fds_held = 0
        self.going = False
        """Whether none is taken any more."""

    def open(self, nursery: trio.Nursery) -> None:
        """Where the handlers live; called once, before the first :meth:`start`."""
        self._servants.open(nursery)

    def take(self, message: Message) -> SpearError | None:
        """Have a request answered, at once if it is here as a whole, or say why not.

        **Raises** :exc:`ProtocolError` for one that is under way.
        """
        flags = message.flags
        if message.id in self._servants:
            raise ProtocolError(
                f"a second request with id {message.id} while the first is under way"
            )
        if self.going:
            return NodeStoppingError("shutting down: no new requests")
        if len(self._servants) >= self._limits.max_requests or (
            flags & MessageFlag.STREAM and len(self._streams) >= self._limits.max_streams
        ):
            return ResourceExhaustedError("too many requests under way on this connection")
        if message.fd is not None and self._fds_held >= self._limits.max_fds:
            return ResourceExhaustedError("too many files under way here")
        if not flags & MessageFlag.MORE:
            self.start(message)
        return None

    def start(self, message: Message) -> None:
        """Have a request answered that is here as a whole, and was taken."""
        id_ = message.id
        head = decode_head(message.head, RequestHead)
        call = Call(head.method, head.args, message.payload, message.fd)
        if message.fd is not None:
            self._fds_held += 1
            work = partial(self._handle_fd, call, message.fd)
        elif not message.flags & MessageFlag.STREAM:
            work = partial(self._handle, call)
        else:
            stream = self._streams[id_] = self._new_stream(id_)
            work = partial(self._handle_stream, id_, call, stream)
        self._servants.start(Job(id_, call.method, work))

    async def _handle(self, call: Call) -> Reply:
        if self._handler is None:
            raise SpearError("this side answers no requests", code="unimplemented")
        reply = await self._handler(call)
        if len(reply.payload) > self._limits.max_message:
            raise ResourceExhaustedError(
                f"the answer has {len(reply.payload)} bytes; at most"
                f" {self._limits.max_message} are allowed",
                retryable=False,
            )
        if reply.fd is not None:
            self._sender.check_beside_fd(reply.payload)
        return reply

    async def _handle_fd(self, call: Call, fd: OwnedFd) -> Reply:
        try:
            return await self._handle(call)
        finally:
            self._fds_held -= 1
            fd.close()

    async def _handle_stream(self, id_: int, call: Call, stream: Stream) -> Reply:
        try:
            if self._on_stream is None:
                raise SpearError("this side serves no streams", code="unimplemented")
            return await self._on_stream(call, stream)
        finally:
            del self._streams[id_]
            stream.break_(ChannelClosedError("the stream has been answered"))

    async def _respond(self, id_: int, answer: Answer) -> None:
        flags, head, payload, fd = answer
        await self._sender.send(MessageKind.RESPONSE, id_, flags, head, payload, fd)

    def cancel(self, id_: int) -> bool:
        """Cancel the handler of this request; False when there is no such request."""
        return self._servants.cancel(id_)

    def cancel_all(self) -> None:
        """Cancel every handler; no answer is sent any more."""
        self._servants.cancel_all()

    async def wait_idle(self) -> None:
        """Wait until none is under way and every answer is sent."""
        await self._servants.wait_idle()
